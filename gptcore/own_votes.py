"""Votes of several people on the reader's own answers: what is said twice or both ways, and how far people agree.

A class or a team votes each in a file of its own (`widgets.PreferenceLabels` writes them), and one reward model learns from
the folder. Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from gptcore.evaluation import Share, share
from gptcore.files import write_whole
from gptcore.own_data import Comparison, Question
from gptcore.questions import Prompt
from gptcore.words import counted


def prompt_of(question: Question) -> Prompt:
    """A question of the reader's own, as voters are shown it."""
    language: Literal["en", "zh"] = "zh" if re.search(r"[\u4e00-\u9fff]", question.text) else "en"
    return Prompt(question.text, language, "own", (), history=question.history)


Pair = tuple[Question, frozenset[str]]
"""A question and two answers to it, whichever is better."""


def pair_of(vote: Comparison) -> Pair:
    """What was voted on."""
    return vote.question, frozenset((vote.chosen, vote.rejected))


@dataclass(frozen=True)
class Tally:
    """The votes that count, and what was found in all."""

    votes: list[Comparison]
    """Each voter's vote on a pair, once; none of a voter who preferred either answer."""
    voters: Counter[str]
    """Votes that count, by voter; those without a name are not here."""
    doubles: Counter[str]
    """Votes that repeat what the same voter said before, by voter."""
    contradictions: Counter[str]
    """Pairs of which one voter preferred now the one answer and now the other, by voter."""
    agreement: Share | None
    """How often two voters prefer the same answer of a pair; None if no two voted on the same."""

    def told(self) -> list[str]:
        """What to know about these votes, for people, a line each."""
        lines = []
        if len(self.voters) > 1:
            most = ", ".join(f"{name} {count:,}" for name, count in self.voters.most_common(8))
            others = len(self.voters) - 8
            lines.append(f"voters:        {most}" + (f" and {others:,} more" if others > 0 else ""))
        if self.agreement is not None:
            found = self.agreement
            lines.append(
                f"agreement:     two voters prefer the same answer in {found.value:.0%} of {counted(found.count, 'case')} "
                f"({found.low:.0%} to {found.high:.0%}); by chance it would be 50%"
            )
        for what, found_by in (
            ("given twice, which count once", self.doubles),
            ("for either answer of a pair, which do not count", self.contradictions),
        ):
            if found_by:
                names = ", ".join(f"{name} {count:,}" for name, count in found_by.most_common(8))
                lines.append(f"votes {what}: {names}")
        return lines


def tally(votes: Sequence[Comparison]) -> Tally:
    """Count the votes of several people; votes without a voter's name may be anybody's, and all of them count."""
    once: list[Comparison] = []
    doubles: Counter[str] = Counter()
    by_voter: dict[tuple[str, Pair], list[Comparison]] = {}
    for vote in votes:
        by_voter.setdefault((vote.voter, pair_of(vote)), []).append(vote)
    contradictions: Counter[str] = Counter()
    for (voter, _), given in by_voter.items():
        if not voter:
            once += given
        elif len({vote.chosen for vote in given}) > 1:
            contradictions[voter] += 1
        else:
            once.append(given[0])
            doubles[voter] += len(given) - 1
    by_pair: dict[Pair, list[Comparison]] = {}
    for vote in once:
        if vote.voter:
            by_pair.setdefault(pair_of(vote), []).append(vote)
    same = [a.chosen == b.chosen for given in by_pair.values() for a, b in combinations(given, 2)]
    voters = Counter(vote.voter for vote in once if vote.voter)
    return Tally(once, voters, +doubles, contradictions, share(same) if same else None)


def write_comparisons(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write votes as `own_data.read_comparisons` reads them, a line each, all or nothing.

    Raises:
        OSError: if the file cannot be written.
    """
    lines = []
    for question, chosen, rejected, voter in comparisons:
        prompt: Any = question.text
        if question.history:
            said = [message for turn in question.history for message in turn] + [question.text]
            prompt = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
        record = {"prompt": prompt, "chosen": chosen, "rejected": rejected} | ({"voter": voter} if voter else {})
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_whole(Path(path), "".join(lines))
