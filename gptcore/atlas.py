"""The atlas: true facts in English and Chinese, and their division.

`assets/atlas` is a small knowledge base of plain tables. Because the truth is known, the course can measure what
others only talk about: what pretraining taught, what fine-tuning unlocked, when a model makes things up. What is
written from it stands in `corpus` (text) and `questions`; notebooks/00_welcome.ipynb shows it.

The parts of the division, by entity and fixed for good:

- `train`: in the pretraining text, in conversations and in comparisons;
- `validation`, `test`: in the pretraining text only. Do questions about them get answered?
- `unknown_train`, `unknown_validation`, `unknown_test`: in no text that teaches facts, some real and
  some invented. Does the model say that it does not know? The first teaches it to.
"""

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Literal

from gptcore.files import ASSETS

ATLAS = ASSETS / "atlas"
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

# --- Facts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Entity:
    """Something that facts are about."""

    kind: str
    """`country`, `element`, `planet`, `animal` or `arithmetic`."""
    names: dict[Language, str]
    """Name by language as it stands in a sentence ("the Netherlands"); unique within the kind."""
    facts: dict[str, dict[Language, str]]
    """Relation to value by language; every value is "" for an invented entity."""
    operands: tuple[int, int] | None = None
    """The two numbers of an arithmetic entity."""
    aliases: Mapping[Language, tuple[str, ...]] = field(default_factory=lambda: {"en": (), "zh": ()})
    """Other names by which people call it: the USA, Holland, 老美."""
    inflected: str = ""
    """The English plural of an animal (lions), the adjective of a country (Dutch; "" if there is none)."""

    def fill(self, template: str, language: Language, value: str = "", name: str = "") -> str:
        """Put name (or another spelling of it), operands and value into a wording; it begins with a capital letter."""
        a, b = self.operands or ("", "")
        kind = wordings()["kinds"][self.kind][language]
        text = template.format(name=name or self.names[language], value=value, a=a, b=b, kind=kind)
        return text[0].upper() + text[1:]

    def sentence(self, relation: str, language: Language, template: str | None = None) -> str:
        """A fact as a sentence, by default in its canonical wording."""
        wording: str = template or wordings()["relations"][relation][language]["answer"]
        return self.fill(wording, language, self.facts[relation][language])


