"""Checkpoints: models and training states on disk, as safetensors with JSON in the header.

One file holds one thing whole: weights and everything needed to use them. It is written beside its
destination and renamed, so that a full disk or a power cut leaves the old file untouched.
"""

import json
import os
import re
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
from gptcore.generation import GREEDY
from gptcore.machine import choose_device
from gptcore.reward import RewardModel
from gptcore.runs import advice
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, PAD, Tokenizer

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
    _check_plain(tensors)
    try:
        with choose_device():
            model: Decoder | RewardModel = Decoder(DecoderConfig(**values["config"]))
            if values["kind"] == "reward":
                model = RewardModel(model, tokenizer.special[ASSISTANT])
        model.float().load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit its own description ({error}): train again") from error
    return model.eval(), values["info"]


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
            try:
                what_to_do = advice(OWN)
            except (OSError, ValueError) as error:  # its report is lost or damaged
                what_to_do = str(error)
            print(
                f"The shipped models are used: your own run in {OWN} lacks {', '.join(missing)} "
                f"({what_to_do}; naming the folder uses what is there).",
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

_MAY_BE_ABSENT = {"n_inner", "layer_norm_epsilon", "num_key_value_heads", "rope_theta"}
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
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,),
        "auto_map": (None,),
    },
}

# Buffers that old files hold beside the weights: masks, and frequencies that follow from config.json.
_NO_WEIGHTS = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTISED = "gptcore reads plain weights in float16, bfloat16, float32 or float64: get or save the model unquantised"


def _check_plain(tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are numbers only together with a scale."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _PLAIN:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"the weights are quantised ({name} is stored as {kind}): {_QUANTISED}")


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
        CheckpointError: if the architecture is not one of the two presets, if the weights are quantised, or if one
            is missing or left over.
    """
    shape = _shape(config)
    preset, names = shape.preset, _THEIR_NAMES[shape.preset]
    tensors = {name: tensor for name, tensor in tensors.items() if not _NO_WEIGHTS.search(name)}
    _check_plain(tensors)
    # GPT-2 as first published names its tensors without the model's name in front.
    if preset == "gpt2" and "wte.weight" in tensors:
        tensors = {n if n.startswith("lm_head.") else f"transformer.{n}": tensor for n, tensor in tensors.items()}
    head, embedding = f"{names['head']}.weight", f"{names['embedding']}.weight"
    tied = config.get("tie_word_embeddings", preset == "gpt2")
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
    for name in model.state_dict():
        part, kind = name.rsplit(".", 1)
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
            found[name] = tensors[f"{layer}.attn.c_attn.{kind}"].t().chunk(3)[place]
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
        raise CheckpointError(f"the weights are quantised (config.json has quantization_config): {_QUANTISED}")
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
        plain = isinstance(rotary, dict) and all(
            key == "rope_theta" or value in ("default", 1, None) for key, value in rotary.items()
        )
        if not plain:
            raise CheckpointError(f"this model has {name} {rotary}, our rotary positions are plain")
        if rotary.get("rope_theta") is not None:
            shape["rotary_base"] = rotary["rope_theta"]
    try:
        ours = DecoderConfig(preset=preset, **shape)
    except ValueError as error:
        raise CheckpointError(f"config.json describes no model that gptcore can build: {error}") from error
    if config.get("head_dim") not in (None, ours.width // ours.heads):
        raise CheckpointError(f"heads of head_dim {config['head_dim']} features do not fill a width of {ours.width}")
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


def read_transformers(folder: str | Path) -> Decoder:
    """A published model from a folder with `config.json` and `*.safetensors`; its errors as `from_transformers`.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} needs config.json and model.safetensors of a model in transformers' format")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter (adapter_config.json): merge it into the weights first")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged ({error}): download it again") from error
    tensors: dict[str, Tensor] = {}
    for path in files:  # large models come in several
        try:
            more = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
        if twice := tensors.keys() & more.keys():
            raise CheckpointError(f"{path} holds {min(twice)} a second time: keep the files of one model only")
        tensors |= more
    return from_transformers(config, tensors)


# The template of `finetuning.encode_prompt` in the language of the library. A template makes text, in which a mark
# that somebody typed cannot be told from a real one: such a message is refused.
_CHAT_TEMPLATE = """
{%- if tools or documents %}{{ raise_exception("this model knows neither tools nor documents") }}{% endif %}
{%- if not messages %}{{ raise_exception("the conversation is empty") }}{% endif %}
{{- "<|endoftext|>" }}
{%- for message in messages %}
    {%- set role, text = ("user", "assistant")[loop.index0 % 2], message["content"] %}
    {%- if message["role"] != role %}
        {{- raise_exception("user and assistant speak in turn, the user first; there is no system message") }}
    {%- endif %}
    {%- if text is not string %}{{ raise_exception("a message must be text") }}{% endif %}
    {%- for mark in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>") if mark in text %}
        {{- raise_exception("a message must not contain " ~ mark) }}
    {%- endfor %}
    {{- "<|" ~ role ~ "|>" }}
    {{- " " if text and text[0].isascii() and not text[0].isspace() }}
    {{- text }}
    {{- "<|end|>" if role == "assistant" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- if messages[-1]["role"] != "user" %}{{ raise_exception("the last message must be the user's") }}{% endif %}
    {{- "<|assistant|>" }}
{%- endif %}
""".strip()


def write_transformers(folder: str | Path, model: Decoder, tokenizer: Tokenizer) -> None:
    """Write a folder from which `AutoModelForCausalLM`, `AutoTokenizer` and `pipeline` load the model.

    It pads with a token of its own, on the left, and chats in the template of `encode_prompt`. (Their model knows
    no texts apart: a window with several texts in it gets other logits there.)

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
        "pad_token_id": tokenizer.special[PAD],
    }
    # How the library generates if nobody says otherwise: as our chat does.
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation |= {"do_sample": False, "max_new_tokens": GREEDY.max_new_tokens}
    if gpt2:  # one tensor in the file, two names for it
        del tensors["lm_head.weight"]
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END}
    special |= {"pad_token": PAD, "padding_side": "left", "chat_template": _CHAT_TEMPLATE}
    special |= {"clean_up_tokenization_spaces": False, "model_max_length": model.config.context_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=1), encoding="utf-8")
