"""Evaluation: how good is a model, and how sure can one be of the number.

Perplexity and bits per byte for plain text, shares with intervals for right and wrong, BLEU for
translation (ACL P02-1040). Built step by step in notebooks/07_evaluation.ipynb; who judges an answer stands in `gold`,
the questions that the course's models are asked in `exam`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcore.atlas import Language
from gptcore.decoder import Decoder
from gptcore.loss import IGNORED
from gptcore.machine import autocast

# --- Plain text ----------------------------------------------------------------------------------


@torch.inference_mode()
def mean_loss(model: Decoder, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    """Cross-entropy per trained token over all batches, each token counted once.

    A mean of batch means would weigh a token more when its batch holds fewer of them.

    Args:
        model: its mode is set to evaluation.
        batches: inputs and targets `(B, T)`; `IGNORED` targets do not count.

    Returns:
        the mean in nats and the number of tokens counted.

    Raises:
        ValueError: if no token counts.
    """
    model.eval()
    total, count = 0.0, 0
    for tokens, targets in batches:
        with autocast():
            logits = model(tokens.to(model.device))
        targets = targets.to(model.device)
        total += F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
        ).item()
        count += int((targets != IGNORED).sum())
    if count == 0:
        raise ValueError("there is no token to evaluate: give a longer text")
    return total / count, count


def windows(tokens: Sequence[int], context_length: int, batch_size: int = 32) -> Iterable[tuple[Tensor, Tensor]]:
    """Cut a text into neighbouring windows, so that every token but the first is predicted once.

    Yields:
        inputs and targets, `(B, context_length)`; the last window is filled up with `IGNORED` targets. Nothing, if
        there are fewer than two tokens.
    """
    if len(tokens) < 2:
        return
    inputs, targets = list(tokens[:-1]), list(tokens[1:])
    missing = -len(inputs) % context_length
    inputs, targets = inputs + [0] * missing, targets + [IGNORED] * missing
    pairs = torch.tensor([inputs, targets], device="cpu").view(2, -1, context_length)
    for start in range(0, pairs.shape[1], batch_size):
        yield pairs[0, start : start + batch_size], pairs[1, start : start + batch_size]


def perplexity(model: Decoder, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The exponential of the mean loss: among how many equally likely tokens the model hesitates."""
    return math.exp(mean_loss(model, batches)[0])


def bits_per_byte(model: Decoder, tokens: Sequence[int], text_bytes: int) -> float:
    """Loss in bits for each byte of the text; comparable between tokenizers, as perplexity is not.

    Args:
        model: its mode is set to evaluation.
        tokens: the whole text's ids.
        text_bytes: length of the text in UTF-8.

    Raises:
        ValueError: if nothing is there to evaluate.
    """
    if text_bytes < 1:
        raise ValueError(f"bits are counted for each byte of a text, got {text_bytes} bytes")
    loss, count = mean_loss(model, windows(tokens, model.config.context_length))
    return loss * count / math.log(2) / text_bytes


# --- Shares --------------------------------------------------------------------------------------


class Share(NamedTuple):
    """A share of successes with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.count}"


def share(successes: Sequence[float]) -> Share:
    """Mean of values in [0, 1] with Wilson's 95 % score interval (Wilson 1927).

    Unlike mean +- 1.96 standard errors it stays within [0, 1], and it is honest at 0 and 1.

    Raises:
        ValueError: if there are no values, or others than that.
    """
    n = len(successes)
    if n == 0:
        raise ValueError("a share of nothing is undefined: give at least one value")
    if not all(0 <= value <= 1 for value in successes):
        raise ValueError("a share is a mean of values between 0 and 1: give True or False, or parts of a success")
    p, z = sum(successes) / n, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), n)


# --- Translation ---------------------------------------------------------------------------------


def bleu(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """Corpus BLEU with one reference each: n-gram precision times a penalty for brevity.

    Equation in section 2.3 of Papineni et al. 2002 (ACL P02-1040). An order without any match counts
    as half a match, then a quarter and so on, as sacrebleu does by default.

    Args:
        candidates: the translations, as lists of words (or of characters, for Chinese).
        references: the right translations, likewise.
        order: longest n-gram counted.

    Returns:
        between 0 and 100.

    Raises:
        ValueError: if the lists differ in length or are empty.
    """
    if not candidates or len(candidates) != len(references):
        raise ValueError(f"BLEU needs a reference for each candidate, got {len(candidates)} and {len(references)}")
    matches, totals = [0] * order, [0] * order
    for candidate, reference in zip(candidates, references, strict=True):
        for n in range(1, order + 1):
            found = Counter(tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1))
            expected = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
            matches[n - 1] += (found & expected).total()  # each n-gram counts as often as the reference has it
            totals[n - 1] += found.total()
    if matches[0] == 0:
        return 0.0
    logarithms, smoothing = [], 1.0
    for match, total in zip(matches, totals, strict=True):
        if total == 0:  # every candidate is shorter than n
            continue
        if match == 0:
            smoothing *= 2
        logarithms.append(math.log((match or 1 / smoothing) / total))
    length, expected_length = sum(map(len, candidates)), sum(map(len, references))
    penalty = min(1.0, math.exp(1 - expected_length / length))
    return 100 * penalty * math.exp(sum(logarithms) / order) if len(logarithms) == order else 0.0


def units(text: str, language: Language) -> list[str]:
    """What BLEU counts: words in English, characters in Chinese, punctuation apart."""
    if language == "zh":
        return [character for character in text if not character.isspace()]
    return "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text).split()
