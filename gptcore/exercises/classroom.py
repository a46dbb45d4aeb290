"""Exercises for a class: hand them out, and mark what comes back.

    python -m gptcore.exercises assignment 1 5 --out homework
    python -m gptcore.exercises mark returned

`assignment` writes one notebook a chapter, for nbgrader (`source/`) and without it (`student/`). `mark`
takes a folder with one folder, or one notebook, for each student, and writes a table.
"""

import csv
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gptcore.exercises import exercises, run_checker
from gptcore.exercises.exercise import Exercise
from gptcore.exercises.returned import find_exercises, read_cells, student_of
from gptcore.exercises.sandbox import RemoteAnswer, Sandbox, SandboxError

TITLES = (
    "Attention",
    "Multi-head attention",
    "The decoder",
    "The tokenizer",
    "Pretraining",
    "Training tricks",
    "Evaluation",
    "Fine-tuning",
    "The reward model",
    "RLHF with PPO",
    "Chat",
    "Beyond",
    "Your own ChatGPT",
)
"""Of the chapters, from 1 on."""

LARGEST_NOTEBOOK = 20 * 2**20
LARGEST_FOLDER = 200 * 2**20
MOST_NOTEBOOKS = 20

IMPORTS = "from gptcore.exercises import check, hint, progress, solution"

CONFIG = """\
# nbgrader: run `nbgrader generate_assignment {names}` in this folder.
c = get_config()
c.CourseDirectory.course_id = "gptcore"
# The functions to be written stand above the solutions that are taken out.
c.ClearSolutions.code_stub = {{"python": "# Your answer goes into the function above."}}
c.ExecutePreprocessor.timeout = 120
"""


# --- Cells ---------------------------------------------------------------------------------------


