"""Preference labelling: the reader compares pairs of answers, as the people do behind a reward model.

Each vote is saved at once, as a line that `train --comparisons` reads, with the name of who voted. The votes are ballots
like those of the simulated voters: the same reward model learns from them, and at the end the reader sees how often the two
agree.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from gptcore.ballots import Ballot
from gptcore.chat_template import decode_answer, encode_prompt, room_for_prompt
from gptcore.decoder import Decoder
from gptcore.evaluation import Share, share
from gptcore.files import RUNS
from gptcore.generation import SamplingConfig, generate
from gptcore.gold import gold_score
from gptcore.own_data import Comparison, Question, read_comparisons
from gptcore.own_votes import Pair, pair_of, prompt_of, write_comparisons
from gptcore.records import BadDataError
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for
from gptcore.widgets._view import View, picture_of_lines, script

Vote = Literal["left", "right", "skipped"]
VOTES = RUNS / "votes.jsonl"
"""Where the reader's votes are kept, by default."""


def drawn_pairs(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[Question | str], seed: int = 0
) -> list[Ballot]:
    """Ballots of two answers that a model has drawn at temperature 1, to vote on.

    Args:
        model: any that answers.
        tokenizer: its tokenizer.
        questions: what is asked, each once.
        seed: of the draws.

    Returns:
        fewer ballots than questions, where both answers read alike or one is empty.

    Raises:
        ValueError: if a question does not fit into the context.
    """
    sampling = SamplingConfig()
    room = room_for_prompt(model.config.context_length, sampling.max_new_tokens)
    asked = [Question(question) if isinstance(question, str) else question for question in questions]
    prompts = [encode_prompt(tokenizer, question.text, question.history, room) for question in asked]
    drawn = generate(model, prompts * 2, sampling, tokenizer.special[END], generator_for(seed))
    ballots = [
        Ballot(prompt_of(question), ids, [drawn[number], drawn[number + len(asked)]], [])
        for number, (question, ids) in enumerate(zip(asked, prompts, strict=True))
    ]
    return single_pairs(ballots, tokenizer, len(ballots))


def single_pairs(ballots: Sequence[Ballot], tokenizer: Tokenizer, count: int) -> list[Ballot]:
    """Ballots of two answers that read differently, one from each ballot, in turn a different pair of its answers.

    Of an empty answer nothing can be said in the file of votes, so none is shown.
    """
    found: list[Ballot] = []
    for number, ballot in enumerate(ballots):
        texts = [decode_answer(tokenizer, ids) for ids in ballot.answers]
        pairs = [
            pair
            for pair in combinations([i for i, text in enumerate(texts) if text], 2)
            if texts[pair[0]] != texts[pair[1]]
        ]
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
    """How often the votes are for the answer with the higher gold score; ties do not count, nor do own questions.

    Returns:
        None if nothing counts.
    """
    right = []
    for ballot in ballots:
        if ballot.prompt.task == "own":
            continue
        scores = [gold_score(ballot.prompt, decode_answer(tokenizer, ids)) for ids in ballot.answers]
        right += [scores[winner] > scores[loser] for winner, loser in ballot.votes if scores[winner] != scores[loser]]
    return share(right) if right else None


def _question_of(ballot: Ballot) -> Question:
    return Question(ballot.prompt.question.strip(), ballot.prompt.history)


def as_comparisons(ballots: Sequence[Ballot], tokenizer: Tokenizer, voter: str) -> list[Comparison]:
    """The votes on some ballots, as `own_data` reads and writes them."""
    return [
        Comparison(
            _question_of(ballot),
            decode_answer(tokenizer, ballot.answers[winner]),
            decode_answer(tokenizer, ballot.answers[loser]),
            voter,
        )
        for ballot in ballots
        for winner, loser in ballot.votes
    ]


def _read(path: Path) -> list[Comparison]:
    if not path.exists() or not path.stat().st_size:
        return []
    try:
        return read_comparisons(path).items
    except BadDataError as error:
        raise ValueError(f"{path} is no file of votes ({error.problems[0]}): move it away or choose another") from error


class PreferenceLabels(View):
    """Pairs of answers, one after another; which is better?

    Args:
        pairs: ballots of two answers, see `single_pairs`.
        tokenizer: of the answers.
        path: where the votes are kept; the voter's votes on these pairs that it holds already count, and all others stay.
        voter: the name of who votes.

    Raises:
        ValueError: if there are no pairs, no name, or the file holds something else.
    """

    _esm = script("labels")
    title = "Preference labelling"

    def __init__(
        self, pairs: Sequence[Ballot], tokenizer: Tokenizer, path: str | Path = VOTES, voter: str = "me"
    ) -> None:
        if not pairs:
            raise ValueError("there is nothing to compare: give at least one pair of answers")
        if not voter.strip():
            raise ValueError("a vote needs somebody whose it is: give a voter's name")
        self.tokenizer, self.path, self.voter = tokenizer, Path(path), voter.strip()
        given = self._given(pairs)
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

    def _pair(self, ballot: Ballot) -> Pair:
        texts = frozenset(decode_answer(self.tokenizer, ids) for ids in ballot.answers)
        return _question_of(ballot), texts

    def _given(self, pairs: Sequence[Ballot]) -> dict[int, Vote]:
        """The voter's votes that the file holds on these pairs, by the number of the pair."""
        chosen = {pair_of(vote): vote.chosen for vote in _read(self.path) if vote.voter == self.voter}
        found: dict[int, Vote] = {}
        for number, ballot in enumerate(pairs):
            if (winner := chosen.get(self._pair(ballot))) is not None:
                found[number] = "left" if winner == decode_answer(self.tokenizer, ballot.answers[0]) else "right"
        return found

    def _save(self, votes: Sequence[Vote]) -> None:
        """Write the votes, all or nothing; those that another view has written meanwhile stay."""
        mine = {self._pair(ballot) for ballot in self.pairs[: max(len(votes), len(self.votes))]}
        kept = [vote for vote in _read(self.path) if vote.voter != self.voter or pair_of(vote) not in mine]
        now = as_comparisons(voted(self.pairs, votes), self.tokenizer, self.voter)
        write_comparisons(self.path, [*kept, *now])

    def _set(self, votes: list[Vote]) -> None:
        try:
            self._save(votes)
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
            shown["own"] = all(pair.prompt.task == "own" for pair in self.pairs)
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
            # Each text on a line of its own: what cannot be drawn takes the whole line with it.
            lines += ["", "question:", self.data["question"], "left:", left, "right:", right]
        return picture_of_lines("Preference labelling: which answer is better?", lines)
