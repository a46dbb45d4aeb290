"""Growth: how the cost of a training step grows with context, parameters and batch.

    python tests/benchmarks/growth.py [--repeats 3]

One quantity grows at a time, the rest stays as in the chain; each point is the median of a few steps
on random tokens. The exponent of each curve is fitted between its larger points (a straight line
through logarithms) and stands beside the exponent of the counted operations: what is above it is
memory traffic, what is below it is overhead that the larger step hides. A picture goes beside the JSON.
"""

import math
import statistics
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from common import Measurement, alternate, arguments, report

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.flops import forward_flops
from gptcore.machine import choose_device
from gptcore.training import Trainer, TrainingConfig, generator_for

START = DecoderConfig(vocabulary_size=2048, context_length=128, layers=3, width=192, heads=6)
WIDTHS = {64: 2, 96: 3, 160: 4, 256: 5, 384: 6, 544: 7}  # and layers: 0.3 to 30 million parameters


@dataclass(frozen=True)
class Point:
    """A training step of one size."""

    config: DecoderConfig
    batch_size: int

    @property
    def operations(self) -> int:
        """Of one training step."""
        return 3 * self.batch_size * sum(forward_flops(self.config, self.config.context_length).values())

    def __call__(self, seed: int) -> Measurement:
        """Median seconds of a step, without the first three."""
        torch.manual_seed(seed)
        model = Decoder(self.config).to(choose_device())

        def batch_at(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            shape = (self.batch_size, self.config.context_length + 1)
            tokens = torch.randint(self.config.vocabulary_size, shape, generator=generator_for(seed, step))
            return tokens[:, :-1], tokens[:, 1:]

        seconds: list[float] = []
        Trainer(model, batch_at, TrainingConfig(steps=9)).run([lambda step: seconds.append(step.seconds)])
        return {"milliseconds a step": 1000 * statistics.median(seconds[3:]), "gigaflop": self.operations / 1e9}


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    """Measure, fit, print and plot."""
    options = arguments(__doc__, repeats=3).parse_args()
    shapes = {width: replace(START, width=width, heads=width // 32, layers=layers) for width, layers in WIDTHS.items()}
    counts = {width: sum(p.numel() for p in Decoder(shape).parameters()) for width, shape in shapes.items()}
    curves: dict[str, dict[float, Point]] = {
        "context (tokens)": {2**i: Point(replace(START, context_length=2**i), 2) for i in range(6, 12)},
        "parameters": {counts[width]: Point(shape, 16) for width, shape in shapes.items()},
        "batch (sequences)": {2**i: Point(START, 2**i) for i in range(7)},
    }
    sides = {f"{name} {size:,}": point for name, points in curves.items() for size, point in points.items()}
    runs = alternate(sides, options.repeats)

    fits = {}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        sizes = list(points)
        cost = [statistics.median(run["milliseconds a step"] for run in runs[f"{name} {size:,}"]) for size in sizes]
        counted = [point.operations for point in points.values()]
        larger = slice(len(sizes) // 2, None)
        fits[name] = {
            "measured exponent": exponent(sizes[larger], cost[larger]),
            "exponent of the operations": exponent(sizes[larger], counted[larger]),
        }
        axis.loglog(sizes, cost, "o-", color="#0072B2", label="measured")
        scaled = [cost[-1] * count / counted[-1] for count in counted]
        axis.loglog(sizes, scaled, "--", color="#D55E00", label="operations, scaled to the last point")
        axis.set(xlabel=name, ylabel="milliseconds a training step")
        axis.set_title(f"exponent {fits[name]['measured exponent']:.2f}")
    axes[0].legend(fontsize=8)
    report("growth", runs, options.out, fits=fits)
    figure.savefig(options.out / "growth.png", dpi=120)
    for name, fit in fits.items():
        print(f"{name:<20}" + ", ".join(f"{key} {value:.2f}" for key, value in fit.items()))


if __name__ == "__main__":
    main()
