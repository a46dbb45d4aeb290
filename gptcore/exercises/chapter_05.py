"""Exercises of chapter 5: pretraining."""

import math
from functools import partial

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message

# --- 5.1 -----------------------------------------------------------------------------------------


def check_starting_loss(answer: Answer, fresh: Fresh) -> None:
    for V in (2, 3, 256, 4096, fresh.integer(300, 100_000)):
        log = math.log(V)
        answer.expect(
            (V,),
            (log, float(V)),
            {
                "that loss is in bits; the course counts in nats, with the natural logarithm.": (
                    math.log2(V),
                    float(V),
                ),
                "the loss is the *negative* logarithm of the probability 1 / V.": (-log, float(V)),
                "the probability of the right token is 1 / V; the loss is minus its logarithm.": (1 / V, float(V)),
                "the loss is right; the perplexity is exp of it.": (log, log),
                "the loss is right; 1 / V is the probability of a token. The perplexity is e to the loss: among how "
                "many tokens the model hesitates.": (log, 1 / V),
                "the loss is right; the perplexity is exp of the loss in nats, not 2 to its power.": (log, 2**log),
                "first the loss, then the perplexity.": (float(V), log),
                "a loss of 0 belongs to a model that is certain and right.": (0.0, 1.0),
            },
        )


# --- 5.2 -----------------------------------------------------------------------------------------


