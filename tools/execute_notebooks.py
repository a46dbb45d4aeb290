"""Run notebooks from top to bottom and store their outputs in them.

    python tools/execute_notebooks.py              all of notebooks/
    python tools/execute_notebooks.py 01 05        those whose names start so
    python tools/execute_notebooks.py --measure    only see what they cost; the files stay as they are

Outputs stay small in diffs: no timing metadata, no widget state. A cell that fails stops the script and
leaves the file as it was. What each notebook took goes into assets/benchmarks/costs.json, under the profile of this
machine (see gptcore/costs.py), beside work that was measured in the same run; prepare_notebooks.py writes it
into the first cells. For the laptop profile on a processor that has more:

    ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 python tools/execute_notebooks.py --measure
"""

import json
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from gptcore.costs import COSTS, profile, read_costs, unit_of_work
from gptcore.files import RUNS, write_whole
from gptcore.machine import describe_machine, set_threads

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


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


def execute(path: Path, store: bool = True) -> tuple[float, float]:
    """Run one notebook in its own folder, save it if asked to, and return seconds and gigabytes that it took."""
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
    if not store:
        return seconds, gigabytes
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


def note_costs(taken: dict[str, tuple[float, float]], units: list[float]) -> None:
    """Put seconds and gigabytes of some notebooks into the record, under the profile of this machine."""
    print(f"the unit of work: {units[0]:.2f} s before, {units[-1]:.2f} s after")
    if max(units) > 1.5 * min(units):
        print("LOOK: the machine was not equally fast all the time; what was measured is not recorded")
        return
    name = profile()
    if name is None:
        print("this machine has neither of the two profiles; what was measured is not recorded")
        return
    costs = read_costs() if COSTS.exists() else {}
    entry = costs.setdefault(name, {"chapters": {}, "chain": {}})
    entry |= {"machine": describe_machine(), "unit": round(sum(units) / len(units), 3)}
    entry["chapters"] |= {
        stem: {"seconds": round(seconds, 1), "gigabytes": round(gigabytes, 2)}
        for stem, (seconds, gigabytes) in taken.items()
    }
    write_whole(COSTS, json.dumps(costs, indent=1) + "\n")


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    measure = "--measure" in sys.argv
    prefixes = tuple(word for word in sys.argv[1:] if word != "--measure")
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not prefixes or path.name.startswith(prefixes)]
    if not paths:
        sys.exit(f"no notebook in {NOTEBOOKS} starts with {' or '.join(prefixes)}")
    for run in (RUNS / "chain", RUNS / "museum"):
        if run.exists():
            sys.exit(f"{run} holds a run of your own, which the chapters would use: move it elsewhere")
    set_threads()
    units, taken = [unit_of_work()], {}
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True)
        taken[path.stem] = execute(path, store=not measure)
        print("{:.0f} s, {:.2f} GB".format(*taken[path.stem]), flush=True)
    note_costs(taken, [*units, unit_of_work()])


if __name__ == "__main__":
    main()
