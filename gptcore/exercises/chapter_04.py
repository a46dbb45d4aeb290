"""Exercises of chapter 4: the tokenizer."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from gptcore import bpe
from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message, close, from_gptcore, plain

Pair = tuple[int, int]
Words = list[tuple[list[int], int]]


def _letters(fresh: Fresh, length: int, alphabet: int = 3) -> list[int]:
    return [97 + fresh.random.randrange(alphabet) for _ in range(length)]


# --- 4.1 -----------------------------------------------------------------------------------------


def check_character_share(answer: Answer, fresh: Fresh) -> None:
    texts = ["é", "aé", "a", "中", "ab", "中文", "a 中", "🌍", "naïve café"]
    texts.append("".join(fresh.random.choice("abc déß中文字的 🌍") for _ in range(fresh.integer(10, 40))))
    for text in texts:
        size = len(text.encode())
        answer.expect(
            (text,),
            (size, size / len(text)),
            {
                "characters were counted, not bytes: one character may take up to four.": (len(text), 1.0),
                "that is two bytes for every character, as in UTF-16; in UTF-8 the number varies.": (
                    len(text.encode("utf-16-le")),
                    len(text.encode("utf-16-le")) / len(text),
                ),
                "that is four bytes for every character, as in UTF-32; in UTF-8 the number varies.": (
                    4 * len(text),
                    4.0,
                ),
                "the ratio is upside down: bytes divided by characters is wanted.": (size, len(text) / size),
                "the second result must be one number for the whole text, the mean over its characters.": (
                    size,
                    [len(character.encode()) for character in text],
                ),
                "`//` cuts the fraction off; the mean may lie between two whole numbers: divide with `/`.": (
                    size,
                    size // len(text),
                ),
                "the mean was rounded to a whole number; it may lie between two.": (size, round(size / len(text))),
                "each different byte was counted once.": lambda: (
                    len(set(text.encode())),
                    len(set(text.encode())) / len(text),
                ),
            },
        )


# --- 4.2 -----------------------------------------------------------------------------------------


def _pairs(words: Words) -> Counter:
    counts: Counter = Counter()
    for ids, frequency in words:
        for pair in pairwise(ids):
            counts[pair] += frequency
    return counts


def check_count_pairs(answer: Answer, fresh: Fresh) -> None:
    cases: list[Words] = [[([1, 2], 1)], [([1, 2], 3)], [([1, 2], 2), ([1, 2], 3)], [([1, 2], 2), ([3, 4], 1)]]
    cases += [[([1, 2, 1, 2], 1)], [([5], 4), ([5, 5, 5], 1)], [([1, 2, 3], 2), ([2, 3, 2, 3], 5)], []]
    cases.append([(_letters(fresh, fresh.integer(1, 8)), fresh.integer(1, 9)) for _ in range(6)])
    for words in cases:
        expected = dict(_pairs(words))
        joined = [i for ids, _ in words for i in ids]
        repeated = [i for ids, frequency in words for i in ids * frequency]
        once: Counter = Counter()
        disjoint: Counter = Counter()
        apart: Counter = Counter()
        reversed_: Counter = Counter()
        for ids, frequency in words:
            for pair in set(pairwise(ids)):
                once[pair] += frequency
                disjoint[pair] += frequency * bpe.merge(ids, pair, -1).count(-1)
            for pair in zip(ids[::2], ids[1::2], strict=False):
                apart[pair] += frequency
            for left, right in pairwise(ids):
                reversed_[right, left] += frequency
        found = answer(words)
        occurring = {pair: n for pair, n in found.items() if plain(n)} if isinstance(found, dict) else {}
        if isinstance(found, dict) and len(occurring) < len(found) and close(occurring, expected):
            continue
        answer.expect(
            (words,),
            expected,
            {
                "each word counts only once, whatever its frequency: a pair in a word that occurs f times occurs f "
                "times, too.": dict(Counter(pair for ids, _ in words for pair in pairwise(ids))),
                "pairs across the border of two words were counted; no merge may cross it.": Either(
                    dict(Counter(pairwise(joined))), dict(Counter(pairwise(repeated)))
                ),
                "a later word overwrites what was counted before: add to the count, `counts[pair] += ...`.": {
                    pair: frequency for ids, frequency in words for pair in pairwise(ids)
                },
                "a pair that stands in a word twice counts twice.": dict(once),
                "occurrences that overlap count, too: 5 5 5 holds the pair (5, 5) twice.": dict(disjoint),
                "only every second pair was looked at: the second token of a pair is also the first of the next.": dict(
                    apart
                ),
                "the pairs are the wrong way round: the left token comes first.": dict(reversed_),
            },
        )


# --- 4.3 -----------------------------------------------------------------------------------------


def _merge_from_right(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    turned = bpe.merge(ids[::-1], (pair[1], pair[0]), new_id)
    return turned[::-1]


def _merge_overlapping(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    merged = list(ids)
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            merged[i], merged[i + 1] = new_id, -1
    return [token for token in merged if token != -1]


def check_merge(answer: Answer, fresh: Fresh) -> None:
    cases = [([], (1, 2)), ([1, 2], (1, 2)), ([1, 2, 1, 2, 1], (1, 2)), ([5, 5, 5], (5, 5)), ([1], (1, 1))]
    cases += [([2, 5, 5, 5, 5, 3], (5, 5)), ([1, 1, 2, 2], (2, 1))]
    cases += [(_letters(fresh, 20, 2), (97, 97)), (_letters(fresh, 30), (97, 98))]
    for ids, pair in cases:
        expected = bpe.merge(ids, pair, 256)
        places = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == pair]
        answer.expect(
            (ids, pair, 256),
            expected,
            {
                "a token was used for two pairs: in `a a a` the pair `a a` can be replaced only once, and the third "
                "`a` stays.": lambda: _merge_overlapping(ids, pair, 256),
                "pairs were replaced from right to left; with three equal tokens that gives another result than from "
                "left to right.": lambda: _merge_from_right(ids, pair, 256),
                "only the first occurrence was replaced.": lambda: ids[: places[0]] + [256] + ids[places[0] + 2 :],
                "the last token is lost.": expected[: -1 if expected[-1:] != [256] else None],
                "both tokens of the pair were replaced: one new token stands for the two.": lambda: [
                    part for token in expected for part in ([256, 256] if token == 256 else [token])
                ],
                "the second token of the pair is still there. `i += 1` does not help in a `for` loop, which sets i anew in "
                "every round; use `while`.": Either(
                    [part for token in expected for part in ([256, pair[1]] if token == 256 else [token])],
                    [256 if i in places else token for i, token in enumerate(ids)],
                    [256 if i in places else token for i, token in enumerate(ids[:-1])],
                ),
            },
        )


# --- 4.4 -----------------------------------------------------------------------------------------


_THREE_EQUAL = (
    "with three equal ids in a row the replacement went wrong: it goes from left to right, and no id belongs to two "
    "pairs. Test your merge on `a a a` (exercise 4.3)."
)


def _apply(
    ids: list[int],
    merges: list[Pair],
    pick: Callable[[list[Pair]], Pair],
    first_id: int = 256,
    everywhere: bool = True,
    merge: Callable[[list[int], Pair, int], list[int]] = bpe.merge,
) -> list[int]:
    ids = list(ids)
    while there := [pair for pair in pairwise(ids) if pair in merges]:
        pair = pick(there)
        new_id = first_id + merges.index(pair)
        if everywhere:
            ids = merge(ids, pair, new_id)
        else:
            place = list(pairwise(ids)).index(pair)
            ids[place : place + 2] = [new_id]
    return ids


def check_apply_merges(answer: Answer, fresh: Fresh) -> None:
    cases: list[tuple[list[int], list[Pair]]] = [
        ([1, 2], []),
        ([1, 2, 3], [(1, 2)]),
        ([1, 2, 3], [(1, 2), (2, 3)]),
        ([1, 2, 3], [(2, 3), (1, 2)]),
        ([1, 1, 1], [(1, 1)]),
        ([1, 2, 3, 1, 2], [(2, 3), (1, 2)]),
        ([1, 2, 3, 4], [(1, 2), (3, 4), (256, 3)]),
        ([1, 2, 1, 2], [(1, 2), (256, 256)]),
        ([1, 2, 3, 4], [(1, 2), (2, 3), (256, 3), (258, 4)]),
        ([1, 1, 1, 1, 1], [(1, 1), (256, 256)]),
    ]
    for length in (8, 20):
        learned = _learn([(_letters(fresh, 60), 1)], 8)
        cases.append((_letters(fresh, length), learned))
    for ids, merges in cases:

        def learned_first(there: list[Pair], merges: list[Pair] = merges) -> Pair:
            return min(there, key=merges.index)

        def longest(there: list[Pair], merges: list[Pair] = merges) -> Pair:
            def letters(token: int) -> int:
                return 1 if token < 256 else sum(map(letters, merges[token - 256]))

            return max(there, key=lambda pair: letters(pair[0]) + letters(pair[1]))

        expected = _apply(ids, merges, learned_first)
        single = list(ids)
        for number, pair in enumerate(merges):
            for i in range(len(single) - 1):
                if (single[i], single[i + 1]) == pair:
                    single[i : i + 2] = [256 + number]
                    break
        bytes_only = ids
        for number, pair in enumerate(merges):
            if max(pair) < 256:
                bytes_only = bpe.merge(bytes_only, pair, 256 + number)
        numbered = ids
        for number, pair in enumerate(merges):
            numbered = bpe.merge(numbered, pair, number)
        answer.expect(
            (ids, merges),
            expected,
            {
                "the merge learned first has priority, not the leftmost pair, the most frequent one or the one that makes "
                "the longest token.": Either(
                    lambda: _apply(ids, merges, lambda there: there[0]),
                    lambda: _apply(ids, merges, lambda there: there[0], everywhere=False),
                    lambda: _apply(ids, merges, lambda there: max(there, key=there.count)),
                    lambda: _apply(ids, merges, longest),
                ),
                "the merges were applied from the last learned to the first.": lambda: _apply(
                    ids, merges, lambda there: max(there, key=merges.index)
                ),
                "each merge was applied only once; every occurrence of its pair must be replaced.": single,
                "merges of tokens that are merges themselves were left out.": bytes_only,
                _THREE_EQUAL: Either(
                    lambda: _apply(ids, merges, learned_first, merge=_merge_overlapping),
                    lambda: _apply(ids, merges, learned_first, merge=_merge_from_right),
                ),
                "the new ids begin at 256: merge number i makes the token 256 + i.": Either(
                    lambda: _apply(ids, merges, learned_first, first_id=257),
                    lambda: _apply(ids, merges, learned_first, first_id=0),
                    numbered,
                ),
                "nothing was merged.": list(ids) if list(ids) != expected else None,
            },
        )


# --- 4.5 -----------------------------------------------------------------------------------------


def _learn(words: Words, count: int, fault: str = "") -> list[Pair]:
    words = [(list(ids), 1 if fault == "frequency" else frequency) for ids, frequency in words]
    merge = {"overlapping": _merge_overlapping, "from right": _merge_from_right}.get(fault, bpe.merge)
    merges: list[Pair] = []
    counts = _pairs(words)
    while len(merges) < count:
        if fault != "stale":
            counts = _pairs(words)
        else:
            counts = Counter({pair: n for pair, n in counts.items() if pair not in merges})
        if not counts:
            break
        sign = -1 if fault == "ties" else 1
        pair = min(counts, key=lambda pair: (-counts[pair], sign * pair[0], sign * pair[1]))
        if fault == "rarest":
            pair = min(counts, key=lambda pair: (counts[pair], pair))
        if fault == "single" and counts[pair] < 2:
            break
        merges.append(pair)
        new_id = (256 if fault == "257" else 255) + len(merges)
        if fault != "kept":
            words = [(merge(ids, pair, new_id), frequency) for ids, frequency in words]
    return merges


def check_learn_merges(answer: Answer, fresh: Fresh) -> None:
    cases: list[tuple[Words, int]] = [
        ([([97, 98], 2)], 1),
        ([([97, 98], 1), ([98, 99], 5)], 1),
        ([([97, 98, 97, 98], 1)], 2),
        ([([97, 97, 97, 104], 1)], 2),
        ([([97, 98, 99], 3), ([98, 99], 1)], 2),
        ([([99, 98], 2), ([97, 98], 2)], 2),
        ([([97], 9)], 3),
    ]
    for number in (4, 12):
        words = [(_letters(fresh, fresh.integer(1, 9), 4), fresh.integer(1, 20)) for _ in range(number)]
        cases.append((words, number))
    for words, count in cases:
        expected = _learn(words, count)
        names = {
            "frequency": "the frequencies of the words were left out.",
            "ties": "of equally frequent pairs take the one with the smaller ids.",
            "stale": "the pairs were counted once at the beginning. After each merge there are new neighbours: count "
            "anew.",
            "kept": "the same pair was taken again: the new words, with the pair replaced, were not stored.",
            "257": "the first new id is 256, not 257.",
            "overlapping": _THREE_EQUAL,
            "from right": _THREE_EQUAL,
            "rarest": "the rarest pair was taken; the most frequent one is wanted.",
            "single": "merges stopped at a pair that occurs once; here it counts, too, as long as there are pairs.",
        }
        answer.expect(
            (words, count),
            expected,
            by_message(names, lambda fault: _learn(words, count, fault)),
        )


EXERCISES = (
    Exercise(
        number="4.1",
        title="Bytes are not characters",
        minutes=5,
        difficulty=1,
        task="""\
