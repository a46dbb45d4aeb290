"""Answers to the exercises of chapter 11: others that are right, and wrong ones with what they are told."""

from answers import Answers

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
            "must know what it has said": """
def tokens_read(turns, question, reply):
    return sum(t * question for t in range(1, turns + 1)), turns * question
""",
        },
    ),
    "11.2": Answers(
        right=[
            """
def kept_turns(turns, question, window):
    for first in range(len(turns)):
        if sum(turns[first:]) + question <= window:
            return len(turns) - first
    return 0
"""
        ],
        wrong={
            "oldest turns were kept": """
def kept_turns(turns, question, window):
    n = 0
    while n < len(turns) and sum(turns[: n + 1]) + question <= window:
        n += 1
    return n
""",
            "with a hole": """
def kept_turns(turns, question, window):
    room, n = window - question, 0
    for length in turns[::-1]:
        if length <= room:
            room -= length
            n += 1
    return n
""",
            "needs room, too": """
def kept_turns(turns, question, window):
    n = 0
    while n < len(turns) and sum(turns[len(turns) - n - 1 :]) <= window:
        n += 1
    return n
""",
            "exactly fills the window": """
def kept_turns(turns, question, window):
    n = 0
    while n < len(turns) and sum(turns[len(turns) - n - 1 :]) + question < window:
        n += 1
    return n
""",
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
            "never completed": """
import codecs

def stream_text(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces]
""",
        },
    ),
    "11.4": Answers(
        right=[_DISCOVER],
        wrong={
            "look like discoveries": "def discoveries(p_values, share):\n    return [p <= share for p in p_values]",
            "Bonferroni": """
def discoveries(p_values, share):
    return [p <= share / len(p_values) for p in p_values]
""",
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
