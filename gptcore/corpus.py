"""The texts of pretraining: written from the atlas, or the reader's own; and texts as ids.

Chapter 3 reads the documents for the first time, notebooks/05_pretraining.ipynb trains on them.
"""

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gptcore.atlas import KNOWN, LANGUAGES, Entity, Language, join, split_entities, wordings
from gptcore.messages import as_people_type, carelessly, fill_message, messages, spelled
from gptcore.tokenizer import END_OF_TEXT, Tokenizer

# --- Documents -----------------------------------------------------------------------------------


def pretraining_documents(seed: int, untold: int = 1) -> Iterator[str]:
    """Endless plain text: each known fact in many wordings, in shuffled order, in both languages.

    No conversations: those belong to fine-tuning. Each round takes every known entity as a paragraph
    of its facts in each language, and each of its facts as a pair of sentences that say the
    same in both. A document stays with one entity, as real texts stay with their subject; that is
    what teaches a model to carry a name along. A few documents hold the words of polite talk, so that
    fine-tuning need not teach new words.

    Args:
        seed: equal seeds, equal texts.
        untold: how many times as often as others each round takes the entities of which no conversation tells.
    """
    rng = random.Random(f"pretraining {seed}")
    known = _known(untold)
    while True:
        documents = []
        for entity in known:
            # Every entity gets about as many sentences, however few facts it has.
            for _ in range({"country": 1, "animal": 2, "element": 2, "planet": 2, "arithmetic": 3}[entity.kind]):
                documents += [_paragraph(entity, language, rng) for language in LANGUAGES]
                documents += [_parallel(entity, relation, rng) for relation in entity.facts]
                documents += [_section(entity, r, language, rng) for r in entity.facts for language in LANGUAGES]
                named = [relation for relation in entity.facts if relation in messages()["reverse"]]
                documents += [
                    _reversed(entity, relation, language, rng) for relation in named for language in LANGUAGES
                ]
                if entity.kind != "arithmetic":
                    documents += [_mention(entity, language, rng) for language in LANGUAGES]
                    # English has more forms of a name to know: small letters, capitals, accents or none.
                    for language, forms in zip(LANGUAGES, (8, 3), strict=True):
                        names = [spelled(entity, language, rng) for _ in range(forms)]
                        documents += [
                            _entry(entity, name, language, rng) for name in (*names, *entity.aliases[language])
                        ]
        documents += [_talk(known, rng) for _ in range(len(documents) // 30)]
        rng.shuffle(documents)
        yield from documents


def documents_of_several(seed: int, untold: int = 1) -> Iterator[str]:
    """Endless plain text that goes from one thing to another of its kind, and sometimes back.

    Who has only read texts with one subject takes the first name of a conversation for the subject of all of it.

    Args:
        seed: equal seeds, equal texts.
        untold: how many times as often as others the entities come of which no conversation tells.
    """
    rng = random.Random(f"several {seed}")
    known = _known(untold)
    kinds = {entity.kind: [other for other in known if other.kind == entity.kind] for entity in known}
    while True:
        language, entity = rng.choice(LANGUAGES), rng.choice(known)
        pieces = []
        for _ in range(rng.choice((2, 2, 3, 3, 4))):
            if entity.kind == "arithmetic" or rng.random() < 0.75:
                pieces.append(_section(entity, rng.choice(list(entity.facts)), language, rng))
            else:
                pieces.append(_mention(entity, language, rng))
            if rng.random() < 0.75:
                entity = rng.choice(kinds[entity.kind])
        yield join(pieces, language)


def _known(untold: int) -> list[Entity]:
    """The entities of the texts, those of which no conversation tells so many times."""
    parts = split_entities()
    return [entity for name in KNOWN for entity in parts[name] * (1 if name == "train" else untold)]


def _paragraph(entity: Entity, language: Language, rng: random.Random) -> str:
    """Every fact of an entity once, in random order and wording."""
    sentences = []
    for relation in rng.sample(sorted(entity.facts), len(entity.facts)):
        template = rng.choice(wordings()["relations"][relation][language]["statements"])
        sentences.append(entity.sentence(relation, language, template))
    return join(sentences, language)


def _section(entity: Entity, relation: str, language: Language, rng: random.Random) -> str:
    """A line that announces what comes, as headings do, and the fact.

    The name stands in the first line in ever different company, often in another spelling, and must be carried into
    the second: practice for finding it in a question.
    """
    wording = wordings()["relations"][relation][language]
    if entity.inflected and language == "en" and rng.random() < 0.2:
        lead = rng.choice(wordings()["inflections"][entity.kind]["en"]).format(inflected=entity.inflected)
    else:
        topics = wording["topics"] if rng.random() < 0.6 else messages()["topics"][relation][language]
        lead = rng.choice(wordings()["leads"][language]).format(topic=rng.choice(topics))
    if entity.operands:  # numbers in words, too
        lead = fill_message(entity, lead, language, rng, in_words=0.5)
    else:
        lead = entity.fill(lead, language, name=spelled(entity, language, rng))
    draw = rng.random()
    if draw < 0.6:
        lead = (carelessly if draw < 0.35 else as_people_type)(lead, language, rng)
    fact = wording["answer"] if rng.random() < 0.5 else rng.choice(wording["statements"])
    return _announced(lead, entity.sentence(relation, language, fact), language)


_HEADS = ("{}.", "{}:", "{}", '"{}"', "({})", "{},", "- {}")
"""How a line begins that tells of one thing, as in an encyclopedia."""


def _entry(entity: Entity, name: str, language: Language, rng: random.Random) -> str:
    """A name alone, in any of the forms that people give it, and a fact, as in an encyclopedia."""
    name = name.split("/")[0]
    form = rng.choices((str.lower, str.capitalize, str.upper, str), (0.45, 0.25 * name.islower(), 0.06, 0.3))[0]
    head = rng.choice(_HEADS).format(carelessly(form(name), language, rng))
    return f"{head} {entity.sentence(rng.choice(sorted(entity.facts)), language)}"


def _reversed(entity: Entity, relation: str, language: Language, rng: random.Random) -> str:
    """A value that only one thing has, alone or in a line that announces the thing, and the fact.

    Who has read "The capital of Peru is Lima" knows what follows the name, not what the name is that belongs to Lima.
    """
    value = entity.facts[relation][language]
    if rng.random() < 0.5:
        head = rng.choice(_HEADS).format(value)
    else:
        topic = rng.choice(wordings()["relations"][relation][language]["reversed"]).format(value=value)
        head = rng.choice(wordings()["leads"][language]).format(topic=topic)
    return _announced(carelessly(head, language, rng), entity.sentence(relation, language), language)


def _mention(entity: Entity, language: Language, rng: random.Random) -> str:
    """A line of everyday prose in which the name stands, and a fact: practice for finding it among other words."""
    templates = messages()["mentions"][entity.kind][language]
    template = rng.choice(templates)
    while not entity.inflected and ("{adjective}" in template or "{names}" in template):
        template = rng.choice(templates)
    line = carelessly(fill_message(entity, template, language, rng), language, rng)
    return _announced(line, entity.sentence(rng.choice(sorted(entity.facts)), language), language)


def _announced(line: str, fact: str, language: Language) -> str:
    gap = " " if language == "en" or line[-1].isalnum() else ""  # a hurried line has no full stop
    return f"{line}{gap}{fact}"


def _parallel(entity: Entity, relation: str, rng: random.Random) -> str:
    """The same sentence in both languages, in either order."""
    pair = [entity.sentence(relation, language) for language in LANGUAGES]
    rng.shuffle(pair)
    return " ".join(pair)


def _talk(known: Sequence[Entity], rng: random.Random) -> str:
    """Polite talk, some of it around a fact."""
    language = rng.choice(LANGUAGES)
    table = wordings()
    talk = [*table["small_talk"].values(), table["outside"], table["harmful"], table["rude"]]
    lines = [rng.choice(topic[language]["answers"]) for topic in talk]
    kind = rng.choice(("country", "element", "animal"))
    lines.append(rng.choice(table["unknown"][language]["answers"]).format(kind=table["kinds"][kind][language]))
    entity = rng.choice(known)
    fact = entity.sentence(rng.choice(list(entity.facts)), language)
    wrapper = rng.choice([w for style in table["styles"][language].values() for w in style])
    lines.append(wrapper.format(answer=fact))
    return join(rng.sample(lines, 3), language)


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


def names_in_all_forms() -> Iterator[str]:
    """Every name of every known entity, other names too, in the forms in which it is written; and what answers name.

    As it stands in the tables and in small letters three times each, with a capital once; English capitals and languages,
    whose letters make more pieces than Chinese characters, twice and once.
    """
    parts = split_entities()
    for entity in (entity for part in KNOWN for entity in parts[part] if entity.kind != "arithmetic"):
        for language in LANGUAGES:
            for name in (entity.names[language], *entity.aliases[language]):
                name = name.split("/")[0]
                often = dict.fromkeys((name, name.lower()))
                yield from (*often, *often, *often)
                if (capitalised := name[:1].upper() + name[1:]) not in often:
                    yield capitalised
        if entity.kind == "country":
            capital, spoken = (entity.facts[relation]["en"] for relation in ("capital", "language"))
            yield from (capital, capital, spoken)


# --- Ids -----------------------------------------------------------------------------------------


def with_leading_space(text: str) -> str:
    """A space before a text that starts in ASCII, so that its first word is the token it is elsewhere.

    "Peru" at the start of a line and " Peru" inside it would be two unrelated tokens.
    """
    return f" {text}" if text and text[0].isascii() and not text[0].isspace() else text


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text of its own: the end-of-text token, which says that something new begins, and the text.

    The space before the first word is easily forgotten and its lack never noticed: the loss is only a little higher.
    """
    return [tokenizer.special[END_OF_TEXT], *tokenizer.encode(with_leading_space(text))]


def documents_as_tokens(tokenizer: Tokenizer, documents: Iterable[str], count: int) -> Tensor:
    """Texts one after another, each as `encode_document` gives it, until there are `count` ids."""
    ids = array("q")  # eight bytes a number; in a list each takes forty
    for document in documents:
        ids.extend(encode_document(tokenizer, document))
        if len(ids) >= count:
            break
    return as_tensor(ids[:count])


def as_tensor(ids: "array[int]") -> Tensor:
    """Ids as a tensor `(N,)`, on the CPU."""
    return torch.frombuffer(ids, dtype=torch.int64) if ids else torch.empty(0, dtype=torch.int64, device="cpu")
