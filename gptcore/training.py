"""Training: one loop for every supervised stage, from pretraining to the reward model.

The loop is given a model, a function that makes batch number `i`, and a function that turns model and batch into a
loss; it sets the learning rate, takes the step and reports it to callbacks. What it needs of GPT stands in
two places: the default loss is the language model's, and `parameter_groups` knows our parameters by their names.

Built step by step in notebooks/05_pretraining.ipynb, where the same loop has twelve lines; the chapter after it adds
what `optimizers` holds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptcore.checks import choice, numbers, whole_numbers
from gptcore.engines import Engine, restore
from gptcore.loss import in_parts, language_model_loss
from gptcore.machine import Precision, autocast, choose_precision, gradient_scaler
from gptcore.optimizers import Muon, backward_and_step, load_optimizer_tensors, optimizer_tensors, schedule_factor
from gptcore.parallel import average_over_processes_
from gptcore.words import counted

# --- Batches -------------------------------------------------------------------------------------


def generator_for(*numbers: int) -> torch.Generator:
    """A random generator fixed by a few numbers such as seed and step, so that any step can be repeated."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator("cpu").manual_seed(seed)


def sample_windows(
    tokens: Tensor, targets: Tensor, batch_size: int, context_length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut random windows out of a long stream of tokens.

    Args:
        tokens: `(N,)` ids.
        targets: `(N,)` what to predict at each position: the token itself, or `IGNORED`.
        batch_size: windows `B`.
        context_length: positions `T` of each window.
        generator: source of the random starts.

    Returns:
        inputs `(B, T)` and targets `(B, T)`; the target of position t is the entry of t + 1.

    Raises:
        ValueError: if the stream is too short for one window.
    """
    if len(tokens) <= context_length:
        raise ValueError(
            f"the text has {counted(len(tokens), 'token')}, a context of {context_length} needs at least {context_length + 1}: "
            "give a longer text or a smaller context length"
        )
    starts = torch.randint(len(tokens) - context_length, (batch_size, 1), generator=generator, device=generator.device)
    indices = starts + torch.arange(context_length, device=starts.device)  # (B, T)
    return tokens[indices], targets[indices + 1]


# --- Settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingConfig:
    """How a supervised stage is trained."""

    steps: int
    """Number of updates."""
    matrix_rate: float = 0.02
    """Muon's learning rate, for the matrices inside the layers; with `optimizer="adamw"` AdamW's, for all."""
    embedding_rate: float = 0.02
    """AdamW's learning rate for the embeddings; large, since each row is rarely seen."""
    head_rate: float = 0.02
    """AdamW's learning rate for the head."""
    scalar_rate: float = 0.02
    """AdamW's learning rate for norms and biases."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon with AdamW for the rest, or AdamW alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates; 0.95 forgets old squared gradients fast enough for short runs."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices; a corpus seen a few times needs none."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "linear"
    """Shape of the learning rate; the linear decay ended lowest in short runs."""
    warmup_steps: int = 10
    """Steps in which the rate rises, while AdamW's averages fill."""
    decay_share: float = 0.6
    """Share of the steps in which `linear` decays."""
    clip_norm: float = 1.0
    """Largest gradient norm; a rare batch may not throw the model off."""
    precision: Precision | None = None
    """Precision of the matrix products; None for what is fast on this machine."""
    seed: int = 0
    """Seed of everything random in the stage."""
    accumulate: int = field(default=1, repr=False)  # no part of what identifies a recipe: it learns the same
    """Parts in which a batch is read, one after the other, where it does not fit into memory as a whole."""

    def __post_init__(self) -> None:
        whole_numbers(self, "steps", "warmup_steps", at_least=0)
        whole_numbers(self, "seed")
        whole_numbers(self, "accumulate", at_least=1)
        numbers(self, "matrix_rate", "embedding_rate", "head_rate", "scalar_rate", "weight_decay", at_least=0)
        numbers(self, "decay_share", at_least=0, at_most=1)
        numbers(self, "clip_norm", above=0, finite=False)  # infinite: nothing is clipped
        choice(self, "optimizer", ("muon", "adamw"))
        choice(self, "schedule", ("constant", "step", "cosine", "linear"))
        choice(self, "precision", ("fp32", "bf16", "fp16"))
        decays = self.betas if isinstance(self.betas, (tuple, list)) else ()
        if len(decays) != 2 or not all(isinstance(decay, (int, float)) and 0 <= decay < 1 for decay in decays):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {self.betas!r}")


def parameter_groups(model: nn.Module, config: TrainingConfig) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Divide the parameters between Muon and AdamW; each goes to exactly one.

    Returns:
        Muon's matrices (none with `optimizer="adamw"`), and AdamW's groups.
    """
    matrices, embeddings, heads, scalars = [], [], [], []
    for name, parameter in model.named_parameters():  # names each tied parameter once
        if not parameter.requires_grad:
            continue
        if "embedding" in name or "positions" in name:
            embeddings.append(parameter)
        elif "head" in name:
            heads.append(parameter)
        elif parameter.dim() == 2:
            matrices.append(parameter)
        else:
            scalars.append(parameter)
    groups = [
        {"params": embeddings, "lr": config.embedding_rate, "weight_decay": 0.0},
        {"params": heads, "lr": config.head_rate, "weight_decay": 0.0},
        {"params": scalars, "lr": config.scalar_rate, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        for group in groups:
            group["lr"] = config.matrix_rate
        groups.append({"params": matrices, "lr": config.matrix_rate, "weight_decay": config.weight_decay})
        matrices = []
    return matrices, [group for group in groups if group["params"]]


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon if there are matrices for it."""
    matrices, groups = parameter_groups(model, config)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=config.betas, eps=1e-10, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, lr=config.matrix_rate, weight_decay=config.weight_decay))
    return optimizers


