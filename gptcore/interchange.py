"""Interchange: weights and settings in the format of the `transformers` library, in both directions.

Both presets are published architectures, so weights can go both ways; notebooks/12_beyond.ipynb does it. The files
are read and written by `published`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptcore.attention import RotaryScaling
from gptcore.checkpoint import QUANTISED, CheckpointError, check_plain
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.machine import choose_device

_THEIR_FIELDS = {
    "gpt2": {
        "vocabulary_size": "vocab_size",
        "context_length": "n_positions",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "hidden_width": "n_inner",
        "norm_epsilon": "layer_norm_epsilon",
    },
    "llama": {
        "vocabulary_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads",
        "hidden_width": "intermediate_size",
        "norm_epsilon": "rms_norm_eps",
        "rotary_base": "rope_theta",
        "head_size": "head_dim",
        "attention_bias": "attention_bias",
        "tied": "tie_word_embeddings",
    },
}

_THEIR_NAMES = {
    "gpt2": {
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "layers": "transformer.h",
        "attention_norm": "ln_1",
        "attention.output": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    },
    "llama": {
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "layers": "model.layers",
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
}

_SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "context": "original_max_position_embeddings",
}
"""Our `RotaryScaling` and their `rope_scaling` of type `llama3`."""

_MAY_BE_ABSENT = {"n_inner", "layer_norm_epsilon", "num_key_value_heads", "rope_theta", "head_dim"}
_MAY_BE_ABSENT |= {"attention_bias", "tie_word_embeddings"}
"""Of their fields those whose default is ours, too."""

# What a published model may ask for, by the values that our decoder does; absent is the first of them.
_SUPPORTED = {
    "gpt2": {
        "tie_word_embeddings": (True,),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three names for one function
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "auto_map": (None,),  # code of the model's own
    },
    "llama": {
        "hidden_act": ("silu", "swish"),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,),
        "auto_map": (None,),
    },
}

# Buffers that old files hold beside the weights: masks, and frequencies that follow from config.json.
_NO_WEIGHTS = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")


class _Place(NamedTuple):
    """Where one of our parameters stands in their state dict."""

    ours: str
    theirs: str
    transposed: bool
    """Whether their matrix is ours turned round: GPT-2 keeps (inputs, outputs)."""
    third: int | None = None
    """Which third of their matrix it is, if they have queries, keys and values in one."""


def _places(ours: Iterable[str], preset: str) -> Iterator[_Place]:
    """Our names and theirs, for both directions."""
    names = _THEIR_NAMES[preset]
    for name in ours:
        part, kind = name.rsplit(".", 1)  # "layers.0.attention.query", "weight"
        if not part.startswith("layers."):
            yield _Place(name, f"{names[part]}.{kind}", False)
            continue
        _, number, part = part.split(".", 2)
        layer = f"{names['layers']}.{number}"
        transposed = preset == "gpt2" and not part.endswith("norm")
        if part in names:
            yield _Place(name, f"{layer}.{names[part]}.{kind}", transposed)
        else:
            third = ("attention.query", "attention.key", "attention.value").index(part)
            yield _Place(name, f"{layer}.attn.c_attn.{kind}", transposed, third)


def as_transformers(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A decoder in the format of the `transformers` library.

    Args:
        model: preset `gpt2` or `llama`.

    Returns:
        what `GPT2Config` or `LlamaConfig` takes as keywords, and the state dict of
        `GPT2LMHeadModel` or `LlamaForCausalLM`.
    """
    config, ours = model.config, model.state_dict()
    shape = asdict(config) | {
        "hidden_width": config.feed_forward_width,
        "key_value_heads": config.key_value_heads or config.heads,
        "head_size": config.features_of_a_head,
    }
    theirs = {their: shape[our] for our, their in _THEIR_FIELDS[config.preset].items()}
    if config.preset == "gpt2":
        theirs["tie_word_embeddings"] = True
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling._asdict()
        theirs["rope_scaling"] = {"rope_type": "llama3"} | {_SCALING[name]: value for name, value in scaling.items()}
    parts: dict[str, list[Tensor]] = {}
    for place in _places(ours, config.preset):
        tensor = ours[place.ours]
        parts.setdefault(place.theirs, []).append(tensor.t() if place.transposed else tensor)
    tensors = {name: torch.cat(found, dim=-1) if found[1:] else found[0] for name, found in parts.items()}
    return theirs, tensors


