"""What every benchmark needs: runs of both sides in turn, medians with spread, a table and JSON; and a chapter's cells."""

import argparse
import hashlib
import http.client
import json
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import nbformat

from gptcore.machine import describe_machine, set_threads

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"

Measurement = dict[str, float]
"""Figures of one run by name."""


def arguments(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each side")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the JSON file")
    return parser


def alternate(sides: dict[str, Callable[[int], Measurement]], repeats: int) -> dict[str, list[Measurement]]:
    """Run the sides in turn, so that a machine that slows down slows both.

    Args:
        sides: what is compared, by name; each is called with the number of the repeat.
        repeats: how often.
    """
    set_threads()
    runs: dict[str, list[Measurement]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, run in sides.items():
            runs[name].append(run(repeat))
            figures = ", ".join(f"{key} {value:.4g}" for key, value in runs[name][-1].items())
            print(f"  run {repeat + 1} of {repeats}, {name}: {figures}", flush=True)
    return runs


def run_cells(chapter: str, ids: Iterable[str], names: dict[str, Any]) -> None:
    """Run code cells of a chapter as they stand: its record must come from the code that the reader sees, not a copy.

    Args:
        chapter: how the notebook's name begins, as "03".
        ids: of the cells, in the order to run them in.
        names: what the cells find and define, as a kernel would keep it.

    Raises:
        ValueError: if the chapter has no code cell of such an id.
    """
    matplotlib.use("agg")  # pictures are not looked at
    path = next(NOTEBOOKS.glob(f"{chapter}_*.ipynb"))
    sources = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"}
    for name in ids:
        if name not in sources:
            raise ValueError(f"{path.name} has no code cell {name!r}: was it renamed?")
        exec(compile(sources[name], f"{path.name}:{name}", "exec"), names)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return describe_machine() | {"date": time.strftime("%Y-%m-%d")}


def report(name: str, runs: dict[str, list[Measurement]], out: Path, **more: Any) -> None:
    """Print medians and spread as a table; write all runs as JSON.

    Args:
        name: of the benchmark, and of its file.
        runs: from `alternate`.
        out: folder of the file.
        more: further entries of the file.
    """
    width = max(map(len, runs))
    for key in dict.fromkeys(key for measurements in runs.values() for run in measurements for key in run):
        print(f"\n{key + ', median (least to most)':<{width}}")
        for side, measurements in runs.items():
            values = [run[key] for run in measurements if key in run]
            if values:
                print(f"  {side:<{width}}  {statistics.median(values):10.4g}  ({min(values):.4g} to {max(values):.4g})")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "runs": runs} | more, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


def tiny_shakespeare(path: str | Path, url: str = SHAKESPEARE_URL) -> str:
    """Tiny Shakespeare from a local file, downloaded first if the file does not exist.

    Args:
        path: where the file is, or where it shall be put.
        url: where it is downloaded from.

    Raises:
        ConnectionError: if it cannot be downloaded.
        ValueError: if what came or lies there is not tiny Shakespeare, by its SHA-256.
    """
    path = Path(path)
    if path.exists():
        data = path.read_bytes()
    else:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                data = response.read()
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            raise ConnectionError(
                f"tiny Shakespeare could not be downloaded from {url} ({error}): connect to the network, "
                f"or put the file at {path} by hand"
            ) from error
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise ValueError(
            f"{path} or its download is not tiny Shakespeare: its checksum differs; delete it and try again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    return data.decode("utf-8")
