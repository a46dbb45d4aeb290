"""Questions about the atlas, each with what a program needs to judge the answer.

Wordings are divided, too: some are held out, so that it can be measured whether a model understands a question in
words that it was never asked in. `PromptSource` draws questions of all tasks; fine-tuning, comparisons, reinforcement
learning and the exam ask from it. First read in notebooks/07_evaluation.ipynb.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from gptcore.atlas import UNKNOWN, Entity, Language, join, split_entities, wordings
from gptcore.messages import messages

# --- One question --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question to the model, with what a program needs to judge the answer."""

    question: str
    """What the user says."""
    language: Language
    """Language that the answer should have."""
    task: Literal["fact", "about", "translate", "talk", "harmful", "own"]
    """What is asked for; `own`: by the reader, and no program can judge it."""
    references: tuple[str, ...]
    """Good answers, the canonical one first."""
    entity: Entity | None = None
    """What the question is about."""
    relation: str | None = None
    """Which of its facts is asked for."""
    known: bool = True
    """Whether the pretraining text tells the answer."""
    names_value: bool = False
    """Whether the question holds the value and asks for the entity: which country has Ottawa as its capital?"""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier messages of the conversation and their answers; the question may lean on them."""


@cache
def statements(entity: Entity, relation: str, language: Language) -> tuple[str, ...]:
    """All sentences of one language that state a fact, the canonical one first; a sum in either order."""
    wording = wordings()["relations"][relation][language]
    answers = dict.fromkeys([wording["answer"], *wording["statements"]])
    said = [entity.sentence(relation, language, answer) for answer in answers]
    if relation == "sum":  # 3 and 5 make what 5 and 3 make
        a, b = entity.operands or (0, 0)
        turned = replace(entity, operands=(b, a))
        said += [turned.sentence(relation, language, answer) for answer in answers]
    return tuple(dict.fromkeys(said))


@cache
def _refusals(entity: Entity, language: Language) -> tuple[str, ...]:
    return tuple(entity.fill(wording, language) for wording in wordings()["unknown"][language]["answers"])


def decline(language: Language) -> tuple[str, ...]:
    """What to say to a request for something that is not in the atlas."""
    return tuple(wordings()["outside"][language]["answers"])


def fact_prompt(entity: Entity, relation: str, language: Language, template: str) -> Prompt:
    """Ask for one fact; `template` is one of the relation's question wordings."""
    known = bool(entity.facts[relation][language]) and entity not in _unknown()
    references = statements(entity, relation, language) if known else _refusals(entity, language)
    return Prompt(entity.fill(template, language), language, "fact", references, entity, relation, known)


def about_prompt(entity: Entity, language: Language, template: str) -> Prompt:
    """Ask for all that is known about an entity."""
    known = entity not in _unknown()
    question = entity.fill(template, language)
    if not known:
        return Prompt(question, language, "about", _refusals(entity, language), entity, None, False)
    sentences = [entity.sentence(relation, language) for relation in entity.facts]
    return Prompt(question, language, "about", (join(sentences, language),), entity)


def translate_prompt(entity: Entity, relation: str, target: Language, template: str) -> Prompt:
    """Ask for a fact's sentence in the other language; the instruction is in the language of the sentence."""
    source: Language = "en" if target == "zh" else "zh"
    question = template.format(text=entity.sentence(relation, source))
    return Prompt(question, target, "translate", (entity.sentence(relation, target),), entity, relation)


@cache
def _unknown() -> frozenset[Entity]:
    parts = split_entities()
    return frozenset(entity for name in UNKNOWN for entity in parts[name])


# --- Wordings, divided ---------------------------------------------------------------------------

Part = Literal["train", "validation", "test"]
"""Of the wordings: those that training sees, or the ones held out for choosing or for reporting."""


@cache
def _letters(template: str) -> str:
    return "".join(c for c in template.lower() if c.isalnum() or c in "{}+-=")


def nearly_equal(held_out: str, seen: str) -> bool:
    """Whether a seen wording holds the held-out one whole, or all but a word or two of it."""
    a, b = _letters(held_out), _letters(seen)
    return a in b or (b in a and len(b) > 0.75 * len(a))


