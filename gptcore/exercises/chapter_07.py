"""Exercises of chapter 7: evaluation."""

import math
from collections import Counter
from fractions import Fraction
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong, close

# --- 7.1: the sixth of the six mistakes ----------------------------------------------------------


def check_perplexity(answer: Answer, fresh: Fresh) -> None:
    cases = [([1.0], [5]), ([0.0, 2.0], [1, 1]), ([0.0, 2.0], [3, 1]), ([1.0, 3.0, 2.0], [10, 1, 4])]
    for size in (4, 9):
        means = [fresh.between(0.1, 4.0) for _ in range(size)]
        cases.append((means, [fresh.integer(1, 500) for _ in range(size)]))
    for means, counts in cases:
        total, tokens = sum(m * n for m, n in zip(means, counts, strict=True)), sum(counts)
        answer.expect(
            (means, counts),
            math.exp(total / tokens),
            {
                "every batch counts alike, however few tokens it holds: cut the text in another way, and you get another "
                "number. Every *token* must count alike.": math.exp(sum(means) / len(means)),
                "perplexities were averaged. Average the losses, weighed by their tokens, and take exp at the end.": (
                    sum(n * math.exp(m) for m, n in zip(means, counts, strict=True)) / tokens
                ),
                "the perplexities of the batches were averaged, and every batch counts alike.": sum(
                    map(math.exp, means)
                )
                / len(means),
                "that is the mean loss; the perplexity is exp of it.": total / tokens,
                "the sum of the losses was divided by the number of batches, not of tokens.": lambda: math.exp(
                    total / len(means)
                ),
                "the losses are in nats: exp, not a power of two.": 2 ** (total / tokens),
                "the sum over all tokens is the loss of the whole text; divide it by their number first.": (
                    lambda: math.exp(total)
                ),
            },
        )


# --- 7.2 -----------------------------------------------------------------------------------------


def check_min_p(answer: Answer, fresh: Fresh) -> None:
    def kept(probabilities: Tensor, keep: Tensor) -> Tensor:
        left = probabilities * keep
        return left / left.sum(dim=-1, keepdim=True)

    cases = [
        (torch.tensor([0.5, 0.3, 0.2]), 0.5),
        (torch.tensor([0.5, 0.25, 0.15, 0.1]), 0.5),
        (torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]), 0.5),
        (torch.tensor([0.25, 0.25, 0.25, 0.25]), 1.0),
    ]
    for shape, dtype in (((5, 12), torch.float32), ((2, 3, 20), torch.float64)):
        cases.append((fresh.probabilities(*shape, dtype=dtype, sharpness=1.5), fresh.between(0.05, 0.6)))
    for probabilities, least in cases:
        top = probabilities.amax(dim=-1, keepdim=True)
        margin = ((probabilities / top) - least).abs()
        if ((margin > 1e-9) & (margin < 1e-5)).any():  # rounding would decide
            continue
        keep = probabilities >= least * top - 1e-12
        mistakes = {
            "`least` was taken as a limit of its own; it is a share of the *largest* probability of the row.": lambda: (
                kept(probabilities, probabilities >= least)
            ),
            "what is left does not sum to 1: divide by its sum.": probabilities * keep,
            "a token with exactly `least` times the largest probability is kept, too.": lambda: kept(
                probabilities, probabilities > least * top
            ),
            "the largest probability of the whole batch was taken; each row has its own.": lambda: kept(
                probabilities, probabilities >= least * probabilities.max()
            ),
            "the unlikely tokens were kept and the likely ones thrown away.": lambda: kept(probabilities, ~keep),
            "softmax was used to make the rest sum to 1: it changes the ratios, and gives the dropped ones a share.": (
                (probabilities * keep).softmax(dim=-1)
            ),
            "divide what is left by its sum; softmax of the probabilities changes their ratios.": (
                probabilities.masked_fill(~keep, -torch.inf).softmax(dim=-1)
            ),
            "that is top-p: the fewest tokens that sum to `least`.": lambda: kept(
                probabilities, _top_p(probabilities, least)
            ),
        }
        try:
            answer.expect((probabilities, least), kept(probabilities, keep), mistakes)
        except Wrong as wrong:
            if "Dimension out of range" not in str(wrong):
                raise
            details = answer.example((probabilities, least))
            raise Wrong(f"`(..., V)` may also be a single row `(V,)`: use dim=-1, the last axis.\n{details}") from None


