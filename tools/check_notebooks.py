"""Check that every notebook was run: each code cell has an execution count, and no stored error.

A cell without an execution count compares nothing under nbval and passes; this check is what makes
that fail. Also: no HTML or JavaScript output and no widget state, which would run or show nothing
where the notebook is only looked at.

    python tools/check_notebooks.py
"""

import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def problems(path: Path) -> list[str]:
    """What is wrong with a notebook, a line each."""
    notebook = nbformat.read(path, as_version=4)
    found = []
    if "widgets" in notebook.metadata:
        found.append("widget state is stored")
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            found.append(f"cell {number} was never run")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} stores an error: {output.ename}")
            for kind in ("text/html", "application/javascript", "application/vnd.jupyter.widget-view+json"):
                if kind in output.get("data", {}):
                    found.append(f"cell {number} stores {kind}")
    return found


def main() -> None:
    """Check all notebooks; exit with 1 if any has a problem."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    lines = [f"{path.name}: {problem}" for path in paths for problem in problems(path)]
    print("\n".join(lines) or f"{len(paths)} notebooks, every code cell run, no error stored")
    sys.exit(bool(lines) or not paths)


if __name__ == "__main__":
    main()
