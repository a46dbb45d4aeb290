"""Shapes: sequences of different lengths as tensors, and batches of like length.

A CPU compiles its kernels anew for each shape and keeps them all: where the shape is another in each batch, that
costs seconds and gigabytes. So widths and numbers of rows are rounded up to few different ones, here and nowhere
else; the algorithms need not know. What is padded is masked and changes no result. No chapter is about it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def round_up(number: int, multiple: int) -> int:
    """The next multiple, or the number itself if it is one."""
    return -(-number // multiple) * multiple


def pad_rows(rows: Tensor) -> Tensor:
    """Rows `(N, C)` with rows of zeros after them, up to a multiple of 64."""
    return F.pad(rows, (0, 0, 0, -len(rows) % 64))


def pad_left(sequences: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor | None]:
    """Sequences of different lengths as one tensor, aligned at their ends; the width is a multiple of 16.

    Returns:
        ids `(B, T)`, and a mask `(B, T)`, False at padding; None if all are of one length and nothing is padded.
    """
    if len(set(map(len, sequences))) == 1:
        return torch.tensor([list(sequence) for sequence in sequences], device="cpu"), None
    longest = round_up(max(map(len, sequences)), 16)
    ids = torch.full((len(sequences), longest), pad_token, device="cpu")
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool, device="cpu")
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, device="cpu")
        mask[row, longest - len(sequence) :] = True
    return ids, mask


def pad_right(sequences: Sequence[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one tensor, aligned at their starts, padded with 0.

    Args:
        sequences: token ids.
        longest: the model's context length; the width is a multiple of 16, but does not exceed it for rounding's sake.

    Returns:
        ids `(B, T)` and lengths `(B,)`.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], device="cpu")
    width = max(int(lengths.max()), min(round_up(int(lengths.max()), 16), longest))
    ids = torch.zeros(len(sequences), width, dtype=torch.long, device="cpu")
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, device="cpu")
    return ids, lengths


def batches_by_length(lengths: Sequence[int] | Tensor, batch_size: int) -> list[list[int]]:
    """Numbers of some sequences, batch by batch; those of like length share one, for little padding."""
    numbers = torch.as_tensor(lengths, device="cpu").argsort(stable=True)
    return [rows.tolist() for rows in numbers.split(batch_size)] if len(numbers) else []


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries whose mask is True; what stands elsewhere does not matter."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def trim(rows: Sequence[int], lengths: Tensor, tokens: Tensor, *columns: Tensor) -> list[Tensor]:
    """Some rows of padded sequences, no wider than the longest of them needs.

    Args:
        rows: which.
        lengths: `(N,)` of all sequences.
        tokens: `(N, T)`, padded on the right.
        columns: per-token tensors `(N, T - 1)`.
    """
    width = min(round_up(int(lengths[rows].max()), 16), tokens.shape[1])
    return [tokens[rows, :width], *(column[rows, : width - 1] for column in columns)]
