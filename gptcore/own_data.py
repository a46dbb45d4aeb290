"""Data of your own: conversations, comparisons and prompts, in the formats that others write.

Known by their fields, one record a line (`.jsonl`) or in a list (`.json`), gzipped or not, or as Parquet where `pyarrow`
is installed:

- conversations: `messages` with `role` and `content` (OpenAI, TRL), `conversations` with `from` and `value` (ShareGPT), or
  `instruction`, `input` and `output` (Alpaca);
- comparisons: `prompt`, `chosen` and `rejected`, texts or lists of messages (TRL); the prompt may also stand at the
  beginning of both (HH-RLHF: `\\n\\nHuman: ...\\n\\nAssistant: ...`);
- prompts: one `prompt` (or any of the above without its answers) a record, or a plain text with one a line.

What is wrong with a record is told with file and number, before anything is trained. Tried in
notebooks/13_your_own_chatgpt.ipynb.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from gptcore.chat_template import Turn
from gptcore.records import BadDataError, Problem, files_of, records_of


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


Item = TypeVar("Item", Conversation, Question, Comparison)


@dataclass(frozen=True)
class Read(Generic[Item]):
    """What a file or folder held."""

    items: list[Item]
    problems: list[Problem]


class _WrongError(ValueError):
    """What is wrong with one record."""


_ROLES = {"system": "system"} | dict.fromkeys(("user", "human", "prompter"), "user")
_ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant")


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


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        kind = "plain text" if isinstance(record, str) else type(record).__name__
        raise _WrongError(f"is {kind}, not an object with fields")
    return record


def _as_conversation(record: Any) -> Conversation:
    record = _fields(record)
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
    if "prompt" in record:
        raise _WrongError(f"has a prompt and no completion (it has {_names(record)})")
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
    record = _fields(record)
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
    for file in files_of(Path(path)):
        for number, record in records_of(file):
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
