"""Byte-level byte-pair encoding: text to token ids and back.

Every text is a sequence of bytes, so 256 tokens can write anything, in any language. Byte-pair
encoding then gives frequent neighbours a token of their own, again and again, until the vocabulary
is full: common words become one token, rare ones a few. Papers: Sennrich et al. (arXiv 1508.07909)
for the merges; Radford et al. 2019 for bytes, and for the pattern that keeps merges inside words.

The saved `tokenizer.json` is the format of the `tokenizers` library, which loads it and gives the
same ids.
"""

import hashlib
import heapq
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import regex

# GPT-2's pattern: contractions, words with the space before them, numbers, punctuation, space.
# Chinese writes no spaces; its commonest function words stand in for them, or whole phrases would
# become one token, and a value would be cut differently by each phrase around it (chapter 4 counts how often).
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)|[的是在有用于叫把从]+| ?(?:(?![的是在有用于叫把从])\p{L})+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

END_OF_TEXT, USER, ASSISTANT, END, PAD = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, USER, ASSISTANT, END, PAD)

DEFAULT_VOCABULARY_SIZE = 4096
"""Short sequences, and the tokens that are used still frequent enough to be learned (chapter 4)."""

Pair = tuple[int, int]


def split_words(text: str) -> list[str]:
    """Cut a text where no merge may cross; the pieces joined give the text again."""
    return regex.findall(PATTERN, text)


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of `pair`, from left to right, by `new_id`."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


class _Row:
    """Tokens in a row, of which two neighbours can be replaced by one without touching the others.

    Each place knows the places before and after it: a doubly linked list. That makes the time for a word
    proportional to its length, however many merges it takes; a text without spaces is one very long word.
    """

    def __init__(self, words: Iterable[bytes]) -> None:
        self.ids = array("i", [_BORDER])  # words are divided by a border, which no merge crosses
        for word in words:
            self.ids.extend(word)
            self.ids.append(_BORDER)
        self.before = array("i", range(-1, len(self.ids) - 1))
        self.after = array("i", range(1, len(self.ids) + 1))

    def pairs(self) -> Iterator[tuple[Pair, int]]:
        """All neighbours within words, each with the place of the left one."""
        for place, pair in enumerate(pairwise(self.ids)):
            if _BORDER not in pair:
                yield pair, place

    def merge(self, place: int, pair: Pair, new_id: int) -> tuple[int, int] | None:
        """Replace the pair that begins at a place, if it still stands there.

        Returns:
            the places before and after the new token; None if the place holds something else by now.
        """
        second = self.after[place]
        if self.ids[place] != pair[0] or self.ids[second] != pair[1]:
            return None
        left, right = self.before[place], self.after[second]
        self.ids[place], self.ids[second] = new_id, _GONE
        self.after[place], self.before[right] = right, place
        return left, right


_BORDER, _GONE = -1, -2


