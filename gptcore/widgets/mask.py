"""Mask inspector: which tokens of a conversation fine-tuning trains, input above target."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gptcore.chat_template import Turn, encode_conversation
from gptcore.loss import IGNORED
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import View, drawable, picture, script, token_label
from gptcore.widgets.palette import BLUE

MOST_TOKENS = 256


class Column(NamedTuple):
    """One position of a training window."""

    position: int
    """Where it stands."""
    input: int
    """The token that the model reads there."""
    target: int
    """The token that comes next."""
    trained: bool
    """Whether the loss counts the prediction of the target."""


def mask_columns(tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[Column]:
    """A conversation as the loss sees it: shifted by one, so that input and target stand above each other."""
    ids, targets = encode_conversation(tokenizer, turns)
    pairs = zip(ids[:-1], ids[1:], targets[1:], strict=True)
    return [Column(i, here, following, target != IGNORED) for i, (here, following, target) in enumerate(pairs)]


class MaskInspector(View):
    """A conversation of the reader's, token by token, with the loss mask.

    Args:
        tokenizer: of the model.
        turns: questions and answers.
    """

    _esm = script("mask")
    title = "Mask inspector"

    def __init__(
        self,
        tokenizer: Tokenizer,
        turns: Sequence[Turn] = (
            ("What is the capital of Peru?", "The capital of Peru is Lima."),
            ("秘鲁的首都是哪里？", "秘鲁的首都是利马。"),
        ),
    ) -> None:
        self.tokenizer = tokenizer
        super().__init__()
        self.do_read([list(turn) for turn in turns])

    def do_read(self, turns: list[list[str]]) -> None:
        """Show other turns."""
        columns = mask_columns(self.tokenizer, [(question, answer) for question, answer in turns])
        count = sum(column.trained for column in columns)
        note = f"Only the first {MOST_TOKENS} of {len(columns)} positions are shown." * (len(columns) > MOST_TOKENS)
        shown: list[dict[str, Any]] = [
            {
                "input": token_label(self.tokenizer, column.input),
                "target": token_label(self.tokenizer, column.target),
                "ids": [column.input, column.target],
                "trained": column.trained,
            }
            for column in columns[:MOST_TOKENS]
        ]
        self.data = {"turns": turns, "columns": shown, "trained": count, "positions": len(columns), "note": note}

    def static_picture(self) -> bytes:
        """Inputs above targets, trained ones coloured."""
        columns, wide = self.data["columns"], 12

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            for i, column in enumerate(columns):
                x, y = i % wide, -2.4 * (i // wide)
                colour = "#CCE3F0" if column["trained"] else "#EEEEEE"
                axes.add_patch(Rectangle((x, y - 1), 0.96, 2, facecolor=colour, edgecolor=BLUE, lw=0.5))
                axes.text(
                    x + 0.48, y + 0.5, drawable(column["input"], column["ids"][0]), ha="center", va="center", size=6
                )
                weight = "bold" if column["trained"] else "normal"
                target = drawable(column["target"], column["ids"][1])
                axes.text(x + 0.48, y - 0.5, target, ha="center", va="center", size=6, weight=weight)
            axes.set(xlim=(0, wide), ylim=(-2.4 * (max(0, len(columns) - 1) // wide) - 1.2, 1.2))
            axes.axis("off")
            axes.set_title("Above: input. Below: target; bold on blue: trained", fontsize=9)

        return picture(draw, 10, 0.5 + 0.55 * -(-len(columns) // wide))
