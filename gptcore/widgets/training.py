"""Training dashboard: what a run does while it runs, at a small share of its time.

Loss on the batches and on text held out, learning rate, gradient norm, tokens a second, the time left,
and a sample of what the model writes. It is a callback of `Trainer.run`; the last figure stays.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from IPython.display import DisplayHandle
from matplotlib.figure import Figure
from torch import Tensor

from gptcore.decoder import Decoder
from gptcore.evaluation import mean_loss
from gptcore.generation import SamplingConfig, generate
from gptcore.tokenizer import END_OF_TEXT, Tokenizer
from gptcore.training import StepReport, generator_for
from gptcore.widgets._view import View, in_its_place, picture, readable, rounded, script
from gptcore.widgets.attention import read_as
from gptcore.widgets.palette import BLUE, GREEN, VERMILION

SHARE = 0.012
"""Of the time that has passed, at most so much is spent on looking; the browser, on the same cores, takes as much again."""
INTERVAL = 3.0
"""Seconds between two drawings at least."""


class Budget:
    """Spends at most a share of the time that passes, whatever looking costs on this machine.

    Args:
        share: of the time since the first call.
        clock: seconds.
    """

    def __init__(self, share: float = SHARE, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.clock = share, clock
        self.begun: float | None = None
        self.spent = 0.0
        self._costs: dict[str, float] = {}

    def allows(self, what: str) -> bool:
        """Whether there is time for it now; what was never done yet is taken to cost a tenth of a second."""
        if self.begun is None:
            self.begun = self.clock()
        return self.spent + self._costs.get(what, 0.1) <= self.share * (self.clock() - self.begun)

    def spend(self, what: str, work: Callable[[], Any]) -> Any:
        """Do it and note what it cost."""
        start = self.clock()
        result = work()
        self._costs[what] = self.clock() - start
        self.spent += self._costs[what]
        return result


def smoothed(losses: Sequence[float], window: int = 20) -> list[float]:
    """Mean of the last `window` losses at each step, fewer at the start; those that are no finite numbers do not count.

    Where none of them is, neither is the mean.
    """
    means = []
    for step in range(len(losses)):
        finite = [loss for loss in losses[max(0, step + 1 - window) : step + 1] if math.isfinite(loss)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def thinned(points: Sequence[Any], most: int = 400) -> Sequence[Any]:
    """Every n-th point and the last, so that a long curve is drawn as fast as a short one."""
    step = max(1, math.ceil(len(points) / most))
    kept = list(points[::step])
    return kept if (len(points) - 1) % step == 0 else [*kept, points[-1]]


def time_left(seconds: float) -> str:
    """`1:05 min`; nobody knows it if the seconds are no finite number."""
    if not math.isfinite(seconds):
        return "unknown time"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


class Watched:
    """Numbers of a run, step by step, and what is measured now and then.

    Args:
        tokens_per_step: how many tokens a batch has; None leaves the speed in steps.
    """

    def __init__(self, tokens_per_step: int | None = None) -> None:
        self.tokens_per_step = tokens_per_step
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.factors: list[float] = []
        self.seconds: list[float] = []
        self.held_out: list[tuple[int, float]] = []
        self.samples: list[tuple[int, str]] = []

    def add(self, report: StepReport) -> None:
        """Note one step."""
        self.steps.append(report.step)
        self.losses.append(report.loss)
        self.norms.append(report.gradient_norm)
        self.factors.append(report.rate_factor)
        self.seconds.append(report.seconds)

    def speed(self) -> tuple[float, str]:
        """Tokens (or steps) a second over the last 20 steps, and what is counted."""
        recent = self.seconds[-20:]
        per_step = sum(recent) / len(recent)
        return ((self.tokens_per_step or 1) / max(per_step, 1e-9), "tokens" if self.tokens_per_step else "steps")

    def headline(self, report: StepReport) -> str:
        """Progress in one line."""
        speed, unit = self.speed()
        parts = [f"step {report.step} of {report.steps}", f"loss {smoothed(self.losses[-20:])[-1]:.3f}"]
        if self.held_out:
            parts.append(f"held out {self.held_out[-1][1]:.3f}")
        parts.append(f"{speed:,.0f} {unit} a second")
        if report.step < report.steps:
            recent = self.seconds[-20:]
            parts.append(time_left((report.steps - report.step) * sum(recent) / len(recent)) + " left")
        else:
            parts.append(f"{sum(self.seconds):.0f} s of training")
        return ", ".join(parts)


class TrainingDashboard(View):
    """A callback for `Trainer.run` that shows the run while it goes on, and keeps the final figure.

    Args:
        model: what is trained; needed for held-out loss and samples.
        tokenizer: of the model; needed for samples.
        held_out: batches `(inputs, targets)` on which the loss is measured now and then.
        prompt: the text that the samples go on from; None for no samples.
        tokens_per_step: of a batch, for the speed.
        measure_every: steps between two measurements at least; the budget may allow fewer.
        loss_of: what the loss is a mean over, for its axis: tokens, or votes.

    Raises:
        ValueError: if the model or tokenizer is missing for what is asked for.
    """

    _esm = script("training")
    title = "Training dashboard"

    def __init__(
        self,
        model: Decoder | None = None,
        tokenizer: Tokenizer | None = None,
        held_out: Sequence[tuple[Tensor, Tensor]] = (),
        prompt: str | None = None,
        tokens_per_step: int | None = None,
        measure_every: int = 20,
        loss_of: str = "token",
    ) -> None:
        if (held_out or prompt is not None) and model is None:
            raise ValueError("held-out loss and samples need the model: pass model=...")
        if prompt is not None and tokenizer is None:
            raise ValueError("samples need the tokenizer: pass tokenizer=...")
        self.model, self.tokenizer, self.held_out, self.prompt = model, tokenizer, list(held_out), prompt
        self.measure_every, self.loss_of = measure_every, loss_of
        self.watched = Watched(tokens_per_step)
        self.budget = Budget()
        self._handle: DisplayHandle | None = None
        self._drawn = -math.inf
        super().__init__()

    def __call__(self, report: StepReport) -> None:
        """Note a step; measure if the budget allows, and always after the last step.

        Drawn is every few seconds only, since the browser works on the same cores.

        Raises:
            Exception: whatever goes wrong while measuring; the view says it, too, and keeps its figure.
        """
        try:
            self._watch(report)
        except Exception as error:
            self.show_mistake(error)
            self.finish()
            raise

    def _watch(self, report: StepReport) -> None:
        self.watched.add(report)
        last = report.step == report.steps
        due = last or report.step % self.measure_every == 0
        if self.held_out and due and (last or self.budget.allows("held out")):
            self.watched.held_out.append((report.step, self.budget.spend("held out", self._held_out_loss)))
        if self.prompt is not None and due and (last or self.budget.allows("sample")):
            self.watched.samples.append((report.step, self.budget.spend("sample", self._sample)))
        if last or (time.perf_counter() - self._drawn > INTERVAL and self.budget.allows("draw")):
            self.budget.spend("draw", lambda: self._show(report))
            self._drawn = time.perf_counter()
        if last:
            self.finish()

    def finish(self) -> None:
        """Put the final figure in its output, beside the view's; also after a run that was stopped early."""
        if self._handle is not None:
            self._handle.update(in_its_place(self.key, self.static_picture(), self.words()), raw=True)

    @property
    def share(self) -> float:
        """Share of the run's time that went into looking, but for the final figure after the run."""
        return self.budget.spent / max(self.budget.spent + sum(self.watched.seconds), 1e-9)

    def _held_out_loss(self) -> float:
        assert self.model is not None  # see __init__
        try:
            return mean_loss(self.model, self.held_out)[0]
        finally:
            self.model.train()

    def _sample(self) -> str:
        assert self.model is not None  # see __init__
        assert self.tokenizer is not None
        assert self.prompt is not None
        ids = read_as(self.tokenizer, self.prompt, "text")
        config = SamplingConfig(temperature=0.8, max_new_tokens=40)
        try:
            new = generate(self.model, [ids], config, self.tokenizer.special[END_OF_TEXT], generator_for(0))[0]
        finally:
            self.model.train()
        return one_line(self.tokenizer.decode([*ids, *new]))

    def _show(self, report: StepReport) -> None:
        seen = self.watched
        steps = thinned(seen.steps)
        curves = {
            "loss": seen.losses,
            "smooth": smoothed(seen.losses),
            "rate": seen.factors,
            "norm": seen.norms,
        }
        shown: dict[str, Any] = {
            name: list(zip(steps, rounded(thinned(values), 4), strict=True)) for name, values in curves.items()
        }
        self.data = shown | {
            "held_out": [(step, round(loss, 4)) for step, loss in seen.held_out],
            "samples": seen.samples[-3:],
            "loss_of": self.loss_of,
            "headline": seen.headline(report),
            "done": report.step / report.steps,
        }
        if self._handle is None:
            self._handle = self._show_beside(None)  # a picture would cost training time

    def words(self) -> str:
        """Progress in one line."""
        return f"{self.title}: {self.data.get('headline', 'not yet begun')}"

    def static_picture(self) -> bytes:
        """The curves as they are now."""
        seen = self.watched

        def draw(figure: Figure) -> None:
            axes = figure.subplot_mosaic([["loss", "rate"], ["loss", "norm"]], width_ratios=[2, 1])
            steps = thinned(seen.steps)
            axes["loss"].plot(steps, thinned(seen.losses), color=BLUE, alpha=0.3, lw=0.8)
            axes["loss"].plot(steps, thinned(smoothed(seen.losses)), color=BLUE, label="batches, mean of 20")
            if seen.held_out:
                held_out = zip(*seen.held_out, strict=True)
                axes["loss"].plot(*held_out, color=VERMILION, ls="--", marker="o", ms=4, label="held out")
            axes["loss"].set(xlabel="step", ylabel=f"loss (nats a {self.loss_of})")
            axes["loss"].legend(loc="upper right", fontsize=8)
            axes["rate"].plot(steps, thinned(seen.factors), color=GREEN)
            axes["rate"].set(ylabel="learning rate (share)", ylim=(0, 1.05))
            axes["norm"].plot(steps, thinned(seen.norms), color="black", lw=0.8)
            axes["norm"].set(xlabel="step", ylabel="gradient norm")
            figure.suptitle(self.data.get("headline", ""), fontsize=9)

        return picture(draw, 9.5, 4)


def one_line(text: str) -> str:
    """A text without line breaks and without invisible signs."""
    return readable(text.encode("utf-8", "replace")).replace("␣", " ")


def held_out_batches(stream: tuple[Tensor, Tensor], count: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """One batch of the first `count` windows of a stream of ids and targets, for held-out loss.

    Args:
        stream: ids `(N,)` and targets `(N,)` as `sample_windows` takes them.
        count: windows.
        length: positions of each.

    Raises:
        ValueError: if the stream is too short for that.
    """
    ids, targets = stream
    starts = torch.arange(count * length, device=ids.device).view(count, length)
    if len(ids) <= count * length:
        raise ValueError(f"{len(ids)} tokens are too few for {count} windows of {length}")
    return [(ids[starts], targets[starts + 1])]
