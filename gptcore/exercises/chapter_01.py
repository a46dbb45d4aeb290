"""Exercises of chapter 1: attention."""

import math

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong, by_message

# --- 1.1 -----------------------------------------------------------------------------------------


def check_allowed_pairs(answer: Answer, fresh: Fresh) -> None:
    for T in (2, 4, 6, 2 * fresh.integer(4, 25), 2 * fresh.integer(50, 2500)):
        half = T // 2
        answer.expect(
            (T,),
            half * (half + 1),
            {
                "that is the whole square: the mask has forbidden nothing.": T * T,
                "that is the causal mask of one long text: the second text must not look into the first.": (
                    T * (T + 1) // 2
                ),
                "each position may also look at itself; the diagonal is missing.": half * (half - 1),
                "a quarter of the square is nearly right, but the diagonal is allowed as a whole, not by half.": (
                    half * half
                ),
                "the texts are kept apart, but each token also sees the tokens after it, which are forbidden.": (
                    2 * half * half
                ),
                "that is one of the two texts only.": half * (half + 1) / 2,
                "that is one row of the matrix, not all of them.": T,
            },
        )


# --- 1.2 -----------------------------------------------------------------------------------------


def _band(T: int, low: int, high: int) -> Tensor:
    """True where the distance query - key is between low and high, both included."""
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance >= low) & (distance <= high)


def check_sliding_mask(answer: Answer, fresh: Fresh) -> None:
    cases = [(3, 1), (3, 2), (4, 2), (5, 3), (3, 7)]
    cases += [(T, fresh.integer(1, T)) for T in (fresh.integer(6, 12), fresh.integer(20, 60))]
    for T, window in cases:
        expected = _band(T, 0, window - 1)
        answer.expect(
            (T, window),
            expected,
            {
                "this is the full causal mask: nothing is forgotten.": _band(T, 0, T),
                "it is symmetric: a token also sees the tokens after it.": _band(T, 1 - window, window - 1),
                "a token also sees the tokens after it: the distance must be at least 0.": _band(T, -T, window - 1),
                "rows and columns have changed places: each token sees the future and not the past. "
                "Row t belongs to the query at position t.": expected.T,
                "one token too many: the token itself is one of the `window` tokens.": _band(T, 0, window),
                "one token is missing: each row should allow up to `window` tokens, the token itself included.": _band(
                    T, 0, window - 2
                ),
                "the token itself is left out: the window ends with it.": _band(T, 1, window),
                "that is the opposite: True must stand where looking is allowed.": ~expected,
                "the pattern is right, but the mask must be of dtype bool, not numbers: `masked_fill` needs it.": (
                    expected.float()
                ),
                "the pattern is right, but the mask must be of dtype bool, not whole numbers.": expected.long(),
            },
        )


# --- 1.3: the first of the six mistakes ----------------------------------------------------------


def _attend(query: Tensor, key: Tensor, value: Tensor, mode: str = "right") -> Tensor:
    """Attention with the mistakes that people make with the mask."""
    T = query.shape[-2]
    seen = torch.ones(T, T, dtype=torch.bool).tril(-1 if mode.startswith("no diagonal") else 0)
    if mode == "transposed":
        seen = seen.T
    elif mode.startswith("inverted"):
        seen = ~seen
    scores = query @ key.transpose(-2, -1) / (1 if mode == "unscaled" else math.sqrt(query.shape[-1]))
    if mode == "multiplied":
        scores = scores * seen
    elif mode == "small":
        scores = scores.masked_fill(~seen, -1.0)
    elif mode.endswith("-1e9"):
        scores = scores.masked_fill(~seen, -1e9)
    elif mode not in ("none", "after"):
        scores = scores.masked_fill(~seen, -math.inf)
    weights = scores.softmax(dim=-2 if mode == "columns" else -1)
    if mode == "after":
        weights = weights * seen
    return weights @ value


