"""Run notebooks from top to bottom and store their outputs in them.

    python tests/execute_notebooks.py              all of notebooks/
    python tests/execute_notebooks.py 01 05        those whose names start so

Outputs stay small in diffs: no timing metadata, no widget state. The line of the first cell that
states time and memory is written anew where it was wrong by more than a little. A cell that fails
stops the script and leaves the file as it was.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


STATED = re.compile(r"\*\*Time on two cores:\*\* ([\d.]+) minutes\. \*\*Memory:\*\* ([\d.]+) GB\.")
"""What a notebook says about its cost."""


def state_cost(text: str, seconds: float, gigabytes: float) -> str:
    """Put time and memory into the first cell's text; figures that are nearly right stay, for small diffs.

    Raises:
        ValueError: if the text has no place for them.
    """
    found = STATED.search(text)
    if not found:
        raise ValueError("the first cell needs a line '**Time on two cores:** 0 minutes. **Memory:** 0 GB.'")
    minutes, memory = max(0.1, round(seconds / 60, 1)), max(0.1, round(gigabytes, 1))
    if abs(float(found[1]) - minutes) <= max(0.1, 0.15 * minutes) and abs(float(found[2]) - memory) < 0.25:
        return text
    return text.replace(found[0], f"**Time on two cores:** {minutes} minutes. **Memory:** {memory} GB.")


def keep_picture(output: nbformat.NotebookNode) -> None:
    """Of a view store only what can be shown without a kernel and without trust: its static picture."""
    data = output.get("data", {})
    if "image/png" in data:
        for kind in ("application/vnd.jupyter.widget-view+json", "text/html"):
            data.pop(kind, None)


def only_runs(output: nbformat.NotebookNode) -> bool:
    """Whether an output holds nothing but a view that needs its kernel; its picture is an output of its own."""
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data and "image/png" not in data


def execute(path: Path) -> tuple[float, float]:
    """Run one notebook in its own folder, save it, and return seconds and gigabytes that it took."""
    notebook = nbformat.read(path, as_version=4)
    peak = nbformat.v4.new_code_cell("from gptcore.machine import peak_memory_mb\nprint(peak_memory_mb())")
    notebook.cells.append(peak)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # or each flushed word would stand in a box of its own
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    gigabytes = float(notebook.cells.pop().outputs[0].text) / 1024
    notebook.cells[0].source = state_cost(notebook.cells[0].source, seconds, gigabytes)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        # What a library warns or logs depends on the machine; the reader's own prints stay.
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr" and not only_runs(out)]
        for output in cell.outputs:
            keep_picture(output)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds, gigabytes


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    prefixes = tuple(sys.argv[1:])
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not prefixes or path.name.startswith(prefixes)]
    if not paths:
        sys.exit(f"no notebook in {NOTEBOOKS} starts with {' or '.join(prefixes)}")
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True)
        print("{:.0f} s, {:.2f} GB".format(*execute(path)), flush=True)


if __name__ == "__main__":
    main()