Before you write anything, predict how many bytes these take in UTF-8: `Lima`, `é`, `秘鲁`, `🌍`. Then write a
function that returns two numbers, and compare: how many bytes the text has in UTF-8, and how many bytes that makes
per character on average. For `aé` these are 3 and 1.5.""",
        stub='''\
def bytes_of(text):
    """Two numbers: how many bytes a text has in UTF-8, and how many that makes per character on average."""
    ...''',
        demo="""\
for text in ("Lima", "é", "秘鲁", "🌍"):
    print(text, bytes_of(text))""",
        checker=check_character_share,
        hints=(
            "`len(text)` counts characters. What does `text.encode()` give?",
            "The bytes are `len(text.encode())`, the mean is `len(text.encode()) / len(text)`.",
        ),
        solution='''\
def bytes_of(text):
    """Two numbers: how many bytes a text has in UTF-8, and how many that makes per character on average."""
    size = len(text.encode("utf-8"))
    return size, size / len(text)''',
        praise="A model on bare bytes would have to read Chinese three times as long as its number of characters; "
        "merges give that back.",
    ),
    Exercise(
        number="4.2",
        title="Count the pairs",
        minutes=10,
        difficulty=2,
        task="""\
Every round of byte-pair encoding begins with a count. `words` is a list of `(ids, frequency)`: the ids of a word,
and how often the word occurs in the text. Return a dictionary that gives for each pair of neighbours, `(left,
right)`, how often it occurs in the whole text. Occurrences that overlap count, too: 5 5 5 holds (5, 5) twice. No
pair crosses from one word into another. Count by hand for the example in the last line before you run it.""",
        stub='''\
def count_pairs(words):
    """How often each pair of neighbours occurs: {(left, right): count}."""
    ...''',
        demo="print(count_pairs([([1, 2, 1, 2], 3), ([2, 1], 1)]))",
        checker=check_count_pairs,
        hints=(
            "A word of n ids has n - 1 pairs, and each of them counts `frequency` times.",
            "`for pair in zip(ids, ids[1:])` goes through the pairs.",
        ),
        solution='''\
from collections import Counter
from itertools import pairwise


def count_pairs(words):
    """How often each pair of neighbours occurs: {(left, right): count}."""
    counts = Counter()
    for ids, frequency in words:
        for pair in pairwise(ids):
            counts[pair] += frequency
    return counts''',
        praise="Counting words with their frequencies instead of the raw text is what makes learning a vocabulary "
        "take seconds.",
    ),
    Exercise(
        number="4.3",
        title="Find the bug: a merge that stutters",
        minutes=10,
        difficulty=2,
        task="""\