def _top_p(probabilities: Tensor, least: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    keep = ordered.cumsum(dim=-1) - ordered < least
    return torch.zeros_like(keep).scatter(-1, order, keep)


# --- 7.3 -----------------------------------------------------------------------------------------


def _grams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _most(references: list[list[str]], n: int) -> Counter:
    return reduce(or_, (_grams(reference, n) for reference in references))


def _matches(candidate: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    found = _grams(candidate, n)
    return (found & _most(references, n)).total(), found.total()


def check_clipped_precision(answer: Answer, fresh: Fresh) -> None:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog"]
    cases = [
        (["the"], [["the"]], 1),
        (["the", "the"], [["the"]], 1),
        (["the", "the", "the"], [["the", "cat"], ["a", "dog", "the", "the"]], 1),
        (["the", "the", "the"], [["the", "cat"], ["the", "dog"]], 1),
        (["a", "cat"], [["the", "cat", "sat"]], 1),
        (["the", "cat", "the", "cat"], [["the", "cat", "sat"]], 2),
        (["cat"], [["the", "cat"]], 2),
        (["a"], [["a"], ["a"]], 3),
        (["ab", "c"], [["a", "bc"]], 2),
        (["cat", "the", "dog"], [["a", "cat"], ["the", "dog"]], 2),
    ]
    for n in (1, 2, 3):
        texts = [[fresh.random.choice(words[:4]) for _ in range(fresh.integer(5, 14))] for _ in range(4)]
        cases.append((texts[0], texts[1:], n))
    for candidate, references, n in cases:
        found, each, most = _grams(candidate, n), [_grams(r, n) for r in references], _most(references, n)
        right = _matches(candidate, references, n)

        def joined(words: list[str], n: int = n) -> Counter:
            return Counter("".join(words[i : i + n]) for i in range(len(words) - n + 1))

        orders = [_matches(candidate, references, order) for order in range(1, n + 1)]
        in_one_row = [word for reference in references for word in reference]
        answer.expect(
            (candidate, references, n),
            right,
            {
                "an n-gram of the candidate counts at most as often as a reference has it; otherwise `the the the` "
                "would be a perfect translation.": (
                    sum(count for gram, count in found.items() if gram in most),
                    right[1],
                ),
                "the references were added up: an n-gram that stands once in each of two may not count twice. The limit "
                "is the largest count in any one reference.": ((found & sum(each, Counter())).total(), right[1]),
                "the references were written one behind the other; that adds them up, and makes n-grams where one ends "
                "and the next begins.": ((found & _grams(in_one_row, n)).total(), right[1]),
                "only the first reference was looked at; each n-gram may be found in any of them.": (
                    _matches(candidate, references[:1], n)
                ),
                "each different n-gram was counted once, however often it stands in both.": (
                    len(found.keys() & most.keys()),
                    right[1],
                ),
                "each different n-gram was counted once, in both numbers.": (
                    len(found.keys() & most.keys()),
                    len(found),
                ),
                "the total counts every n-gram of the candidate, also one that was there before.": (
                    right[0],
                    len(found),
                ),
                "the total is that of the candidate, not of the reference: precision asks what share of what was said is "
                "right.": Either((right[0], most.total()), (right[0], each[0].total())),
                "single words were counted instead of n-grams.": lambda: _matches(candidate, references, 1),
                "a text of k words has k - n + 1 n-grams, not k.": (right[0], len(candidate)),
                "a text shorter than n words has no n-grams at all: the total must not fall below 0.": (
                    right[0],
                    len(candidate) - n + 1,
                ),
                "the words of an n-gram were joined without a space between them, and then `ab c` and `a bc` look alike; "
                "use tuples of words.": ((joined(candidate) & reduce(or_, map(joined, references))).total(), right[1]),
                "n-grams of all lengths up to n were counted; wanted are those of exactly n words.": (
                    sum(matches for matches, _ in orders),
                    sum(total for _, total in orders),
                ),
                "two numbers are wanted, matches and total; the corpus adds them up before it divides.": (
                    right[0] / max(1, right[1])
                ),
            },
        )


# --- 7.4 -----------------------------------------------------------------------------------------


def check_luck(answer: Answer, fresh: Fresh) -> None:
    def at_least(k: int, n: int) -> Fraction:
        return Fraction(sum(math.comb(n, i) for i in range(k, n + 1)), 2**n)

    cases = [(1, 0, 8), (2, 0, 0), (1, 1, 3), (5, 1, 10), (1, 5, 10), (0, 0, 20)]
    cases += [(fresh.integer(0, 30), fresh.integer(0, 30), fresh.integer(0, 400)) for _ in range(4)]
    for only_a, only_b, agree in cases:
        case = (only_a, only_b, agree)
        found = answer(*case)
        if not close(found, again := answer(*case), tolerance=0.0, equal_nan=True):
            raise Wrong(
                "the same numbers give another probability each time. A simulation only comes near it; count the ways "
                f"instead, with math.comb.\n{answer.example(case, yours=found, yours_again=again)}"
            )
        n, k = only_a + only_b, max(only_a, only_b)
        one_sided, exactly, everything = at_least(k, n), Fraction(math.comb(n, k), 2**n), n + agree
        right = min(1.0, 2 * one_sided)
        z = abs(only_a - only_b) / math.sqrt(n) if n else 0.0
        mistakes = {
            "that is the probability for one given side. Nobody knew beforehand which model would be ahead: count "
            "both sides.": one_sided,
            "questions on which the models agree say nothing about which is better; leave them out of n.": Either(
                min(1.0, 2 * at_least(k + agree // 2, everything)), min(1.0, 2 * at_least(k, everything))
            ),
            "only exactly this result was counted; what is even more extreme belongs to it.": exactly,
            "only exactly this result was counted, on both sides; what is even more extreme belongs to it.": (
                min(1.0, 2 * exactly)
            ),
            "the result itself is missing: at least as uneven begins at k, not at k + 1.": min(
                1.0, 2 * at_least(k + 1, n)
            ),
            "the last way is missing, all n on one side: range(k, n) ends before n.": (
                min(1.0, 2 * (one_sided - Fraction(1, 2**n)))
            ),
            "model b may be the one that is ahead: begin with the larger of both numbers, not with only_a.": (
                min(1.0, 2 * at_least(only_a, n))
            ),
            "the models differ nowhere: a difference of 0 or more is certain, so the probability is 1.": (
                None if n else 0.0
            ),
            "that is the probability that it was *not* luck; wanted is the opposite.": 1 - right,
            "both sides overlap in the middle: a probability is at most 1.": 2 * one_sided,
            "that is the normal approximation; with so few questions count exactly.": math.erfc(z / math.sqrt(2)),
        }
        answer.expect(case, float(right), mistakes, tolerance=1e-6)


# --- 7.5 -----------------------------------------------------------------------------------------


def check_fit_temperature(answer: Answer, fresh: Fresh) -> None:
    targets = torch.tensor([0, 0, 0, 1])
    hot, cold, warm = ((torch.tensor([[first, 0.0]] * 4), targets) for first in (14.0, 0.1, 3.0))  # best: first / log 3
    mixed = torch.tensor([[2.0, 0.0]] * 3 + [[6.0, 0.0]] * 3), torch.tensor([0, 0, 1, 0, 0, 0])
    cases = [warm, mixed, cold, hot]
    for count, V, true in ((200, 3, 2.0), (400, 5, 0.5), (300, 10, fresh.between(0.6, 4.0))):
        honest = fresh.normal(count, V, dtype=torch.float64, scale=1.5)
        uniform = torch.rand(count, 1, generator=fresh._generator, dtype=torch.float64)
        targets = torch.searchsorted(honest.softmax(dim=-1).cumsum(dim=-1), uniform).squeeze(1).clamp(max=V - 1)
        cases.append(((honest * true).float(), targets))
    for logits, targets in cases:
        _check_temperature(answer, logits, targets)


def _check_temperature(answer: Answer, logits: Tensor, targets: Tensor) -> None:
    def loss(temperature: float) -> float:
        return F.cross_entropy(logits.double() / temperature, targets).item()

    def given(factor: float = 1.0) -> float:
        """The answer for logits times a factor: the best temperature is multiplied by it, too."""
        found = answer(logits * factor, targets)
        found = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        if not isinstance(found, (int, float)) or not found > 0:
            details = answer.example((logits, targets), yours=found)
            raise Wrong(f"a temperature is a number above 0. (Is it an index instead of a value?)\n{details}")
        return found

    low, high = math.log(0.05), math.log(20)
    for _ in range(60):  # a single valley: a third without the lowest point is cut off
        a, b = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, b) if loss(math.exp(a)) < loss(math.exp(b)) else (a, high)
    best = math.exp((low + high) / 2)
    found = given()
    if loss(found) <= loss(best) + 2e-4:
        return
    details = answer.example((logits, targets), best=best, its_loss=loss(best), yours=found)
    details += f"\n    the loss at yours = {loss(found):.6g}"
    if abs(found - loss(best)) < 3e-4:
        raise Wrong(f"that is the lowest loss; wanted is the temperature where it is reached.\n{details}")
    if loss(1 / found) <= loss(best) + 2e-4 and abs(math.log(best)) > 0.3:
        raise Wrong(f"the logits are *divided* by the temperature; yours is one over the best one.\n{details}")
    if not 0.04 < found < 25:
        raise Wrong(f"that is outside 0.05 to 20. Is it an index instead of a value?\n{details}")
    if abs(given(2.0 if best > found else 0.5) / found - 1) < 0.01:  # the best moves farther away, the answer stays
        if abs(given((found / best) ** 2) / found - 1) > 0.01:  # the best is on the other side
            raise Wrong(f"your search ends at {found:.4g}; the best temperature lies beyond it.\n{details}")
        if abs(found - 1) < 1e-6:
            raise Wrong(f"that leaves the logits as they are.\n{details}")
        raise Wrong(
            "the answer stays the same when all logits are multiplied by a number. Does it look at the loss? Any "
            f"temperature has the same accuracy, so accuracy cannot choose it.\n{details}"
        )
    raise Wrong(
        "there is a temperature with a lower loss. If you do compare the cross-entropy, and not another measure, search "
        f"more finely, or for longer.\n{details}"
    )


EXERCISES = (
    Exercise(
        number="7.1",
        title="Find the bug: a number that depends on the cut",
        minutes=5,
        difficulty=2,
        task="""\
A test text was read in batches. For each you have the mean loss of its tokens, in nats, and the number of its
tokens. The function below gives the perplexity of the text. The cell calls it twice for the *same* text, cut once
into four batches of one token each and once into two batches, of three tokens and one. The two numbers must agree.
Repair it.""",
        stub='''\
import math


def text_perplexity(batch_means, counts):
    """Perplexity of a text from the mean loss of each batch and its number of tokens (lists)."""
    mean = sum(batch_means) / len(batch_means)
    return math.exp(mean)''',
        demo="""\
print(text_perplexity([1.0, 1.0, 1.0, 5.0], [1, 1, 1, 1]), "(right: 7.389...)")
print(text_perplexity([1.0, 5.0], [3, 1]), "(right: 7.389...)")""",
        checker=check_perplexity,
        hints=(
            "From the mean of a batch and its number of tokens you get the sum of its losses.",
            "Add up all sums and all numbers, and divide once, before exp.",
        ),
        solution='''\
import math


def text_perplexity(batch_means, counts):
    """Perplexity of a text from the mean loss of each batch and its number of tokens (lists)."""
    total = sum(mean * count for mean, count in zip(batch_means, counts))
    return math.exp(total / sum(counts))''',
        praise="A measure of the model must not change with the batch size: try two sizes, and you will find this bug in "
        "published code.",
    ),
    Exercise(
        number="7.2",
        title="Another way to cut off the tail: min-p",
        minutes=10,
        difficulty=2,
        task="""\
Top-k keeps a fixed number of tokens, top-p a fixed share. *Min-p* (arXiv 2407.01082) adapts in another way: it keeps
the tokens whose probability is at least `least` times that of the likeliest one in the row (`least` is a factor, from
0 to 1), sets the others to 0, and makes what is left sum to 1. Where the model is sure, little is left; where it
hesitates, much. Write it for probabilities `(..., V)`; a single row `(V,)` is allowed, too.""",
        stub='''\
import torch


def min_p(probabilities, least):
    """Keep what is at least `least` times as likely as the likeliest: (..., V) to (..., V), rows sum to 1."""
    ...''',
        demo="""\
print(min_p(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]), 0.5))
print("(right: [[0.6667, 0.3333, 0], [0.4, 0.3, 0.3]])")""",
        checker=check_min_p,
        hints=(
            "`probabilities.amax(dim=-1, keepdim=True)` is the largest of each row, with an axis to compare along.",
            "Set the others to 0 (`masked_fill` or a product with the mask), then divide by the new sum of the row.",
        ),
        solution='''\
import torch


def min_p(probabilities, least):
    """Keep what is at least `least` times as likely as the likeliest: (..., V) to (..., V), rows sum to 1."""
    limit = least * probabilities.amax(dim=-1, keepdim=True)
    kept = probabilities.masked_fill(probabilities < limit, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)''',
        praise="At high temperatures min-p keeps answers sensible for longer than top-p does, the paper claims; you "
        "could now measure whether that holds for your model.",
    ),
    Exercise(
        number="7.3",
        title="What BLEU counts",
        minutes=15,
        difficulty=2,
        task="""\
The chapter's BLEU has one reference for each sentence; Papineni's has several, since a sentence can be translated in
more than one way. Its first ingredient: of the n-grams of the candidate (n words in a row), how many do the references
have? Return both numbers, the matches and the total, which is 0 for a candidate of fewer than n words. Each n-gram
counts at most as often as it stands in **the one reference that has it most often**, not in all of them together. Predict
by hand: candidate `the the the`, references `the cat` and `a dog the the`, n = 1. And with the references `the cat` and
`the dog`?""",
        stub='''\
def clipped_matches(candidate, references, n):
    """Matching and all n-grams of the candidate, a list of words; the references are a list of such lists."""
    ...''',
        demo="""\
print(clipped_matches(["the", "the", "the"], [["the", "cat"], ["a", "dog", "the", "the"]], 1))
print(clipped_matches(["the", "cat", "the", "cat"], [["the", "cat", "sat"]], 2), "(right: (1, 3))")""",
        checker=check_clipped_precision,
        hints=(
            "`Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))` counts n-grams.",
            "`Counter | Counter` keeps the larger of both counts, `Counter & Counter` the smaller.",
        ),
        solution='''\
from collections import Counter


def clipped_matches(candidate, references, n):
    """Matching and all n-grams of the candidate, a list of words; the references are a list of such lists."""

    def grams(words):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    most = Counter()
    for reference in references:
        most |= grams(reference)
    return (grams(candidate) & most).total(), grams(candidate).total()''',
        praise="A measure that can be gamed by repetition will be, by any model that is trained on it; the clip is "
        "there for a reason.",
    ),
    Exercise(
        number="7.4",
        title="Better, or lucky?",
        minutes=20,
        difficulty=3,
        task="""\
Two models took the same exam. `only_a` questions were answered rightly by model a alone, `only_b` by b alone; on
`agree` questions both were right or both wrong. Suppose the models are equally good: then each question on which they differ falls to either
side like a coin. How probable is it, by chance alone, that the two numbers differ **at least as much** as they do,
to whichever side? Compute it exactly: `math.comb(n, i)` counts the ways in which i of n coins show heads, and each
way has probability 1 / 2**n. Predict first: 5 against 1, is that convincing?""",
        stub='''\
import math


def by_luck(only_a, only_b, agree):
    """Probability (a number) of a result at least as uneven if both models are equally good; at most 1."""
    ...''',
        demo="""\
print(by_luck(5, 1, 94))
print(by_luck(50, 10, 40), "(right: 1.6e-07)")""",
        checker=check_luck,
        hints=(
            "Questions on which they agree are no coin throws. So n = only_a + only_b; which k is at least as uneven?",
            "The probability of k or more heads of n is the sum of comb(n, i) for i from k to n, divided by 2 ** n.",
            "Both sides: twice that for k = max(only_a, only_b), and never more than 1.",
        ),
        solution='''\
import math


def by_luck(only_a, only_b, agree):
    """Probability (a number) of a result at least as uneven if both models are equally good; at most 1."""
    n, k = only_a + only_b, max(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)''',
        praise="Compared question by question, much smaller differences can be seen than by laying two intervals side "
        "by side. The test is known as the sign test, or McNemar's.",
    ),
    Exercise(
        number="7.5",
        title="Project: teach a model to doubt",
        minutes=20,
        difficulty=3,
        task="""\
A model may be right often and still be too sure, or not sure enough. The simplest cure (arXiv 1706.04599) is a
single number: divide all logits by a temperature, chosen so that the loss on held-out answers is lowest. The ranking
of the answers, and so the accuracy, does not change at all. Find that temperature, anywhere between 0.05 and 20, for
logits `(N, V)` and right ids `(N,)`. Any method will do, as long as the loss (the mean cross-entropy) comes within
0.0002 nats of the lowest. The cell shows the loss and the mean confidence, before and after.""",
        stub='''\
import torch
from torch.nn import functional as F


def fit_temperature(logits, targets):
    """The temperature (a float) with the lowest cross-entropy of logits (N, V) / temperature."""
    ...''',
        demo="""\
generator = torch.Generator().manual_seed(0)
right_ids = torch.randint(3, (200,), generator=generator)
too_sure = 6 * torch.randn(200, 3, generator=generator) + 6 * F.one_hot(right_ids, 3)
print(f"right: {(too_sure.argmax(-1) == right_ids).float().mean():.3f} of the answers, at any temperature")
for fitted in (1.0, fit_temperature(too_sure, right_ids)):
    if fitted is not None:
        divided = too_sure / fitted
        lost, confidence = F.cross_entropy(divided, right_ids), divided.softmax(-1).amax(-1).mean()
        print(f"temperature {fitted:.3f}: loss {lost:.3f}, mean confidence {confidence:.3f}")
print("(right: after it a loss of 0.821, and a confidence near the share of right answers)")""",
        checker=check_fit_temperature,
        seconds=30.0,
        hints=(
            "The loss as a function of log temperature has a single valley. A fine grid finds it: 1,000 values are "
            "cheap.",
            "Or gradient descent on a single parameter, the logarithm of the temperature, which keeps it positive.",
        ),
        solution='''\
import torch
from torch.nn import functional as F


def fit_temperature(logits, targets):
    """The temperature (a float) with the lowest cross-entropy of logits (N, V) / temperature."""
    temperatures = torch.logspace(-1.3, 1.3, 1000)
    losses = [F.cross_entropy(logits / temperature, targets).item() for temperature in temperatures]
    return temperatures[losses.index(min(losses))].item()''',
        praise="After it, a confidence of 80 percent means right in 80 percent of the cases, as far as one number can do "
        "that.",
    ),
)
