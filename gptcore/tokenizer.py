"""The tokenizer: text to token ids and back, by byte-pair encoding (`bpe`).

The saved `tokenizer.json` is the format of the `tokenizers` library, which loads it and gives the
same ids. Built step by step in notebooks/04_tokenizer.ipynb.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcore.bpe import PATTERN, Pair, apply_merges, learn_merges, split_words

END_OF_TEXT, USER, ASSISTANT, END, PAD = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, USER, ASSISTANT, END, PAD)

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""All bytes, so that any text can be read, and the special tokens."""

DEFAULT_VOCABULARY_SIZE = 4096
"""Short sequences, and the tokens that are used still frequent enough to be learned (chapter 4)."""


# Characters that keyboards write for others: full-width letters and digits, the wide space, curly apostrophes.
_TYPED_FOR = {chr(ord(c) + 0xFEE0): c for c in map(chr, range(ord("!"), ord("~") + 1)) if c.isalnum() or c in "+-="}
_TYPED_FOR |= {"\u3000": " ", "\u2018": "'", "\u2019": "'", "\u02bb": "'", "\u02bc": "'"}
_TRANSLATION = str.maketrans(_TYPED_FOR)


def normalise(text: str) -> str:
    """One spelling for what looks the same: Unicode's form NFC, and plain letters, digits, spaces and apostrophes.

    "é" may be one character or "e" with an accent after it, and a Chinese keyboard may write "Ｐｅｒｕ": to a model that
    reads bytes those would be different words. Full-width marks stay: Chinese is written with them.
    """
    return unicodedata.normalize("NFC", text.translate(_TRANSLATION))


_CAPITALS = "A-ZÀ-ÖØ-Þ"
# Before each letter of four or more capitals in a row: the `tokenizers` library can put a mark there, but not change
# the letters that it finds, so that it needs a second rule for each letter.
_SHOUTED_LETTER = "|".join(
    f"(?<=[{_CAPITALS}]{{{before}}})(?=[{_CAPITALS}]{{{4 - before}}})".removeprefix(f"(?<=[{_CAPITALS}]{{0}})")
    for before in range(4)
)
_MARK = "\u21ea"
_SHOUTED = re.compile(f"[{_CAPITALS}]{{4,}}")


