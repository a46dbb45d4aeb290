"""Answers to the exercises of chapter 12: others that are right, and wrong ones with what they are told."""

from answers import Answers

_SPECULATE = """
def speculate(draft, target, token):
    common = draft.minimum(target)
    rest = target - common
    if not rest.any():
        return 1.0, target
    return (common / draft)[token], rest / rest.sum()
"""

_SIZE = """
import math

def best_size(compute, a, alpha, b, beta):
    def loss(x):
        n = math.exp(x)
        return a / n**alpha + b / (compute / 6 / n) ** beta
    low, high = 0.0, math.log(compute)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    n = math.exp(low)
    return n, compute / 6 / n
"""

ANSWERS = {
    "12.1": Answers(
        right=[
            """
def best_policy(reference, rewards, beta):
    weights = reference * ((rewards - rewards.max()) / beta).exp()
    return weights / weights.sum()
"""
        ],
        wrong={
            "the reference is left out": "def best_policy(reference, rewards, beta):\n    return (rewards / beta).softmax(0)",
            "do not multiply": """
def best_policy(reference, rewards, beta):
    return (reference.log() + beta * rewards).softmax(0)
""",
            "do not sum to 1": """
def best_policy(reference, rewards, beta):
    return reference * (rewards / beta).exp()
""",
            "as if they were logarithms": """
def best_policy(reference, rewards, beta):
    return (reference + rewards / beta).softmax(0)
""",
            "holds NaN": """
def best_policy(reference, rewards, beta):
    weights = reference * (rewards / beta).exp()
    return weights / weights.sum()
""",
        },
    ),
    "12.2": Answers(
        right=[
            """
from torch.nn import functional as F
import torch

def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    policy, reference = chosen - rejected, chosen_reference - rejected_reference
    return F.mse_loss(policy - reference, torch.full_like(policy, 0.5 / beta))
"""
        ],
        wrong={
            "the reference is left out": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return ((chosen - rejected - 1 / (2 * beta)) ** 2).mean()
""",
            "that is DPO's loss": """
from torch.nn import functional as F

def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return -F.logsigmoid(beta * (chosen - chosen_reference - rejected + rejected_reference)).mean()
""",
            "not beta / 2": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return ((chosen - chosen_reference - rejected + rejected_reference - 1 / 2 * beta) ** 2).mean()
""",
            "chosen and rejected have changed places": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return ((rejected - rejected_reference - chosen + chosen_reference - 1 / (2 * beta)) ** 2).mean()
""",
        },
    ),
    "12.3": Answers(
        right=[_SPECULATE],
        wrong={
            "upside down": _SPECULATE.replace("(common / draft)", "(common / target)"),
            "would count the others twice": _SPECULATE.replace("rest / rest.sum()", "target"),
            "0 / 0 is NaN": _SPECULATE.replace("if not rest.any()", "if False"),
            "to be a distribution": _SPECULATE.replace("rest / rest.sum()", "rest"),
        },
    ),
    "12.4": Answers(
        right=[_SIZE],
        wrong={
            "the 6 is left out": _SIZE.replace("compute / 6", "compute"),
            "divided evenly": """
def best_size(compute, a, alpha, b, beta):
    return (compute / 6) ** 0.5, (compute / 6) ** 0.5
""",
            "changed places": _SIZE.replace("return n, compute / 6 / n", "return compute / 6 / n, n"),
            "factors alpha and beta": """
def best_size(compute, a, alpha, b, beta):
    n = (a / b * (compute / 6) ** beta) ** (1 / (alpha + beta))
    return n, compute / 6 / n
""",
        },
    ),
    "12.5": Answers(
        right=[
            """
import torch

def join_gradients(gradients, counts):
    weights = torch.tensor(counts, dtype=gradients[0].dtype)
    return torch.stack(gradients).mul(weights[:, None]).sum(0) / weights.sum()
"""
        ],
        wrong={
            "every process counts alike": """
def join_gradients(gradients, counts):
    return sum(gradients) / len(gradients)
""",
            "the sum is too long": "def join_gradients(gradients, counts):\n    return sum(gradients)",
            "not divided by their sum": """
def join_gradients(gradients, counts):
    return sum(g * c for g, c in zip(gradients, counts))
""",
            "divided by the number of processes": """
def join_gradients(gradients, counts):
    return sum(g * c for g, c in zip(gradients, counts)) / len(counts)
""",
        },
    ),
}
