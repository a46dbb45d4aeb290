"""Checkpoints: models and training states on disk, as safetensors with JSON in the header.

One file holds one thing whole: weights and everything needed to use them. It is written beside its
destination and renamed, so that a full disk or a power cut leaves the old file untouched.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "gptcore 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save_tensors(path: str | Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values as one file, all or nothing.

    Raises:
        OSError: if it cannot be written; an older file of that name survives.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"format": FORMAT, "values": json.dumps(values)}
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, beside, header)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written ({error}): free some space or choose another folder") from error
    finally:
        beside.unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated or not ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: train one with `python -m gptcore train`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}): delete it and train again") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by gptcore (format {header.get('format')!r})")
    return tensors, json.loads(header["values"])


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in fp16: half the size, and exact enough for weights of ordinary size."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
