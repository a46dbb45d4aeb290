"""Merge stepper: byte-pair encoding on the reader's text, one merge after another."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from gptcore.bpe import Pair, learn_merges, merge, split_words
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import View, drawable, picture, readable, script
from gptcore.widgets.palette import VERMILION

MOST_CHARACTERS = 600
MOST_MERGES = 200


def merge_steps(text: str, merges: Sequence[Pair], most: int = MOST_MERGES + 1) -> list[dict[str, Any]]:
    """A text before the first merge and after each that changes it.

    Args:
        text: any text.
        merges: pairs of ids in the order in which they are applied, as `learn_merges` gives them.
        most: steps at most; what comes later is left out.

    Returns:
        a dictionary for each step: `words` (the text's ids, cut where no merge may cross) and, but for the
        first, the `pair`, its `left` and `right` part and the `new` token in bytes, the `id` that it got, the
        `rank` of the merge (from 0) and how often it was applied, `count`.
    """
    table = Tokenizer(merges)
    ids = {piece: number for number, piece in enumerate(table.token_bytes)}
    words = [list(word.encode()) for word in split_words(text)]
    steps: list[dict[str, Any]] = [{"words": words}]
    for rank, pair in enumerate(merges):
        if len(steps) == most:
            break
        if not any(pair in pairwise(word) for word in words):
            continue
        left, right = (table.token_bytes[part] for part in pair)
        new_id, before = ids[left + right], sum(map(len, words))
        words = [merge(word, pair, new_id) for word in words]
        steps.append(
            {
                "words": words,
                "pair": pair,
                "left": left,
                "right": right,
                "new": left + right,
                "id": new_id,
                "rank": rank,
                "count": before - sum(map(len, words)),
            }
        )
    return steps


class MergeStepper(View):
    """The merges of a text of the reader's own, learned from it or known from the course's tokenizer.

    Args:
        text: where it begins; both languages may stand in it.
        tokenizer: offers its merges, too.
        learn: whether the first thing shown is what is learned from this text alone.
    """

    _esm = script("merges")
    title = "Merge stepper"

    def __init__(
        self,
        text: str = "the cat sat on the mat, the hat on the cat. 秘鲁的首都是利马，智利的首都是圣地亚哥。",
        tokenizer: Tokenizer | None = None,
        learn: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        super().__init__()
        self.do_read(text, learn)

    def do_read(self, text: str, learn: bool) -> None:
        """Begin with a text."""
        note = ""
        if len(text) > MOST_CHARACTERS:
            text, note = text[:MOST_CHARACTERS], f"Only the first {MOST_CHARACTERS} characters are read."
        tokenizer = None if learn else self.tokenizer
        try:
            merges = learn_merges([text], MOST_MERGES) if tokenizer is None else tokenizer.merges
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is no valid Unicode: {error}") from error
        pieces = Tokenizer(merges).token_bytes
        steps = merge_steps(text, merges)
        complete = len(steps) <= MOST_MERGES
        labels = {token: readable(pieces[token]) for step in steps for word in step["words"] for token in word}
        shown: list[dict[str, Any]] = [{"words": steps[0]["words"]}]
        for step in steps[1:]:
            words = {part: readable(step[part]) for part in ("left", "right", "new")}
            shown.append({name: step[name] for name in ("words", "pair", "id", "rank", "count")} | words)
        self.data = {
            "text": text,
            "learn": tokenizer is None,
            "choice": self.tokenizer is not None,
            "steps": shown,
            "labels": {str(token): label for token, label in labels.items()},
            "characters": len(text),
            "bytes": len(text.encode()),
            "complete": complete,
            "note": note,
        }

    def static_picture(self) -> bytes:
        """How the number of tokens falls, and the first merges."""
        steps = self.data["steps"]

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            axes.plot([sum(map(len, step["words"])) for step in steps], color=VERMILION, marker="o", ms=3)
            axes.set(xlabel="merges applied", ylabel="tokens of the text", ylim=(0, None))
            first = [drawable(f"{step['left']} + {step['right']}", step["id"]) for step in steps[1:9]]
            axes.set_title("The first merges: " + ",  ".join(first), fontsize=8)

        return picture(draw, 8, 3)
