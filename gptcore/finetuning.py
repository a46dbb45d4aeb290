"""Supervised fine-tuning: from a model that continues texts to one that answers.

Conversations are written in a template of special tokens, and the loss counts only what the
assistant says, its end token included: the model shall learn to answer and to stop, not to ask.

    <|endoftext|><|user|> What is the capital of Peru?<|assistant|> The capital of Peru is Lima.<|end|>

The first token says, as in pretraining, that a new text begins.

The demonstrations are of mixed quality on purpose, like those of real people: plain, curt,
rambling, polite, sometimes in the wrong language. Reinforcement learning has something to improve.
Paper: InstructGPT (arXiv 2203.02155), section 3.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptcore.corpus import (
    LANGUAGES,
    Entity,
    Language,
    Prompt,
    Wordings,
    about_prompt,
    fact_prompt,
    other_wordings,
    question_wordings,
    split_entities,
    talk_prompts,
    translate_prompt,
    with_leading_space,
    wordings,
)
from gptcore.decoder import Decoder
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER, Tokenizer
from gptcore.training import IGNORED

Turn = tuple[str, str]
"""A question and its answer."""

# --- The template --------------------------------------------------------------------------------


def encode_prompt(tokenizer: Tokenizer, question: str, history: Sequence[Turn] = ()) -> list[int]:
    """Ids of a conversation up to the point where the assistant shall speak.

    Args:
        tokenizer: its special tokens mark who speaks; the texts cannot contain them.
        question: the user's last message.
        history: earlier turns.
    """
    ids = [tokenizer.special[END_OF_TEXT]]
    for user, assistant in history:
        ids += _encode_question(tokenizer, user) + encode_answer(tokenizer, assistant)
    return ids + _encode_question(tokenizer, question)


def _encode_question(tokenizer: Tokenizer, question: str) -> list[int]:
    question_ids = tokenizer.encode(with_leading_space(question))
    return [tokenizer.special[USER], *question_ids, tokenizer.special[ASSISTANT]]


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Ids of an answer with its end token."""
    return [*tokenizer.encode(with_leading_space(answer)), tokenizer.special[END]]


