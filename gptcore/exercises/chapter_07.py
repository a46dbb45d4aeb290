"""Exercises of chapter 7: evaluation."""

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcore.exercises.exercise import Answer, Exercise, Fresh, Wrong, plain

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
        (torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]), 0.3),
        (torch.tensor([0.25, 0.25, 0.25, 0.25]), 1.0),
    ]
    for shape, dtype in (((5, 12), torch.float32), ((2, 3, 20), torch.float64)):
        cases.append((fresh.probabilities(*shape, dtype=dtype, sharpness=1.5), fresh.between(0.05, 0.6)))
    for probabilities, p in cases:
        top = probabilities.amax(dim=-1, keepdim=True)
        margin = ((probabilities / top) - p).abs()
        if ((margin > 1e-9) & (margin < 1e-5)).any():  # rounding would decide
            continue
        keep = probabilities >= p * top - 1e-12
        answer.expect(
            (probabilities, p),
            kept(probabilities, keep),
            {
                "p was taken as a limit of its own; it is a share of the *largest* probability of the row.": (
                    lambda: kept(probabilities, probabilities >= p)
                ),
                "what is left does not sum to 1: divide by its sum.": probabilities * keep,
                "a token with exactly p times the largest probability is kept, too.": lambda: kept(
                    probabilities, probabilities > p * top
                ),
                "the largest probability of the whole batch was taken; each row has its own.": lambda: kept(
                    probabilities, probabilities >= p * probabilities.max()
                ),
                "the unlikely tokens were kept and the likely ones thrown away.": lambda: kept(probabilities, ~keep),
                "softmax was used to make the rest sum to 1: it changes the ratios, and gives the dropped ones a share.": (
                    (probabilities * keep).softmax(dim=-1)
                ),
                "that is top-p: the fewest tokens that sum to p.": lambda: kept(
                    probabilities, _top_p(probabilities, p)
                ),
            },
        )


def _top_p(probabilities: Tensor, p: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    keep = ordered.cumsum(dim=-1) - ordered < p
    return torch.zeros_like(keep).scatter(-1, order, keep)


# --- 7.3 -----------------------------------------------------------------------------------------


def check_clipped_precision(answer: Answer, fresh: Fresh) -> None:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog"]
    cases = [
        (["the"], ["the"], 1),
        (["the", "the"], ["the"], 1),
        (["the", "the", "the"], ["the", "cat", "the"], 1),
        (["a", "cat"], ["the", "cat", "sat"], 1),
        (["the", "cat", "the", "cat"], ["the", "cat", "sat"], 2),
        (["cat"], ["the", "cat"], 2),
    ]
    for n in (1, 2, 3):
        texts = [[fresh.random.choice(words[:4]) for _ in range(fresh.integer(5, 14))] for _ in range(2)]
        cases.append((*texts, n))
    for candidate, reference, n in cases:
        found = Counter(tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1))
        expected = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        right = (sum(min(count, expected[gram]) for gram, count in found.items()), sum(found.values()))
        unclipped = sum(count for gram, count in found.items() if gram in expected)
        answer.expect(
            (candidate, reference, n),
            right,
            {
                "a gram of the candidate counts at most as often as the reference has it; otherwise `the the the` would "
                "be a perfect translation.": (unclipped, right[1]),
                "each different gram was counted once, however often it stands in both.": (
                    len(found.keys() & expected.keys()),
                    right[1],
                ),
                "each different gram was counted once, in both numbers.": (
                    len(found.keys() & expected.keys()),
                    len(found),
                ),
                "the total is that of the candidate, not of the reference: precision asks what share of what was said is "
                "right.": (right[0], sum(expected.values())),
                "single words were counted instead of grams of n.": lambda: (
                    sum((Counter(candidate) & Counter(reference)).values()),
                    len(candidate),
                ),
                "a text of k words has k - n + 1 grams of n words, not k.": (right[0], len(candidate)),
                "two numbers are wanted, matches and total; the corpus adds them up before it divides.": (
                    right[0] / max(1, right[1])
                ),
            },
        )


# --- 7.4 -----------------------------------------------------------------------------------------


