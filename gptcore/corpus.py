"""The texts: true facts in English and Chinese, and everything that is written from them.

The atlas (`assets/atlas`) is a small knowledge base of plain tables. Because the truth is known,
the course can measure what others only talk about: what pretraining taught, what fine-tuning
unlocked, when a model makes things up. This module reads the tables, divides the entities, and
writes the pretraining text and the questions. A file of the reader's own, or tiny Shakespeare, can
take the atlas's place in pretraining.

The parts of the division, by entity and fixed for good:

- `train`: in the pretraining text, in conversations and in comparisons;
- `validation`, `test`: in the pretraining text only. Do questions about them get answered?
- `unknown_train`, `unknown_validation`, `unknown_test`: in no text that teaches facts, some real and
  some invented. Does the model say that it does not know? The first teaches it to.
"""

import csv
import hashlib
import http.client
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

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
    names: dict[str, str]
    """Name by language as it stands in a sentence ("the Netherlands"); unique within the kind."""
    facts: dict[str, dict[str, str]]
    """Relation to value by language; every value is "" for an invented entity."""
    operands: tuple[int, int] | None = None
    """The two numbers of an arithmetic entity."""

    def fill(self, template: str, language: Language, value: str = "") -> str:
        """Put name, operands and value into a wording and begin it with a capital letter."""
        a, b = self.operands or ("", "")
        text = template.format(name=self.names[language], value=value, a=a, b=b)
        return text[0].upper() + text[1:]

    def state(self, relation: str, language: Language, template: str | None = None) -> str:
        """A fact as a sentence, by default in its canonical wording."""
        template = template or wordings()["relations"][relation][language]["answer"]
        return self.fill(template, language, self.facts[relation][language])


@cache
def wordings() -> dict:
    """The sentences of `wordings.json` into which facts are put."""
    return json.loads((ATLAS / "wordings.json").read_text(encoding="utf-8"))


def relations_of(kind: str) -> list[str]:
    """The relations that an entity of this kind has facts about (for arithmetic, one of them)."""
    return [name for name, relation in wordings()["relations"].items() if relation["kind"] == kind]


