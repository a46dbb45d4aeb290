"""Prompts: questions of all tasks, drawn at random, alone or in a conversation.

Fine-tuning, comparisons, reinforcement learning and the exam draw from here; what can be asked stands in `questions`, how
people type it in `messages`. In a *thread* a message may lean on what was said before: "and its currency?" names no
country, "and Peru?" no question. First used in notebooks/08_fine_tuning.ipynb.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gptcore.atlas import LANGUAGES, Entity, Language, split_entities, wordings
from gptcore.chat_template import encode_prompt
from gptcore.messages import as_people_type, carelessly, fill_message, messages, spelled
from gptcore.questions import (
    Part,
    Prompt,
    about_prompt,
    decline,
    fact_prompt,
    other_wordings,
    question_wordings,
    talk_prompts,
    translate_prompt,
)
from gptcore.tokenizer import Tokenizer

# --- One question --------------------------------------------------------------------------------

TASKS = {"fact": 0.42, "about": 0.05, "translate": 0.14, "unknown": 0.14, "talk": 0.25}
"""What the demonstrations are about, and how often."""

CLEAN = 0.3
"""Share of training's questions about a fact in the tables' own wordings; writers worded the others (`messages`)."""


class PromptSource:
    """Draws prompts of all tasks about the entities of one part of the division.

    Args:
        part: `train`, `validation` or `test`; with it go `unknown_train` and so on.
        wording_part: the wordings of the questions; training sees only those of `train`.
        as_typed: whether most messages are as people type them, which only training's may be, or all as they stand
            in the tables.
    """

    def __init__(self, part: str = "train", wording_part: Part = "train", as_typed: bool = True) -> None:
        # Of each task several groups, so that the few planets get their share beside the many countries.
        # A group holds entities and what is asked of them; the wording is chosen last.
        self.wording_part: Part = wording_part
        self.as_typed = as_typed and wording_part == "train"
        self.known, self.unknown = split_entities()[part], split_entities()[f"unknown_{part}"]
        named = [entity for entity in self.known if entity.kind != "arithmetic"]
        self._groups: dict[str, Sequence[Sequence[Any]]] = {
            "fact": _by_relation(self.known),
            "about": [[(entity, None, language) for entity in named] for language in LANGUAGES],
            "translate": _by_relation(self.known),
            "unknown": [
                *_by_relation(self.unknown),
                [(entity, None, language) for entity in self.unknown for language in LANGUAGES],
            ],
            "talk": [talk_prompts(language, wording_part) for language in LANGUAGES],
        }

    def draw(self, rng: random.Random, tasks: Mapping[str, float] = TASKS) -> Prompt:
        """One prompt of a random task; `tasks` says how often each comes."""
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        if task == "talk" and self.as_typed:
            return self.draw_talk(rng, rng.choice(LANGUAGES))
        groups = self._groups[task]
        # Between "every relation alike" and "every fact alike".
        group = rng.choices(groups, [len(group) ** 0.5 for group in groups])[0]
        drawn = rng.choice(group)
        if isinstance(drawn, Prompt):
            return drawn
        entity, relation, language = drawn
        part = self.wording_part
        if task == "translate":
            template = rng.choice(other_wordings("translate", f"to_{language}", part=part))
            return translate_prompt(entity, relation, language, template)
        if relation:
            return self.ask_fact(entity, relation, language, rng)
        template = rng.choice(other_wordings("about", entity.kind, language, part=part))
        return self._as_asked(about_prompt(entity, language, template), rng)

    def ask_fact(self, entity: Entity, relation: str, language: Language, rng: random.Random) -> Prompt:
        """A question about a fact that is whole in itself, in any of the source's wordings."""
        if self.as_typed and rng.random() >= CLEAN:
            return self._typed_fact(entity, relation, language, rng)
        template = rng.choice(question_wordings(relation, language, self.wording_part))
        return self._as_asked(fact_prompt(entity, relation, language, template), rng)

    def _as_asked(self, prompt: Prompt, rng: random.Random) -> Prompt:
        if not self.as_typed:
            return prompt
        return replace(prompt, question=as_people_type(prompt.question, prompt.language, rng))

    def _typed_fact(self, entity: Entity, relation: str, language: Language, rng: random.Random) -> Prompt:
        """A question about a fact as somebody typed it: plain, yes or no, either or, or for the name that has a value."""
        prompt = fact_prompt(entity, relation, language, "?")
        kinds = {"facts": 0.76, "yesno": 0.08, "either": 0.06, "reverse": 0.10 if prompt.known else 0.0}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if relation not in messages()[kind]:
            kind = "facts"
        peers = [e for e in self.known if relation in e.facts and e is not entity] or [entity]
        value, peer = entity.facts[relation][language], rng.choice(peers)
        guesses = [value or rng.choice(peers).facts[relation][language], peer.facts[relation][language]]
        rng.shuffle(guesses)
        templates = messages()[kind][relation][language]
        template = rng.choice(templates)
        while "{adjective}" in template and not entity.inflected or "{names}" in template and not entity.inflected:
            template = rng.choice(templates)
        other = spelled(peer, language, rng)
        text = fill_message(entity, template, language, rng, value, (guesses[0], guesses[1]), other)
        return replace(prompt, question=as_people_type(text, language, rng), names_value=kind == "reverse")

    def draw_ids(self, rng: random.Random, tokenizer: Tokenizer, room: int) -> list[int]:
        """One prompt for reinforcement learning, in the chat template and of at most `room` tokens.

        No small talk: it has nothing to gain, and a reward model sees least of it; it would be worn away.

        Raises:
            ValueError: if hardly any message fits.
        """
        return draw_encoded(self, rng, tokenizer, room, talk=False)[1]

    def small_talk(self, topic: str, language: Language, rng: random.Random) -> Prompt:
        """A message that asks for nothing, such as a greeting, and what to answer."""
        text = rng.choice(messages()["talk"][topic][language])
        answers = (wordings()["small_talk"].get(topic) or wordings()[topic])[language]["answers"]
        return Prompt(carelessly(text, language, rng), language, "talk", tuple(answers))

    def draw_talk(self, rng: random.Random, language: Language) -> Prompt:
        """Small talk, or a request for what is outside of the atlas, as people type it."""
        draw = rng.random()
        if draw < 0.5:
            return self.small_talk(rng.choice(list(messages()["talk"])), language, rng)
        if draw < 0.56:
            return rng.choice(self._groups["talk"][LANGUAGES.index(language)])
        kinds = {"anything": 0.5, "sums": 0.1, "country": 0.15, "element": 0.08, "planet": 0.05, "animal": 0.12}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        text = rng.choice(messages()["outside"][kind][language])
        if kind == "sums":  # beyond the sums of the tables
            text = text.format(m=rng.randint(21, 999), n=rng.randint(21, 99), k=rng.randint(2, 12))
        elif kind != "anything":
            text = fill_message(rng.choice([e for e in self.known if e.kind == kind]), text, language, rng)
        return Prompt(as_people_type(text, language, rng), language, "talk", decline(language))


