"""Answers to the exercises of chapter 5: others that are right, and wrong ones with what they are told."""

from answers import Answers

_BIGRAM = """
import torch

def bigram_loss(train, test, V, add):
    counts = torch.zeros(V, V)
    for a, b in zip(train.tolist(), train.tolist()[1:]):
        counts[a, b] += 1
    counts += add
    probabilities = counts / counts.sum(1)[:, None]
    total = 0.0
    for a, b in zip(test.tolist(), test.tolist()[1:]):
        total -= probabilities[a, b].log().item()
    return total / (len(test) - 1)
"""

ANSWERS = {
    "5.1": Answers(
        right=[
            """
import torch

def starting_loss(V):
    loss = torch.nn.functional.cross_entropy(torch.zeros(1, V, dtype=torch.float64), torch.tensor([0]))
    return loss.item(), loss.exp().item()
"""
        ],
        wrong={
            "in bits": "import math\ndef starting_loss(V):\n    return math.log2(V), float(V)",
            "minus its logarithm": "def starting_loss(V):\n    return 1 / V, V",
            "exp of it": "import math\ndef starting_loss(V):\n    return math.log(V), math.log(V)",
            "first the loss": "import math\ndef starting_loss(V):\n    return V, math.log(V)",
            "among how many": "import math\ndef starting_loss(V):\n    return math.log(V), 1 / V",
        },
    ),
    "5.2": Answers(
        right=[
            """
import torch

def next_token_loss(logits, tokens):
    total, count = 0.0, 0
    for row, ids in zip(logits, tokens):
        for t in range(len(ids) - 1):
            total = total + torch.logsumexp(row[t], 0) - row[t, ids[t + 1]]
            count += 1
    return total / count
"""
        ],
        wrong={
            "are not shifted": """
from torch.nn import functional as F

def next_token_loss(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
""",
            "the shift goes the wrong way": """
from torch.nn import functional as F

def next_token_loss(logits, tokens):
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
""",
            "softmax was taken twice": """
from torch.nn import functional as F

def next_token_loss(logits, tokens):
    return F.cross_entropy(logits.softmax(-1)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
""",
            "has no target": """
from torch.nn import functional as F

def next_token_loss(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
""",
            "infinity": """
import torch

def next_token_loss(logits, tokens):
    p = logits.softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])
    return -p.log().mean()
""",
            "caps the surprise": """
import torch

def next_token_loss(logits, tokens):
    p = logits.softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])
    return -(p + 1e-9).log().mean()
""",
            "of the next text": """
from torch.nn import functional as F

def next_token_loss(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1)[:-1], tokens.flatten()[1:])
""",
        },
    ),
    "5.3": Answers(
        right=[
            """
import torch

def cut_windows(tokens, T):
    pairs = tokens.unfold(0, T + 1, T)  # (windows, T + 1), neighbours share a token
    return pairs[:, :T], pairs[:, 1:]
"""
        ],
        wrong={
            "goes round within a row": """
import torch

def cut_windows(tokens, T):
    count = (len(tokens) - 1) // T
    inputs = tokens[: count * T].view(count, T)
    return inputs, inputs.roll(-1, dims=1)
""",
            "Is there one for every window?": """
import torch

def cut_windows(tokens, T):
    inputs = tokens[: len(tokens) // T * T].view(-1, T)
    return inputs, inputs.roll(-1, dims=1)
""",
            "although the stream goes on": """
import torch

def cut_windows(tokens, T):
    count = len(tokens) // T - 1
    return tokens[: count * T].view(count, T), tokens[1 : count * T + 1].view(count, T)
""",
            "a window is missing": """
import torch

def cut_windows(tokens, T):
    count = (len(tokens) - 1) // T - 1
    return tokens[: count * T].view(count, T), tokens[1 : count * T + 1].view(count, T)
""",
            "nothing is to be predicted": """
import torch

def cut_windows(tokens, T):
    count = (len(tokens) - 1) // T
    inputs = tokens[: count * T].view(count, T)
    return inputs, inputs
""",
            "first token of the whole stream": """
import torch

def cut_windows(tokens, T):
    count = len(tokens) // T
    shifted = tokens.roll(-1)
    return tokens[: count * T].view(count, T), shifted[: count * T].view(count, T)
""",
            "loses a token at its end": """
import torch

def cut_windows(tokens, T):
    count = (len(tokens) - 1) // T
    inputs = tokens[: count * T].view(count, T)
    return inputs[:, :-1], inputs[:, 1:]
""",
        },
    ),
    "5.4": Answers(
        right=[
            """
from collections import Counter
from math import log

def frequency_loss(tokens, V):
    n = len(tokens)
    return sum(c / n * log(n / c) for c in Counter(tokens.tolist()).values())
"""
        ],
        wrong={
            "knows nothing": "import math\ndef frequency_loss(tokens, V):\n    return math.log(V)",
            "is NaN": """
import torch

def frequency_loss(tokens, V):
    shares = torch.bincount(tokens, minlength=V) / len(tokens)
    return -(shares * shares.log()).sum()
""",
            "in bits": """
import torch

def frequency_loss(tokens, V):
    shares = torch.bincount(tokens, minlength=V) / len(tokens)
    return -shares[tokens].log2().mean()
""",
            "averaged over the *vocabulary*": """
import torch

def frequency_loss(tokens, V):
    shares = torch.bincount(tokens, minlength=V) / len(tokens)
    return -shares[shares > 0].log().mean()
""",
        },
    ),
    "5.5": Answers(
        right=[_BIGRAM],
        wrong={
            "gets probability 0": _BIGRAM.replace("counts += add", "pass"),
            "does so by columns": _BIGRAM.replace("counts.sum(1)[:, None]", "counts.sum(0)"),
            "divide by the sum of the row": _BIGRAM.replace("counts.sum(1)[:, None]", "counts.sum()"),
            "seen the answers": _BIGRAM.replace("train.tolist()", "test.tolist()"),
            "was counted once": """
import torch

def bigram_loss(train, test, V, add):
    counts = torch.zeros(V, V)
    counts[train[:-1], train[1:]] += 1
    counts += add
    return -(counts / counts.sum(1, keepdim=True))[test[:-1], test[1:]].log().mean()
""",
            "grows by add * V": _BIGRAM.replace("counts += add", "sums = counts.sum(1)[:, None]").replace(
                "counts / counts.sum(1)[:, None]", "(counts + add) / sums"
            ),
            "by add * V; yours": _BIGRAM.replace("counts += add", "sums = counts.sum(1)[:, None]").replace(
                "counts / counts.sum(1)[:, None]", "(counts + add) / (sums + add)"
            ),
            "begins no pair": _BIGRAM.replace(
                "counts.sum(1)[:, None]", "(train.bincount(minlength=V) + add * V)[:, None]"
            ),
            "sum of another row": _BIGRAM.replace("counts.sum(1)[:, None]", "counts.sum(1)"),
            "whatever `add` is": _BIGRAM.replace("counts += add", "counts += 1"),
            "all tokens of the test text": _BIGRAM.replace("/ (len(test) - 1)", "/ len(test)"),
            "in bits": _BIGRAM.replace(".log()", ".log2()"),
            "the sign": _BIGRAM.replace("total -=", "total +="),
            "the loss is the mean": _BIGRAM.replace("total / (len(test) - 1)", "total"),
            "from the one after": _BIGRAM.replace("counts[a, b]", "counts[b, a]"),
        },
    ),
}