def from_transformers(config: dict[str, Any], tensors: dict[str, Tensor]) -> Decoder:
    """A decoder with the weights of a published model.

    Args:
        config: what `config.json` of the `transformers` library holds; `model_type` says which
            architecture it is.
        tensors: its weights, by the library's names, in any precision.

    Returns:
        the decoder in evaluation mode, float32, on the chosen device.

    Raises:
        CheckpointError: if the architecture is not one of the two presets, if the weights are quantised, or if one
            is missing or left over.
    """
    shape = _shape(config)
    preset, names = shape.preset, _THEIR_NAMES[shape.preset]
    tensors = {name: tensor for name, tensor in tensors.items() if not _NO_WEIGHTS.search(name)}
    check_plain(tensors)
    # GPT-2 as first published names its tensors without the model's name in front.
    if preset == "gpt2" and "wte.weight" in tensors:
        tensors = {n if n.startswith("lm_head.") else f"transformer.{n}": tensor for n, tensor in tensors.items()}
    head, embedding = f"{names['head']}.weight", f"{names['embedding']}.weight"
    tied = preset == "gpt2" or shape.tied
    if tied:  # one of the two names may be left out
        for name, other in ((head, embedding), (embedding, head)):
            if other in tensors:
                tensors.setdefault(name, tensors[other])
    with torch.device("meta"):  # names and shapes only
        _, expected = as_transformers(Decoder(shape))
    _check_fit(expected, tensors)
    if tied and not torch.equal(tensors[head], tensors[embedding]):
        raise CheckpointError(
            f"config.json has tie_word_embeddings, but {head} and {embedding} differ: one must be wrong"
        )

    with choose_device():
        model = Decoder(shape).float()
    found = {}
    for place in _places(model.state_dict(), preset):
        tensor = tensors[place.theirs]
        tensor = tensor if place.third is None else tensor.chunk(3, dim=-1)[place.third]
        found[place.ours] = tensor.t() if place.transposed else tensor
    model.load_state_dict(found)
    return model.eval()


def _shape(config: dict[str, Any]) -> DecoderConfig:
    """The shape that a published config.json describes.

    Raises:
        CheckpointError: if it lacks a field, or asks for what our decoder does not do.
    """
    if not isinstance(config, dict):
        raise CheckpointError("config.json does not hold a model's settings: it must be a JSON object")
    preset = config.get("model_type")
    if preset not in _THEIR_NAMES:
        raise CheckpointError(f"a model of type {preset!r} cannot be read: gptcore knows gpt2 and llama")
    if config.get("quantization_config") is not None:
        raise CheckpointError(f"the weights are quantised (config.json has quantization_config): {QUANTISED}")
    for name, supported in _SUPPORTED[preset].items():
        value = config.get(name)
        if value is not None and value not in supported:
            raise CheckpointError(f"this model has {name} {value!r}, which gptcore's decoder does not do")
    fields = _THEIR_FIELDS[preset]
    lacking = [name for name in fields.values() if config.get(name) is None and name not in _MAY_BE_ABSENT]
    if lacking:
        raise CheckpointError(f"config.json lacks {', '.join(lacking)}: get the file anew, or write what it was")
    shape = {ours: config[theirs] for ours, theirs in fields.items() if config.get(theirs) is not None}
    for name in ("rope_scaling", "rope_parameters"):  # older and newer versions of the library
        rotary = config.get(name) or {}
        asked = {} if not isinstance(rotary, dict) else {key: v for key, v in rotary.items() if key != "rope_theta"}
        if "llama3" in (asked.get("rope_type"), asked.get("type")) and all(asked.get(key) for key in _SCALING.values()):
            shape["rotary_scaling"] = RotaryScaling(*(asked[key] for key in _SCALING.values()))
        elif not isinstance(rotary, dict) or any(value not in ("default", 1, None) for value in asked.values()):
            raise CheckpointError(f"this model has {name} {rotary}, our rotary positions are plain")
        if rotary.get("rope_theta") is not None:
            shape["rotary_base"] = rotary["rope_theta"]
    try:
        ours = DecoderConfig(preset=preset, **shape)
    except ValueError as error:
        raise CheckpointError(f"config.json describes no model that gptcore can build: {error}") from error
    return ours


def _check_fit(expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are missing, of another shape, or left over: each would change what the model computes."""
    problem = "the weights do not fit the model's config.json: "
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{problem}{name} is missing")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            raise CheckpointError(f"{problem}{name} has shape {shapes}")
    surplus = sorted(tensors.keys() - expected.keys())
    if surplus:
        raise CheckpointError(
            f"{problem}{surplus[0]} {f'and {len(surplus) - 1} more have' if surplus[1:] else 'has'} no place in a "
            "decoder of ours; an adapter must be merged into the weights, quantised weights be made plain, first"
        )