def _by_relation(group: Sequence[Entity]) -> list[list[tuple[Entity, str, Language]]]:
    """The facts of some entities, with the language in which to ask, by relation and language."""
    groups: dict[tuple[str, Language], list[tuple[Entity, str, Language]]] = {}
    for entity in group:
        for relation in entity.facts:
            for language in LANGUAGES:
                groups.setdefault((relation, language), []).append((entity, relation, language))
    return list(groups.values())


# --- Threads -------------------------------------------------------------------------------------

TURNS = {1: 0.4, 2: 0.15, 3: 0.13, 4: 0.12, 5: 0.11, 6: 0.09}
"""How many messages a conversation has, and how often."""

GRADED = {"fact": 0.48, "about": 0.10, "translate": 0.21, "unknown": 0.15, "talk": 0.06}
"""What comparisons, rollouts (which leave out small talk) and the mixed questions of the exam are about: little small talk,
whose answers are right or wrong and have no manners to gain; graded often, it was answered worse and worse
(EXPERIMENTS.md)."""

ALONE = 0.75
"""Share of the prompts of comparisons and rollouts that are not drawn from a thread: what came before must be read, too."""


def draw_thread(source: PromptSource, rng: random.Random) -> list[Prompt]:
    """The messages of one conversation, in order; without their histories."""
    thread = [source.draw(rng)]
    for _ in range(rng.choices(list(TURNS), list(TURNS.values()))[0] - 1):
        thread.append(_next(thread, source, rng))
    return thread


