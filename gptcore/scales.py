"""Scales: what changes when the decoder has 10 million, 100 million, 1 billion or 7 billion parameters.

The code of the course does not; memory, hours and the way in which GPUs share the work do. All numbers follow from the
decoder's shape by formulas, nothing large is built. Shown in notebooks/13_your_own_chatgpt.ipynb.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.flops import forward_flops

Sharing = Literal["one process", "DistributedDataParallel", "fully_shard"]
"""Who holds the states: the only process; each of several a copy; or each its share (`engines`; `train --shard`)."""

SHAPES: Mapping[str, DecoderConfig] = {
    "10 M": DecoderConfig(8192, context_length=512, layers=6, width=288, heads=9),
    "100 M": DecoderConfig(32_768, context_length=1024, layers=12, width=640, heads=10),
    "1 B": DecoderConfig(32_000, 2048, layers=22, width=2048, heads=32, key_value_heads=4, hidden_width=5632),
    "7 B": DecoderConfig(32_000, 4096, layers=32, width=4096, heads=32, hidden_width=11_008),
}
"""Four shapes of the preset `llama`; the last two are those of TinyLlama (arXiv 2401.02385) and Llama 2 (2307.09288)."""

TOKENS_A_PARAMETER = 20
"""What a model of a given cost is best trained on, about (arXiv 2203.15556)."""
BATCH_TOKENS = 4096
"""Read at once by one GPU: a row of the longest context."""
GPU_BYTES = 80 * 10**9
"""Memory of one GPU, as those of data centres have."""
PATIENCE = 24
"""Hours after which more GPUs are worth their trouble."""


@dataclass(frozen=True)
class Scale:
    """What one shape costs."""

    parameters: int
    """Numbers that are learned."""
    training_bytes: int
    """Of the states of a supervised stage."""
    ppo_bytes: int
    """Of the states of PPO's four models."""
    activation_bytes: int
    """Of what the forward pass keeps for the backward pass, for `BATCH_TOKENS` tokens."""
    tokens: int
    """To pretrain on."""
    flops: int
    """Operations of pretraining."""
    hours: float
    """Of pretraining on one GPU."""
    engine: Sharing
    """How it is trained."""
    gpus: int
    """How many it takes to pretrain: so that it fits, or to be done within `PATIENCE`."""
    ppo_gpus: int
    """How many it takes so that PPO fits."""


def parameters(config: DecoderConfig) -> int:
    """Number of parameters; tied ones count once. On torch's `meta` device, where tensors have a shape and no memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def state_bytes(config: DecoderConfig, half: bool) -> dict[str, int]:
    """Bytes of what a supervised stage with AdamW keeps, whatever the batch, by part.

    Weights, gradients and AdamW's two moments are in fp32. In half precision the weights are the masters of the copies
    that the matrix products read (arXiv 1710.03740): made in the forward and kept until the backward pass.

    Args:
        config: shape of the decoder.
        half: whether matrix products are in half precision.

    Returns:
        `weights`, `gradients`, `moments` and `half_copies`.
    """
    count, once = parameters(config), forward_flops(config, 1)
    in_products = sum(once[part] for part in ("projections", "feed_forward", "head")) // 2  # a multiply-add for each
    return {"weights": 4 * count, "gradients": 4 * count, "moments": 8 * count, "half_copies": 2 * in_products * half}


def ppo_state_bytes(config: DecoderConfig, half: bool) -> dict[str, int]:
    """As `state_bytes`, for PPO: policy, value, reference and reward model, each of that shape.

    Policy and value model have moments; they take their steps after each other, so that only one has gradients.
    """
    one = state_bytes(config, half)
    return one | {"weights": 4 * one["weights"], "moments": 2 * one["moments"]}


def activation_bytes(config: DecoderConfig, rows: int, time: int, half: bool) -> int:
    """About how many bytes the forward pass of training keeps for the backward pass.

    For each token and layer, with width C, queries of width Q in all heads and feed-forward width F:

    - C numbers in fp32 before each of the two norms, and with RMSNorm C more before its scale;
    - what enters the matrix products, C: in fp32 once after each norm, in half precision a copy for each product (query,
      key, value, and the feed-forward's one or, with a gate, two);
    - 4 Q of attention: queries, keys, values (grouped ones are repeated) and output; no `T x T` matrix, see
      `attention.fused_attention`;
    - 2 F of the feed-forward: before and after GELU; or 4 F with a gate: two projections, SiLU, the product.

    Left out are the head, which keeps no logits (`loss`), and all that is smaller. With several texts in a row the
    mask comes on top. A CPU computes attention in fp32 in any precision, and keeps up to half as much again.

    Args:
        config: shape of the decoder.
        rows: sequences `B` in the batch.
        time: their length `T`.
        half: whether matrix products are in half precision.
    """
    gated, size = config.preset == "llama", 2 if half else 4
    streams = 4 if gated else 2
    entering = (5 if gated else 4) if half else 2
    query_width = config.heads * config.features_of_a_head
    of_feed_forward = (4 if gated else 2) * config.feed_forward_width
    of_token = config.width * (4 * streams + size * entering) + size * (4 * query_width + of_feed_forward)
    return rows * time * config.layers * of_token


def training_flops(config: DecoderConfig, tokens: int) -> int:
    """Operations of training on so many tokens, in rows as long as the context."""
    return 3 * sum(forward_flops(config, config.context_length).values()) * tokens // config.context_length


def gpus_that_fit(states: Mapping[str, int], activations: int) -> int:
    """The least number of GPUs that hold a share of the states each (`fully_shard`), and what none of them shares.

    The copies in half precision are made of gathered weights, and autograd keeps them until the backward pass: each
    GPU has them whole, beside the activations of its own rows.

    Args:
        states: bytes of all states, by part.
        activations: bytes of the activations on each GPU.

    Raises:
        ValueError: if what is not shared is too large alone.
    """
    own = activations + states["half_copies"]
    if own >= GPU_BYTES:
        raise ValueError(f"activations of {activations:,} bytes do not fit into {GPU_BYTES:,}: read fewer rows at once")
    return math.ceil((sum(states.values()) - states["half_copies"]) / (GPU_BYTES - own))


def scale_of(config: DecoderConfig, flops_a_second: float) -> Scale:
    """What a shape costs, in half precision.

    Args:
        config: the shape.
        flops_a_second: what one GPU really computes; between a third and a half of what its data sheet says.
    """
    count = parameters(config)
    training, ppo = (states(config, half=True) for states in (state_bytes, ppo_state_bytes))
    rows = max(1, BATCH_TOKENS // config.context_length)
    activations = activation_bytes(config, rows, config.context_length, half=True)
    tokens = TOKENS_A_PARAMETER * count
    flops = training_flops(config, tokens)
    hours = flops / flops_a_second / 3600
    gpus, engine = gpus_that_fit(training, activations), "fully_shard"
    if gpus == 1:
        gpus = math.ceil(hours / PATIENCE)
        engine = "one process" if gpus == 1 else "DistributedDataParallel"
    ppo_gpus = gpus_that_fit(ppo, activations)
    states = sum(training.values()), sum(ppo.values())
    return Scale(count, *states, activations, tokens, flops, hours, engine, gpus, ppo_gpus)


def as_rows(flops_a_second: float) -> list[dict[str, str | int | float]]:
    """The table: for each of `SHAPES` its name as `scale`, and the fields of `Scale`."""
    return [{"scale": name, **asdict(scale_of(config, flops_a_second))} for name, config in SHAPES.items()]
