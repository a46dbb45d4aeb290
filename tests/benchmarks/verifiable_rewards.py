"""Verifiable rewards: GRPO with a checker of sums, beside fine-tuning alone, with steps and without.

    python tests/benchmarks/verifiable_rewards.py [--repeats 3] [--out assets/benchmarks]

A small decoder learns from a few hundred demonstrations whose writers often forget a carry. From there on GRPO, or
training on the best of each group, asks the checker; fine-tuning alone goes on with the same demonstrations for as many
seconds as fine-tuning and GRPO took together. A repeat is another seed of everything but the held-out sums. Answers at
temperature 1, sixteen to each held-out sum. Chapter 12 shows the record.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import Measurement, alternate, arguments, report

from gptcore.decoder import Decoder
from gptcore.groups import GroupDiagnostics, GroupPolicyGradient
from gptcore.sums import (
    DEMONSTRATIONS,
    FORGETS,
    HELD_OUT,
    REINFORCEMENT,
    Checker,
    SumSource,
    Verdict,
    demonstrations_of_sums,
    graded,
    held_out_answers,
    is_right,
    pass_at_k,
    shows_working,
    trainer_of_sums,
)
from gptcore.tokenizer import Tokenizer

STEPS = 250
"""Updates of the brief fine-tuning."""
EACH, EVERY, FEW = 16, 5, 4
"""Answers to each held-out sum; iterations between two points of a curve, and answers for one."""
TOKENIZER = Tokenizer([])

found: dict[tuple[str, int], tuple[Decoder, float]] = {}
"""Models by name and seed, with the seconds that they took."""
curves: dict[str, list[list[dict[str, float]]]] = {}
"""What became of the policies on the way: for each side and seed, a point every few iterations."""


def judged(model: Decoder, seed: int) -> Measurement:
    """The figures of one model."""
    answers = held_out_answers(model, TOKENIZER, EACH, seed)
    right = graded(is_right, answers)
    return {
        "pass@1": pass_at_k(right, 1),
        "pass@8": pass_at_k(right, 8),
        "greedy": pass_at_k(graded(is_right, held_out_answers(model, TOKENIZER, 1, seed, greedy=True)), 1),
        "working": graded(shows_working, answers).mean().item(),
    }


def fine_tuned(name: str, longer: str | None = None, **how: Any) -> Callable[[int], Measurement]:
    """Fine-tuning from random weights: briefly, or for as long as the model named `longer` took from its beginning."""

    def run(seed: int) -> Measurement:
        per_step = found["with steps", seed][1] / STEPS if longer else 0.0
        steps = round(found[longer, seed][1] / per_step) if longer else STEPS
        trainer = trainer_of_sums(TOKENIZER, demonstrations_of_sums(seed, **how), steps, seed)
        start = time.perf_counter()
        trainer.run()
        model = trainer.model
        assert isinstance(model, Decoder)
        found[name, seed] = model, time.perf_counter() - start
        return {"seconds": found[name, seed][1], "updates": steps} | judged(model, seed)

    return run


def reinforced(
    name: str, start: str, verdict: Verdict = is_right, method: Any = "grpo"
) -> Callable[[int], Measurement]:
    """Reinforcement learning from the model named `start`."""

    def run(seed: int) -> Measurement:
        reference, before = found[start, seed]
        policy, points = copy.deepcopy(reference), []
        config = replace(REINFORCEMENT, method=method, seed=seed)
        checker = Checker(verdict, TOKENIZER, policy.config)
        loop = GroupPolicyGradient(policy, copy.deepcopy(reference), checker, TOKENIZER, SumSource(), config)
        looked = 0.0

        def look(now: GroupDiagnostics) -> None:
            nonlocal looked
            begun = time.perf_counter()
            if now.iteration % EVERY == EVERY - 1:
                answers = held_out_answers(policy, TOKENIZER, FEW, seed)
                points.append(
                    {"iteration": now.iteration + 1, "informative": now.informative, "kl": now.kl}
                    | {"right": graded(is_right, answers).mean().item()}
                    | {"working": graded(shows_working, answers).mean().item()}
                )
            looked += time.perf_counter() - begun

        begun = time.perf_counter()
        loop.run([look])
        seconds = time.perf_counter() - begun - looked
        found[name, seed] = policy, before + seconds
        curves.setdefault(name, []).append(points)
        answers = config.iterations * config.rollout_prompts * config.group_size
        informative = sum(now.informative for now in loop.history) / len(loop.history)
        return {"seconds": seconds, "answers": answers, "informative": informative} | judged(policy, seed)

    return run


def main() -> None:
    """Train, judge, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {
        "with steps": fine_tuned("with steps"),
        "GRPO": reinforced("GRPO", "with steps"),
        "best of each group": reinforced("best of each group", "with steps", method="best"),
        "fine-tuning alone": fine_tuned("fine-tuning alone", "GRPO"),
        "right ones alone": fine_tuned("right ones alone", "GRPO", keeps=is_right),
        "reward for the form": reinforced("reward for the form", "with steps", shows_working),
        "without steps": fine_tuned("without steps", steps=False),
        "without steps, GRPO": reinforced("without steps, GRPO", "without steps"),
    }
    runs = alternate(sides, options.repeats)
    settings = {"demonstrations": DEMONSTRATIONS, "forgets": FORGETS, "held out": HELD_OUT, "each": EACH}
    report("verifiable_rewards", runs, options.out, settings=settings, curves=curves)


if __name__ == "__main__":
    main()
