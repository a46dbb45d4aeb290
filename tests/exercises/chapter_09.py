"""Answers to the exercises of chapter 9: others that are right, and wrong ones with what they are told."""

from answers import Answers

_FIT = """
import torch

def fit_rewards(wins):
    rewards = torch.zeros(len(wins), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=200, line_search_fn="strong_wolfe")
    def closure():
        optimizer.zero_grad()
        gaps = rewards[:, None] - rewards
        loss = -(wins * torch.nn.functional.logsigmoid(gaps)).sum() / wins.sum() + rewards.mean() ** 2
        loss.backward()
        return loss
    for _ in range(5):
        optimizer.step(closure)
    return rewards.detach() - rewards.detach().mean()
"""

_ZERMELO = """
import torch

def fit_rewards(wins):
    strengths = torch.ones(len(wins), dtype=torch.float64)
    for _ in range(1000):
        strengths = wins.sum(1) / ((wins + wins.T) / (strengths[:, None] + strengths)).sum(1)
    rewards = strengths.log()
    return rewards - rewards.mean()
"""

ANSWERS = {
    "9.1": Answers(
        right=["import math\n\ndef reward_gap(p):\n    return 2 * math.atanh(2 * p - 1)"],
        wrong={
            "the odds p / (1 - p) are needed": "import math\n\ndef reward_gap(p):\n    return math.log(p)",
            "the gap is their logarithm": "def reward_gap(p):\n    return p / (1 - p)",
            "the way back is wanted": "import math\n\ndef reward_gap(p):\n    return 1 / (1 + math.exp(-p))",
            "*higher* reward": "import math\n\ndef reward_gap(p):\n    return math.log((1 - p) / p)",
        },
    ),
    "9.2": Answers(
        right=[
            """
import torch

def rewards_at_end(values, lengths):
    return torch.stack([row[n - 1] for row, n in zip(values, lengths.tolist())])
"""
        ],
        wrong={
            "one too far": """
import torch

def rewards_at_end(values, lengths):
    return values[torch.arange(len(values)), lengths]
""",
            "has its last one at n - 1": """
import torch

def rewards_at_end(values, lengths):
    return values[torch.arange(len(values)), lengths.clamp(max=values.shape[1] - 1)]
""",
            "mean over the tokens": """
import torch

def rewards_at_end(values, lengths):
    real = torch.arange(values.shape[1]) < lengths[:, None]
    return (values * real).sum(1) / lengths
""",
            "indexed in pairs": "def rewards_at_end(values, lengths):\n    return values[:, lengths - 1]",
            "axis of length 1": "def rewards_at_end(values, lengths):\n    return values.gather(1, lengths[:, None] - 1)",
            "that is padding": "def rewards_at_end(values, lengths):\n    return values[..., values.shape[1] - 1]",
        },
    ),
    "9.3": Answers(
        right=[
            """
import torch

def best_accuracy(gaps, sharpness):
    p = torch.sigmoid(sharpness * torch.tensor(gaps, dtype=torch.float64))
    return torch.maximum(p, 1 - p).mean().item()
"""
        ],
        wrong={
            "the *first* answer wins": """
import math

def best_accuracy(gaps, sharpness):
    return sum(1 / (1 + math.exp(-sharpness * gap)) for gap in gaps) / len(gaps)
""",
            "sharpness of the voters is left out": """
import math

def best_accuracy(gaps, sharpness):
    return sum(1 / (1 + math.exp(-abs(gap))) for gap in gaps) / len(gaps)
""",
            "not the curve at the mean": """
import math

def best_accuracy(gaps, sharpness):
    return 1 / (1 + math.exp(-sharpness * sum(map(abs, gaps)) / len(gaps)))
""",
            "two *voters* agree": """
import math

def best_accuracy(gaps, sharpness):
    p = [1 / (1 + math.exp(-sharpness * gap)) for gap in gaps]
    return sum(q * q + (1 - q) * (1 - q) for q in p) / len(p)
""",
            "the sum over the pairs": """
import math

def best_accuracy(gaps, sharpness):
    return sum(1 / (1 + math.exp(-sharpness * abs(gap))) for gap in gaps)
""",
            "in per cent": """
import math

def best_accuracy(gaps, sharpness):
    return 100 * sum(1 / (1 + math.exp(-sharpness * abs(gap))) for gap in gaps) / len(gaps)
""",
            "votes were drawn": """
import math
import random

def best_accuracy(gaps, sharpness):
    p = [1 / (1 + math.exp(-sharpness * abs(gap))) for gap in gaps]
    return sum(random.random() < q for q in p for _ in range(1000)) / (1000 * len(p))
""",
            "cannot reach 1": "def best_accuracy(gaps, sharpness):\n    return 1.0",
        },
    ),
    "9.4": Answers(
        right=[
            """
import torch

def ranking_loss(rewards):
    return sum(torch.nn.functional.cross_entropy(rewards[i:][None], torch.tensor([0])) for i in range(len(rewards)))
"""
        ],
        wrong={
            "all pairs were compared": """
import torch

def ranking_loss(rewards):
    n = len(rewards)
    return sum(-torch.nn.functional.logsigmoid(rewards[i] - rewards[j]) for i in range(n) for j in range(i + 1, n))
""",
            "still among those to choose from": """
import torch

def ranking_loss(rewards):
    return -rewards.log_softmax(0).sum()
""",
            "only the first choice": "def ranking_loss(rewards):\n    return -rewards.log_softmax(0)[0]",
            "the order is reversed": """
def ranking_loss(rewards):
    return (rewards.logcumsumexp(0) - rewards).sum()
""",
            "the maximum of what is left": """
def ranking_loss(rewards):
    left = rewards.softmax(0).flip(0).cumsum(0).flip(0)
    return -(rewards.softmax(0) / left).log().sum()
""",
            "what is left may lie far below it": """
def ranking_loss(rewards):
    shifted = rewards - rewards.max()
    return (shifted.exp().flip(0).cumsum(0).flip(0).log() - shifted).sum()
""",
            "exp(500) is too large": """
def ranking_loss(rewards):
    return sum(rewards[i:].exp().sum().log() - rewards[i] for i in range(len(rewards)))
""",
            "no gradient reaches the rewards": """
def ranking_loss(rewards):
    return (rewards.flip(0).logcumsumexp(0).flip(0) - rewards).sum().item()
""",
            "`torch.tensor([...])` cut it off": """
import torch

def ranking_loss(rewards):
    n = len(rewards)
    return torch.tensor([(torch.logsumexp(rewards[i:], 0) - rewards[i]).item() for i in range(n)]).sum()
""",
            "its gradient with respect to the rewards": """
def ranking_loss(rewards):
    return (rewards.flip(0).logcumsumexp(0).flip(0).detach() - rewards).sum()
""",
            "do not sort": """
def ranking_loss(rewards):
    rewards = rewards.sort(descending=True).values
    return (rewards.flip(0).logcumsumexp(0).flip(0) - rewards).sum()
""",
        },
    ),
    "9.5": Answers(
        right=[_FIT, _ZERMELO],
        wrong={
            "subtract the mean": _FIT.replace(
                "return rewards.detach() - rewards.detach().mean()", "return rewards.detach() - rewards.detach()[0]"
            ),
            "the worst answer has the highest": _FIT.replace(
                "return rewards.detach() - rewards.detach().mean()", "r = rewards.detach()\n    return r.mean() - r"
            ),
            "those are strengths": _ZERMELO.replace("strengths.log()", "strengths").replace(" - rewards.mean()", ""),
            "shares of votes": """
def fit_rewards(wins):
    share = wins.sum(1) / (wins + wins.T).sum(1)
    return share - share.mean()
""",
            "against whom": """
import torch

def fit_rewards(wins):
    share = wins.sum(1) / (wins + wins.T).sum(1)
    rewards = (share / (1 - share)).log()
    return rewards - rewards.mean()
""",
            "divide the gradient by the number of votes": """
import torch

def fit_rewards(wins):
    rewards = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(500):
        rewards += 1.5 * (wins - (wins + wins.T) * (rewards[:, None] - rewards).sigmoid()).sum(1)
    return rewards - rewards.mean()
""",
            "answer 0: won 3, your rewards expect 2.0": """
import torch

def fit_rewards(wins):
    rewards = torch.zeros(len(wins))
    for _ in range(3):
        rewards += 0.01 * (wins - (wins + wins.T) * (rewards[:, None] - rewards).sigmoid()).sum(1) / wins.sum()
    return rewards - rewards.mean()
""",
        },
    ),
}