@cache
def wordings() -> Mapping[str, Any]:
    """The sentences of `wordings.json` into which facts are put; read-only, for everybody gets the same ones."""
    return _frozen(json.loads((ATLAS / "wordings.json").read_text(encoding="utf-8")))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({name: _frozen(part) for name, part in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def relations_of(kind: str) -> list[str]:
    """The relations that an entity of this kind has facts about (for arithmetic, one of them)."""
    return [name for name, relation in wordings()["relations"].items() if relation["kind"] == kind]


def _table(name: str) -> list[dict[str, str]]:
    with open(ATLAS / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Table of each kind, and the column of each relation: one for both languages, or one for each (`food_en`, `food_zh`).
_TABLES = {
    "country": (
        "countries",
        {"capital": "capital", "continent": "continent", "currency": "currency", "language": "language"},
    ),
    "element": ("elements", {"symbol": "symbol", "number": "number"}),
    "planet": ("planets", {"position": "position", "planet_kind": "kind"}),
    "animal": ("animals", {"animal_class": "class", "legs": "legs", "food": "food"}),
}


def _in_both(row: dict[str, str], column: str) -> dict[Language, str]:
    return {language: row[column] if column in row else row[f"{column}_{language}"] for language in LANGUAGES}


def _aliases(row: dict[str, str]) -> Mapping[Language, tuple[str, ...]]:
    listed: dict[Language, str] = {language: row.get(f"aliases_{language}", "") for language in LANGUAGES}
    return MappingProxyType({language: tuple(filter(None, names.split(";"))) for language, names in listed.items()})


@cache
def entities() -> tuple[Entity, ...]:
    """Every real entity of the atlas."""
    found = []
    for kind, (table, columns) in _TABLES.items():
        for row in _table(table):
            names = _in_both(row, "name")
            names["en"] = f"{row.get('article_en', '')} {names['en']}".strip()
            facts = {relation: _in_both(row, columns[relation]) for relation in columns}
            inflected = row.get("plural_en") or row.get("adjective_en") or ""
            found.append(Entity(kind, names, facts, None, _aliases(row), inflected))
    for a in range(21):
        for b in range(21):
            if a + b <= 20:
                facts = {"sum": dict.fromkeys(LANGUAGES, str(a + b))}
                found.append(Entity("arithmetic", dict.fromkeys(LANGUAGES, f"{a} + {b}"), facts, (a, b)))
            if a >= b:
                facts = {"difference": dict.fromkeys(LANGUAGES, str(a - b))}
                found.append(Entity("arithmetic", dict.fromkeys(LANGUAGES, f"{a} - {b}"), facts, (a, b)))
    return tuple(found)


def join(sentences: list[str], language: Language) -> str:
    """Sentences as a paragraph: English puts a space between them."""
    return (" " if language == "en" else "").join(sentences)


# --- The division --------------------------------------------------------------------------------

_COUNTRY_ENDINGS = {"nia": "尼亚", "via": "维亚", "land": "兰", "stan": "斯坦", "dor": "多尔", "ria": "里亚"}
_ANIMAL_ENDINGS = {"": "兽", "bird": "鸟", "cat": "猫"}
# Characters with the metal radical, as most elements have, that name no element.
_ELEMENT_CHARACTERS = "锋钧铠锦镜铃锁链锤钉针钓钩铲铭锐锻键镖镰铮铎锟锭锣铛锄铡铐镯"

# Peoples, mountains and islands whose names the syllables would give.
_NO_INVENTIONS = {"zulu", "saka", "pamir", "Pamirstan", "tana", "mamo", "drava", "Lunaria", "Mazustan"}
_NO_INVENTIONS |= {"tabel"}  # nor a slip of the finger


def _invented(kind: str, count: int, rng: random.Random) -> list[Entity]:
    """Entities that do not exist, with names in both languages that look as if they did."""
    # With the characters that usually write them, so that an invented name has both forms.
    syllables = {row["latin"]: row["chinese"] for row in _table("syllables")}
    taken = {name for entity in entities() for name in entity.names.values()} | _NO_INVENTIONS
    taken |= {name for entity in entities() for names in entity.aliases.values() for name in names}
    taken |= {name for entity in _outside() for name in entity.names.values()}
    taken |= {value.lower() for entity in entities() for values in entity.facts.values() for value in values.values()}
    facts = {relation: dict.fromkeys(LANGUAGES, "") for relation in relations_of(kind)}
    characters = rng.sample(_ELEMENT_CHARACTERS, len(_ELEMENT_CHARACTERS))
    found: list[Entity] = []
    names: dict[Language, str]
    while len(found) < count:
        parts = rng.sample(sorted(syllables), 2)
        stem, stem_zh = "".join(parts), "".join(syllables[part] for part in parts)
        if kind == "country":
            ending = rng.choice(sorted(_COUNTRY_ENDINGS))
            names = {"en": (stem + ending).capitalize(), "zh": stem_zh + _COUNTRY_ENDINGS[ending]}
        elif kind == "animal":
            ending = rng.choice(sorted(_ANIMAL_ENDINGS))
            names = {"en": stem + ending, "zh": stem_zh + _ANIMAL_ENDINGS[ending]}
        else:
            names = {"en": stem + "ium", "zh": characters[len(found) % len(characters)]}
        # Each Chinese element character comes only once, so that the splits stay disjoint; and no name may
        # hold a real one, whose entity would else be met where it must not (加纳, Ghana, in 加纳尼亚).
        if not taken & set(names.values()) and not any(len(name) > 1 and name in names["zh"] for name in taken):
            found.append(Entity(kind, names, facts))
            taken |= set(names.values())
    return found


def _outside() -> list[Entity]:
    """Things that there are, in the world or in stories, but not in the tables: hedgehogs, Narnia, steel."""
    found = []
    for row in _table("outside_names"):
        facts = {relation: dict.fromkeys(LANGUAGES, "") for relation in relations_of(row["kind"])}
        found.append(Entity(row["kind"], _in_both(row, "name"), facts, inflected=row["plural_en"]))
    return found


KNOWN = ("train", "validation", "test")
UNKNOWN = ("unknown_train", "unknown_validation", "unknown_test")
_SHARES = {  # of the entities of a kind; what is left goes to `train`
    "validation": {"country": 0.10, "element": 0.10, "animal": 0.10, "planet": 0.13, "arithmetic": 0.10},
    "test": {"country": 0.18, "element": 0.18, "animal": 0.18, "planet": 0.26, "arithmetic": 0.18},
    "unknown_train": {"country": 0.06, "element": 0.06, "animal": 0.06},
    "unknown_validation": {"country": 0.04, "element": 0.04, "animal": 0.04},
    "unknown_test": {"country": 0.06, "element": 0.06, "animal": 0.06},
}
# Animals that came into the table after the division was drawn: to `train`, so that the others stay where they are.
_ADDED = {"dog", "fox", "mouse", "giant panda", "koala", "squirrel", "hamster", "parrot", "ostrich"}
# What everybody asks about is told, not withheld: after the draw these change places with others that can be hidden.
_EXCHANGED = {
    "Japan": "Eswatini",
    "Thailand": "Lesotho",
    "Iceland": "Djibouti",
    "Belgium": "Tuvalu",
    "Argentina": "the Comoros",
    "Saudi Arabia": "Guinea-Bissau",
    "Norway": "Vanuatu",
    "Mongolia": "the Marshall Islands",
    "titanium": "meitnerium",
    "uranium": "copernicium",
    "silver": "roentgenium",
    "neon": "darmstadtium",
    "tiger": "praying mantis",
    "lion": "newt",
    "sheep": "yak",
    "camel": "stork",
    "duck": "lynx",
    "honeybee": "grasshopper",
}
# How many of each kind are invented for the parts in `UNKNOWN`.
_INVENTED = {"country": (500, 20, 30), "element": (12, 5, 10), "animal": (160, 10, 15)}


@cache
def split_entities() -> Mapping[str, tuple[Entity, ...]]:
    """The division of the entities, by name of the part. It is the same in every run.

    An entity whose name also stands inside other entities' texts (the Australian dollar of Kiribati
    in Chinese, Niger in Nigeria) cannot be hidden and goes to `train`.
    """
    rng = random.Random("the atlas, divided")
    parts: dict[str, list[Entity]] = {name: [] for name in KNOWN + UNKNOWN}
    texts = {entity: _sentences(entity) for entity in entities() if entity.kind != "arithmetic"}
    for kind in _SHARES["test"]:
        group = [entity for entity in entities() if entity.kind == kind and entity.names["en"] not in _ADDED]
        rng.shuffle(group)
        hideable = []
        for entity in group:
            mentioned = kind != "arithmetic" and any(
                mentions(text, entity) for other, text in texts.items() if other is not entity
            )
            (parts["train"] if mentioned else hideable).append(entity)
        for name, shares in _SHARES.items():
            take = round(shares.get(kind, 0) * len(group))
            parts[name] += hideable[:take]
            hideable = hideable[take:]
        parts["train"] += hideable
    parts["train"] += [entity for entity in entities() if entity.names["en"] in _ADDED]
    places = {entity.names["en"]: (part, i) for part, group in parts.items() for i, entity in enumerate(group)}
    for famous, obscure in _EXCHANGED.items():
        (part, i), (train, j) = places[famous], places[obscure]
        parts[part][i], parts[train][j] = parts[train][j], parts[part][i]
    for kind, counts in _INVENTED.items():
        found = _invented(kind, sum(counts), rng)
        for count, name in zip(counts, UNKNOWN, strict=True):
            parts[name] += found[:count]
            found = found[count:]
    parts["unknown_train"] += _outside()
    return MappingProxyType({name: tuple(part) for name, part in parts.items()})


def _sentences(entity: Entity) -> str:
    """Every fact of an entity in both languages, in one string."""
    return "\n".join(entity.sentence(relation, language) for relation in entity.facts for language in LANGUAGES)


def mentions(text: str, entity: Entity) -> bool:
    """Whether a text names an entity, in either language.

    English names count as whole words in any case; Chinese has no word boundaries, so that any
    occurrence counts, but a name of one character only next to the words of its own kind.
    """
    if _words(entity.names["en"].removeprefix("the ")) in _words(text):
        return True
    chinese = entity.names["zh"]
    if entity.kind == "element":
        return any(
            mark in text
            for mark in (f"{chinese}的", f"元素{chinese}", f"个{chinese}原子", f"{chinese}。", f"{chinese}用")
        )
    return chinese in text


@lru_cache(maxsize=1024)  # the atlas's texts are looked through for each of its names
def _words(text: str) -> str:
    """The letters and digits of a text, in small letters; a space stands for anything else, and at both ends."""
    return f" {''.join(c if c.isalnum() else ' ' for c in text)} ".lower()
