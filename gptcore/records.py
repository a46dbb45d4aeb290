"""Records of data files: JSON, lines of it, plain lines, Parquet; gzipped or not. What they mean is the
business of `own_data`. Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

import gzip
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptcore.words import counted


class Problem(NamedTuple):
    """What is wrong with a record."""

    file: Path
    number: int
    """Its line in a file of lines, else its place in the list, from 1; 0 for the file as a whole."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}, {self.number}: {self.what}" if self.number else f"{self.file}: {self.what}"


class BadDataError(ValueError):
    """Some records cannot be used; `problems` lists them all, the message the first ones."""

    SHOWN = 10

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in problems[: self.SHOWN]]
        if len(problems) > self.SHOWN:
            lines.append(f"and {len(problems) - self.SHOWN:,} more")
        count = sum(problem.number > 0 for problem in problems)
        told = "the data cannot be used:"
        if count:
            told = f"{counted(count, 'record')} cannot be used (--skip-bad goes on without):"
        super().__init__("\n".join([told, *lines]))


_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".txt")


def files_of(path: Path) -> list[Path]:
    """The file itself, or all of a folder whose names end as known.

    Raises:
        FileNotFoundError: if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(_SUFFIXES))
    if not found:
        raise FileNotFoundError(f"{path} holds no file that ends in {', '.join(_SUFFIXES)}")
    return found


def records_of(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each record; a `Problem` in place of what cannot be read."""
    name = file.name.lower()
    if file.suffix and not name.endswith(_SUFFIXES):
        yield 0, Problem(file, 0, f"is of a kind that is not read: give a file that ends in {', '.join(_SUFFIXES)}")
        return
    if name.endswith(".parquet"):
        yield from _parquet(file)
        return
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield 0, Problem(file, 0, f"is not UTF-8 (byte {error.start}): save it as UTF-8")
        return
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        yield 0, Problem(file, 0, f"cannot be read ({error})")
        return
    if name.endswith((".json", ".json.gz")):
        yield from _listed(file, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a text
        if line := line.strip("\r \t"):
            yield number, line if name.endswith(".txt") else _decoded(file, number, line)


def _decoded(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return Problem(file, number, f"is no JSON ({error})")


def _listed(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        if re.match(r"\s*\{[^\n]*\}\s*\n\s*\{", text):  # lines in a file that is called .json
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield number, _decoded(file, number, line)
        else:
            yield 0, Problem(file, 0, f"is no JSON ({error})")
        return
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list) or _is_record(content):
        lists = [[content]]
    yield from enumerate(lists[0], start=1)


def _is_record(content: Any) -> bool:
    fields = {"messages", "conversations", "instruction", "prompt", "chosen"}
    return isinstance(content, dict) and bool(fields & content.keys())


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    if importlib.util.find_spec("pyarrow") is None:
        yield 0, Problem(file, 0, "is Parquet, which needs pyarrow: `pip install pyarrow`, or save it as .jsonl")
        return
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    try:
        rows = parquet.read_table(file).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        yield 0, Problem(file, 0, f"cannot be read ({error})")
        return
    yield from enumerate(rows, start=1)
