"""Texts of the reader's own, in pieces: what is trained on, and what is held out. Tried in notebooks/13_your_own_chatgpt.ipynb."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from gptcore.corpus import read_text

HELD_OUT = 10
"""One of so many pieces, conversations and questions is held out."""

Item = TypeVar("Item")


def texts_of(path: Path) -> list[str]:
    """A UTF-8 text, or all texts of a folder, in the order of their names.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one is empty or not UTF-8.
    """
    if not path.is_dir():
        return [read_text(path)]
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in (".txt", ".md"))
    if not found:
        raise FileNotFoundError(f"{path} holds no file that ends in .txt or .md")
    return [read_text(p) for p in found]


def divide(items: Sequence[Item], key: str) -> tuple[list[Item], list[Item]]:
    """Draw a tenth to be held out; all stay in their order.

    Returns:
        what is trained on, and what is held out: nothing, if there are fewer than ten.
    """
    drawn = set(random.Random(f"held out, {key}").sample(range(len(items)), len(items) // HELD_OUT))
    return [item for i, item in enumerate(items) if i not in drawn], [items[i] for i in sorted(drawn)]


def pieces_of(text: str, length: int) -> list[str]:
    """A text in pieces of at most `length` characters, cut after paragraphs; longer ones after lines, sentences, or anywhere."""
    pieces = [text]
    for end in (r"\n[ \t\r]*\n\s*", r"\n\s*", r"(?<=[.!?]) +|(?<=[。！？])"):
        pieces = [part for piece in pieces for part in _cut(piece, end, length)]
    pieces = [piece[i : i + length].strip() for piece in pieces for i in range(0, len(piece), length)]
    return [piece for piece in pieces if piece]


def _cut(piece: str, end: str, length: int) -> list[str]:
    """The parts of a piece, each with the end that follows it, as many together as the length allows."""
    if len(piece) <= length:
        return [piece]
    found, start, last = [], 0, 0
    for stop in (*(match.end() for match in re.finditer(end, piece)), len(piece)):
        if stop - start > length and last > start:
            found.append(piece[start:last])
            start = last
        last = stop
    return [*found, piece[start:]]


def again(items: Sequence[Item], seed: int) -> Iterator[Item]:
    """All items in a random order, then again in another, without end."""
    rng = random.Random(f"again {seed}")
    while items:
        yield from rng.sample(items, len(items))
