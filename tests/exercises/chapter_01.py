"""Answers to the exercises of chapter 1: others that are right, and wrong ones with what they are told."""

from answers import Answers

ANSWERS = {
    "1.1": Answers(
        right=["def allowed_pairs(T):\n    return sum(range(T + 1))"],
        wrong={
            "the whole square": "def allowed_pairs(T):\n    return T * T",
            "the diagonal is missing": "def allowed_pairs(T):\n    return T * (T - 1) // 2",
            "not by half": "def allowed_pairs(T):\n    return T * T / 2",
            "returns nothing": "def allowed_pairs(T):\n    T * (T + 1) // 2",
        },
    ),
    "1.2": Answers(
        right=[
            """
import torch

def sliding_mask(T, window):
    mask = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        mask[t, max(0, t - window + 1) : t + 1] = True
    return mask
""",
            """
import torch

def sliding_mask(T, window):
    return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
""",
        ],
        wrong={
            "full causal mask": """
import torch

def sliding_mask(T, window):
    return torch.ones(T, T, dtype=torch.bool).tril()
""",
            "symmetric": """
import torch

def sliding_mask(T, window):
    i = torch.arange(T)
    return (i[:, None] - i).abs() < window
""",
            "rows and columns have changed places": """
import torch

def sliding_mask(T, window):
    distance = torch.arange(T) - torch.arange(T)[:, None]
    return (distance >= 0) & (distance < window)
""",
            "one token too many": """
import torch

def sliding_mask(T, window):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance >= 0) & (distance <= window)
""",
            "dtype bool": """
import torch

def sliding_mask(T, window):
    return torch.ones(T, T).tril().triu(1 - window)
""",
        },
    ),
    "1.3": Answers(
        right=[
            """
from torch.nn import functional as F

def decoder_attention(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)
""",
            """
import torch

def decoder_attention(query, key, value):
    T, D = query.shape[-2:]
    scores = torch.einsum("...td,...sd->...ts", query, key)
    scores *= D ** -0.5
    shares = (scores - scores.amax(-1, keepdim=True)).exp().tril()
    return shares @ value / shares.sum(-1, keepdim=True)
""",
        ],
        wrong={
            "mask the scores, before softmax": """
import torch

def decoder_attention(query, key, value):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.softmax(-1).tril() @ value
""",
            "exp(0) = 1 gets a share": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return (scores * torch.ones(T, T).tril().to(scores)).softmax(-1) @ value
""",
            "the wrong way round": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    allowed = torch.ones(T, T, dtype=torch.bool).tril()
    return scores.masked_fill(~allowed.T, float("-inf")).softmax(-1) @ value
""",
            "has nothing else, so it gets NaN": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    allowed = torch.ones(T, T, dtype=torch.bool).tril(-1)
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value
""",
            "division by the root of D is gone": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1)
    allowed = torch.ones(T, T, dtype=torch.bool).tril()
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value
""",
        },
    ),
    "1.4": Answers(
        right=[
            """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(C, D).uniform_(-1, 1, generator=generator)
    weights *= (3 / C) ** 0.5
    return weights
""",
            """
import numpy as np
import torch

def first_weights(C, D, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((C, D)) / C**0.5).float()
""",
        ],
        wrong={
            "all positive": """
import torch

def first_weights(C, D, seed):
    return torch.rand(C, D, generator=torch.Generator().manual_seed(seed)) / C
""",
            "0.29 whatever C is": """
import torch

def first_weights(C, D, seed):
    return torch.rand(C, D, generator=torch.Generator().manual_seed(seed)) - 0.5
""",
            "deviation 1": """
import torch

def first_weights(C, D, seed):
    return torch.randn(C, D, generator=torch.Generator().manual_seed(seed))
""",
            "vanishes as C grows": """
import torch

def first_weights(C, D, seed):
    return torch.randn(C, D, generator=torch.Generator().manual_seed(seed)) / C
""",
            "the root of D is the wrong one": """
import torch

def first_weights(C, D, seed):
    return torch.randn(C, D, generator=torch.Generator().manual_seed(seed)) / D**0.5
""",
            "all weights are equal": """
import torch

def first_weights(C, D, seed):
    return torch.zeros(C, D)
""",
            "gives other weights": """
import torch

def first_weights(C, D, seed):
    return torch.randn(C, D) / C**0.5
""",
        },
    ),
    "1.5": Answers(
        right=[
            """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    # by logarithms: log of the whole sum of each block
    log1, log2 = m1 + s1.log(), m2 + s2.log()
    whole = torch.logaddexp(log1, log2)
    m = max(m1, m2)
    return [m, (whole - m).exp(), (log1 - whole).exp() * o1 + (log2 - whole).exp() * o2]
"""
        ],
        wrong={
            "plain mean": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    return m, s1 * (m1 - m).exp() + s2 * (m2 - m).exp(), (o1 + o2) / 2
""",
            "measured from different maxima": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    return torch.maximum(m1, m2), s1 + s2, (s1 * o1 + s2 * o2) / (s1 + s2)
""",
            "mix them in shares that sum to 1": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = s1 * (m1 - m).exp(), s2 * (m2 - m).exp()
    return m, a + b, a * o1 + b * o2
""",
            "holds NaN": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = s1 * m1.exp(), s2 * m2.exp()
    return m, (a + b) / m.exp(), (a * o1 + b * o2) / (a + b)
""",
        },
    ),
}
