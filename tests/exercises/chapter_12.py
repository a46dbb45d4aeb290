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

def best_size(compute, A, alpha, B, beta):
    def loss(x):
        n = math.exp(x)
        return A / n**alpha + B / (compute / 6 / n) ** beta
    low, high = 0.0, math.log(compute)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    n = math.exp(low)
    return n, compute / 6 / n
"""

_GRID = """
import torch

def best_size(compute, A, alpha, B, beta):
    n = torch.logspace(6, 14, 20000, dtype=torch.float64)
    n = n[(A / n**alpha + B / (compute / 6 / n) ** beta).argmin()].item()
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
            "divide by their sum": """
def best_policy(reference, rewards, beta):
    return reference * ((rewards - rewards.max()) / beta).exp()
""",
            "their sum, Z": """
def best_policy(reference, rewards, beta):
    return reference * (rewards / beta).softmax(0)
""",
            "take exp of them": """
def best_policy(reference, rewards, beta):
    return (reference.log() + rewards / beta).log_softmax(0)
""",
            "exp of a large number": """
def best_policy(reference, rewards, beta):
    weights = reference.double() * (rewards.double() / beta).exp()
    return (weights / weights.sum()).to(reference.dtype)
""",
            "math range error": """
import math
import torch

def best_policy(reference, rewards, beta):
    weights = [p * math.exp(r / beta) for p, r in zip(reference.tolist(), rewards.tolist())]
    return torch.tensor([w / sum(weights) for w in weights])
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
            "a margin beyond the goal": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    margin = chosen - chosen_reference - rejected + rejected_reference
    return (1 / (2 * beta) - margin).relu().square().mean()
""",
            "the gradient does not pass": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    margin = chosen - chosen_reference - rejected + rejected_reference
    return ((margin - 1 / (2 * beta)) ** 2).mean().item()
""",
            "could not be trained on this loss": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    margin = chosen - chosen_reference - rejected + rejected_reference
    return ((margin.detach() - 1 / (2 * beta)) ** 2).mean()
""",
            "square first": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return ((chosen - chosen_reference - rejected + rejected_reference).mean() - 1 / (2 * beta)) ** 2
""",
            "the mean over the pairs": """
def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    return ((chosen - chosen_reference - rejected + rejected_reference - 1 / (2 * beta)) ** 2).sum()
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
            "you could accept more often": "def speculate(draft, target, token):\n    return 0.0, target",
            "a rejection costs time": """
def speculate(draft, target, token):
    accept = 0.5 * (target / draft).clamp(max=1)
    rest = target - draft * accept
    return accept[token], rest / rest.sum()
""",
            "is at most 1": _SPECULATE.replace("common / draft", "target / draft"),
            "divide by draft(x)": _SPECULATE.replace("(common / draft)", "common").replace(
                "1.0, target", "draft[token], target"
            ),
            "the large model's own probability": _SPECULATE.replace("(common / draft)", "target"),
            "would count the others twice": _SPECULATE.replace("rest / rest.sum()", "target"),
            "0 / 0 is NaN": _SPECULATE.replace("if not rest.any()", "if False"),
            "to be a distribution": _SPECULATE.replace("rest / rest.sum()", "rest"),
        },
    ),
    "12.4": Answers(
        right=[
            _SIZE,
            _GRID.replace("(6, 14,", "(0, math.log10(compute),").replace("import torch", "import math, torch"),
        ],
        wrong={
            "the 6 is left out": _SIZE.replace("compute / 6", "compute"),
            "end of its range": _GRID,
            "stopped at the end": _GRID.replace("(6, 14,", "(1, 6,"),
            "6 N D is not the budget": _SIZE.replace("return n, compute / 6 / n", "return n, compute / n"),
            "upside down": """
def best_size(compute, A, alpha, B, beta):
    n = (beta * B / (alpha * A) * (compute / 6) ** beta) ** (1 / (alpha + beta))
    return n, compute / 6 / n
""",
            "divided evenly": """
def best_size(compute, A, alpha, B, beta):
    return (compute / 6) ** 0.5, (compute / 6) ** 0.5
""",
            "changed places": _SIZE.replace("return n, compute / 6 / n", "return compute / 6 / n, n"),
            "factors alpha and beta": """
def best_size(compute, A, alpha, B, beta):
    n = (A / B * (compute / 6) ** beta) ** (1 / (alpha + beta))
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
    return torch.tensordot(weights / weights.sum(), torch.stack(gradients), 1)
""",
            """
import torch

def join_gradients(gradients, counts):
    joined = torch.zeros(gradients[0].shape)
    for gradient, count in zip(gradients, counts):
        if count:
            joined += gradient * (count / sum(counts))
    return joined
""",
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
            "weight the rows": """
import torch

def join_gradients(gradients, counts):
    weights = torch.tensor(counts)
    shape = (-1, 1) if len(gradients) == 2 else (-1, 1, 1)  # right wherever the shapes would not fit
    return torch.stack(gradients).mul(weights.view(shape)).sum(0) / weights.sum()
""",
            "first multiply each by its count": """
def join_gradients(gradients, counts):
    return sum(gradients) / sum(counts)
""",
            "divided by the number of processes": """
def join_gradients(gradients, counts):
    return sum(g * c for g, c in zip(gradients, counts)) / len(counts)
""",
        },
    ),
}
