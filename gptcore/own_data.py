"""Data of your own: conversations, comparisons and prompts, in the formats that others write.

Known by their fields, one record a line (`.jsonl`) or in a list (`.json`), gzipped or not, or as Parquet where `pyarrow`
is installed:

- conversations: `messages` with `role` and `content` (OpenAI, TRL), `conversations` with `from` and `value` (ShareGPT), or
  `instruction`, `input` and `output` (Alpaca);
- comparisons: `prompt`, `chosen` and `rejected`, texts or lists of messages (TRL); the prompt may also stand at the
  beginning of both (HH-RLHF: `\\n\\nHuman: ...\\n\\nAssistant: ...`);
- prompts: one `prompt` (or any of the above without its answers) a record, or a plain text with one a line.

What is wrong with a record is told with file and number, before anything is trained.
"""

import gzip
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from gptcore.chat_template import Turn

# --- What is read --------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """Questions and their answers, in order."""

    turns: tuple[Turn, ...]


class Question(NamedTuple):
    """A message to answer, and what was said before it."""

    text: str
    history: tuple[Turn, ...] = ()


class Comparison(NamedTuple):
    """Two answers to one question, of which somebody preferred the first."""

    question: Question
    chosen: str
    rejected: str
    voter: str = ""
    """Who preferred it, if the record says so."""


class Problem(NamedTuple):
    """What is wrong with a record."""

    file: Path
    number: int
    """Its line in a file of lines, else its place in the list, from 1; 0 for the file as a whole."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}, {self.number}: {self.what}" if self.number else f"{self.file}: {self.what}"


Item = TypeVar("Item", Conversation, Question, Comparison)


@dataclass(frozen=True)
class Read(Generic[Item]):
    """What a file or folder held."""

    items: list[Item]
    problems: list[Problem]


class BadDataError(ValueError):
    """Some records cannot be used; `problems` lists them all, the message the first ones."""

    SHOWN = 10

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in problems[: self.SHOWN]]
        if len(problems) > self.SHOWN:
            lines.append(f"and {len(problems) - self.SHOWN:,} more")
        what = "1 record" if len(problems) == 1 else f"{len(problems):,} records"
        super().__init__("\n".join([f"{what} cannot be used (--skip-bad goes on without):", *lines]))


# --- Records of files ----------------------------------------------------------------------------

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".txt")


def _files(path: Path) -> list[Path]:
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


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each record; a `Problem` in place of what cannot be read."""
    name = file.name.lower()
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
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        yield 0, Problem(file, 0, f"cannot be read ({error})")
        return
    yield from enumerate(rows, start=1)


# --- Fields --------------------------------------------------------------------------------------


class _WrongError(ValueError):
    """What is wrong with one record."""


_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def _text(value: Any, name: str) -> str:
    if isinstance(value, list):  # OpenAI's parts
        kinds = [part.get("type", "text") if isinstance(part, dict) else None for part in value]
        if any(kind != "text" for kind in kinds):
            raise _WrongError(f"{name} holds something else than text")
        value = "".join(_text(part.get("text"), name) for part in value)
    if not isinstance(value, str):
        raise _WrongError(f"{name} is {type(value).__name__}, not text" if value is not None else f"{name} is missing")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _WrongError(f"{name} holds half a character (a lone surrogate)") from error
    return value.strip()


def _messages(listed: Any, name: str = "messages") -> list[tuple[str, str]]:
    """Role and text of each message; a system message is put before the user's first words, as Llama 2's template does."""
    if not isinstance(listed, list) or not listed:
        raise _WrongError(f"{name} is no list of messages")
    found: list[tuple[str, str]] = []
    for number, message in enumerate(listed, start=1):
        if not isinstance(message, dict):
            raise _WrongError(f"message {number} is {type(message).__name__}, not an object with role and content")
        role = message.get("role", message.get("from"))
        if role not in _ROLES:
            raise _WrongError(f"message {number} is by {role!r}, none of system, user and assistant")
        content = message["content"] if "content" in message else message.get("value")
        text = _text(content, f"message {number}")
        if not text:
            raise _WrongError(f"message {number} is empty")
        if _ROLES[role] == "system":
            if found:
                raise _WrongError(f"message {number} is a system message, which may only come first")
            found.append(("system", text))
        else:
            found.append((_ROLES[role], text))
    if found[0][0] == "system":
        if found[1:2] == [] or found[1][0] != "user":
            raise _WrongError("after the system message no user speaks")
        found[:2] = [("user", f"{found[0][1]}\n\n{found[1][1]}")]
    for number, (role, _) in enumerate(found):
        if role != ("user", "assistant")[number % 2]:
            raise _WrongError(f"the messages do not take turns, the user first: one by the {role} is out of place")
    return found


