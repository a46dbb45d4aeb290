"""Share of the machine: operations a second of training over those of large matrix products.

    python tests/benchmarks/machine_share.py [--repeats 3]

For decoders of about 1, 6 and 25 million parameters, in float32 and bfloat16: the operations of a
training step are counted (`forward_flops`, three times), its seconds are measured, and so is the
machine's peak, the product of two 2,048 x 2,048 matrices, right before.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from common import Measurement, alternate, arguments, report

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.flops import forward_flops
from gptcore.machine import choose_device
from gptcore.training import Trainer, TrainingConfig, generator_for

STEPS = 12
"""Measured after three that are not."""
TOKENS = 2048
"""In a batch."""

SHAPES = {
    "1M": DecoderConfig(vocabulary_size=512, layers=4, width=128, heads=4),
    "6M": DecoderConfig(vocabulary_size=2048, layers=6, width=256, heads=8),
    "25M": DecoderConfig(vocabulary_size=4096, layers=8, width=480, heads=15),
}


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of ten."""
    size = 2048
    matrix = torch.randn(size, size, device=choose_device()).to(dtype)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # on a GPU, wait for it
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


@dataclass(frozen=True)
class Run:
    """One shape in one precision."""

    config: DecoderConfig
    precision: str

    def __call__(self, seed: int) -> Measurement:
        """Train a few steps on random tokens."""
        config = self.config
        best = peak(torch.bfloat16 if self.precision == "bf16" else torch.float32)
        torch.manual_seed(seed)
        model = Decoder(config).to(choose_device())
        rows = TOKENS // config.context_length

        def batch_at(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            shape = (rows, config.context_length + 1)
            tokens = torch.randint(config.vocabulary_size, shape, generator=generator_for(seed, step))
            return tokens[:, :-1], tokens[:, 1:]

        seconds: list[float] = []
        settings = TrainingConfig(steps=STEPS + 3, precision=self.precision)
        Trainer(model, batch_at, settings).run([lambda step: seconds.append(step.seconds)])
        step = statistics.median(seconds[3:])
        operations = 3 * rows * sum(forward_flops(config, config.context_length).values())
        return {
            "million parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            "milliseconds a step": 1000 * step,
            "gigaflop a second": operations / step / 1e9,
            "peak gigaflop a second": best / 1e9,
            "share of the peak": operations / step / best,
        }


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {f"{name}, {kind}": Run(config, kind) for name, config in SHAPES.items() for kind in ("fp32", "bf16")}
    report("machine_share", alternate(sides, options.repeats), options.out)


if __name__ == "__main__":
    main()
