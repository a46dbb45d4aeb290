"""Messages as people type them: other names, no capitals, slips of the finger, a story before the question.

`assets/atlas/messages.json` holds what writers typed who had seen neither the exams nor each other's lists; here it is
filled with names and numbers, and made as careless as typing is. The exam `as_typed` was written by others. First read in
notebooks/08_fine_tuning.ipynb.
"""

import csv
import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from string import Formatter
from types import MappingProxyType
from typing import Any

from gptcore.atlas import ATLAS, Entity, Language, _frozen

NUMBERS: Mapping[Language, Sequence[str]] = {
    "en": [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ],
    "zh": [
        "零",
        "一",
        "二",
        "三",
        "四",
        "五",
        "六",
        "七",
        "八",
        "九",
        "十",
        "十一",
        "十二",
        "十三",
        "十四",
        "十五",
        "十六",
        "十七",
        "十八",
        "十九",
        "二十",
    ],
}
"""The numbers of the sums in words."""


@cache
def messages() -> Mapping[str, Any]:
    """What the writers typed, by kind, then by relation or kind of thing, then by language; read-only."""
    return _frozen(json.loads((ATLAS / "messages.json").read_text(encoding="utf-8")))


def nameless_messages() -> Iterator[str]:
    """Every message and piece of one, with nothing in its fields."""
    return (_FIELD.sub(" ", text) for text in _texts(messages()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


_FIELD = re.compile(r"\{\w+\}")

# --- Names ---------------------------------------------------------------------------------------


def spelled(entity: Entity, language: Language, rng: random.Random) -> str:
    """A name of an entity as somebody may write it: the more others it has, the less often that of the tables."""
    name = entity.names[language]
    return rng.choice((name, name, *entity.aliases[language])).split("/")[0]


def fill_message(
    entity: Entity,
    template: str,
    language: Language,
    rng: random.Random,
    value: str = "",
    guesses: tuple[str, str] = ("", ""),
    other: str = "",
    in_words: float = 0.25,
) -> str:
    """Put names, numbers and values into a message.

    Args:
        entity: what is asked about: `{name}`, `{bare}` without its article, `{adjective}`, `{names}`, `{a}` and `{b}`.
        template: the message.
        language: of the message.
        rng: chooses between names, and between digits and words.
        value: for `{value}`, of which the name is asked.
        guesses: for `{guess}` and `{guess2}`.
        other: for `{other}`, something that is not asked about.
        in_words: how often numbers are words.
    """
    fields = _fields(entity, language, spelled(entity, language, rng), rng.random() < in_words)
    text = template.format(**fields, value=value, guess=guesses[0], guess2=guesses[1], other=other)
    # Who types everything small mostly types names so, too; who does not begins with a capital letter.
    if template.islower() and rng.random() < 0.85:
        return text.lower()
    return text[:1].upper() + text[1:] if rng.random() < 0.7 else text


def _fields(entity: Entity, language: Language, name: str, in_words: bool) -> dict[str, str]:
    fields = {"name": name, "bare": name.removeprefix("the "), "adjective": entity.inflected, "names": entity.inflected}
    a, b = (NUMBERS[language][n] if in_words else str(n) for n in entity.operands or (0, 0))
    return fields | {"a": a, "b": b}


def letters(text: str) -> str:
    """A message without case, marks and spaces."""
    return "".join(c for c in text.lower() if c.isalnum())


@cache
def _lettered(template: str) -> str:
    """A template whose text between the fields is left to its letters; so it is done once for all that is put into it."""
    parts = Formatter().parse(template)
    return "".join(letters(text) + (f"{{{name}}}" if name else "") for text, name, *_ in parts)


@cache
def _lettered_fields(entity: Entity, language: Language) -> list[dict[str, str]]:
    names = entity.names[language], *(alias.split("/")[0] for alias in entity.aliases[language])
    nothing = {"value": "", "guess": "", "guess2": "", "other": ""}
    ways = [_fields(entity, language, name, in_words) for name in names for in_words in {False, bool(entity.operands)}]
    return [nothing | {key: letters(text) for key, text in way.items()} for way in ways]


def filled_in_all_ways(entity: Entity, template: str, language: Language) -> frozenset[str]:
    """The letters of a message with each of the names and numbers that `fill_message` may put into it."""
    return frozenset(_lettered(template).format(**fields) for fields in _lettered_fields(entity, language))


# --- Typing --------------------------------------------------------------------------------------

_NEIGHBOURS = "qwertyuiop asdfghjkl zxcvbnm"


def with_slip(text: str, rng: random.Random) -> str:
    """One slip of the finger in an English word: two letters swapped, one lost, doubled, or hit beside."""
    words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    start, end = rng.choice(words)
    at = rng.randrange(start + 1, end - 1)
    slip = rng.randrange(4)
    if slip == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if slip == 1:
        return text[:at] + text[at + 1 :]
    if slip == 2:
        return text[:at] + text[at] + text[at:]
    key = _NEIGHBOURS.find(text[at].lower())
    beside = _NEIGHBOURS[key + rng.choice((-1, 1))] if 0 < key < len(_NEIGHBOURS) - 1 else ""
    return text[:at] + beside.strip() + text[at + 1 :]


def without_accents(text: str) -> str:
    """Letters without the marks above and below them."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@cache
def simplified_characters() -> Mapping[str, str]:
    """What the course's tokenizer folds: traditional characters and the simplified ones in which the atlas is written."""
    with open(ATLAS / "traditional.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = {row["simplified"] for row in rows}
    return MappingProxyType(
        {row["traditional"]: row["simplified"] for row in rows if row["traditional"] not in written}
    )


def carelessly(text: str, language: Language, rng: random.Random) -> str:
    """An English text as it is typed without care for capitals, accents and slips."""
    if language == "zh":
        return text
    if rng.random() < 0.5:
        text = without_accents(text)
    if rng.random() < 0.11:
        text = with_slip(text, rng)
    draw = rng.random()
    return text.lower() if draw < 0.35 else text.upper() if draw < 0.39 else text


def as_people_type(text: str, language: Language, rng: random.Random) -> str:
    """A message with what people put around and do not put into it: openers, stories, thanks, marks, care."""
    talk = messages()["around"]
    space = " " if language == "en" else ""
    draw = rng.random()
    if draw < 0.2:
        text = rng.choice(talk["opener" if draw < 0.1 else "story"][language]) + space + text
    if rng.random() < 0.08:
        text += space + rng.choice(talk["closer"][language])
    if language == "en" and rng.random() < 0.4:
        text = text.replace("'", "")
    draw = rng.random()
    if draw < 0.3:
        text = text.rstrip(".?!。？！") or text
    elif draw < 0.38:
        text = (text.rstrip(".?!。？！") or text) + rng.choice(("??", "???", "!!", "...", "..", " ?", "？？", "！"))
    if language == "zh":
        if rng.random() < 0.3:
            text = text.replace("？", "?").replace("！", "!")
        draw = rng.random()
        if draw < 0.3:
            text = text.replace("，", "," if draw < 0.1 else " ")
    return carelessly(text, language, rng)