def check_decoder_attention(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "none": "every position still sees the whole text, the future included.",
        "after": "the weights of the future are zero, but the rows no longer sum to 1, and softmax has already divided "
        "by a sum over the future: mask the scores, before softmax.",
        "multiplied": "a score of 0 is not forbidden: exp(0) = 1 gets a share. A forbidden score must be minus "
        "infinity.",
        "small": "a forbidden score of -1 still gets a share. It must be minus infinity.",
        "transposed": "the mask is the wrong way round: each token sees the future and not the past.",
        "inverted": "the mask is inverted: `masked_fill` fills where it is True, and it must fill what is forbidden. "
        "(The last query then sees nothing at all, and gets NaN.)",
        "inverted, -1e9": "the mask is inverted: `masked_fill` fills where it is True, and it must fill what is "
        "forbidden.",
        "no diagonal": "a token may look at itself, too; and the first one has nothing else, so it gets NaN.",
        "no diagonal, -1e9": "a token may look at itself, too; the first one has nothing else, and when all its scores "
        "are -1e9 they give equal shares to the whole text, the future included.",
        "unscaled": "the mask is right, but the division by the root of D is gone.",
        "columns": "softmax runs over the queries: the weights of each query, a row, must sum to 1.",
    }
    cases = [torch.tensor([[[0.0], [0.0]], [[0.0], [0.0]], [[2.0], [4.0]]])]  # equal shares: 2, and 3 = (2 + 4) / 2
    shapes = [(2, 1), (3, 2), (fresh.integer(4, 9), 4), (2, 3, fresh.integer(4, 9), 8)]
    cases += [fresh.normal(3, *shape) for shape in shapes]
    for case in cases:
        for dtype in (torch.float32, torch.float64):
            query, key, value = case.to(dtype)
            answer.expect(
                (query, key, value),
                _attend(query, key, value),
                by_message(mistakes, lambda mode: _attend(query, key, value, mode)),
            )


# --- 1.4: the second of the six mistakes ---------------------------------------------------------


def check_first_weights(answer: Answer, fresh: Fresh) -> None:
    for C, D in ((256, 64), (64, 64), (512, 32), (1024, 16)):
        seed = fresh.integer(0, 10**6)
        weights = answer(C, D, seed)
        where = answer.example((C, D, seed))
        if not isinstance(weights, Tensor) or weights.shape != (C, D):
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise Wrong(f"a tensor of shape (C, D) is expected, not {shape}.\n{where}")
        weights = weights.double()
        if not weights.isfinite().all():
            raise Wrong(f"the weights hold NaN or infinity.\n{where}")
        mean, spread, wanted = weights.mean().item(), weights.std().item(), 1 / math.sqrt(C)
        where += f"\n    mean of the weights = {mean:.4f}, their deviation = {spread:.4f}, 1 / sqrt(C) = {wanted:.4f}"
        if spread == 0:
            raise Wrong(f"all weights are equal: all features of a query are then the same.\n{where}")
        products = (weights - mean).T @ (weights - mean)  # (D, D), off the diagonal nearly 0 for independent columns
        if (products - products.diag().diag()).abs().mean() > 0.3 * products.diag().mean():
            raise Wrong(
                f"the weights repeat, so that the features of a query rise and fall together: draw all C times D of "
                f"them independently.\n{where}"
            )
        if abs(mean) > 6 * spread / math.sqrt(C * D) and abs(mean) > 0.03 * wanted:
            together = mean**2 / (mean**2 + spread**2)
            which = "all positive" if weights.min() >= 0 else "not centred on zero"
            raise Wrong(
                f"the weights are {which}: then all features of a query rise and fall together (correlation about "
                f"{together:.2f}), and the score, a sum over D of them, grows with D and not with its root. Centre the "
                f"weights on zero.\n{where}"
            )
        if weights.equal(answer(C, D, seed + 1).double()):
            raise Wrong(f"another seed gives the same weights.\n{where}")
        if not weights.equal(answer(C, D, seed).double()):
            raise Wrong(f"the same seed gives other weights: let the generator of that seed draw them.\n{where}")
        ratio = spread / wanted
        if 0.8 < ratio < 1.25:
            continue
        for guess, text in (
            (math.sqrt(C), "these are numbers of deviation 1: a query, the sum of C products, gets deviation sqrt(C)."),
            (
                math.sqrt(C / 12),
                "centred, but `rand` has deviation 0.29 whatever C is, and a query is a sum of C products: divide by a "
                "root of C.",
            ),
            (
                math.sqrt(C / 3),
                "centred, but numbers between -1 and 1 have deviation 0.58 whatever C is, and a query is a sum of C "
                "products: divide by a root of C.",
            ),
            (
                1 / math.sqrt(C),
                "divided by C, a query vanishes as C grows: variances add up, so the root of C is enough.",
            ),
            (math.sqrt(C / D), "the root of D is the wrong one: the sum that makes a query runs over the C inputs."),
            (
                math.sqrt(1 / 12),
                "too small: a query gets variance 1/12, since `rand` minus a half has that variance. Divide by the "
                "deviation of these numbers, sqrt(1/12), too.",
            ),
            (
                math.sqrt(1 / 3),
                "too small: a query gets variance 1/3, since numbers between -1 and 1, all equally likely, have that "
                "variance. Divide by the deviation of these numbers, sqrt(1/3), too.",
            ),
            (
                0.02 * math.sqrt(C),
                f"a fixed 0.02, as in GPT-2 and in the chapter, does not depend on C: a query gets variance 0.0004 C, "
                f"here {0.0004 * C:.2f}. 1 / sqrt(C) gives 1 for every C.",
            ),
            (
                math.sqrt(2),
                "the 2 in sqrt(2 / C) makes up for a ReLU that follows; none follows here: the variance is 2.",
            ),
            (
                math.sqrt(2 * C / (C + D)),
                "sqrt(2 / (C + D)) is a compromise with the way back; the variance of a query depends on C alone.",
            ),
        ):
            if C != D and abs(ratio / guess - 1) < 0.04:
                raise Wrong(f"{text}\n{where}")
        size = "large" if ratio > 1 else "small"
        raise Wrong(
            f"the weights are too {size}: queries of inputs with variance 1 get variance {ratio**2:.3g}, "
            f"not about 1.\n{where}"
        )


