"""Answers to the exercises of chapter 7: others that are right, and wrong ones with what they are told."""

from answers import Answers

_LUCK = """
import math

def by_luck(only_a, only_b, agree):
    n, k = only_a + only_b, max(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)
"""

_MATCHES = """
from collections import Counter

def clipped_matches(candidate, references, n):
    a, *all_of_them = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (candidate, *references))
    b = Counter()
    for other in all_of_them:
        b |= other
    return (a & b).total(), a.total()
"""

_SEARCH = """
import torch
from torch.nn import functional as F

def fit_temperature(logits, targets):
    grid = torch.logspace(LOW, HIGH, 1000)
    losses = [F.cross_entropy(logits / t, targets).item() for t in grid]
    return grid[losses.index(min(losses))].item()
"""

_FIT = """
import torch
from torch.nn import functional as F

def fit_temperature(logits, targets):
    low, high = -3.0, 3.0  # of the logarithm; the section that surely holds the minimum shrinks
    def loss(x):
        return F.cross_entropy(logits.double() / 2.718281828**x, targets).item()
    for _ in range(60):
        a, b = low + 0.382 * (high - low), high - 0.382 * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return 2.718281828 ** ((low + high) / 2)
"""

ANSWERS = {
    "7.1": Answers(
        right=[
            """
import torch

def text_perplexity(batch_means, counts):
    means, weights = torch.tensor(batch_means, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    return (means * weights / weights.sum()).sum().exp().item()
"""
        ],
        wrong={
            "perplexities were averaged. Average": """
import math

def text_perplexity(batch_means, counts):
    return sum(c * math.exp(m) for m, c in zip(batch_means, counts)) / sum(counts)
""",
            "every batch counts alike, however few": """
import math

def text_perplexity(batch_means, counts):
    total = 0
    for m in batch_means:
        total += m
    return math.e ** (total / len(counts))
""",
            "exp of it": """
def text_perplexity(batch_means, counts):
    return sum(m * c for m, c in zip(batch_means, counts)) / sum(counts)
""",
            "number of batches, not of tokens": """
import math

def text_perplexity(batch_means, counts):
    return math.exp(sum(m * c for m, c in zip(batch_means, counts)) / len(counts))
""",
        },
    ),
    "7.2": Answers(
        right=[
            """
import torch

def min_p(probabilities, least):
    logs = probabilities.log()
    # a hair of room, since logarithms are rounded
    keep = logs - logs.max(-1, keepdim=True).values >= torch.tensor(least, dtype=logs.dtype).log() - 1e-6
    logs[~keep] = -torch.inf
    return logs.softmax(-1)
"""
        ],
        wrong={
            "share of the *largest*": """
def min_p(probabilities, least):
    kept = probabilities * (probabilities >= least)
    return kept / kept.sum(-1, keepdim=True)
""",
            "does not sum to 1": """
def min_p(probabilities, least):
    return probabilities * (probabilities >= least * probabilities.amax(-1, keepdim=True))
""",
            "each row has its own": """
def min_p(probabilities, least):
    kept = probabilities * (probabilities >= least * probabilities.max())
    return kept / kept.sum(-1, keepdim=True)
""",
            "changes their ratios": """
import torch

def min_p(probabilities, least):
    top = probabilities.amax(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least * top, -torch.inf).softmax(-1)
""",
            "use dim=-1": """
def min_p(probabilities, least):
    kept = probabilities * (probabilities >= least * probabilities.amax(1, keepdim=True))
    return kept / kept.sum(1, keepdim=True)
""",
            "it changes the ratios": """
def min_p(probabilities, least):
    return (probabilities * (probabilities >= least * probabilities.amax(-1, keepdim=True))).softmax(-1)
""",
        },
    ),
    "7.3": Answers(
        right=[
            """
def clipped_matches(candidate, references, n):
    grams = [" ".join(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
    matches = 0
    for gram in set(grams):
        in_each = [[" ".join(r[i : i + n]) for i in range(len(r) - n + 1)].count(gram) for r in references]
        matches += min(grams.count(gram), max(in_each))
    return [matches, len(grams)]
"""
        ],
        wrong={
            "at most as often as a reference": """
def clipped_matches(candidate, references, n):
    grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
    there = {tuple(r[i : i + n]) for r in references for i in range(len(r) - n + 1)}
    return sum(g in there for g in grams), len(grams)
""",
            "were added up": _MATCHES.replace("b |= other", "b += other"),
            "one behind the other": _MATCHES.replace("*references)", "sum(references, []))"),
            "only the first reference": _MATCHES.replace("*references)", "references[0])"),
            "counted once, in both": """
def clipped_matches(candidate, references, n):
    a, *others = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (candidate, *references))
    return len(a & set().union(*others)), len(a)
""",
            "not of the reference": _MATCHES.replace("a.total()", "b.total()"),
            "must not fall below 0": _MATCHES.replace("a.total()", "len(candidate) - n + 1"),
            "joined without a space": _MATCHES.replace("tuple(w[i : i + n])", "''.join(w[i : i + n])"),
            "n-grams of all lengths": _MATCHES.replace(
                "Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))",
                "Counter(tuple(w[i : i + k]) for k in range(1, n + 1) for i in range(len(w) - k + 1))",
            ),
            "one that was there before": _MATCHES.replace("a.total()", "len(a)"),
            "single words were counted": _MATCHES.replace("    a, *all", "    n = 1\n    a, *all"),
        },
    ),
    "7.4": Answers(
        right=[
            """
from fractions import Fraction
from math import comb

def by_luck(only_a, only_b, agree):
    n, k = only_a + only_b, max(only_a, only_b)
    return min(Fraction(1), 2 * sum(Fraction(comb(n, i), 2**n) for i in range(k, n + 1)))
""",
            """
def by_luck(only_a, only_b, agree):
    n = only_a + only_b
    # the distribution of the number of heads, one throw after another
    chances = [1.0]
    for _ in range(n):
        chances = [(a + b) / 2 for a, b in zip([0.0] + chances, chances + [0.0])]
    gap = abs(only_a - only_b)
    return min(1.0, sum(c for heads, c in enumerate(chances) if abs(n - 2 * heads) >= gap))
""",
        ],
        wrong={
            "count both sides": """
import math

def by_luck(only_a, only_b, agree):
    n, k = only_a + only_b, max(only_a, only_b)
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n
""",
            "even more extreme": """
import math

def by_luck(only_a, only_b, agree):
    n = only_a + only_b
    return min(1.0, 2 * math.comb(n, only_a) / 2**n)
""",
            "at most 1": """
import math

def by_luck(only_a, only_b, agree):
    n, k = only_a + only_b, max(only_a, only_b)
    return 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n
""",
            "leave them out of n": _LUCK.replace("n, k = only_a + only_b", "n, k = only_a + only_b + agree"),
            "not at k + 1": _LUCK.replace("range(k, n + 1)", "range(k + 1, n + 1)"),
            "ends before n": _LUCK.replace("range(k, n + 1)", "range(k, n)"),
            "begin with the larger": _LUCK.replace("max(only_a, only_b)", "only_a"),
            "differ nowhere": _LUCK.replace("return min(", "return n and min("),
            "one given side": """
from fractions import Fraction
from math import comb

def by_luck(only_a, only_b, agree):
    n, k = only_a + only_b, max(only_a, only_b)
    return Fraction(sum(comb(n, i) for i in range(k, n + 1)), 2**n)
""",
            "A simulation only comes near": """
import random

rng = random.Random(0)

def by_luck(only_a, only_b, agree):
    n, hits = only_a + only_b, 0
    for _ in range(2000):
        heads = sum(rng.random() < 0.5 for _ in range(n))
        hits += abs(2 * heads - n) >= abs(only_a - only_b)
    return hits / 2000
""",
            "normal approximation": """
import math

def by_luck(only_a, only_b, agree):
    n = only_a + only_b
    return math.erfc(abs(only_a - only_b) / math.sqrt(2 * n)) if n else 1.0
""",
        },
    ),
    "7.5": Answers(
        right=[
            _FIT,
            """
from torch.nn import functional as F

def fit_temperature(logits, targets):
    return min((i / 100 for i in range(5, 2001)), key=lambda t: F.cross_entropy(logits / t, targets).item())
""",
        ],
        wrong={
            "leaves the logits as they are": "def fit_temperature(logits, targets):\n    return 1.0",
            "one over the best one": _FIT.replace("/ 2.718281828**x", "* 2.718281828**x"),
            "accuracy cannot choose it": _FIT.replace(
                "F.cross_entropy(logits.double() / 2.718281828**x, targets).item()",
                "-(logits.argmax(-1) == targets).float().mean().item()",
            ),
            "your search ends at 0.3": _SEARCH.replace("LOW", "-0.5229").replace("HIGH", "0.6021"),
            "your search ends at 4": _SEARCH.replace("LOW", "-1.3").replace("HIGH", "0.6021"),
            "your search ends at 1": _SEARCH.replace("LOW", "0.0").replace("HIGH", "1.3"),
            "that is the lowest loss": _FIT.replace("return 2.718281828 **", "return loss"),
            "not another measure": _FIT.replace(
                "F.cross_entropy(logits.double() / 2.718281828**x, targets).item()",
                "(F.one_hot(targets, logits.shape[1]) - (logits / 2.718281828**x).softmax(-1)).pow(2).mean().item()",
            ),
            "an index instead of a value": _SEARCH.replace("LOW", "-1.3")
            .replace("HIGH", "1.3")
            .replace("grid[losses.index(min(losses))].item()", "losses.index(min(losses))"),
            "so accuracy cannot choose": "def fit_temperature(logits, targets):\n    return 5.0",
            "search more finely": """
from torch.nn import functional as F

def fit_temperature(logits, targets):
    return min((0.25, 0.5, 0.75, 1.25, 1.7, 3.0), key=lambda t: F.cross_entropy(logits / t, targets).item())
""",
        },
    ),
}