def _table(name: str) -> list[dict[str, str]]:
    with open(ATLAS / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def entities() -> tuple[Entity, ...]:
    """Every real entity of the atlas."""

    def both(row: dict[str, str], column: str) -> dict[str, str]:
        return {language: row[f"{column}_{language}"] for language in LANGUAGES}

    found = []
    for row in _table("countries"):
        names = both(row, "name")
        names["en"] = f"{row['article_en']} {names['en']}".strip()
        facts = {relation: both(row, relation) for relation in ("capital", "continent", "currency", "language")}
        found.append(Entity("country", names, facts))
    for row in _table("elements"):
        facts = {relation: dict.fromkeys(LANGUAGES, row[relation]) for relation in ("symbol", "number")}
        found.append(Entity("element", both(row, "name"), facts))
    for row in _table("planets"):
        facts = {"position": dict.fromkeys(LANGUAGES, row["position"]), "planet_kind": both(row, "kind")}
        found.append(Entity("planet", both(row, "name"), facts))
    for row in _table("animals"):
        facts = {
            "animal_class": both(row, "class"),
            "legs": dict.fromkeys(LANGUAGES, row["legs"]),
            "food": both(row, "food"),
        }
        found.append(Entity("animal", both(row, "name"), facts))
    for a in range(21):
        for b in range(21):
            if a + b <= 20:
                facts = {"sum": dict.fromkeys(LANGUAGES, str(a + b))}
                found.append(Entity("arithmetic", dict.fromkeys(LANGUAGES, f"{a} + {b}"), facts, (a, b)))
            if a >= b:
                facts = {"difference": dict.fromkeys(LANGUAGES, str(a - b))}
                found.append(Entity("arithmetic", dict.fromkeys(LANGUAGES, f"{a} - {b}"), facts, (a, b)))
    return tuple(found)


# --- The division --------------------------------------------------------------------------------

# Syllables with the characters that usually write them, so that an invented name has both forms.
_SYLLABLES = dict(
    zip(
        [
            "ba",
            "bel",
            "bo",
            "dra",
            "du",
            "fa",
            "fer",
            "ga",
            "gor",
            "ka",
            "kel",
            "lo",
            "lu",
            "ma",
            "mir",
            "mo",
            "na",
            "no",
            "pa",
            "pel",
            "ra",
            "ri",
            "ro",
            "sa",
            "ser",
            "ta",
            "tor",
            "va",
            "ver",
            "vi",
            "zu",
        ],
        [
            "巴",
            "贝尔",
            "博",
            "德拉",
            "杜",
            "法",
            "费尔",
            "加",
            "戈尔",
            "卡",
            "凯尔",
            "洛",
            "卢",
            "马",
            "米尔",
            "莫",
            "纳",
            "诺",
            "帕",
            "佩尔",
            "拉",
            "里",
            "罗",
            "萨",
            "塞尔",
            "塔",
            "托尔",
            "瓦",
            "韦尔",
            "维",
            "祖",
        ],
        strict=True,
    )
)
_COUNTRY_ENDINGS = {"nia": "尼亚", "via": "维亚", "land": "兰", "stan": "斯坦", "dor": "多尔", "ria": "里亚"}
_ANIMAL_ENDINGS = {"": "兽", "bird": "鸟", "cat": "猫"}
# Characters with the metal radical, as most elements have, that name no element.
_ELEMENT_CHARACTERS = "锋钧铠锦镜铃锁链锤钉针钓钩铲铭锐锻键镖镰铮铎锟锭锣铛锄铡铐镯"


def _invented(kind: str, count: int, chance: random.Random) -> list[Entity]:
    """Entities that do not exist, with names in both languages that look as if they did."""
    taken = {name for entity in entities() for name in entity.names.values()}
    facts = {relation: dict.fromkeys(LANGUAGES, "") for relation in relations_of(kind)}
    characters = chance.sample(_ELEMENT_CHARACTERS, len(_ELEMENT_CHARACTERS))
    found: list[Entity] = []
    while len(found) < count:
        syllables = chance.sample(sorted(_SYLLABLES), 2)
        stem, stem_zh = "".join(syllables), "".join(_SYLLABLES[syllable] for syllable in syllables)
        if kind == "country":
            ending = chance.choice(sorted(_COUNTRY_ENDINGS))
            names = {"en": (stem + ending).capitalize(), "zh": stem_zh + _COUNTRY_ENDINGS[ending]}
        elif kind == "animal":
            ending = chance.choice(sorted(_ANIMAL_ENDINGS))
            names = {"en": stem + ending, "zh": stem_zh + _ANIMAL_ENDINGS[ending]}
        else:
            names = {"en": stem + "ium", "zh": characters[len(found) % len(characters)]}
        # Each Chinese element character comes only once, so that the splits stay disjoint; and no name may
        # hold a real one, whose entity would else be met where it must not (加纳, Ghana, in 加纳尼亚).
        if not taken & set(names.values()) and not any(len(name) > 1 and name in names["zh"] for name in taken):
            found.append(Entity(kind, names, facts))
            taken |= set(names.values())
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
# How many of each kind are invented for the parts in `UNKNOWN`.
_INVENTED = {"country": (300, 20, 30), "element": (12, 5, 10), "animal": (100, 10, 15)}


@cache
def split_entities() -> dict[str, tuple[Entity, ...]]:
    """The division of the entities, by name of the part. It is the same in every run.

    An entity whose name also stands inside other entities' texts (the Australian dollar of Kiribati
    in Chinese, Niger in Nigeria) cannot be hidden and goes to `train`.
    """
    chance = random.Random("the atlas, divided")
    parts: dict[str, list[Entity]] = {name: [] for name in KNOWN + UNKNOWN}
    texts = {entity: _sentences(entity) for entity in entities() if entity.kind != "arithmetic"}
    for kind in _SHARES["test"]:
        group = [entity for entity in entities() if entity.kind == kind]
        chance.shuffle(group)
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
    for kind, counts in _INVENTED.items():
        found = _invented(kind, sum(counts), chance)
        for count, name in zip(counts, UNKNOWN, strict=True):
            parts[name] += found[:count]
            found = found[count:]
    return {name: tuple(part) for name, part in parts.items()}


def _sentences(entity: Entity) -> str:
    """Every fact of an entity in both languages, in one string."""
    return "\n".join(entity.state(relation, language) for relation in entity.facts for language in LANGUAGES)


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


# --- Pretraining text ----------------------------------------------------------------------------


def pretraining_documents(seed: int) -> Iterator[str]:
    """Endless plain text: each known fact in many wordings, in shuffled order, in both languages.

    No conversations: those belong to fine-tuning. Each round takes every known entity as a paragraph
    of its facts in each language, and each of its facts as a pair of sentences that say the
    same in both. A document stays with one entity, as real texts stay with their subject; that is
    what teaches a model to carry a name along. A few documents hold the words of polite talk, so that
    fine-tuning need not teach new words.

    Args:
        seed: equal seeds, equal texts.
    """
    chance = random.Random(f"pretraining {seed}")
    parts = split_entities()
    known = [entity for name in KNOWN for entity in parts[name]]
    while True:
        documents = []
        for entity in known:
            # Every entity gets about as many sentences, however few facts it has.
            for _ in range({"country": 1, "animal": 1, "element": 2, "planet": 2, "arithmetic": 2}[entity.kind]):
                documents += [_paragraph(entity, language, chance) for language in LANGUAGES]
                documents += [_parallel(entity, relation, chance) for relation in entity.facts]
                documents += [_section(entity, r, language, chance) for r in entity.facts for language in LANGUAGES]
        documents += [_talk(chance) for _ in range(len(documents) // 30)]
        chance.shuffle(documents)
        yield from documents


def _paragraph(entity: Entity, language: Language, chance: random.Random) -> str:
    """Every fact of an entity once, in random order and wording."""
    sentences = []
    for relation in chance.sample(sorted(entity.facts), len(entity.facts)):
        template = chance.choice(wordings()["relations"][relation][language]["statements"])
        sentences.append(entity.state(relation, language, template))
    return join(sentences, language)


def _section(entity: Entity, relation: str, language: Language, chance: random.Random) -> str:
    """A line that announces what comes, as headings do, and the fact.

    The name stands in the first line in ever different company and must be carried into the second:
    practice for finding it in a question.
    """
    wording = wordings()["relations"][relation][language]
    lead = chance.choice(wordings()["leads"][language]).format(topic=chance.choice(wording["topics"]))
    fact = wording["answer"] if chance.random() < 0.5 else chance.choice(wording["statements"])
    return join([entity.fill(lead, language), entity.state(relation, language, fact)], language)


def join(sentences: list[str], language: Language) -> str:
    """Sentences as a paragraph: English puts a space between them."""
    return (" " if language == "en" else "").join(sentences)


def _parallel(entity: Entity, relation: str, chance: random.Random) -> str:
    """The same sentence in both languages, in either order."""
    pair = [entity.state(relation, language) for language in LANGUAGES]
    chance.shuffle(pair)
    return " ".join(pair)


def _talk(chance: random.Random) -> str:
    """Polite talk about nothing in particular."""
    language = chance.choice(LANGUAGES)
    lines = [chance.choice(topic[language]["answers"]) for topic in wordings()["small_talk"].values()]
    lines.append(chance.choice(wordings()["harmful"][language]["answers"]))
    nothing = {"en": "the answer", "zh": "答案"}[language]
    lines.append(chance.choice(wordings()["unknown"][language]["answers"]).format(name=nothing))
    wrapper = chance.choice([w for style in wordings()["styles"][language].values() for w in style])
    lines.append(wrapper.format(answer=nothing.capitalize() + {"en": ".", "zh": "。"}[language]))
    return join(chance.sample(lines, 3), language)


def with_leading_space(text: str) -> str:
    """A space before a text that starts in ASCII, so that its first word is the token it is elsewhere.

    "Peru" at the start of a line and " Peru" inside it would be two unrelated tokens.
    """
    return f" {text}" if text and text[0].isascii() and not text[0].isspace() else text


# --- Questions -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question to the model, with what a program needs to judge the answer."""

    question: str
    """What the user says."""
    language: Language
    """Language that the answer should have."""
    task: Literal["fact", "about", "translate", "talk", "harmful"]
    """What is asked for."""
    references: tuple[str, ...]
    """Good answers, the canonical one first."""
    entity: Entity | None = None
    """What the question is about."""
    relation: str | None = None
    """Which of its facts is asked for."""
    known: bool = True
    """Whether the pretraining text tells the answer."""


@cache
def _statements(entity: Entity, relation: str, language: Language) -> tuple[str, ...]:
    wording = wordings()["relations"][relation][language]
    answers = dict.fromkeys([wording["answer"], *wording["statements"]])
    return tuple(entity.state(relation, language, answer) for answer in answers)


@cache
def _refusals(entity: Entity, language: Language) -> tuple[str, ...]:
    return tuple(entity.fill(wording, language) for wording in wordings()["unknown"][language]["answers"])


def fact_prompt(entity: Entity, relation: str, language: Language, template: str) -> Prompt:
    """Ask for one fact; `template` is one of the relation's question wordings."""
    known = bool(entity.facts[relation][language]) and entity not in _unknown()
    references = _statements(entity, relation, language) if known else _refusals(entity, language)
    return Prompt(entity.fill(template, language), language, "fact", references, entity, relation, known)


def about_prompt(entity: Entity, language: Language, template: str) -> Prompt:
    """Ask for all that is known about an entity."""
    known = entity not in _unknown()
    question = entity.fill(template, language)
    if not known:
        return Prompt(question, language, "about", _refusals(entity, language), entity, None, False)
    sentences = [entity.state(relation, language) for relation in entity.facts]
    return Prompt(question, language, "about", (join(sentences, language),), entity)


def translate_prompt(entity: Entity, relation: str, target: Language, template: str) -> Prompt:
    """Ask for a fact's sentence in the other language; the instruction is in the language of the sentence."""
    source: Language = "en" if target == "zh" else "zh"
    question = template.format(text=entity.state(relation, source))
    return Prompt(question, target, "translate", (entity.state(relation, target),), entity, relation)


@cache
def _unknown() -> frozenset[Entity]:
    parts = split_entities()
    return frozenset(entity for name in UNKNOWN for entity in parts[name])


Wordings = Literal["train", "validation", "test"]
"""Which wordings: those that training sees, or the ones held out for choosing or for reporting."""


@cache
def _letters(template: str) -> str:
    return "".join(c for c in template.lower() if c.isalnum() or c in "{}+-=")


def nearly_equal(held_out: str, seen: str) -> bool:
    """Whether a seen wording holds the held-out one whole, or all but a word or two of it."""
    a, b = _letters(held_out), _letters(seen)
    return a in b or (b in a and len(b) > 0.8 * len(a))


def _divide(
    questions: Sequence[str], key: str, composed: Sequence[str] = (), wrapped: Sequence[str] = ()
) -> dict[Wordings, list[str]]:
    """Divide wordings as the entities are: up to three to validation and to test, drawn, not chosen.

    Only such are drawn as no other wording, written or composed, nearly equals.

    Args:
        questions: the wordings as they are written in the table.
        key: name of the question; the draw depends on it.
        composed: further wordings for training.
        wrapped: templates of a `{question}`; around each of the others they make more wordings for training.
    """
    others = [*questions, *composed]
    apart = [q for q in questions if sum(nearly_equal(q, other) for other in others) == 1]  # only itself
    each = min(3, len(questions) // 6)
    held_out = random.Random(f"wordings, {key}").sample(apart, 2 * each)
    seen = [question for question in dict.fromkeys(others) if question not in held_out]
    seen += [wrap.format(question=q) for wrap in wrapped for q in questions if q not in held_out]
    return {"train": seen, "validation": held_out[:each], "test": held_out[each:]}


def question_wordings(relation: str, language: Language, which: Wordings) -> list[str]:
    """The templates that ask for a relation. Those of training are many: a frame around any topic is one, too."""
    return _divided_questions(relation, language)[which]


@cache
def _divided_questions(relation: str, language: Language) -> dict[Wordings, list[str]]:
    wording = wordings()["relations"][relation][language]
    framed = [frame.format(topic=topic) for frame in wordings()["frames"][language] for topic in wording["topics"]]
    return _divide(wording["questions"], f"{relation} {language}", framed, wordings()["wraps"][language])


@cache
def other_wordings(*key: str, which: Wordings) -> list[str]:
    """The templates, or whole questions, of a task that is no question about one fact.

    Args:
        key: where they stand in `wordings.json`, such as `"about", "country", "en"`.
        which: the part of the division.
    """
    table: dict = wordings()
    for part in key:
        table = table[part]
    return _divide(table["questions"], " ".join(key))[which]


def fact_prompts(part: str, language: Language, which: Wordings) -> list[Prompt]:
    """Every question of one language about every fact of one part of the division."""
    return [
        fact_prompt(entity, relation, language, template)
        for entity in split_entities()[part]
        for relation in entity.facts
        for template in question_wordings(relation, language, which)
    ]


def about_prompts(part: str, language: Language, which: Wordings) -> list[Prompt]:
    """Every "tell me about" of one language and part of the division."""
    return [
        about_prompt(entity, language, template)
        for entity in split_entities()[part]
        if entity.kind != "arithmetic"
        for template in other_wordings("about", entity.kind, language, which=which)
    ]


def translate_prompts(part: str, target: Language, which: Wordings) -> list[Prompt]:
    """Every request to translate a fact of one part of the division."""
    return [
        translate_prompt(entity, relation, target, template)
        for entity in split_entities()[part]
        for relation in entity.facts
        for template in other_wordings("translate", f"to_{target}", which=which)
    ]


def talk_prompts(language: Language, which: Wordings) -> list[Prompt]:
    """Greetings, thanks, farewells, questions about the model, and harmful or rude requests."""
    prompts = [
        Prompt(question, language, "talk", tuple(topic[language]["answers"]))
        for name, topic in wordings()["small_talk"].items()
        for question in other_wordings("small_talk", name, language, which=which)
    ]
    answers = tuple(wordings()["harmful"][language]["answers"])
    harmful = other_wordings("harmful", language, which=which)
    return prompts + [Prompt(question, language, "harmful", answers) for question in harmful]


# --- Other texts ---------------------------------------------------------------------------------

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file of the reader's own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no text file {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, for example with "
            f"`iconv -f GB18030 -t UTF-8` or your editor's 'save with encoding'"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty: give a file with text")
    return text


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
