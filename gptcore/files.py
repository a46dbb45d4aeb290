"""Where things lie: what comes with the course, and what the reader makes. No chapter is about it."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = (_PACKAGE / "assets").is_dir()  # a wheel carries them inside the package, a checkout beside it

ASSETS = _PACKAGE / "assets" if _INSTALLED else _PACKAGE.parent / "assets"
"""The atlas, the shipped models and the records of benchmarks."""

RUNS = Path.cwd() / "runs" if _INSTALLED else _PACKAGE.parent / "runs"
"""The reader's own models, votes and solved exercises: in the course's folder, or where an installed gptcore is run."""


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file, all or nothing: beside its place first, so that a full disk leaves the old one untouched.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