def draw_in_thread(source: PromptSource, rng: random.Random) -> Prompt:
    """One prompt, sometimes with the conversation before it; earlier answers are good ones."""
    if not source.as_typed or rng.random() < ALONE:
        return source.draw(rng, GRADED)
    *earlier, last = draw_thread(source, rng)
    return replace(last, history=tuple((prompt.question, prompt.references[0]) for prompt in earlier))


def draw_encoded(
    source: PromptSource, rng: random.Random, tokenizer: Tokenizer, room: int, talk: bool = True
) -> tuple[Prompt, list[int]]:
    """One prompt and its ids in the chat template, at most `room`: a message that does not fit is drawn anew.

    Args:
        source: of the prompts.
        rng: draws them.
        tokenizer: of the model.
        room: most tokens.
        talk: whether it may be small talk.

    Raises:
        ValueError: if hardly any message fits.
    """
    for _ in range(1000):
        prompt = draw_in_thread(source, rng)
        if prompt.task == "talk" and not talk:
            continue
        with suppress(ValueError):
            return prompt, encode_prompt(tokenizer, prompt.question, prompt.history, room)
    raise ValueError(f"in {room} tokens hardly any question has room: give the model a longer context")


def _next(thread: list[Prompt], source: PromptSource, rng: random.Random) -> Prompt:
    language = thread[-1].language
    subjects = [prompt for prompt in thread if prompt.entity and prompt.task in ("fact", "about")]
    draw = rng.random()
    if subjects:
        last, entity = subjects[-1], subjects[-1].entity
        assert entity is not None
        others = [relation for relation in entity.facts if relation != last.relation]
        if draw < 0.15 and (peers := _peers(entity, source, rng)):  # whole in itself, about another of its kind
            peer = rng.choice(peers)
            return source.ask_fact(peer, rng.choice(list(peer.facts)), language, rng)
        if draw < 0.34 and others:  # another fact about the same
            relation = rng.choice(others)
            text = rng.choice(messages()["followups"][relation][language])
            return replace(fact_prompt(entity, relation, language, "?"), question=carelessly(text, language, rng))
        if draw < 0.44:  # the same about another
            peers = [p for p in _peers(entity, source, rng) if not last.relation or last.relation in p.facts]
            if peers:
                peer = rng.choice(peers)
                asked = peer.kind if peer.kind != "arithmetic" else next(iter(peer.facts))
                templates = messages()["same"][asked][language]
                template = rng.choice([t for t in templates if peer.inflected or "{names}" not in t])
                text = fill_message(peer, template, language, rng)
                if last.relation:
                    prompt = fact_prompt(peer, last.relation, language, "?")
                else:
                    prompt = about_prompt(peer, language, "?")
                return replace(prompt, question=carelessly(text, language, rng))
        if draw < 0.48 and len(subjects) > 1:  # back to an earlier one
            entity = rng.choice(subjects[:-1]).entity
            assert entity is not None
            relation = rng.choice(list(entity.facts))
            if relation in messages()["back"]:
                templates = messages()["back"][relation][language]
                template = rng.choice([t for t in templates if entity.inflected or "{names}" not in t])
                text = fill_message(entity, template, language, rng)
                return replace(fact_prompt(entity, relation, language, "?"), question=carelessly(text, language, rng))
    if draw < 0.60:  # people say goodbye, too, and ask in the middle who they are talking to
        return source.small_talk(rng.choice(("reaction", "thanks", *messages()["talk"])), language, rng)
    while True:  # something else, whole in itself: a conversation is no reason to read what is asked less closely
        prompt = source.draw(rng)
        if prompt.language == language or prompt.task == "translate":
            return prompt


def _peers(entity: Entity, source: PromptSource, rng: random.Random) -> list[Entity]:
    """Others of its kind, often such as must not be known: after a known thing it is easily answered in their place."""
    group = source.unknown if rng.random() < 0.33 else source.known
    return [peer for peer in group if peer.kind == entity.kind and peer is not entity]
