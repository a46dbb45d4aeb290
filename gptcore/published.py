"""Published models: folders in the format of the `transformers` library, read and written.

The names and shapes are the business of `interchange`, the files that of this module; notebooks/12_beyond.ipynb uses
both. The library need not be installed.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcore.checkpoint import CheckpointError
from gptcore.decoder import Decoder
from gptcore.generation import GREEDY
from gptcore.interchange import as_transformers, from_transformers
from gptcore.tokenizer import END, END_OF_TEXT, PAD, Tokenizer


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


# The template of `chat_template.encode_prompt` in the language of the library. A template makes text, in which a mark
# that somebody typed cannot be told from a real one: such a message is refused.
_CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


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
    if gpt2 or model.config.tied:  # one tensor in the file, two names for it
        del tensors["lm_head.weight"]
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END}
    special |= {
        "pad_token": PAD,
        "padding_side": "left",
        "chat_template": _CHAT_TEMPLATE.read_text(encoding="utf-8").strip(),
    }
    special |= {"clean_up_tokenization_spaces": False, "model_max_length": model.config.context_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=1), encoding="utf-8")