def encode_conversation(tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and the target at each position.

    Returns:
        ids, and as many targets: the id itself where the assistant speaks (its end token
        included), `IGNORED` elsewhere. Shifting by one is left to who cuts the batches.
    """
    ids = [tokenizer.special[END_OF_TEXT]]
    targets = [IGNORED]
    for question, answer in turns:
        prompt, reply = _encode_question(tokenizer, question), encode_answer(tokenizer, answer)
        ids += prompt + reply
        targets += [IGNORED] * len(prompt) + reply
    return ids, targets


def pack(
    tokenizer: Tokenizer,
    conversations: Iterator[Sequence[Turn]],
    documents: Iterator[str],
    replayed: float,
    count: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Conversations, with pretraining documents between them, as one long stream.

    Fine-tuning suppresses names that it never sees as outputs; documents that hold them, replayed
    right beside the conversations, keep them alive.

    Args:
        tokenizer: of the model.
        conversations: an endless source.
        documents: another one.
        replayed: the chance that the next piece is a document, between 0 and 1.
        count: how many ids to return.
        seed: of the order.

    Returns:
        ids `(count,)` and targets `(count,)`; every token of a document is trained.
    """
    chance = random.Random(f"pack {seed}")
    ids: list[int] = []
    targets: list[int] = []
    while len(ids) < count:
        if chance.random() < replayed:
            document = [tokenizer.special[END_OF_TEXT], *tokenizer.encode(with_leading_space(next(documents)))]
            ids += document
            targets += document
        else:
            more_ids, more_targets = encode_conversation(tokenizer, next(conversations))
            ids += more_ids
            targets += more_targets
    return torch.tensor(ids[:count], device="cpu"), torch.tensor(targets[:count], device="cpu")


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, without the space that the template puts first."""
    return tokenizer.decode(ids).strip()


@torch.no_grad()
def introduce_chat_tokens(model: Decoder, tokenizer: Tokenizer) -> None:
    """Start the template's tokens, which pretraining never showed, from the end-of-text token.

    Like it they stand between texts, so that fine-tuning has little left to learn about them. From
    random numbers they would need large learning rates, at which held-out names are forgotten.
    """
    for token in (USER, ASSISTANT, END):
        for weight in (model.embedding.weight, model.head.weight):
            weight[tokenizer.special[token]] = weight[tokenizer.special[END_OF_TEXT]]


# --- Demonstrations ------------------------------------------------------------------------------

STYLES = {"plain": 0.43, "curt": 0.10, "rambling": 0.29, "polite": 0.16, "wrong language": 0.02}
"""How the writers of the demonstrations answer, and how often."""

TASKS = {"fact": 0.48, "about": 0.10, "translate": 0.21, "unknown": 0.15, "talk": 0.06}
"""What the demonstrations are about, and how often."""


def write_answer(prompt: Prompt, style: str, chance: random.Random) -> str:
    """Answer as a writer of that style would; talk has no style."""
    if prompt.entity is None:
        return chance.choice(prompt.references)
    answer = prompt.references[0] if prompt.known else chance.choice(prompt.references)
    styled = prompt.known and prompt.task != "translate"  # others are at most long-winded
    if style == "rambling" or (style == "polite" and styled):
        return chance.choice(wordings()["styles"][prompt.language][style]).format(answer=answer)
    if style == "curt" and styled:
        # A bare value; of an account the first sentence.
        if prompt.relation:
            return prompt.entity.facts[prompt.relation][prompt.language]
        return prompt.entity.state(next(iter(prompt.entity.facts)), prompt.language)
    if style == "wrong language" and styled:
        other = next(language for language in LANGUAGES if language != prompt.language)
        relations = [prompt.relation] if prompt.relation else list(prompt.entity.facts)[:2]
        return " ".join(prompt.entity.state(relation, other) for relation in relations)
    return answer


class PromptSource:
    """Draws prompts of all tasks about the entities of one part of the division.

    Args:
        part: `train`, `validation` or `test`; with it go `unknown_train` and so on.
        which: the wordings of the questions; training sees only those of `train`.
    """

    def __init__(self, part: str = "train", which: Wordings = "train") -> None:
        # Of each task several groups, so that the few planets get their share beside the many countries.
        # A group holds entities and what is asked of them; the wording is chosen last.
        self.which: Wordings = which
        known, unknown = split_entities()[part], split_entities()[f"unknown_{part}"]
        named = [entity for entity in known if entity.kind != "arithmetic"]
        self._groups: dict[str, list[list[Any]]] = {
            "fact": _by_relation(known),
            "about": [[(entity, language) for entity in named] for language in LANGUAGES],
            "translate": _by_relation(known),
            "unknown": [*_by_relation(unknown), [(entity, language) for entity in unknown for language in LANGUAGES]],
            "talk": [talk_prompts(language, which) for language in LANGUAGES],
        }

    def draw(self, chance: random.Random) -> Prompt:
        """One prompt of a random task."""
        task = chance.choices(list(TASKS), list(TASKS.values()))[0]
        groups = self._groups[task]
        # Between "every relation alike" and "every fact alike".
        group = chance.choices(groups, [len(group) ** 0.5 for group in groups])[0]
        drawn = chance.choice(group)
        if isinstance(drawn, Prompt):
            return drawn
        entity, *relation, language = drawn
        if task == "translate":
            return translate_prompt(
                entity,
                *relation,
                language,
                chance.choice(other_wordings("translate", f"to_{language}", which=self.which)),
            )
        if relation:
            return fact_prompt(
                entity, *relation, language, chance.choice(question_wordings(*relation, language, self.which))
            )
        return about_prompt(
            entity, language, chance.choice(other_wordings("about", entity.kind, language, which=self.which))
        )


def _by_relation(group: Sequence[Entity]) -> list[list[tuple[Entity, str, Language]]]:
    """The facts of some entities, with the language in which to ask, by relation and language."""
    groups: dict[tuple[str, Language], list[tuple[Entity, str, Language]]] = {}
    for entity in group:
        for relation in entity.facts:
            for language in LANGUAGES:
                groups.setdefault((relation, language), []).append((entity, relation, language))
    return list(groups.values())


def demonstrations(seed: int) -> Iterator[list[Turn]]:
    """Endless conversations of one to three turns, written in the mixed styles.

    Args:
        seed: equal seeds, equal conversations.
    """
    chance = random.Random(f"demonstrations {seed}")
    source = PromptSource()
    while True:
        turns = []
        for _ in range(chance.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]):
            prompt = source.draw(chance)
            style = chance.choices(list(STYLES), list(STYLES.values()))[0]
            turns.append((as_typed(prompt.question, chance), write_answer(prompt, style, chance)))
        yield turns


def as_typed(question: str, chance: random.Random) -> str:
    """The question as people type it: every fourth Chinese one ends in an ASCII mark, or none."""
    if question.endswith("？") and chance.random() < 0.25:
        return question[:-1] + chance.choice(("?", ""))
    return question
