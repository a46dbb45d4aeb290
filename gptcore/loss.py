"""The loss: how surprised the model is by the tokens that come.

`language_model_loss` is what pretraining and fine-tuning lower; built step by step in notebooks/05_pretraining.ipynb.
Targets that are `IGNORED` do not count: so fine-tuning leaves out what the user says. The rest of the module makes the
head, the widest matrix of a small model, affordable: `head_cross_entropy` is `cross_entropy` of its logits without
storing them, an optional reading.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.decoder import Decoder
from gptcore.machine import full_precision
from gptcore.parallel import average_over_processes_, processes, rows_of_parts
from gptcore.shapes import pad_rows

IGNORED = -100
"""Target of a position that is not trained; torch's own convention for cross-entropy."""

Row = TypeVar("Row")
Rows = TypeVar("Rows", bound=Sequence[Any])
Text = tuple[Tensor, Tensor]
"""Inputs and targets `(B, T)`."""
BesideText = tuple[Rows | None, Text | None]
"""Rows of a stage of its own, and replayed text; one of them may be missing."""


def language_model_loss(model: Decoder, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over the positions that are trained.

    Args:
        model: what is trained.
        batch: inputs and targets `(B, T)`; targets that are `IGNORED` do not count.

    Returns:
        a scalar; 0 if every target is ignored. With several processes each divides by the mean of their
        counts: the mean of their losses is then the loss of the whole batch, however it was divided.
    """
    tokens, targets = (part.to(model.device) for part in batch)
    trained = targets != IGNORED
    # The head is the widest matrix: compute it only where it is needed.
    features = model.hidden(tokens)[trained]
    total = head_cross_entropy(features, model.head.weight, targets[trained])
    return total / average_over_processes_(trained.sum().float()).clamp(min=1 / processes())


def in_parts(batch: tuple[Tensor, Tensor], count: int) -> list[tuple[tuple[Tensor, Tensor], float]]:
    """A batch of text in parts, see `rows_of_parts`: inputs and targets `(B, T)` to some of `(b, T)`, with weights."""
    if count == 1:
        return [(batch, 1.0)]
    inputs, targets = batch
    trained = (targets != IGNORED).sum(dim=1).tolist()
    return [((inputs[rows], targets[rows]), weight) for rows, weight in rows_of_parts(trained, count)]


def loss_beside_text(
    own: Callable[[Rows], Tensor], coefficient: float, model: Decoder, batch: BesideText[Rows]
) -> Tensor:
    """A stage's own loss plus so many times that of replayed text; where there is but one of the two, that alone."""
    rows, text = batch
    losses = [] if rows is None else [own(rows)]
    if text is not None:
        losses.append(coefficient * language_model_loss(model, text))
    return sum(losses[1:], losses[0])


def parts_beside_text(
    rows: Sequence[Row], entries: Sequence[int], text: Text | None, count: int
) -> list[tuple[BesideText[Sequence[Row]], float]]:
    """A batch of something and of replayed text in parts, each of which has one of the two and None.

    Args:
        rows: the something: ballots, or numbers of answers.
        entries: of each of the rows, as in `rows_of_parts`.
        text: inputs and targets `(B, T)`; None for none.
        count: parts of each; 1 for all in one part, text included.

    Returns:
        the parts with their weights; the text comes first: its loss does not depend on a reward model's head, the last
        one must (`backward_but_last`).
    """
    if count == 1:
        return [((rows, text), 1.0)]
    found: list[tuple[BesideText[Sequence[Row]], float]] = []
    if text is not None:
        found += [((None, part), weight) for part, weight in in_parts(text, count)]
    found += [((rows[some], None), weight) for some, weight in rows_of_parts(entries, count)]
    return found


def chosen_log_probabilities(
    head: nn.Linear, features: Tensor, tokens: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each token that the mask names, given all before it.

    Args:
        head: turns features into logits.
        features: `(N, T - 1, C)`, after the last layer and norm.
        tokens: `(N, T)`; token t + 1 is predicted by the features of t.
        mask: `(N, T - 1)` bool; only these are computed, for the head is wide.
        temperature: what the logits are divided by.

    Returns:
        `(N, T - 1)`, float32 or the model's float64, 0 outside the mask.
    """
    wanted = features[mask]
    logits = head(pad_rows(wanted))[: len(wanted)]  # (choices, V)
    logarithms = (full_precision(logits) / temperature).log_softmax(dim=-1)
    chosen = logarithms.gather(1, tokens[:, 1:][mask][:, None]).squeeze(1)
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)


class _HeadCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `features @ weight.T`, a few rows at a time.

    The logits of a batch are its largest tensor by far, and softmax turns them straight into their
    own gradient: each piece of them is used up while it is in the processor's cache and never stored.
    """

    ROWS = 256

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        feature_gradients = torch.empty_like(features)
        learns = ctx.needs_input_grad[1]  # beside adapters the head stays as it is
        weight_gradient = full_precision(torch.zeros_like(weight)) if learns else None
        total = full_precision(features.new_zeros(()))
        for rows, wanted, gradients in zip(
            *(part.split(_HeadCrossEntropy.ROWS) for part in (features, targets, feature_gradients)), strict=True
        ):
            logits = full_precision(rows @ weight.T)  # (rows, V)
            real = (wanted != IGNORED).nonzero().squeeze(1)
            logits -= logits.amax(dim=1, keepdim=True)
            total -= logits[real, wanted[real]].sum()
            # What is below e^-60 does not count; smaller yet, and it would be a subnormal number, with
            # which a CPU takes ten times as long.
            slope = logits.clamp_(min=-60).exp_()
            normaliser = slope.sum(dim=1, keepdim=True)
            total += normaliser[real].log().sum()
            # d loss / d logits = softmax(logits) - one-hot(target)
            slope /= normaliser
            slope[real, wanted[real]] -= 1
            slope[wanted == IGNORED] = 0
            slope = slope.to(weight.dtype)
            gradients.copy_(slope @ weight)
            if weight_gradient is not None:
                weight_gradient += slope.T @ rows
        ctx.save_for_backward(features, weight, targets, feature_gradients, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        features, weight, targets, feature_gradients, weight_gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient is to be differentiated in its turn (`create_graph=True`). What was stored in forward would
            # pass for a constant; so it is computed once more, by operations that torch can differentiate.
            slope = full_precision(features @ weight.T).softmax(dim=1)
            slope = slope - F.one_hot(targets.clamp(min=0), len(weight))
            slope = (gradient * slope * (targets != IGNORED)[:, None]).to(weight.dtype)
            return slope @ weight, slope.T @ features, None
        own = None if weight_gradient is None else gradient * weight_gradient
        return gradient.to(feature_gradients.dtype) * feature_gradients, own, None


def head_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of a linear head: `cross_entropy(features @ weight.T, targets, reduction="sum")`.

    Args:
        features: `(N, C)`.
        weight: `(V, C)` of the head, which has no bias.
        targets: `(N,)` ids; rows whose target is `IGNORED` do not count.

    Returns:
        a scalar in nats.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if dtype == torch.float16:
            # Small slopes vanish in fp16 unless the gradient scaler multiplies them before they are rounded;
            # below they would be rounded first.
            return F.cross_entropy(full_precision(features @ weight.T), targets, ignore_index=IGNORED, reduction="sum")
        features, weight = features.to(dtype), weight.to(dtype)
    features = pad_rows(features)
    targets = F.pad(targets, (0, len(features) - len(targets)), value=IGNORED)
    return _HeadCrossEntropy.apply(features, weight, targets)
