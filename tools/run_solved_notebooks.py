"""Run notebooks with all solutions put in, and see that every check says "right".

    python tools/run_solved_notebooks.py              all of notebooks/
    python tools/run_solved_notebooks.py 01 05        those whose names start so

The notebooks themselves stay as they are: blank, as readers find them.
"""

import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from gptcore.exercises import exercises
from gptcore.exercises.classroom import with_solutions

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

# What is solved here is not the reader's doing: it shall not stand in the reader's record.
ELSEWHERE = """\
import tempfile
from pathlib import Path

import gptcore.exercises

gptcore.exercises.RECORD = Path(tempfile.mkdtemp()) / "exercises.json"
"""


def not_right(path: Path) -> list[str]:
    """Run a notebook with the solutions in it; returns the checks that were not passed, by number."""
    content = with_solutions(json.loads(path.read_text(encoding="utf-8")))
    notebook = nbformat.reads(json.dumps(content), as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(ELSEWHERE))
    NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    said = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id.startswith("check-"):
            text = "".join(output.get("text", "") for output in cell.outputs)
            said[cell.id.removeprefix("check-").replace("-", ".")] = text
    chapter = int(path.stem[:2])
    return [
        e.number for e in exercises().values() if e.chapter == chapter and ": right. " not in said.get(e.number, "")
    ]


def main() -> None:
    """Run the notebooks named on the command line, or all; exit with 1 if a check was not passed."""
    prefixes = tuple(sys.argv[1:])
    failed = False
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not prefixes or path.name.startswith(prefixes):
            missing = not_right(path)
            failed |= bool(missing)
            print(
                f"{path.name}: {'not right: ' + ', '.join(missing) if missing else 'every check says right'}",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
