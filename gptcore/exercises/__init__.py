"""Exercises with a checker: the reader's side.

In a notebook:

    check("3.2")      looks at the answer in this notebook: not attempted yet, what is wrong, or right
    hint("3.2")       a hint; once more, and it says more
    solution("3.2")   the solution
    progress()        all chapters at a glance

None of them ever raises or hangs, whatever the reader has written; but `check` does raise where nbgrader runs the
notebook, which counts what raises. What was solved is kept in `runs/exercises.json`. One file a chapter holds the
exercises themselves; `classroom` hands them out to a class and marks them.
"""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from gptcore.exercises.exercise import Answer, Exercise, Fresh, Wrong, fresh_torch
from gptcore.exercises.running import run_limited
from gptcore.files import RUNS, write_whole

__all__ = ["check", "hint", "progress", "require", "solution"]

CHAPTERS = range(1, 14)

RECORD = RUNS / "exercises.json"
"""What the reader has solved."""

MARKING = "GPTCORE_MARKING"
"""Environment variable: set while a class is marked, where `check` in a returned notebook has nothing to do."""

NBGRADER = "NBGRADER_EXECUTION"
"""Environment variable: nbgrader sets it to "validate" or "autograde" where it runs a notebook."""


class Verdict(NamedTuple):
    """What a check found."""

    status: Literal["blank", "wrong", "right"]
    message: str


@cache
def exercises() -> Mapping[str, Exercise]:
    """All exercises by number, in order."""
    modules = [import_module(f"gptcore.exercises.chapter_{chapter:02}") for chapter in CHAPTERS]
    return MappingProxyType({exercise.number: exercise for module in modules for exercise in module.EXERCISES})


@fresh_torch()
def run_checker(exercise: Exercise, answer: Answer, seed: int) -> Verdict:
    """Run the checker on inputs of a seed; the answer is one that is there and not blank."""
    answer.begin()
    try:
        exercise.checker(answer, Fresh(seed))
    except Wrong as first:
        answer.begin(diagnosing=True)
        try:
            exercise.checker(answer, Fresh(seed))
            answer.conclude()
        except Wrong as wrong:
            return Verdict("wrong", str(wrong))
        return Verdict("wrong", f"with the same arguments the result is another one each time. At first:\n{first}")
    return Verdict("right", exercise.praise)


def examine(number: str, names: Mapping[str, Any], seed: int | None = None) -> Verdict:
    """What `check` would say about the answer that stands under its name in `names`.

    Args:
        number: of the exercise.
        names: of the notebook, with what they stand for.
        seed: of the inputs; None for fresh ones.
    """
    exercise = exercises()[number]
    found = names.get(exercise.name, Ellipsis)
    if exercise.is_blank(found):
        where = "" if exercise.name in names else f" (nothing is called `{exercise.name}` yet: run its cell)"
        return Verdict("blank", f"not attempted yet{where}")
    if not callable(found):
        return Verdict("wrong", f"`{exercise.name}` should be a function; it is {type(found).__name__}.")
    if exercise.is_the_course_s(found):
        return Verdict(
            "blank", f"not attempted yet (`{exercise.name}` is still gptcore's own: run the exercise's cell)"
        )
    seed = secrets.randbits(32) if seed is None else seed
    answer = Answer(exercise, found)
    happened, result, printed = run_limited(
        lambda: run_checker(exercise, answer, seed),
        exercise.seconds,
        holds=lambda found: Verdict(*found).status == "right",
    )
    if happened == "done":
        verdict = Verdict(*result)
    elif happened == "time":
        verdict = Verdict(
            "wrong", f"after {exercise.seconds:.0f} seconds it had not ended. Is there a loop that never stops?"
        )
    elif happened == "exit":
        verdict = Verdict("wrong", "the code ended the whole process. It must only return.")
    else:
        verdict = Verdict("wrong", f"the check could not go on with this result ({result}).")
    if verdict.status == "wrong" and printed.strip():
        lines = printed.strip().split("\n")
        shown = "\n".join(f"    {line[:200]}" for line in lines[:6]) + ("\n    ..." if len(lines) > 6 else "")
        verdict = Verdict("wrong", f"{verdict.message}\nYour code printed:\n{shown}")
    return verdict


