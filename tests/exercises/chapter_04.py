"""Answers to the exercises of chapter 4: others that are right, and wrong ones with what they are told."""

from answers import Answers

_LEARN = """
def learn_vocabulary(words, count):
    merges = []
    words = [[list(ids), frequency] for ids, frequency in words]
    for new in range(256, 256 + count):
        counts = {}
        for ids, frequency in words:
            for i in range(1, len(ids)):
                pair = ids[i - 1], ids[i]
                counts[pair] = counts.get(pair, 0) + frequency
        if not counts:
            return merges
        most = max(counts.values())
        best = sorted(pair for pair in counts if counts[pair] == most)[0]
        merges.append(list(best))
        for word in words:
            old, word[0] = word[0], []
            while old:
                if tuple(old[:2]) == best:
                    word[0].append(new)
                    del old[:2]
                else:
                    word[0].append(old.pop(0))
    return merges
"""

_ENCODE = """
def replace(ids, pair, new):
    result = []
    for token in ids:
        if result and (result[-1], token) == tuple(pair):
            result[-1] = new
        else:
            result.append(token)
    return result

def apply_merges(ids, merges):
    ids = list(ids)
    while True:
        ranks = [merges.index(p) for p in zip(ids, ids[1:]) if p in merges]
        if not ranks:
            return ids
        first = min(ranks)
        ids = replace(ids, merges[first], 256 + first)
"""

_STUTTER = """
def stutter(ids, pair, new):
    found = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == tuple(pair)]
    return [new if i in found else t for i, t in enumerate(ids) if i in found or i - 1 not in found]
"""

_FROM_RIGHT = """
def from_right(ids, pair, new):
    ids = list(ids)
    for i in range(len(ids) - 2, -1, -1):
        if tuple(ids[i : i + 2]) == tuple(pair):
            ids[i : i + 2] = [new]
    return ids
"""

_APPLY = """
def apply_merges(ids, merges):
    for number, pair in enumerate(merges):
        ids = {}(ids, pair, 256 + number)
    return ids
"""

_PICK = """
from collections import Counter

def apply_merges(ids, merges):
    spelled = {{i: 1 for i in range(256)}}
    for number, (left, right) in enumerate(merges):
        spelled[256 + number] = spelled[left] + spelled[right]
    ids = list(ids)
    while there := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        pair = {}
        new = 256 + merges.index(pair)
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [new]
            i += 1
    return ids
"""

_LEARN_WITH = """
from collections import Counter

def learn_vocabulary(words, count):
    merges = []
    for new in range({first}, {first} + count):
        counts = Counter()
        for ids, frequency in words:
            for pair in zip(ids, ids[1:]):
                counts[pair] += frequency
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [({merge}(ids, best, new), frequency) for ids, frequency in words]
    return merges
"""

_REPLACE = """
def replace(ids, pair, new):
    result, i = [], 0
    while i < len(ids):
        here = tuple(ids[i : i + 2]) == tuple(pair)
        result.append(new if here else ids[i])
        i += 2 if here else 1
    return result
"""

