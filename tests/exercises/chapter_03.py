"""Answers to the exercises of chapter 3: others that are right, and wrong ones with what they are told."""

from answers import Answers

_GPT2 = """
import torch
from torch import nn
from torch.nn import functional as F

def gpt2_logits(ids, weights, layers, heads):
    B, T = ids.shape
    x = F.embedding(ids, weights["embedding.weight"])
    x = x + weights["positions.weight"][torch.arange(T)]
    C = x.shape[2]
    future = torch.ones(T, T).triu(1).bool()
    for i in range(layers):
        w = {k[len(f"layers.{i}."):]: v for k, v in weights.items() if k.startswith(f"layers.{i}.")}
        y = F.layer_norm(x, [C], w["attention_norm.weight"], w["attention_norm.bias"])
        outputs = []
        for h in range(heads):
            part = slice(h * C // heads, (h + 1) * C // heads)
            q, k, v = (
                y @ w[f"attention.{n}.weight"][part].T + w[f"attention.{n}.bias"][part] for n in ("query", "key", "value")
            )
            s = q @ k.mT / (C // heads) ** 0.5
            s = s.masked_fill(future, -torch.inf)
            outputs.append(s.softmax(-1) @ v)
        x = x + torch.cat(outputs, -1) @ w["attention.output.weight"].T + w["attention.output.bias"]
        y = F.layer_norm(x, [C], w["feed_forward_norm.weight"], w["feed_forward_norm.bias"])
        y = y @ w["feed_forward.up.weight"].T + w["feed_forward.up.bias"]
        y = F.gelu(y, approximate="tanh")
        x = x + y @ w["feed_forward.down.weight"].T + w["feed_forward.down.bias"]
    x = F.layer_norm(x, [C], weights["norm.weight"], weights["norm.bias"])
    return x @ weights["embedding.weight"].T
"""

ANSWERS = {
    "3.1": Answers(
        right=["def gated_width(C, multiple):\n    return int(8 * C / (3 * multiple) + 0.5) * multiple"],
        wrong={
            "two matrices": "def gated_width(C, multiple):\n    return 4 * C",
            "8 // 3 is 2": "def gated_width(C, multiple):\n    return round(8 // 3 * C / multiple) * multiple",
            "must be rounded to a multiple": "def gated_width(C, multiple):\n    return 8 / 3 * C",
            "rounded down": "def gated_width(C, multiple):\n    return 8 * C // 3 // multiple * multiple",
        },
    ),
    "3.2": Answers(
        right=[
            """
def decoder_parameters(V, T, C, L):
    return (V + T + 2) * C + L * (12 * C**2 + 13 * C)
"""
        ],
        wrong={
            "tied to the embedding": """
def decoder_parameters(V, T, C, L):
    return (2 * V + T + 2) * C + L * (12 * C**2 + 13 * C)
""",
            "position embeddings": """
def decoder_parameters(V, T, C, L):
    return (V + 2) * C + L * (12 * C**2 + 13 * C)
""",
            "norm after the last layer": """
def decoder_parameters(V, T, C, L):
    return (V + T) * C + L * (12 * C**2 + 13 * C)
""",
            "biases of attention and feed-forward": """
def decoder_parameters(V, T, C, L):
    return (V + T + 2) * C + L * (12 * C**2 + 4 * C)
""",
        },
    ),
    "3.3": Answers(
        right=[
            """
import torch

def layer(x, mix, up, down):
    def norm(y):
        y = y - y.mean(-1, keepdim=True)
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    x += mix @ norm(x)
    x += torch.nn.functional.gelu(norm(x) @ up) @ down
    return x
"""
        ],
        wrong={
            "before the feed-forward part the stream itself": """
from torch.nn import functional as F

def layer(x, mix, up, down):
    x = x + mix @ F.layer_norm(x, x.shape[-1:])
    x = F.layer_norm(x, x.shape[-1:])
    return x + F.gelu(x @ up) @ down
""",
            "stands after the addition": """
from torch.nn import functional as F

def layer(x, mix, up, down):
    x = F.layer_norm(x + mix @ x, x.shape[-1:])
    return F.layer_norm(x + F.gelu(x @ up) @ down, x.shape[-1:])
""",
            "no norm left": """
from torch.nn import functional as F

def layer(x, mix, up, down):
    x = x + mix @ x
    return x + F.gelu(x @ up) @ down
""",
            "as it was before attention": """
from torch.nn import functional as F

def layer(x, mix, up, down):
    copy = F.layer_norm(x, x.shape[-1:])
    return x + mix @ copy + F.gelu(copy @ up) @ down
""",
        },
    ),
    "3.4": Answers(
        right=[
            """
import torch

def fold_norm(scale, shift, weight, bias):
    new = weight @ torch.diag(scale)
    return new, bias + (weight * shift).sum(dim=1)
"""
        ],
        wrong={
            "not been carried into the bias": """
def fold_norm(scale, shift, weight, bias):
    return weight * scale, bias
""",
            "the old bias is lost": """
def fold_norm(scale, shift, weight, bias):
    return weight * scale, weight @ shift
""",
            "multiplied with the scale": """
def fold_norm(scale, shift, weight, bias):
    new = weight * scale
    return new, new @ shift + bias
""",
            "undoes the norm": """
def fold_norm(scale, shift, weight, bias):
    return weight / scale, weight @ shift + bias
""",
        },
    ),
    "3.5": Answers(
        right=[_GPT2],
        wrong={
            "causal mask is missing": _GPT2.replace("s = s.masked_fill(future, -torch.inf)", "pass"),
            "position embeddings are missing": _GPT2.replace(
                'x = x + weights["positions.weight"][torch.arange(T)]', "pass"
            ),
            "root of D": _GPT2.replace(" / (C // heads) ** 0.5", ""),
            "norm after the last layer": _GPT2.replace(
                'x = F.layer_norm(x, [C], weights["norm.weight"], weights["norm.bias"])', "pass"
            ),
            "GELU, not ReLU": _GPT2.replace('F.gelu(y, approximate="tanh")', "F.relu(y)"),
        },
    ),
}
