"""Time to quality: nanoGPT's CPU recipe against the course's best, on tiny Shakespeare by characters.

    python tests/benchmarks/time_to_quality.py [--text FILE] [--repeats 3]

Three runs in turn, with another seed each time:

- nanoGPT's published recipe for a CPU (github.com/karpathy/nanoGPT, README, "I only have a macbook"),
  written anew here: GPT-2 with 4 layers of 128, context 64, batches of 12, 2,000 steps of AdamW;
- ours, short: a schedule made to reach a validation loss of 1.88 as soon as possible;
- ours, long: a schedule made for the time that nanoGPT's 2,000 steps take.

All read the same nine tenths of the text and predict the same last tenth, whole, in windows of 64
characters; a model with a longer context is also judged in windows of its own, since context is free. The
clock counts everything from building the model on, but not the evaluations.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import Measurement, alternate, arguments, report, tiny_shakespeare
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.machine import choose_device
from gptcore.training import Trainer, TrainingConfig, generator_for, sample_windows

TARGET = 1.88
"""Validation loss in nats a character that nanoGPT's README names for this recipe."""
WINDOW = 64
"""Context in which all models are judged: nanoGPT's."""


@dataclass
class Clock:
    """Seconds spent, evaluations left out, and the losses found on the way."""

    started: float = field(default_factory=time.perf_counter)
    left_out: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return time.perf_counter() - self.started - self.left_out

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        start = time.perf_counter()
        yield
        self.left_out += time.perf_counter() - start

    def evaluate(self, loss: Callable[[], float]) -> None:
        """Note the validation loss at this time."""
        seconds = self.seconds
        with self.stopped():
            self.losses.append((seconds, loss()))

    def measurement(self) -> Measurement:
        """Final loss and time, and the time at which the target was reached, if it was."""
        reached = [seconds for seconds, loss in self.losses if loss <= TARGET]
        figures = {"seconds": self.losses[-1][0], "validation loss": self.losses[-1][1]}
        return figures | ({f"seconds to {TARGET}": reached[0]} if reached else {})


@torch.inference_mode()
def validation_loss(model: nn.Module, tokens: Tensor, context: int = WINDOW) -> float:
    """Mean loss of every character of the text, in windows side by side; float32 for both sides."""
    count = (len(tokens) - 1) // context
    inputs, targets = (tokens[i : i + count * context].view(count, context) for i in (0, 1))
    total = 0.0
    for rows in torch.arange(count).split(256):
        logits = model(inputs[rows].to(model.device))
        total += F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten().to(model.device), reduction="sum").item()
    return total / (count * context)


def nanogpt(train: Tensor, held_out: Tensor, vocabulary_size: int, seed: int) -> Measurement:
    """The published recipe; every number is nanoGPT's."""
    clock = Clock()
    torch.manual_seed(seed)
    config = DecoderConfig(vocabulary_size, context_length=64, layers=4, width=128, heads=4, preset="gpt2")
    model = Decoder(config).to(choose_device())
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.99)
    )
    steps, warmup, most, least = 2000, 100, 1e-3, 1e-4
    for step in range(steps):
        progress = max(0.0, (step - warmup) / (steps - warmup))
        rate = most * (step + 1) / (warmup + 1) if step < warmup else None
        rate = rate or least + 0.5 * (1 + math.cos(math.pi * progress)) * (most - least)
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens, targets = sample_windows(train, train, 12, 64, generator_for(seed, step))
        logits = model(tokens.to(model.device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(model.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            clock.evaluate(lambda: validation_loss(model, held_out))
    return clock.measurement()


@dataclass(frozen=True)
class Ours:
    """A recipe of the course for characters."""

    decoder: DecoderConfig
    training: TrainingConfig
    batch_size: int
    evaluate_from: int
    """First step after which the validation loss is taken, then after every 5."""


SHORT = Ours(
    DecoderConfig(vocabulary_size=65, context_length=64, layers=2, width=128, heads=4),
    TrainingConfig(steps=280, matrix_rate=0.035, embedding_rate=0.1, head_rate=0.03, scalar_rate=0.02),
    batch_size=16,
    evaluate_from=220,
)
LONG = Ours(
    DecoderConfig(vocabulary_size=65, context_length=128, layers=3, width=192, heads=6),
    TrainingConfig(steps=950, matrix_rate=0.03, embedding_rate=0.1, head_rate=0.03, scalar_rate=0.02),
    batch_size=12,
    evaluate_from=950,
)


def ours(recipe: Ours, train: Tensor, held_out: Tensor, vocabulary_size: int, seed: int) -> Measurement:
    """The decoder of the course with its own trainer: rotary positions, Muon, half precision where it is fast."""
    clock = Clock()
    torch.manual_seed(seed)
    model = Decoder(replace(recipe.decoder, vocabulary_size=vocabulary_size)).to(choose_device())
    context = recipe.decoder.context_length

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        return sample_windows(train, train, recipe.batch_size, context, generator_for(seed, step))

    def evaluate(done) -> None:
        if done.step >= recipe.evaluate_from and (done.step % 5 == 0 or done.step == done.steps):
            clock.evaluate(lambda: validation_loss(model, held_out))

    Trainer(model, batch_at, replace(recipe.training, seed=seed)).run([evaluate])
    figures = clock.measurement()
    if context > WINDOW:
        figures[f"validation loss, windows of {context}"] = validation_loss(model, held_out, context)
    return figures


def characters_of(path: Path) -> tuple[tuple[Tensor, Tensor], int]:
    """The text as numbers of its characters, nine tenths and the last tenth, and how many characters there are."""
    text = tiny_shakespeare(path)
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[character] for character in text])
    cut = len(tokens) * 9 // 10
    return (tokens[:cut], tokens[cut:]), len(numbers)


def main() -> None:
    """Compare and print."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--text", type=Path, default=Path("runs/tinyshakespeare.txt"), help="downloaded if not there")
    options = parser.parse_args()
    parts, vocabulary_size = characters_of(options.text)
    sides = {
        "nanoGPT's recipe": lambda seed: nanogpt(*parts, vocabulary_size, seed),
        "ours, short": lambda seed: ours(SHORT, *parts, vocabulary_size, seed),
        "ours, long": lambda seed: ours(LONG, *parts, vocabulary_size, seed),
    }
    report("time_to_quality", alternate(sides, options.repeats), options.out)


if __name__ == "__main__":
    main()
