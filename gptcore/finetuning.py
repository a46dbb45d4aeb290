"""Supervised fine-tuning: from a model that continues texts to one that answers.

Conversations are written in the chat template, and the loss counts only what the assistant says, its end token included:
the model shall learn to answer and to stop, not to ask.

The demonstrations are of mixed quality on purpose, like those of real people: plain, curt,
rambling, polite, sometimes in the wrong language. Reinforcement learning has something to improve.
Built step by step in notebooks/08_fine_tuning.ipynb. Paper: InstructGPT (arXiv 2203.02155), section 3.
"""

import random
from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gptcore.atlas import Language, wordings
from gptcore.chat_template import Turn, encode_conversation
from gptcore.corpus import as_tensor, encode_document
from gptcore.decoder import Decoder
from gptcore.prompts import PromptSource, draw_thread
from gptcore.questions import Prompt
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER, Tokenizer

# --- Packing -------------------------------------------------------------------------------------


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
        documents: an endless source of pretraining text.
        replayed: probability that the next piece is a document.
        count: how many ids to return.
        seed: of the order.

    Returns:
        ids `(count,)` and targets `(count,)`; every token of a document is trained.
    """
    rng = random.Random(f"pack {seed}")
    ids, targets = array("q"), array("q")  # eight bytes a number; in a list each takes forty
    while len(ids) < count:
        if rng.random() < replayed:
            document = encode_document(tokenizer, next(documents))
            ids.extend(document)
            targets.extend(document)
        else:
            more_ids, more_targets = encode_conversation(tokenizer, next(conversations))
            ids.extend(more_ids)
            targets.extend(more_targets)
    return as_tensor(ids[:count]), as_tensor(targets[:count])


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


def write_answer(prompt: Prompt, style: str, rng: random.Random) -> str:
    """Answer as a writer of that style would; talk has no style."""
    if prompt.entity is None:
        return rng.choice(prompt.references)
    answer = prompt.references[0] if prompt.known else rng.choice(prompt.references)
    styled = prompt.known and prompt.task != "translate"  # others are at most long-winded
    if style == "rambling" or (style == "polite" and styled):
        return rng.choice(wordings()["styles"][prompt.language][style]).format(answer=answer)
    if style == "curt" and styled:
        # A bare value; of an account the first sentence.
        if prompt.names_value:
            return prompt.entity.names[prompt.language]
        if prompt.relation:
            return prompt.entity.facts[prompt.relation][prompt.language]
        return prompt.entity.sentence(next(iter(prompt.entity.facts)), prompt.language)
    if style == "wrong language" and styled:
        other: Language = "zh" if prompt.language == "en" else "en"
        relations = [prompt.relation] if prompt.relation else list(prompt.entity.facts)[:2]
        return " ".join(prompt.entity.sentence(relation, other) for relation in relations)
    return answer


def demonstrations(seed: int) -> Iterator[list[Turn]]:
    """Endless conversations of one to six turns, written in the mixed styles.

    Args:
        seed: equal seeds, equal conversations.
    """
    rng = random.Random(f"demonstrations {seed}")
    source = PromptSource()
    while True:
        turns = []
        for prompt in draw_thread(source, rng):
            style = rng.choices(list(STYLES), list(STYLES.values()))[0]
            turns.append((prompt.question, write_answer(prompt, style, rng)))
        yield turns
