"""Answers to the exercises of chapter 3: others that are right, and wrong ones with what they are told."""

import re

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

_OWN_NORM = """
from torch.nn import functional as F

def decoder_layer(x, mix, up, down):
    def norm(y):
        return (y - y.mean(-1, keepdim=True)) / y.std(-1, keepdim=True, {})
    x = x + mix @ norm(x)
    return x + F.gelu(norm(x) @ up) @ down
"""

_HEADS = """
from torch.nn import functional as F

def gpt2_logits(ids, weights, layers, heads):
    def linear(x, name):
        return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])

    B, T = ids.shape
    x = weights["embedding.weight"][ids] + weights["positions.weight"][:T]
    C = x.shape[-1]
    for i in range(layers):
        name = "layers.%d." % i
        y = norm(x, name + "attention_norm")
        q, k, v = (linear(y, name + "attention." + part){} for part in ("query", "key", "value"))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True){}
        x = x + linear(y, name + "attention.output")
        y = linear(norm(x, name + "feed_forward_norm"), name + "feed_forward.up")
        x = x + linear(F.gelu(y, approximate="tanh"), name + "feed_forward.down")
    return norm(x, "norm") @ weights["embedding.weight"].T
"""

_DOWN = '@ w["feed_forward.down.weight"].T + w["feed_forward.down.bias"]'
_JOINED = "x = x + torch.cat(outputs, -1) @"
_NORMED = 'y = F.layer_norm(x, [C], w["{0}_norm.weight"], w["{0}_norm.bias"])'

ANSWERS = {
    "3.1": Answers(
        right=["def gated_width(C, multiple):\n    return int(8 * C / (3 * multiple) + 0.5) * multiple"],
        wrong={
            "two matrices": "def gated_width(C, multiple):\n    return 4 * C",
            "8 // 3 is 2": "def gated_width(C, multiple):\n    return round(8 // 3 * C / multiple) * multiple",
            "must be rounded to a multiple": "def gated_width(C, multiple):\n    return 8 / 3 * C",
            "138 is no multiple of 16": "def gated_width(C, multiple):\n    return 8 * C // 3",
            "always 32 here": "def gated_width(C, multiple):\n    return round(8 * C / 3 / 32) * 32",
            "rounded down": "def gated_width(C, multiple):\n    return 8 * C // 3 // multiple * multiple",
        },
    ),
    "3.2": Answers(
        right=[
            """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T + 2) * C) // (12 * C**2 + 13 * C))
"""
        ],
        wrong={
            "fewer than 0 layers": """
def deepest(V, T, C, budget):
    return (budget - (V + T + 2) * C) // (12 * C**2 + 13 * C)
""",
            "a little over the budget": """
def deepest(V, T, C, budget):
    return max(0, round((budget - (V + T + 2) * C) / (12 * C**2 + 13 * C)))
""",
            "no whole number": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T + 2) * C) / (12 * C**2 + 13 * C))
""",
            "tied to the embedding": """
def deepest(V, T, C, budget):
    return max(0, (budget - (2 * V + T + 2) * C) // (12 * C**2 + 13 * C))
""",
            "outside of the layers": """
def deepest(V, T, C, budget):
    return max(0, (budget - 0) // (12 * C**2 + 13 * C))
""",
            "position embeddings": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + 2) * C) // (12 * C**2 + 13 * C))
""",
            "norm after the last layer": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T) * C) // (12 * C**2 + 13 * C))
""",
            "13 C numbers": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T + 2) * C) // (12 * C**2))
""",
            "two norms in a layer": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T + 2) * C) // (12 * C**2 + 11 * C))
""",
            "output projection is missing": """
def deepest(V, T, C, budget):
    return max(0, (budget - (V + T + 2) * C) // (11 * C**2 + 12 * C))
""",
        },
    ),
    "3.3": Answers(
        right=[
            """
import torch

def decoder_layer(x, mix, up, down):
    def norm(y):
        y = y - y.mean(-1, keepdim=True)
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    x += mix @ norm(x)
    x += torch.nn.functional.gelu(norm(x) @ up) @ down
    return x
""",
            _OWN_NORM.format("unbiased=False"),
        ],
        wrong={
            "takes the mean over all C": _OWN_NORM.format("unbiased=True"),
            "before the feed-forward part the stream itself": """
from torch.nn import functional as F

def decoder_layer(x, mix, up, down):
    x = x + mix @ F.layer_norm(x, x.shape[-1:])
    x = F.layer_norm(x, x.shape[-1:])
    return x + F.gelu(x @ up) @ down
""",
            "stands after the addition": """
from torch.nn import functional as F

def decoder_layer(x, mix, up, down):
    x = F.layer_norm(x + mix @ x, x.shape[-1:])
    return F.layer_norm(x + F.gelu(x @ up) @ down, x.shape[-1:])
""",
            "no norm left": """
from torch.nn import functional as F

def decoder_layer(x, mix, up, down):
    x = x + mix @ x
    return x + F.gelu(x @ up) @ down
""",
            "as it was before attention": """
from torch.nn import functional as F

def decoder_layer(x, mix, up, down):
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
""",
            """
import numpy as np

def fold_norm(scale, shift, weight, bias):
    scale, shift, weight, bias = (np.asarray(part, dtype=np.float32) for part in (scale, shift, weight, bias))
    return weight * scale, weight @ shift + bias
""",
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
        right=[
            _GPT2,
            _HEADS.format(".view(B, T, heads, C // heads).transpose(1, 2)", ".transpose(1, 2).reshape(B, T, C)"),
        ],
        wrong={
            "causal mask is missing": _GPT2.replace("s = s.masked_fill(future, -torch.inf)", "pass"),
            "position embeddings are missing": _GPT2.replace(
                'x = x + weights["positions.weight"][torch.arange(T)]', "pass"
            ),
            "root of D": _GPT2.replace(" / (C // heads) ** 0.5", ""),
            "norm after the last layer": _GPT2.replace(
                'x = F.layer_norm(x, [C], weights["norm.weight"], weights["norm.bias"])', "pass"
            ),
            "GELU is the tanh approximation": _GPT2.replace(', approximate="tanh"', ""),
            "biases of the linear layers": re.sub(
                r" \+ w\[f?\"(attention\.|feed_forward\.).*?bias\"\](\[part\])?", "", _GPT2
            ),
            "attention replaces the stream": _GPT2.replace(_JOINED, _JOINED.replace("x + ", "")),
            "second residual connection": _GPT2.replace("x = x + y @", "x = y @"),
            "the stream itself is normed": _GPT2.replace("y = F.layer_norm(x", "x = y = F.layer_norm(x"),
            "positions begin at 1": _GPT2.replace("torch.arange(T)", "torch.arange(T) + 1"),
            "add 1e-5 to the variance": _GPT2.replace('.bias"])\n', '.bias"], 0)\n'),
            "a slice of the channels": _HEADS.format(".view(B, heads, T, C // heads)", ".reshape(B, T, C)"),
            "undo the transpose first": _HEADS.format(
                ".view(B, T, heads, C // heads).transpose(1, 2)", ".reshape(B, T, C)"
            ),
            "stand after the additions": (
                _GPT2.replace(_NORMED.format("attention"), "y = x")
                .replace(_NORMED.format("feed_forward"), "y = x = " + _NORMED.format("attention")[4:])
                .replace(_DOWN, f"{_DOWN}\n        x = {_NORMED.format('feed_forward')[4:]}")
            ),
            "GELU, not ReLU": _GPT2.replace('F.gelu(y, approximate="tanh")', "F.relu(y)"),
        },
    ),
}
