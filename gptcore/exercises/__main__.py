"""Exercises for a class, from the command line: see `classroom`.

python -m gptcore.exercises assignment 1 5 --out homework
python -m gptcore.exercises mark returned
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gptcore.exercises import say
from gptcore.exercises.classroom import mark_class, write_assignment, write_tables
from gptcore.exercises.sandbox import isolation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gptcore.exercises", description="Exercises for a class.")
    commands = parser.add_subparsers(dest="command", required=True)
    assignment = commands.add_parser("assignment", help="write the exercises of some chapters as notebooks")
    assignment.add_argument("chapters", type=int, nargs="+", metavar="CHAPTER", help="1 to 13")
    assignment.add_argument("--out", type=Path, required=True, help="folder to write to")
    mark = commands.add_parser("mark", help="mark a folder of returned notebooks")
    mark.add_argument("folder", type=Path, help="with one folder, or one notebook, for each student")
    mark.add_argument("--out", type=Path, help="where marks.csv and marks.html go; default: the folder itself")
    mark.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default: 2)")
    mark.add_argument("--seconds", type=float, default=60.0, help="limit for the cells of a notebook (default: 60)")
    mark.add_argument("--memory-gb", type=float, default=4.0, help="limit of memory of a notebook (default: 4)")
    given = parser.parse_args(arguments)
    try:
        if given.command == "assignment":
            for path in write_assignment(given.chapters, given.out):
                say(str(path))
            say(f"for nbgrader: {given.out / 'source'} and {given.out / 'nbgrader_config.py'}")
        else:
            if sys.platform == "win32":
                raise OSError("marking needs Linux or macOS; on Windows use the Windows Subsystem for Linux")
            if "--mount" not in isolation():
                print(
                    "Warning: this system does not let a process be cut off from your files and the network. "
                    "A hostile notebook could change them: see TEACHING.md.",
                    file=sys.stderr,
                )
            marks = mark_class(given.folder, given.jobs, given.seconds, given.memory_gb)
            paths = write_tables(marks, given.out or given.folder)
            for one in marks:
                say(f"{one.student:<24}{one.points:>4} points   {one.note}")
            for path in paths:
                say(str(path))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # nobody reads on (`| head`), or there is no terminal
        sys.stdout = None  # else Python would try again at its end, and call the work a failure
    sys.exit(status)
