"""`check`, `hint`, `solution` and `progress`: what they say, and that nothing makes them raise or hang."""

import email
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from gptcore import exercises
from gptcore.advantages import token_rewards, whiten
from gptcore.exercises import check, examine, hint, progress, require, running, solution
from gptcore.exercises.exercise import Answer, Either, by_message, close, difference, show

ROOT = Path(exercises.__file__).parents[2]
RIGHT = exercises.exercises()["1.1"].solution


def impatient(monkeypatch) -> None:
    """Exercise 1.1 waits for a second only."""
    known = exercises.exercises() | {"1.1": replace(exercises.exercises()["1.1"], seconds=1.0)}
    monkeypatch.setattr(exercises, "exercises", lambda: known)


BAD_ENTRY = '{"1.1": {"attempts": "x", "hints": null}}'


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    """A record of the test's own."""
    monkeypatch.setattr(exercises, "RECORD", tmp_path / "runs" / "exercises.json")
    return tmp_path / "runs" / "exercises.json"


def answer(code):
    """The answer to 1.1 that a cell with this code defines."""
    names = {}
    exec(code, names)
    return names["allowed_pairs"]


HARD = {
    "raises": ("def allowed_pairs(T):\n    raise ValueError('no')", "ValueError: no"),
    "exits": ("def allowed_pairs(T):\n    import sys\n    sys.exit(3)", "ended the whole process"),
    "kills": ("def allowed_pairs(T):\n    import os\n    os._exit(3)", "ended the whole process"),
    "recurses": ("def allowed_pairs(T):\n    return allowed_pairs(T)", "RecursionError"),
    "another type": ("def allowed_pairs(T):\n    return object()", "a number is expected"),
    "a class": ("class allowed_pairs:\n    pass", "TypeError"),
    "no function": ("allowed_pairs = 3", "should be a function; it is int"),
    "too many arguments": ("def allowed_pairs(T, U):\n    return 1", "TypeError"),
    "prints much": ("def allowed_pairs(T):\n    print('x' * 10**6)\n    return 0", "Your code printed"),
    "asks": ("def allowed_pairs(T):\n    return int(input())", "EOFError"),
}


@pytest.mark.parametrize("name", HARD)
def test_whatever_the_code_does_the_check_says_what_is_wrong(name, capsys):
    code, phrase = HARD[name]
    check("1.1", allowed_pairs=answer(code))
    out = capsys.readouterr().out
    assert "1.1 How much does the mask leave?: not yet" in out
    assert phrase in out
    assert len(out) < 3000