def check_next_token_loss(answer: Answer, fresh: Fresh) -> None:
    cases = [
        (torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 1]])),
        (torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 0.0]]]), torch.tensor([[0, 1], [1, 0]])),
        (torch.tensor([[[300.0, -200.0], [0.0, 0.0]]]), torch.tensor([[0, 1]])),
    ]
    for B, T, V, scale in [(1, 3, 4, 1.0), (2, fresh.integer(4, 7), 5, 2.0), (3, 5, 8, 200.0)]:
        for dtype in (torch.float32, torch.float64):
            cases.append((fresh.normal(B, T, V, dtype=dtype, scale=scale), fresh.integers(0, V, B, T)))
    for logits, tokens in cases:
        dtype, (B, T) = logits.dtype, tokens.shape
        exact = logits.double().log_softmax(dim=-1)

        def mean(logarithms: Tensor, wanted: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return -logarithms.gather(-1, wanted[..., None]).mean().to(dtype)

        def capped(small: float, exact: Tensor = exact, tokens: Tensor = tokens, mean=mean) -> Tensor:
            return mean((exact.exp() + small).log()[:, :-1], tokens[:, 1:])

        right = mean(exact[:, :-1], tokens[:, 1:])
        answer.expect(
            (logits, tokens),
            right,
            {
                "inputs and targets are not shifted: row t of the logits is about token t + 1, not about token t, "
                "which the model has already read.": lambda: mean(exact, tokens),
                "the shift goes the wrong way: row t was asked for the token before it.": lambda: mean(
                    exact[:, 1:], tokens[:, :-1]
                ),
                "`roll` makes the first token the target of the last row. The last row has no target: leave it "
                "out.": lambda: mean(exact, tokens.roll(-1, dims=1)),
                "the last row of a text was asked for the first token of the next text: shift first, and join the "
                "texts afterwards.": lambda: mean(exact.flatten(0, 1)[:-1], tokens.flatten()[1:]),
                "the sum was returned; the mean does not depend on how many tokens there are.": right * B * (T - 1),
                "there are T - 1 predictions in a row, not T.": right * (T - 1) / T,
                "the sum over the positions was divided by the number of texts only.": right * (T - 1),
                "softmax was taken twice: `cross_entropy` wants logits.": lambda: mean(
                    exact.exp().log_softmax(dim=-1)[:, :-1], tokens[:, 1:]
                ),
                "the sign: a loss is minus the logarithm of the probability.": -right,
                "the mean of the probabilities was taken; the loss is minus the mean of their logarithms.": (
                    lambda: -mean(exact.exp()[:, :-1], tokens[:, 1:])
                ),
                "that is in bits; nats are wanted, with the natural logarithm.": right / math.log(2),
                "a small number was added to the probabilities, which caps the surprise: 1e-10 at 23 nats.": Either(
                    *(partial(capped, small) for small in (1e-10, 1e-9, 1e-8, 1e-12))
                ),
            },
            tolerance=1e-3 if dtype is torch.float32 else None,
        )


# --- 5.3 -----------------------------------------------------------------------------------------


def check_cut_windows(answer: Answer, fresh: Fresh) -> None:
    cases = [(torch.arange(10, 10 + length), T) for length, T in ((3, 2), (4, 2), (5, 2), (6, 3), (7, 3), (9, 4))]
    cases.append((fresh.integers(0, 100, fresh.integer(20, 40)), fresh.integer(3, 6)))
    cases.append((fresh.integers(0, 100, fresh.integer(50, 90)), 8))
    for tokens, T in cases:
        count, fewer = (len(tokens) - 1) // T, len(tokens) // T - 1
        inputs, targets = tokens[: count * T].view(count, T), tokens[1 : count * T + 1].view(count, T)
        whole = tokens[: len(tokens) // T * T].view(-1, T)
        answer.expect(
            (tokens, T),
            (inputs, targets),
            {
                "the last target of each window is its own first token: `roll` goes round within a row. What follows "
                "the last token of a window is the first token of the NEXT window.": (inputs, inputs.roll(-1, dims=1)),
                "the last target of each window is its own first token. What follows the last token of a window is the "
                "first token of the NEXT window. Is there one for every window?": (whole, whole.roll(-1, dims=1)),
                "the targets are the inputs: nothing is to be predicted.": (inputs, inputs),
                "the targets are the tokens before, not those that follow.": lambda: (
                    inputs,
                    tokens.roll(1)[: count * T].view(count, T),
                ),
                "the last target is the first token of the whole stream: there is no next token for it, so leave this "
                "window out.": lambda: (whole, tokens.roll(-1)[: len(whole) * T].view(-1, T)),
                "each window loses a token at its end: only T - 1 are predicted.": (inputs[:, :-1], inputs[:, 1:]),
                "a window is missing: only one that has no target for its last token goes.": (
                    inputs[:-1],
                    targets[:-1],
                ),
                "the last window was left out although the stream goes on after it: only one that has no target for "
                "its last token goes.": (inputs[:fewer], targets[:fewer]),
                "inputs and targets have changed places.": (targets, inputs),
            },
        )


# --- 5.4 -----------------------------------------------------------------------------------------


def check_frequency_loss(answer: Answer, fresh: Fresh) -> None:
    cases = [([0, 0, 1], 2), ([0, 1], 2), ([0, 0], 2), ([0, 0, 0, 2], 3)]
    cases.append((fresh.integers(0, 4, 12).tolist(), 6))
    cases.append(((fresh.normal(300).abs() * 8).long().tolist(), 60))
    for tokens, V in cases:
        tokens = torch.tensor(tokens)
        counts = torch.bincount(tokens, minlength=V).double()
        shares = counts[counts > 0] / counts.sum()
        right = (shares * (1 / shares).log()).sum().item()  # not -0, if one token is all there is
        smoothed = ((counts + 1) / (counts + 1).sum())[tokens]
        answer.expect(
            (tokens, V),
            right,
            {
                "that is the loss of a model that knows nothing, log V.": math.log(V),
                "that is the loss if all tokens that occur were equally frequent.": math.log(len(shares)),
                "that is in bits; nats are wanted, with the natural logarithm.": right / math.log(2),
                "the logarithms were averaged over the *vocabulary*. A frequent token counts as often as it occurs.": (
                    -shares.log().mean().item()
                ),
                "the sign: a loss is minus the logarithm of a probability.": -right,
                "1 was added to every count; the best such model uses the frequencies as they are.": (
                    -smoothed.log().mean().item()
                ),
                "the sum over all tokens; the loss is the mean.": right * len(tokens),
            },
            tolerance=1e-4,
        )


# --- 5.5 -----------------------------------------------------------------------------------------


def _bigram(train: Tensor, test: Tensor, V: int, add: float, fault: str = "") -> Tensor:
    counts = torch.zeros(V, V, dtype=torch.float64)
    source = test if fault == "test" else train
    before, after = (source[1:], source[:-1]) if fault == "backwards" else (source[:-1], source[1:])
    counts.index_put_((before, after), torch.ones((), dtype=torch.float64), accumulate=fault != "once")
    seen = counts.sum(dim=1, keepdim=True)
    counts = counts + {"smoothing": 0.0, "fixed": 1.0}.get(fault, add)
    sums = {
        "columns": counts.sum(dim=0, keepdim=True),
        "laid across": counts.sum(dim=1),
        "joint": counts.sum(),
        "old sum": seen,
        "sum and add": seen + add,
        "last": torch.bincount(train, minlength=V)[:, None] + add * V,
    }
    probabilities = counts / sums.get(fault, counts.sum(dim=1, keepdim=True))
    if fault == "late":
        probabilities = (counts - add) / seen.clamp(min=1) + add
    if fault == "unigram":
        probabilities = (counts.sum(dim=0) / counts.sum()).expand(V, V)
    losses = -probabilities[test[:-1], test[1:]].log()
    scales = {"all of test": len(losses) / len(test), "bits": 1 / math.log(2), "uphill": -1.0, "sum": len(losses)}
    return losses.mean() * scales.get(fault, 1.0)


def check_bigram_loss(answer: Answer, fresh: Fresh) -> None:
    denominator = "`add` goes to each of the V counts of a row, so the sum of the row grows by add * V; yours does not."
    mistakes = {
        "smoothing": "`add` was not added: a pair that training never showed gets probability 0, and the loss infinity.",
        "fixed": "1 was added to each count, whatever `add` is.",
        "once": "a pair that occurs twice was counted once: `+=` with index tensors adds only once. Use "
        "`counts.index_put_(..., accumulate=True)`, or a loop.",
        "columns": "each *row* of the table must sum to 1: given a token, the next one. Yours does so by columns.",
        "laid across": "each count was divided by the sum of another row: sum(dim=1) alone is laid along the columns; "
        "with keepdim=True it stays a column.",
        "joint": "the table holds the probability of a pair. Wanted is that of a token *given* the one before: divide by "
        "the sum of the row.",
        "old sum": denominator,
        "sum and add": denominator,
        "last": "the last token of the training text begins no pair, and was counted as if it did: divide by the sum "
        "of the row.",
        "test": "the pairs were counted in the test text. Whoever counts there has seen the answers.",
        "backwards": "the table predicts the token before from the one after.",
        "unigram": "the token before was not used; these are plain frequencies.",
        "late": "`add` must be added to the counts, before they are divided; afterwards the rows sum to more than 1.",
        "all of test": "the sum was divided by all tokens of the test text; the first one is not predicted.",
        "bits": "that is in bits; nats are wanted, with the natural logarithm.",
        "uphill": "the sign: a loss is minus the logarithm of a probability.",
        "sum": "the sum over all predictions; the loss is the mean.",
    }
    cases = [
        ([0, 0, 0], [0, 0], 2, 1.0),
        ([0, 1, 0], [0, 1], 2, 1.0),
        ([0, 0, 1, 2], [0, 1, 2, 0], 3, 1.0),
        ([0, 0, 0, 1], [1, 0, 0], 2, 0.5),
    ]
    for size, V, add in ((40, 4, 0.5), (300, 12, 0.1)):
        walk = [0]
        while len(walk) < size:  # a text with habits
            walk.append((2 * walk[-1] + 1) % V if fresh.random.random() < 0.6 else fresh.random.randrange(V))
        cases.append((walk[: size // 2], walk[size // 2 :], V, add))
    for train, test, V, add in cases:
        arguments = (torch.tensor(train), torch.tensor(test), V, add)
        answer.expect(
            arguments,
            _bigram(*arguments).item(),
            by_message(mistakes, lambda fault: _bigram(*arguments, fault).item()),
            tolerance=1e-4,
        )


EXERCISES = (
    Exercise(
        number="5.1",
        title="What the first loss must be",
        minutes=3,
        difficulty=1,
        task="""\
A model that knows nothing gives each of `V` tokens the same probability. Which loss, in nats, does it start with, and which
perplexity? The perplexity is e to the loss: among how many tokens the model hesitates. Predict both for V = 100,000
before you let the function tell you. If a run of your own begins far from this loss, look for a mistake first.""",
        stub='''\
import math


def starting_loss(V):
    """Loss in nats and perplexity of a model that knows nothing, as a tuple."""
    ...''',
        demo="print(starting_loss(100_000))",
        checker=check_starting_loss,
        hints=("The loss is minus the logarithm of the probability of the right token.", "-log(1 / V) = log V."),
        solution='''\
import math


def starting_loss(V):
    """Loss in nats and perplexity of a model that knows nothing, as a tuple."""
    return math.log(V), float(V)''',
        praise="The first number that a run prints can be checked without a second run: few bugs are cheaper to find.",
    ),
    Exercise(
        number="5.2",
        title="The loss of a batch",
        minutes=15,
        difficulty=2,
        task="""\
`logits` `(B, T, V)` are what a model said while it read `tokens` `(B, T)`: row t is its prediction after it has read
the tokens up to t. Compute the mean loss in nats over all predictions whose truth is known. Logits may be in the
hundreds.""",
        stub='''\
import torch
from torch.nn import functional as F


def next_token_loss(logits, tokens):
    """Mean cross-entropy of the next token: logits (B, T, V) and ids (B, T) to a scalar."""
    ...''',
        demo="""\
print(next_token_loss(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 1]])))  # right: 2.1269""",
        checker=check_next_token_loss,
        hints=(
            "Which token does row 0 of the logits predict? And which row has no truth to compare with?",
            "`logits[:, :-1]` and `tokens[:, 1:]` belong together.",
            "`F.cross_entropy` wants `(N, V)` logits and `(N,)` targets: flatten the first two axes of both.",
        ),
        solution='''\
import torch
from torch.nn import functional as F


def next_token_loss(logits, tokens):
    """Mean cross-entropy of the next token: logits (B, T, V) and ids (B, T) to a scalar."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())''',
        praise="Off by one in this line is the commonest bug of all: unshifted, the loss falls to zero at once and the "
        "model has learned to copy.",
    ),
    Exercise(
        number="5.3",
        title="Find the bug: windows that bite their tail",
        minutes=12,
        difficulty=2,
        task="""\
A long stream of ids is cut into neighbouring windows of `T` tokens, with the next token as the target of each. Look
at the last target of each window in what the cell prints: it is wrong. The model is taught a wrong token in every
window. Repair the function: the target of each position is the token that follows *in the stream*. All windows whose
targets are known are kept. Where the stream ends with a window, its last token has no target, and this window goes.""",
        stub='''\
import torch


def cut_windows(tokens, T):
    """A stream (N,) as inputs and targets, both (windows, T)."""
    count = len(tokens) // T
    inputs = tokens[: count * T].view(count, T)
    targets = inputs.roll(-1, dims=1)
    return inputs, targets''',
        demo="""\
inputs_cut, targets_cut = cut_windows(torch.arange(10, 19), 3)
print("inputs ", inputs_cut.tolist())
print("targets", targets_cut.tolist())""",
        checker=check_cut_windows,
        hints=(
            "What does `roll` put at the end of a row?",
            "Inputs are the stream from 0 on, targets the same stream from 1 on. How many windows have all their "
            "targets?",
            "`count = (len(tokens) - 1) // T`, inputs `tokens[: count * T]`, targets `tokens[1 : count * T + 1]`.",
        ),
        solution='''\
import torch


def cut_windows(tokens, T):
    """A stream (N,) as inputs and targets, both (windows, T)."""
    count = (len(tokens) - 1) // T
    inputs = tokens[: count * T].view(count, T)
    targets = tokens[1 : count * T + 1].view(count, T)
    return inputs, targets''',
        praise="One wrong target in T does not stop a run, it only makes it worse, and no error message will ever tell. "
        "Print one batch before every run.",
    ),
    Exercise(
        number="5.4",
        title="What must a model beat?",
        minutes=12,
        difficulty=2,
        task="""\
A model that never looks at the context can still learn how frequent each token is. What is the lowest mean loss that
it can reach on a text, in nats a token? It gives the same probabilities at every position; find those that are best
for this text, and write the function for ids `(N,)` and a vocabulary of `V`, of which some tokens may not occur.""",
        stub='''\
import torch


def frequency_loss(tokens, V):
    """Lowest loss on ids (N,) that is possible without looking at the context."""
    ...''',
        demo="print(frequency_loss(torch.tensor([0, 0, 1]), 2))  # right: 0.6365, while an even guess has log 2",
        checker=check_frequency_loss,
        hints=(
            "The best probability for a token is its share in the text.",
            "Each token of the text contributes minus the logarithm of its share; take the mean over the text.",
            "`torch.bincount(tokens, minlength=V)` counts. A share of 0 is never asked for: leave it out, since "
            "0 log 0 is NaN.",
        ),
        solution='''\
import torch


def frequency_loss(tokens, V):
    """Lowest loss on ids (N,) that is possible without looking at the context."""
    # Why the shares s are the best probabilities: with any others p, the loss is larger by
    # -sum s log p + sum s log s = -sum s log(p / s) >= -sum s (p / s - 1) = -sum p + sum s = 1 - sum p >= 0,
    # since log x <= x - 1, and since p sums to at most 1 over the tokens that occur. It is 0 for p = s.
    shares = torch.bincount(tokens, minlength=V) / len(tokens)
    return -shares[tokens].log().mean()''',
        praise="A loss curve has two landmarks: log V, where it begins, and this one. Only below it has the model "
        "understood anything of the context.",
    ),
    Exercise(
        number="5.5",
        title="Project: a language model by counting",
        minutes=30,
        difficulty=3,
        task="""\
The smallest language model that looks at its context sees one token: the probability of the next one given the last,
counted in the training text. Give each pair `add` counts more than it had, so that a pair that was never seen is not
impossible. Return the mean loss in nats over all tokens of the test text except the first, each predicted from the
token before it. Afterwards try it on real text: which `add` is best, and how far below the frequencies of 5.4 does one
token of context bring you?""",
        stub='''\
import torch


def bigram_loss(train, test, V, add):
    """Loss on the ids test (M,) of a model that counted pairs in the ids train (N,)."""
    ...''',
        demo="""\
from gptcore.checkpoint import load_stage
from gptcore.corpus import documents_as_tokens, pretraining_documents

_, base_tokenizer = load_stage("base")
bigram_ids = documents_as_tokens(base_tokenizer, pretraining_documents(seed=1), 40_000)
bigram_parts = bigram_ids[:30_000], bigram_ids[30_000:]
for add in (1.0, 0.01):  # right: 6.3459 and 4.2396
    print("add", add, "  loss", bigram_loss(*bigram_parts, base_tokenizer.vocabulary_size, add))""",
        checker=check_bigram_loss,
        seconds=30.0,
        hints=(
            "A table (V, V): row the token before, column the next one.",
            "With a table of floats, `counts = torch.zeros(V, V)`, the line `counts.index_put_((train[:-1], "
            "train[1:]), torch.tensor(1.0), accumulate=True)` counts all pairs at once; a loop does it, too.",
            "Add `add`, divide each row by its sum, look up `table[test[:-1], test[1:]]`, and take minus the mean of "
            "the logarithms.",
        ),
        solution='''\
import torch


def bigram_loss(train, test, V, add):
    """Loss on the ids test (M,) of a model that counted pairs in the ids train (N,)."""
    counts = torch.full((V, V), float(add))
    counts.index_put_((train[:-1], train[1:]), torch.tensor(1.0), accumulate=True)
    table = counts / counts.sum(dim=1, keepdim=True)  # each row sums to 1
    return -table[test[:-1], test[1:]].log().mean()


# On the text of the cell: 4.24 nats with add 0.01, 4.08 with 0.001, the best, and 4.37 with 0.0001.
# The frequencies of the test text (5.4) are at 5.92, so one token of context is worth 1.5 nats.''',
        praise="Every larger language model is measured against such a table, and a trained decoder must beat it by "
        "looking further back.",
    ),
)
