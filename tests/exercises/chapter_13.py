"""Answers to the exercises of chapter 13: others that are right, and wrong ones with what they are told."""

from answers import Answers


def _messages(roles='{"Guest": "user", "Guide": "assistant"}', go_on='m[-1]["content"] += "\\n" + line.strip()'):
    return f"""
import re

def as_messages(transcript):
    m = []
    roles = {roles}
    for line in transcript.splitlines():
        found = re.match(r"(Guest|Guide):(.*)", line)
        if found:
            m.append({{"role": roles[found[1]], "content": found[2].strip()}})
        elif line.strip():
            {go_on}
    return m
"""


def _kappa(chance, result="(s - c) / (1 - c) if c < 1 else 0.0"):
    return f"""
def kappa(mine, yours):
    n = len(mine)
    s = sum(a == b for a, b in zip(mine, yours)) / n
    p, q = sum(mine) / n, sum(yours) / n
    c = {chance}
    return {result}
"""


def _bytes(formula):
    return f"""
def ppo_bytes(parameters, adapters=None):
    learned = parameters if adapters is None else adapters
    extra = 0 if adapters is None else adapters
    return {formula}
"""


ANSWERS = {
    "13.1": Answers(
        right=[_messages()],
        wrong={
            "yours are lost": _messages(go_on="pass"),
            "no message of its own": _messages(
                go_on='m.append({"role": m[-1]["role"], "content": line.strip()})',
            ),
            "joined by a space": _messages(go_on='m[-1]["content"] += " " + line.strip()'),
            "the guest is the `user`": _messages(roles='{"Guest": "assistant", "Guide": "user"}'),
            "whatever the people are called": _messages(roles='{"Guest": "Guest", "Guide": "Guide"}'),
        },
    ),
    "13.2": Answers(
        right=[
            """
def hold_out(votes, every):
    number, parts = {}, ([], [])
    for vote in votes:
        number.setdefault(vote[0], len(number))
        parts[number[vote[0]] % every == 0].append(vote)
    return parts
"""
        ],
        wrong={
            "a question has votes on both sides": """
def hold_out(votes, every):
    return [v for i, v in enumerate(votes) if i % every], votes[::every]
""",
            "what is held out comes second": """
def hold_out(votes, every):
    chosen = set(list(dict.fromkeys(v[0] for v in votes))[::every])
    return [v for v in votes if v[0] in chosen], [v for v in votes if v[0] not in chosen]
""",
            "yours are sorted": """
def hold_out(votes, every):
    chosen = set(sorted({v[0] for v in votes})[::every])
    return [v for v in votes if v[0] not in chosen], [v for v in votes if v[0] in chosen]
""",
            "must not be among what is learned from": """
def hold_out(votes, every):
    chosen = set(list(dict.fromkeys(v[0] for v in votes))[::every])
    return votes, [v for v in votes if v[0] in chosen]
""",
        },
    ),
    "13.3": Answers(
        right=[
            """
def kappa(mine, yours):
    n = len(mine)
    s = sum(a == b for a, b in zip(mine, yours)) / n
    c = sum(mine.count(k) * yours.count(k) for k in (0, 1)) / n**2
    return (s - c) / (1 - c) if c != 1 else 0
"""
        ],
        wrong={
            "without ever looking": _kappa("0", "s"),
            "only if both take left and right equally often": _kappa("0.5"),
            "the second is missing": _kappa("p * q"),
            "habits of their own": _kappa("((p + q) / 2) ** 2 + (1 - (p + q) / 2) ** 2"),
            "then full agreement is 1": _kappa("p * q + (1 - p) * (1 - q)", "s - c"),
            "nothing can be said": _kappa("p * q + (1 - p) * (1 - q)", "(s - c) / (1 - c) if c < 1 else 1.0"),
        },
    ),
    "13.4": Answers(
        right=[_bytes("16 * parameters + 8 * extra + 24 * learned")],
        wrong={
            "PPO has four models": _bytes("8 * (parameters + extra + 3 * learned)"),
            "reference and reward model never learn": _bytes("16 * (parameters + extra + 3 * learned)"),
            "both learn, each with": _bytes("4 * (4 * parameters + extra + 3 * learned)"),
            "two moments": _bytes("4 * (4 * parameters + 2 * (extra + 2 * learned))"),
            "four bytes": _bytes("4 * parameters + 2 * (extra + 3 * learned)"),
            "stay whole in memory": _bytes("4 * (2 * parameters + 8 * learned)"),
            "come on top of the model's": _bytes("4 * (4 * parameters + 6 * learned)"),
        },
    ),
}
