"""Preference labelling: the reader compares pairs of answers, as the people do behind a reward model.

Each vote is saved at once. The votes are ballots like those of the simulated voters: the same reward
model learns from them, and at the end the reader sees how often the two agree.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from gptcore.ballots import Ballot
from gptcore.chat_template import decode_answer
from gptcore.evaluation import Share, share
from gptcore.files import RUNS, write_whole
from gptcore.gold import gold_score
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import View, picture_of_lines, script

Vote = Literal["left", "right", "skipped"]
VOTES = RUNS / "votes.json"
"""Where the reader's votes are kept, by default."""


def single_pairs(ballots: Sequence[Ballot], tokenizer: Tokenizer, count: int) -> list[Ballot]:
    """Ballots of two answers that read differently, one from each ballot, in turn a different pair of its answers."""
    found: list[Ballot] = []
    for number, ballot in enumerate(ballots):
        texts = [decode_answer(tokenizer, ids) for ids in ballot.answers]
        pairs = [pair for pair in combinations(range(len(texts)), 2) if texts[pair[0]] != texts[pair[1]]]
        if pairs and len(found) < count:
            a, b = pairs[number % len(pairs)]
            if number % 2:  # the written answers come last: they shall not always stand on the right
                a, b = b, a
            found.append(replace(ballot, answers=[ballot.answers[a], ballot.answers[b]], votes=[]))
    return found


def voted(pairs: Sequence[Ballot], votes: Sequence[Vote]) -> list[Ballot]:
    """The pairs that were decided, with the reader's vote: what a reward model learns from."""
    return [
        replace(pair, votes=[(0, 1) if vote == "left" else (1, 0)])
        for pair, vote in zip(pairs, votes, strict=False)
        if vote != "skipped"
    ]


def agreement(ballots: Sequence[Ballot], tokenizer: Tokenizer) -> Share | None:
    """How often the votes are for the answer with the higher gold score; ties do not count.

    Returns:
        None if nothing counts.
    """
    right = []
    for ballot in ballots:
        scores = [gold_score(ballot.prompt, decode_answer(tokenizer, ids)) for ids in ballot.answers]
        right += [scores[winner] > scores[loser] for winner, loser in ballot.votes if scores[winner] != scores[loser]]
    return share(right) if right else None


def save_votes(path: Path, pairs: Sequence[Ballot], votes: Sequence[Vote]) -> None:
    """Write the votes, all or nothing; those on other pairs that the file holds are kept.

    Raises:
        OSError: if it cannot be written.
    """
    kept = _read(path)
    for pair in pairs:
        kept.pop(_key(pair), None)
    kept |= {_key(pair): vote for pair, vote in zip(pairs, votes, strict=False)}
    write_whole(path, json.dumps(kept, indent=0))


def load_votes(path: Path, pairs: Sequence[Ballot]) -> dict[int, Vote]:
    """The votes that a file holds on these pairs, by the number of the pair.

    Raises:
        ValueError: if the file holds something else.
    """
    kept = _read(path)
    return {number: kept[_key(pair)] for number, pair in enumerate(pairs) if _key(pair) in kept}


def _key(pair: Ballot) -> str:
    return json.dumps([pair.prompt_ids, *pair.answers])


def _read(path: Path) -> dict[str, Vote]:
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no file of votes ({error}): move it away or choose another file") from error
    if not isinstance(kept, dict) or not all(vote in ("left", "right", "skipped") for vote in kept.values()):
        raise ValueError(f"{path} is no file of votes: move it away or choose another file")
    return kept


class PreferenceLabels(View):
    """Pairs of answers, one after another; which is better?

    Args:
        pairs: ballots of two answers, see `single_pairs`.
        tokenizer: of the answers.
        path: where the votes are kept; votes on these pairs that it holds already count.

    Raises:
        ValueError: if there are no pairs.
    """

    _esm = script("labels")
    title = "Preference labelling"

    def __init__(self, pairs: Sequence[Ballot], tokenizer: Tokenizer, path: str | Path = VOTES) -> None:
        if not pairs:
            raise ValueError("there is nothing to compare: give at least one pair of answers")
        self.tokenizer, self.path = tokenizer, Path(path)
        given = load_votes(self.path, pairs)
        # Those that were compared before come first.
        self.pairs = [pairs[i] for i in given] + [pair for i, pair in enumerate(pairs) if i not in given]
        self.votes: list[Vote] = list(given.values())
        super().__init__()
        self._show()

    def ballots(self) -> list[Ballot]:
        """The decided pairs with the reader's votes."""
        return voted(self.pairs, self.votes)

    def do_vote(self, vote: Vote, number: int) -> None:
        """Vote on pair `number` if it is the one that is shown (a key may be pressed twice); save."""
        if vote not in ("left", "right", "skipped"):
            raise ValueError(f"a vote is left, right or skipped, not {vote!r}")
        if number == len(self.votes) < len(self.pairs):
            self._set([*self.votes, vote])

    def do_undo(self) -> None:
        """Take the last vote back."""
        self._set(self.votes[:-1])

    def _set(self, votes: list[Vote]) -> None:
        try:
            save_votes(self.path, self.pairs, votes)
        except OSError as error:
            raise ValueError(f"the vote was not saved: {error}") from error
        self.votes = votes
        self._show()

    def _show(self) -> None:
        done = len(self.votes)
        shown: dict[str, Any] = {"done": done, "count": len(self.pairs), "path": str(self.path)}
        if done < len(self.pairs):
            pair = self.pairs[done]
            shown["question"] = pair.prompt.question
            shown["answers"] = [decode_answer(self.tokenizer, ids) for ids in pair.answers]
        else:
            agreed = agreement(self.ballots(), self.tokenizer)
            shown["skipped"] = self.votes.count("skipped")
            shown["agreement"] = agreed and [
                round(agreed.value, 3),
                round(agreed.low, 3),
                round(agreed.high, 3),
                agreed.count,
            ]
        self.data = shown

    def static_picture(self) -> bytes:
        """The pair that is shown, or the result."""
        lines = [f"{self.data['done']} of {self.data['count']} pairs compared"]
        if "question" in self.data:
            left, right = self.data["answers"]
            lines += ["", f"question: {self.data['question']}", f"left: {left}", f"right: {right}"]
        return picture_of_lines("Preference labelling: which answer is better?", lines)
