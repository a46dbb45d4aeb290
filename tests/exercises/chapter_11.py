"""Answers to the exercises of chapter 11: others that are right, and wrong ones with what they are told."""

from answers import Answers

from gptcore.exercises import exercises

_WAITING = """
def stream_text(pieces):
    shown, waiting = [], b""
    for piece in pieces:
        waiting += piece
        try:
            shown.append(waiting.decode())
            waiting = b""
        except UnicodeDecodeError:
            shown.append("")
    if waiting:
        shown[-1] += waiting.decode(errors="replace")
    return shown
"""

_DISCOVER = """
def discoveries(p_values, share):
    n = len(p_values)
    ordered = sorted(p_values)
    k = n
    while k > 0 and ordered[k - 1] > share * k / n:
        k -= 1
    chosen = ordered[:k]
    return [p in chosen for p in p_values]
"""

_TURNS = exercises()["11.2"].solution

ANSWERS = {
    "11.1": Answers(
        right=[
            """
def tokens_read(turns, question, reply):
    pairs = turns * (turns - 1) // 2
    return (pairs + turns) * question + pairs * reply, turns * (question + reply) - reply
"""
        ],
        wrong={
            "are not free": """
def tokens_read(turns, question, reply):
    return sum(t * question + (t - 1) * reply for t in range(1, turns + 1)), turns * question
""",
            "about to give": """
def tokens_read(turns, question, reply):
    return sum(t * (question + reply) for t in range(1, turns + 1)), turns * (question + reply) - reply
""",
            "grows with the square": """
def tokens_read(turns, question, reply):
    n = turns * (question + reply) - reply
    return n, n
""",
            "each *token* of an answer": """
def tokens_read(turns, question, reply):
    read = 0
    for turn in range(turns):
        for written in range(reply):
            read += turn * (question + reply) + question + written
    return read, turns * question + (turns - 1) * reply
""",
            "yours has it read the answer": """
def tokens_read(turns, question, reply):
    read = history = 0
    for _ in range(turns):
        read += history + question + reply
        history += question + reply
    return read - reply, turns * question + (turns - 1) * reply
""",
            "the last answer is not counted": """
def tokens_read(turns, question, reply):
    return sum(t * question + (t - 1) * reply for t in range(1, turns + 1)), turns * (question + reply)
""",
            "must know what it has said": """
def tokens_read(turns, question, reply):
    return sum(t * question for t in range(1, turns + 1)), turns * question
""",
        },
    ),
    "11.2": Answers(
        right=[
            """
def turns_to_read(turns, question, window):
    if question > window:
        return []
    pinned = turns[:1] if turns[:1] and turns[0] + question <= window else []
    for begin in range(len(pinned), len(turns) + 1):
        if sum(pinned) + sum(turns[begin:]) + question <= window:
            return list(range(len(pinned))) + list(range(begin, len(turns)))
"""
        ],
        wrong={
            "the *first* turn is to stay": """
def turns_to_read(turns, question, window):
    for begin in range(len(turns) + 1):
        if sum(turns[begin:]) + question <= window:
            return list(range(begin, len(turns)))
    return []
""",
            "the first turn needs room": _TURNS.replace("        room -= turns[0]\n", ""),
            "the new question needs room": _TURNS.replace("room = window - question", "room = window"),
            "was skipped": _TURNS.replace("            break", "            continue"),
            "how many turns": _TURNS.replace("return kept + last", "return len(kept + last)"),
            "counted from 0": _TURNS.replace("return kept + last", "return [i + 1 for i in kept + last]"),
        },
    ),
    "11.3": Answers(
        right=[
            """
def stream_text(pieces):
    shown, before = [], ""
    for i in range(1, len(pieces) + 1):
        data = b"".join(pieces[:i])
        if i < len(pieces):
            for cut in range(len(data), max(-1, len(data) - 5), -1):
                try:
                    text = data[:cut].decode()
                    break
                except UnicodeDecodeError:
                    pass
        else:
            text = data.decode(errors="replace")
        shown.append(text[len(before):])
        before = text
    return shown
"""
        ],
        wrong={
            "the character is lost": """
def stream_text(pieces):
    return [piece.decode(errors="ignore") for piece in pieces]
""",
            "only at the end": """
def stream_text(pieces):
    return [""] * (len(pieces) - 1) + [b"".join(pieces).decode(errors="replace")]
""",
            "a list with one string for each piece": """
def stream_text(pieces):
    return b"".join(pieces).decode(errors="replace")
""",
            "had to wait": _WAITING,
            "give '' where nothing can be shown": _WAITING.replace('shown.append("")', "continue")
            .replace("if waiting:\n        shown[-1] += waiting", "if waiting:\n        shown.append(waiting")
            .replace('errors="replace")', 'errors="replace"))'),
            "belongs to the last piece": """
import codecs

def stream_text(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces] + [decoder.decode(b"", final=True)]
""",
            "return a list of": """
import codecs

def stream_text(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i, piece in enumerate(pieces, 1):
        yield decoder.decode(piece, i == len(pieces))
""",
            "never completed": """
import codecs

def stream_text(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces]
""",
        },
    ),
    "11.4": Answers(
        right=[
            _DISCOVER,
            """
import numpy as np

def discoveries(p_values, share):
    p = np.array(p_values)
    below = np.nonzero(np.sort(p) <= share * np.arange(1, len(p) + 1) / len(p))[0]
    return p <= np.sort(p)[below[-1]] if len(below) else np.zeros(len(p), bool)
""",
        ],
        wrong={
            "about 5 would pass": "def discoveries(p_values, share):\n    return [p <= share for p in p_values]",
            "Bonferroni": """
def discoveries(p_values, share):
    return [p <= share / len(p_values) for p in p_values]
""",
            "exactly on its line": _DISCOVER.replace("] > share", "] >= share"),
            "is a discovery itself": _DISCOVER.replace("ordered[:k]", "ordered[: max(k - 1, 0)]"),
            "stopped at the first value": """
def discoveries(p_values, share):
    n, limit = len(p_values), -1
    for k, p in enumerate(sorted(p_values), 1):
        if p > share * k / n:
            break
        limit = p
    return [p <= limit for p in p_values]
""",
            "in the order of the arguments": """
def discoveries(p_values, share):
    n, limit = len(p_values), -1
    p_values = sorted(p_values)
    for k, p in enumerate(p_values, 1):
        if p <= share * k / n:
            limit = p
    return [p <= limit for p in p_values]
""",
        },
    ),
}
