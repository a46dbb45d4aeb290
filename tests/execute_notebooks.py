"""Run notebooks from top to bottom and store their outputs in them.

    python tests/execute_notebooks.py              all of notebooks/
    python tests/execute_notebooks.py 01 05        those whose names start so

Outputs stay small in diffs: no timing metadata, no widget state. A cell that fails stops the script
and leaves the file as it was.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def execute(path: Path) -> float:
    """Run one notebook in its own folder, save it, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        # What a library warns or logs depends on the machine; the reader's own prints stay.
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    prefixes = tuple(sys.argv[1:])
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not prefixes or path.name.startswith(prefixes)]
    if not paths:
        sys.exit(f"no notebook in {NOTEBOOKS} starts with {' or '.join(prefixes)}")
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True)
        print(f"{execute(path):.0f} s", flush=True)


if __name__ == "__main__":
    main()
