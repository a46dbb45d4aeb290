"""Answers to the exercises of chapter 4: others that are right, and wrong ones with what they are told."""

from answers import Answers

_LEARN = """
def learn(words, count):
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
            "comes first in the text": """
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
        right=[_LEARN],
        wrong={
            "frequencies of the words": _LEARN.replace("+ frequency", "+ 1"),
            "take the one with the smaller ids": _LEARN.replace("== most)[0]", "== most)[-1]"),
            "there are new neighbours": """
from collections import Counter

def learn(words, count):
    counts = Counter()
    for ids, frequency in words:
        for pair in zip(ids, ids[1:]):
            counts[pair] += frequency
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:count]
""",
            "rarest pair": _LEARN.replace("max(counts.values())", "min(counts.values())"),
        },
    ),
}