`merge` should replace each occurrence of a pair, from left to right, by a new id. It works for `banana`. But the last
lines put a drawn-out *aaah* through it, and what comes back is longer than what went in: the tokenizer has made up
a letter. Find out when, and repair it.""",
        stub='''\
def merge(ids, pair, new_id):
    """Replace each occurrence of `pair`, from left to right, by `new_id`."""
    merged = list(ids)
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            merged[i] = new_id
            merged[i + 1] = None
    return [token for token in merged if token is not None]''',
        demo="""\
for before, double in (("banana", "an"), ("aaah", "aa")):
    after = merge(list(before.encode()), tuple(double.encode()), 256)
    print(before, "->", after, "->", "".join(double if number == 256 else chr(number) for number in after))""",
        checker=check_merge,
        hints=(
            "Go through `a a a h` by hand. Which pairs does the loop find, and do they share a token?",
            "After a replacement the next pair begins two places on, not one. A `while` loop can jump.",
        ),
        solution=from_gptcore(bpe.merge, imports="from collections.abc import Sequence\n\nPair = tuple[int, int]"),
        praise="A tokenizer must give back every text exactly. Test it with the repetitive and the odd, not with words "
        "that you would think of.",
    ),
    Exercise(
        number="4.4",
        title="Encode a word",
        minutes=15,
        difficulty=3,
        task="""\