def _turns(messages: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    return tuple((messages[i][1], messages[i + 1][1]) for i in range(0, len(messages) - 1, 2))


def _question(messages: Sequence[tuple[str, str]]) -> Question:
    if not messages or messages[-1][0] != "user":
        raise _WrongError("the prompt does not end with a message by the user")
    return Question(messages[-1][1], _turns(messages[:-1]))


_SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[dict[str, str]] | None:
    """Messages of a transcript as HH-RLHF writes them; None if the text is none."""
    pieces = _SPEAKERS.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return None
    return [{"role": who.lower(), "content": said} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def _prompt_messages(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The messages of a `prompt`, which is a text, a transcript or a list."""
    prompt = record["prompt"]
    if isinstance(prompt, str):
        text = _text(prompt, "prompt")
        if not text:
            raise _WrongError("prompt is empty")
        told = _transcript(prompt)
        if told and told[-1]["role"] == "assistant" and not told[-1]["content"].strip():
            told.pop()  # "\n\nAssistant:" at the end asks for the answer
        listed: list[Any] = told or [{"role": "user", "content": text}]
    else:
        listed = prompt
    if system := record.get("system"):
        if not isinstance(listed, list):
            raise _WrongError("prompt is no list of messages")
        listed = [{"role": "system", "content": system}, *listed]
    return _messages(listed, "prompt")


def _from_alpaca(record: Mapping[str, Any]) -> str:
    instruction = _text(record["instruction"], "instruction")
    if not instruction:
        raise _WrongError("instruction is empty")
    given = _text(record.get("input") or "", "input")
    system = _text(record.get("system") or "", "system")
    return "\n\n".join(filter(None, (system, instruction, given)))


def _as_conversation(record: Any) -> Conversation:
    if not isinstance(record, dict):
        raise _WrongError(f"is {type(record).__name__}, not an object with fields")
    listed = record.get("messages", record.get("conversations", record.get("conversation")))
    if listed is not None:
        if isinstance(listed, list) and record.get("system"):
            listed = [{"role": "system", "content": record["system"]}, *listed]
        messages = _messages(listed)
        if len(messages) % 2:
            raise _WrongError("the conversation ends with a message that is not answered")
        return Conversation(_turns(messages))
    if "instruction" in record:
        answer = _text(record.get("output"), "output")
        if not answer:
            raise _WrongError("output is empty")
        return Conversation(((_from_alpaca(record), answer),))
    if "prompt" in record and "completion" in record:
        question, answer = _question(_prompt_messages(record)), _answer(record["completion"], "completion")
        return Conversation((*question.history, (question.text, answer)))
    raise _WrongError(
        f"has none of the fields messages, conversations, instruction and prompt (it has {_names(record)})"
    )


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(record)[:8])) or "none"


def _answer(value: Any, name: str) -> str:
    """The text of an answer that is one, or of the last message of a list."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "type" not in value[0]:
        last = value[-1]
        role = last.get("role", last.get("from")) if isinstance(last, dict) else None
        if _ROLES.get(str(role)) != "assistant":
            raise _WrongError(f"{name} does not end with a message by the assistant")
        value = last["content"] if "content" in last else last.get("value")
    text = _text(value, name)
    if not text:
        raise _WrongError(f"{name} is empty")
    return text


def _as_comparison(record: Any) -> Comparison:
    if not isinstance(record, dict):
        raise _WrongError(f"is {type(record).__name__}, not an object with fields")
    missing = [name for name in ("chosen", "rejected") if record.get(name) is None]
    if missing:
        raise _WrongError(f"has no {' and no '.join(missing)} (it has {_names(record)})")
    chosen, rejected = record["chosen"], record["rejected"]
    if record.get("prompt") is not None:
        question = _question(_prompt_messages(record))
    else:
        both = [_transcript(side) if isinstance(side, str) else side for side in (chosen, rejected)]
        if not all(isinstance(side, list) and side for side in both):
            raise _WrongError("has no prompt, neither in a field nor at the beginning of both answers")
        chosen, rejected = both
        before = _messages(chosen, "chosen")[:-1]
        if before != _messages(rejected, "rejected")[:-1]:
            raise _WrongError("chosen and rejected do not answer the same: all messages but the last must be equal")
        question = _question(before)
    better, worse = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    if better == worse:
        raise _WrongError("chosen and rejected are the same")
    return Comparison(question, better, worse, str(record.get("voter") or ""))


def _as_question(record: Any) -> Question:
    if isinstance(record, str):
        if not record.strip():
            raise _WrongError("is empty")
        return Question(_text(record, "prompt"))
    if not isinstance(record, dict):
        raise _WrongError(f"is {type(record).__name__}, neither text nor an object with fields")
    if record.get("prompt") is not None:
        return _question(_prompt_messages(record))
    if "instruction" in record:
        return Question(_from_alpaca(record))
    listed = record.get("messages", record.get("conversations"))
    if listed is not None:
        messages = _messages(listed)
        return _question(messages if len(messages) % 2 else messages[:-1])
    if record.get("chosen") is not None:
        return _as_comparison(record).question
    raise _WrongError(f"has none of the fields prompt, messages and instruction (it has {_names(record)})")


# --- Files and folders ---------------------------------------------------------------------------


def _read(path: str | Path, interpret: Callable[[Any], Item], skip_bad: bool) -> Read[Item]:
    items: list[Item] = []
    problems: list[Problem] = []
    for file in _files(Path(path)):
        for number, record in _records(file):
            if isinstance(record, Problem):
                problems.append(record)
                continue
            try:
                items.append(interpret(record))
            except _WrongError as error:
                problems.append(Problem(file, number, str(error)))
    if problems and not skip_bad:
        raise BadDataError(problems)
    if not items:
        raise BadDataError([*problems, Problem(Path(path), 0, "nothing in it can be used")])
    return Read(items, problems)


def read_conversations(path: str | Path, skip_bad: bool = False) -> Read[Conversation]:
    """Conversations from a file or all files of a folder.

    Args:
        path: of the file or folder.
        skip_bad: whether to go on without the records that cannot be used; they are listed all the same.

    Raises:
        FileNotFoundError: if there is no such file, or none of a known kind in the folder.
        BadDataError: if a record cannot be used and `skip_bad` is not set, or if none can.
    """
    return _read(path, _as_conversation, skip_bad)


def read_comparisons(path: str | Path, skip_bad: bool = False) -> Read[Comparison]:
    """Comparisons from a file or all files of a folder; arguments and errors as for `read_conversations`."""
    return _read(path, _as_comparison, skip_bad)


def read_prompts(path: str | Path, skip_bad: bool = False) -> Read[Question]:
    """Prompts from a file or all files of a folder; arguments and errors as for `read_conversations`."""
    return _read(path, _as_question, skip_bad)