# --- 1.5 -----------------------------------------------------------------------------------------


def check_join_blocks(answer: Answer, fresh: Fresh) -> None:
    by_hand = [([0.0, 0.0, 0.0], [[1.0], [3.0], [5.0]], 2), ([math.log(2), 0.0], [[1.0], [4.0]], 1)]  # 3 and 2
    cases = []
    sizes = [(1, 1, 1, 1.0), (2, 1, 1, 1.0), (3, 2, 2, 1.0), (fresh.integer(4, 30), fresh.integer(2, 30), 5, 1.0)]
    for first, second, D, scale in [*sizes, (3, 3, 2, 400.0), (8, 8, 4, 800.0)]:
        total, double = first + second, torch.float64
        cases.append((fresh.normal(total, dtype=double, scale=scale), fresh.normal(total, D, dtype=double), first))
    for all_scores, all_values, first in [*by_hand, *cases]:
        for dtype in (torch.float32, torch.float64):
            scores, value = torch.as_tensor(all_scores, dtype=dtype), torch.as_tensor(all_values, dtype=dtype)
            blocks = []
            for part in (slice(0, first), slice(first, None)):
                top = scores[part].max()
                shares = (scores[part] - top).exp()
                blocks.append((top, shares.sum(), shares @ value[part] / shares.sum()))
            (m1, s1, o1), (m2, s2, o2) = blocks
            m = scores.max()
            total = (scores - m).exp().sum()
            right = (m, total, (scores - m).exp() @ value / total)
            a, b = s1 * (m1 - m).exp(), s2 * (m2 - m).exp()
            by_maxima = (m1 - m).exp() * o1 + (m2 - m).exp() * o2
            answer.expect(
                (m1, s1, o1, m2, s2, o2),
                right,
                {
                    "the plain mean of the two outputs: a block with larger scores must weigh more.": (
                        m,
                        total,
                        (o1 + o2) / 2,
                    ),
                    "the outputs are added: each is a mean of values, so mix them in shares that sum to 1.": (
                        m,
                        total,
                        (a * o1 + b * o2),
                    ),
                    "the sums are measured from different maxima: multiply each by exp(its maximum - the common "
                    "one) before adding.": (m, s1 + s2, (s1 * o1 + s2 * o2) / (s1 + s2)),
                    "the outputs are right, but the sum is not: it must count from the common maximum.": (
                        m,
                        s1 + s2,
                        right[2],
                    ),
                    "the sum is right; in the outputs the two blocks have not been weighed by their shares of it.": (
                        m,
                        total,
                        (s1 * o1 + s2 * o2) / (s1 + s2),
                    ),
                    "the maximum and the sum are right, but the outputs are weighed by exp of the maxima alone: how "
                    "many keys a block has counts, too.": (m, total, by_maxima / ((m1 - m).exp() + (m2 - m).exp())),
                    "the maximum and the sum are right, but an output counts as often as its s says: weigh o1 by "
                    "s1 * exp(m1 - m), o2 likewise, and divide by the sum.": (m, total, by_maxima / total),
                    "the outputs are weighed rightly, but then divided by s1 + s2: the sum must count from the common "
                    "maximum, too.": (m, s1 + s2, (a * o1 + b * o2) / (s1 + s2)),
                    "m is the larger one of the two maxima, not their sum.": Either(
                        (m1 + m2, s1 * (-m2).exp() + s2 * (-m1).exp(), right[2]),
                        (m1 + m2, total, right[2]),
                    ),
                },
            )