`merges` is a list of pairs in the order in which they were learned; merge number i turns its pair into the token
256 + i. Encode a word, given as ids of bytes: as long as there is a pair that some merge knows, replace it, and
always that of the merge that was learned **first**. Predict by hand what becomes of 1 2 3 with the merges (2, 3) and
(1, 2).""",
        stub='''\
def apply_merges(ids, merges):
    """The ids of a word after all merges, those learned first before the others."""
    ...''',
        demo="print(apply_merges([1, 2, 3], [(2, 3), (1, 2)]))",
        checker=check_apply_merges,
        hints=(
            "A later merge can only use tokens that earlier ones have made. So what happens if you simply go through "
            "the merges in their order?",
            "For each merge, replace all occurrences of its pair from left to right (exercise 4.3), then go to the "
            "next merge.",
        ),
        solution='''\
from gptcore.bpe import merge


def apply_merges(ids, merges):
    """The ids of a word after all merges, those learned first before the others."""
    for number, pair in enumerate(merges):
        ids = merge(ids, pair, 256 + number)
    return list(ids)''',
        praise="Encoding repeats the history of the vocabulary: that is why a text is always cut as it was when the "
        "merges were learned.",
    ),
    Exercise(
        number="4.5",
        title="Project: learn a vocabulary",
        minutes=30,
        difficulty=4,
        task="""\