# --- The loop ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepReport:
    """What a callback learns about one finished step."""

    step: int
    """Steps done so far, this one included."""
    steps: int
    """Length of the whole run."""
    loss: float
    """Loss of this step's batch, in nats, before the update."""
    gradient_norm: float
    """Norm of all gradients before clipping."""
    rate_factor: float
    """What the schedule multiplied the learning rates by."""
    seconds: float
    """Duration of the step."""


Callback = Callable[[StepReport], None]
LossFunction = Callable[[Any, Any], Tensor]


def _in_precision(loss_function: LossFunction, model: nn.Module, batch: Any, precision: Precision) -> Tensor:
    with autocast(precision):
        return loss_function(model, batch)


@dataclass
class Trainer:
    """A run that can be stopped after any step and go on as if it had not been.

    `state` and `load_state` carry everything but the batches, which are made anew from their number.
    """

    model: nn.Module
    """What is trained, in place."""
    batch_at: Callable[[int], Any]
    """Makes the batch of a step; equal steps, equal batches."""
    config: TrainingConfig
    """How it is trained."""
    loss_function: LossFunction = language_model_loss
    """Turns model and batch into a scalar loss."""
    parts_of: Callable[[Any, int], Sequence[tuple[Any, float]]] = in_parts
    """Cuts a batch into so many parts with weights, for `accumulate`; the default cuts text."""
    losses: list[float] = field(default_factory=list)
    """The loss of every step so far."""

    def __post_init__(self) -> None:
        if self.config.accumulate > 1 and self.parts_of is in_parts and self.loss_function is not language_model_loss:
            raise ValueError("accumulate reads batches of text in parts: say with `parts_of` how others are cut")
        self._engine = Engine(self.model, partial(_in_precision, self.loss_function))
        self.optimizers = make_optimizers(self._engine.learner, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["full_rate"] = group["lr"]
        self._set_precision(self.config.precision or choose_precision())

    def _set_precision(self, precision: Precision) -> None:
        self.precision: Precision = precision
        self.scaler = gradient_scaler(precision)

    @property
    def step(self) -> int:
        """Steps done so far."""
        return len(self.losses)

    def run(self, callbacks: Sequence[Callback] = ()) -> list[float]:
        """Train to the end; call every callback after each step; return all losses.

        A callback that raises (Ctrl-C does) stops the run after a whole step; where models are divided, the model is
        empty then.

        Raises:
            FloatingPointError: if the loss is no longer a number.
        """
        while self.step < self.config.steps:
            self._engine.learner.train()  # a callback may have asked the model something
            start = time.perf_counter()
            config = self.config
            factor = schedule_factor(self.step, config.steps, config.schedule, config.warmup_steps, config.decay_share)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["full_rate"] * factor
            parts = self.parts_of(self.batch_at(self.step), config.accumulate)
            given = [((part, self.precision), weight) for part, weight in parts]
            loss, own = self._engine.backward_but_last(given, self.scaler)
            shown = average_over_processes_(own).item()
            if not math.isfinite(shown):
                raise FloatingPointError(f"the loss is {shown} at step {self.step}: lower the learning rates")
            norm = backward_and_step(self._engine.learner, loss, self.optimizers, config.clip_norm, self.scaler)
            self.losses.append(shown)
            report = StepReport(self.step, config.steps, shown, norm, factor, time.perf_counter() - start)
            for callback in callbacks:
                callback(report)
        restore(self.model)
        return self.losses

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on; each process must come here."""
        tensors = {f"model.{name}": value for name, value in self._engine.weights().items()}
        tensors |= optimizer_tensors(self.optimizers)
        return tensors, {"losses": self.losses, "precision": self.precision, "scaler": self.scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: if the state belongs to another model.
        """
        parameters = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        try:
            self._engine.load_weights(parameters)
        except RuntimeError as error:
            raise ValueError(
                "the saved state belongs to a model of another shape: start anew in another folder"
            ) from error
        load_optimizer_tensors(self.optimizers, tensors)
        self.losses = list(values["losses"])
        self._set_precision(values["precision"])
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
