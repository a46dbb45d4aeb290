"""Ctrl-C, and going on afterwards: a long run that stops after a whole step and saves its state.

The handler (in `__main__`) calls `stop`; the callback of `run_resumably` saves tensors and values after the step; the
next run passes over the stages that are done and gives the state back to the loop, whose batches follow from their
number. No chapter is about it; the chain is long enough to need it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from gptcore.checkpoint import load_tensors, save_tensors
from gptcore.groups import GroupDiagnostics, GroupPolicyGradient
from gptcore.machine import choose_device
from gptcore.parallel import average_over_processes_, rank
from gptcore.ppo import PPO, Diagnostics
from gptcore.training import StepReport, Trainer

SAVE_EVERY = 30
"""Seconds after which a state is saved: no more, and a step, is lost if the process is killed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was done is saved up to the last step, or, if it was pressed twice, the last half minute."""


@dataclass
class Stopwatch:
    """Seconds of a stage."""

    before: float = 0.0
    """Those of earlier, interrupted runs."""
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Those of this run and of the earlier ones."""
        return self.before + time.perf_counter() - self.start


class Interruptible:
    """What a long run in a folder needs to be stopped and to go on."""

    out: Path
    progress: bool
    stop_requested = False
    """Set it to stop after the current step, comparison or exam; a Ctrl-C handler calls `stop`, which is quicker."""
    stepping = False
    """Whether a step is going on that must end before the state can be saved."""
    stopwatch: Stopwatch
    """Of the stage that is going on."""

    def stop(self) -> None:
        """Stop after the step that is going on; at once where there is none, or if a stop was requested before.

        A Ctrl-C handler calls it: what it raises comes up in whatever the run is doing.

        Raises:
            Interrupted: to stop at once.
        """
        at_once = self.stop_requested or not self.stepping
        self.stop_requested = True
        if at_once:
            raise Interrupted

    def stop_if_requested(self) -> None:
        """Called where nothing is lost by stopping.

        Raises:
            Interrupted: if a stop was requested.
        """
        if self.stop_requested:
            raise Interrupted

    def run_resumably(self, stage: str, worker: Trainer | PPO | GroupPolicyGradient, total: int) -> None:
        """Run a loop with a progress bar; go on from a saved state; save one on Ctrl-C and every half minute.

        Args:
            stage: its name; a state of another stage is passed over.
            worker: the loop.
            total: its steps.
        """
        path = self.out / "state.safetensors"
        done = 0
        if path.exists():
            tensors, values = load_tensors(path)
            if values["stage"] == stage:
                worker.load_state(tensors, values["state"])
                self.stopwatch.before = values["seconds"]
                done = values["done"]
            del tensors  # as large as the models and their optimisers, who have what they need of it
        bar = tqdm(total=total, initial=done, desc=stage, unit="step", disable=not self.progress or rank() > 0)
        last_save = time.perf_counter()

        def after_step(report: StepReport | Diagnostics | GroupDiagnostics) -> None:
            nonlocal last_save
            bar.update()
            if isinstance(report, StepReport):
                bar.set_postfix(loss=f"{report.loss:.2f}")
            else:
                bar.set_postfix(score=f"{report.score:.2f}", kl=f"{report.kl:.1f}")
            # Ctrl-C may reach one process a step before the others: stop together. And gather together what is saved.
            due = rank() == 0 and time.perf_counter() - last_save > SAVE_EVERY
            asked = torch.tensor([float(self.stop_requested), float(due)], device=choose_device())
            stop, due = (average_over_processes_(asked) > 0).tolist()
            if stop or due:
                tensors, state = worker.state()
                if rank() == 0:
                    seconds = self.stopwatch.seconds
                    save_tensors(path, tensors, {"stage": stage, "state": state, "seconds": seconds, "done": bar.n})
                last_save = time.perf_counter()
            if stop:
                raise Interrupted

        self.stepping = True
        try:
            self.stop_if_requested()  # asked for just before, where Ctrl-C stops at once
            worker.run([after_step])
        finally:
            self.stepping = False
            bar.close()
