"""Attention explorer: where each token of the reader's own text looks, in every layer and head.

Three matrices for each head, side by side in time: the scores before softmax, the weights with the
causal mask (what the model uses), and the weights that the same scores would give without it.
"""

import math
from typing import Any, NamedTuple

import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from gptcore.attention import causal_mask, rotary_angles, rotate
from gptcore.chat_template import encode_prompt
from gptcore.corpus import encode_document
from gptcore.decoder import Decoder
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import Models, View, drawable, picture, script, token_labels

MOST_TOKENS = 64
"""More rows than that fit on no screen."""


class AttentionMaps(NamedTuple):
    """What every head of a decoder does with one text; three tensors `(L, H, T, T)`, `L` for layers."""

    masked: Tensor
    """Weights as the model uses them: each row sums to 1, the future is 0."""
    unmasked: Tensor
    """Weights that the same scores give without a mask."""
    scores: Tensor
    """Before softmax, divided by the root of the head size; nothing masked."""


@torch.no_grad()
def attention_maps(model: Decoder, ids: list[int]) -> AttentionMaps:
    """Read one text and note what each head computes on the way.

    Args:
        model: any decoder; its mode is set to evaluation.
        ids: the text, `T` ids.
    """
    model.eval()
    tokens = torch.tensor([ids], device=model.device)
    caught: list[dict[str, Tensor]] = [{} for _ in model.layers]
    hooks = []
    for found, layer in zip(caught, model.layers, strict=True):
        for name in ("query", "key"):

            def catch(
                _: nn.Module, __: Any, output: Tensor, found: dict[str, Tensor] = found, name: str = name
            ) -> None:
                found[name] = output[0]

            hooks.append(getattr(layer.attention, name).register_forward_hook(catch))
    masked: list[Tensor] = []
    try:
        model.hidden(tokens, attention_weights=masked)
    finally:
        for hook in hooks:
            hook.remove()

    config, T = model.config, len(ids)
    head_size = config.features_of_a_head
    scores = []
    for found in caught:
        query = found["query"].view(T, -1, head_size).transpose(0, 1)  # (H, T, D)
        key = found["key"].view(T, -1, head_size).transpose(0, 1)
        if config.preset == "llama":
            positions = torch.arange(T, device=model.device)
            turns = rotary_angles(positions, head_size, config.rotary_base, config.rotary_scaling)
            query, key = rotate(query, *turns), rotate(key, *turns)
        key = key.repeat_interleave(len(query) // len(key), dim=0)  # heads that share keys
        scores.append(query @ key.transpose(-2, -1) / math.sqrt(head_size))
    stacked = torch.stack(scores).float().cpu()  # (L, H, T, T)
    return AttentionMaps(torch.cat(masked).float().cpu(), stacked.softmax(dim=-1), stacked)


def read_as(tokenizer: Tokenizer, text: str, form: str) -> list[int]:
    """Ids of a text as the model would meet it.

    Args:
        tokenizer: of the model.
        text: anything.
        form: "text" for plain text, "question" for a user's message in the chat template.

    Raises:
        ValueError: for another form.
    """
    if form not in ("text", "question"):
        raise ValueError(f'a text is read as "text" or as "question", not as {form!r}')
    if form == "question":
        return encode_prompt(tokenizer, text)
    return encode_document(tokenizer, text)


class AttentionExplorer(View):
    """Every head of a model at work on the reader's text.

    Args:
        model: a decoder of the reader's own, or several by name; None for the stages of the chain.
        tokenizer: of the reader's own decoders.
        text: what is read first.
        form: "text" or "question", see `read_as`.
        stage: which of the models is shown first; by default the last.
        layer, head: which head is shown first, from 0.
    """

    _esm = script("attention")
    title = "Attention explorer"
    maps = traitlets.Bytes().tag(sync=True)
    """`AttentionMaps` as float32, one tensor after the other."""

    def __init__(
        self,
        model: Decoder | dict[str, Decoder] | None = None,
        tokenizer: Tokenizer | None = None,
        text: str = "The capital of Peru is Lima.",
        form: str = "text",
        stage: str | None = None,
        layer: int = 0,
        head: int = 0,
    ) -> None:
        self.models = Models(model, tokenizer)
        self.shown = (layer, head)
        super().__init__()
        self.do_read(text, form, stage or self.models.names[-1])

    def do_read(self, text: str, form: str, stage: str) -> None:
        """Read a text with one of the models."""
        model, tokenizer = self.models[stage]
        ids = read_as(tokenizer, text, form)
        room = min(MOST_TOKENS, model.config.context_length)
        note = f"Only the first {room} of {len(ids)} tokens are shown." if len(ids) > room else ""
        found = attention_maps(model, ids[:room])
        with self.hold_sync():
            self.maps = b"".join(part.contiguous().numpy().tobytes() for part in found)
            self.data = {
                "text": text,
                "form": form,
                "stage": stage,
                "stages": self.models.names,
                "tokens": token_labels(tokenizer, ids[:room]),
                "ids": ids[:room],
                "layers": found.masked.shape[0],
                "heads": found.masked.shape[1],
                "shown": [min(self.shown[0], found.masked.shape[0] - 1), min(self.shown[1], found.masked.shape[1] - 1)],
                "note": note,
            }

    def static_picture(self) -> bytes:
        """All heads, each as a small matrix of weights."""
        layers, heads, T = self.data["layers"], self.data["heads"], len(self.data["ids"])
        weights = torch.frombuffer(bytearray(self.maps), dtype=torch.float32).view(3, layers, heads, T, T)[0]
        weights = weights.masked_fill(~causal_mask(T), math.nan)  # what is forbidden is no weight of zero

        def draw(figure: Figure) -> None:
            panels = figure.subplots(layers, heads, squeeze=False)
            names = [drawable(token, ident) for token, ident in zip(self.data["tokens"], self.data["ids"], strict=True)]
            for layer in range(layers):
                for head in range(heads):
                    axes = panels[layer][head]
                    axes.imshow(weights[layer, head].numpy(), cmap="viridis", vmin=0, vmax=1)
                    axes.set_facecolor("lightgrey")
                    axes.set_title(f"layer {layer}, head {head}", fontsize=8)
                    axes.set_xticks([])
                    axes.set_yticks(range(T) if head == 0 and T <= 16 else [], names if head == 0 and T <= 16 else [])
                    axes.tick_params(labelsize=8)
            what = "Attention weights, from 0 (dark) to 1 (bright): each row is a token, and shows which tokens it looks at"
            figure.suptitle(what, fontsize=9)

        return picture(draw, 11, 2 * layers + 0.4)
