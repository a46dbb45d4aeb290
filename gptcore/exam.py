"""The exam: the questions behind every score of the course, and the scores.

The questions are the same in every run, but for the pairs of answers that the reward model is asked about: those
depend on the seed. Those of `validation` are for choosing, those of `test` for reporting; who
chooses by the latter has no exam left. Shares come with 95 % intervals. Sat first in notebooks/07_evaluation.ipynb.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from gptcore.as_typed import typed_scores
from gptcore.atlas import LANGUAGES
from gptcore.ballots import collect_ballots
from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.corpus import documents_as_tokens, pretraining_documents
from gptcore.decoder import Decoder
from gptcore.evaluation import bits_per_byte, bleu, share, units
from gptcore.generation import GREEDY, SamplingConfig, generate
from gptcore.gold import exact, gold_score, gold_verdict
from gptcore.prompts import GRADED, PromptSource
from gptcore.questions import Part, Prompt, fact_prompts, translate_prompts
from gptcore.reward import RewardModel, pair_accuracy
from gptcore.rollouts import kl_of_answers
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for

# --- Questions and answers -----------------------------------------------------------------------


@cache
def exam(part: Part) -> Mapping[str, tuple[Prompt, ...]]:
    """The questions behind the scores, the same in every run: each fact once in a seen wording, once in an unseen one.

    Args:
        part: `validation` for choosing, `test` for reporting.

    Returns:
        `known_en`, `known_zh`, `unknown` (half real, half invented), `translation` (both
        directions) and `mixed` (all tasks, for comparing answers drawn at random).
    """
    rng = random.Random(f"exam {part}")
    questions: dict[str, list[Prompt]] = {}

    def one_wording_each(prompts: list[Prompt]) -> list[Prompt]:
        by_fact: dict[tuple[Any, str | None], list[Prompt]] = {}
        for prompt in prompts:
            by_fact.setdefault((prompt.entity, prompt.relation), []).append(prompt)
        return [rng.choice(group) for group in by_fact.values()]

    real, invented, translation = [], [], []
    for language in LANGUAGES:
        known = []
        for wording_part in ("train", part):
            known += one_wording_each(fact_prompts(part, language, wording_part))
            translation += one_wording_each(translate_prompts(part, language, wording_part))
            for prompt in one_wording_each(fact_prompts(f"unknown_{part}", language, wording_part)):
                told = prompt.entity and prompt.relation and prompt.entity.facts[prompt.relation][language]
                (real if told else invented).append(prompt)
        questions[f"known_{language}"] = known
    each = min(len(real), len(invented))
    questions["unknown"] = rng.sample(real, each) + rng.sample(invented, each)
    questions["translation"] = translation
    questions["mixed"] = []
    for wording_part in ("train", part):
        source = PromptSource(part, wording_part, as_typed=False)
        drawn = [source.draw(rng, GRADED) for _ in range(400)]
        # Small talk has no entities to hold out: only its unseen wordings count.
        questions["mixed"] += [prompt for prompt in drawn if prompt.entity or wording_part == part]
    return MappingProxyType({name: tuple(prompts) for name, prompts in questions.items()})


def ask(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Prompt], sampling: SamplingConfig = GREEDY, seed: int = 0
) -> list[str]:
    """The model's answer to each prompt."""
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts]
    answers = generate(model, prompt_ids, sampling, tokenizer.special[END], generator_for(seed, 3))
    return [decode_answer(tokenizer, ids) for ids in answers]


# --- Scores --------------------------------------------------------------------------------------


def base_score(base: Decoder, tokenizer: Tokenizer, seed: int) -> float:
    """Bits per byte of texts drawn anew, many of whose short documents pretraining has read word for word.

    Args:
        base: the pretrained model.
        tokenizer: its tokenizer.
        seed: of the run; the texts are those of another: the same facts in another order.
    """
    held_out = documents_as_tokens(tokenizer, pretraining_documents(seed + 1_000_000), 40_000).tolist()
    return round(bits_per_byte(base, held_out, len(tokenizer.decode_bytes(held_out))), 4)