def check_luck(answer: Answer, fresh: Fresh) -> None:
    def at_least(k: int, n: int) -> float:
        return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n

    cases = [(1, 0, 8), (2, 0, 0), (1, 1, 3), (5, 1, 10), (1, 5, 10), (0, 0, 20)]
    cases += [(fresh.integer(0, 30), fresh.integer(0, 30), fresh.integer(0, 400)) for _ in range(4)]
    for only_a, only_b, both in cases:
        n, k = only_a + only_b, max(only_a, only_b)
        one_sided = at_least(k, n)
        right = min(1.0, 2 * one_sided)
        z = abs(only_a - only_b) / math.sqrt(n) if n else 0.0
        answer.expect(
            (only_a, only_b, both),
            right,
            {
                "that is the probability for one given side. Nobody knew beforehand which model would be ahead: count "
                "both sides.": one_sided,
                "questions that both models answer alike say nothing about which is better; leave them out of n.": (
                    lambda: min(1.0, 2 * at_least(k + both // 2, n + both))
                ),
                "only exactly this result was counted; what is even more extreme belongs to it.": math.comb(n, k)
                / 2**n,
                "only exactly this result was counted, on both sides; what is even more extreme belongs to it.": min(
                    1.0, 2 * math.comb(n, k) / 2**n
                ),
                "that is the probability that it was *not* luck; wanted is the opposite.": 1 - right,
                "both sides overlap in the middle: a probability is at most 1.": 2 * one_sided,
                "that is the normal approximation; with so few questions count exactly.": math.erfc(z / math.sqrt(2)),
            },
            tolerance=1e-6,
        )


# --- 7.5 -----------------------------------------------------------------------------------------


def check_fit_temperature(answer: Answer, fresh: Fresh) -> None:
    for count, V, true in ((200, 3, 2.0), (400, 5, 0.5), (300, 10, fresh.between(0.3, 4.0)), (300, 4, 1.0)):
        honest = fresh.normal(count, V, dtype=torch.float64, scale=1.5)
        noise = fresh.probabilities(count, V, sharpness=0.0, dtype=torch.float64)
        uniform = torch.rand(count, 1, generator=fresh._generator, dtype=torch.float64)
        targets = torch.searchsorted(honest.softmax(dim=-1).cumsum(dim=-1), uniform).squeeze(1).clamp(max=V - 1)
        logits = (honest * true + noise).float()

        def loss(temperature: float) -> float:
            return F.cross_entropy(logits.double() / temperature, targets).item()

        grid = [math.exp(x / 200) for x in range(-600, 601)]
        best = min(grid, key=loss)
        found = plain(answer(logits, targets))
        found = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        details = answer.example((logits, targets), best=best, its_loss=loss(best), yours=found)
        if not isinstance(found, (int, float)) or not found > 0:
            raise Wrong(f"a temperature is a number above 0.\n{details}")
        details += f"\n    the loss at yours = {loss(found):.6g}"
        if loss(found) <= loss(best) + 2e-4:
            continue
        if abs(found - 1) < 1e-6:
            raise Wrong(f"that leaves the logits as they are.\n{details}")
        if loss(1 / found) <= loss(best) + 1e-3:
            raise Wrong(f"the logits are *divided* by the temperature; yours is one over the best one.\n{details}")
        if found > 15 or found < 0.06:
            accuracy = "any temperature has the same accuracy, so accuracy cannot choose it"
            raise Wrong(f"the loss on these answers is far from its lowest point ({accuracy}).\n{details}")
        raise Wrong(f"there is a temperature with a lower loss: search more finely, or for longer.\n{details}")


EXERCISES = (
    Exercise(
        number="7.1",
        title="Find the bug: a number that depends on the cut",
        minutes=8,
        difficulty=2,
        task="""\
A test text was read in batches. For each you have the mean loss of its tokens, in nats, and the number of its
tokens. The function below gives the perplexity of the text. The cell calls it twice for the *same* text, cut once
into four batches of one token each and once into two batches, of three tokens and one. The two numbers must agree.
Repair it.""",
        stub='''\
import math


def perplexity(batch_means, counts):
    """Perplexity of a text from the mean loss of each batch and its number of tokens (lists)."""
    mean = sum(batch_means) / len(batch_means)
    return math.exp(mean)''',
        demo="""\
print(perplexity([1.0, 1.0, 1.0, 5.0], [1, 1, 1, 1]))
print(perplexity([1.0, 5.0], [3, 1]))""",
        checker=check_perplexity,
        hints=(
            "From the mean of a batch and its number of tokens you get the sum of its losses.",
            "Add up all sums and all numbers, and divide once, before exp.",
        ),
        solution='''\
import math


def perplexity(batch_means, counts):
    """Perplexity of a text from the mean loss of each batch and its number of tokens (lists)."""
    total = sum(mean * count for mean, count in zip(batch_means, counts))
    return math.exp(total / sum(counts))''',
        praise="A measure of the model must not change with the batch size: try two sizes, and you will find this bug in "
        "published code.",
    ),
    Exercise(
        number="7.2",
        title="Another way to cut off the tail: min-p",
        minutes=15,
        difficulty=2,
        task="""\
Top-k keeps a fixed number of tokens, top-p a fixed share. *Min-p* (arXiv 2407.01082) adapts in another way: it keeps
the tokens whose probability is at least `p` times that of the likeliest one in the row, and makes what is left sum
to 1. Where the model is sure, little is left; where it hesitates, much. Write it for `(..., V)` probabilities.""",
        stub='''\
import torch


def min_p(probabilities, p):
    """Keep what is at least p times as likely as the likeliest: (..., V) to (..., V), rows sum to 1."""
    ...''',
        demo="print(min_p(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]), 0.5))",
        checker=check_min_p,
        hints=(
            "`probabilities.amax(dim=-1, keepdim=True)` is the largest of each row, with an axis to compare along.",
            "Set the others to 0 (`masked_fill` or a product with the mask), then divide by the new sum of the row.",
        ),
        solution='''\
import torch


def min_p(probabilities, p):
    """Keep what is at least p times as likely as the likeliest: (..., V) to (..., V), rows sum to 1."""
    limit = p * probabilities.amax(dim=-1, keepdim=True)
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
BLEU's first ingredient: of the n-grams of the candidate, how many does the reference have? Return both numbers, the
matches and the total. A gram counts at most as often as the reference has it, or `the the the` would be an excellent
translation of almost anything. Predict by hand: candidate `the the the`, reference `the cat the`, n = 1.""",
        stub='''\
def clipped_matches(candidate, reference, n):
    """Matching and all n-grams of the candidate: lists of words to a tuple of two integers."""
    ...''',
        demo='print(clipped_matches(["the", "the", "the"], ["the", "cat", "the"], 1))',
        checker=check_clipped_precision,
        hints=(
            "`Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))` counts the grams.",
            "For each gram the smaller of both counts; `Counter & Counter` does just that.",
        ),
        solution='''\
from collections import Counter


def clipped_matches(candidate, reference, n):
    """Matching and all n-grams of the candidate: lists of words to a tuple of two integers."""
    found, expected = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (candidate, reference)
    )
    return (found & expected).total(), found.total()''',
        praise="A measure that can be gamed by repetition will be, by any model that is trained on it; the clip is "
        "there for a reason.",
    ),
    Exercise(
        number="7.4",
        title="Better, or lucky?",
        minutes=20,
        difficulty=3,
        task="""\
Two models took the same exam. `only_a` questions were answered rightly by model a alone, `only_b` by b alone, `both`
by both or by neither. Suppose the models are equally good: then each question on which they differ falls to either
side like a coin. How probable is it, by chance alone, that the two numbers differ **at least as much** as they do,
to whichever side? Compute it exactly (`math.comb`). Predict first: 5 against 1, is that convincing?""",
        stub='''\
import math


def by_luck(only_a, only_b, both):
    """Probability of a result at least as uneven if both models are equally good; at most 1."""
    ...''',
        demo="print(by_luck(5, 1, 94), by_luck(50, 10, 40))",
        checker=check_luck,
        hints=(
            "Questions on which they agree are no coin throws. So n = only_a + only_b; which k is at least as uneven?",
            "The probability of k or more heads of n is the sum of comb(n, i) for i from k to n, divided by 2 ** n.",
            "Both sides: twice that for k = max(only_a, only_b), and never more than 1.",
        ),
        solution='''\
import math


def by_luck(only_a, only_b, both):
    """Probability of a result at least as uneven if both models are equally good; at most 1."""
    n, k = only_a + only_b, max(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)''',
        praise="Compared question by question, much smaller differences can be seen than by laying two intervals side "
        "by side. The test is known as the sign test, or McNemar's.",
    ),
    Exercise(
        number="7.5",
        title="Project: teach a model to doubt",
        minutes=35,
        difficulty=4,
        task="""\
A model may be right often and still be too sure, or not sure enough. The simplest cure (arXiv 1706.04599) is a
single number: divide all logits by a temperature, chosen so that the loss on held-out answers is lowest. The ranking
of the tokens, and so the accuracy, does not change at all. Find that temperature, between 0.05 and 20, for
`(N, V)` logits and `(N,)` right ids. Any method will do, as long as the loss comes within 0.0002 nats of the
lowest.""",
        stub='''\
import torch
from torch.nn import functional as F


def fit_temperature(logits, targets):
    """The temperature (a float) with the lowest cross-entropy of logits (N, V) / temperature."""
    ...''',
        demo="""\
generator = torch.Generator().manual_seed(0)
targets = torch.randint(3, (200,), generator=generator)
logits = 6 * torch.randn(200, 3, generator=generator) + 3 * F.one_hot(targets, 3)  # much too sure
print(fit_temperature(logits, targets))""",
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
