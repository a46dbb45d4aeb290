"""Sampling lab: the distribution of the next token, and what temperature, top-k and top-p make of it."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gptcore.decoder import Decoder
from gptcore.generation import SamplingConfig, draw, next_token_probabilities
from gptcore.tokenizer import Tokenizer
from gptcore.training import generator_for
from gptcore.widgets._view import Models, View, drawable, picture, rounded, script, token_labels
from gptcore.widgets.attention import read_as
from gptcore.widgets.palette import BLUE

ROWS = 20
"""So many of the most likely tokens are shown one by one."""


@torch.no_grad()
def next_logits(model: Decoder, ids: list[int]) -> Tensor:
    """Logits `(V,)` of the token after a text.

    Raises:
        ValueError: if the text fills the context.
    """
    model.eval()
    if len(ids) >= model.config.context_length:
        raise ValueError(f"the text has {len(ids)} tokens, the model reads {model.config.context_length}: shorten it")
    return model(torch.tensor([ids], device=model.device))[0, -1].float().cpu()


def entropy(probabilities: Tensor) -> float:
    """`-sum p log p` in nats; tokens without probability do not count."""
    return torch.special.entr(probabilities).sum().item()


def distribution(logits: Tensor, config: SamplingConfig, count: int = ROWS) -> dict[str, Any]:
    """The most likely next tokens, before and after temperature and cuts.

    Args:
        logits: `(V,)`.
        config: temperature, top-k and top-p.
        count: how many tokens are listed.

    Returns:
        `ids`, their probabilities `before` and `after`, which are `cut` off, how many tokens are `kept` of all, what the tokens not
        listed have together (`rest_before`, `rest_after`), and the entropies `entropy_before` and `entropy_after`.
    """
    before = next_token_probabilities(logits, SamplingConfig())
    after = next_token_probabilities(logits, config)
    top = before.topk(min(count, len(before))).indices
    return {
        "ids": top.tolist(),
        "before": rounded(before[top], 6),
        "after": rounded(after[top], 6),
        "cut": (after[top] == 0).tolist(),
        "rest_before": round(max(0.0, 1 - before[top].sum().item()), 6),
        "rest_after": round(max(0.0, 1 - after[top].sum().item()), 6),
        "kept": int((after > 0).sum()),
        "entropy_before": round(entropy(before), 3),
        "entropy_after": round(entropy(after), 3),
    }


class SamplingLab(View):
    """The next token's distribution on the reader's text, under sliders.

    Args:
        model: a decoder of the reader's own, or several by name; None for the stages of the chain.
        tokenizer: of the reader's own decoders.
        text: where it begins.
        form: "text" or "question" in the chat template.
        stage: which model comes first; by default the first.
        seed: of the draws.
    """

    _esm = script("sampling")
    title = "Sampling lab"

    def __init__(
        self,
        model: Decoder | dict[str, Decoder] | None = None,
        tokenizer: Tokenizer | None = None,
        text: str = "The capital of",
        form: str = "text",
        stage: str | None = None,
        seed: int = 0,
    ) -> None:
        self.models = Models(model, tokenizer)
        self.generator = generator_for(seed)
        self.settings = SamplingConfig()
        super().__init__()
        self.do_read(text, form, stage or self.models.names[0])

    def do_read(self, text: str, form: str, stage: str) -> None:
        """Begin with a text."""
        model, tokenizer = self.models[stage]
        ids = read_as(tokenizer, text, form)
        self.logits = next_logits(model, ids)
        self.place = {"text": text, "form": form, "stage": stage, "stages": self.models.names}
        self.ids, self.added = ids, 0
        self._show()

    def do_shape(self, temperature: float, top_k: int | None, top_p: float | None) -> None:
        """Set the sliders."""
        self.settings = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        self._show()

    def do_add(self, token: int, at: int) -> None:
        """Go on from a token that was chosen when the text had `at` tokens; later it is another text's."""
        if at == len(self.ids):
            self._go_to([*self.ids, token], self.added + 1)

    def do_draw(self) -> None:
        """Draw a token from the distribution and go on from it.

        Raises:
            ValueError: if there is none, as from a model whose weights are no longer numbers.
        """
        probabilities = next_token_probabilities(self.logits, self.settings)
        if not probabilities.isfinite().all():
            raise ValueError(
                "no token can be drawn: the model's prediction is not a number, it has diverged in training"
            )
        self.do_add(int(draw(probabilities[None], self.generator)), len(self.ids))

    def do_undo(self) -> None:
        """Take the last token back that was added."""
        if self.added:
            self._go_to(self.ids[:-1], self.added - 1)

    def _go_to(self, ids: list[int], added: int) -> None:
        self.logits = next_logits(self.models[self.place["stage"]][0], ids)
        self.ids, self.added = ids, added
        self._show()

    def _show(self) -> None:
        tokenizer = self.models[self.place["stage"]][1]
        rows = distribution(self.logits, self.settings)
        self.data = (
            self.place
            | rows
            | {
                "labels": token_labels(tokenizer, rows["ids"]),
                "tokens": token_labels(tokenizer, self.ids),
                "added": self.added,
                "vocabulary": len(self.logits),
                "temperature": self.settings.temperature,
                "top_k": self.settings.top_k,
                "top_p": self.settings.top_p,
            }
        )

    def static_picture(self) -> bytes:
        """The bars as they are now."""

        after, before = ([share or 0.0 for share in self.data[name]] for name in ("after", "before"))

        def bars(figure: Figure) -> None:
            axes = figure.subplots()
            names = [drawable(label, token) for label, token in zip(self.data["labels"], self.data["ids"], strict=True)]
            place = range(len(names))
            axes.barh(place, after, color=BLUE, label="after temperature and cuts")
            axes.barh(place, before, facecolor="none", edgecolor="black", label="as the model predicts")
            axes.set_yticks(place, names, fontsize=7)
            axes.invert_yaxis()
            axes.set_xlabel("probability of the next token")
            axes.legend(fontsize=8)

        return picture(bars, 7, 4)
