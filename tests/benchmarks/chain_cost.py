"""The chain and the notebooks: seconds and peak memory of each.

    python tests/benchmarks/chain_cost.py [--repeats 3]

Each run is a process of its own: `python -m gptcore train` with another seed each time, and every
notebook from its first to its last cell (what it stores is left alone).
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import nbformat
from common import Measurement, alternate, arguments, report
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def chain(seed: int) -> Measurement:
    """Train the whole chain; seconds by stage and the peak memory of its process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gptcore", "train", "--out", folder, "--seed", str(seed)]
        subprocess.run(command, check=True, capture_output=True)
        result = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
    seconds = {f"seconds, {stage}": entry["seconds"] for stage, entry in result["stages"].items()}
    return seconds | {"seconds": result["total_seconds"], "peak MB": result["peak_rss_mb"]}


def execute(path: Path) -> None:
    """Run a notebook and print seconds and peak memory of its kernel; called in a process of its own."""
    start = time.perf_counter()
    NotebookClient(
        nbformat.read(path, as_version=4), timeout=600, resources={"metadata": {"path": path.parent}}
    ).execute()
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit]))


def notebook(path: Path, _: int) -> Measurement:
    """Seconds and peak memory of a notebook."""
    done = subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True, text=True)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": seconds, "peak MB": memory}


def main() -> None:
    """Run everything and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {path.stem: partial(notebook, path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    report("chain_cost", alternate({"chain": chain} | sides, options.repeats), options.out)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".ipynb"):
        execute(Path(sys.argv[1]))
    else:
        main()
