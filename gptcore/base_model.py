"""A base model to start from: one of gptcore's own runs, or a published one in the format of the `transformers` library.

Used by `own_curriculum`. Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gptcore.checkpoint import load_model
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.published import read_transformers
from gptcore.published_tokenizer import PublishedTokenizer
from gptcore.tokenizer import END_OF_TEXT, Tokenizer


class BaseModel:
    """A model in a folder, and its tokenizer.

    Args:
        folder: a run of gptcore's, or a folder in transformers' format.
        chats: whether a fine-tuned model is wanted rather than a base model.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it cannot be used.
    """

    def __init__(self, folder: Path, chats: bool) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}: give --base the folder of a model")
        self.published = (folder / "config.json").is_file()
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json: without its own tokenizer a model cannot be used")
        self.tokenizer: Tokenizer
        if not self.published:
            self.tokenizer = Tokenizer.load(path)
            model, _ = load_model(folder / f"{'sft' if chats else 'base'}.safetensors", self.tokenizer)
            assert isinstance(model, Decoder)
            self.model = model
            return
        if chats:
            raise ValueError(
                f"the model in {folder} must learn gptcore's chat template first: give --conversations, too"
            )
        tokenizer = self.tokenizer = PublishedTokenizer(path.read_text(encoding="utf-8"))
        end = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
        self.model = with_chat_tokens(read_transformers(folder), tokenizer, end[0] if isinstance(end, list) else end)

    def shape(self, wish: int | None, most: int) -> DecoderConfig:
        """Its shape in a chain: with the context that is wished for, else its own, of a published model at most `most` tokens.

        Raises:
            ValueError: if the wish is more than the model reads.
        """
        own = self.model.config.context_length
        if wish is not None and wish > own:
            raise ValueError(f"the base model reads at most {own} tokens: give --context at most that")
        return self.shortened(wish or (min(own, most) if self.published else own)).config

    def shortened(self, context_length: int | None) -> Decoder:
        """The model with a shorter context, if its positions are not learned: less to compute."""
        shape = self.model.config
        if context_length is None or context_length >= shape.context_length or shape.preset == "gpt2":
            return self.model
        return _rebuilt(self.model, replace(shape, context_length=context_length), {})


def with_chat_tokens(model: Decoder, tokenizer: PublishedTokenizer, end: int | None) -> Decoder:
    """A published model that knows exactly the tokens of its tokenizer, those of the chat template too.

    Rows without a token are left out. New tokens start as the one with which the model ends a text, or as the mean of all.

    Args:
        model: as it was published.
        tokenizer: its own, with the added tokens.
        end: id of its token for the end of a text.
    """
    size, known = tokenizer.vocabulary_size, model.config.vocabulary_size
    rows: dict[str, Tensor] = {}
    for name in ("embedding.weight", "head.weight"):
        old = model.state_dict()[name]
        start = old[end] if end is not None and 0 <= end < known else old.mean(dim=0)
        rows[name] = torch.cat((old[:size], start.expand(max(0, size - known), -1)))
        rows[name][tokenizer.introduced] = start
    shape = replace(model.config, vocabulary_size=size, separator=tokenizer.special[END_OF_TEXT])
    return _rebuilt(model, shape, rows)


def _rebuilt(model: Decoder, shape: DecoderConfig, changed: dict[str, Tensor]) -> Decoder:
    with torch.device(model.device):
        other = Decoder(shape)
    other.load_state_dict({**model.state_dict(), **changed})
    return other.eval()