def check(number: str, **given: Any) -> None:
    """Check the answer to an exercise and say what was found.

    Where nbgrader runs the notebook what is not right is raised: else its Validate would find that a notebook
    in which nothing was attempted "passes all the tests".

    Args:
        number: such as "3.2".
        given: the answer under its name, if it is not the one of this notebook.

    Raises:
        AssertionError: under nbgrader, unless the answer is right.
    """
    if os.environ.get(MARKING):
        return
    exercise = _find(number)
    if exercise is None:
        return
    try:
        verdict = examine(exercise.number, given or sys._getframe(1).f_globals)
        word = {"blank": "", "wrong": "not yet: ", "right": "right. "}[verdict.status]
        help_ = "" if verdict.status == "right" else f'\n    For help: hint("{exercise.number}")'
        said = f"{exercise.number} {exercise.title}: {word}{verdict.message}{help_}"
    except Exception as error:  # a fault of ours shall not stop the reader
        verdict = Verdict("blank", "")
        said = f"{number}: the check itself failed ({type(error).__name__}: {error}). Please report it{_to_whom()}."
    if verdict.status != "right" and os.environ.get(NBGRADER):
        raise AssertionError(said)
    entry = _read_record().get(exercise.number, {})
    if verdict.status != "blank":
        entry["attempts"] = entry.get("attempts", 0) + 1
        entry["solved"] = bool(entry.get("solved")) or verdict.status == "right"
        _write_record(exercise.number, entry)
    say(said)


def require(number: str, **given: Any) -> None:
    """Like `check`, but raises `AssertionError` unless the answer is right; for graders.

    Raises:
        AssertionError: with the message of `check`.
        KeyError: if there is no such exercise.
    """
    names = given or sys._getframe(1).f_globals
    for seed in range(3):
        verdict = examine(number, names, seed)
        if verdict.status != "right":  # no `assert`: python -O leaves those out
            raise AssertionError(f"{number}: {verdict.message}")


def hint(number: str) -> None:
    """Print the next hint to an exercise."""
    exercise = _find(number)
    if exercise is None:
        return
    entry = _read_record().get(exercise.number, {})
    given = entry.get("hints", 0) % len(exercise.hints)
    say(f"{exercise.number} {exercise.title}, hint {given + 1} of {len(exercise.hints)}: {exercise.hints[given]}")
    if given + 1 == len(exercise.hints):
        say(f'    That was the last one. solution("{exercise.number}") shows the solution.')
    _write_record(exercise.number, entry | {"hints": entry.get("hints", 0) + 1})


def solution(number: str) -> None:
    """Print the solution of an exercise."""
    exercise = _find(number)
    if exercise is None:
        return
    say(f"# {exercise.number} {exercise.title}\n\n{exercise.solution.strip()}")
    _write_record(exercise.number, _read_record().get(exercise.number, {}) | {"solution": True})


def progress() -> None:
    """Print what is solved, chapter by chapter."""
    record = _read_record()
    solved_of_all = 0
    for chapter in CHAPTERS:
        own = [exercise for exercise in exercises().values() if exercise.chapter == chapter]
        marks = []
        for exercise in own:
            entry = record.get(exercise.number, {})
            solved_of_all += bool(entry.get("solved"))
            mark = "solved" if entry.get("solved") else "tried" if entry.get("attempts") else "-"
            marks.append(f"{exercise.number} {mark}")
        say(f"chapter {chapter:>2}   " + "   ".join(f"{mark:<11}" for mark in marks).rstrip())
    say(f"{solved_of_all} of {len(exercises())} solved")


def say(text: str) -> None:
    """Print wherever one is: signs that the terminal does not have are escaped, and a closed one raises nothing."""
    with contextlib.suppress(Exception):
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _to_whom() -> str:
    """Where a fault of ours can be reported, if the course was installed and has a public address (in pyproject.toml)."""
    with contextlib.suppress(PackageNotFoundError):
        for entry in metadata("gptcore").get_all("Project-URL", []):
            name, _, address = entry.partition(", ")
            if name == "Repository" and "/OWNER/" not in address:
                return f" ({address}/issues)"
    return ""


def _find(number: Any) -> Exercise | None:
    """The exercise of a number; if there is none, say which there are."""
    number = str(number)
    if number in exercises():
        return exercises()[number]
    chapter = number.split(".")[0]
    own = [known for known in exercises() if known.split(".")[0] == chapter]
    there = f"chapter {chapter} has {', '.join(own)}" if own else 'numbers are such as "3.2"'
    say(f"There is no exercise {number!r}: {there}.")
    return None


def _read_record() -> dict[str, dict[str, Any]]:
    """The reader's record; empty if there is none, or none that can be read."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {
        number: {name: value if isinstance(value, (bool, int)) else 0 for name, value in entry.items()}
        for number, entry in record.items()
        if isinstance(entry, dict)
    }


def _write_record(number: str, entry: dict[str, Any]) -> None:
    """Keep one exercise's entry; a folder that cannot be written costs the record, not the notebook."""
    if os.environ.get(MARKING) or os.environ.get(NBGRADER):  # somebody else's answers
        return
    with contextlib.suppress(OSError):
        write_whole(RECORD, json.dumps(_read_record() | {number: entry}, indent=1))
