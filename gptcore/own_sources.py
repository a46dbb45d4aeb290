"""Data of the reader's own: where they lie, and what they hold once they are read, divided into learned and held out.

A tenth of everything is held out. `own_data` knows the formats; `own_curriculum` makes batches. Tried in
notebooks/13_your_own_chatgpt.ipynb.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcore.own_data import (
    Comparison,
    Conversation,
    Question,
    Read,
    read_comparisons,
    read_conversations,
    read_prompts,
)
from gptcore.own_votes import tally
from gptcore.pieces import divide, pieces_of, texts_of
from gptcore.records import BadDataError, Problem
from gptcore.runs import SOURCES

PIECE = 600
"""Characters of a piece of text: the unit of what is held out."""


@dataclass(frozen=True)
class Sources:
    """Where the reader's data lie; None where there are none."""

    text: Path | None = None
    """A UTF-8 file, or a folder of `.txt` and `.md` files, to pretrain on."""
    conversations: Path | None = None
    """A file or folder, see `own_data`, to fine-tune on."""
    comparisons: Path | None = None
    """A file or folder of votes for the reward model."""
    prompts: Path | None = None
    """A file or folder of prompts for reinforcement learning; without it the questions of the comparisons."""
    base: Path | None = None
    """A folder with a model to start from: a run of gptcore's, or in transformers' format."""

    def __post_init__(self) -> None:
        if self.text is None and self.base is None:
            raise ValueError(
                "a model from nothing needs a text to learn its language from: give --text FILE, "
                "or --base FOLDER with a model that has learned one"
            )
        if self.comparisons is None and self.prompts is not None:
            raise ValueError("prompts are for reinforcement learning, which needs --comparisons FILE, too")
        if self.comparisons is not None and self.conversations is None and self.base is None:
            raise ValueError(
                "only a model that answers can learn from comparisons: give --conversations FILE, "
                "or --base FOLDER with a model that chats"
            )

    def identity(self) -> dict[str, Any]:
        """Paths, as they may be spelled anyhow in full, and hashes of what is there."""
        found: dict[str, Any] = {}
        for name in SOURCES:
            path: Path | None = getattr(self, name)
            found[name] = None if path is None else str(path.absolute())
            found[f"{name}_sha256"] = None if path is None else _hash(path)
        return found


def _hash(path: Path) -> str:
    """Of a file's content, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def questions_of(votes: Sequence[Comparison]) -> list[Question]:
    """Each question once."""
    return list(dict.fromkeys(vote.question for vote in votes))


@dataclass
class OwnData:
    """What the sources hold, read and checked."""

    text: list[str] = field(default_factory=list)
    """Pieces, in their order."""
    conversations: list[Conversation] = field(default_factory=list)
    """To fine-tune on."""
    votes: list[Comparison] = field(default_factory=list)
    """For the reward model: two thirds of those that are not held out."""
    second_votes: list[Comparison] = field(default_factory=list)
    """For the second judge: on other questions."""
    prompts: list[Question] = field(default_factory=list)
    """Those given, or the questions of all votes."""


class Divided:
    """Data of the reader's own, of which a tenth is held out.

    Args:
        sources: where they lie.
        skip_bad: whether to go on without records that cannot be used.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if one cannot be used; of records `records.BadDataError`, unless `skip_bad` is set.
    """

    def __init__(self, sources: Sources, skip_bad: bool) -> None:
        self.passed_over: list[str] = []
        """What is wrong with the records that are left out."""
        self._skip_bad = skip_bad
        self.seen, self.held_out = OwnData(), OwnData()
        pieces = [] if sources.text is None else [p for t in texts_of(sources.text) for p in pieces_of(t, PIECE)]
        self.seen.text, self.held_out.text = divide(pieces, "text")
        self._problems: list[Problem] = []
        talk = self._read(read_conversations, sources.conversations)
        votes = tally(self._read(read_comparisons, sources.comparisons))
        prompts = self._read(read_prompts, sources.prompts)
        if self._problems:  # those of all sources at once
            raise BadDataError(self._problems)
        self.seen.conversations, self.held_out.conversations = divide(talk, "conversations")
        self.voters = votes.told()
        """What to know about who voted."""
        self._divide_votes(votes.votes)
        self.seen.prompts, self.held_out.prompts = divide(prompts, "prompts")
        if sources.prompts is None:
            for part in (self.seen, self.held_out):
                part.prompts = questions_of([*part.votes, *part.second_votes])

    def _read(self, reader: Callable[[Path, bool], Read[Any]], path: Path | None) -> list[Any]:
        if path is None:
            return []
        try:
            read = reader(path, self._skip_bad)
        except BadDataError as error:
            self._problems += error.problems
            return []
        self.passed_over += map(str, read.problems)
        return read.items

    def _divide_votes(self, votes: Sequence[Comparison]) -> None:
        """No question is in two parts."""
        asked, held_out = divide(questions_of(votes), "comparisons")
        third = len(asked) // 3
        # A judge of one question has no scale.
        second = set(random.Random("second judge").sample(asked, third if third > 1 else 0))
        place = dict.fromkeys(asked, self.seen.votes) | dict.fromkeys(held_out, self.held_out.votes)
        place |= dict.fromkeys(second, self.seen.second_votes)
        for vote in votes:
            place[vote.question].append(vote)
