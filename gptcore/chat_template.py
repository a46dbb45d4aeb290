"""The chat template: a conversation as ids, with special tokens that say who speaks.

    <|endoftext|><|user|> What is the capital of Peru?<|assistant|> The capital of Peru is Lima.<|end|>

The first token says, as in pretraining, that a new text begins; `<|end|>`, that the assistant has finished. Built step by
step in notebooks/08_fine_tuning.ipynb; `chat_template.jinja` says the same to other programs.
"""

from collections.abc import Sequence

from gptcore.corpus import with_leading_space
from gptcore.loss import IGNORED
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER, Tokenizer

Turn = tuple[str, str]
"""A question and its answer."""


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


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, without the space that the template puts first."""
    return tokenizer.decode(ids).strip()


def encode_conversation(tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and the target at each position.

    Returns:
        ids, and as many targets, which are the loss mask: the id itself where the assistant speaks (its end
        token included), `IGNORED` elsewhere. `training.sample_windows` shifts them by one.
    """
    ids = [tokenizer.special[END_OF_TEXT]]
    targets = [IGNORED]
    for question, answer in turns:
        prompt, reply = _encode_question(tokenizer, question), encode_answer(tokenizer, answer)
        ids += prompt + reply
        targets += [IGNORED] * len(prompt) + reply
    return ids, targets
