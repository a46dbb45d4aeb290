"""Every exercise: its solution passes, its stub is blank, other right answers pass, wrong ones are told why."""

import ast
import re
from importlib import import_module

import pytest

from gptcore.exercises import CHAPTERS, examine, exercises, run_checker
from gptcore.exercises.exercise import Answer

ANSWERS = {number: answers for c in CHAPTERS for number, answers in import_module(f"chapter_{c:02}").ANSWERS.items()}
ALL = pytest.mark.parametrize("exercise", exercises().values(), ids=lambda exercise: exercise.number)
RIGHT = [(number, index) for number, answers in ANSWERS.items() for index in range(len(answers.right))]
WRONG = [(number, phrase) for number, answers in ANSWERS.items() for phrase in answers.wrong]


def answer_from(exercise, code):
    """The reader's function or value, from the code of a cell."""
    names = {}
    exec(compile(code, "cell", "exec"), names)
    return Answer(exercise, names[exercise.name])


def test_there_are_enough_exercises_in_every_chapter():
    per_chapter = [sum(exercise.chapter == chapter for exercise in exercises().values()) for chapter in CHAPTERS]
    assert min(per_chapter) >= 4
    assert sum(per_chapter) >= 48
    assert exercises().keys() == ANSWERS.keys()
    assert len({exercise.name for exercise in exercises().values()}) == len(exercises()), "a name tells its exercise"


@ALL
def test_an_exercise_says_what_it_is(exercise):
    assert 1 <= exercise.difficulty <= 5
    assert 1 <= exercise.minutes <= 60
    assert len(exercise.hints) >= 2
    assert exercise.praise.endswith(".")
    assert exercise.task.strip().endswith((".", "?", ")"))
    for code in (exercise.stub, exercise.solution, exercise.cell()):
        ast.parse(code)


@pytest.mark.slow
@ALL
def test_the_solution_passes_whatever_the_inputs(exercise):
    answer = answer_from(exercise, exercise.solution)
    for seed in range(3):
        assert run_checker(exercise, answer, seed).status == "right", run_checker(exercise, answer, seed).message


@ALL
def test_the_check_of_the_solution_praises(exercise):
    names = {}
    exec(exercise.solution, names)
    verdict = examine(exercise.number, names)
    assert (verdict.status, verdict.message) == ("right", exercise.praise)


def test_the_losses_of_the_bigram_table_are_those_that_its_cell_and_solution_name(capsys):
    # They hang on the shipped tokenizer: whoever ships another one has to write them anew.
    exercise, names = exercises()["5.5"], {}
    exec(exercise.solution, names)
    exec(exercise.demo, names)
    said = [float(loss) for loss in re.findall(r"tensor\((\d+\.\d+)", capsys.readouterr().out)]
    assert said == pytest.approx(
        [float(n) for n in re.search(r"# right: ([\d.]+) and ([\d.]+)", exercise.demo).groups()], abs=2e-4
    )
    named = re.search(
        r"([\d.]+) nats with add 0.01, ([\d.]+) with 0.001, the best, and ([\d.]+) with 0.0001", exercise.solution
    )
    parts, size = names["bigram_parts"], names["base_tokenizer"].vocabulary_size
    found = [float(names["bigram_loss"](*parts, size, add)) for add in (0.01, 0.001, 0.0001)]
    assert found == pytest.approx([float(n) for n in named.groups()], abs=0.006)


@ALL
def test_the_stub_is_not_attempted_yet(exercise):
    names = {}
    exec(exercise.stub, names)
    assert examine(exercise.number, names).status == "blank"
    assert examine(exercise.number, {}).status == "blank"
    for statement in ast.parse(f"# a comment\n\n{exercise.stub}").body:  # as a notebook does it
        exec(compile(ast.Module([statement], []), "cell", "exec"), names)
    assert examine(exercise.number, names).status == "blank"


@ALL
def test_the_cell_runs_blank_and_solved_and_shows_something(exercise, capsys):
    for code in (None, exercise.solution):
        cell = exercise.cell(code)
        exec(compile(cell, "cell", "exec"), {})
        assert capsys.readouterr().out.strip() or not exercise.demo or code is None


@pytest.mark.parametrize(("number", "index"), RIGHT)
def test_another_right_answer_passes(number, index):
    exercise = exercises()[number]
    answer = answer_from(exercise, ANSWERS[number].right[index])
    for seed in range(3):
        verdict = run_checker(exercise, answer, seed)
        assert verdict.status == "right", verdict.message


@pytest.mark.slow
@pytest.mark.parametrize(("number", "phrase"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(number, phrase):
    exercise = exercises()[number]
    answer = answer_from(exercise, ANSWERS[number].wrong[phrase])
    for seed in range(3):
        verdict = run_checker(exercise, answer, seed)
        assert verdict.status == "wrong"
        assert phrase in verdict.message, verdict.message


def test_every_exercise_has_another_right_answer_and_three_wrong_ones_with_messages_of_their_own():
    for number, answers in ANSWERS.items():
        assert len(answers.right) >= 1, number
        assert len(answers.wrong) >= 3, number