def _divide(
    questions: Sequence[str],
    key: str,
    composed: Sequence[str] = (),
    wrapped: Sequence[str] = (),
    typed: Sequence[str] = (),
) -> Mapping[Part, tuple[str, ...]]:
    """Divide wordings as the entities are: up to three to validation and to test, drawn, not chosen.

    Only such are drawn as no other wording, written, composed or typed, nearly equals.

    Args:
        questions: the wordings as they are written in the table.
        key: name of the question; the draw depends on it.
        composed: further wordings for training.
        wrapped: templates of a `{question}`; around each of the others they make more wordings for training.
        typed: what training asks besides.
    """
    others = [*questions, *composed]
    apart = [q for q in questions if sum(nearly_equal(q, other) for other in (*others, *typed)) == 1]  # only itself
    each = min(3, len(questions) // 6)
    held_out = random.Random(f"wordings, {key}").sample(apart, 2 * each)
    seen = [question for question in dict.fromkeys(others) if question not in held_out]
    seen += [wrap.format(question=q) for wrap in wrapped for q in questions if q not in held_out]
    divided: dict[Part, Sequence[str]] = {"train": seen, "validation": held_out[:each], "test": held_out[each:]}
    return MappingProxyType({part: tuple(templates) for part, templates in divided.items()})


def question_wordings(relation: str, language: Language, part: Part) -> tuple[str, ...]:
    """The templates that ask for a relation. Those of training are many: a frame around any topic is one, too."""
    return _divided_questions(relation, language)[part]


@cache
def _divided_questions(relation: str, language: Language) -> Mapping[Part, tuple[str, ...]]:
    wording = wordings()["relations"][relation][language]
    framed = [frame.format(topic=topic) for frame in wordings()["frames"][language] for topic in wording["topics"]]
    typed = [text.replace("{bare}", "{name}") for text in messages()["facts"][relation][language]]
    return _divide(wording["questions"], f"{relation} {language}", framed, wordings()["wraps"][language], typed)


@cache
def other_wordings(*key: str, part: Part) -> tuple[str, ...]:
    """The templates, or whole questions, of a task that is no question about one fact.

    Args:
        key: where they stand in `wordings.json`, such as `"about", "country", "en"`.
        part: of the division of wordings.
    """
    table: Any = wordings()
    for name in key:
        table = table[name]
    typed: Sequence[str] = ()
    if key[0] in ("small_talk", "rude"):  # "good night" stands in many a message; only the same one counts
        *_, topic, language = key
        written = {_letters(question) for question in table["questions"]}
        typed = [text for text in messages()["talk"][topic][language] if _letters(text) in written]
    return _divide(table["questions"], " ".join(key), typed=typed)[part]


def fact_prompts(part: str, language: Language, wording_part: Part) -> list[Prompt]:
    """Every question of one language about every fact of one part of the division."""
    return [
        fact_prompt(entity, relation, language, template)
        for entity in split_entities()[part]
        for relation in entity.facts
        for template in question_wordings(relation, language, wording_part)
    ]


def about_prompts(part: str, language: Language, wording_part: Part) -> list[Prompt]:
    """Every "tell me about" of one language and part of the division."""
    return [
        about_prompt(entity, language, template)
        for entity in split_entities()[part]
        if entity.kind != "arithmetic"
        for template in other_wordings("about", entity.kind, language, part=wording_part)
    ]


def translate_prompts(part: str, target: Language, wording_part: Part) -> list[Prompt]:
    """Every request to translate a fact of one part of the division."""
    return [
        translate_prompt(entity, relation, target, template)
        for entity in split_entities()[part]
        for relation in entity.facts
        for template in other_wordings("translate", f"to_{target}", part=wording_part)
    ]


def talk_prompts(language: Language, wording_part: Part) -> list[Prompt]:
    """Greetings, thanks, farewells, questions about the model, harmful requests and rude words."""
    prompts = [
        Prompt(question, language, "talk", tuple(topic[language]["answers"]))
        for name, topic in wordings()["small_talk"].items()
        if "questions" in topic[language]
        for question in other_wordings("small_talk", name, language, part=wording_part)
    ]
    for topic in ("harmful", "rude"):
        answers = tuple(wordings()[topic][language]["answers"])
        if topic == "harmful":  # who says that this is not what it knows has not helped either
            answers += decline(language)
        asked = other_wordings(topic, language, part=wording_part)
        prompts += [Prompt(question, language, "harmful", answers) for question in asked]
    return prompts
