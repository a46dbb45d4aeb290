"""The decoder: token ids in, a prediction of the next token at every position out.

A stack of layers; each lets the tokens exchange information (attention) and then thinks about
what it gathered (feed-forward), adding both to a residual stream. Built step by step in
notebooks/03_decoder.ipynb. Two presets, each a published architecture, so that real weights load into it:

- `gpt2` (Radford et al. 2019): layer norm, GELU, learned positions, the head tied to the embedding.
- `llama` (arXiv 2302.13971): RMSNorm (1910.07467), rotary positions, SwiGLU (2002.05202), no biases.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.attention import (
    KeyValueCache,
    MultiHeadAttention,
    RotaryScaling,
    causal_mask,
    check_heads,
    rotary_angles,
)
from gptcore.checks import numbers, whole_numbers
from gptcore.machine import in_own_dtype


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that fixes a decoder's shape."""

    vocabulary_size: int
    """Number of token ids `V`."""
    context_length: int = 128
    """Most positions a sequence may have; an atlas conversation of two turns fits in 128."""
    layers: int = 3
    """Depth; three layers suffice to find a fact and to phrase it."""
    width: int = 192
    """Channels `C`; with three layers small enough to train in a minute on two cores."""
    heads: int = 6
    """Query heads `H`; 32 features each, the smallest size that is still fast."""
    key_value_heads: int | None = None
    """Key and value heads of grouped queries; None for as many as `heads`."""
    hidden_width: int | None = None
    """Inner width of the feed-forward part; None for the preset's own: 4 C, or 8/3 C with a gate."""
    preset: Literal["gpt2", "llama"] = "llama"
    """Which published architecture; `llama` learns several times faster at this size."""
    separator: int | None = None
    """Id of the token that begins a new text. Training puts many texts into one window, and a token looks
    only at its own text, as in Llama 3 (arXiv 2407.21783, section 3.2); None lets it look at all."""
    norm_epsilon: float = 1e-5
    """Added to the variance in the norms, as in both papers' code."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies, as in arXiv 2104.09864."""
    rotary_scaling: RotaryScaling | None = None
    """Of published models that were stretched to a longer context."""
    head_size: int | None = None
    """Features of a head; None for `C / H`."""
    attention_bias: bool = False
    """Whether the attention of `llama` has biases; that of `gpt2` always has."""
    tied: bool = False
    """Whether the head of `llama` is tied to the embedding; that of `gpt2` always is."""

    def __post_init__(self) -> None:
        if self.preset not in ("gpt2", "llama"):
            raise ValueError(f"unknown preset {self.preset!r}: choose 'gpt2' or 'llama'")
        sizes = ("vocabulary_size", "context_length", "layers", "width", "heads", "key_value_heads", "hidden_width")
        whole_numbers(self, *sizes, "head_size", at_least=1)
        check_heads(
            self.width if self.head_size is None else self.heads, self.heads, self.key_value_heads or self.heads
        )
        if self.preset == "llama" and self.features_of_a_head % 2:
            raise ValueError(
                f"rotary positions turn pairs of features: width {self.width} gives each of {self.heads} heads an odd "
                "number, choose a width that is a multiple of twice the heads"
            )
        whole_numbers(self, "separator", at_least=0)
        if self.separator is not None and self.separator >= self.vocabulary_size:
            raise ValueError(f"separator {self.separator} is no id of a vocabulary of {self.vocabulary_size}")
        numbers(self, "norm_epsilon", "rotary_base", above=0)
        if self.rotary_scaling is not None:  # a list, if it comes from a file
            object.__setattr__(self, "rotary_scaling", RotaryScaling(*self.rotary_scaling))

    @property
    def features_of_a_head(self) -> int:
        """`D`."""
        return self.head_size or self.width // self.heads

    @property
    def feed_forward_width(self) -> int:
        """Inner width of the feed-forward part."""
        if self.hidden_width is not None:
            return self.hidden_width
        # A gated layer has three matrices instead of two: 8/3 C keeps the parameter count.
        return 4 * self.width if self.preset == "gpt2" else max(1, round(8 / 3 * self.width / 32)) * 32


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale`, equation 4 of arXiv 1910.07467."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class FeedForward(nn.Module):
    """GPT-2's two-layer network: widen, GELU, narrow. `(B, T, C)` to `(B, T, C)`."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden_width)
        self.down = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class GatedFeedForward(nn.Module):
    """SwiGLU, equation 6 of arXiv 2002.05202: a second projection opens and closes the first."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back to the stream."""

    def __init__(self, config: DecoderConfig, layer: int = 0) -> None:
        super().__init__()
        gpt2 = config.preset == "gpt2"
        norm = nn.LayerNorm if gpt2 else RMSNorm
        feed_forward = FeedForward if gpt2 else GatedFeedForward
        self.attention_norm = norm(config.width, config.norm_epsilon)
        bias = gpt2 or config.attention_bias
        self.attention = MultiHeadAttention(
            config.width, config.heads, config.key_value_heads, bias, layer, config.head_size
        )
        self.feed_forward_norm = norm(config.width, config.norm_epsilon)
        self.feed_forward = feed_forward(config.width, config.feed_forward_width)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`(B, T, C)` to `(B, T, C)`, and the attention weights if asked for; see `MultiHeadAttention.forward`."""
        mixed, weights = self.attention(self.attention_norm(x), mask, rotary, cache, return_weights)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), weights


def positions_and_mask(
    tokens: Tensor, token_mask: Tensor | None, past: int, separator: int | None
) -> tuple[Tensor, Tensor | None]:
    """Where in its text each new token stands, and which tokens it may look at.

    Args:
        tokens: `(B, T)` ids.
        token_mask: `(B, S)` bool, False at padding; None if there is none.
        past: positions read before; S = past + T.
        separator: id of the token that begins a new text, into which no token of the next one looks back; None for one
            text in each row.

    Returns:
        positions `(T,)`, or `(B, T)` with padding; and a mask `(B, 1, T, S)` bool, None for a plain causal one.
    """
    T, S = tokens.shape[1], past + tokens.shape[1]
    positions, mask = torch.arange(past, S, device=tokens.device), None
    if token_mask is not None:
        # Padding does not count: the first real token has position 0.
        positions = (token_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # (B, T)
        mask = causal_mask(T, S, tokens.device) & token_mask[:, None, None, :]  # (B, 1, T, S)
        # Padding looks at itself, so that no row of the softmax is empty.
        mask = mask | torch.eye(S, dtype=torch.bool, device=tokens.device)[past:]
    if separator is not None and (tokens[:, 1:] == separator).any():  # several texts in a row
        text = (tokens == separator).cumsum(dim=1)  # (B, T) number of each token's text
        same = text[:, None, :, None] == text[:, None, None, :]  # (B, 1, T, T)
        mask = same & (causal_mask(T, S, tokens.device) if mask is None else mask)
    return positions, mask


class Decoder(nn.Module):
    """The whole model. `hidden` gives the final features, `forward` the logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        if config.preset == "gpt2":
            self.positions = nn.Embedding(config.context_length, config.width)
            self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        else:
            self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.layers))
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.preset == "gpt2" or config.tied:
            self.head.weight = self.embedding.weight
        initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding.weight.device

    @in_own_dtype
    def hidden(
        self,
        tokens: Tensor,
        token_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        attention_weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Features of every position after the last layer and norm.

        Args:
            tokens: `(B, T)` ids.
            token_mask: `(B, S)` bool, False at padding (left or right), over the cached positions
                and the new ones; None if there is no padding.
            cache: keys and values of the positions already read; gets those of `tokens`. What is
                generated is one text: with a cache, `separator` has no effect.
            attention_weights: a list that receives each layer's `(B, H, T, S)` weights.

        Returns:
            `(B, T, C)`.

        Raises:
            ValueError: if the shapes are wrong or the context is exceeded.
        """
        past = 0 if cache is None else cache.length
        separator = self.config.separator if cache is None else None
        self._check(tokens, token_mask, past)
        positions, mask = positions_and_mask(tokens, token_mask, past, separator)
        x, rotary = self.embedding(tokens), None  # (B, T, C)
        if self.config.preset == "gpt2":
            x = x + self.positions(positions)
        else:
            config = self.config
            angles = rotary_angles(positions, config.features_of_a_head, config.rotary_base, config.rotary_scaling)
            rotary = tuple(part.unsqueeze(-3) for part in angles)  # ((B,) 1, T, D), one for all heads
        weigh = attention_weights is not None
        for layer in self.layers:
            x, weights = layer(x, mask=mask, rotary=rotary, cache=cache, return_weights=weigh)
            if attention_weights is not None:
                attention_weights.append(weights)
        return self.norm(x)

    def _check(self, tokens: Tensor, token_mask: Tensor | None, past: int) -> None:
        if tokens.dim() != 2:
            raise ValueError(f"tokens must have shape (batch, time), got {tuple(tokens.shape)}")
        S = past + tokens.shape[1]
        if token_mask is not None and token_mask.shape != (tokens.shape[0], S):
            raise ValueError(f"token_mask must have shape {(tokens.shape[0], S)}, got {tuple(token_mask.shape)}")
        longest = S if token_mask is None else int(token_mask.sum(dim=1).max())  # padding takes no position
        if longest > self.config.context_length:
            raise ValueError(
                f"{longest} tokens do not fit in the context of {self.config.context_length}: "
                "shorten the text or train with a larger context_length"
            )

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Logits of the next token at every position: `(B, T)` ids to `(B, T, V)`. See `hidden`."""
        return self.head(self.hidden(tokens, token_mask, cache))


def initialise(model: Decoder) -> None:
    """Draw every parameter of a decoder: GPT-2's scheme (Radford et al. 2019, section 2.3).

    Matrices and embeddings from N(0, 0.02^2); biases 0; norms 1. The two projections of each layer
    that add to the residual stream are divided by sqrt(2 x layers), so that the stream's variance
    does not grow with depth. A head that is not tied to the embedding starts at 0: the untrained
    model then predicts every token alike, and its loss is exactly log V.
    """
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * model.config.layers))
        else:
            nn.init.normal_(parameter, std=0.02)
    if model.head.weight is not model.embedding.weight:
        nn.init.zeros_(model.head.weight)
