"""Exams on data of the reader's own: what can be said of models without a gold score, on what was held out.

Text and conversations have a loss, answers a reference, comparisons have votes. Whether the policy became better is
asked of two judges: the one it learned from, and one trained on other votes. Where only the first is pleased, the
policy has learned to please it. Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch

from gptcore.atlas import Language
from gptcore.ballots import Ballot, answers_of, votes_of
from gptcore.chat_template import Turn, decode_answer, encode_conversation, encode_prompt
from gptcore.corpus import encode_document
from gptcore.decoder import Decoder
from gptcore.evaluation import bits_per_byte, bleu, mean_loss, share, units
from gptcore.generation import SamplingConfig, generate
from gptcore.loss import IGNORED
from gptcore.reward import RewardModel, rewards_of
from gptcore.rollouts import kl_of_answers
from gptcore.shapes import pad_right
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for

MOST = 200
"""Held-out conversations and prompts that are asked; enough for an interval of a few hundredths."""
SHOWN = 8
"""Held-out prompts whose answers stand in the report."""


@dataclass(frozen=True)
class HeldOut:
    """What no stage has seen."""

    text: Sequence[str]
    """Pieces of text."""
    conversations: Sequence[Sequence[Turn]]
    """Conversations that fit into the context."""
    ballots: Sequence[Ballot]
    """Questions with votes on their answers."""
    prompts: Sequence[list[int]]
    """Questions in the chat template."""


def vote_accuracy(model: RewardModel, ballots: Sequence[Ballot]) -> list[bool]:
    """For each vote: whether the model prefers the same answer."""
    pairs = zip(*answers_of(ballots), strict=True)
    rewards = rewards_of(model, [prompt + answer for prompt, answer in pairs])
    return [bool(rewards[winner] > rewards[loser]) for winner, loser in zip(*votes_of(ballots), strict=True)]


def own_scores(
    held_out: HeldOut,
    tokenizer: Tokenizer,
    models: Mapping[str, Any],
    seed: int,
    max_new_tokens: int,
    after_exam: Callable[[], object],
) -> dict[str, Any]:
    """Let the models of all stages sit their exams.

    Args:
        held_out: what is asked.
        tokenizer: of all models.
        models: by stage, as far as the chain went.
        seed: of the answers drawn at random.
        max_new_tokens: longest answer.
        after_exam: called once for each model.

    Returns:
        for the report: `scores`, `intervals`, and `samples`: questions with the answers of the last two stages.
    """
    scores: dict[str, float] = {}
    shares: dict[str, Sequence[float]] = {}
    for stage, model in models.items():
        if stage == "base" and held_out.text:
            ids = [token for piece in held_out.text for token in encode_document(tokenizer, piece)]
            scores["base_bits_per_byte"] = bits_per_byte(model, ids, len(tokenizer.decode_bytes(ids)))
        if isinstance(model, RewardModel):
            if held_out.ballots:
                shares[f"{stage}_vote_accuracy"] = vote_accuracy(model, held_out.ballots)
        elif stage != "base" and held_out.conversations:
            told, right = _answers_as_written(model, tokenizer, held_out.conversations[:MOST], max_new_tokens)
            scores |= {f"{stage}_{name}": value for name, value in told.items()}
            shares[f"{stage}_exact"] = right
        after_exam()
    policy = next((stage for stage in ("ppo", "grpo", "dpo") if stage in models), None)
    samples: list[dict[str, str]] = []
    asked = list(held_out.prompts[:MOST])
    answering = [stage for stage in ("sft", policy) if stage in models]
    if answering and asked:
        samples = _side_by_side(
            tokenizer, {stage: models[stage] for stage in answering if stage}, asked, max_new_tokens
        )
    if policy and asked:
        end = tokenizer.special[END]
        drawn = {
            stage: generate(
                models[stage], asked, SamplingConfig(max_new_tokens=max_new_tokens), end, generator_for(seed, n)
            )
            for n, stage in enumerate(("sft", policy))
        }
        for judge in ("reward", "second_reward"):
            if judge in models:
                before, after = (
                    rewards_of(models[judge], [p + a for p, a in zip(asked, drawn[s], strict=True)])
                    for s in ("sft", policy)
                )
                same = torch.tensor([a == b for a, b in zip(drawn["sft"], drawn[policy], strict=True)])
                shares[f"{policy}_win_rate_{judge}"] = torch.where(same, 0.5, (after > before).float()).tolist()
        for stage, answers in drawn.items():
            scores[f"{stage}_length"] = sum(map(len, answers)) / len(answers)
        scores[f"{policy}_kl"] = kl_of_answers(models[policy], models["sft"], asked, drawn[policy])
    intervals = {}
    for name, values in shares.items():
        if values:
            result = share(values)
            scores[name] = result.value
            intervals[name] = [round(result.low, 4), round(result.high, 4), result.count]
    return {
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "intervals": intervals,
        "samples": samples,
    }


def _answers_as_written(
    model: Decoder, tokenizer: Tokenizer, conversations: Sequence[Sequence[Turn]], max_new_tokens: int
) -> tuple[dict[str, float], list[bool]]:
    """How likely the written answers are, and how near to them the model's own come, each after the written turns before it.

    Returns:
        perplexity, next-token accuracy and BLEU; and for each answer whether it is the written one.
    """
    encoded = [encode_conversation(tokenizer, turns) for turns in conversations]
    batches = []
    for ids, targets in encoded:
        tokens, _ = pad_right([ids[:-1]], model.config.context_length)
        wanted = torch.full_like(tokens, IGNORED)
        wanted[0, : len(ids) - 1] = torch.tensor(targets[1:])
        batches.append((tokens, wanted))
    loss, count = mean_loss(model, batches)
    prompts, written = [], []
    for turns in conversations:
        for number, (question, answer) in enumerate(turns):
            prompts.append(encode_prompt(tokenizer, question, turns[:number]))
            written.append(answer)
    sampling = SamplingConfig(greedy=True, max_new_tokens=max_new_tokens)
    answers = [decode_answer(tokenizer, ids) for ids in generate(model, prompts, sampling, tokenizer.special[END])]
    languages: list[Language] = ["zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en" for text in written]
    said, meant = (
        [units(text, language) for text, language in zip(texts, languages, strict=True)] for texts in (answers, written)
    )
    told = {"perplexity": exp(loss), "bleu": bleu(said, meant)}
    return told, [answer == text for answer, text in zip(answers, written, strict=True)]


def _side_by_side(
    tokenizer: Tokenizer, models: Mapping[str, Decoder], prompts: Sequence[list[int]], max_new_tokens: int
) -> list[dict[str, str]]:
    """The most likely answers of some models to the same prompts."""
    shown = prompts[:SHOWN]
    samples = [{"prompt": decode_answer(tokenizer, ids)} for ids in shown]
    for stage, model in models.items():
        sampling = SamplingConfig(greedy=True, max_new_tokens=max_new_tokens)
        for sample, ids in zip(samples, generate(model, shown, sampling, tokenizer.special[END]), strict=True):
            sample[stage] = decode_answer(tokenizer, ids)
    return samples
