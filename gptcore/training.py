"""Training: one loop for every supervised stage, from pretraining to the reward model.

The loop knows nothing of GPT. It is given a model, a function that makes batch number `i`, and a
function that turns model and batch into a loss; it sets the learning rate, takes the step and
reports it to callbacks.

Papers: AdamW (arXiv 1711.05101), warm-up (1706.02677), cosine (1608.03983), clipping (1211.5063), Muon
(Jordan et al. 2024, kellerjordan.github.io/posts/muon).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.checks import choice, numbers, whole_numbers
from gptcore.machine import Precision, autocast, choose_precision, gradient_scaler
from gptcore.parallel import average

IGNORED = -100
"""Target of a position that is not trained; torch's own convention for cross-entropy."""


# --- Batches and loss ----------------------------------------------------------------------------


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
            f"the text has {len(tokens)} tokens, a context of {context_length} needs at least {context_length + 1}: "
            "give a longer text or a smaller context length"
        )
    starts = torch.randint(len(tokens) - context_length, (batch_size, 1), generator=generator, device=generator.device)
    indices = starts + torch.arange(context_length, device=starts.device)  # (B, T)
    return tokens[indices], targets[indices + 1]


def few_shapes(rows: Tensor) -> Tensor:
    """Rows `(N, C)` with rows of zeros after them, up to a multiple of 64.

    A CPU compiles its kernels anew for each shape and keeps them all. Where the number of rows is
    different in each batch, that costs seconds and gigabytes.
    """
    return F.pad(rows, (0, 0, 0, -len(rows) % 64))


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, in which sums and logarithms are exact enough; float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


class _HeadCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `features @ weight.T`, a few rows at a time.

    The logits of a batch are its largest tensor by far, and softmax turns them straight into their
    own gradient: each piece of them is used up while it is in the processor's cache and never stored.
    """

    ROWS = 256

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        feature_gradients = torch.empty_like(features)
        weight_gradient = full_precision(torch.zeros_like(weight))
        total = weight_gradient.new_zeros(())
        for rows, wanted, gradients in zip(
            *(part.split(_HeadCrossEntropy.ROWS) for part in (features, targets, feature_gradients)), strict=True
        ):
            logits = full_precision(rows @ weight.T)  # (rows, V)
            real = (wanted != IGNORED).nonzero().squeeze(1)
            logits -= logits.amax(dim=1, keepdim=True)
            total -= logits[real, wanted[real]].sum()
            # What is below e^-60 does not count; smaller yet, and it would be a subnormal number, with
            # which a CPU takes ten times as long.
            slope = logits.clamp_(min=-60).exp_()
            normaliser = slope.sum(dim=1, keepdim=True)
            total += normaliser[real].log().sum()
            # d loss / d logits = softmax(logits) - one-hot(target)
            slope /= normaliser
            slope[real, wanted[real]] -= 1
            slope[wanted == IGNORED] = 0
            slope = slope.to(weight.dtype)
            gradients.copy_(slope @ weight)
            weight_gradient += slope.T @ rows
        ctx.save_for_backward(features, weight, targets, feature_gradients, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weight, targets, feature_gradients, weight_gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient is to be differentiated in its turn (`create_graph=True`). What was stored in forward would
            # pass for a constant; so it is computed once more, by operations that torch can differentiate.
            slope = full_precision(features @ weight.T).softmax(dim=1)
            slope = slope - F.one_hot(targets.clamp(min=0), len(weight))
            slope = (gradient * slope * (targets != IGNORED)[:, None]).to(weight.dtype)
            return slope @ weight, slope.T @ features, None
        return gradient.to(feature_gradients.dtype) * feature_gradients, gradient * weight_gradient, None


def head_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of a linear head: `cross_entropy(features @ weight.T, targets, reduction="sum")`.

    Args:
        features: `(N, C)`.
        weight: `(V, C)` of the head, which has no bias.
        targets: `(N,)` ids; rows whose target is `IGNORED` do not count.

    Returns:
        a scalar in nats.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if dtype == torch.float16:
            # Small slopes vanish in fp16 unless the gradient scaler multiplies them before they are rounded;
            # below they would be rounded first.
            return F.cross_entropy(full_precision(features @ weight.T), targets, ignore_index=IGNORED, reduction="sum")
        features, weight = features.to(dtype), weight.to(dtype)
    features = few_shapes(features)
    targets = F.pad(targets, (0, len(features) - len(targets)), value=IGNORED)
    return _HeadCrossEntropy.apply(features, weight, targets)


def language_model_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over the positions that are trained.

    Args:
        model: a `Decoder`.
        batch: inputs and targets `(B, T)`; targets that are `IGNORED` do not count.

    Returns:
        a scalar; 0 if every target is ignored. With several processes each divides by the mean of their
        counts: the mean of their losses is then the loss of the whole batch, however it was divided.
    """
    tokens, targets = (part.to(model.device) for part in batch)
    trained = targets != IGNORED
    # The head is the widest matrix: compute it only where it is needed.
    features = model.hidden(tokens)[trained]
    total = head_cross_entropy(features, model.head.weight, targets[trained])
    return total / average(trained.sum().float()).clamp(min=1)


