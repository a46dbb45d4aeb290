"""What a chapter, or a stage of the chain, takes on this machine: said from what it took on two others.

`assets/benchmarks/costs.json` holds, for two profiles of machine, the seconds of every chapter and stage, and
beside them the seconds of one unit of work. The same unit, measured here, tells how this machine compares. Parts
of the work do not slow down alike (a matrix product much more than a plot), so each cost has its own exponent, from
its two measurements. Used in notebooks/00_welcome.ipynb.
"""

import json
import math
import statistics
import time
from typing import Any

import torch

from gptcore.chat_template import encode_prompt
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.decoder import Decoder
from gptcore.files import ASSETS
from gptcore.generation import GREEDY, generate
from gptcore.machine import describe_machine
from gptcore.recipe import Recipe, text_batches
from gptcore.tokenizer import END
from gptcore.training import Trainer, TrainingConfig, generator_for

COSTS = ASSETS / "benchmarks" / "costs.json"
"""What was measured; written by `tools/execute_notebooks.py`."""

PROFILES = {"AMX": "with AMX", "laptop": "laptop"}
"""The two kinds of machine: a server that multiplies bfloat16 in tiles, and one that has AVX2 and no more."""


def profile() -> str | None:
    """Which of the two profiles this machine has; None if it is another kind."""
    instructions = describe_machine()["instructions"]
    return "AMX" if "AMX" in instructions else "laptop" if instructions == "AVX2" else None


def unit_of_work(repeats: int = 3) -> float:
    """Seconds, median of the repeats, of what the course mostly does: five steps of training and 64 greedy answers."""
    model, tokenizer = load_stage("sft", SHIPPED)
    recipe = Recipe()
    tokens = torch.randint(len(tokenizer.token_bytes), (20_000,), generator=generator_for(0))
    fresh = Decoder(model.config).to(model.device)
    batches = text_batches((tokens, tokens), recipe, 0)
    prompts = [encode_prompt(tokenizer, f"What is {a} + {b}?") for a in range(8) for b in range(8)]

    def work() -> None:
        Trainer(fresh, batches, TrainingConfig(steps=5)).run()
        generate(model, prompts, GREEDY, tokenizer.special[END])

    seconds = []
    for _ in range(1 + repeats):  # the first one chooses kernels and fills caches
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def read_costs() -> dict[str, Any]:
    """The record: for each profile its `machine`, `unit` (seconds), `chapters` and `chain`."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def expected_seconds(costs: dict[str, Any], kind: str, unit: float) -> dict[str, float]:
    """What each chapter or stage will take on a machine that needs `unit` seconds for the unit of work.

    A cost that took a and b seconds where the unit took u and v takes a (unit / u)^k, with k = log(b / a) / log(v / u).

    Args:
        costs: as `read_costs` gives them.
        kind: `chapters` or `chain`.
        unit: seconds of `unit_of_work` here.
    """
    near, far = (costs[name] for name in PROFILES)
    ratio = math.log(far["unit"] / near["unit"])
    found = {}
    for name, entry in near[kind].items():
        exponent = math.log(far[kind][name]["seconds"] / entry["seconds"]) / ratio
        found[name] = entry["seconds"] * (unit / near["unit"]) ** exponent
    return found
