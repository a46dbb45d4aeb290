"""A class: what is handed out, and that whatever comes back costs its own marks only."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from made_up_class import HOSTILE, notebook, solutions, write_class

from gptcore.exercises import CHAPTERS, classroom, exercises
from gptcore.exercises.__main__ import main
from gptcore.exercises.exercise import Wrong
from gptcore.exercises.sandbox import descendants, from_json, isolation, to_json

NUMBERS = [number for number in exercises() if number.startswith("1.")]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_assignment_is_a_valid_notebook_and_the_students_holds_no_solution(chapter):
    for for_teacher in (True, False):
        content = classroom.assignment_notebook(chapter, for_teacher)
        nbformat.validate(nbformat.from_dict(content))
        graded = [cell for cell in content["cells"] if cell["metadata"].get("nbgrader", {}).get("grade")]
        assert len(graded) == sum(exercise.chapter == chapter for exercise in exercises().values())
        text = "\n".join(cell["source"] for cell in content["cells"])
        assert ("BEGIN SOLUTION" in text) == for_teacher
        assert ("BEGIN HIDDEN TESTS" in text) == for_teacher
    for exercise in (e for e in exercises().values() if e.chapter == chapter):
        assert exercise.solution.strip() not in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_cells_of_a_chapter_can_be_filled_with_all_solutions(chapter):
    cells = classroom.chapter_cells(chapter)
    solved = classroom.with_solutions({"cells": cells})["cells"]
    assert [cell["id"] for cell in cells] == [cell["id"] for cell in solved]
    for before, after in zip(cells, solved, strict=True):
        assert (before["source"] == after["source"]) == (not before["id"].startswith("exercise-"))


def test_the_command_writes_notebooks_for_teacher_and_students(tmp_path, capsys):
    assert main(["assignment", "1", "5", "--out", str(tmp_path)]) == 0
    assert "chapter_05.ipynb" in capsys.readouterr().out
    for folder in ("source", "student"):
        for name in ("chapter_01", "chapter_05"):
            assert (tmp_path / folder / name / f"{name}.ipynb").exists()
    compile((tmp_path / "nbgrader_config.py").read_text(), "config", "exec")
    assert main(["assignment", "77", "--out", str(tmp_path)]) == 1
    assert "no chapter 77" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        "中",
        b"\x00\xff",
        [1, (2.5, "a")],
        {(1, 2): 3, "a": [None]},
        torch.tensor([[1.5, -2.0]]),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.tensor([1.5, 3.0], dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_values_survive_the_way_between_the_processes(value):
    back = from_json(json.loads(json.dumps(to_json(value))))
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype
        assert torch.equal(back, value)
    else:
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize("shape", [[10**10], [-1], [2, 2]])
def test_a_tensor_that_is_not_what_it_says_is_refused(shape):
    with pytest.raises(ValueError, match="as many numbers"):
        from_json({"kind": "tensor", "dtype": "torch.uint8", "shape": shape, "data": ""})


def test_a_text_of_a_notebook_is_made_harmless_for_terminal_page_and_table():
    tame = classroom._tamed(classroom.Marks("a\x1b[2J", {"1.1": classroom.Mark(0, "\ud800 " + "x" * 9999)}, "b\nc"))
    assert (tame.student, tame.note) == ("a\N{REPLACEMENT CHARACTER}[2J", "b c")
    assert tame.marks["1.1"].message.startswith("\\ud800 x")
    assert len(tame.marks["1.1"].message) < 2010
    assert classroom._harmless("x; =HYPERLINK(1)\n-2") == "x; '=HYPERLINK(1)\n'-2"


def test_a_value_of_another_type_is_refused_by_name():
    with pytest.raises(Wrong, match="Thread"):
        from_json(json.loads(json.dumps(to_json(__import__("threading").Thread()))))


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A small class, marked once: what each should get, what each got, and the folder."""
    if "--mount" not in isolation():  # the notebook that deletes files would delete these
        pytest.skip("this system does not let a process be cut off")
    folder = tmp_path_factory.mktemp("returned")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield from _marked(folder, server.getsockname()[1])


def _marked(folder, port):
    # How long a notebook may take follows from how long one takes on this machine, alone.
    ada = folder.parent / "alone" / "ada.ipynb"
    ada.parent.mkdir()
    ada.write_text(notebook(solutions()), encoding="utf-8")
    start = time.perf_counter()
    assert all(mark.points for one in classroom.mark_class(ada.parent, seconds=3600) for mark in one.marks.values())
    limit = max(12, 5 * (time.perf_counter() - start))
    wanted = write_class(folder, students=24, port=port)
    before = {path: path.read_bytes() for path in folder.rglob("*.ipynb")}
    package = {path: path.read_bytes() for path in Path(classroom.__file__).parent.glob("*.py")}
    marks = {one.student: one for one in classroom.mark_class(folder, jobs=2, seconds=limit, memory_gb=3)}
    assert before == {path: path.read_bytes() for path in folder.rglob("*.ipynb")}
    assert package == {path: path.read_bytes() for path in package}, "a notebook has changed the package"
    yield wanted, marks, folder


