"""Make a finished run of the chain the one that comes with the course.

    python -m gptcore train --out runs/shipped
    python tools/ship_models.py runs/shipped                   into assets/checkpoints
    python tools/ship_models.py runs/laptop --only-seconds     the models stay as they are

Either way the seconds of its stages go into assets/benchmarks/costs.json, under the profile of the machine: call it
on the one that trained, which on a processor held back means with the same variables (see execute_notebooks.py).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from gptcore.checkpoint import SHIPPED, STAGES, load_stage
from gptcore.costs import COSTS, profile, read_costs
from gptcore.files import write_whole
from gptcore.machine import describe_machine, set_threads
from gptcore.runs import read_report

MOST_BYTES = 6_000_000
"""No file of the course is larger."""


def report_of_whole_run(folder: Path) -> dict[str, Any]:
    """The report of a run.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if the run is not finished, or was not on the atlas.
    """
    report = read_report(folder)
    if report["text"] is not None or "scores" not in report:
        raise ValueError(f"{folder} holds no finished run on the atlas")
    return report


def ship(folder: Path, target: Path = SHIPPED) -> None:
    """Copy the models, the tokenizer and the report of a run.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if the run is not finished, or a file is damaged or too large.
    """
    report_of_whole_run(folder)
    files = [folder / name for name in ("tokenizer.json", *(f"{stage}.safetensors" for stage in STAGES), "report.json")]
    for stage in STAGES:  # each is there, whole, and of this tokenizer
        load_stage(stage, folder)
    for path in files:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most")
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, target / path.name)


def note_seconds(costs: dict[str, Any], name: str, report: dict[str, Any], here: dict[str, Any]) -> bool:
    """Put the seconds of a run's stages into the record, if this machine alone has trained it.

    Args:
        costs: the record, as `read_costs` gives it.
        name: the profile of this machine.
        report: of the run.
        here: what `describe_machine` says of this machine.
    """
    if "resumed_on" in report or report["machine"] != here:
        return False
    costs[name]["chain"] = report["stages"]
    return True


def main() -> None:
    """Ship a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished run")
    parser.add_argument("--only-seconds", action="store_true", help="leave assets/checkpoints as it is")
    arguments = parser.parse_args()
    set_threads()  # the report names them, too
    try:
        if not arguments.only_seconds:
            ship(arguments.folder)
            print(f"the models of {arguments.folder} are in {SHIPPED}")
        report = report_of_whole_run(arguments.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    costs, name = read_costs(), profile()
    if name is not None and note_seconds(costs, name, report, describe_machine()):
        write_whole(COSTS, json.dumps(costs, indent=1) + "\n")
        print(f"its seconds are in {COSTS}, as of the profile {name}")
    else:
        print("its seconds are not recorded: the machine has neither of the two profiles, or another one trained it")


if __name__ == "__main__":
    main()
