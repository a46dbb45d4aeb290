"""Answers to the exercises of chapter 1: others that are right, and wrong ones with what they are told."""

from answers import Answers

ANSWERS = {
    "1.1": Answers(
        right=[
            "def allowed_pairs(T):\n    return 2 * sum(range(T // 2 + 1))",
            "def allowed_pairs(T):\n    return T * (T + 2) / 4",
        ],
        wrong={
            "the whole square": "def allowed_pairs(T):\n    return T * T",
            "one long text": "def allowed_pairs(T):\n    return T * (T + 1) // 2",
            "the diagonal is missing": "def allowed_pairs(T):\n    return T * (T - 2) // 4",
            "not by half": "def allowed_pairs(T):\n    return T * T / 4",
            "sees the tokens after it": "def allowed_pairs(T):\n    return 2 * (T // 2) ** 2",
            "one of the two texts only": "def allowed_pairs(T):\n    return T // 2 * (T // 2 + 1) // 2",
            "returns nothing": "def allowed_pairs(T):\n    T * (T + 2) // 4",
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
            "the distance must be at least 0": """
import torch

def sliding_mask(T, window):
    return torch.arange(T)[:, None] - torch.arange(T) < window
""",
            "up to `window` tokens": """
import torch

def sliding_mask(T, window):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance >= 0) & (distance < window - 1)
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
            "The last query then sees nothing": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    forbidden = torch.ones(T, T, dtype=torch.bool).tril()
    return scores.masked_fill(forbidden, float("-inf")).softmax(-1) @ value
""",
            "`masked_fill` fills where it is True": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    forbidden = torch.ones(T, T, dtype=torch.bool).tril()
    return scores.masked_fill(forbidden, -1e9).softmax(-1) @ value
""",
            "are -1e9 they give equal shares": """
import torch

def decoder_attention(query, key, value):
    T = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    forbidden = torch.ones(T, T, dtype=torch.bool).triu()
    return scores.masked_fill(forbidden, -1e9).softmax(-1) @ value
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
            """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.orthogonal_(torch.empty(C, D), generator=generator)
""",
            """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(C, D, generator=generator) - 0.5) * (12 / C) ** 0.5
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
            "grows with D and not with its root": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(C, D, generator=generator) * (3 / C) ** 0.5
""",
            "are not centred on zero": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(C, D, generator=generator) + 0.5) / C**0.5
""",
            "variance 0.0004 C": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(C, D, generator=generator)
""",
            "variance 1/12": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(C, D, generator=generator) - 0.5) / C**0.5
""",
            "variance 1/3": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(C, D, generator=generator) - 1) / C**0.5
""",
            "0.58 whatever C is": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(C, D, generator=generator) - 1
""",
            "a ReLU that follows": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(C, D, generator=generator) * (2 / C) ** 0.5
""",
            "a compromise with the way back": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(C, D, generator=generator) * (2 / (C + D)) ** 0.5
""",
            "the weights repeat": """
import torch

def first_weights(C, D, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(C, 1, generator=generator).repeat(1, D) / C**0.5
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
            "the outputs are right, but the sum is not": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = s1 * (m1 - m).exp(), s2 * (m2 - m).exp()
    return m, s1 + s2, (a * o1 + b * o2) / (a + b)
""",
            "then divided by s1 + s2": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = s1 * (m1 - m).exp(), s2 * (m2 - m).exp()
    return m, s1 + s2, (a * o1 + b * o2) / (s1 + s2)
""",
            "by exp of the maxima alone": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = (m1 - m).exp(), (m2 - m).exp()
    return m, s1 * a + s2 * b, (a * o1 + b * o2) / (a + b)
""",
            "weigh o1 by s1 * exp(m1 - m)": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = torch.maximum(m1, m2)
    a, b = (m1 - m).exp(), (m2 - m).exp()
    return m, s1 * a + s2 * b, (a * o1 + b * o2) / (s1 * a + s2 * b)
""",
            "not their sum": """
import torch

def join_blocks(m1, s1, o1, m2, s2, o2):
    m = m1 + m2
    a, b = s1 * (m1 - m).exp(), s2 * (m2 - m).exp()
    return m, a + b, (a * o1 + b * o2) / (a + b)
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
