"""What one person can teach with 20 to 200 votes: judges of a known taste, by the number of votes.

    python tests/benchmarks/votes_of_one.py [--repeats 3] [--out assets/benchmarks]

A simulated person of one taste compares pairs of answers of the fine-tuned model, errs in one vote of ten and skips pairs
in which the taste sees no difference. A judge that has seen these votes only picks the best of sixteen answers. A repeat is
another seed: other pairs. Chapter 9 shows the record, and trains a judge on the reader's own votes.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from common import Measurement, alternate, arguments, report
from reward_comparisons import best_of

from gptcore.ballots import Ballot
from gptcore.chat_template import decode_answer, encode_prompt, room_for_prompt
from gptcore.checkpoint import load_stage
from gptcore.generation import SamplingConfig, generate
from gptcore.gold import gold_verdict
from gptcore.prompts import PromptSource, draw_encoded
from gptcore.questions import Prompt
from gptcore.recipe import Recipe
from gptcore.reward import rewards_of, train_reward_model
from gptcore.tokenizer import END
from gptcore.training import generator_for

SIZES = (20, 50, 100, 200)
"""Votes that a judge has seen."""
ERRS = 0.1
"""Share of votes that are slips."""
HELD_OUT, PROMPTS, DRAWS, LEAST_STEPS = 200, 64, 16, 40
"""Pairs for the accuracy; prompts for the best of n, and answers to each; least steps of training."""

Taste = Callable[[Prompt, str], float]
TASTES: dict[str, Taste] = {
    "short": lambda _, answer: -float(len(answer)),
    "polite": lambda prompt, answer: float(gold_verdict(replace(prompt, task="fact"), answer).polite),
    "English": lambda _, answer: float(not any("\u4e00" <= character <= "\u9fff" for character in answer)),
}
"""What a person likes: the higher the better. Politeness is liked around translations, too."""


def main() -> None:
    """Vote, train, judge, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sft, tokenizer = load_stage("sft")
    end, sampling, recipe = tokenizer.special[END], SamplingConfig(), Recipe()
    room = room_for_prompt(sft.config.context_length, sampling.max_new_tokens)

    def pairs_of(source: PromptSource, seed: int) -> Iterator[Ballot]:
        """Pairs of drawn answers that read differently, without end."""
        rng, generator = random.Random(f"votes of one {seed}"), generator_for(seed, 2)
        while True:
            drawn = [draw_encoded(source, rng, tokenizer, room) for _ in range(256)]
            answers = generate(sft, [ids for _, ids in drawn] * 2, sampling, end, generator)
            for (prompt, ids), first, second in zip(drawn, answers, answers[256:], strict=False):
                if first != second:
                    yield Ballot(prompt, ids, [first, second], [])

    def voted(taste: Taste, pairs: Iterator[Ballot], errs: float, rng: random.Random) -> Iterator[Ballot]:
        for pair in pairs:
            first, second = (taste(pair.prompt, decode_answer(tokenizer, ids)) for ids in pair.answers)
            if first != second:
                likes_first = (first > second) != (rng.random() < errs)
                yield replace(pair, votes=[(0, 1) if likes_first else (1, 0)])

    unseen = {
        name: list(islice(voted(taste, pairs_of(PromptSource("validation"), 100), 0.0, random.Random(0)), HELD_OUT))
        for name, taste in TASTES.items()
    }
    rng, source = random.Random(11), PromptSource("validation")
    prompts = [source.draw(rng) for _ in range(PROMPTS)]
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts for _ in range(DRAWS)]
    answers = generate(sft, prompt_ids, sampling, end, generator_for(11))
    samples = [question + answer for question, answer in zip(prompt_ids, answers, strict=True)]
    texts = [decode_answer(tokenizer, answer) for answer in answers]
    liked = {
        name: torch.tensor([taste(prompts[i // DRAWS], text) for i, text in enumerate(texts)]).view(-1, DRAWS)
        for name, taste in TASTES.items()
    }
    most = {name: best_of(DRAWS, values, values).mean().item() for name, values in liked.items()}

    def learning(name: str, size: int) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            # Fewer votes are the first of more: what is added is votes, and nothing else.
            found = voted(TASTES[name], pairs_of(PromptSource("train"), seed), ERRS, random.Random(seed))
            config = replace(recipe.reward, steps=LEAST_STEPS, seed=seed)
            judge = train_reward_model(sft, tokenizer, list(islice(found, size)), config, recipe.ballot_batch_size)
            sides = [
                rewards_of(judge, [pair.prompt_ids + pair.answers[pair.votes[0][side]] for pair in unseen[name]])
                for side in (0, 1)
            ]
            grades = rewards_of(judge, samples).view(-1, DRAWS)
            picked, mean = best_of(DRAWS, grades, liked[name]).mean().item(), liked[name].mean().item()
            return {
                "held-out votes foreseen": (sides[0] > sides[1]).float().mean().item(),
                "liked, one answer": mean,
                "liked, best of 16": picked,
                "of what can be had": (picked - mean) / (most[name] - mean),
            }

        return run

    sides = {f"{name}, {size}": learning(name, size) for name in TASTES for size in SIZES}
    runs = alternate(sides, options.repeats)
    report("votes_of_one", runs, options.out, sizes=SIZES, tastes=list(TASTES), errs=ERRS, most=most)


if __name__ == "__main__":
    main()