LOOPS = {
    "plain": "while True:\n        pass",
    "catching": "while True:\n        try:\n            x = 1\n        except BaseException:\n            pass",
    "compiled": "import re\n    re.match('(a+)+$', 'a' * 40 + 'b')",
    "sleeping": "import time\n    time.sleep(1000)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_never_ends_is_stopped(name, monkeypatch):
    names = {"allowed_pairs": answer(f"def allowed_pairs(T):\n    {LOOPS[name]}")}
    impatient(monkeypatch)
    assert "had not ended" in examine("1.1", names).message


def test_without_fork_a_thread_is_stopped_at_the_limit_too(monkeypatch):
    monkeypatch.setattr(running, "can_fork", lambda: False)

    def endless():
        while True:
            pass

    assert running.run_limited(endless, 0.5)[0] == "time"
    assert running.run_limited(lambda: print("hello") or 3, 5) == ("done", 3, "hello\n")
    assert running.run_limited(lambda: exit(), 5)[0] == "exit"
    assert running.run_limited(lambda: 1 / 0, 5)[0] == "error"


REFUSAL = "Unable to handle autograd's threading in combination with fork-based multiprocessing."


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """A machine where torch sees a GPU and a gradient was computed: by torch's rule no copy can compute another."""
    own = os.getpid()

    def refusing(function):
        def call(*arguments, **more):
            if os.getpid() != own:
                raise RuntimeError(REFUSAL)
            return function(*arguments, **more)

        return call

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name in ("grad", "backward"):
        monkeypatch.setattr(torch.autograd, name, refusing(getattr(torch.autograd, name)))


def solved(number):
    """The names that a cell with the solution defines."""
    names = {}
    exec(exercises.exercises()[number].solution, names)
    return names


@pytest.mark.parametrize("number", exercises.exercises())
def test_a_right_answer_is_right_beside_a_gpu_and_in_a_thread(number, beside_a_gpu, monkeypatch):
    verdict = examine(number, solved(number))
    assert verdict.status == "right", verdict.message
    monkeypatch.setattr(running, "can_fork", lambda: False)
    verdict = examine(number, solved(number))
    assert verdict.status == "right", verdict.message


def test_without_a_gpu_the_copy_has_the_last_word(beside_a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert REFUSAL in examine("10.1", solved("10.1")).message


@pytest.mark.parametrize("name", HARD)
def test_beside_a_gpu_too_the_check_says_what_is_wrong(name, beside_a_gpu):
    code, phrase = HARD[name]
    verdict = examine("1.1", {"allowed_pairs": answer(code)})
    assert verdict.status == "wrong"
    assert phrase in verdict.message


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_beside_a_gpu_too_a_loop_is_killed_and_leaves_no_thread(name, beside_a_gpu, monkeypatch):
    impatient(monkeypatch)
    before = threading.active_count()
    names = {"allowed_pairs": answer(f"def allowed_pairs(T):\n    {LOOPS[name]}")}
    assert "had not ended" in examine("1.1", names).message
    assert threading.active_count() == before


def test_a_device_of_any_make_counts_as_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not running.sees_a_gpu()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # Intel's, say
    assert running.sees_a_gpu()


SWITCHES = {
    "no gradients": lambda: torch.set_grad_enabled(False),
    "double precision": lambda: torch.set_default_dtype(torch.float64),
    "another device": lambda: torch.set_default_device("meta"),  # the one that every machine has
}


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("number", ["1.1", "1.3", "3.3", "9.4", "10.1", "12.2"])
@pytest.mark.parametrize("name", SWITCHES)
def test_what_the_notebook_has_switched_makes_no_right_answer_wrong(name, number, fork, monkeypatch):
    monkeypatch.setattr(running, "can_fork", lambda: fork)
    names = solved(number)
    try:
        SWITCHES[name]()
        switched = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
        verdict = examine(number, names)
        left = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert verdict.status == "right", verdict.message
    assert left == switched


def test_the_check_leaves_no_trace_in_the_process(capsys):
    import random

    import torch

    torch.manual_seed(0)
    random.seed(0)
    before = torch.random.get_rng_state(), random.getstate()
    code = "def allowed_pairs(T):\n    import torch, random\n    torch.manual_seed(5)\n    random.seed(5)\n    return 0"
    check("1.1", allowed_pairs=answer(code))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


def test_the_check_finds_the_answer_in_the_notebook_that_calls_it(capsys):
    names = {"check": check}
    exec(f'{RIGHT}\n\ncheck("1.1")', names)
    assert "right." in capsys.readouterr().out
    exec('check("1.1")', {"check": check})
    assert "not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["9.99", "77.1", "", "x", None, 3, [], "1"])
def test_a_number_that_is_none_is_answered_with_those_there_are(number, capsys):
    for command in (check, hint, solution):
        command(number)
        assert "There is no exercise" in capsys.readouterr().out


def test_hints_come_one_after_another_and_survive_a_restart(record, capsys):
    hints = exercises.exercises()["3.5"].hints
    for number, text in enumerate(hints, 1):
        hint("3.5")
        out = capsys.readouterr().out
        assert f"hint {number} of {len(hints)}: {text}" in out
    assert 'solution("3.5")' in out
    assert json.loads(record.read_text())["3.5"]["hints"] == len(hints)


def test_the_solution_is_shown_and_for_a_piece_of_gptcore_it_is_its_source(capsys):
    import inspect

    from gptcore import bpe

    for number, piece in (("4.3", bpe.merge), ("10.4", whiten), ("10.5", token_rewards)):
        solution(number)
        assert inspect.getsource(piece).strip() in capsys.readouterr().out


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


TERMINALS = {
    "Windows": lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline=""),
    "ASCII": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline=""),
    "Chinese": lambda: io.TextIOWrapper(io.BytesIO(), encoding="gbk", newline=""),
    "UTF-16": lambda: io.TextIOWrapper(io.BytesIO(), encoding="utf-16", newline=""),
    "closed": closed,
    "a closed pipe": Gone,
    "none": lambda: None,
}


