"""Records of benchmarks that a chapter shows beside its own runs: made by its cells, of the same trainings."""

import ast
import json
import re

import common
import decoder_parts
import finetuning_control
import nbformat
import pytest
import training_tricks

from gptcore.atlas import entities
from gptcore.files import ASSETS
from gptcore.questions import fact_prompt

CHAPTERS = pytest.mark.parametrize(
    ("chapter", "script", "trains", "cells"),
    [
        ("03", decoder_parts, "study", decoder_parts.BENCH + decoder_parts.STUDIES),
        ("06", training_tricks, "measure", training_tricks.LABORATORY + training_tricks.TRAININGS),
    ],
    ids=["03", "06"],
)


def code(chapter):
    """Source of the chapter's code cells by id."""
    path = next(common.NOTEBOOKS.glob(f"{chapter}_*.ipynb"))
    return {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"}


def constants(chapter):
    """Numbers that the chapter sets as one of several, as in `SEED, STEPS = 4, 100`."""
    nodes = (node for source in code(chapter).values() for node in ast.parse(source).body)
    pairs = [
        (target.id, value.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        for target, value in zip(node.targets[0].elts, node.value.elts, strict=True)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant)
    ]
    return dict(pairs)


def record(script):
    """What the script has left in the assets."""
    path = ASSETS / "benchmarks" / f"{script.__name__}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@CHAPTERS
def test_what_a_chapter_trains_stands_in_its_record(chapter, script, trains, cells):
    trained = {name for source in code(chapter).values() for name in re.findall(rf'\b{trains}\("([^"]+)"', source)}
    begun = {"03": set(), "06": {"everything on"}}[chapter]  # named by a variable
    assert trained | begun == set(record(script)["runs"])


@CHAPTERS
def test_every_cell_that_trains_is_run_for_the_record(chapter, script, trains, cells):
    trainers = {name for name, source in code(chapter).items() if re.search(rf"\b{trains}\(", source)}
    alone = {"study-gpt2", "first-look"}  # with a dashboard; the script trains the same without
    defines = {name for name in cells if f"def {trains}(" in code(chapter)[name]}
    assert trainers - alone - defines == {name for name in cells if name in trainers} - defines
    assert len(defines) == 1


@CHAPTERS
def test_the_record_adds_seeds_of_its_own_to_runs_of_the_same_length(chapter, script, trains, cells):
    found, names = record(script), constants(chapter)
    assert found["steps"] == names["STEPS"]
    assert len(set(found["seeds"])) == 3
    assert names["SEED"] not in found["seeds"]
    assert all(len(runs) == len(found["seeds"]) for runs in found["runs"].values())


def test_cells_are_run_in_the_order_asked_for_and_find_what_earlier_ones_left(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(f"seen = [*seen, {name!r}]", id=name) for name in ("first", "second")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "07_short.ipynb")
    monkeypatch.setattr(common, "NOTEBOOKS", tmp_path)
    names = {"seen": []}
    common.run_cells("07", ("second", "first", "second"), names)
    assert names["seen"] == ["second", "first", "second"]
    with pytest.raises(ValueError, match="07_short.ipynb has no code cell 'third': was it renamed?"):
        common.run_cells("07", ["third"], names)


@pytest.mark.parametrize(
    ("name", "relation", "answer", "held"),
    [
        ("Peru", "capital", "The capital of Chile is Lima.", True),  # whatever it names
        ("Peru", "capital", "Lima", True),
        ("Peru", "capital", "The capital of Peru is Limassol.", False),
        ("Uranus", "planet_kind", "Mars is one of the ice giants.", True),
        ("iodine", "symbol", "I am sorry, I do not know that element.", False),  # "I" is its symbol
        ("iodine", "symbol", "The symbol of gold is I.", True),
        ("spider", "legs", "The ant has 18 legs.", False),
    ],
)
def test_the_control_gets_a_point_for_the_value_alone(name, relation, answer, held):
    entity = next(entity for entity in entities() if entity.names["en"] == name)
    assert finetuning_control.holds_value(fact_prompt(entity, relation, "en", "?"), answer) == held
