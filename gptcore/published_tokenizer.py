"""The tokenizer of a published model: the `tokenizers` library computes it, and the chat template's tokens are added.

`load_tokenizer` reads either kind. No chapter builds it: chapter 4 shows that the library and gptcore agree.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from gptcore.tokenizer import BYTE_TO_CHARACTER, SPECIAL_TOKENS, Tokenizer


class PublishedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, with the chat template's tokens added.

    Args:
        text: what its `tokenizer.json` holds.

    Raises:
        ValueError: if it is none, or does not work on bytes as GPT-2's and Llama 3's do.
    """

    def __init__(self, text: str) -> None:
        super().__init__([])
        try:
            self._library = Library.from_str(text)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"this tokenizer.json cannot be read: {error}") from error
        if "ByteLevel" not in json.dumps(json.loads(text).get("decoder")):
            raise ValueError(
                "this tokenizer does not work on bytes, as GPT-2's and Llama 3's do: gptcore cannot use it"
            )
        before = self._library.get_vocab(with_added_tokens=True)
        self._library.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
        self._library.encode_special_tokens = True  # what is typed never becomes one
        self._library.no_padding()
        self._library.no_truncation()
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        added = self._library.get_added_tokens_decoder().keys()
        self.special = {token: vocabulary[token] for token in SPECIAL_TOKENS}
        self.introduced = [self.special[token] for token in SPECIAL_TOKENS if token not in before]
        """Ids that the model does not know yet."""
        # The reward model finds answers by the marks' distance from each other.
        if [self.special[token] - self.special[SPECIAL_TOKENS[1]] for token in SPECIAL_TOKENS[1:]] != [0, 1, 2, 3]:
            raise ValueError("this tokenizer has a token that is called as one of gptcore's, such as <|user|>")
        table = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
        self.token_bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            if number not in added:
                self.token_bytes[number] = bytes(table[character] for character in token)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    @property
    def fingerprint(self) -> str:
        """Short hash of all that decides which ids a text gets."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def normalised(self, text: str) -> str:
        """As it is: what the library does to a text cannot be seen from outside."""
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds a lone surrogate: {error}") from error
        return self._library.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; special tokens stand for none."""
        pieces = []
        for token in ids:
            if not 0 <= token < self.vocabulary_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocabulary_size}")
            pieces.append(self.token_bytes[token])
        return b"".join(pieces)

    def to_json(self) -> str:
        """As the library writes it."""
        return self._library.to_str()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run: gptcore's own, or a published one with the chat template's tokens.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no tokenizer of a run.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return Tokenizer.from_json(text)
    except ValueError:
        if all(json.dumps(token) in text for token in SPECIAL_TOKENS):
            return PublishedTokenizer(text)
        raise
