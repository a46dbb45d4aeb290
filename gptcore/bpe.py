"""Byte-pair encoding: learn which neighbours belong together, and join them.

Every text is a sequence of bytes, so 256 tokens can write anything, in any language. Byte-pair
encoding then gives frequent neighbours a token of their own, again and again, until the vocabulary
is full: common words become one token, rare ones a few. Built step by step in notebooks/04_tokenizer.ipynb. Papers:
Sennrich et al. (arXiv 1508.07909) for the merges; Radford et al. 2019 for bytes, and for the pattern that keeps
merges inside words.
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import regex

# GPT-2's pattern: contractions, words with the space before them, numbers, punctuation, space.
# Chinese writes no spaces; its commonest function words stand in for them, or whole phrases would
# become one token, and a value would be cut differently by each phrase around it (chapter 4 counts how often).
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)|[的是在有用于叫把从]+| ?(?:(?![的是在有用于叫把从])\p{L})+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

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


_BORDER, _GONE = -1, -2  # in place of an id


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
        the merges in order. Each new token gets the next id, from 256 on; a merge that spells a token again, none.
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


def apply_merges(word: str, merges: Sequence[Pair], ranks: Mapping[Pair, int], merged: Mapping[Pair, int]) -> list[int]:
    """Cut a word into tokens: join the pair whose merge was learned first, everywhere, then the next.

    Args:
        word: where merges may not cross a border, see `split_words`.
        merges: pairs in the order in which they were learned.
        ranks: the place of each pair in it.
        merged: the id that each pair becomes.

    Raises:
        ValueError: if the word holds a lone surrogate, which no UTF-8 can write.
    """
    try:
        row = _Row([word.encode()])
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is no valid Unicode: {error}") from error
    where: defaultdict[int, list[int]] = defaultdict(list)  # by rank, the places at which its pair stands, or stood
    for pair, place in row.pairs():
        if pair in ranks:
            where[ranks[pair]].append(place)
    heap = sorted(where)
    while heap:
        rank = heapq.heappop(heap)
        pair = merges[rank]
        for place in sorted(where.pop(rank)):
            neighbours = row.merge(place, pair, merged[pair])
            if neighbours is None:
                continue
            left, right = neighbours
            for at, new in ((left, (row.ids[left], row.ids[place])), (place, (row.ids[place], row.ids[right]))):
                if new in ranks:
                    if ranks[new] not in where:
                        heapq.heappush(heap, ranks[new])
                    where[ranks[new]].append(at)
    return [token for token in row.ids if token >= 0]
