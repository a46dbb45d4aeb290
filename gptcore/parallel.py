"""Several processes that train together: data parallelism.

`torchrun` starts them. Each has the whole model and reads its own rows of every batch; gradients are averaged
before each step, so that all models stay equal. Tried in notebooks/12_beyond.ipynb.
"""

import os

import torch
from torch import Tensor
from torch import distributed as dist

from gptcore.machine import choose_device


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


def average_over_processes_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its mean over all processes, in place; each must come here, or the others wait for ever."""
    if processes() > 1:
        dist.all_reduce(tensor)
        tensor /= processes()
    return tensor