def test_everybody_gets_the_marks_of_their_own_answers_whatever_the_others_do(marked):
    wanted, marks, _ = marked
    assert marks.keys() == wanted.keys()
    for student, right in wanted.items():
        got = {number for number, mark in marks[student].marks.items() if mark.points}
        if student == "much memory":  # what it has taken is missing for its answers
            assert got <= right
        else:
            assert got == right, (student, marks[student].note, marks[student].marks)


def test_no_process_of_a_notebook_is_left(marked):
    assert marked
    time.sleep(0.2)
    assert descendants(os.getpid()) == []


def test_a_wrong_answer_gets_its_own_message(marked):
    _, marks, _ = marked
    assert "the whole square" in marks["wrong"].marks["1.1"].message
    assert marks["blank"].marks["1.1"].message == "not attempted"
    assert "had not ended" in marks["hangs in an answer"].marks["1.3"].message
    assert "NameError" in marks["error in an answer"].marks["1.2"].message
    assert "ended its own process" in marks["exits in an answer"].marks["1.5"].message
    assert "ended its own process" in marks["exit"].note


def test_the_tables_hold_every_student_and_exercise(marked, tmp_path):
    wanted, marks, _ = marked
    table, page = classroom.write_tables(list(marks.values()), tmp_path)
    rows = list(csv.DictReader(table.open(encoding="utf-8-sig")))
    assert [row["student"] for row in rows] == sorted(wanted)
    for row in rows:
        assert int(row["points"]) == sum(int(row[number] or 0) for number in NUMBERS)
        assert int(row["of"]) == sum(exercises()[number].difficulty for number in NUMBERS)
    text = page.read_text(encoding="utf-8")
    assert all(student in text for student in wanted)
    assert text.count("<tr>") == len(wanted) + 2


def test_a_name_or_a_message_cannot_become_html_or_a_formula(tmp_path):
    mark = classroom.Mark(0, "<script>alert(1)</script>")
    one = classroom.Marks("=1+1", {"1.1": mark}, note="<b>")
    table, page = classroom.write_tables([one], tmp_path)
    assert "<script>" not in page.read_text()
    assert "<b></td>" not in page.read_text().replace("<td><b>", "")
    assert next(iter(csv.DictReader(table.open(encoding="utf-8-sig"))))["student"] == "'=1+1"


def test_one_notebook_for_each_student_in_a_common_folder_is_found_too(tmp_path):
    for name in ("ada", "bob"):
        (tmp_path / f"{name}.ipynb").write_text(notebook({}), encoding="utf-8")
    (tmp_path / "carol").mkdir()
    found = classroom.find_returned(tmp_path)
    assert {name: len(paths) for name, paths in found.items()} == {"ada": 1, "bob": 1, "carol": 0}
    assert classroom.chapters_in(found["ada"][0]) == {1}


def test_a_folder_without_notebooks_is_named(tmp_path, capsys):
    assert main(["mark", str(tmp_path)]) == 1
    assert "has no notebooks" in capsys.readouterr().err


def test_nbgrader_generates_and_autogrades_the_assignment(tmp_path, monkeypatch):
    pytest.importorskip("nbgrader", reason="pip install 'gptcore[classroom]'")
    # nbgrader calls the command `alembic`, which stands beside python.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert main(["assignment", "1", "--out", str(tmp_path)]) == 0

    def nbgrader(*words):
        environment = os.environ | {"PYTHONPATH": str(Path(classroom.__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    nbgrader("generate_assignment", "chapter_01", "--create")
    released = (tmp_path / "release" / "chapter_01" / "chapter_01.ipynb").read_text(encoding="utf-8")
    ours = (tmp_path / "student" / "chapter_01" / "chapter_01.ipynb").read_text(encoding="utf-8")
    sources = [[cell["source"] for cell in nbformat.reads(text, 4).cells] for text in (released, ours)]
    assert sources[0] == sources[1], "our student version is the one that nbgrader makes"
    returned = {"ada": notebook(solutions()), "blank": notebook({})}
    returned["half"] = notebook({"1.1": solutions()["1.1"]})
    for student, text in returned.items():
        place = tmp_path / "submitted" / student / "chapter_01" / "chapter_01.ipynb"
        place.parent.mkdir(parents=True)
        place.write_text(text, encoding="utf-8")
    nbgrader("autograde", "chapter_01", "--create")
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        scores = {one: gradebook.find_submission("chapter_01", one).score for one in returned}
        most = gradebook.find_assignment("chapter_01").max_score
    assert scores == {"ada": most, "blank": 0, "half": exercises()["1.1"].difficulty}


def test_every_hostile_notebook_is_in_the_class(marked):
    assert set(HOSTILE) <= set(marked[0])
