"""Decoder parts: chapter 3's road from GPT-2 to Llama with three seeds, where the chapter itself shows one.

    python tests/benchmarks/decoder_parts.py [--repeats 3] [--out assets/benchmarks]

Runs the chapter's own cells, with the seeds 0, 1, 2 in turn in the place of its own.
"""

from typing import Any

from common import Measurement, arguments, report, run_cells

BENCH = (
    *("cell-02", "cell-06", "cell-07", "cell-15", "cell-18", "cell-19", "cell-23"),  # the parts of GPT-2
    *("cell-31", "cell-32", "cell-33"),  # the model with parts to exchange; text, training and study
    "cell-52",  # the gated feed-forward part
)
"""Cells that define what is trained, on what, and how."""
STUDIES = (
    "study-rotary",
    *("cell-42", "cell-43"),  # what rotary positions promise
    "study-rmsnorm",
    "study-gated",
    "study-head",
    "study-biases",
    "study-two-biases",
)
"""Cells that change one part and train; GPT-2 comes before them."""


def measurement(names: dict[str, Any], variant: str) -> Measurement:
    """What the record keeps of the variant that the chapter has just trained."""
    steps = range(20, names["STEPS"] + 1, 20)
    losses = zip(steps, names["curves"][variant].tolist(), strict=True)
    return {f"held-out loss after {step} steps": loss for step, loss in losses}


def main() -> None:
    """Train every variant with each seed and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    seeds = list(range(options.repeats))
    names: dict[str, Any] = {}
    run_cells("03", BENCH, names)
    runs: dict[str, list[Measurement]] = {}
    moved: dict[str, list[float]] = {}
    extra: dict[str, list[list[float]]] = {}
    for seed in seeds:
        names["SEED"] = seed
        names["study"]("GPT-2")
        run_cells("03", STUDIES, names)
        for variant in names["curves"]:
            runs.setdefault(variant, []).append(measurement(names, variant))
            print(f"seed {seed}, {variant}: {list(runs[variant][-1].values())[-1]:.3f}", flush=True)
        for variant, share in names["moves"].items():
            moved.setdefault(variant, []).append(share)
        for variant, blocks in names["extra"].items():
            extra.setdefault(variant, []).append(blocks.tolist())
    more = {"seeds": seeds, "steps": names["STEPS"], "moved": moved, "extra loss": extra, "text": names["fingerprint"]}
    report("decoder_parts", runs, options.out, **more)


if __name__ == "__main__":
    main()
