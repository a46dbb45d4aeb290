"""Checkpoints: models and training states on disk, as safetensors with JSON in the header.

One file holds one thing whole: weights and everything needed to use them. It is written beside its
destination and renamed, so that a full disk or a power cut leaves the old file untouched.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.reward import RewardModel
from gptcore.tokenizer import ASSISTANT, Tokenizer
from gptcore.training import choose_device

FORMAT = "gptcore 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save_tensors(path: str | Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values as one file, all or nothing.

    Raises:
        OSError: if it cannot be written; an older file of that name survives.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"format": FORMAT, "values": json.dumps(values)}
    try:
        # Copies, since tied tensors (GPT-2's head and embedding) may not share memory in a file.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        save_file(copies, beside, header)
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written ({error}): free some space or choose another folder") from error
    finally:
        beside.unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated or not ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: train one with `python -m gptcore train`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}): delete it and train again") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by gptcore (format {header.get('format')!r})")
    return tensors, json.loads(header["values"])


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in fp16: half the size, and exact enough for weights of ordinary size."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


# --- Models --------------------------------------------------------------------------------------

STAGES = ("base", "sft", "reward", "ppo")
"""The chain's models, in the order in which they are made."""

SHIPPED = Path(__file__).parent.parent / "assets" / "checkpoints"
"""Checkpoints that come with the course."""

OWN = Path(__file__).parent.parent / "runs" / "chain"
"""Where `python -m gptcore train` puts the reader's own, by default."""


def save_model(path: str | Path, model: Decoder | RewardModel, tokenizer: Tokenizer, info: dict[str, Any]) -> None:
    """Write a model in half precision, with its configuration and a note of what made it.

    Args:
        path: the file.
        model: a decoder or a reward model.
        tokenizer: the one it was trained with; only its fingerprint is written.
        info: anything JSON can hold, such as command, seed and scores.

    Raises:
        OSError: if it cannot be written; an older file of that name survives.
    """
    values = {
        "kind": "reward" if isinstance(model, RewardModel) else "decoder",
        "config": asdict(model.config),
        "tokenizer": tokenizer.fingerprint,
        "info": info,
    }
    save_tensors(path, half(model.state_dict()), values)


def load_model(path: str | Path, tokenizer: Tokenizer) -> tuple[Decoder | RewardModel, dict[str, Any]]:
    """Read what `save_model` wrote, into float32 on the chosen device.

    Returns:
        the model in evaluation mode, and the note of what made it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, not a model of ours, or of another vocabulary.
    """
    tensors, values = load_tensors(path)
    if "kind" not in values:
        raise CheckpointError(f"{path} holds no model but the state of an unfinished run")
    if values["tokenizer"] != tokenizer.fingerprint:
        raise CheckpointError(
            f"{path} was trained with another vocabulary than the tokenizer.json given: keep the files of one run together"
        )
    try:
        model: Decoder | RewardModel = Decoder(DecoderConfig(**values["config"]))
        if values["kind"] == "reward":
            model = RewardModel(model, tokenizer.special[ASSISTANT])
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit its own description ({error}): train again") from error
    return model.to(choose_device()).eval(), values["info"]


def find_stage(stage: str, folder: str | Path | None = None) -> Path:
    """The file of a stage's model: in `folder` if given, else the reader's own run, else the shipped one.

    Raises:
        ValueError: if there is no such stage.
        FileNotFoundError: if no model of that stage is there.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
    folders = [OWN, SHIPPED] if folder is None else [Path(folder)]
    for candidate in folders:
        if (candidate / f"{stage}.safetensors").is_file() and (candidate / "tokenizer.json").is_file():
            return candidate / f"{stage}.safetensors"
    places = " or ".join(str(candidate) for candidate in folders)
    raise FileNotFoundError(f"there is no {stage} model in {places}: train one with `python -m gptcore train`")


def load_stage(stage: str, folder: str | Path | None = None) -> tuple[Decoder | RewardModel, Tokenizer]:
    """The model of a stage and its tokenizer, from where `find_stage` finds them; errors as there and in `load_model`."""
    path = find_stage(stage, folder)
    tokenizer = Tokenizer.load(path.with_name("tokenizer.json"))
    return load_model(path, tokenizer)[0], tokenizer


# --- The transformers library --------------------------------------------------------------------


def as_transformers(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A decoder in the format of the `transformers` library, which need not be installed.

    Args:
        model: preset `gpt2` or `llama`.

    Returns:
        what `GPT2Config` or `LlamaConfig` takes as keywords, and the state dict of
        `GPT2LMHeadModel` or `LlamaForCausalLM`.
    """
    config, ours = model.config, model.state_dict()
    if config.preset == "gpt2":
        theirs = {
            "vocab_size": config.vocabulary_size,
            "n_positions": config.context_length,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.feed_forward_width,
            "layer_norm_epsilon": config.norm_epsilon,
        }
        outer = {"embedding": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"}
        outer["head"] = "lm_head"
        layer, inner = (
            "transformer.h",
            {
                "attention_norm": "ln_1",
                "attention.output": "attn.c_proj",
                "feed_forward_norm": "ln_2",
                "feed_forward.up": "mlp.c_fc",
                "feed_forward.down": "mlp.c_proj",
            },
        )
    else:
        theirs = {
            "vocab_size": config.vocabulary_size,
            "max_position_embeddings": config.context_length,
            "hidden_size": config.width,
            "intermediate_size": config.feed_forward_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads or config.heads,
            "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rotary_base,
            "tie_word_embeddings": False,
        }
        outer = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
        layer, inner = (
            "model.layers",
            {
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
        )
    tensors = {}
    for name, tensor in ours.items():
        part, kind = name.rsplit(".", 1)  # "layers.0.attention.query", "weight"
        if not part.startswith("layers."):
            tensors[f"{outer[part]}.{kind}"] = tensor
            continue
        _, number, part = part.split(".", 2)
        transposed = config.preset == "gpt2" and not part.endswith("norm")  # GPT-2 stores its matrices so
        if part in inner:
            tensors[f"{layer}.{number}.{inner[part]}.{kind}"] = tensor.t() if transposed else tensor
        elif part == "attention.query":  # GPT-2 has the three projections in one matrix
            three = [ours[f"layers.{number}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            tensors[f"{layer}.{number}.attn.c_attn.{kind}"] = torch.cat(three).t()
    return theirs, tensors
