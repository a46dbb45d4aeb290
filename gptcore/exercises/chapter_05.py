"""Exercises of chapter 5: pretraining."""

import math

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Exercise, Fresh

# --- 5.1 -----------------------------------------------------------------------------------------


def check_first_loss(answer: Answer, fresh: Fresh) -> None:
    for V in (2, 3, 256, 4096, fresh.integer(300, 100_000)):
        answer.expect(
            (V,),
            (math.log(V), float(V)),
            {
                "that loss is in bits; the course counts in nats, with the natural logarithm.": (
                    math.log2(V),
                    float(V),
                ),
                "the loss is the *negative* logarithm of the probability 1 / V.": (-math.log(V), float(V)),
                "the probability of the right token is 1 / V; the loss is minus its logarithm.": (1 / V, float(V)),
                "the loss is right; the perplexity is exp of it.": (math.log(V), math.log(V)),
                "the loss is right; the perplexity is exp of the loss in nats, not 2 to its power.": (
                    math.log(V),
                    2 ** math.log(V),
                ),
                "first the loss, then the perplexity.": (float(V), math.log(V)),
                "a loss of 0 belongs to a model that is certain and right.": (0.0, 1.0),
            },
        )


# --- 5.2 -----------------------------------------------------------------------------------------


def check_next_token_loss(answer: Answer, fresh: Fresh) -> None:
    cases = [(1, 2, 2, 1.0), (1, 3, 4, 1.0), (2, fresh.integer(4, 7), 5, 2.0), (3, 5, 8, 200.0)]
    for B, T, V, scale in cases:
        for dtype in (torch.float32, torch.float64):
            logits = fresh.normal(B, T, V, dtype=dtype, scale=scale)
            tokens = fresh.integers(0, V, B, T)
            exact = logits.double().log_softmax(dim=-1)

            def mean(logarithms: Tensor, wanted: Tensor) -> Tensor:
                return -logarithms.gather(-1, wanted[..., None]).mean()

            right = mean(exact[:, :-1], tokens[:, 1:])
            answer.expect(
                (logits, tokens),
                right.to(dtype),
                {
                    "inputs and targets are not shifted: row t of the logits is about token t + 1, not about token t, "
                    "which the model has already read.": lambda: mean(exact, tokens).to(dtype),
                    "the shift goes the wrong way: row t was asked for the token before it.": lambda: mean(
                        exact[:, 1:], tokens[:, :-1]
                    ).to(dtype),
                    "`roll` makes the first token the target of the last row. The last row has no target: leave it "
                    "out.": lambda: mean(exact, tokens.roll(-1, dims=1)).to(dtype),
                    "the sum was returned; the mean does not depend on how many tokens there are.": (
                        right * B * (T - 1)
                    ).to(dtype),
                    "there are T - 1 predictions in a row, not T.": (right * (T - 1) / T).to(dtype),
                    "the sum over the positions was divided by the number of texts only.": (right * (T - 1)).to(dtype),
                    "softmax was taken twice: `cross_entropy` wants logits.": lambda: mean(
                        exact.exp().log_softmax(dim=-1)[:, :-1], tokens[:, 1:]
                    ).to(dtype),
                    "the sign: a loss is minus the logarithm of the probability.": (-right).to(dtype),
                    "the mean of the probabilities was taken; the loss is minus the mean of their logarithms.": (
                        lambda: -mean(exact.exp()[:, :-1], tokens[:, 1:]).to(dtype)
                    ),
                    "that is in bits; nats are wanted, with the natural logarithm.": (right / math.log(2)).to(dtype),
                },
                tolerance=1e-3 if dtype is torch.float32 else None,
            )


# --- 5.3 -----------------------------------------------------------------------------------------


