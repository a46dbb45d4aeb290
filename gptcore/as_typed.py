"""The exam as people type: messages by writers who had seen neither the atlas's wordings nor the model.

The questions of `exam` in "unseen wordings" were written by the hand that wrote the seen ones, and flatter. For these
six writers, three for each language, were given a fact, a situation ("on a train, typing on a phone") and nothing else.
Besides facts there is small talk, and there are conversations in which a question leans on the one before. Nothing here
is ever trained on; `validation` is for choosing, `test` for reporting. Asked in notebooks/07_evaluation.ipynb.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from gptcore.atlas import ATLAS, KNOWN, LANGUAGES, Entity, Language, mentions, split_entities, wordings
from gptcore.chat import Conversation
from gptcore.chat_template import Turn, decode_answer
from gptcore.decoder import Decoder
from gptcore.generation import GREEDY, generate
from gptcore.gold import exact
from gptcore.messages import filled_in_all_ways, letters, messages
from gptcore.questions import Part, Prompt, decline, fact_prompt, question_wordings, talk_prompts
from gptcore.tokenizer import END, Tokenizer

TALK = {
    "greeting": ("greeting",),
    "how": ("how",),
    "thanks": ("thanks",),
    "goodbye": ("goodbye",),
    "who": ("identity",),
    "can": ("abilities", "identity"),
}
"""Which topics of `wordings.json` answer a kind of small talk. What is outside of the model's world must be declined."""


@cache
def _records() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads((ATLAS / "as_typed.json").read_text(encoding="utf-8")))


@cache
def _entity(kind: str, name: str) -> Entity:
    parts = split_entities()
    return next(e for part in KNOWN for e in parts[part] if (e.kind, e.names["en"]) == (kind, name))


def _prompt(turn: Mapping[str, Any], language: Language) -> Prompt:
    """A message with what is needed to judge the answer; one without a fact is small talk."""
    if "relation" not in turn:
        return Prompt(turn["text"], language, "talk", ())
    entity = _entity(turn["kind"], turn["name"])
    # Asked by way of a template, braces that somebody typed would be taken for fields.
    return replace(fact_prompt(entity, turn["relation"], language, "?"), question=turn["text"])


def typed_conversations(part: Part, language: Language, about: str) -> list[list[Prompt]]:
    """What people typed: conversations of one message, or of more.

    Args:
        part: of the division.
        language: of writer and answers.
        about: `facts`, `threads`, or a kind of small talk: one of `TALK`, or `outside`.
    """
    return [
        [_prompt(turn, language) for turn in record["turns"]]
        for record in _records()
        if (record["part"], record["language"], record["about"]) == (part, language, about)
    ]


def converse(model: Decoder, tokenizer: Tokenizer, conversations: Sequence[Sequence[Prompt]]) -> list[list[str]]:
    """The model's answers, turn by turn, each with its own earlier answers before it; "" where a message is too long."""
    histories: list[list[Turn]] = [[] for _ in conversations]
    for number in range(max(map(len, conversations), default=0)):
        asked = [(i, prompts[number].question) for i, prompts in enumerate(conversations) if number < len(prompts)]
        prompt_ids, rows = [], []
        for i, message in asked:
            try:
                prompt_ids.append(Conversation(model, tokenizer, turns=histories[i]).prompt(message))
                rows.append(i)
            except ValueError:
                histories[i] = [*histories[i], (message, "")]
        answers = generate(model, prompt_ids, GREEDY, tokenizer.special[END])
        messages = dict(asked)
        for i, ids in zip(rows, answers, strict=True):
            histories[i] = [*histories[i], (messages[i], decode_answer(tokenizer, ids))]
    return [[answer for _, answer in history] for history in histories]


def talk_is_right(about: str, answer: str, language: Language) -> bool:
    """Whether small talk was answered in kind; what is outside must be declined, and without naming some other thing."""
    if about in TALK:
        return any(answer in wordings()["small_talk"][topic][language]["answers"] for topic in TALK[about])
    declined = [*wordings()["harmful"][language]["answers"], *decline(language), *_declining(language)]
    named = any(mentions(answer, entity) for part in split_entities().values() for entity in part)
    return any(phrase in answer for phrase in declined) and not named


def _declining(language: Language) -> list[str]:
    """How a refusal begins, before the kind of what is not known."""
    return [wording.split("{kind}")[0].strip() for wording in wordings()["unknown"][language]["answers"]]


@cache
def _trained_messages(language: Language) -> frozenset[str]:
    """The letters of all messages that training may hold and that name nothing."""
    lists = [texts[language] for kind in ("talk", "outside", "followups") for texts in messages()[kind].values()]
    asked = [prompt.question for prompt in talk_prompts(language, "train")]
    return frozenset(letters(text) for texts in (*lists, asked) for text in texts)


@cache
def stands_in_training(prompt: Prompt) -> bool:
    """Whether training asks the same letter by letter; anybody types "hi", and nothing is measured by it."""
    language, asked = prompt.language, letters(prompt.question)
    if asked in _trained_messages(language):
        return True
    entity, relation = prompt.entity, prompt.relation
    if entity is None or relation is None:
        return False
    templates = [*messages()["facts"][relation][language], *question_wordings(relation, language, "train")]
    templates += messages()["same"][entity.kind if entity.operands is None else relation][language]
    templates += messages()["back"].get(relation, {}).get(language, ())
    return any(asked in filled_in_all_ways(entity, template, language) for template in templates)


def typed_scores(model: Decoder, tokenizer: Tokenizer, part: Part = "test") -> dict[str, list[bool]]:
    """Right or wrong: `facts_en`, `facts_zh`, `talk_`, and `followups_`, the later questions of a conversation.

    What training happens to ask letter by letter does not count.
    """
    scores: dict[str, list[bool]] = {}
    for language in LANGUAGES:
        facts = typed_conversations(part, language, "facts")
        answers = converse(model, tokenizer, facts)
        scores[f"facts_{language}"] = [exact(*pair) for pair in _counted(facts, answers)]
        scores[f"talk_{language}"] = []
        for about in (*TALK, "outside"):
            talk = typed_conversations(part, language, about)
            said = converse(model, tokenizer, talk)
            scores[f"talk_{language}"] += [talk_is_right(about, answer, language) for _, answer in _counted(talk, said)]
        threads = typed_conversations(part, language, "threads")
        later = _counted([t[1:] for t in threads], [a[1:] for a in converse(model, tokenizer, threads)])
        scores[f"followups_{language}"] = [exact(*pair) for pair in later if pair[0].task == "fact"]
    return scores


def _counted(conversations: Sequence[Sequence[Prompt]], answers: Sequence[Sequence[str]]) -> list[tuple[Prompt, str]]:
    pairs = zip(conversations, answers, strict=True)
    flat = [pair for prompts, said in pairs for pair in zip(prompts, said, strict=True)]
    return [pair for pair in flat if not stands_in_training(pair[0])]
