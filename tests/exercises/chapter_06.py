"""Answers to the exercises of chapter 6: others that are right, and wrong ones with what they are told."""

from answers import Answers

_STEP = """
import torch

def scaled_step(weights, scaled_gradients, scale, limit, rate):
    flat = torch.cat([g.flatten() for g in scaled_gradients])
    if not torch.isfinite(flat).all():
        return weights
    flat = flat / scale
    length = flat.norm()
    if length > limit:
        flat = flat * (limit / length)
    pieces = flat.split([w.numel() for w in weights])
    for w, piece in zip(weights, pieces):
        w -= rate * piece.view_as(w)
    return weights
"""

_LION = """
import torch

def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    step = momentum.lerp(gradient, 1 - beta1).sign()
    weight.mul_(1 - rate * decay).sub_(rate * step)
    momentum.lerp_(gradient, 1 - beta2)
    return weight, momentum
"""

ANSWERS = {
    "6.1": Answers(
        right=[
            """
def root_schedule(step, warmup):
    if step < warmup:
        return (step + 1) / warmup
    return warmup**0.5 / (step + 1) ** 0.5
"""
        ],
        wrong={
            "count from 1": """
def root_schedule(step, warmup):
    return step / warmup if step < warmup else (warmup / step) ** 0.5
""",
            "paper of 2017": """
def root_schedule(step, warmup):
    return min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
""",
            "falls too fast": """
def root_schedule(step, warmup):
    return min((step + 1) / warmup, warmup / (step + 1))
""",
            "no warm-up": "def root_schedule(step, warmup):\n    return (warmup / (step + 1)) ** 0.5",
            "count from 1, step + 1": """
def root_schedule(step, warmup):
    return step / warmup if step < warmup else (warmup / (step + 1)) ** 0.5
""",
            "use step + 1 there, too": """
def root_schedule(step, warmup):
    return (step + 1) / warmup if step < warmup else (warmup / step) ** 0.5
""",
            "it jumps from 1 to": """
def root_schedule(step, warmup):
    return (step + 1) / warmup if step < warmup else 1 / (step + 1) ** 0.5
""",
            "the highest point is not 1": """
def root_schedule(step, warmup):
    return min((step + 1) / warmup, 1 / (step + 1) ** 0.5)
""",
            "one step too long": """
def root_schedule(step, warmup):
    return (step + 1) / warmup if step <= warmup else (warmup / (step + 1)) ** 0.5
""",
        },
    ),
    "6.2": Answers(
        right=[_STEP],
        wrong={
            "the larger it is, the shorter the step": """
import torch

def scaled_step(weights, scaled_gradients, scale, limit, rate):
    gradients = [g.clone() for g in scaled_gradients]
    if not all(g.isfinite().all() for g in gradients):
        return weights
    norm = sum(g.square().sum() for g in gradients).sqrt()
    if norm > limit:
        gradients = [g * limit / norm for g in gradients]
    return [w - rate * g / scale for w, g in zip(weights, gradients)]
""",
            "by the scale twice": _STEP.replace("piece.view_as(w)", "piece.view_as(w) / scale"),
            "never divided": _STEP.replace("flat = flat / scale", "pass"),
            "was made longer": _STEP.replace("if length > limit", "if True"),
            "by its own norm": """
import torch

def scaled_step(weights, scaled_gradients, scale, limit, rate):
    if not all(g.isfinite().all() for g in scaled_gradients):
        return weights
    new = []
    for w, g in zip(weights, scaled_gradients):
        g = g / scale
        new.append(w - rate * g * min(1, limit / g.norm()))
    return new
""",
            "each number was clipped": """
import torch

def scaled_step(weights, scaled_gradients, scale, limit, rate):
    if not all(g.isfinite().all() for g in scaled_gradients):
        return weights
    return [w - rate * (g / scale).clamp(-limit, limit) for w, g in zip(weights, scaled_gradients)]
""",
        },
    ),
    "6.3": Answers(
        right=[
            """
def safe_scale(largest):
    scale = 1.0
    while scale * largest > 65504:
        scale /= 2
    while 2 * scale * largest <= 65504:
        scale *= 2
    return scale
"""
        ],
        wrong={
            "overflows": """
import math

def safe_scale(largest):
    return 2.0 ** math.ceil(math.log2(65504 / largest))
""",
            "not a power of two": "def safe_scale(largest):\n    return 65504 / largest",
            "it may be smaller than 1": """
import math

def safe_scale(largest):
    return max(1.0, 2.0 ** math.floor(math.log2(65504 / largest)))
""",
            "use `math.floor`": """
import math

def safe_scale(largest):
    return 2.0 ** int(math.log2(65504 / largest))
""",
            "2 to its power": """
import math

def safe_scale(largest):
    return math.floor(math.log2(65504 / largest))
""",
            "not the other way round": """
import math

def safe_scale(largest):
    return 2.0 ** -math.floor(math.log2(65504 / largest))
""",
        },
    ),
    "6.4": Answers(
        right=[_LION],
        wrong={
            "only the sign": _LION.replace(".sign()", ""),
            "mixed with beta2": _LION.replace("1 - beta2", "1 - beta1"),
            "multiplied by the rate, too": _LION.replace("1 - rate * decay", "1 - decay"),
            "sign(0) is 0": """
import torch

def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    direction = torch.where(beta1 * momentum + (1 - beta1) * gradient > 0, 1.0, -1.0)
    return weight - rate * (direction + decay * weight), beta2 * momentum + (1 - beta2) * gradient
""",
            "only decays": """
def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    mixed = beta1 * momentum + (1 - beta1) * gradient
    return weight - rate * (mixed / mixed.abs() + decay * weight), beta2 * momentum + (1 - beta2) * gradient
""",
            "was updated before": """
def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    momentum = beta2 * momentum + (1 - beta2) * gradient
    direction = (beta1 * momentum + (1 - beta1) * gradient).sign()
    return weight - rate * (direction + decay * weight), momentum
""",
            "first the new weight": _LION.replace("return weight, momentum", "return momentum, weight"),
            "the old momentum was returned": _LION.replace("momentum.lerp_(gradient, 1 - beta2)", "pass"),
            "from the new momentum": """
def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    momentum = beta2 * momentum + (1 - beta2) * gradient
    return weight - rate * (momentum.sign() + decay * weight), momentum
""",
        },
    ),
    "6.5": Answers(
        right=[
            """
def judge(losses_a, losses_b):
    # Student's t with pooled variance, and the 5 % limits from a table
    n = len(losses_a)
    mean_a, mean_b = sum(losses_a) / n, sum(losses_b) / n
    squares = sum((x - mean_a) ** 2 for x in losses_a) + sum((x - mean_b) ** 2 for x in losses_b)
    t = (mean_a - mean_b) / (squares / (2 * n - 2) * 2 / n) ** 0.5
    if abs(t) < {4: 2.447, 5: 2.306, 6: 2.228, 7: 2.179, 8: 2.145}[n]:
        return "unclear"
    return "a" if sum(losses_a) < sum(losses_b) else "b"
""",
            """
import random

def judge(losses_a, losses_b):
    # permutations: how often does chance alone make so large a difference?
    n, both = len(losses_a), losses_a + losses_b
    difference = sum(losses_a) - sum(losses_b)
    shuffled = [random.sample(both, 2 * n) for _ in range(300)]
    if sum(abs(sum(s[:n]) - sum(s[n:])) >= abs(difference) for s in shuffled) > 0.07 * 300:
        return "unclear"
    return "a" if difference < 0 else "b"
""",
            """
def judge(losses_a, losses_b):
    if max(losses_a) < min(losses_b):
        return "a"
    return "b" if max(losses_b) < min(losses_a) else "unclear"
""",
            """
def judge(losses_a, losses_b):
    difference = (sum(losses_a) - sum(losses_b)) / len(losses_a)
    if abs(difference) <= max(max(losses_a) - min(losses_a), max(losses_b) - min(losses_b)):
        return "unclear"
    return "a" if difference < 0 else "b"
""",
        ],
        wrong={
            "always name a winner": """
def judge(losses_a, losses_b):
    return "a" if sum(losses_a) < sum(losses_b) else "b"
""",
            "your limit is a fixed number": """
def judge(losses_a, losses_b):
    difference = sum(losses_a) / len(losses_a) - sum(losses_b) / len(losses_b)
    if abs(difference) < 0.02:
        return "unclear"
    return "a" if difference < 0 else "b"
""",
            "never find anything": "def judge(losses_a, losses_b):\n    return 'unclear'",
            "you never name b": """
def judge(losses_a, losses_b):
    return "a" if max(losses_a) < min(losses_b) else "unclear"
""",
            "you never name a": """
def judge(losses_a, losses_b):
    return "b" if max(losses_b) < min(losses_a) else "unclear"
""",
            "a fixed number. What": """
def judge(losses_a, losses_b):
    difference = sum(losses_a) / len(losses_a) - sum(losses_b) / len(losses_b)
    if abs(difference) < 6:
        return "unclear"
    return "a" if difference < 0 else "b"
""",
            "you are too careful": """
def judge(losses_a, losses_b):
    ranges = max(losses_a) - min(losses_a) + max(losses_b) - min(losses_b)
    difference = (sum(losses_a) - sum(losses_b)) / len(losses_a)
    if abs(difference) < 1.3 * ranges:
        return "unclear"
    return "a" if difference < 0 else "b"
""",
            "name the worse one": """
from statistics import mean, stdev

def judge(losses_a, losses_b):
    difference = mean(losses_a) - mean(losses_b)
    error = (stdev(losses_a) ** 2 / len(losses_a) + stdev(losses_b) ** 2 / len(losses_b)) ** 0.5
    if abs(difference) < 2.3 * error:
        return "unclear"
    return "a" if difference > 0 else "b"
""",
            "cry wolf": """
from statistics import mean, stdev

def judge(losses_a, losses_b):
    difference = mean(losses_a) - mean(losses_b)
    if abs(difference) < 0.3 * stdev(losses_a):
        return "unclear"
    return "a" if difference < 0 else "b"
""",
        },
    ),
}
