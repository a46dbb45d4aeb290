"""Training tricks: the trainings of chapter 6 with three seeds, where the chapter itself shows one.

    python tests/benchmarks/training_tricks.py [--repeats 3] [--out assets/benchmarks]

Runs the chapter's own cells, with the seeds 1, 2, 3 in turn in the place of its own. AdamW's rates are
looked for before, on seed 0, which does not count. Each schedule is tried at several rates, too.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from common import Measurement, arguments, report, run_cells

LABORATORY = ("cell-02", "cell-04", "cell-05", "cell-07", "cell-78")
"""Cells that define what is trained, on what, and how."""
TRAININGS = (
    "run-schedules",
    "cell-27",  # clipping
    "cell-29",  # with SGD
    "cell-32",  # makes the broken batch
    "run-broken",
    "run-adamw",
    "run-groups",
    "run-head",
    "cell-90",  # gpt2, precisions
)
"""Cells that train, one thing changed; everything on comes before them."""
RATES = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.02)
"""What AdamW may choose from."""
SCHEDULES = ("constant", "step", "cosine", "linear")
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What all rates of the usual configuration are multiplied by, for each schedule."""


def search_rates(names: dict[str, Any]) -> dict[str, dict[float, float]]:
    """Held-out loss of AdamW on seed 0 at each rate: for the matrices only, and for everything."""
    train_once, matrices = names["train_once"], names["adamw_for_matrices"]
    return {
        "the matrices": {rate: train_once(0, change_optimizers=matrices(rate)).held_out[-1] for rate in RATES},
        "everything": {rate: train_once(0, optimizer="adamw", matrix_rate=rate).held_out[-1] for rate in RATES},
    }


def schedules_by_rate(names: dict[str, Any], seeds: Sequence[int]) -> dict[str, dict[float, list[float]]]:
    """Held-out loss under each schedule, at each factor of the rates, for each seed."""
    usual = names["TrainingConfig"](steps=names["STEPS"])
    rates = ("matrix_rate", "embedding_rate", "head_rate", "scalar_rate")

    def loss(schedule: str, factor: float, seed: int) -> float:
        changes = {rate: factor * getattr(usual, rate) for rate in rates}
        return names["train_once"](seed, schedule=schedule, **changes).held_out[-1]

    return {name: {factor: [loss(name, factor, seed) for seed in seeds] for factor in FACTORS} for name in SCHEDULES}


def measurement(run: Any, looks: tuple[int, ...]) -> Measurement:
    """What the record keeps of one of the chapter's runs."""
    return {f"held-out loss after {look} steps": loss for look, loss in zip(looks, run.held_out, strict=True)}


def main() -> None:
    """Search the rates, train everything with each seed, and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    seeds = list(range(1, options.repeats + 1))
    names: dict[str, Any] = {}
    run_cells("06", LABORATORY, names)
    rates = search_rates(names)
    names["best_rates"] = {searched: min(tried, key=tried.get) for searched, tried in rates.items()}
    runs: dict[str, list[Measurement]] = {}
    sgd: dict[str, list[float]] = {}
    for seed in seeds:
        print(f"seed {seed}", flush=True)
        names["SEED"] = seed
        names["measure"](names["ALL"])
        run_cells("06", TRAININGS, names)
        for name, run in names["runs"].items():
            runs.setdefault(name, []).append(measurement(run, names["LOOKS"]))
        for name, (losses, _) in names["with_sgd"].items():
            sgd.setdefault(name, []).append(statistics.mean(losses[-5:]))
    report(
        "training_tricks",
        runs,
        options.out,
        seeds=seeds,
        steps=names["STEPS"],
        rates=rates,
        schedules=schedules_by_rate(names, seeds),
        sgd=sgd,
        text=names["fingerprint"],
    )


if __name__ == "__main__":
    main()
