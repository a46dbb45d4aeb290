"""Answers to the exercises of chapter 12: others that are right, and wrong ones with what they are told."""

from answers import Answers

from gptcore.exercises import exercises

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

_PRICE = exercises()["12.1"].solution

_BYTES = exercises()["12.5"].solution

ANSWERS = {
    "12.1": Answers(
        right=[
            """
import torch

def price_of_distance(reference, rewards, nats):
    prices = torch.logspace(-4, 6, 20001, dtype=torch.float64)
    best = (reference.double().log() + rewards.double() / prices[:, None]).log_softmax(1)
    distances = (best.exp() * (best - reference.double().log())).sum(1)
    return prices[(distances - nats).abs().argmin()].item()
"""
        ],
        wrong={
            "1 / beta": _PRICE.replace("return math.exp(low)", "return math.exp(-low)"),
            "turned round": _PRICE.replace(
                "(best.exp() * (best - reference.log()))", "(reference * (reference.log() - best))"
            ),
            "in nats": _PRICE.replace("> nats", "> nats * math.log(2)"),
            "logarithm of the price": _PRICE.replace("return math.exp(low)", "return low"),
            "for a reference that is uniform": _PRICE.replace(
                "    reference, rewards =",
                "    reference = torch.ones_like(reference) / len(reference)\n    reference, rewards =",
            ),
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
def bytes_of_one(parameters, processes, divided):
    total = 16.0
    for part in divided:
        size = 12 if part == "optimiser" else 2
        total -= size * (1 - 1 / processes)
    return parameters * total
"""
        ],
        wrong={
            "8 bytes": _BYTES.replace("12}", "8}"),
            "half precision": _BYTES.replace('"gradients": 2', '"gradients": 4'),
            "everything was divided": _BYTES.replace(" if part in divided else size", ""),
            "nothing was divided": _BYTES.replace("size / processes if part in divided else size", "size"),
            "divides the others": _BYTES.replace("if part in divided", "if part not in divided"),
            "are there as well": _BYTES.replace(
                "size / processes if part in divided else size for part, size in sizes.items()",
                "size / processes for part, size in sizes.items() if part in divided",
            ),
        },
    ),
}
