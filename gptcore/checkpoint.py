"""Checkpoints: models and training states on disk, as safetensors with JSON in the header.

One file holds one thing whole: weights and everything needed to use them. It is written beside its
destination and renamed, so that a full disk or a power cut leaves the old file untouched. Weights in the format of
the `transformers` library are the business of `interchange`. No chapter builds it, all load from it.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.files import ASSETS, RUNS
from gptcore.machine import choose_device
from gptcore.published_tokenizer import load_tokenizer
from gptcore.reward import RewardModel
from gptcore.runs import DECODERS, advice
from gptcore.tokenizer import ASSISTANT, Tokenizer

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


_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTISED = "gptcore reads plain weights in float16, bfloat16, float32 or float64: get or save the model unquantised"


def check_plain(tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are numbers only together with a scale.

    Raises:
        CheckpointError: if there are such.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _PLAIN:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"the weights are quantised ({name} is stored as {kind}): {QUANTISED}")


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
            f"{path} was trained with another vocabulary than the tokenizer.json given: "
            "keep the files of one run together"
        )
    check_plain(tensors)
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
    """The folder of the models used where none is named: the reader's own run if it is whole, else the shipped one.

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
    if stage not in (*STAGES, *DECODERS):
        raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(dict.fromkeys((*STAGES, *DECODERS)))}")
    folder = model_folder() if folder is None else Path(folder)
    if not all((folder / name).is_file() for name in (f"{stage}.safetensors", "tokenizer.json")):
        raise FileNotFoundError(f"there is no {stage} model in {folder}: train one with `python -m gptcore train`")
    return folder / f"{stage}.safetensors"


def load_stage(stage: str, folder: str | Path | None = None) -> tuple[Any, Tokenizer]:
    """The model of a stage (a `RewardModel` for `reward`, else a `Decoder`) and its tokenizer, where `find_stage` finds them; errors as there and in `load_model`."""
    path = find_stage(stage, folder)
    tokenizer = load_tokenizer(path.with_name("tokenizer.json"))
    return load_model(path, tokenizer)[0], tokenizer
