"""Checkpoints: models and training states on disk, as safetensors with JSON in the header.

One file holds one thing whole: weights and everything needed to use them. It is written beside its
destination and renamed, so that a full disk or a power cut leaves the old file untouched.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.files import ASSETS, RUNS
from gptcore.machine import choose_device
from gptcore.reward import RewardModel
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, Tokenizer

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
            # Copies: the tensors would be views of the mapped file, which Windows refuses to replace while one lives.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
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

SHIPPED = ASSETS / "checkpoints"
"""Checkpoints that come with the course."""

OWN = RUNS / "chain"
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


def model_folder() -> Path:
    """The folder of the models that are used where none is named: the reader's own run if it is whole, else the shipped.

    A family is never mixed: models of two runs have different vocabularies, or the same one and other weights.
    Which one it is, if there is a choice, is said once on the error stream.
    """
    missing = _missing(OWN)
    begun = len(missing) <= len(STAGES)  # one of the files is there
    if begun and (OWN, SHIPPED, bool(missing)) not in _said:
        _said.add((OWN, SHIPPED, bool(missing)))
        if missing:
            print(
                f"The shipped models are used: your own run in {OWN} lacks {', '.join(missing)} "
                f"(`python -m gptcore train --resume` goes on with it; naming the folder uses what is there).",
                file=sys.stderr,
            )
        else:
            print(f"The models of your own run are used: {OWN}", file=sys.stderr)
    return SHIPPED if missing else OWN


_said: set[tuple[Path, Path, bool]] = set()


def _missing(folder: Path) -> list[str]:
    """Which files of a whole chain a folder lacks."""
    names = ["tokenizer.json", *(f"{stage}.safetensors" for stage in STAGES)]
    return [name for name in names if not (folder / name).is_file()]


def find_stage(stage: str, folder: str | Path | None = None) -> Path:
    """The file of a stage's model: in `folder` if given, else in the `model_folder`.

    Raises:
        ValueError: if there is no such stage.
        FileNotFoundError: if no model of that stage is there.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
    folder = model_folder() if folder is None else Path(folder)
    if {f"{stage}.safetensors", "tokenizer.json"} & set(_missing(folder)):
        raise FileNotFoundError(f"there is no {stage} model in {folder}: train one with `python -m gptcore train`")
    return folder / f"{stage}.safetensors"


def load_stage(stage: str, folder: str | Path | None = None) -> tuple[Decoder | RewardModel, Tokenizer]:
    """The model of a stage and its tokenizer, from where `find_stage` finds them; errors as there and in `load_model`."""
    path = find_stage(stage, folder)
    tokenizer = Tokenizer.load(path.with_name("tokenizer.json"))
    return load_model(path, tokenizer)[0], tokenizer


# --- The transformers library --------------------------------------------------------------------
#
# Both presets are published architectures, so weights can go both ways. The library need not be installed.

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

# What a published model may ask for and our decoder does not do, by the value that means "no".
_UNSUPPORTED = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None},
}