The whole algorithm: `words` as in 4.2, `(ids, frequency)` with ids of bytes. Again and again count the pairs, take
the most frequent one (of equally frequent ones the pair with the smaller ids), make it the token 256, 257, ..., and
replace it in all words. Stop after `count` merges or when no pair is left. Return the merges as a list of pairs.
Every merge makes a new id here; what the chapter does when two merges have the same spelling is left out. Speed does
not matter.""",
        stub='''\
def learn_vocabulary(words, count):
    """The first `count` merges of byte-pair encoding, in order: a list of pairs of ids."""
    ...''',
        demo="""\
# The example of arXiv 1508.07909: first e + s, then es + t (right: (101, 115), (256, 116), (108, 111), (258, 119)).
few_words = [(list(b"low"), 5), (list(b"lower"), 2), (list(b"newest"), 6), (list(b"widest"), 3)]
print(learn_vocabulary(few_words, 4))""",
        checker=check_learn_merges,
        seconds=30.0,
        hints=(
            "Use what you wrote in 4.2 and 4.3; the loop around them has five lines.",
            "`min(counts, key=lambda pair: (-counts[pair], pair))` is the most frequent pair with the smallest ids.",
            "After each merge, replace its pair in the ids of every word, and count anew.",
        ),
        solution='''\
from collections import Counter
from itertools import pairwise

from gptcore.bpe import merge


def learn_vocabulary(words, count):
    """The first `count` merges of byte-pair encoding, in order: a list of pairs of ids."""
    words = [(list(ids), frequency) for ids, frequency in words]
    merges = []
    while len(merges) < count:
        counts = Counter()
        for ids, frequency in words:
            for pair in pairwise(ids):
                counts[pair] += frequency
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [(merge(ids, best, 256 + len(merges)), frequency) for ids, frequency in words]
        merges.append(best)
    return merges''',
        praise="That is how the vocabularies of GPT-2 to GPT-4 were made; the rest is speed, and rules about where "
        "words end.",
    ),
)
