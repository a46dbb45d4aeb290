"""Generation: one token after another, drawn from the model's own predictions.

Temperature, top-k and top-p (arXiv 1904.09751) shape the distribution; a key-value cache keeps the
work for each new token constant; many prompts are answered at once. Built step by step in
notebooks/07_evaluation.ipynb (drawing) and notebooks/12_beyond.ipynb (the cache).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcore.attention import KeyValueCache
from gptcore.checks import numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.machine import autocast
from gptcore.parallel import spread
from gptcore.shapes import batches_by_length, pad_left, round_up


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 1.0
    """The logits are divided by it: below 1 bolder, above 1 more varied."""
    top_k: int | None = None
    """Draw from the `k` most likely tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities sum to `p` or more only."""
    greedy: bool = False
    """Take the most likely token instead of drawing."""
    max_new_tokens: int = 64
    """Longest answer; the atlas's longest good answers have about 60 tokens."""

    def __post_init__(self) -> None:
        whole_numbers(self, "top_k", "max_new_tokens", at_least=1)
        numbers(self, "top_p", above=0, at_most=1)
        if isinstance(self.temperature, (int, float)) and self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}; for the most likely token choose greedy"
            )
        numbers(self, "temperature", above=0)


GREEDY = SamplingConfig(greedy=True)


def next_token_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """The distribution that the next token is drawn from: `(..., V)` logits to probabilities."""
    probabilities = (logits.float() / config.temperature).softmax(dim=-1)
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        kept = probabilities.topk(config.top_k, dim=-1).indices
        probabilities = probabilities * torch.zeros_like(probabilities).scatter(-1, kept, 1.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    if config.top_p is not None and config.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # Drop a token if those before it already reach p; the first one always stays.
        dropped = ordered.cumsum(dim=-1) - ordered >= config.top_p
        probabilities = probabilities.masked_fill(dropped.scatter(-1, order, dropped), 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, generator: torch.Generator | None = None, uniform: Tensor | None = None) -> Tensor:
    """Draw one token from each row: `(B, V)` probabilities to `(B,)` ids.

    Inverse transform sampling: find where the running sum passes a uniform number. On a CPU 30 times
    faster than `torch.multinomial` for a few hundred rows.

    Args:
        probabilities: of each row.
        generator: source of the uniform numbers.
        uniform: `(B,)` numbers to use instead.
    """
    running = probabilities.float().cumsum(dim=-1)
    if uniform is None:
        uniform = torch.rand(len(running), generator=generator, dtype=torch.float32, device="cpu")
    uniform = uniform[:, None].to(running.device)
    # The sum may end just below or above 1; a number scaled into it never points past the last token.
    return torch.searchsorted(running, uniform * running[:, -1:], right=True).squeeze(1).clamp(max=running.shape[1] - 1)


def choose(
    logits: Tensor, config: SamplingConfig, generator: torch.Generator | None = None, uniform: Tensor | None = None
) -> Tensor:
    """The next token of each row: `(B, V)` logits to `(B,)` ids; randomness as in `draw`."""
    if config.greedy:
        return logits.argmax(dim=-1)
    return draw(next_token_probabilities(logits, config), generator, uniform)


def _check_prompts(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    for prompt in prompts:
        if len(prompt) == 0:
            raise ValueError("a prompt needs at least one token")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocabulary_size:
            raise ValueError(
                f"a prompt holds ids outside the vocabulary of {model.config.vocabulary_size}: "
                "encode it with the model's own tokenizer"
            )
        if len(prompt) >= model.config.context_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer in a context of "
                f"{model.config.context_length}: shorten it"
            )


@torch.no_grad()  # in inference_mode, autocast would convert every weight anew for every token
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop_token: int,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    noise: Tensor | None = None,
) -> list[list[int]]:
    """Continue every prompt until the stop token, the longest answer or the end of the context.

    Args:
        model: the model; its mode is set to evaluation.
        prompts: token ids, of any lengths.
        config: how tokens are drawn.
        stop_token: ends an answer, and is part of it.
        generator: source of randomness.
        batch_size: prompts continued at a time.
        noise: `(prompts, max_new_tokens)` uniform numbers to use instead of the generator; then an answer does not
            depend on what else is asked with it.

    Returns:
        the new tokens for each prompt, in the order of the prompts.

    Raises:
        ValueError: if a prompt is empty or fills the context.
    """
    _check_prompts(model, prompts)
    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        rows = torch.tensor(batch, device="cpu")  # which prompt stands in which row
        tokens, mask = pad_left([prompts[i] for i in batch], stop_token)
        tokens, mask = tokens.to(model.device), None if mask is None else mask.to(model.device)
        limits = torch.tensor(
            [min(config.max_new_tokens, model.config.context_length - len(prompts[i])) for i in batch], device="cpu"
        )  # a short prompt has room for a longer answer
        steps = int(limits.max())
        cache = KeyValueCache(model.config.layers, tokens.shape[1] + steps)
        going = torch.ones(len(rows), dtype=torch.bool, device="cpu")
        with autocast(rows=len(rows)):
            for step in range(1, steps + 1):
                logits = model.head(model.hidden(tokens, mask, cache)[:, -1])  # (B, V)
                chosen = choose(logits, config, generator, None if noise is None else noise[rows, step - 1])
                for row, token, goes in zip(rows.tolist(), chosen.tolist(), going.tolist(), strict=True):
                    if goes:
                        answers[row].append(token)
                going &= (chosen != stop_token).cpu() & (step < limits)
                if not going.any():
                    break
                # Finished rows are dropped half by half: copying at each step would cost more. Some are kept
                # to make the number a multiple of 16: few shapes, see `shapes`.
                count = round_up(int(going.sum()), 16)
                if count <= len(going) / 2:
                    keep = going.int().argsort(descending=True, stable=True)[:count]
                    rows, limits, going = rows[keep], limits[keep], going[keep]
                    keep = keep.to(model.device)
                    chosen, mask = chosen[keep], None if mask is None else mask[keep]
                    cache.keep(keep)
                tokens = chosen[:, None]
                if mask is not None:
                    mask = torch.cat((mask, going[:, None].to(model.device)), dim=1)
    return answers


def generate_together(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop_token: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """`generate`, shared by all processes; the answers are the same, however many there are."""
    noise = torch.rand(len(prompts), config.max_new_tokens, generator=generator, dtype=torch.float32, device="cpu")

    def answer(rows: Sequence[int]) -> list[list[int]]:
        return generate(model, [prompts[i] for i in rows], config, stop_token, noise=noise[list(rows)])

    return spread(answer, range(len(prompts)))


@torch.inference_mode()
def stream(
    model: Decoder,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop_token: int,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue one prompt and yield each token as soon as it is there; the stop token is not yielded.

    Raises:
        ValueError: if the prompt is empty or fills the context.
    """
    _check_prompts(model, [prompt])
    model.eval()
    tokens = torch.tensor([list(prompt)], device=model.device)
    steps = min(config.max_new_tokens, model.config.context_length - len(prompt))
    cache = KeyValueCache(model.config.layers, len(prompt) + steps)
    for _ in range(steps):
        with autocast(rows=1):
            logits = model.head(model.hidden(tokens, cache=cache)[:, -1])
        token = int(choose(logits, config, generator))
        if token == stop_token:
            return
        yield token
        tokens = torch.tensor([[token]], device=model.device)