def as_transformers(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A decoder in the format of the `transformers` library.

    Args:
        model: preset `gpt2` or `llama`.

    Returns:
        what `GPT2Config` or `LlamaConfig` takes as keywords, and the state dict of
        `GPT2LMHeadModel` or `LlamaForCausalLM`.
    """
    config, ours = model.config, model.state_dict()
    gpt2, names = config.preset == "gpt2", _THEIR_NAMES[config.preset]
    shape = asdict(config) | {
        "hidden_width": config.feed_forward_width,
        "key_value_heads": config.key_value_heads or config.heads,
    }
    theirs = {their: shape[our] for our, their in _THEIR_FIELDS[config.preset].items()}
    theirs["tie_word_embeddings"] = gpt2
    tensors = {}
    for name, tensor in ours.items():
        part, kind = name.rsplit(".", 1)  # "layers.0.attention.query", "weight"
        if not part.startswith("layers."):
            tensors[f"{names[part]}.{kind}"] = tensor
            continue
        _, number, part = part.split(".", 2)
        layer = f"{names['layers']}.{number}"
        transposed = gpt2 and not part.endswith("norm")  # GPT-2 stores its matrices so
        if part in names:
            tensors[f"{layer}.{names[part]}.{kind}"] = tensor.t() if transposed else tensor
        elif part == "attention.query":  # GPT-2 has the three projections in one matrix
            three = [ours[f"layers.{number}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            tensors[f"{layer}.attn.c_attn.{kind}"] = torch.cat(three).t()
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
        CheckpointError: if the architecture is not one of the two presets, or a weight is missing.
    """
    preset = config.get("model_type")
    if preset not in _THEIR_NAMES:
        raise CheckpointError(f"a model of type {preset!r} cannot be read: gptcore knows gpt2 and llama")
    for name, no in _UNSUPPORTED[preset].items():
        if config.get(name, no) != no:
            raise CheckpointError(f"this model has {name} {config[name]!r}, which gptcore's decoder does not do")
    shape = {ours: config[theirs] for ours, theirs in _THEIR_FIELDS[preset].items() if config.get(theirs) is not None}
    # Newer versions of the library put the base of the rotary positions elsewhere.
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") != "default":
        raise CheckpointError(f"this model has rotary positions of type {rotary['rope_type']!r}, ours are plain")
    if "rope_theta" in rotary:
        shape["rotary_base"] = rotary["rope_theta"]
    if config.get("head_dim") not in (None, shape["width"] // shape["heads"]):
        raise CheckpointError(f"heads of {config['head_dim']} features do not fill a width of {shape['width']}")
    # GPT-2 as first published names its tensors without the model's name in front.
    if preset == "gpt2" and "wte.weight" in tensors:
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    model = Decoder(DecoderConfig(preset=preset, **shape))
    names = _THEIR_NAMES[preset]
    found = {}
    try:
        for name, own in model.state_dict().items():
            part, kind = name.rsplit(".", 1)
            if part == "head" and "lm_head.weight" not in tensors:  # tied to the embedding
                found[name] = tensors[f"{names['embedding']}.weight"]
                continue
            if not part.startswith("layers."):
                found[name] = tensors[f"{names[part]}.{kind}"]
                continue
            _, number, part = part.split(".", 2)
            layer = f"{names['layers']}.{number}"
            if part in names:
                tensor = tensors[f"{layer}.{names[part]}.{kind}"]
                found[name] = tensor.t() if preset == "gpt2" and not part.endswith("norm") else tensor
            else:
                place = ("attention.query", "attention.key", "attention.value").index(part)
                found[name] = tensors[f"{layer}.attn.c_attn.{kind}"].t()[place * len(own) : (place + 1) * len(own)]
        model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the weights do not fit the model's config.json: {error}") from error
    return model.to(choose_device()).eval()


def read_transformers(folder: str | Path) -> Decoder:
    """A published model from a folder with `config.json` and `*.safetensors`; its errors as `from_transformers`.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} needs config.json and model.safetensors of a model in transformers' format")
    tensors: dict[str, Tensor] = {}
    for path in files:  # large models come in several
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
    return from_transformers(json.loads((folder / "config.json").read_text(encoding="utf-8")), tensors)


def write_transformers(folder: str | Path, model: Decoder, tokenizer: Tokenizer) -> None:
    """Write a folder from which `AutoModelForCausalLM` and `AutoTokenizer` load the model.

    (Their model knows no texts apart: a window with several texts in it gets other logits there.)

    Raises:
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = as_transformers(model)
    gpt2 = model.config.preset == "gpt2"
    config |= {
        "model_type": model.config.preset,
        "architectures": ["GPT2LMHeadModel" if gpt2 else "LlamaForCausalLM"],
        "bos_token_id": tokenizer.special[END_OF_TEXT],
        "eos_token_id": tokenizer.special[END],
    }
    if gpt2:  # one tensor in the file, two names for it
        del tensors["lm_head.weight"]
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END}
    special |= {"clean_up_tokenization_spaces": False, "model_max_length": model.config.context_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=1), encoding="utf-8")