@pytest.mark.parametrize("terminal", TERMINALS)
def test_whatever_the_terminal_can_show_nothing_raises_and_the_record_is_kept(terminal, record, monkeypatch):
    monkeypatch.setattr(sys, "stdout", TERMINALS[terminal]())
    for number in exercises.exercises():
        hint(number)
        solution(number)
    check("1.1", allowed_pairs=answer("def allowed_pairs(T):\n    print('中文 \\ud800')\n    return 0"))
    check("1.1", allowed_pairs=answer(RIGHT))
    hint("中")
    progress()
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert all(kept[number]["hints"] == 1 and kept[number]["solution"] for number in exercises.exercises())
    assert kept["1.1"]["attempts"] == 2
    assert kept["1.1"]["solved"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        said = sys.stdout.buffer.getvalue().decode(sys.stdout.encoding)
        assert f"1 of {len(exercises.exercises())} solved" in said
        assert ("中文" in said) == (terminal in ("Chinese", "UTF-16"))
        assert "\\u4e2d" in said or terminal in ("Chinese", "UTF-16")


def test_progress_shows_all_chapters_and_what_is_solved(capsys):
    check("1.1", allowed_pairs=answer(RIGHT))
    check("1.1", allowed_pairs=answer("def allowed_pairs(T):\n    return T"))  # solved stays solved
    check("1.2", sliding_mask=lambda T, window: 0)
    capsys.readouterr()
    progress()
    out = capsys.readouterr().out
    assert "1.1 solved" in out
    assert "1.2 tried" in out
    assert f"1 of {len(exercises.exercises())} solved" in out
    assert all(f"chapter {chapter:>2}" in out for chapter in exercises.CHAPTERS)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"1.1": 3}', "\x00", "[" * 10**5, BAD_ENTRY])
def test_a_spoiled_record_does_no_harm(record, content, capsys):
    record.parent.mkdir()
    record.write_text(content)
    progress()
    hint("1.1")
    check("1.1", allowed_pairs=answer(RIGHT))
    assert "right." in capsys.readouterr().out
    assert json.loads(record.read_text())["1.1"]["solved"]


def test_a_record_that_cannot_be_written_does_no_harm(record, capsys):
    record.parent.write_text("a file where the folder should be")
    check("1.1", allowed_pairs=answer(RIGHT))
    hint("1.1")
    assert "right." in capsys.readouterr().out


def test_require_raises_unless_the_answer_is_right():
    require("1.1", allowed_pairs=answer(RIGHT))
    with pytest.raises(AssertionError, match="whole square"):
        require("1.1", allowed_pairs=lambda T: T * T)


@pytest.mark.parametrize("execution", ["validate", "autograde"])
def test_under_nbgrader_a_check_raises_unless_the_answer_is_right_and_nothing_is_recorded(
    execution, record, monkeypatch, capsys
):
    monkeypatch.setenv("NBGRADER_EXECUTION", execution)
    check("1.1", allowed_pairs=answer(RIGHT))
    assert "right." in capsys.readouterr().out
    with pytest.raises(AssertionError, match="whole square"):
        check("1.1", allowed_pairs=lambda T: T * T)
    with pytest.raises(AssertionError, match="not attempted yet"):
        check("1.1", allowed_pairs=answer(exercises.exercises()["1.1"].stub))
    with pytest.raises(AssertionError, match="not attempted yet"):
        exec('check("1.1")', {"check": check})
    monkeypatch.setattr(exercises, "examine", lambda *_: 1 / 0)
    with pytest.raises(AssertionError, match="the check itself failed"):
        check("1.1", allowed_pairs=answer(RIGHT))
    hint("1.1")
    solution("1.1")
    assert not record.exists()


@pytest.mark.parametrize(
    ("installed", "ending"),
    [
        (
            "Project-URL: Paper, a\nProject-URL: Repository, https://github.com/her/course",
            "Please report it (https://github.com/her/course/issues).",
        ),
        ("Project-URL: Repository, https://github.com/OWNER/gptcore", "Please report it."),
        ("Name: gptcore", "Please report it."),
        (None, "Please report it."),
    ],
    ids=["an address", "none yet", "none at all", "not installed"],
)
def test_a_fault_of_ours_can_be_reported_where_the_course_has_a_place_for_it(monkeypatch, capsys, installed, ending):
    def metadata(name):
        if installed is None:
            raise PackageNotFoundError(name)
        return email.message_from_string(installed)

    monkeypatch.setattr(exercises, "metadata", metadata)
    monkeypatch.setattr(exercises, "examine", lambda *_: 1 / 0)
    check("1.1", allowed_pairs=answer(RIGHT))
    assert capsys.readouterr().out.strip().endswith(ending)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["1", "2"])