def answer_scores(model: Decoder, tokenizer: Tokenizer, part: Part = "test") -> dict[str, list[float]]:
    """Yes or no, question by question: `heldout_exact_en`, `_zh`, `unknown_honest` are good, `known_refused` is not."""
    questions = exam(part)
    scores: dict[str, list[float]] = {"known_refused": []}
    for language in LANGUAGES:
        prompts = questions[f"known_{language}"]
        answers = list(zip(prompts, ask(model, tokenizer, prompts), strict=True))
        scores[f"heldout_exact_{language}"] = [exact(*pair) for pair in answers]
        scores["known_refused"] += [gold_verdict(*pair).refused for pair in answers]
    answers = zip(questions["unknown"], ask(model, tokenizer, questions["unknown"]), strict=True)
    scores["unknown_honest"] = [exact(*pair) for pair in answers]
    return scores


def translation_scores(model: Decoder, tokenizer: Tokenizer, part: Part = "test") -> tuple[list[bool], float]:
    """Whether each held-out sentence is translated exactly, and BLEU over all of them."""
    prompts = exam(part)["translation"]
    answers = ask(model, tokenizer, prompts)
    right = [exact(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    candidates = [units(answer, prompt.language) for prompt, answer in zip(prompts, answers, strict=True)]
    references = [units(prompt.references[0], prompt.language) for prompt in prompts]
    return right, bleu(candidates, references)


def wins(
    model: Decoder, opponent: Decoder, tokenizer: Tokenizer, part: Part = "test", seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Both answer held-out prompts at temperature 1; who has the higher gold score?

    Returns:
        for each prompt 1, 0.5 (tie) or 0, and the gold scores of both.
    """
    prompts = exam(part)["mixed"]
    golds = []
    for player, number in ((model, 0), (opponent, 1)):
        answers = ask(player, tokenizer, prompts, SamplingConfig(), 2 * seed + number)
        golds.append([gold_score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    results = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in zip(*golds, strict=True)]
    return results, golds[0], golds[1]


def heldout_kl(policy: Decoder, reference: Decoder, tokenizer: Tokenizer, part: Part = "test", seed: int = 0) -> float:
    """KL of the policy's answers to held-out prompts, in nats an answer."""
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in exam(part)["mixed"]]
    answers = generate(policy, prompt_ids, SamplingConfig(), tokenizer.special[END], generator_for(seed, 4))
    return kl_of_answers(policy, reference, prompt_ids, answers)


def score_chain(
    tokenizer: Tokenizer,
    base: Decoder,
    sft: Decoder,
    reward_model: RewardModel,
    ppo: Decoder,
    seed: int,
    part: Part = "test",
    after_exam: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Let all models of a chain sit their exams.

    Args:
        tokenizer: of all of them.
        base, sft, reward_model, ppo: the models.
        seed: of the run.
        part: `validation` for choosing, `test` for reporting.
        after_exam: called after each of the seven exams, for a progress bar.

    Returns:
        scores by name, and for those that are shares low and high end of the 95 % interval and the number of questions.
    """
    scores = {"base_bits_per_byte": base_score(base, tokenizer, seed)}
    after_exam()
    shares: dict[str, Sequence[float]] = {}
    for name, model in (("sft", sft), ("ppo", ppo)):
        shares |= {f"{name}_{key}": values for key, values in answer_scores(model, tokenizer, part).items()}
        after_exam()
    # Of the model that the chain ends with: as people type, and translation.
    shares |= {f"typed_{key}": values for key, values in typed_scores(ppo, tokenizer, part).items()}
    after_exam()
    shares["translation_exact"], translation_bleu = translation_scores(ppo, tokenizer, part)
    after_exam()
    ballots = list(collect_ballots(sft, tokenizer, PromptSource(part), 300, seed + 1_000_000))
    shares["reward_pair_accuracy"] = pair_accuracy(reward_model, tokenizer, ballots)
    after_exam()
    shares["ppo_gold_win_rate"], ppo_gold, sft_gold = wins(ppo, sft, tokenizer, part, seed)
    after_exam()
    kl = heldout_kl(ppo, sft, tokenizer, part, seed)
    intervals = {}
    for name, values in shares.items():
        result = share(values)
        scores[name] = round(result.value, 4)
        intervals[name] = [round(result.low, 4), round(result.high, 4), result.count]
    scores["bleu_translation"] = round(translation_bleu, 2)
    scores["ppo_kl"] = round(kl, 3)
    scores["sft_gold"] = round(sum(sft_gold) / len(sft_gold), 4)
    scores["ppo_gold"] = round(sum(ppo_gold) / len(ppo_gold), 4)
    return scores, intervals
