"""Attention: how a token gathers information from the tokens before it.

The first link of the chain. A query asks, keys answer how relevant each position is, and the
values of the relevant positions are mixed. From bottom to top: the causal mask, scaled
dot-product attention, rotary positions, the key-value cache of generation, and
`MultiHeadAttention`, which puts them together.

Axis letters, the same in the whole package: `B` batch, `T` time (query positions), `S` time of
the keys (equal to `T` without a cache), `C` channels (the width of the model), `H` heads,
`D` head size (`C / H`), `V` vocabulary. With grouped queries keys and values have fewer heads, `K` instead of `H`.

Built step by step in notebooks/01_attention.ipynb and notebooks/02_multi_head_attention.ipynb.
Papers: "Attention Is All You Need" (arXiv 1706.03762), "RoFormer" for rotary positions
(2104.09864), "GQA" for grouped queries (2305.13245).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def causal_mask(queries: int, keys: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Which key positions each query position may look at: itself and everything before.

    Args:
        queries: number of query positions `T`; they are the last `T` of the key positions.
        keys: number of key positions `S`, at least `T`; by default `T`.
        device: where the mask is made.

    Returns:
        `(T, S)` bool, True where looking is allowed.

    Raises:
        ValueError: if there are fewer keys than queries.
    """
    keys = queries if keys is None else keys
    if keys < queries:
        raise ValueError(f"{queries} queries need at least as many keys, got {keys}")
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`softmax(Q K^T / sqrt(D)) V`, equation 1 of arXiv 1706.03762.

    Args:
        query: `(..., T, D)`.
        key: `(..., S, D)`.
        value: `(..., S, D)`.
        mask: bool, broadcastable to `(..., T, S)`, True where a query may look; None allows all.
            A query that may look nowhere gets a zero output, not NaN.

    Returns:
        the output `(..., T, D)` and the weights `(..., T, S)`; each row of weights sums to 1.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need the same head size, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"each key needs a value, got {key.shape[-2]} keys and {value.shape[-2]} values")
    # Without the division the scores' variance grows with D and softmax saturates.
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return weights @ value, weights


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, trained: bool) -> Tensor:
    """The output of attention by torch's fused kernel, which keeps no `(T, S)` matrix.

    Args:
        query: `(B, H, T, D)`.
        key, value: `(B, H, S, D)`.
        mask: bool, broadcastable to `(B, H, T, S)`; None means causal, for T = S or T = 1.
        trained: whether it is a computation that training does, with or without its backward pass: on a CPU that pass
            takes four times as long in half precision as in float32, which is used instead, for equal results.

    Returns:
        `(B, H, T, D)`, in the queries' dtype.
    """
    dtype, causal = query.dtype, mask is None and query.shape[2] > 1  # a single new position sees all
    if trained and query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.float(), key.float(), value.float()
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal).to(dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


class RotaryScaling(NamedTuple):
    """How Llama 3.1 stretches its rotary positions to a longer context than it was pretrained with
    (arXiv 2407.21783, section 3.4.1, and the published code): slow rotations are slowed down, fast ones are not."""

    factor: float
    """By which the slow ones are slowed down."""
    low: float
    """Pairs that turn less often than this within the old context are slow."""
    high: float
    """Pairs that turn more often are fast; between the two the change is gradual."""
    context: int
    """The old context, in positions."""

    def applied(self, frequencies: Tensor) -> Tensor:
        """The scaled frequencies, in radians a position."""
        turns = self.context * frequencies / (2 * math.pi)
        fast = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * (fast + (1 - fast) / self.factor)


def rotary_angles(
    positions: Tensor, head_size: int, base: float = 10_000.0, scaling: RotaryScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation of each position and feature (arXiv 2104.09864).

    Args:
        positions: `(..., T)` integers.
        head_size: `D`, even; features `i` and `i + D / 2` are a pair and turn by the same angle.
        base: pair i turns by `base^(-2 i / D)` radians a position.
        scaling: of these frequencies; None for none.

    Returns:
        two tensors `(..., T, D)`, float32; the sine is negative for the first feature of each pair.

    Raises:
        ValueError: if `head_size` is odd.
    """
    if head_size % 2:
        raise ValueError(f"rotary positions turn pairs of features: the head size must be even, got {head_size}")
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    frequencies = base**-exponents
    if scaling is not None:
        frequencies = scaling.applied(frequencies)
    angles = positions[..., None].float() * frequencies  # (..., T, D / 2)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of features `(a, b)` by the angle of its position: `(a cos - b sin, b cos + a sin)`.

    The dot product of two rotated vectors depends on the distance of their positions only.

    Args:
        x: `(B, H, T, D)` queries or keys.
        cosine, sine: broadcastable to `(B, H, T, D)`, from `rotary_angles`.

    Returns:
        the rotated tensor, same shape and dtype as `x`.
    """
    partner = x.roll(x.shape[-1] // 2, dims=-1)  # the halves have changed places
    return torch.addcmul(x * cosine.to(x.dtype), partner, sine.to(x.dtype))


class KeyValueCache:
    """Keys and values of the positions already read, so that generation need not read them again.

    Space for `capacity` positions is reserved once for each layer; `extend` fills it.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # positions of which every layer's keys and values are stored
        self._layers = layers
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values `(B, K, T, D)` of `T` new positions; return all `(B, K, S, D)`.

        The layers of a model must call it in their order: with the last one's call the positions count as read.

        Raises:
            ValueError: if the cache is full.
        """
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} positions, position {end} does not fit")
        if layer not in self._keys:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._keys[layer], self._values[layer] = key.new_empty(shape), value.new_empty(shape)
        self._keys[layer][:, :, self.length : end] = key
        self._values[layer][:, :, self.length : end] = value
        if layer == self._layers - 1:
            self.length = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (indices or a bool mask), as sequences finish."""
        self._keys = {layer: key[rows] for layer, key in self._keys.items()}
        self._values = {layer: value[rows] for layer, value in self._values.items()}


def check_heads(width: int, heads: int, key_value_heads: int) -> None:
    """Refuse numbers of heads that do not fill the width, or do not share the keys and values evenly.

    Raises:
        ValueError: if they do not.
    """
    if min(width, heads, key_value_heads) < 1:
        raise ValueError(f"width {width}, heads {heads} and key_value_heads {key_value_heads} must be at least 1")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")
    if heads % key_value_heads:
        raise ValueError(
            f"{heads} query heads cannot share {key_value_heads} key and value heads evenly: "
            "choose key_value_heads that divide heads"
        )


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each with its own queries; keys and values may be shared.

    Args:
        width: channels `C` of input and output.
        heads: number of query heads `H`; `width` must be a multiple of it.
        key_value_heads: number of key and value heads; several query heads then share one
            (grouped queries, arXiv 2305.13245). By default `heads`.
        bias: whether the four projections have biases.
        layer: its number in the model; under it a cache keeps its keys and values.
        head_size: features `D` of a head; by default the heads share the width evenly.

    Raises:
        ValueError: as `check_heads`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int | None = None,
        bias: bool = True,
        layer: int = 0,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        key_value_heads = heads if key_value_heads is None else key_value_heads
        check_heads(width if head_size is None else heads, heads, key_value_heads)
        self.heads, self.key_value_heads, self.head_size = heads, key_value_heads, head_size or width // heads
        self.query = nn.Linear(width, heads * self.head_size, bias=bias)
        self.key = nn.Linear(width, key_value_heads * self.head_size, bias=bias)
        self.value = nn.Linear(width, key_value_heads * self.head_size, bias=bias)
        self.output = nn.Linear(heads * self.head_size, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Let every position look at the positions that the mask allows.

        Args:
            x: `(B, T, C)`.
            mask: bool, broadcastable to `(B, H, T, S)`, True where a query may look. None means
                causal, which torch's fused kernel does fastest where `T == S` or `T == 1`.
            rotary: cosine and sine, broadcastable to `(B, H, T, D)`; None for no rotation.
            cache: earlier keys and values, to which the new ones are added.
            return_weights: also return the weights; slower, since they must be written out.

        Returns:
            the output `(B, T, C)`, and the weights `(B, H, T, S)` or None.
        """
        B, T, _ = x.shape
        query = self.query(x).view(B, T, self.heads, self.head_size).transpose(1, 2)  # (B, H, T, D)
        key = self.key(x).view(B, T, self.key_value_heads, self.head_size).transpose(1, 2)
        value = self.value(x).view(B, T, self.key_value_heads, self.head_size).transpose(1, 2)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, K, S, D)
        if self.key_value_heads < self.heads:
            # Neighbouring query heads share a key; repeated after the cache, which stays small.
            shared = self.heads // self.key_value_heads
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)  # (B, H, S, D)
        S = key.shape[2]
        if mask is None and (return_weights or 1 < T < S):  # the fused kernel would take the first T keys for the last
            mask = causal_mask(T, S, x.device)
        if return_weights:
            mixed, weights = scaled_dot_product_attention(query, key, value, mask)
        else:
            mixed, weights = fused_attention(query, key, value, mask, trained=cache is None), None
        # Heads stand side by side again: (B, H, T, D) -> (B, T, H, D) -> (B, T, H D).
        return self.output(mixed.transpose(1, 2).reshape(B, T, -1)), weights
