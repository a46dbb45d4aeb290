"""Several processes that train together: data parallelism.

`torchrun` starts them. Each works on its own rows of every batch; one of torch's `engines` makes their gradients one.
Answers are drawn and graded by all, each its share, and shown to all. Tried in notebooks/12_beyond.ipynb.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from gptcore.machine import choose_device

Item = TypeVar("Item")
Result = TypeVar("Result")

# --- Processes -----------------------------------------------------------------------------------


_divided = False


def join_processes(divided: bool = False) -> None:
    """Meet the other processes, if `torchrun` started several; before anything else is done.

    Args:
        divided: whether each is to keep a share of every model that it trains (`engines`), instead of a copy.

    Raises:
        ValueError: if there is nobody to divide with.
    """
    global _divided
    _divided = divided
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if choose_device().type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if choose_device().type == "cuda" else "gloo")
    elif divided:
        raise ValueError(
            "one process has nobody to share a model with: start several with torchrun, or leave --shard out"
        )


def leave_processes() -> None:
    """Go on alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def divided() -> bool:
    """Whether each of several processes keeps a share of every model that it trains."""
    return _divided and processes() > 1


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


def rows_of_parts(entries: Sequence[int], count: int) -> list[tuple[slice, float]]:
    """This process's share of a batch in parts, one of which at a time is in memory.

    Args:
        entries: over how many entries of each row the loss takes its mean.
        count: parts; fewer, where a process has fewer rows.

    Returns:
        the rows of each part with its weight: the weighted means over all parts sum to the mean over the batch.
    """
    own = torch.tensor(min(count, len(entries)), dtype=torch.float32, device="cpu")
    fewest = int(average_over_processes_(own))  # shares differ by one row
    parts = torch.tensor(entries, dtype=torch.float32, device="cpu").tensor_split(fewest)
    sums = average_over_processes_(torch.stack([part.sum() for part in parts]))
    ends = list(accumulate(map(len, parts), initial=0))
    weights = (sums / sums.sum().clamp(min=1 / processes())).tolist()
    return [(slice(*rows), weight) for rows, weight in zip(pairwise(ends), weights, strict=True)]


# --- Tensors of which each has a share -----------------------------------------------------------
# Torch's class of them, `DTensor`, is imported where models are divided: that takes a second.


def gathered(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a share (a `DTensor`), whole; others as they are. Each must come here."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def for_the_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as process 0 writes them: shares are gathered one after the other into its CPU's memory. Each must come here."""
    found = {}
    for name, tensor in tensors.items():
        all_of_it = gathered(tensor)
        found[name] = all_of_it.cpu() if all_of_it is not tensor and rank() == 0 else tensor
    return found


def as_share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Of a tensor that each process has whole its share, divided as `like` is; the tensor itself, if that is not divided."""
    if like is None or not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    copies = DTensor.from_local(tensor.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return copies.redistribute(placements=like.placements)


# --- A word with the others ----------------------------------------------------------------------


def all_are_well(well: bool) -> bool:
    """Whether all processes say so; each must come here."""
    return average_over_processes_(torch.tensor(float(well), device=choose_device())).item() == 1
