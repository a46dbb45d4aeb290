"""The chat template: a conversation as ids, with special tokens that say who speaks.

    <|endoftext|><|user|> What is the capital of Peru?<|assistant|> The capital of Peru is Lima.<|end|>

The first token says, as in pretraining, that a new text begins; `<|end|>`, that the assistant has finished. Built step by
step in notebooks/08_fine_tuning.ipynb; `chat_template.jinja` says the same to other programs.
"""

from collections.abc import Sequence
from itertools import chain

from gptcore.corpus import with_leading_space
from gptcore.loss import IGNORED
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER, Tokenizer

Turn = tuple[str, str]
"""A question and its answer."""


def encode_prompt(
    tokenizer: Tokenizer, question: str, history: Sequence[Turn] = (), room: int | None = None
) -> list[int]:
    """Ids of a conversation up to the point where the assistant shall speak.

    Args:
        tokenizer: its special tokens mark who speaks; the texts cannot contain them.
        question: the user's last message.
        history: earlier turns.
        room: how many ids there may be; the oldest turns are left out until they fit. None for all turns.

    Raises:
        ValueError: if not even the question fits.
    """
    turns = [_encode_question(tokenizer, user) + encode_answer(tokenizer, assistant) for user, assistant in history]
    turns.append(_encode_question(tokenizer, question))
    while room is not None and len(turns) > 1 and 1 + sum(map(len, turns)) > room:
        del turns[0]
    ids = [tokenizer.special[END_OF_TEXT], *chain.from_iterable(turns)]
    if room is not None and len(ids) > room:
        raise ValueError(too_long(f"{len(ids)} tokens", room))
    return ids


def room_for_prompt(context_length: int, max_new_tokens: int) -> int:
    """How many tokens may stand before an answer of that many: half of the context at least."""
    return context_length - min(max_new_tokens, context_length // 2)


def too_long(length: str, room: int) -> str:
    """What to say of a message that cannot be read."""
    return f"the message has {length}, the model reads at most {room} tokens at a time: make it shorter"


def _encode_question(tokenizer: Tokenizer, question: str) -> list[int]:
    question_ids = tokenizer.encode(with_leading_space(question))
    return [tokenizer.special[USER], *question_ids, tokenizer.special[ASSISTANT]]


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Ids of an answer with its end token."""
    return [*tokenizer.encode(with_leading_space(answer)), tokenizer.special[END]]


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, without the space that the template puts first."""
    return tokenizer.decode(ids).strip()


def encode_conversation(tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and the target at each position.

    Returns:
        ids, and as many targets, which are the loss mask: the id itself where the assistant speaks (its end
        token included), `IGNORED` elsewhere. Whoever cuts the batches shifts them by one (`recipe.text_batches`).
    """
    ids = [tokenizer.special[END_OF_TEXT]]
    targets = [IGNORED]
    for question, answer in turns:
        prompt, reply = _encode_question(tokenizer, question), encode_answer(tokenizer, answer)
        ids += prompt + reply
        targets += [IGNORED] * len(prompt) + reply
    return ids, targets
