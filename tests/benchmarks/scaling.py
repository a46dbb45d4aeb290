"""Scaling: how the held-out loss falls with the number of parameters, and with the bytes that are read.

    python tests/benchmarks/scaling.py [--repeats 3]

Decoders of chapter 12's ladder, from its smallest to one size beyond its test, read the same number of bytes
of the atlas's text; one of them also reads a quarter, half and twice as many, each in a run of its own, since
the learning rate has to fall to zero at the end. The repeats are seeds.
"""

import time
from dataclasses import dataclass, replace

import torch
from common import Measurement, alternate, arguments, report
from torch import Tensor

from gptcore.corpus import pretraining_documents
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.loss import language_model_loss
from gptcore.machine import choose_device
from gptcore.recipe import Recipe, text_batches
from gptcore.training import Trainer, TrainingConfig

CONTEXT, BATCH, STEPS = 128, 8, 160
WIDTHS = (32, 48, 64, 80, 96, 128, 192, 256)
WIDTH_OF_DATA_RUNS = 96
HELDOUT_WINDOWS = 200


def as_bytes(seed: int, count: int) -> Tensor:
    """The first `count` bytes of the atlas's text, one token each."""
    documents, text = pretraining_documents(seed), bytearray()
    while len(text) < count:
        text += next(documents).encode() + b"\n"
    return torch.tensor(list(text[:count]))


@dataclass(frozen=True)
class Run:
    """One size, trained for some steps."""

    width: int
    steps: int

    @property
    def config(self) -> DecoderConfig:
        """Plain bytes, two layers, and heads of 16 features."""
        return DecoderConfig(256, context_length=CONTEXT, layers=2, width=self.width, heads=self.width // 16)

    @property
    def parameters(self) -> int:
        """Without embeddings and head."""
        with torch.device("meta"):
            named = Decoder(self.config).named_parameters()
        return sum(p.numel() for name, p in named if not name.startswith(("embedding", "head")))

    @property
    def bytes_read(self) -> int:
        """In the whole run."""
        return self.steps * BATCH * CONTEXT

    def __call__(self, text: Tensor, heldout: tuple[Tensor, Tensor], seed: int) -> Measurement:
        """Train, and measure the loss on the held-out windows, inputs and targets `(windows, CONTEXT)`."""
        torch.manual_seed(seed)
        model = Decoder(self.config).to(choose_device())
        batches = text_batches((text, text), replace(Recipe(), decoder=self.config, batch_size=BATCH), seed)
        start = time.perf_counter()
        Trainer(model, batches, TrainingConfig(self.steps)).run()
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            loss = language_model_loss(model.eval(), heldout).item()
        return {"loss": loss, "seconds": seconds}


def main() -> None:
    """Train all sizes and amounts, and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    text, unread = as_bytes(3, 1_500_000), as_bytes(1_000_003, HELDOUT_WINDOWS * CONTEXT + 1)
    heldout = unread[:-1].view(-1, CONTEXT), unread[1:].view(-1, CONTEXT)
    sides = {f"parameters {run.parameters:,}": run for run in (Run(width, STEPS) for width in WIDTHS)}
    # The run of STEPS steps is in the ladder, and not made twice.
    amounts = [Run(WIDTH_OF_DATA_RUNS, steps) for steps in (STEPS // 4, STEPS // 2, 2 * STEPS)]
    sides |= {f"bytes {run.bytes_read:,}": run for run in amounts}
    runs = alternate({name: lambda seed, r=run: r(text, heldout, seed) for name, run in sides.items()}, options.repeats)
    same = Run(WIDTH_OF_DATA_RUNS, STEPS)
    runs[f"bytes {same.bytes_read:,}"] = runs[f"parameters {same.parameters:,}"]
    settings = {"context": CONTEXT, "batch": BATCH, "steps": STEPS, "parameters of the data runs": same.parameters}
    report("scaling", runs, options.out, settings=settings)


if __name__ == "__main__":
    main()