def _cell(kind: str, name: str, source: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": name, "metadata": metadata or {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _heading(exercise: Exercise) -> str:
    stars = "★" * exercise.difficulty + "☆" * (5 - exercise.difficulty)
    about = f"*about {exercise.minutes} minutes, difficulty {stars}*"
    return f"### {exercise.number} · {exercise.title}\n\n{about}\n\n{exercise.task.strip()}"


def chapter_cells(chapter: int) -> list[dict[str, Any]]:
    """The section of exercises of a chapter's notebook, as notebook cells."""
    intro = (
        "## Exercises\n\n"
        "Write your answer into the cell, run it, then run the check below it. A check never raises: it says what is "
        "wrong, and for which example. `hint(...)` helps a little, and more each time; `solution(...)` shows the "
        "solution; `progress()` shows how far you are in all chapters."
    )
    cells = [_cell("markdown", "exercises", intro), _cell("code", "exercises-imports", IMPORTS)]
    for exercise in _exercises_of(chapter):
        name = exercise.number.replace(".", "-")
        cells.append(_cell("markdown", f"task-{name}", _heading(exercise)))
        cells.append(_cell("code", f"exercise-{name}", exercise.cell()))
        cells.append(_cell("code", f"check-{name}", f'check("{exercise.number}")'))
    return cells


def with_solutions(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook (as JSON) with the solution in the place of each stub."""
    cells = []
    for cell in notebook["cells"]:
        number = cell.get("id", "").removeprefix("exercise-").replace("-", ".")
        solved = cell.get("id", "").startswith("exercise-") and number in exercises()
        cells.append(cell | {"source": exercises()[number].cell(exercises()[number].solution)} if solved else cell)
    return notebook | {"cells": cells}


def _exercises_of(chapter: int) -> list[Exercise]:
    return [exercise for exercise in exercises().values() if exercise.chapter == chapter]


# --- Handing out ---------------------------------------------------------------------------------


def assignment_notebook(chapter: int, for_teacher: bool) -> dict[str, Any]:
    """A notebook with the exercises of a chapter, in nbgrader's format.

    Args:
        chapter: its number.
        for_teacher: with solutions and hidden checks, between the marks that nbgrader removes; otherwise as
            nbgrader gives it to students.
    """
    own = _exercises_of(chapter)
    points = sum(exercise.difficulty for exercise in own)
    title = (
        f"# Exercises to chapter {chapter}: {TITLES[chapter - 1]}\n\n{len(own)} exercises, {points} points. Write your "
        "answers into the cells, and add cells where you like. Leave the names of the functions as they are. A check "
        "looks at your answer and says what is wrong; it gives no points itself."
    )
    cells = [
        _cell("markdown", "title", title),
        _cell("code", "imports", f"{IMPORTS}\nfrom gptcore.machine import set_threads\n\nset_threads()"),
    ]
    for exercise in own:
        name = exercise.number.replace(".", "-")
        grading = {"schema_version": 3, "locked": True, "grade": False, "solution": False, "task": False}
        cells.append(
            _cell(
                "markdown",
                f"task-{name}",
                f"{_heading(exercise)}\n\n**{exercise.difficulty} points**",
                {"nbgrader": grading | {"grade_id": f"task-{name}"}},
            )
        )
        filled = f"### BEGIN SOLUTION\n{exercise.solution.strip()}\n### END SOLUTION"
        added = filled if for_teacher else "# Your answer goes into the function above."
        cells.append(
            _cell(
                "code",
                f"exercise-{name}",
                exercise.cell(f"{exercise.stub.strip()}\n\n\n{added}"),
                {"nbgrader": grading | {"grade_id": f"exercise-{name}", "locked": False, "solution": True}},
            )
        )
        visible = f'check("{exercise.number}")'
        hidden = (
            "\n### BEGIN HIDDEN TESTS\nfrom gptcore.exercises import require\n\n"
            f'require("{exercise.number}")\n### END HIDDEN TESTS'
        )
        cells.append(
            _cell(
                "code",
                f"check-{name}",
                visible + (hidden if for_teacher else ""),
                {"nbgrader": grading | {"grade_id": f"check-{name}", "grade": True, "points": exercise.difficulty}},
            )
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write_assignment(chapters: Sequence[int], out: Path) -> list[Path]:
    """Write the notebooks of some chapters for the teacher and for students.

    Returns:
        the students' notebooks.

    Raises:
        ValueError: if there is no such chapter.
    """
    for chapter in chapters:
        if not _exercises_of(chapter):
            raise ValueError(f"there is no chapter {chapter} with exercises: choose from 1 to {len(TITLES)}")
    written = []
    for chapter in chapters:
        name = f"chapter_{chapter:02}"
        for folder, for_teacher in (("source", True), ("student", False)):
            path = out / folder / name / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(assignment_notebook(chapter, for_teacher), indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
        written.append(path)
    names = " ".join(f"chapter_{chapter:02}" for chapter in chapters)
    (out / "nbgrader_config.py").write_text(CONFIG.format(names=names), encoding="utf-8")
    return written


# --- Marking -------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """What one answer is worth, and why."""

    points: int
    message: str


@dataclass
class Marks:
    """What one student gets for all notebooks together: a row of the table."""

    student: str
    marks: dict[str, Mark] = field(default_factory=dict)
    """By exercise; those without an entry were not handed in."""
    note: str = ""
    """What the teacher should know about the notebooks, such as why one could not be marked; may be empty."""

    @property
    def points(self) -> int:
        """The sum of the marks; an exercise that was not handed in counts nothing."""
        return sum(mark.points for mark in self.marks.values())


def find_returned(folder: Path) -> dict[str, list[Path]]:
    """The notebooks of each student: those in a folder of the student's name, or one file with that name."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            inside = [path for path in sorted(entry.rglob("*")) if path.is_file() and not path.is_symlink()]
            inside = [path for path in inside if student_of(path) is not None]
            hidden = [path for path in inside if any(part.startswith(".") for part in path.relative_to(entry).parts)]
            found[entry.name] = [path for path in inside if path not in hidden]
        elif (student := student_of(entry)) is not None and entry.is_file():
            found.setdefault(student, []).append(entry)
    return found


def mark_notebook(
    notebook: Path, numbers: Sequence[str], seconds: float, memory_gb: float
) -> tuple[dict[str, Mark], str]:
    """Run one notebook in a sandbox and check its answers.

    Args:
        notebook: in a folder that may be written and spoiled.
        numbers: of the exercises.
        seconds: limit for running the cells; each check has its own.
        memory_gb: limit.

    Returns:
        the marks, and a note about the notebook as a whole.
    """
    original = notebook.read_bytes()
    marks: dict[str, Mark] = {}
    note = reason = ""
    sandbox: Sandbox | None = None
    starts = 0
    try:
        for number in numbers:
            exercise = exercises()[number]
            if sandbox is None:
                if reason or starts == len(numbers):  # each has lost its process before
                    marks[number] = Mark(0, reason or "the notebook keeps ending its process")
                    continue
                starts += 1
                try:
                    notebook.write_bytes(original)
                    sandbox = Sandbox(notebook, numbers, seconds, memory_gb)
                    if "error" in sandbox.states:
                        raise SandboxError(sandbox.states["error"])
                except (SandboxError, OSError) as error:
                    reason = f"while its cells ran: {error}"  # it would happen again
                    note = note or reason
                    marks[number] = Mark(0, reason)
                    sandbox = _closed(sandbox)
                    continue
                if sandbox.states.get("errors"):
                    note = f"{int(sandbox.states['errors'])} of its cells stopped with an error"
            state = sandbox.states.get(number, "blank")
            if state == "blank":
                marks[number] = Mark(0, "not attempted")
            elif state != "there":
                marks[number] = Mark(0, f"`{exercise.name}` should be a function; it is {str(state)[:60]}.")
            else:
                try:
                    marks[number] = _mark_answer(exercise, sandbox)
                except SandboxError as error:
                    marks[number] = Mark(0, str(error))
                    sandbox = _closed(sandbox)
                except Exception as error:
                    marks[number] = Mark(0, f"the check could not go on with this result ({type(error).__name__})")
    finally:
        _closed(sandbox)
    return marks, note


def _mark_answer(exercise: Exercise, sandbox: Sandbox) -> Mark:
    for seed in range(2):
        verdict = run_checker(exercise, RemoteAnswer(exercise, sandbox), seed)
        if verdict.status != "right":
            return Mark(0, verdict.message)
    return Mark(exercise.difficulty, "right")


def _closed(sandbox: Sandbox | None) -> None:
    if sandbox is not None:
        sandbox.close()


def mark_student(student: str, notebooks: Sequence[Path], folder: Path, seconds: float, memory_gb: float) -> Marks:
    """Mark all notebooks of a student; each runs on a copy of its folder. Never raises."""
    result = Marks(student)
    notes = []
    if len(notebooks) > MOST_NOTEBOOKS:
        notes.append(f"only {MOST_NOTEBOOKS} of {len(notebooks)} notebooks were marked")
    if not notebooks:
        others = sorted(path.name for path in (folder / student).rglob("*") if path.is_file())[:3]
        notes.append(f"no notebook was handed in{', but ' if others else ''}{', '.join(others)}")
    for notebook in notebooks[:MOST_NOTEBOOKS]:
        numbers, note = _what_to_mark(notebook)
        notes.append(note)
        if not numbers:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as copy:
            try:
                place = _copy_folder(notebook, folder, Path(copy))
                marks, note = mark_notebook(place, numbers, seconds, memory_gb)
            except Exception as error:  # whatever a notebook does, it costs its own marks only
                note = f"could not be marked ({type(error).__name__}: {error})"
                marks = {number: Mark(0, note) for number in numbers}
        notes.append(note)
        for number, mark in marks.items():
            if number not in result.marks or mark.points > result.marks[number].points:
                result.marks[number] = mark
    result.note = "; ".join(dict.fromkeys(note for note in notes if note))
    return result


def _what_to_mark(notebook: Path) -> tuple[list[str], str]:
    """The exercises in a notebook, and what there is to say about how they were told."""
    name = notebook.name
    try:
        if notebook.stat().st_size > LARGEST_NOTEBOOK:
            return [], f"{name} is too large"
        found = find_exercises(read_cells(notebook))
    except (OSError, ValueError) as error:
        return [], f"{name} cannot be read: {error}"
    if not found.numbers:
        return [], f"{name} was not marked: no cell, title, check or function of an exercise is in it"
    chapters = " and ".join(map(str, sorted(found.chapters)))
    said = re.search(r"chapter[_ -]?0*(\d+)", name, re.IGNORECASE)
    if said and int(said[1]) not in found.chapters:
        return found.numbers, f"{name} holds exercises of chapter {chapters}, whatever its name says"
    if found.by_function_only:
        return found.numbers, f"that {name} is of chapter {chapters} was told by the names of its functions alone"
    return found.numbers, ""


def _copy_folder(notebook: Path, returned: Path, copy: Path) -> Path:
    """Copy a notebook and what lies beside it (of a shared folder, not the notebooks of others)."""
    size = 0
    for path in sorted(notebook.parent.rglob("*")):
        alone = notebook.parent == returned and student_of(path) is not None
        if path.is_symlink() or not path.is_file() or (alone and path != notebook):
            continue
        if size + path.stat().st_size > LARGEST_FOLDER and path != notebook:
            continue
        size += path.stat().st_size
        target = copy / path.relative_to(notebook.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return copy / notebook.name


def _neither_files_nor_folders(folder: str, names: list[str]) -> list[str]:
    """What is not copied: hidden entries, links, and what would never end when read."""
    places = [(name, Path(folder) / name) for name in names]
    return [
        name
        for name, place in places
        if name.startswith(".") or place.is_symlink() or not (place.is_file() or place.is_dir())
    ]


def mark_class(folder: Path, jobs: int = 2, seconds: float = 60.0, memory_gb: float = 4.0) -> list[Marks]:
    """Mark everything that was returned.

    Args:
        folder: one folder, or one notebook, for each student.
        jobs: notebooks at a time.
        seconds: limit for running the cells of one notebook.
        memory_gb: limit of memory of one notebook.

    Raises:
        FileNotFoundError: if nothing is there.
    """
    returned = find_returned(folder)
    if not returned:
        raise FileNotFoundError(f"{folder} has no notebooks: it needs a folder, or a notebook, for each student")
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(jobs) as pool:
        # All of them are copied before the first one runs: none can spoil another's.
        safe = Path(place) / "returned"
        shutil.copytree(folder, safe, ignore=_neither_files_nor_folders)
        marks = [
            pool.submit(mark_student, student, notebooks, safe, seconds, memory_gb)
            for student, notebooks in find_returned(safe).items()
        ]
        return [_tamed(mark.result()) for mark in marks]


def _tamed(marks: Marks) -> Marks:
    answers = {number: Mark(mark.points, _tame(mark.message)) for number, mark in marks.marks.items()}
    return Marks(_tame(_spelled(marks.student)), answers, _tame(_spelled(marks.note)).replace("\n", " "))


def _spelled(text: str) -> str:
    """A text with names of files, as UTF-8 spells them even where the locale took their bytes for something else."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


# --- The table -----------------------------------------------------------------------------------


def write_tables(marks: Sequence[Marks], out: Path) -> tuple[Path, Path]:
    """Write the marks as `marks.csv` and `marks.html` into a folder, and return both paths."""
    out.mkdir(parents=True, exist_ok=True)
    chapters = {exercises()[number].chapter for one in marks for number in one.marks}
    numbers = [number for number, exercise in exercises().items() if exercise.chapter in chapters]
    most = sum(exercises()[number].difficulty for number in numbers)
    table, page = out / "marks.csv", out / "marks.html"
    with table.open("w", newline="", encoding="utf-8-sig") as file:  # the mark by which spreadsheets know UTF-8
        writer = csv.writer(file)
        writer.writerow(["student", *numbers, "points", "of", "note"])
        for one in marks:
            own = [one.marks[number].points if number in one.marks else "" for number in numbers]
            writer.writerow([_harmless(one.student), *own, one.points, most, _harmless(one.note)])
    page.write_text(_page(marks, numbers, most), encoding="utf-8")
    return table, page


def _harmless(text: str) -> str:
    """A text in no part of which a spreadsheet sees a formula, wherever it may begin a new cell."""
    return re.sub(r"(^|[;,|\t\r\n])(\s*)(?=[=+\-@])", r"\1\2'", text)


def _tame(text: str, most: int = 2000) -> str:
    """A text from a notebook that can be written and printed anywhere, and moves no cursor."""
    text = text[:most].encode("utf-8", "backslashreplace").decode()
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _page(marks: Sequence[Marks], numbers: Sequence[str], most: int) -> str:
    rows = []
    for one in marks:
        cells = [f"<th scope='row'>{html.escape(one.student)}</th>"]
        for number in numbers:
            mark = one.marks.get(number, Mark(0, "not handed in"))
            kind = "right" if mark.points else "none" if mark.message.startswith("not ") else "wrong"
            sign = {"right": f"{mark.points} ✓", "wrong": "0 ✗", "none": "–"}[kind]
            cells.append(f"<td class='{kind}' title='{html.escape(mark.message, quote=True)}'>{sign}</td>")
        cells.append(f"<td><b>{one.points}</b></td><td class='note'>{html.escape(one.note)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    shares = []
    for number in numbers:
        right = sum(bool(one.marks.get(number, Mark(0, "")).points) for one in marks)
        shares.append(f"<td>{right} of {len(marks)}</td>")
    heads = "".join(
        f"<th title='{html.escape(exercises()[n].title, quote=True)}'>{n}<br><small>{exercises()[n].difficulty} p.</small></th>"
        for n in numbers
    )
    style = (
        "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #888;padding:.3em .6em;text-align:center}.right{background:#cfe8ff}"
        ".wrong{background:#ffe0b8}.none{background:#eee}.note{text-align:left}"
        "td[title]{cursor:help}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Marks</title><style>{style}</style>"
        "<h1>Marks</h1><p>Point at a cell to see what was said about the answer.</p>"
        f"<table><tr><th>student</th>{heads}<th>points of {most}</th><th>note</th></tr>{''.join(rows)}"
        f"<tr><th scope='row'>right</th>{''.join(shares)}<td></td><td></td></tr></table></html>\n"
    )