# --- The exercises -------------------------------------------------------------------------------

EXERCISES = (
    Exercise(
        number="1.1",
        title="How much does the mask leave?",
        minutes=4,
        difficulty=1,
        task="""\
So as to waste no space, training often puts two short texts one after the other in a row of $T$ tokens, here $T / 2$
tokens each ($T$ is even). A token may look at itself and at the earlier tokens **of its own text**. How many of the
$T \\times T$ scores are allowed? Predict it first for $T = 6$, on paper. Then write the number for any even $T$ as a
formula; the last lines count it for $T = 6$.""",
        stub='''\
def allowed_pairs(T):
    """How many pairs of query and key are allowed in two texts of T / 2 tokens each, one after the other."""
    ...''',
        demo="""\
import torch

from gptcore.attention import causal_mask

formula = allowed_pairs(6)
if formula is not None:
    counted = torch.block_diag(causal_mask(3), causal_mask(3)).sum().item()
    print("your formula:", formula, "  counted:", counted)""",
        checker=check_allowed_pairs,
        hints=(
            "The first token of a text may look at one token, the second at two. And the last?",
            "Each text has n = T / 2 tokens, so 1 + 2 + ... + n pairs. Put the sum beside itself written backwards: "
            "each pair of terms is n + 1.",
        ),
        solution='''\
def allowed_pairs(T):
    """How many pairs of query and key are allowed in two texts of T / 2 tokens each, one after the other."""
    length = T // 2
    return length * (length + 1)''',
        praise="Only about a quarter of the scores is needed; plain attention computes the others and throws them "
        "away, and fused kernels can skip most of them.",
    ),
    Exercise(
        number="1.2",
        title="A window that slides",
        minutes=10,
        difficulty=2,
        task="""\
Long texts are expensive because each token looks at all before it. Some models (Mistral, for one) let a token look
at the last `window` tokens only, itself included. Write that mask: `(T, T)` of dtype bool, True where the query
(row) may look at the key (column).""",
        stub='''\
def sliding_mask(T, window):
    """Which of T keys each of T queries may look at: the last `window` ones, itself included."""
    ...''',
        demo="print(sliding_mask(6, 3))",
        checker=check_sliding_mask,
        hints=(
            "Write the mask for T = 4 and window = 2 on paper. The first row has one True. And the others?",
            "Only the distance query - key matters: it must be at least 0. And at most?",
            "`torch.arange(T)[:, None] - torch.arange(T)` is the matrix of distances.",
        ),
        solution='''\
import torch


def sliding_mask(T, window):
    """Which of T keys each of T queries may look at: the last `window` ones, itself included."""
    distance = torch.arange(T)[:, None] - torch.arange(T)  # query minus key
    return (distance >= 0) & (distance < window)''',
        praise="With L such layers a token can still hear from L x (window - 1) tokens back, at a cost that grows only "
        "in proportion to the length.",
    ),
    Exercise(
        number="1.3",
        title="Find the bug: a decoder that cheats",
        minutes=10,
        difficulty=2,
        task="""\
This attention is meant for a decoder, a model that writes from left to right. It has its mask, it runs, its shapes are
right, and yet it cheats. The last lines show it: only the *last* token is changed, and yet the output at the *first*
position has changed. Repair the function.""",
        stub='''\
import math

import torch


def decoder_attention(query, key, value):
    """Attention of a decoder: (..., T, D) queries, keys and values to (..., T, D)."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, T)
    scores = scores * torch.ones_like(scores).tril()  # nobody looks ahead
    weights = torch.softmax(scores, dim=-1)
    return weights @ value''',
        demo="""\
original = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))  # five tokens
altered = original.clone()
altered[-1] = 3.0
difference = decoder_attention(altered, altered, altered) - decoder_attention(original, original, original)
print("the first position moved by", round(difference[0].abs().max().item(), 4), "(right: 0.0)")""",
        checker=check_decoder_attention,
        hints=(
            "Print the weights of row 0. Which of them are zero?",
            "A forbidden weight must be exactly 0 after softmax. Which score gives that?",
            "`scores.masked_fill(~allowed, float('-inf'))`, where allowed is lower triangular.",
        ),
        solution='''\
import math

import torch


def decoder_attention(query, key, value):
    """Attention of a decoder: (..., T, D) queries, keys and values to (..., T, D)."""
    T = query.shape[-2]
    allowed = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, T)
    scores = scores.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return weights @ value''',
        praise="Changing the future and watching the past is a test that finds every leak of this kind, in any "
        "model; it takes two lines.",
    ),
    Exercise(
        number="1.4",
        title="Find the bug: weights that shout",
        minutes=15,
        difficulty=3,
        task="""\
Before training, the weights of the query and key projections are drawn at random. The lines below the function feed in
tokens with variance 1 and print how large the scores become and how much the strongest token gets of each row: 1 means
that softmax has already decided, before anything was learned, and passes on hardly any gradient.

Repair the function. The weights themselves must have mean 0, so that the features of a query do not all rise and fall
together. And for inputs of mean 0 and variance 1 each feature of `x @ first_weights(C, D, seed)` must have variance
about 1, **for every C**. Any distribution will do. Equal seeds give equal weights.""",
        stub='''\
import torch


def first_weights(C, D, seed):
    """Random (C, D) weights of a projection, before training."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(C, D, generator=generator)''',
        demo="""\
inputs = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))  # eight tokens
first_scores = (inputs @ first_weights(512, 64, 1)) @ (inputs @ first_weights(512, 64, 2)).T / 64**0.5
strongest = first_scores.softmax(dim=-1).max(dim=-1).values.mean().item()
print(f"largest score {first_scores.abs().max().item():.1f}, the strongest token gets {strongest:.2f} of a row")
print("(right: a largest score of about 3, and about 0.4 of a row)")""",
        checker=check_first_weights,
        hints=(
            "What is the mean of `torch.rand`? A sum of C products with a mean that is not 0 grows like C.",
            "With independent weights of mean 0 and variance v, the variance of a sum of C products is C v. "
            "So which v makes it 1?",
            "`torch.randn` has mean 0 and variance 1. By what must its numbers be divided to have variance 1 / C?",
        ),
        solution='''\
import torch


def first_weights(C, D, seed):
    """Random (C, D) weights of a projection, before training."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(C, D, generator=generator) / C**0.5''',
        praise="A model whose first scores are of size 1 can move in any direction; one that begins saturated stays "
        "where chance has put it.",
    ),
    Exercise(
        number="1.5",
        title="Attention in two halves",
        minutes=30,
        difficulty=4,
        task="""\
The matrix of scores of a long text does not fit into fast memory. FlashAttention therefore reads the keys block by
block and never sees a whole row. But softmax needs the sum over the *whole* row. Can two blocks be joined
afterwards?

Each block of keys leaves three things for a query: `m`, its largest score; `s`, the sum of exp(score - m) over its
keys; and `o`, the weighted mean of its values, `(D,)`, with the shares exp(score - m) / s. `m` and `s` are tensors
without axes. (Subtracting the same number from all scores of a row changes no share: it cancels in the division.)

Derive on paper how the same three follow for both blocks together, and write it. Scores may be in the thousands: exp
of a difference from the *common* maximum is safe, exp of a score is not. The lines below the function compare two
blocks of two keys each, joined, with all four keys at once.""",
        stub='''\
import torch


def join_blocks(m1, s1, o1, m2, s2, o2):
    """Maximum, sum and output of two blocks of keys together: scalars m and s, (D,) o, as a tuple."""
    ...''',
        demo="""\
def block_summary(scores, values):
    m = scores.max()
    powers = torch.exp(scores - m)  # one number a key
    return m, powers.sum(), powers @ values / powers.sum()


four_scores, four_values = torch.tensor([1.0, 3.0, 2.0, 0.0]), torch.tensor([[10.0], [20.0], [30.0], [40.0]])
left_block, right_block = (block_summary(four_scores[part], four_values[part]) for part in (slice(2), slice(2, 4)))
print("joined: ", join_blocks(*left_block, *right_block))
print("at once:", block_summary(four_scores, four_values))""",
        checker=check_join_blocks,
        hints=(
            "The common maximum is easy. A sum that was measured from m1 becomes one measured from m by multiplying it "
            "with exp(m1 - m).",
            "s1 exp(m1 - m) is what the first block contributes to the common sum. Its share in the whole is that, "
            "divided by the common sum.",
            "The common output is the mean of o1 and o2, weighed by these shares.",
        ),
        solution='''\
import torch


def join_blocks(m1, s1, o1, m2, s2, o2):
    """Maximum, sum and output of two blocks of keys together: scalars m and s, (D,) o, as a tuple."""
    m = torch.maximum(m1, m2)
    first, second = s1 * torch.exp(m1 - m), s2 * torch.exp(m2 - m)
    s = first + second
    return m, s, (first * o1 + second * o2) / s''',
        praise="This is the heart of FlashAttention (arXiv 2205.14135): exact attention with memory that does not grow "
        "with the square of the length, and also how several machines share one long text.",
    ),
)
