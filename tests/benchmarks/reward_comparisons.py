"""Reward models by the number of ballots that they learned from: how often they are right, and where they mislead.

    python tests/benchmarks/reward_comparisons.py [--repeats 3] [--out assets/benchmarks]

A repeat is another seed: other ballots, in another order. Each model picks the best of n answers of
the fine-tuned model by its reward; what it believes and what is true of the answers picked is recorded.
Chapter 9 shows the record and trains a few of the models itself.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from common import Measurement, alternate, arguments, report
from torch import Tensor

from gptcore.ballots import Ballot, collect_ballots
from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.generation import SamplingConfig, generate
from gptcore.gold import gold_score
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe
from gptcore.reward import RewardModel, pair_accuracy, rewards_of, train_reward_model
from gptcore.tokenizer import END
from gptcore.training import generator_for

SIZES = (24, 170, 1200)
"""Ballots that a model learns from."""
HELD_OUT, PROMPTS, DRAWS = 300, 64, 16
"""Ballots for the accuracy; prompts for the best of n, and answers to each."""
NS = (1, 2, 4, 8, 16)


@cache
def ballots(count: int) -> list[Ballot]:
    """What all models learn from; each takes a slice of its own."""
    return list(collect_ballots(*load_stage("sft"), PromptSource("train"), count, seed=9))


def train(size: int, seed: int, repeats: int) -> RewardModel:
    """A reward model that has learned from `size` ballots, those of its seed, in no fewer than 40 steps."""
    sft, tokenizer = load_stage("sft")
    recipe = Recipe()
    own = ballots(max(SIZES) * repeats)[seed * size : (seed + 1) * size]
    config = replace(recipe.reward, steps=40, seed=seed)
    return train_reward_model(sft, tokenizer, own, config, recipe.ballot_batch_size, recipe.reward_epochs)


def best_of(n: int, grades: Tensor, values: Tensor) -> Tensor:
    """Values of the answer with the highest grade in each group of n: `(P, DRAWS)` both; mean a prompt `(P,)`."""
    best = grades.reshape(len(grades), -1, n).argmax(dim=2, keepdim=True)
    return values.reshape(len(values), -1, n).gather(2, best).squeeze(2).mean(dim=1)


def main() -> None:
    """Train, judge, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sft, tokenizer = load_stage("sft")
    held_out = list(collect_ballots(sft, tokenizer, PromptSource("validation"), HELD_OUT, seed=10))
    rng, source = random.Random(11), PromptSource("validation")
    prompts = [source.draw(rng) for _ in range(PROMPTS)]
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts for _ in range(DRAWS)]
    answers = generate(sft, prompt_ids, SamplingConfig(), tokenizer.special[END], generator_for(11))
    samples = [question + answer for question, answer in zip(prompt_ids, answers, strict=True)]
    golds = torch.tensor(
        [gold_score(prompts[i // DRAWS], decode_answer(tokenizer, answer)) for i, answer in enumerate(answers)]
    ).view(-1, DRAWS)
    best: dict[str, list[dict]] = {}

    def learning_from(size: int) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            model = train(size, seed, options.repeats)
            right = pair_accuracy(model, tokenizer, held_out)
            grades = rewards_of(model, samples).view(-1, DRAWS)
            grades = (grades - grades.mean()) / grades.std()
            picked = {"believed": grades, "gold": golds}
            found = {name: [best_of(n, grades, values).mean().item() for n in NS] for name, values in picked.items()}
            # Answers to one prompt are alike, so the error is taken over prompts.
            gain = best_of(max(NS), grades, golds) - golds.mean(dim=1)
            found["95 % of the gain"] = 1.96 * gain.std().item() / PROMPTS**0.5
            best.setdefault(str(size), []).append(found)
            own = ballots(max(SIZES) * options.repeats)[seed * size : (seed + 1) * size]
            return {
                "comparisons": sum(len(ballot.votes) for ballot in own),
                "pair accuracy": sum(right) / len(right),
                "pairs": len(right),
            }

        return run

    runs = alternate({str(size): learning_from(size) for size in SIZES}, options.repeats)
    settings = {"draws": DRAWS, "prompts": PROMPTS, "held-out ballots": HELD_OUT, "n": NS}
    report("reward_comparisons", runs, options.out, best=best, settings=settings)


if __name__ == "__main__":
    main()
