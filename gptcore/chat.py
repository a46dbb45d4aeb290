"""Chat: a conversation of many turns with any of the chain's decoders.

The whole conversation is read anew for each answer; when it no longer fits in the context, the
oldest turns are forgotten. Built step by step in notebooks/11_chat.ipynb.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from gptcore.chat_template import Turn, encode_prompt, room_for_prompt, too_long
from gptcore.corpus import encode_document
from gptcore.decoder import Decoder
from gptcore.generation import GREEDY, SamplingConfig, stream
from gptcore.tokenizer import END, END_OF_TEXT, Tokenizer


@dataclass
class Conversation:
    """A conversation and the model that answers in it."""

    model: Decoder
    """Any decoder of the chain."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    sampling: SamplingConfig = GREEDY
    """How tokens are chosen."""
    plain: bool = False
    """True for a base model, which knows no template: it continues the text instead of answering."""
    turns: list[Turn] = field(default_factory=list)
    """What was said so far."""
    generator: torch.Generator | None = None
    """Source of randomness."""
    answer_ids: list[int] = field(default_factory=list)
    """The tokens of the last answer, without the one that ended it."""

    def prompt(self, message: str) -> list[int]:
        """Ids that the model reads before it answers; as many of the last turns as leave room for an answer.

        Raises:
            ValueError: if the message is empty, or alone too long for the context.
        """
        if not message.strip():
            raise ValueError("the message is empty: type a question")
        message, context_length = message.strip(), self.model.config.context_length
        room = context_length - 1 if self.plain else room_for_prompt(context_length, self.sampling.max_new_tokens)
        # Not even cut into the longest tokens there are would it fit: that is known without cutting it.
        if len(message) > room * max(map(len, self.tokenizer.token_bytes)):
            raise ValueError(too_long(f"{len(message):,} characters", room))
        if self.plain:
            ids = encode_document(self.tokenizer, message)
            if len(ids) > room:
                raise ValueError(too_long(f"{len(ids)} tokens", room))
            return ids
        return encode_prompt(self.tokenizer, message, self.turns, room)

    def say(self, message: str) -> Iterator[str]:
        """Yield the answer piece by piece, as it is made; afterwards it is part of the conversation.

        Raises:
            ValueError: as `prompt`.
        """
        stop = self.tokenizer.special[END_OF_TEXT if self.plain else END]
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character may be split over tokens
        answer = ""
        self.answer_ids = []
        for token in stream(self.model, self.prompt(message), self.sampling, stop, self.generator):
            self.answer_ids.append(token)
            piece = decoder.decode(self.tokenizer.decode_bytes([token]))
            piece = piece if answer else piece.lstrip()
            answer += piece
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest
        self.turns.append((message.strip(), answer + rest))
