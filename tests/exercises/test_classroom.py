"""A class: what is handed out, and that whatever comes back costs its own marks only."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from made_up_class import HOSTILE, notebook, solutions, write_class

from gptcore.exercises import CHAPTERS, RECORD, classroom, exercises
from gptcore.exercises.__main__ import main
from gptcore.exercises.classroom import assignment_notebook, with_solutions
from gptcore.exercises.exercise import Wrong
from gptcore.exercises.returned import find_exercises, read_cells
from gptcore.exercises.sandbox import descendants, from_json, isolation, to_json

pytestmark = pytest.mark.slow

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
    assert found_in(tmp_path / "ada.ipynb").chapters == {1}


def found_in(path):
    return find_exercises(read_cells(path))


def edited(change, chapters=(1,)):
    """A solved notebook of some chapters after a change of its cells, as JSON."""
    content = with_solutions(assignment_notebook(chapters[0], for_teacher=False))
    for chapter in chapters[1:]:
        content["cells"] += with_solutions(assignment_notebook(chapter, for_teacher=False))["cells"]
    content["cells"] = change(content["cells"])
    return json.dumps(content)


def without(*traces):
    """A change that takes away what names an exercise: "ids", "titles", "checks", "functions"."""

    def change(cells):
        kept = []
        for cell in cells:
            kind = cell["id"].split("-")[0]
            if (kind, True) not in {("task", "titles" in traces), ("check", "checks" in traces)}:
                kept.append(cell)
            if kind == "exercise" and "functions" in traces:
                cell["source"] = "pass"
            if "ids" in traces:
                cell |= {"id": f"cell-{len(kept)}", "metadata": {}}
        return kept

    return change


def only_check_written(as_text):
    """Nothing but the checks, written in another way."""

    def change(cells):
        cells = without("ids", "titles", "functions")(cells)
        for cell in cells:
            cell["source"] = re.sub(
                r'check\("([\d.]+)"\)', lambda match: as_text.replace("N", match[1]), cell["source"]
            )
        return cells

    return change


def one_cell(cells):
    """All code in one cell, with a syntax error at its end."""
    source = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    return [cells[1] | {"id": "a", "metadata": {}, "source": f"{source}\n\nthe end"}]


def one_line_a_cell(cells):
    """Each line in a cell of its own."""
    lines = [line for cell in without("ids")(cells) for line in cell["source"].splitlines() if line.strip()]
    return [{"cell_type": "code", "id": str(n), "metadata": {}, "source": line} for n, line in enumerate(lines)]


def colab(cells):
    """As Colab saves: an id in the metadata, and the lines as a list."""
    return [
        {"cell_type": cell["cell_type"], "metadata": {"id": cell["id"]}, "source": cell["source"].splitlines(True)}
        for cell in without("titles", "checks", "functions")(cells)
    ]


def only_grade_ids(cells):
    return [cell | {"id": str(n)} for n, cell in enumerate(without("titles", "checks", "functions")(cells))]


SHAPES = {
    "as it was": lambda cells: cells,
    "no checks": without("checks"),
    "no ids": without("ids"),
    "ids only": without("titles", "checks", "functions"),
    "titles only": without("ids", "checks", "functions"),
    "functions only": without("ids", "titles", "checks"),
    "nbgrader's ids only": only_grade_ids,
    "single quotes": only_check_written("check('N')"),
    "spaces": only_check_written('check ( \n "N" , ) ;'),
    "three quotes": only_check_written('check("""N""")'),
    "an f-string": only_check_written("check(f'N')"),
    "a keyword": only_check_written('check(number="N")'),
    "a number": only_check_written("check(N)"),
    "a list": only_check_written('[check(n) for n in ["N"]]'),
    "a name of its module": only_check_written("gptcore.exercises.check('N')"),
    "one cell with a syntax error": one_cell,
    "one line a cell": one_line_a_cell,
    "reversed": lambda cells: without("ids", "titles")(cells)[::-1],
    "Colab's": colab,
    "half of them deleted": lambda cells: without("ids")(cells)[: len(cells) // 2],
    "one answer kept": lambda cells: [
        cell for cell in without("ids")(cells) if "def decoder_attention" in cell["source"]
    ],
    "with a helper called like an exercise of chapter 4": lambda cells: [
        *cells,
        cells[1] | {"id": "own", "source": "def merge(a, b):\n    return a + b"},
    ],
    "with the checks of chapter 5": lambda cells: [
        cell | {"source": cell["source"].replace('check("1.', 'check("5.')} for cell in cells
    ],
    "with a check of chapter 5": lambda cells: [*cells, cells[1] | {"id": "own", "source": 'check("5.1")'}],
}


@pytest.mark.parametrize("name", ["chapter_01", "homework", "group2", "chapter_05", "Untitled7"])
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_became_of_a_notebook_its_chapter_is_told_by_what_is_in_it(shape, name, tmp_path):
    path = tmp_path / f"{name}.ipynb"
    path.write_text(edited(SHAPES[shape]), encoding="utf-8")
    numbers, note = classroom._what_to_mark(path)
    assert numbers == NUMBERS
    assert ("whatever its name says" in note) == (name == "chapter_05")
    if name == "homework":
        alone = shape in ("functions only", "one answer kept")
        assert ("by the names of its functions alone" in note) == alone


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("version", [2, 3, 4])
def test_older_formats_and_other_encodings_are_read(version, encoding, tmp_path):
    content = nbformat.from_dict(json.loads(edited(lambda cells: cells)))
    text = nbformat.writes(content, 3 if version == 2 else version)
    if version == 2:
        text = json.dumps(json.loads(text) | {"nbformat": 2})
    path = tmp_path / "old.ipynb"
    path.write_text(text, encoding=encoding)
    cells = read_cells(path)
    assert find_exercises(cells).numbers == NUMBERS
    code = "\n".join(cell.source for cell in cells if cell.is_code)
    assert all(exercises()[number].solution.strip() in code for number in NUMBERS)


def test_two_chapters_in_one_notebook_are_both_there_and_a_pasted_answer_counts_by_itself(tmp_path):
    path = tmp_path / "homework.ipynb"
    path.write_text(edited(lambda cells: cells, chapters=(1, 5)), encoding="utf-8")
    assert found_in(path).chapters == {1, 5}
    pasted = [cell for cell in with_solutions(assignment_notebook(5, False))["cells"] if cell["id"].endswith("-5-2")]
    path.write_text(edited(lambda cells: [*cells, *pasted]), encoding="utf-8")
    assert found_in(path) == (["1.1", "1.2", "1.3", "1.4", "1.5", "5.2"], {1}, False)


UNREADABLE = {
    "empty": b"",
    "cut off": edited(lambda cells: cells)[:3000].encode(),
    "a list": b"[]",
    "a number": b"3",
    "no cells": b'{"nbformat": 4}',
    "cells that are none": b'{"cells": [1, "2", null]}',
    "cells that are a number": b'{"cells": 5}',
    "metadata that are none": b'{"cells": [{"cell_type": "code", "metadata": [1], "source": ""}]}',
    "no text": bytes(range(256)),
    "deep": b"[" * 10**6,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_notebook_costs_no_points_of_any_chapter_and_is_named(name, tmp_path):
    path = tmp_path / "ada" / "chapter_01.ipynb"
    path.parent.mkdir()
    path.write_bytes(UNREADABLE[name])
    (one,) = classroom.mark_class(tmp_path)
    assert one.marks == {}
    assert "chapter_01.ipynb cannot be read: it is no notebook, or a damaged one" in one.note


def test_what_cannot_be_told_is_said_and_nobody_gets_the_zeros_of_another_chapter(tmp_path):
    for student, content in (("ada", {"cells": []}), ("bob", {"cells": [{"cell_type": "code", "source": "x = 1"}]})):
        (tmp_path / student).mkdir()
        (tmp_path / student / "chapter_05.ipynb").write_text(json.dumps(content))
    (tmp_path / "carl").mkdir()
    (tmp_path / "carl" / "homework.zip").write_text("")
    (tmp_path / "dora").mkdir()
    marks = {one.student: one for one in classroom.mark_class(tmp_path)}
    assert all(one.marks == {} for one in marks.values())
    for student in ("ada", "bob"):
        assert "chapter_05.ipynb was not marked: no cell, title, check or function" in marks[student].note
    assert marks["carl"].note == "no notebook was handed in, but homework.zip"
    assert marks["dora"].note == "no notebook was handed in"


def test_a_cell_full_of_spaces_does_not_hold_the_marker_up(tmp_path):
    source = "check(" + " " * 10**6 + "\n" + "#" * 10**6 + "\n" + "x" * 10**6 + "\n'" + " " * 10**6
    path = tmp_path / "ada.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": source}]}))
    start = time.perf_counter()
    assert found_in(path).numbers == []
    assert time.perf_counter() - start < 20


def test_notebooks_come_back_under_any_name_and_are_marked(tmp_path):
    old = nbformat.from_dict(json.loads(edited(lambda cells: cells)))
    returned = {
        "ada/homework.ipynb": edited(SHAPES["no checks"]),
        "bob/group2.ipynb": edited(without("ids", "titles", "checks")),
        "carl/homework.ipynb.txt": re.sub(r'check\(\\"([\d.]+)\\"\)', r"check('\1')", edited(lambda cells: cells)),
        "dora/HOMEWORK.IPYNB": nbformat.writes(old, 3),
    }
    for name, text in returned.items():
        place = tmp_path / name
        place.parent.mkdir()
        place.write_text(text, encoding="utf-8")
    most = sum(exercises()[number].difficulty for number in NUMBERS)
    points = {one.student: one.points for one in classroom.mark_class(tmp_path)}
    assert points == dict.fromkeys(("ada", "bob", "carl", "dora"), most)


def test_a_folder_without_notebooks_is_named(tmp_path, capsys):
    assert main(["mark", str(tmp_path)]) == 1
    assert "has no notebooks" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_marking_prints_names_wherever_it_prints_and_writes_them_in_utf_8(encoding, tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["assignment", "1", "--out", str(tmp_path / "作业")]) == 0
    (tmp_path / "交" / "张伟").mkdir(parents=True)
    (tmp_path / "交" / "张伟" / "第一章.ipynb").write_text("{", encoding="utf-8")
    assert main(["mark", str(tmp_path / "交")]) == 0
    said = stream.buffer.getvalue().decode(encoding)
    assert "\\u4f5c\\u4e1a" in said
    assert "\\u5f20\\u4f1f" in said
    for name, kind in (("marks.csv", "utf-8-sig"), ("marks.html", "utf-8")):
        text = (tmp_path / "交" / name).read_text(encoding=kind)
        assert "张伟" in text
        assert "第一章" in text
    for path in (tmp_path / "作业").rglob("*.ipynb"):
        assert "★" in path.read_text(encoding="utf-8")


def test_marks_depend_neither_on_a_gpu_nor_on_what_a_notebook_has_switched(tmp_path):
    source = (
        "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
        "import os\nassert os.environ['CUDA_VISIBLE_DEVICES'] == os.environ['HIP_VISIBLE_DEVICES'] == '-1'"
    )
    switch = {"cell_type": "code", "metadata": {}, "source": source}
    for chapter in (3, 10):
        text = edited(lambda cells: [*without("checks")(cells), switch], chapters=(chapter,))
        (tmp_path / f"{chapter}.ipynb").write_text(text, encoding="utf-8")
    for one in classroom.mark_class(tmp_path):
        assert all(mark.points for mark in one.marks.values()), one
        assert one.note == ""


def test_a_name_is_written_in_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "张伟").mkdir()
    (tmp_path / "张伟" / "第一章.ipynb").write_text(edited(lambda cells: cells), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONPATH": str(Path(classroom.__file__).parents[2])}
    command = [sys.executable, "-m", "gptcore.exercises", "mark", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "marks.csv").open(encoding="utf-8-sig"))
    assert (row["student"], row["points"]) == ("张伟", row["of"])
    assert "\\u5f20\\u4f1f" in done.stdout


@pytest.mark.parametrize("shell", ["{} >&-", "{} | true", "{} > /dev/full"])
def test_where_nobody_listens_the_work_is_done_all_the_same(shell, tmp_path):
    command = f"{sys.executable} -m gptcore.exercises assignment 1 --out '{tmp_path / 'out'}'"
    environment = os.environ | {"PYTHONPATH": str(Path(classroom.__file__).parents[2])}
    line = f"set -o pipefail; {shell.format(command)}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "student" / "chapter_01" / "chapter_01.ipynb").exists()


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
        return done.stdout

    before = RECORD.read_bytes() if RECORD.exists() else None
    nbgrader("generate_assignment", "chapter_01", "--create")
    released = (tmp_path / "release" / "chapter_01" / "chapter_01.ipynb").read_text(encoding="utf-8")
    ours = (tmp_path / "student" / "chapter_01" / "chapter_01.ipynb").read_text(encoding="utf-8")
    sources = [[cell["source"] for cell in nbformat.reads(text, 4).cells] for text in (released, ours)]
    assert sources[0] == sources[1], "our student version is the one that nbgrader makes"
    student = tmp_path / "student" / "chapter_01" / "chapter_01.ipynb"
    said = nbgrader("validate", str(student))
    assert f"VALIDATION FAILED ON {len(NUMBERS)} CELL(S)" in said
    assert "not attempted yet" in said
    student.write_text(notebook(solutions()), encoding="utf-8")
    assert "Success! Your notebook passes all the tests." in nbgrader("validate", str(student))
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
    assert (RECORD.read_bytes() if RECORD.exists() else None) == before, "it is the teacher's own progress"


def test_every_hostile_notebook_is_in_the_class(marked):
    assert set(HOSTILE) <= set(marked[0])
