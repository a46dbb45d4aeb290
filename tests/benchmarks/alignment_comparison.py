"""Alignment: DPO, GRPO, REINFORCE, best-of-n and training on it beside PPO, on the same comparisons and the same budget.

    python tests/benchmarks/alignment_comparison.py [--repeats 3] [--out assets/benchmarks]

All start from the shipped fine-tuned model. What the votes of the chain's ballots say reaches DPO directly
and the others through the shipped reward model, which learned from the same ballots. The four that
sample draw the same number of answers and make the same number of updates. A repeat is another seed of
all that happens after the reward model. Judged on validation prompts, at temperature 1.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from common import Measurement, alternate, arguments, report

from gptcore.ballots import Ballot, collect_ballots
from gptcore.best_of_n import best_of_n
from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder
from gptcore.dpo import DPOConfig, dpo_trainer
from gptcore.exam import exam, wins
from gptcore.gold import gold_score
from gptcore.groups import GroupConfig, GroupPolicyGradient
from gptcore.ppo import PPO
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe, replay_batches

ITERATIONS, ROLLOUT, GROUP = 56, 64, 4
RECIPE = Recipe()
PART = "validation"


@cache
def shipped(stage: str):
    """Model and tokenizer of a stage, loaded once."""
    return load_stage(stage)


@cache
def ballots() -> tuple[list[Ballot], float]:
    """The ballots that the shipped reward model learned from, and the seconds to collect them."""
    model, tokenizer = shipped("sft")
    start = time.perf_counter()
    found = list(collect_ballots(model, tokenizer, PromptSource("train"), RECIPE.ballots, seed=0))
    return found, time.perf_counter() - start


@cache
def replay() -> Callable:
    """Batches of pretraining text, as the chain mixes them in."""
    return replay_batches(shipped("sft")[1], RECIPE, seed=0)


def judged(model: Decoder, seed: int) -> Measurement:
    """Gold score and win rate against the fine-tuned model."""
    sft, tokenizer = shipped("sft")
    won, golds, _ = wins(model, sft, tokenizer, PART, seed)
    return {"gold": sum(golds) / len(golds), "win rate": sum(won) / len(won)}


def dpo(seed: int) -> Measurement:
    """One epoch of all ballots."""
    policy, found = copy.deepcopy(shipped("sft")[0]), ballots()[0]
    config = DPOConfig(training=replace(DPOConfig().training, seed=seed))
    replay()
    start = time.perf_counter()
    dpo_trainer(policy, found, config, replay()).run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answers": sum(len(b.answers) for b in found)} | judged(policy, seed)


def groups(method: str) -> Callable[[int], Measurement]:
    """GRPO, REINFORCE, or training on the best of each group."""

    def run(seed: int) -> Measurement:
        (sft, tokenizer), reward_model = shipped("sft"), shipped("reward")[0]
        policy, source = copy.deepcopy(sft), PromptSource("train")
        config = GroupConfig(method, ITERATIONS, ROLLOUT // GROUP, GROUP, seed=seed)
        replay()
        start = time.perf_counter()
        GroupPolicyGradient(policy, copy.deepcopy(sft), reward_model, tokenizer, source, config, replay()).run()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "answers": ITERATIONS * ROLLOUT} | judged(policy, seed)

    return run


def ppo(seed: int) -> Measurement:
    """PPO with the chain's settings but for the size of a rollout."""
    (sft, tokenizer), reward_model = shipped("sft"), shipped("reward")[0]
    policy, source = copy.deepcopy(sft), PromptSource("train")
    config = replace(RECIPE.ppo, iterations=ITERATIONS, rollout_size=ROLLOUT, seed=seed)
    replay()
    start = time.perf_counter()
    PPO(policy, copy.deepcopy(sft), reward_model, tokenizer, source, config, replay()).run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answers": ITERATIONS * ROLLOUT} | judged(policy, seed)


def best_of(n: int) -> Callable[[int], Measurement]:
    """The fine-tuned model with a choice among n; nothing is trained, but every answer costs more."""

    def run(seed: int) -> Measurement:
        (sft, tokenizer), reward_model = shipped("sft"), shipped("reward")[0]
        prompts = exam(PART)["mixed"]
        prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts]
        start = time.perf_counter()
        answers = best_of_n(sft, reward_model, tokenizer, prompt_ids, n, seed=100 + seed)
        seconds = time.perf_counter() - start
        texts = [decode_answer(tokenizer, ids) for ids in answers]
        golds = [gold_score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        _, _, baseline = wins(sft, sft, tokenizer, PART, seed)
        won = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in zip(golds, baseline, strict=True)]
        return {
            "milliseconds an answer": 1000 * seconds / len(prompts),
            "gold": sum(golds) / len(golds),
            "win rate": sum(won) / len(won),
        }

    return run


def main() -> None:
    """Train, judge, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {
        "PPO": ppo,
        "GRPO": groups("grpo"),
        "REINFORCE": groups("reinforce"),
        "train on best": groups("best"),
        "DPO": dpo,
        "best of 1": best_of(1),
        "best of 4": best_of(4),
        "best of 16": best_of(16),
    }
    runs = alternate(sides, options.repeats)
    settings = {
        "iterations": ITERATIONS,
        "rollout": ROLLOUT,
        "group": GROUP,
        "ballots": len(ballots()[0]),
        "seconds to collect the ballots": ballots()[1],
        "questions": len(exam(PART)["mixed"]),
    }
    report("alignment_comparison", runs, options.out, settings=settings)


if __name__ == "__main__":
    main()
