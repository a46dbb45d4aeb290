"""Several processes that train together: data parallelism.

`torchrun` starts them. Each has the whole model and works on its own rows of every batch; torch's
`DistributedDataParallel` averages the gradients while the backward pass still goes on, so that all models stay equal.
Answers are drawn and graded by all, each its share, and shown to all. Tried in notebooks/12_beyond.ipynb.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gptcore.machine import choose_device

Item = TypeVar("Item")
Result = TypeVar("Result")

# --- Processes -----------------------------------------------------------------------------------


def join_processes() -> None:
    """Meet the other processes, if `torchrun` started several; before anything else is done."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if choose_device().type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if choose_device().type == "cuda" else "gloo")


def leave_processes() -> None:
    """Go on alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; only number 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if processes() > 1:
        dist.barrier()


def another_ended(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached any more; gloo's have no class of their own."""
    return processes() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


# --- Shares --------------------------------------------------------------------------------------


def share_of(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every so many-th; all, where there are fewer items than processes."""
    return items[rank() :: processes()] if len(items) >= processes() else items


def spread(work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """Let each process work on its share, and give all results to all, in the order of the items."""
    done = work(share_of(items))
    if processes() == 1 or len(items) < processes():
        return list(done)
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, list(done))
    return [parts[number % len(parts)][number // len(parts)] for number in range(len(items))]


def sum_over_processes_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes, in place; each must come here, or the others wait for ever."""
    if processes() > 1:
        there = tensor.to(choose_device())  # where the processes can reach it
        dist.all_reduce(there)
        tensor.copy_(there)
    return tensor


def average_over_processes_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its mean over all processes, in place; each must come here, or the others wait for ever."""
    if processes() > 1:
        sum_over_processes_(tensor)
        tensor /= processes()
    return tensor


def weight_of_share(count: Tensor) -> Tensor | float:
    """By what to multiply the mean over this process's share of a batch: the mean over processes is then that over the batch.

    Args:
        count: how many entries the share's mean is taken over; the others have more, or fewer.
    """
    if processes() == 1:
        return 1.0
    return count / average_over_processes_(count.float().clone()).clamp(min=1 / processes())


def all_are_well(well: bool) -> bool:
    """Whether all processes say so; each must come here."""
    return average_over_processes_(torch.tensor(float(well), device=choose_device())).item() == 1


# --- Gradients -----------------------------------------------------------------------------------


class _Objective(nn.Module):
    """What is computed with a model, as a module of its own: the engine watches what goes through `forward`."""

    def __init__(self, model: nn.Module, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Any) -> Any:
        return self.compute(self.model, *inputs)


def together(model: nn.Module, compute: Callable[..., Any]) -> Callable[..., Any]:
    """`compute(model, ...)` such that a backward pass from its result averages the gradients over all processes.

    Args:
        model: all of whose trained parameters the result depends on.
        compute: takes the model first; its result is a tensor, or holds some.
    """
    if processes() == 1:
        return partial(compute, model)
    return DistributedDataParallel(_Objective(model, compute), broadcast_buffers=False)


def alone(objective: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Context in which a backward pass from what `together` gave leaves its gradients here: a later one averages them, too."""
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()
