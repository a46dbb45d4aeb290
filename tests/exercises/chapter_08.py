"""Answers to the exercises of chapter 8: others that are right, and wrong ones with what they are told."""

from answers import Answers

_TARGETS = """
def answer_targets(ids):
    targets = [-100] * len(ids)
    place = 0
    while 2 in ids[place:]:
        start = ids.index(2, place) + 1
        stop = ids.index(3, start) + 1 if 3 in ids[start:] else len(ids)
        targets[start:stop] = ids[start:stop]
        place = stop
    return targets
"""

_PAD = """
import torch

def pad_batch(rows, targets, end):
    width = max(map(len, rows))
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    return ids, wanted
"""

ANSWERS = {
    "8.1": Answers(
        right=[_TARGETS],
        wrong={
            "never learn to stop": _TARGETS.replace("ids.index(3, start) + 1", "ids.index(3, start)"),
            "not the model's to say": _TARGETS.replace("ids.index(2, place) + 1", "ids.index(2, place)"),
            "only the first answer": _TARGETS.replace("place = stop", "return targets"),
            "a token like any other": _TARGETS.replace("-100", "0"),
            "shifted by one": _TARGETS.replace("return targets", "return targets[1:] + [-100]"),
        },
    ),
    "8.2": Answers(
        right=[_PAD],
        wrong={
            "follows from the lengths": _PAD.replace(
                "return ids, wanted", "return ids, torch.where(ids != end, wanted, -100)"
            ),
            "the padding is trained": _PAD.replace("row + [-100] *", "row + [end] *"),
            "belongs to the right": """
import torch

def pad_batch(rows, targets, end):
    width = max(map(len, rows))
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    wanted = torch.tensor([[-100] * (width - len(row)) + row for row in targets])
    return ids, wanted
""",
            "last real token": _PAD.replace(
                "return ids, wanted",
                "\n    for i, row in enumerate(rows):\n        wanted[i, len(row) - 1] = -100\n    return ids, wanted",
            ),
        },
    ),
    "8.3": Answers(
        right=[
            """
import torch

def own_text_mask(ids, separator):
    T = len(ids)
    mask = torch.zeros(T, T).bool()
    start = 0
    for t in range(T):
        if ids[t] == separator:
            start = t
        mask[t, start : t + 1] = True
    return mask
"""
        ],
        wrong={
            "still looks back": """
import torch

def own_text_mask(ids, separator):
    return torch.ones(len(ids), len(ids)).tril().bool()
""",
            "the future is visible": """
def own_text_mask(ids, separator):
    number = (ids == separator).cumsum(0)
    return number[:, None] == number
""",
            "belongs to the one before": """
import torch

def own_text_mask(ids, separator):
    starts = (ids == separator).long()
    number = starts.cumsum(0) - starts
    return ((number[:, None] == number).float().tril()).bool()
""",
            "dtype bool": """
def own_text_mask(ids, separator):
    number = (ids == separator).cumsum(0)
    return (number[:, None] == number).float().tril()
""",
        },
    ),
    "8.4": Answers(
        right=[
            """
import torch

def merge_lora(weight, down, up, alpha):
    scale = alpha / up.size(1)
    return torch.addmm(weight, up, down, alpha=scale)
"""
        ],
        wrong={
            "the factor is missing": "def merge_lora(weight, down, up, alpha):\n    return weight + up @ down",
            "with alpha alone": "def merge_lora(weight, down, up, alpha):\n    return weight + alpha * up @ down",
            "is missing": "def merge_lora(weight, down, up, alpha):\n    return alpha / len(down) * up @ down",
            "the code stopped with RuntimeError": """
def merge_lora(weight, down, up, alpha):
    return weight + alpha / down.shape[0] * down @ up
""",
        },
    ),
}
