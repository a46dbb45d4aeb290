"""The package as a house: rooms that one can read in a sitting, one way through them, nothing written twice."""

import ast
from pathlib import Path

import pytest

import gptcore

PACKAGE = Path(gptcore.__file__).parent
CORE = sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))
NOTEBOOKS = PACKAGE.parent / "notebooks"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_a_module_is_read_in_one_sitting_and_says_which_chapter_builds_it(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    told = ast.get_docstring(ast.parse(source)) or ""
    named = [word.rstrip(".,;") for word in told.split() if word.startswith("notebooks/")]
    assert all((NOTEBOOKS.parent / name).is_file() for name in named)
    assert named or "No chapter" in told


def test_imports_go_one_way():
    imported = {}
    for path in CORE:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        imported[path.stem] = {name.removeprefix("gptcore.") for name in names if name.startswith("gptcore.")}
    rooms = {path.stem for path in CORE}
    assert all(found <= rooms for found in imported.values())  # the core needs neither exercises nor widgets
    while imported:  # take away those that need nothing more
        bottom = {name for name, found in imported.items() if not found & imported.keys()}
        assert bottom, f"modules that import each other: {sorted(imported)}"
        imported = {name: found for name, found in imported.items() if name not in bottom}


def test_no_six_lines_stand_twice():
    first: dict[tuple[str, ...], str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        imports = {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = [
            (number, line.strip())
            for number, line in enumerate(source.splitlines(), 1)
            if line.strip() and not line.strip().startswith("#") and number not in imports
        ]
        for i in range(len(lines) - 5):
            six = tuple(line for _, line in lines[i : i + 6])
            place = f"{path.relative_to(PACKAGE)}:{lines[i][0]}"
            assert six not in first, f"{place} repeats {first[six]}"
            first[six] = place
