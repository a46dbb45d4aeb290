"""Answers to the exercises of chapter 2: others that are right, and wrong ones with what they are told."""

from answers import Answers

ANSWERS = {
    "2.1": Answers(
        right=[
            """
def attention_parameters(C, H, G):
    kv = C * G // H
    return (C + 1) * (C + kv + kv + C)
"""
        ],
        wrong={
            "has biases, too": """
def attention_parameters(C, H, G):
    return 2 * C * C + 2 * C * C * G // H
""",
            "keys and values have fewer heads": """
def attention_parameters(C, H, G):
    return 4 * (C * C + C)
""",
            "the weights without biases, and as if G = H": """
def attention_parameters(C, H, G):
    return 4 * C * C
""",
            "multiply by G, do not divide": """
def attention_parameters(C, H, G):
    return 2 * (C * C + C) + 2 * (C * C + C) // G
""",
            "a head only makes D": """
def attention_parameters(C, H, G):
    return H * 4 * (C * C + C)
""",
            "output projection is missing": """
def attention_parameters(C, H, G):
    kv = C * G // H
    return (C + 1) * (C + kv + kv)
""",
        },
    ),
    "2.2": Answers(
        right=[
            """
import torch

def join_heads(heads):
    x = torch.stack(heads, dim=1)  # (B, H, T, D)
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)
""",
            """
def join_heads(heads):
    B, T, D = heads[0].shape
    result = heads[0].new_zeros(B, T, D * len(heads))
    for i, head in enumerate(heads):
        result[:, :, i * D : (i + 1) * D] = head
    return result
""",
            """
import numpy as np
import torch

def join_heads(heads):
    return torch.from_numpy(np.concatenate([head.numpy() for head in heads], axis=-1))
""",
        ],
        wrong={
            "does not move any axis": """
import torch

def join_heads(heads):
    B, T, D = heads[0].shape
    return torch.stack(heads, dim=1).reshape(B, T, len(heads) * D)
""",
            "features of different heads alternate": """
import torch

def join_heads(heads):
    return torch.stack(heads, dim=-1).flatten(2)
""",
            "time and features have changed places": """
import torch

def join_heads(heads):
    return torch.cat(heads, dim=-1).transpose(1, 2)
""",
            "one after the other in time": """
import torch

def join_heads(heads):
    return torch.cat(heads, dim=1)
""",
            "reverse order": """
import torch

def join_heads(heads):
    return torch.cat(heads[::-1], dim=-1)
""",
            "the mean of the heads": """
import torch

def join_heads(heads):
    return torch.stack(heads).mean(dim=0)
""",
            "transposed and then viewed as if": """
import torch

def join_heads(heads):
    joined = torch.cat(heads, dim=-1)
    return joined.permute(0, 2, 1).reshape(joined.shape)
""",
        },
    ),
    "2.3": Answers(
        right=[
            """
import torch

def pooled_heads(weight, H, G):
    heads = weight.chunk(H)
    size = H // G
    return torch.cat([sum(heads[g * size : (g + 1) * size]) / size for g in range(G)])
"""
        ],
        wrong={
            "the mean keeps the size": """
def pooled_heads(weight, H, G):
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, C).sum(dim=1).reshape(G * D, C)
""",
            "far apart were put into one group": """
def pooled_heads(weight, H, G):
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(H // G, G, D, C).mean(dim=0).reshape(G * D, C)
""",
            "features were averaged": """
def pooled_heads(weight, H, G):
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(G * D, H // G, C).mean(dim=1)
""",
            "divided by G, the number of groups": """
def pooled_heads(weight, H, G):
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, C).sum(dim=1).reshape(G * D, C) / G
""",
            "the first G heads": """
def pooled_heads(weight, H, G):
    return weight[: G * (weight.shape[0] // H)]
""",
            "columns were averaged": """
def pooled_heads(weight, H, G):
    return weight.view(weight.shape[0], -1, H // G).mean(dim=-1)
""",
            "it need not be C // H": """
def pooled_heads(weight, H, G):
    C = weight.shape[1]
    D = C // H
    return weight.view(G, H // G, D, C).mean(dim=1).reshape(G * D, C)
""",
            "only the first head": """
def pooled_heads(weight, H, G):
    D, C = weight.shape[0] // H, weight.shape[1]
    return weight.view(H, D, C)[:: H // G].reshape(G * D, C)
""",
        },
    ),
    "2.4": Answers(
        right=[
            """
import torch

def distance_bias(T, H):
    bias = torch.full((H, T, T), -float("inf"))
    for h in range(H):
        for t in range(T):
            for s in range(t + 1):
                bias[h, t, s] = (s - t) / 2 ** (8 * (h + 1) / H)
    return bias
""",
            """
import torch

def distance_bias(T, H):
    slopes = 2 ** (-8 * torch.arange(1, H + 1, dtype=torch.float64) / H)
    bias = slopes.view(H, 1, 1) * -torch.arange(T).view(T, 1).sub(torch.arange(T))
    return bias + torch.full((T, T), float("-inf")).triu(1)
""",
        ],
        wrong={
            "the sign is wrong": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H)
    return (slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
""",
            "begin with head 0": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    slopes = 2.0 ** (-8 * torch.arange(H) / H)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
""",
            "future must stay forbidden": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H)
    return -slopes[:, None, None] * distance.abs()
""",
            "write float('-inf')": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    h = torch.arange(1, H + 1)
    slopes = 2.0 ** (-8 * h / H)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, -1e9)
""",
            "is right for H = 8 only": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    h = torch.arange(1, H + 1)
    slopes = 2.0**-h
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
""",
            "with `/`": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    h = torch.arange(1, H + 1)
    slopes = 2.0 ** (-8 * h // H)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
""",
            "reverse order": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    h = torch.arange(1, H + 1)
    slopes = 2.0 ** (-8 * h.flip(0) / H)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
""",
            "rows and columns have changed places": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    h = torch.arange(1, H + 1)
    slopes = 2.0 ** (-8 * h / H)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf")).mT
""",
            "the same slope": """
import torch

def distance_bias(T, H):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    bias = (-(2.0 ** (-8 / H)) * distance).masked_fill(distance < 0, float("-inf"))
    return bias.repeat(H, 1, 1)
""",
        },
    ),
}
