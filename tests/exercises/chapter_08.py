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

_MASK = """
import torch

def own_text_mask(ids, separator):
    number = (ids == separator).cumsum(0)
    return (number[:, None] == number) & torch.ones(len(ids), len(ids)).bool().tril()
"""

ANSWERS = {
    "8.1": Answers(
        right=[_TARGETS],
        wrong={
            "never learn to stop": _TARGETS.replace("ids.index(3, start) + 1", "ids.index(3, start)"),
            "not the model's to say": _TARGETS.replace("ids.index(2, place) + 1", "ids.index(2, place)"),
            "only the first answer": _TARGETS.replace("place = stop", "return targets"),
            "a token like any other": _TARGETS.replace("-100", "0"),
            "the end token ends an answer": _TARGETS.replace(
                "ids.index(3, start) + 1 if 3 in ids[start:] else len(ids)", "len(ids)"
            ),
            "user's next question included": """
def answer_targets(ids):
    targets, speaking = [], False
    for token in ids:
        targets.append(token if speaking and token != 2 else -100)
        speaking = speaking or token == 2
    return targets
""",
            "all words are trained": "def answer_targets(ids):\n    return [i if i > 3 else -100 for i in ids]",
            "the user's, too": "def answer_targets(ids):\n    return [i if i >= 3 else -100 for i in ids]",
            "the last answer is cut off": _TARGETS.replace("else len(ids)", "else start").replace(
                "place = stop", "place = max(stop, start)"
            ),
            "not True and False": _TARGETS.replace("return targets", "return [target != -100 for target in targets]"),
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
            "a row may hold several answers": _PAD.replace(
                "return ids, wanted",
                "\n    for i, row in enumerate(rows):\n        wanted[i, row.index(end) + 1 :] = -100\n    return ids, wanted",
            ),
            "each of their end tokens": """
import torch

def pad_batch(rows, targets, end):
    width = max(map(len, rows))
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    keep = wanted.clone()
    keep[ids == end] = -100
    for i, row in enumerate(rows):
        keep[i, len(row) - 1] = wanted[i, len(row) - 1]
    return ids, keep
""",
            "of their end tokens is trained": """
import torch

def pad_batch(rows, targets, end):
    width = max(map(len, rows))
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    first = (ids == end).cumsum(1) == 1
    wanted[(ids == end) & ~first] = -100
    return ids, wanted
""",
            "padding of the ids is 0": _PAD.replace("row + [end]", "row + [0]"),
            "-100 is for targets": _PAD.replace("row + [end]", "row + [-100]"),
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
            "not always 0": _MASK.replace("ids == separator", "ids == 0"),
            "the diagonal is True": _MASK.replace("tril()", "tril(-1)"),
            "cut off from the rest": _MASK.replace(".tril()", ".tril() & (ids != separator)"),
            "first token of a text is part": _MASK.replace(
                ".tril()", ".tril() & ((ids != separator) | torch.eye(len(ids)).bool())"
            ),
            "before the first separator": _MASK.replace(".tril()", ".tril() & (number[:, None] > 0)"),
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
""",
            """
import torch

def merge_lora(weight, down, up, alpha):
    one = torch.eye(weight.shape[1])  # what happens to each column of it
    return weight @ one + alpha / len(down) * up @ (down @ one)
""",
        ],
        wrong={
            "the factor is missing": "def merge_lora(weight, down, up, alpha):\n    return weight + up @ down",
            "with alpha alone": "def merge_lora(weight, down, up, alpha):\n    return weight + alpha * up @ down",
            "is missing": "def merge_lora(weight, down, up, alpha):\n    return alpha / len(down) * up @ down",
            "divide by another length": "def merge_lora(weight, down, up, alpha):\n"
            "    return weight + alpha / down.shape[1] * up @ down",
            "of columns of `up`": "def merge_lora(weight, down, up, alpha):\n"
            "    return weight + alpha / len(up) * up @ down",
            "behind the point": "def merge_lora(weight, down, up, alpha):\n"
            "    return weight + alpha // len(down) * up @ down",
            "the code stopped with RuntimeError": """
def merge_lora(weight, down, up, alpha):
    return weight + alpha / down.shape[0] * down @ up
""",
        },
    ),
}