def check_windows(answer: Answer, fresh: Fresh) -> None:
    cases = [(3, 2), (5, 2), (6, 3), (7, 3), (9, 4)]
    cases += [(fresh.integer(20, 40), fresh.integer(3, 6)), (fresh.integer(50, 90), 8)]
    for length, T in cases:
        tokens = fresh.integers(0, 100, length)
        count = (length - 1) // T
        inputs, targets = tokens[: count * T].view(count, T), tokens[1 : count * T + 1].view(count, T)
        whole = tokens[: length // T * T].view(-1, T)
        answer.expect(
            (tokens, T),
            (inputs, targets),
            {
                "the last target of each window is its own first token: `roll` goes round within a row. It is the token "
                "that follows in the stream.": (inputs, inputs.roll(-1, dims=1)),
                "the last target of each window is its own first token, and the last window may have no next token at "
                "all: a stream of N tokens has (N - 1) // T windows.": (whole, whole.roll(-1, dims=1)),
                "the targets are the inputs: nothing is to be predicted.": (inputs, inputs),
                "the targets are the tokens before, not those that follow.": lambda: (
                    inputs,
                    tokens.roll(1)[: count * T].view(count, T),
                ),
                "the last target is the first token of the whole stream: there is no next token for it, so leave this "
                "window out.": lambda: (whole, tokens.roll(-1)[: len(whole) * T].view(-1, T)),
                "each window loses a token at its end: only T - 1 are predicted.": (inputs[:, :-1], inputs[:, 1:]),
                "a window is missing: (N - 1) // T fit into a stream of N tokens.": (inputs[:-1], targets[:-1]),
                "inputs and targets have changed places.": (targets, inputs),
            },
        )


# --- 5.4 -----------------------------------------------------------------------------------------


def check_frequency_loss(answer: Answer, fresh: Fresh) -> None:
    cases = [([0, 0], 2), ([0, 1], 2), ([0, 0, 1], 2), ([0, 0, 0, 2], 3)]
    cases.append((fresh.integers(0, 4, 12).tolist(), 6))
    cases.append(((fresh.normal(300).abs() * 8).long().tolist(), 60))
    for tokens, V in cases:
        tokens = torch.tensor(tokens)
        counts = torch.bincount(tokens, minlength=V).double()
        shares = counts[counts > 0] / counts.sum()
        right = -(shares * shares.log()).sum().item()
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
    for left, right in zip(source[:-1].tolist(), source[1:].tolist(), strict=True):
        if fault == "backwards":
            left, right = right, left
        counts[left, right] += 1
    if fault != "smoothing":
        counts = counts + add
    axis = 0 if fault == "columns" else 1
    probabilities = counts / (counts.sum() if fault == "joint" else counts.sum(dim=axis, keepdim=True))
    if fault == "late":
        probabilities = (counts - add) / (counts - add).sum(dim=1, keepdim=True).clamp(min=1) + add
    if fault == "unigram":
        probabilities = (counts.sum(dim=0) / counts.sum()).expand(V, V)
    chosen = probabilities[test[:-1], test[1:]]
    return -chosen.log().mean()


def check_bigram_loss(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "smoothing": "`add` was not added: a pair that training never showed gets probability 0, and the loss infinity.",
        "columns": "each *row* of the table must sum to 1: given a token, the next one. Yours does so by columns.",
        "joint": "the table holds the probability of a pair. Wanted is that of a token *given* the one before: divide by "
        "the sum of the row.",
        "test": "the pairs were counted in the test text. Whoever counts there has seen the answers.",
        "backwards": "the table predicts the token before from the one after.",
        "unigram": "the token before was not used; these are plain frequencies.",
        "late": "`add` must be added to the counts, before they are divided; afterwards the rows sum to more than 1.",
    }
    cases = [([0, 1, 0], [0, 1], 2, 1.0), ([0, 0, 1, 2], [0, 1, 2, 0], 3, 1.0)]
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
            {text: lambda f=fault, a=arguments: _bigram(*a, f).item() for fault, text in mistakes.items()},
            tolerance=1e-4,
        )


EXERCISES = (
    Exercise(
        number="5.1",
        title="What the first loss must be",
        minutes=3,
        difficulty=1,
        task="""\
An untrained model gives each of `V` tokens the same probability. Which loss, in nats, does it start with, and which
perplexity? Predict it for V = 4096 before you let the function tell you. If a run of your own ever begins elsewhere,
something is wrong with it.""",
        stub='''\
import math


def first_loss(V):
    """Loss in nats and perplexity of a model that knows nothing, as a tuple."""
    ...''',
        demo="print(first_loss(4096))",
        checker=check_first_loss,
        hints=("The loss is minus the logarithm of the probability of the right token.", "-log(1 / V) = log V."),
        solution='''\
import math


def first_loss(V):
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
at the last target of each window in what the cell prints: it is the wrong one. The model is taught a wrong token in
every window. Repair the function: as many windows as the stream has targets for, and the target of each position
the token that follows *in the stream*.""",
        stub='''\
import torch


def windows(tokens, T):
    """A stream (N,) as inputs and targets, both (windows, T)."""
    count = len(tokens) // T
    inputs = tokens[: count * T].view(count, T)
    targets = inputs.roll(-1, dims=1)
    return inputs, targets''',
        demo="""\
inputs, targets = windows(torch.arange(10, 19), 3)
print("inputs ", inputs.tolist())
print("targets", targets.tolist())""",
        checker=check_windows,
        hints=(
            "What does `roll` put at the end of a row?",
            "Inputs are the stream from 0 on, targets the same stream from 1 on. How many windows have all their "
            "targets?",
            "`count = (len(tokens) - 1) // T`, inputs `tokens[: count * T]`, targets `tokens[1 : count * T + 1]`.",
        ),
        solution='''\
import torch


def windows(tokens, T):
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
A model that never looks at the context can still learn how frequent each token is. What is the lowest loss that it
can reach on a text, in nats a token? Derive which probabilities are best, and write the function for ids `(N,)` and
a vocabulary of `V`, of which some tokens may not occur.""",
        stub='''\
import torch


def frequency_loss(tokens, V):
    """Lowest loss on ids (N,) that is possible without looking at the context."""
    ...''',
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
The smallest language model looks at one token: the probability of the next one given the last, counted in the
training text. Give each pair `add` counts more than it had, so that a pair that was never seen is not impossible.
Return the mean loss in nats on the test text: of its tokens but the first, each given the one before. Afterwards try
it on real text: which `add` is best, and how far below the frequencies of 5.4 does one token of context bring you?""",
        stub='''\
import torch


def bigram_loss(train, test, V, add):
    """Loss on the ids test (M,) of a model that counted pairs in the ids train (N,)."""
    ...''',
        demo="""\
from gptcore.chain import documents_as_tokens
from gptcore.checkpoint import load_stage
from gptcore.corpus import pretraining_documents

model, tokenizer = load_stage("base")
ids = documents_as_tokens(tokenizer, pretraining_documents(seed=1), 40_000)
for add in (1.0, 0.01):
    print("add", add, "  loss", bigram_loss(ids[:30_000], ids[30_000:], tokenizer.vocabulary_size, add))""",
        checker=check_bigram_loss,
        seconds=30.0,
        hints=(
            "A table (V, V): row the token before, column the next one.",
            "`counts.index_put_((train[:-1], train[1:]), torch.tensor(1.0), accumulate=True)` counts all pairs at "
            "once; a loop does it, too.",
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
    return -table[test[:-1], test[1:]].log().mean()''',
        praise="Every larger language model is measured against such a table, and a trained decoder must beat it by "
        "looking further back.",
    ),
)