ANSWERS = {
    "4.1": Answers(
        right=[
            """
def bytes_of(text):
    sizes = [1 + (ord(c) > 0x7F) + (ord(c) > 0x7FF) + (ord(c) > 0xFFFF) for c in text]
    return [sum(sizes), sum(sizes) / len(sizes)]
"""
        ],
        wrong={
            "characters were counted": "def bytes_of(text):\n    return len(text), 1.0",
            "as in UTF-16": "def bytes_of(text):\n    return 2 * len(text), 2.0",
            "upside down": "def bytes_of(text):\n    return len(text.encode()), len(text) / len(text.encode())",
            "2 results are expected": "def bytes_of(text):\n    return len(text.encode())",
            "one number for the whole text": """
def bytes_of(text):
    return len(text.encode()), [len(character.encode()) for character in text]
""",
            "cuts the fraction off": "def bytes_of(text):\n    return len(text.encode()), len(text.encode()) // len(text)",
            "mean was rounded": "def bytes_of(text):\n    return len(text.encode()), round(len(text.encode()) / len(text))",
        },
    ),
    "4.2": Answers(
        right=[
            """
def count_pairs(words):
    counts = {}
    for ids, frequency in words:
        for i in range(len(ids) - 1):
            pair = (ids[i], ids[i + 1])
            counts[pair] = counts.get(pair, 0) + frequency
    return counts
"""
        ],
        wrong={
            "counts only once, whatever its frequency": """
from collections import Counter

def count_pairs(words):
    return Counter(pair for ids, _ in words for pair in zip(ids, ids[1:]))
""",
            "twice counts twice": """
from collections import Counter

def count_pairs(words):
    counts = Counter()
    for ids, frequency in words:
        for pair in set(zip(ids, ids[1:])):
            counts[pair] += frequency
    return counts
""",
            "only every second pair": """
from collections import Counter

def count_pairs(words):
    counts = Counter()
    for ids, frequency in words:
        for i in range(0, len(ids) - 1, 2):
            counts[ids[i], ids[i + 1]] += frequency
    return counts
""",
            "border of two words": """
from collections import Counter

def count_pairs(words):
    everything = [i for ids, frequency in words for i in ids * frequency]
    return Counter(zip(everything, everything[1:]))
""",
            "overwrites what was counted before": """
def count_pairs(words):
    return {pair: frequency for ids, frequency in words for pair in zip(ids, ids[1:])}
""",
            "occurrences that overlap count": """
from collections import Counter

def count_pairs(words):
    counts = Counter()
    for ids, frequency in words:
        last = {}
        for i, pair in enumerate(zip(ids, ids[1:])):
            if last.get(pair, -2) < i - 1:
                counts[pair] += frequency
                last[pair] = i
    return counts
""",
            "the wrong way round": """
from collections import Counter

def count_pairs(words):
    counts = Counter()
    for ids, frequency in words:
        for pair in zip(ids[1:], ids):
            counts[pair] += frequency
    return counts
""",
        },
    ),
    "4.3": Answers(
        right=[
            """
def merge(ids, pair, new_id):
    result = []
    free = False  # whether the last token of the result may begin a pair
    for token in ids:
        if free and (result[-1], token) == pair:
            result[-1], free = new_id, False
        else:
            result.append(token)
            free = True
    return result
"""
        ],
        wrong={
            "used for two pairs": """
def merge(ids, pair, new_id):
    found = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == pair]
    return [new_id if i in found else t for i, t in enumerate(ids) if i in found or i - 1 not in found]
""",
            "from right to left": """
def merge(ids, pair, new_id):
    ids = list(ids)
    i = len(ids) - 2
    while i >= 0:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new_id]
            i -= 1
        i -= 1
    return ids
""",
            "a `for` loop, which sets i anew": """
def merge(ids, pair, new_id):
    merged = []
    for i in range(len(ids)):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 1
        else:
            merged.append(ids[i])
    return merged
""",
            "use `while`": """
def merge(ids, pair, new_id):
    merged = []
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
    return merged
""",
            "only the first occurrence": """
def merge(ids, pair, new_id):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return ids[:i] + [new_id] + ids[i + 2 :]
    return ids
""",
            "last token is lost": """
def merge(ids, pair, new_id):
    result, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            result.append(new_id)
            i += 2
        else:
            result.append(ids[i])
            i += 1
    return result
""",
        },
    ),
    "4.4": Answers(
        right=[_ENCODE],
        wrong={
            "the merge learned first has priority": _PICK.format(
                "max(there, key=lambda p: spelled[p[0]] + spelled[p[1]])"
            ),
            "the most frequent one": _PICK.format("Counter(there).most_common(1)[0][0]"),
            "Test your merge on `a a a`": _STUTTER + _APPLY.format("stutter"),
            "goes from left to right": _FROM_RIGHT + _APPLY.format("from_right"),
            "makes the token 256 + i": _ENCODE.replace("256 + first", "first"),
            "the new ids begin at 256": _REPLACE + _APPLY.replace("256 + ", "").format("replace"),
            "not the leftmost pair": """
def apply_merges(ids, merges):
    ids = list(ids)
    changed = True
    while changed:
        changed = False
        for i in range(len(ids) - 1):
            if (ids[i], ids[i + 1]) in merges:
                ids[i : i + 2] = [256 + merges.index((ids[i], ids[i + 1]))]
                changed = True
                break
    return ids
""",
            "from the last learned": _ENCODE.replace("min(ranks)", "max(ranks)"),
            "applied only once": """
def apply_merges(ids, merges):
    ids = list(ids)
    for number, pair in enumerate(merges):
        for i in range(len(ids) - 1):
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [256 + number]
                break
    return ids
""",
            "merge number i makes the token": _ENCODE.replace("256 + first", "257 + first"),
        },
    ),
    "4.5": Answers(
        right=[_LEARN, _REPLACE + _LEARN_WITH.format(first=256, merge="replace")],
        wrong={
            "frequencies of the words": _LEARN.replace("+ frequency", "+ 1"),
            "take the one with the smaller ids": _LEARN.replace("== most)[0]", "== most)[-1]"),
            "there are new neighbours": """
from collections import Counter

def learn_vocabulary(words, count):
    counts = Counter()
    for ids, frequency in words:
        for pair in zip(ids, ids[1:]):
            counts[pair] += frequency
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:count]
""",
            "Test your merge on `a a a`": _STUTTER + _LEARN_WITH.format(first=256, merge="stutter"),
            "goes from left to right": _FROM_RIGHT + _LEARN_WITH.format(first=256, merge="from_right"),
            "the first new id is 256, not 257": _REPLACE + _LEARN_WITH.format(first=257, merge="replace"),
            "were not stored": "def same(ids, *_):\n    return ids\n" + _LEARN_WITH.format(first=256, merge="same"),
            "rarest pair": _LEARN.replace("max(counts.values())", "min(counts.values())"),
        },
    ),
}
