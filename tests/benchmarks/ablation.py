"""Ablation: what makes the short recipe of `time_to_quality.py` fast, one ingredient off at a time.

    python tests/benchmarks/ablation.py [--text FILE] [--repeats 3]

Every variant trains for as many steps on the same batches of tiny Shakespeare; the repeats are seeds.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
from common import Measurement, alternate, arguments, report
from time_to_quality import SHORT, Ours, characters_of, validation_loss
from torch import Tensor

from gptcore.decoder import Decoder
from gptcore.machine import choose_device
from gptcore.training import Trainer, generator_for, sample_windows

ADAMW = {"optimizer": "adamw", "betas": (0.9, 0.99)}


def changed(decoder: dict | None = None, training: dict | None = None) -> Ours:
    """The short recipe with something else in it."""
    return replace(
        SHORT, decoder=replace(SHORT.decoder, **decoder or {}), training=replace(SHORT.training, **training or {})
    )


RATE = SHORT.training.matrix_rate
VARIANTS = {
    "all": SHORT,
    "AdamW instead of Muon, rate 0.003": changed(training=ADAMW | {"matrix_rate": 0.003}),
    "AdamW instead of Muon, rate 0.01": changed(training=ADAMW | {"matrix_rate": 0.01}),
    "gpt2 instead of llama": changed(decoder={"preset": "gpt2"}),
    "gpt2 and AdamW, rate 0.003": changed(decoder={"preset": "gpt2"}, training=ADAMW | {"matrix_rate": 0.003}),
    "float32": changed(training={"precision": "fp32"}),
    "constant rate": changed(training={"schedule": "constant"}),
    "cosine instead of linear decay": changed(training={"schedule": "cosine"}),
    "no warm-up": changed(training={"warmup_steps": 0}),
    "one rate for all": changed(training={"embedding_rate": RATE, "head_rate": RATE, "scalar_rate": RATE}),
    "no clipping": changed(training={"clip_norm": float("inf")}),
}


def train(recipe: Ours, parts: tuple[Tensor, Tensor], vocabulary_size: int, seed: int) -> Measurement:
    """Train one variant; time and loss at its end."""
    torch.manual_seed(seed)
    model = Decoder(replace(recipe.decoder, vocabulary_size=vocabulary_size)).to(choose_device())

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        context = recipe.decoder.context_length
        return sample_windows(parts[0], parts[0], recipe.batch_size, context, generator_for(seed, step))

    start = time.perf_counter()
    Trainer(model, batch_at, replace(recipe.training, seed=seed)).run()
    seconds = time.perf_counter() - start
    return {"validation loss": validation_loss(model, parts[1]), "seconds": seconds}


def main() -> None:
    """Train all variants and print."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--text", type=Path, default=Path("runs/tinyshakespeare.txt"), help="downloaded if not there")
    options = parser.parse_args()
    parts, vocabulary_size = characters_of(options.text)
    sides = {name: lambda seed, v=variant: train(v, parts, vocabulary_size, seed) for name, variant in VARIANTS.items()}
    report("ablation", alternate(sides, options.repeats), options.out)


if __name__ == "__main__":
    main()