class Tokenizer:
    """Ids 0 to 255 are the bytes, then the merges in order, then the special tokens.

    Args:
        merges: pairs of ids, in the order in which they were learned.
        folding: characters that are read as others, such as traditional Chinese ones as simplified; with it, words
            shouted in capitals are read in small letters, too. None leaves both as they are.
    """

    def __init__(self, merges: Sequence[Pair], folding: Mapping[str, str] | None = None) -> None:
        self.merges: list[Pair] = [(left, right) for left, right in merges]
        self.folding = folding
        self._folded = str.maketrans(dict(folding or {}))
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.token_bytes = [bytes([byte]) for byte in range(256)]
        self._merged: dict[Pair, int] = {}
        ids = {token: number for number, token in enumerate(self.token_bytes)}
        for left, right in self.merges:
            joined = self.token_bytes[left] + self.token_bytes[right]
            if joined not in ids:
                ids[joined] = len(self.token_bytes)
                self.token_bytes.append(joined)
            self._merged[left, right] = ids[joined]
        first = len(self.token_bytes)
        self.special = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        self._words: dict[str, list[int]] = {}  # words already encoded: texts repeat theirs

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int = DEFAULT_VOCABULARY_SIZE,
        after_merge: Callable[[], object] = lambda: None,
        folding: Mapping[str, str] | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary.

        Args:
            texts: what to learn from.
            vocabulary_size: number of ids; fewer if the texts are too short for as many merges.
            after_merge: called after each merge, for a progress bar.
            folding: as the class takes it.

        Raises:
            ValueError: if the size leaves no room for the bytes and the special tokens.
        """
        if vocabulary_size < SMALLEST_VOCABULARY:
            raise ValueError(f"a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} ids, got {vocabulary_size}")
        read = map(cls([], folding).normalised, texts)
        return cls(learn_merges(read, vocabulary_size - SMALLEST_VOCABULARY, after_merge), folding)

    def normalised(self, text: str) -> str:
        """What a text is read as; with folding "WHAT IS THE CAPITAL" as "what IS THE capital": names like USA are short."""
        text = normalise(text)
        if self.folding is None:
            return text
        text = _SHOUTED.sub(lambda shouted: shouted[0].lower(), text)
        return text if text.isascii() else text.translate(self._folded)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.token_bytes) + len(self.special)

    @property
    def fingerprint(self) -> str:
        """Short hash of merges and folding: two tokenizers that agree in it give the same ids."""
        told = self.merges if self.folding is None else [self.merges, dict(self.folding)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, normalised. Special tokens never come out of it, whatever the text says.

        Raises:
            ValueError: if the text holds a lone surrogate, which no UTF-8 can write.
        """
        ids: list[int] = []
        for word in split_words(self.normalised(text)):
            if word not in self._words:
                self._words[word] = apply_merges(word, self.merges, self._ranks, self._merged)
            ids += self._words[word]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; special tokens stand for none.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        pieces = []
        for token in ids:
            if not 0 <= token < self.vocabulary_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocabulary_size}")
            if token < len(self.token_bytes):
                pieces.append(self.token_bytes[token])
        return b"".join(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are not UTF-8 become the sign U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_text(self, token: int) -> str:
        """One token as people read it: its text, or the name of a special token."""
        names = {number: name for name, number in self.special.items()}
        return names.get(token) or self.decode([token])

    def to_json(self) -> str:
        """The tokenizer in the format of the `tokenizers` library."""
        names = ["".join(BYTE_TO_CHARACTER[byte] for byte in token) for token in self.token_bytes]
        pre_tokenizer = [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        unused = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        model: dict[str, Any] = {"type": "BPE"} | dict.fromkeys(unused)
        model |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
        model["vocab"] = {name: number for number, name in enumerate(names)}
        model["merges"] = [[names[left], names[right]] for left, right in self.merges]
        whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
        whole["added_tokens"] = [{"id": number, "content": token} | flags for token, number in self.special.items()]
        normalizers: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": typed}, "content": meant} for typed, meant in _TYPED_FOR.items()
        ]
        normalizers.append({"type": "NFC"})
        if self.folding is not None:  # what `normalised` does, in the library's rules
            capitals = [chr(code) for code in range(128, 256) if re.fullmatch(f"[{_CAPITALS}]", chr(code))]
            quiet = {_MARK + c: c.lower() for c in (*map(chr, range(ord("A"), ord("Z") + 1)), *capitals)}
            normalizers.append({"type": "Replace", "pattern": {"Regex": _SHOUTED_LETTER}, "content": _MARK})
            normalizers += [
                {"type": "Replace", "pattern": {"String": typed}, "content": meant}
                for typed, meant in (quiet | dict(self.folding)).items()
            ]
        whole |= {"normalizer": {"type": "Sequence", "normalizers": normalizers}}
        whole |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer}}
        whole |= {"post_processor": None, "decoder": pre_tokenizer[1] | {"use_regex": True}, "model": model}
        return json.dumps(whole, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is something else.
        """
        try:
            whole = json.loads(text)
            model, rules = whole["model"], whole["normalizer"]["normalizers"]
            merges = [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
            folding = None
            if rules[-1] != {"type": "NFC"}:  # folding follows; the rules of capitals begin with the mark
                folds = rules[rules.index({"type": "NFC"}) + 1 :]
                read = {rule["pattern"].get("String", _MARK): rule["content"] for rule in folds}
                folding = {typed: meant for typed, meant in read.items() if not typed.startswith(_MARK)}
            tokenizer = cls(merges, folding)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"this is no gptcore tokenizer: {error!r}") from error
        if tokenizer.to_json() != text:
            raise ValueError("this tokenizer.json was not written by gptcore: its ids are numbered in another way")
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` written by `save`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is something else.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _printable_bytes() -> dict[int, str]:
    """GPT-2's way of writing any byte as a printable character, which `tokenizer.json` needs."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_TO_CHARACTER = _printable_bytes()
"""How `tokenizer.json` writes each byte."""