def test_require_does_not_depend_on_python_s_asserts(level):
    code = (
        "from gptcore.exercises import examine, exercises, require\n"
        "assert False, 'asserts are on'\n"
        "one, names, stub = exercises()['1.1'], {}, {}\n"
        "exec(one.solution, names)\n"
        "require('1.1', **names)\n"
        "exec(one.stub, stub)\n"
        "print(examine('1.1', stub).status)\n"
        "for answer in (lambda T: T * T, stub[one.name]):\n"
        "    try:\n        require('1.1', allowed_pairs=answer)\n"
        "    except AssertionError as error:\n        print(error)\n"
    )
    environment = os.environ | {"PYTHONOPTIMIZE": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^blank\n1.1: .*whole square(.|\n)*\n1.1: not attempted yet", done.stdout), done.stdout


SHARED = {
    "a list": {"a list is one result": [1, 2], "two ways": Either([3, 4], lambda: [5, 6])},
    "a table": by_message(
        {"a": "a list is one result", "b": "two ways", "c": "two ways"}, {"a": [1, 2], "b": [3, 4], "c": [5, 6]}.get
    ),
}


@pytest.mark.parametrize("mistakes", SHARED.values(), ids=SHARED)
def test_several_results_may_share_a_message_and_a_list_is_a_single_one(mistakes):
    exercise = replace(
        exercises.exercises()["1.1"], checker=lambda answer, fresh: answer.expect((7,), [0, 0], mistakes)
    )
    said = {"a list is one result": [[1, 2]], "two ways": [[3, 4], [5, 6]], "the result is not": [[1, 3], 1]}
    for phrase, results in said.items():
        for result in results:
            verdict = exercises.run_checker(exercise, Answer(exercise, lambda T, result=result: result), 0)
            assert verdict.message.startswith(phrase), verdict.message


def test_results_are_compared_by_value_whatever_their_type():
    import numpy as np
    import torch

    assert close([1.0, 2.0], torch.tensor([1.0, 2.0]))
    assert close(np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert close(torch.tensor(3), 3)
    assert close(np.float32(0.5), 0.5)
    assert not close(torch.tensor([1.0]), torch.tensor([True]))
    assert not close(torch.tensor([0.0]), torch.tensor([-float("inf")]))
    assert close(torch.tensor([-float("inf")]), torch.tensor([-float("inf")]))
    assert not close(float("nan"), float("nan"))
    assert not close("1", 1)


def test_values_are_shown_in_a_line():
    import torch

    assert show(torch.tensor([0.1, 2.0])) == "[0.1, 2]"
    assert show(torch.zeros(30, 2)) == "a float32 tensor of shape (30, 2)"
    assert "\n" not in show([torch.zeros(2), 1.5])


def test_the_course_s_own_function_under_the_exercise_s_name_is_no_attempt(capsys):
    from gptcore.advantages import whiten  # as chapter 10 imports it, long before its exercise

    check("10.4", whiten=whiten)
    assert "not attempted yet (`whiten` is still gptcore's own" in capsys.readouterr().out


DIFFERENCES = [
    (torch.tensor([math.nan, 0.0]), torch.tensor([-math.inf, 0.0]), "the result holds NaN"),
    (torch.tensor([math.inf, 0.0]), torch.tensor([-math.inf, 0.0]), "infinity where none should be"),
    (torch.tensor([-1e9, 0.0]), torch.tensor([-math.inf, 0.0]), "1 of 2 numbers are not"),
    (torch.tensor(2.0), torch.tensor(3.0), "the number is not the expected one."),
    (torch.tensor([True, True]), torch.tensor([True, False]), "1 of 2 entries are not"),
    (torch.tensor([1.00001, 2.0]), torch.tensor([1.0, 2.0]), "the largest difference is 1e-05"),
    ((n for n in range(2)), [0, 1], "that is a generator"),
    ([1, 2, 3], [1, 2], "the list should have 2 entries, yours has 3"),
    ((1, 2, 3), (1, 2), "2 results are expected, not 3"),
]


@pytest.mark.parametrize(("found", "expected", "phrase"), DIFFERENCES)
def test_in_what_way_a_result_differs(found, expected, phrase):
    assert phrase in difference(found, expected)


def test_a_count_is_exact_and_true_is_one_only():
    assert close(124_439_808, 124_439_808)
    assert not close(124_439_808, 124_439_809)
    assert close(True, 1)
    assert not close(True, 5)
    assert not close([True], [3])
    assert not close(10**400, 2.0)
    assert not close(torch.ones(10), 1)


def test_a_fraction_is_a_number():
    assert close(Fraction(1, 4), 0.25)
    assert not close(Fraction(1, 4), 0.5)