def learn_merges(texts: Iterable[str], new_tokens: int, after_merge: Callable[[], object] = lambda: None) -> list[Pair]:
    """Byte-pair encoding, algorithm 1 of arXiv 1508.07909, on bytes.

    Again and again the most frequent pair of neighbours becomes a new token; of equally frequent
    pairs the one with the smaller ids. A token is whole characters or pieces of a single one: one
    that began with a whole character and ended inside another would tear names apart. Each different word
    is there once, and only the places that hold the pair are looked at again.

    Args:
        texts: what to learn from.
        new_tokens: how many tokens to make at most; a short text may allow fewer.
        after_merge: called after each merge, for a progress bar.

    Returns:
        the merges in order. Each new token gets the next id, from 256 on.
    """
    word_counts = Counter(word for text in texts for word in split_words(text))
    row = _Row(word.encode() for word in word_counts)
    ids = row.ids
    frequencies = array("q", [0])  # of each place: how often its word occurs
    for word, count in word_counts.items():
        frequencies.extend([count] * (len(word.encode()) + 1))
    pair_counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, array] = defaultdict(lambda: array("i"))  # the places at which a pair stands, or stood
    for pair, place in row.pairs():
        pair_counts[pair] += frequencies[place]
        where[pair].append(place)
    # A heap whose entries may be out of date: one that no longer tells the count is pushed anew.
    heap = [(-frequency, pair) for pair, frequency in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    token_bytes = [bytes([byte]) for byte in range(256)]
    numbers = {token: number for number, token in enumerate(token_bytes)}
    while heap and len(token_bytes) < 256 + new_tokens:
        negative, pair = heapq.heappop(heap)
        if -negative != pair_counts[pair]:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        joined = token_bytes[pair[0]] + token_bytes[pair[1]]
        if not _whole_or_piece(joined):
            continue
        merges.append(pair)
        # "a" + "bc" gives the token that "ab" + "c" has given before.
        new_id = numbers.setdefault(joined, len(token_bytes))
        if new_id == len(token_bytes):
            token_bytes.append(joined)
        changed: set[Pair] = set()
        for place in sorted(where.pop(pair)):  # from left to right: of "aaa" the first two are joined
            neighbours = row.merge(place, pair, new_id)
            if neighbours is None:
                continue
            left, right = neighbours
            for old, new, at in (
                ((ids[left], pair[0]), (ids[left], new_id), left),
                ((pair[1], ids[right]), (new_id, ids[right]), place),
            ):
                if _BORDER not in new:
                    pair_counts[old] -= frequencies[place]
                    pair_counts[new] += frequencies[place]
                    where[new].append(at)
                    changed.add(new)
        pair_counts[pair] = 0
        for new in changed:
            if pair_counts[new] > 0:
                heapq.heappush(heap, (-pair_counts[new], new))
        after_merge()
    return merges


def _whole_or_piece(token: bytes) -> bool:
    """Whether the bytes are whole characters, or pieces of a single one."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return all(0x80 <= byte < 0xC0 for byte in token[1:])  # no character begins after the first byte
    return True


class Tokenizer:
    """Ids 0 to 255 are the bytes, then the merges in order, then the special tokens.

    Args:
        merges: pairs of ids, in the order in which they were learned.
    """

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = [tuple(pair) for pair in merges]
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
    ) -> "Tokenizer":
        """Learn a vocabulary.

        Args:
            texts: what to learn from.
            vocabulary_size: number of ids; fewer if the texts are too short for as many merges.
            after_merge: called after each merge, for a progress bar.

        Raises:
            ValueError: if the size leaves no room for the bytes and the special tokens.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocabulary_size < smallest:
            raise ValueError(f"a byte-level vocabulary needs at least {smallest} ids, got {vocabulary_size}")
        return cls(learn_merges(texts, vocabulary_size - smallest, after_merge))

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.token_bytes) + len(self.special)

    @property
    def fingerprint(self) -> str:
        """Short hash of the merges: two tokenizers that agree in it give the same ids."""
        return hashlib.sha256(json.dumps(self.merges).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens never come out of it, whatever the text says.

        Raises:
            ValueError: if the text holds a lone surrogate, which no UTF-8 can write.
        """
        ids: list[int] = []
        for word in split_words(text):
            if word not in self._words:
                self._words[word] = self._encode_word(word)
            ids += self._words[word]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        try:
            word_bytes = word.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is no valid Unicode: {error}") from error
        row = _Row([word_bytes])
        # Of all pairs that a merge knows, that of the merge learned first; everywhere, then the next.
        where: defaultdict[int, list[int]] = defaultdict(list)  # by rank, the places at which its pair stands, or stood
        for pair, place in row.pairs():
            if pair in self._ranks:
                where[self._ranks[pair]].append(place)
        heap = sorted(where)
        while heap:
            rank = heapq.heappop(heap)
            pair = self.merges[rank]
            for place in sorted(where.pop(rank)):
                neighbours = row.merge(place, pair, self._merged[pair])
                if neighbours is None:
                    continue
                for at, new in (
                    (neighbours[0], (row.ids[neighbours[0]], row.ids[place])),
                    (place, (row.ids[place], row.ids[neighbours[1]])),
                ):
                    if new in self._ranks:
                        if self._ranks[new] not in where:
                            heapq.heappush(heap, self._ranks[new])
                        where[self._ranks[new]].append(at)
        return [token for token in row.ids if token >= 0]

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
        names = ["".join(_BYTE_TO_CHARACTER[byte] for byte in token) for token in self.token_bytes]
        pre_tokenizer = [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [{"id": number, "content": token} | flags for token, number in self.special.items()],
                "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer},
                "post_processor": None,
                "decoder": pre_tokenizer[1] | {"use_regex": True},
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": {name: number for number, name in enumerate(names)},
                    "merges": [[names[left], names[right]] for left, right in self.merges],
                },
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is something else.
        """
        try:
            model = json.loads(text)["model"]
            merges = [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
            tokenizer = cls(merges)
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


_BYTE_TO_CHARACTER = _printable_bytes()
