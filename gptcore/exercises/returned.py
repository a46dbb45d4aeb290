"""What a returned notebook holds, whatever has become of it on the way.

Students rename the file, and delete, edit, merge and move cells; editors lose the cells' ids, or write another
version of the format. So all that names an exercise is looked at: ids, titles, checks and functions. The name
of the file is not: a number in it may be anything.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptcore.exercises import exercises

_IS_NOTEBOOK = re.compile(r"\.ipynb(\.txt|\.json)?$", re.IGNORECASE)
"""The end of a file's name; browsers append to it."""

_ID = re.compile(r"(?:task|exercise|check)-(\d{1,2})-(\d{1,2})")
_TITLE = re.compile(r"^[ >]{0,3}#+[ *_]*(\d{1,2})\.(\d{1,2})\b", re.MULTILINE)
# A number after `check(`, or in quotes of any kind beside it. No parser: a cell may hold a syntax error. The spaces
# are counted lest a cell full of them take for ever.
_CHECKED = re.compile(
    r"""(?:check\s{0,9}\(\s{0,9}(?:number\s{0,9}=\s{0,9})?|["'])\s{0,9}(\d{1,2})\.(\d{1,2})(?=\s{0,9}["',)])"""
)
_DEFINED = re.compile(r"^[ \t]*def[ \t]+(\w+)|^(\w+)[ \t]*=(?!=)", re.MULTILINE)


class Cell(NamedTuple):
    """A cell, as far as it matters for marking."""

    is_code: bool
    ids: tuple[str, ...]
    """Its own, where an editor has kept one, and nbgrader's."""
    source: str


def student_of(path: Path) -> str | None:
    """The name of a notebook's file without its ending; None if the file is no notebook."""
    stem, endings = _IS_NOTEBOOK.subn("", path.name)
    return stem if endings else None


def read_cells(notebook: Path) -> list[Cell]:
    """The cells of a notebook, of nbformat 4 or as IPython saved it before (2 and 3).

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no notebook.
    """
    try:
        content = json.loads(notebook.read_bytes())  # UTF-8 or UTF-16, with or without a mark
        if "cells" in content:
            cells = content["cells"]
        else:
            cells = [cell for sheet in content["worksheets"] for cell in sheet["cells"]]
        return [_cell(cell) for cell in cells]
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"it is no notebook, or a damaged one ({type(error).__name__})") from error


def _cell(cell: Mapping[str, Any]) -> Cell:
    kind, metadata = cell.get("cell_type"), cell.get("metadata") or {}
    source = cell.get("source", cell.get("input"))  # `input` up to nbformat 3
    source = "".join(source) if isinstance(source, list) else str(source or "")
    if kind == "heading":  # up to nbformat 3
        source = f"# {source}"
    ids = (
        cell.get("id"),
        metadata.get("id"),
        (metadata.get("nbgrader") or {}).get("grade_id"),
    )  # the second is Colab's
    return Cell(kind == "code", tuple(str(one) for one in ids if one), source)


class Found(NamedTuple):
    """The exercises in a notebook."""

    numbers: list[str]
    """All of each chapter that is there, and others that are answered among them."""
    chapters: set[int]
    by_function_only: bool
    """Whether nothing but names of functions told the chapters."""


def find_exercises(cells: Iterable[Cell]) -> Found:
    """Which exercises a notebook is about.

    A chapter is there if at least half of its exercises are, by an id, a title or their function; if there is no
    such chapter, the one of which most are named at all. What else is named (by a cell pasted from elsewhere, a
    mistyped check, a helper called like an exercise) does not bring its chapter along; only the exercise itself, if
    the notebook names it *and* defines its function.
    """
    labelled, checked, defined = _traces(cells)
    named = labelled | checked
    of_chapter: dict[int, set[str]] = defaultdict(set)
    for number, exercise in exercises().items():
        of_chapter[exercise.chapter].add(number)
    chapters = {chapter for chapter, own in of_chapter.items() if 2 * len(own & (labelled | defined)) >= len(own)}
    if not chapters and (named or defined):
        weights = {chapter: (len(own & named), len(own & defined)) for chapter, own in of_chapter.items()}
        chapters = {chapter for chapter, weight in weights.items() if weight == max(weights.values())}
    whole = {number for chapter in chapters for number in of_chapter[chapter]}
    numbers = [number for number in exercises() if number in whole | (named & defined)]
    return Found(numbers, chapters, by_function_only=bool(defined) and not named)


def _traces(cells: Iterable[Cell]) -> tuple[set[str], set[str], set[str]]:
    """The exercises that have an id or a title in some cells, those that are checked, those whose function is defined."""
    functions = {exercise.name: number for number, exercise in exercises().items()}
    labels: list[tuple[str, str]] = []
    checks: list[tuple[str, str]] = []
    defined: set[str] = set()
    for cell in cells:
        labels += [(m[1], m[2]) for one in cell.ids if (m := _ID.fullmatch(one))] + _TITLE.findall(cell.source)
        if cell.is_code:
            checks += _CHECKED.findall(cell.source) if "check" in cell.source else []
            words = {name for match in _DEFINED.findall(cell.source) for name in match}
            defined |= {functions[name] for name in words & functions.keys()}
    labelled, checked = ({f"{int(c)}.{int(n)}" for c, n in pairs} & exercises().keys() for pairs in (labels, checks))
    return labelled, checked, defined