# --- Learning rate -------------------------------------------------------------------------------


def schedule_factor(
    step: int,
    steps: int,
    schedule: Literal["constant", "step", "cosine", "linear"],
    warmup_steps: int = 0,
    decay_share: float = 0.6,
    floor: float = 0.0,
) -> float:
    """What the learning rate is multiplied by at a step; between 0 and 1.

    Warm-up comes first: (step + 1) / warmup_steps. Then `constant` stays at 1; `step` falls to a
    tenth at half of the steps and again at three quarters; `cosine` follows half a cosine from 1 to
    `floor`; `linear` stays at 1 and falls in a straight line to `floor` over the last `decay_share`.

    Args:
        step: from 0 to steps - 1.
        steps: length of the whole run.
        schedule: the shape after warm-up.
        warmup_steps: length of the warm-up.
        decay_share: share of the steps over which `linear` falls.
        floor: where `cosine` and `linear` end.

    Raises:
        ValueError: if the schedule is unknown.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if step < steps / 2 else 0.1 if step < 3 * steps / 4 else 0.01
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return floor + (1 - floor) * min(1.0, (steps - step) / max(1.0, decay_share * steps))
    raise ValueError(f"unknown schedule {schedule!r}: choose constant, step, cosine or linear")


# --- Optimisers ----------------------------------------------------------------------------------


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Replace the singular values of each matrix by about 1: Newton-Schulz iterations of Muon.

    Args:
        matrices: `(N, rows, columns)`.
        iterations: five bring singular values into about 0.7 to 1.2.

    Returns:
        `(N, rows, columns)`, same dtype.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # the polynomial that grows small singular values fastest
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-2, -1) if tall else matrices  # the smaller product is the cheaper one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(-2, -1)
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram gram
        x = torch.baddbmm(x, step, x, beta=a)  # a x + step x
    return x.transpose(-2, -1) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for the matrices inside the layers.

    Every direction of the matrix then learns at the same pace, where gradient descent would follow
    only the few strongest. Equal to `torch.optim.Muon` (which needs torch 2.9) up to rounding, but
    handles all matrices of one shape in one batched product.

    Args:
        parameters: 2-D parameters.
        lr: learning rate, in units of the update's spectral norm.
        momentum: decay of the running mean of gradients, used in Nesterov's form.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: if a parameter is not a matrix.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.dim() != 2:
                raise ValueError(f"Muon takes matrices only, got shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        dtype = torch.bfloat16 if choose_precision() == "bf16" else torch.float32
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    buffer = state["momentum"]
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                directions = orthogonalise(torch.stack(updates).to(dtype))
                # A tall matrix needs a longer step for the same change of its output.
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.to(parameter.dtype), alpha=-rate)


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

    def __post_init__(self) -> None:
        whole_numbers(self, "steps", "warmup_steps", at_least=0)
        whole_numbers(self, "seed")
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


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' running averages, named `optimizer.INDEX.PARAMETER.NAME`."""
    return {
        f"optimizer.{index}.{number}.{name}": value
        for index, optimizer in enumerate(optimizers)
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def load_optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took; other entries of `tensors` are passed over."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, number, name = key.split(".")
            states[int(index)].setdefault(int(number), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


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
LossFunction = Callable[[nn.Module, Any], Tensor]


def scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, Any] | None:
    """A gradient scaler's state as JSON values."""
    return None if scaler is None else scaler.state_dict()


def load_scaler(scaler: torch.amp.GradScaler | None, state: dict[str, Any] | None) -> None:
    """Put back what `scaler_state` took; a run that goes on in another precision begins with a fresh scaler."""
    if scaler is not None and state is not None:
        scaler.load_state_dict(state)


def backward(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Add the gradients of a loss to those that are there, scaled if there is a scaler.

    A gradient scaler multiplies the loss so that small fp16 gradients do not vanish.
    """
    (loss if scaler is None else scaler.scale(loss)).backward()


def update(
    model: nn.Module,
    loss: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    clip_norm: float,
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """Backward pass, average over processes, unscale, clip, step, in this order.

    Clipping must see the true gradients: unscale first. After an overflow in fp16 the step is left out, and the
    scaler lowers its factor.

    Returns:
        the norm of the true gradients before clipping; infinite or NaN after an overflow.
    """
    backward(loss, scaler)
    for parameter in model.parameters():
        if parameter.grad is not None:
            average(parameter.grad)
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
    # One overflow spoils the norm and with it every gradient: no optimiser may step.
    overflow = scaler is not None and not math.isfinite(norm)
    for optimizer in optimizers:
        if scaler is None:
            optimizer.step()
        elif not overflow:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    if scaler is not None:
        scaler.update()
    return norm


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
    losses: list[float] = field(default_factory=list)
    """The loss of every step so far."""

    def __post_init__(self) -> None:
        self.optimizers = make_optimizers(self.model, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["full_rate"] = group["lr"]
        self._set_precision(self.config.precision or choose_precision())

    def _set_precision(self, precision: Precision) -> None:
        self.precision = precision
        self.scaler = gradient_scaler(precision)

    @property
    def step(self) -> int:
        """Steps done so far."""
        return len(self.losses)

    def run(self, callbacks: Sequence[Callback] = ()) -> list[float]:
        """Train to the end; call every callback after each step; return all losses.

        A callback that raises (Ctrl-C does) stops the run after a whole step.

        Raises:
            FloatingPointError: if the loss is no longer a number.
        """
        while self.step < self.config.steps:
            self.model.train()  # a callback may have asked the model something
            start = time.perf_counter()
            config = self.config
            factor = schedule_factor(self.step, config.steps, config.schedule, config.warmup_steps, config.decay_share)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["full_rate"] * factor
            with autocast(self.precision):
                loss = self.loss_function(self.model, self.batch_at(self.step))
            shown = average(loss.detach().clone()).item()
            if not math.isfinite(shown):
                raise FloatingPointError(f"the loss is {shown} at step {self.step}: lower the learning rates")
            norm = update(self.model, loss, self.optimizers, config.clip_norm, self.scaler)
            self.losses.append(shown)
            report = StepReport(self.step, config.steps, shown, norm, factor, time.perf_counter() - start)
            for callback in callbacks:
                callback(report)
        return self.losses

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizers)
        return tensors, {"losses": self.losses, "precision": self.precision, "scaler": scaler_state(self.scaler)}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: if the state belongs to another model.
        """
        parameters = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(parameters)
        except RuntimeError as error:
            raise ValueError(
                "the saved state belongs to a model of another shape: start anew in another folder"
            ) from error
        load_optimizer_tensors(self.optimizers, tensors)
        self.losses = list(values["losses"])
        self._set_precision(values["precision"])
        load_scaler(self.scaler, values["scaler"])
