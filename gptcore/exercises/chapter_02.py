"""Exercises of chapter 2: multi-head attention."""

from math import inf

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong

# --- 2.1 -----------------------------------------------------------------------------------------


def check_attention_parameters(answer: Answer, fresh: Fresh) -> None:
    cases = [(4, 2, 2), (4, 2, 1), (12, 6, 2)]
    for heads, shared in ((4, 2), (8, 1), (6, 3)):
        cases.append((heads * fresh.integer(2, 32), heads, shared))
    for C, H, G in cases:
        D = C // H
        right = 2 * (C * C + C) + 2 * (C * G * D + G * D)
        answer.expect(
            (C, H, G),
            right,
            {
                "the weights are right, but each of the four projections has biases, too, one for each output.": right
                - 2 * C
                - 2 * G * D,
                "these are the weights without biases, and as if G = H: keys and values have G heads only, and each "
                "projection has a bias for each output.": 4 * C * C,
                "multiply by G, do not divide: G heads of D = C / H features are C G / H outputs for keys and for "
                "values.": Either(2 * (C * C + C) + 2 * (C * (C // G) + C // G), 2 * (C * C + C) + 2 * (C * C + C) / G),
                "keys and values have fewer heads: G of them, so G * D outputs instead of C.": 4 * (C * C + C),
                "that gives every head a projection of the full width; a head only makes D = C / H features.": H
                * 4
                * (C * C + C),
                "the output projection is missing.": C * C + C + 2 * (C * G * D + G * D),
                "keys and values have a projection each; one is missing.": 2 * (C * C + C) + C * G * D + G * D,
                "a bias belongs to an output, not to an input: keys and values have G * D each.": right
                - 2 * G * D
                + 2 * C,
            },
        )


# --- 2.2: the third of the six mistakes ----------------------------------------------------------


def check_join_heads(answer: Answer, fresh: Fresh) -> None:
    cases = [[torch.tensor([[[11.0], [21.0]]]), torch.tensor([[[12.0], [22.0]]])]]  # the tens are the position
    sizes = [(1, 2, 3, 2), (2, 3, 2, 4), (fresh.integer(1, 3), fresh.integer(2, 5), fresh.integer(4, 9), 8)]
    cases += [[fresh.normal(B, T, D) for _ in range(H)] for B, H, T, D in sizes]
    for case in cases:
        for dtype in (torch.float32, torch.float64):
            heads = [head.to(dtype) for head in case]
            H, (B, T, D) = len(heads), heads[0].shape
            side_by_side = torch.cat(heads, dim=-1)
            stacked = torch.stack(heads, dim=1)  # (B, H, T, D)
            turned = side_by_side.transpose(1, 2)
            answer.expect(
                (heads,),
                side_by_side,
                {
                    "the shape is right, and position and feature are scrambled: transposed and then viewed as if "
                    "nothing had been moved. Which axis holds what after `cat`?": turned.reshape(B, T, H * D),
                    "the shape is right, and positions are scrambled: a row holds several positions of one head. "
                    "Reshaping (B, H, T, D) does not move any axis; H must first stand beside D.": stacked.reshape(
                        B, T, H * D
                    ),
                    "features of different heads alternate. Each head's D features must stay together, or the output "
                    "projection of trained weights does not fit.": torch.stack(heads, dim=-1).reshape(B, T, H * D),
                    "time and features have changed places: the output projection expects the features last.": turned,
                    "the heads stand one after the other in time; they belong side by side.": torch.cat(heads, dim=1),
                    "the heads still have an axis of their own.": stacked,
                    "the heads are added, as if they were one; each has its own place among the channels.": sum(heads),
                    "this is the mean of the heads; each has its own place among the channels.": sum(heads) / H,
                    "the heads stand in reverse order: head 0 comes first.": torch.cat(heads[::-1], dim=-1),
                },
            )


# --- 2.3 -----------------------------------------------------------------------------------------


def check_pooled_heads(answer: Answer, fresh: Fresh) -> None:
    cases = [(torch.tensor([[1.0, 0.0], [3.0, 4.0], [10.0, 0.0], [20.0, 2.0]]), 4, 2)]
    sizes = [(2, 1, 1, 4), (4, 2, 2, 6), (6, 2, fresh.integer(2, 6), 9), (8, 4, 4, 2 * fresh.integer(2, 10))]
    cases += [(fresh.normal(H * D, C), H, G) for H, G, D, C in sizes]
    for case, H, G in cases:
        for dtype in (torch.float32, torch.float64):
            weight = case.to(dtype)
            D, C = weight.shape[0] // H, weight.shape[1]
            heads = weight.view(H, D, C)
            groups = heads.view(G, H // G, D, C)
            right = groups.mean(dim=1).reshape(G * D, C)
            mistakes = {
                "the heads of a group are added; the mean keeps the size of the scores.": right * (H // G),
                "the sum of a group is divided by G, the number of groups; a group has H / G heads.": (
                    right * (H // G) / G
                ),
                "only the first head of each group is kept; take the mean of all.": groups[:, 0].reshape(G * D, C),
                "these are the first G heads, and the others are lost: take the mean of each group.": weight[: G * D],
                "heads that are far apart were put into one group. Query heads 0 .. H/G - 1 share key head 0, so "
                "neighbours belong together.": heads.view(H // G, G, D, C).mean(dim=0).reshape(G * D, C),
                "features were averaged, not heads: the D rows of a head stay apart.": (
                    weight.view(G * D, H // G, C).mean(dim=1)
                ),
                "columns were averaged. They are the inputs, and all C of them stay; the rows become fewer.": (
                    weight.view(H * D, C * G // H, H // G).mean(dim=2)
                ),
                "the mean runs over all heads, whatever their group.": heads.mean(dim=0).repeat(G, 1),
            }
            try:
                answer.expect((weight, H, G), right, mistakes)
            except Wrong as wrong:
                if "stopped with RuntimeError" in str(wrong):
                    note = f"D = weight.shape[0] // H is {D} here; it need not be C // H, which is {C // H}."
                    raise Wrong(f"{wrong}\n    {note}") from None
                raise


# --- 2.4 -----------------------------------------------------------------------------------------


def check_distance_bias(answer: Answer, fresh: Fresh) -> None:
    cases = [(2, 1), (2, 3), (3, 2), (3, 4), (fresh.integer(4, 8), 8), (fresh.integer(20, 50), 16)]
    for T, H in cases:
        distance = torch.arange(T)[:, None] - torch.arange(T)  # whole numbers: no -0.0
        head = torch.arange(1, H + 1)
        slopes = 2.0 ** (-8 * head / H)
        future = distance < 0

        def bias(slopes: Tensor, distance: Tensor = -distance, future: Tensor = future, low: float = -inf) -> Tensor:
            return (slopes[:, None, None] * distance).masked_fill(future, low)

        answer.expect(
            (T, H),
            bias(slopes),
            {
                "the sign is wrong: far tokens get a higher score than near ones.": bias(slopes, distance),
                "the slopes begin with head 0, at 1; the first one is 2 ** (-8 / H).": bias(
                    2.0 ** (-8 * torch.arange(H) / H)
                ),
                "all heads have the same slope; each shall look a different distance back.": bias(
                    torch.full((H,), slopes[0].item())
                ),
                "the future must stay forbidden: minus infinity where the key comes after the query.": (
                    -slopes[:, None, None] * distance.abs()
                ),
                "tokens of the future even get a bonus; they must be forbidden, with minus infinity.": (
                    -slopes[:, None, None] * distance
                ),
                "the future gets 0, which is the bonus of the nearest; it must be forbidden, with minus infinity.": (
                    -slopes[:, None, None] * distance.clamp(min=0)
                ),
                "the slopes fall evenly; they should fall by the same factor from head to head.": bias(1 - head / H),
                "2 ** -h is right for H = 8 only; the exponent is -8 h / H.": bias(2.0**-head),
                "`//` rounds the exponent to a whole number; the exponent is -8 h / H with `/`.": Either(
                    bias(2.0 ** (-8 * head // H)), bias(2.0 ** -(8 * head // H))
                ),
                "the heads stand in reverse order: the first one, h = 1, has the largest slope.": bias(slopes.flip(0)),
                "rows and columns have changed places: rows are queries, so the future stands at the right.": (
                    bias(slopes).transpose(1, 2)
                ),
                "the future gets a very low number, but minus infinity is asked for: write float('-inf').": Either(
                    bias(slopes, low=-1e9), bias(slopes, low=torch.finfo(torch.float32).min)
                ),
            },
        )


EXERCISES = (
    Exercise(
        number="2.1",
        title="What a layer of heads weighs",
        minutes=8,
        difficulty=2,
        task="""\
How many numbers does a `MultiHeadAttention` hold: width `C`, `H` query heads, `G` heads of keys and values (grouped
queries), all four projections with biases? Predict it for `C = 256, H = 8` with `G = 8` and with `G = 2` before you
write the formula. How much does grouping save? As soon as the formula returns a number, the last lines count.""",
        stub='''\
def attention_parameters(C, H, G):
    """Weights and biases of the projections to queries, keys and values and of the output projection."""
    ...''',
        demo="""\
from gptcore.attention import MultiHeadAttention

for G in (8, 2):
    formula = attention_parameters(256, 8, G)
    if formula is not None:
        counted = sum(parameter.numel() for parameter in MultiHeadAttention(256, 8, G).parameters())
        print("your formula:", formula, "  counted:", counted)""",
        checker=check_attention_parameters,
        hints=(
            "A linear layer from n to m features has n m weights and m biases.",
            "Queries: C to C. Output: C to C. Keys and values: C to G heads of D = C / H features, each.",
        ),
        solution='''\
def attention_parameters(C, H, G):
    """Weights and biases of the projections to queries, keys and values and of the output projection."""
    D = C // H
    full, grouped = C * C + C, C * G * D + G * D
    return 2 * full + 2 * grouped''',
        praise="Without grouping (G = H) the number of heads does not matter, only the width does; with it, only the "
        "width and the quotient G / H count. What grouping saves is mostly not here but in the cache of keys and "
        "values.",
    ),
    Exercise(
        number="2.2",
        title="Find the bug: heads put together wrongly",
        minutes=4,
        difficulty=1,
        task="""\
Every head has given its output, a list of `H` tensors `(B, T, D)`. They shall be put side by side, `(B, T, H * D)`,
for the output projection. The function below does it in a way that was copied from project to project. The shape is
right, so nothing complains. The last lines number each entry with three digits, position, head and feature: a row
should hold the numbers of one position only. Find out what happens, and repair it.""",
        stub='''\
import torch


def join_heads(heads):
    """H outputs (B, T, D), side by side: (B, T, H * D)."""
    joined = torch.cat(heads, dim=-1)
    B, T, C = joined.shape
    return joined.transpose(1, 2).contiguous().view(B, T, C)''',
        demo="""\
numbered_heads = [(100 * torch.arange(1, 4)[:, None] + 10 * head + torch.arange(1, 3))[None] for head in (1, 2)]
print("the digits are position, head, feature (right: the first row is 111, 112, 121, 122):")
print(join_heads(numbered_heads)[0])""",
        checker=check_join_heads,
        hints=(
            "`view` never moves a number: it only counts them off in other portions. What is the order after "
            "`transpose(1, 2)`?",
            "Print the result after each of the three lines. After which one was it already right?",
        ),
        solution='''\
import torch


def join_heads(heads):
    """H outputs (B, T, D), side by side: (B, T, H * D)."""
    return torch.cat(heads, dim=-1)''',
        praise="A model with this bug trains, to a worse loss, and its causal mask is undone: positions mix behind its "
        "back. Numbering the entries is the quickest test for any reshape.",
    ),
    Exercise(
        number="2.3",
        title="From many key heads to few",
        minutes=20,
        difficulty=3,
        task="""\
A trained model has `H` key heads. To make it faster you want `G` of them, each shared by H / G query heads: query
heads 0, 1, ... H / G - 1 share the first key head, the next ones the second. The authors of *GQA* (arXiv 2305.13245)
found that a good start is the **mean** of the heads that are replaced.

`weight` is that of the key projection as `nn.Linear` stores it, `(H * D, C)`: rows 0 .. D - 1 make head 0. So `D` is
`weight.shape[0] // H`; it need not be `C / H`. Return the new weight `(G * D, C)`.""",
        stub='''\
def pooled_heads(weight, H, G):
    """Key weights (H * D, C) of H heads to (G * D, C): each new head the mean of H / G neighbours."""
    ...''',
        demo="""\
import torch

four_heads = torch.tensor([[1.0], [3.0], [10.0], [20.0]])  # H = 4 heads of D = 1 row, C = 1 column
print(pooled_heads(four_heads, 4, 2), "(right: 2 and 15)")""",
        checker=check_pooled_heads,
        hints=(
            "Give the heads an axis of their own first: `weight.view(H, D, C)`.",
            "H heads in G groups of H / G neighbours: `(G, H // G, D, C)`. Which axis is averaged?",
        ),
        solution='''\
def pooled_heads(weight, H, G):
    """Key weights (H * D, C) of H heads to (G * D, C): each new head the mean of H / G neighbours."""
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, C).mean(dim=1).reshape(G * D, C)''',
        praise="With a twentieth of the original training after this step, the paper's model is nearly as good as "
        "before and generates much faster.",
    ),
    Exercise(
        number="2.4",
        title="Positions without turning: a price for distance",
        minutes=15,
        difficulty=3,
        task="""\
Rotary positions are not the only way. *ALiBi* (arXiv 2108.12409) leaves queries and keys alone and subtracts a price
from each score: the slope of the head times the distance, query position minus key position. Head h, counted from 1
to H, has the slope 2 ** (-8 h / H), so some heads look near and others far. The future stays forbidden.

Write what is added to the scores, after their division by $\\sqrt D$: `(H, T, T)`, rows are queries, and minus infinity
for the future.""",
        stub='''\
import torch


def distance_bias(T, H):
    """What ALiBi adds to the scores of H heads over T positions: (H, T, T)."""
    ...''',
        demo="print(distance_bias(4, 2))  # right: the last row of the first head is -0.1875, -0.125, -0.0625, 0",
        checker=check_distance_bias,
        hints=(
            "Two pieces: the slopes `(H,)` and the distances `(T, T)`. Axes of length 1 bring them together: "
            "`slopes[:, None, None]`.",
            "`masked_fill(distance < 0, float('-inf'))` forbids the future.",
        ),
        solution='''\
import torch


def distance_bias(T, H):
    """What ALiBi adds to the scores of H heads over T positions: (H, T, T)."""
    distance = torch.arange(T)[:, None] - torch.arange(T)  # query minus key
    slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H)
    bias = slopes[:, None, None] * -distance
    return bias.masked_fill(distance < 0, float("-inf"))''',
        praise="A model with this bias can read texts longer than any it was trained on, since a larger distance only "
        "costs more of the same.",
    ),
)
