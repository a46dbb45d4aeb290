"""The optimiser's step: learning rate, gradient, direction.

A schedule says how large a step is, `backward_and_step` computes and bounds the gradient, and AdamW or Muon turns it
into a change of the parameters. Built step by step in notebooks/06_training_tricks.ipynb.

Papers: AdamW (arXiv 1711.05101), warm-up (1706.02677), cosine (1608.03983), clipping (1211.5063), Muon
(Jordan et al. 2024, kellerjordan.github.io/posts/muon).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gptcore.machine import choose_precision
from gptcore.parallel import as_share, divided, for_the_file, gathered


def schedule_factor(
    step: int,
    steps: int,
    schedule: Literal["constant", "step", "cosine", "linear"],
    warmup_steps: int = 0,
    decay_share: float = 0.6,
) -> float:
    """What the learning rate is multiplied by at a step; between 0 and 1.

    Warm-up comes first: (step + 1) / warmup_steps. Then `constant` stays at 1; `step` falls to a
    tenth at half of the steps and again at three quarters; `cosine` follows half a cosine from 1 to
    0; `linear` stays at 1 and falls in a straight line to 0 over the last `decay_share`.

    Args:
        step: from 0 to steps - 1.
        steps: length of the whole run.
        schedule: the shape after warm-up.
        warmup_steps: length of the warm-up.
        decay_share: share of the steps over which `linear` falls.

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
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return min(1.0, (steps - step) / max(1.0, decay_share * steps))
    raise ValueError(f"unknown schedule {schedule!r}: choose constant, step, cosine or linear")


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
        """Update every parameter that has a gradient; in bf16 where that is fast, whatever the precision of the run."""
        dtype = torch.bfloat16 if choose_precision() == "bf16" else torch.float32
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append((parameter, parameter.grad))
            for shape, pairs in by_shape.items():
                updates = []
                for parameter, gradient in pairs:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    buffer = state["momentum"]
                    buffer.lerp_(gradient, 1 - group["momentum"])  # then Nesterov's look ahead
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                # Only a whole matrix can be made orthogonal: where each process has a share, all do all of it, one
                # matrix after the other; else those of one shape go together, which is faster.
                few = 1 if divided() else len(updates)
                directions = [
                    direction
                    for i in range(0, len(updates), few)
                    for direction in orthogonalise(torch.stack([gathered(u) for u in updates[i : i + few]]).to(dtype))
                ]
                # A tall matrix has more outputs than inputs and needs a longer step to change each as much.
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), direction in zip(pairs, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(as_share(direction.to(parameter.dtype), parameter), alpha=-rate)


def backward_and_step(
    model: nn.Module,
    loss: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    clip_norm: float,
    scaler: torch.amp.GradScaler,
) -> float:
    """Backward pass, unscale, clip, step, in this order.

    A gradient scaler multiplies the loss so that small fp16 gradients do not vanish. Clipping must see the true
    gradients: unscale first. After an overflow in fp16 the step is left out, and the scaler lowers its factor.

    Returns:
        the norm of the true gradients before clipping; infinite or NaN after an overflow.
    """
    scaler.scale(loss).backward()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = float(gathered(nn.utils.clip_grad_norm_(model.parameters(), clip_norm)))
    # One overflow spoils the norm and with it every gradient: no optimiser may step.
    overflow = scaler.is_enabled() and not math.isfinite(norm)
    for optimizer in optimizers:
        if not overflow:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm


# --- Going on with an interrupted run -------------------------------------------------------------


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' running averages `for_the_file`, named `optimizer.INDEX.PARAMETER.NAME`."""
    return for_the_file(
        {
            f"optimizer.{index}.{number}.{name}": value
            for index, optimizer in enumerate(optimizers)
            for number, entries in optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }
    )


def load_optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took; other entries of `tensors` are passed over."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, number, name = key.split(".")
            learning = [p for group in optimizers[int(index)].param_groups for p in group["params"]][int(number)]
            own = as_share(value, learning) if value.dim() else value  # the number of steps is everybody's
            states[int(index)].setdefault(int(number), {})[name] = own
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
