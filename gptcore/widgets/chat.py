"""Chat window: a conversation with any stages of the chain side by side, answers as they are made.

Under each answer stands what the reward model gives for it, and each piece of it tells how likely it
was and what else might have stood there.
"""

import codecs
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from gptcore.chat import Conversation
from gptcore.chat_template import encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder
from gptcore.generation import GREEDY, SamplingConfig, next_token_probabilities
from gptcore.reward import RewardModel, rewards_of
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for
from gptcore.widgets._view import Models, View, picture_of_lines, script, token_labels


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Tokens as pieces of text, with the places of the tokens that make each.

    A character that is divided over several tokens makes them one piece; bytes that never become a
    character end as the sign U+FFFD.
    """
    pieces: list[tuple[str, list[int]]] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, waiting = "", []
    for place, token in enumerate(ids):
        waiting.append(place)
        text += decoder.decode(tokenizer.decode_bytes([token]), final=place + 1 == len(ids))
        unfinished, _ = decoder.getstate()
        if (text and not unfinished) or place + 1 == len(ids):
            pieces.append((text, waiting))
            text, waiting = "", []
    return pieces


@torch.no_grad()
def answer_probabilities(
    model: Decoder, prompt_ids: Sequence[int], answer_ids: Sequence[int], count: int = 5
) -> list[tuple[float, list[tuple[int, float]]]]:
    """How likely each token of an answer was, at temperature 1, and the most likely tokens in its place.

    Returns:
        for each token its probability, and `count` pairs of id and probability.
    """
    if not answer_ids:
        return []
    model.eval()
    tokens = torch.tensor([[*prompt_ids, *answer_ids]], device=model.device)
    logits = model(tokens)[0, len(prompt_ids) - 1 : -1]  # (answer, V)
    probabilities = next_token_probabilities(logits, SamplingConfig()).cpu()
    top = probabilities.topk(min(count, probabilities.shape[1]))
    chosen = probabilities.gather(1, torch.tensor(answer_ids, device="cpu")[:, None]).squeeze(1)
    return [
        (value, list(zip(ids, values, strict=True)))
        for value, ids, values in zip(chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def annotated(
    model: Decoder, tokenizer: Tokenizer, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """An answer piece by piece: its `text`, its probability `p`, and what `else` might have stood at its start."""
    details = answer_probabilities(model, prompt_ids, answer_ids)
    pieces = []
    for text, places in whole_characters(tokenizer, answer_ids):
        together = 1.0
        for place in places:
            together *= details[place][0]
        others = [(token, round(p, 4)) for token, p in details[places[0]][1]]
        labels = token_labels(tokenizer, [token for token, _ in others])
        pieces.append(
            {
                "text": text,
                "p": round(together, 5),
                "else": [(label, p) for label, (_, p) in zip(labels, others, strict=True)],
            }
        )
    return pieces


class ChatWindow(View):
    """Talk to one or more models at a time.

    Args:
        model: a decoder of the reader's own, or several by name; None for the stages of the chain.
        tokenizer: of the reader's own decoders.
        reward_model: grades the answers; by default the chain's, for the chain's own stages.
        plain: names of models that know no chat template and go on with the text instead.
        stages: which models answer at first; by default all.
        opening: messages that are sent at once, so that there is something to look at.
        seed: of the draws.
    """

    _esm = script("chat")
    title = "Chat"

    def __init__(
        self,
        model: Decoder | dict[str, Decoder] | None = None,
        tokenizer: Tokenizer | None = None,
        reward_model: RewardModel | None = None,
        plain: Sequence[str] = ("base",),
        stages: Sequence[str] | None = None,
        opening: Sequence[str] = ("What is the capital of Peru?",),
        seed: int = 0,
    ) -> None:
        self.models = Models(model, tokenizer)
        self.reward_model, self._grades_for = reward_model, None
        if reward_model is None and model is None:
            self.reward_model, known = load_stage("reward")
            self._grades_for = known.fingerprint
        self.plain, self.seed = plain, seed
        self.turns: list[dict[str, Any]] = []
        self.conversations: dict[str, Conversation] = {}
        self.answering = list(stages or self.models.names)
        super().__init__()
        self.do_forget()
        for message in opening:
            self.do_say(message, self.answering, 0.0)

    def do_forget(self) -> None:
        """Begin a new conversation."""
        self.turns = []
        self.conversations = {
            name: Conversation(*self.models[name], plain=name in self.plain, generator=generator_for(self.seed, number))
            for number, name in enumerate(self.models.names)
        }
        self._show(0.0)

    def do_say(self, message: str, stages: list[str], temperature: float) -> None:
        """Let some models answer, one after the other, token by token.

        Raises:
            ValueError: if the message is empty or too long, or no model shall answer.
        """
        if not stages:
            raise ValueError("nobody is there to answer: choose at least one model")
        for stage in stages:
            self.conversations[stage].prompt(message)  # raises before anything is shown
        turn: dict[str, Any] = {"question": message.strip(), "answers": {}}
        self.turns.append(turn)
        self.answering = stages
        try:
            for stage in stages:
                turn["answers"][stage] = self._answer(message, stage, temperature)
        finally:  # what was said before a failure, or before the reader's interrupt, stays
            self._show(temperature)

    def _answer(self, message: str, stage: str, temperature: float) -> dict[str, Any]:
        conversation = self.conversations[stage]
        # The slider's lowest place takes the most likely token.
        conversation.sampling = SamplingConfig(temperature=temperature) if temperature else GREEDY
        if conversation.plain:
            conversation.sampling = replace(conversation.sampling, max_new_tokens=32)  # it would go on and on
        model, tokenizer = self.models[stage]
        prompt_ids = conversation.prompt(message)
        start = time.perf_counter()
        self.send({"stage": stage, "begin": True, "question": message.strip()})
        for piece in conversation.say(message):
            self.send({"stage": stage, "piece": piece})
        seconds = time.perf_counter() - start
        answer_ids = conversation.answer_ids
        reward = None
        # A stage of another run may have another tokenizer; its tokens would mean nothing to the reward model.
        if self.reward_model is not None and self._grades_for in (None, tokenizer.fingerprint):
            judged = [*(encode_prompt(tokenizer, message) if conversation.plain else prompt_ids), *answer_ids]
            judged = judged[: self.reward_model.config.context_length - 1]
            reward = round(rewards_of(self.reward_model, [[*judged, tokenizer.special[END]]]).item(), 2)
        return {
            "pieces": annotated(model, tokenizer, prompt_ids, answer_ids),
            "reward": reward,
            "speed": round(len(answer_ids) / max(seconds, 1e-9)),
        }

    def _show(self, temperature: float) -> None:
        self.data = {
            "stages": self.models.names,
            "answering": self.answering,
            "turns": list(self.turns),
            "temperature": temperature,
        }

    def static_picture(self) -> bytes:
        """What was said so far."""
        lines = []
        for turn in self.turns:
            lines += ["", f"you: {turn['question']}"]
            for stage, answer in turn["answers"].items():
                reward = "" if answer["reward"] is None else f"   (reward {answer['reward']:+.2f})"
                lines.append(f"{stage}: {''.join(piece['text'] for piece in answer['pieces']).strip()}{reward}")
        return picture_of_lines("Chat window: type a message, and the chosen models answer side by side", lines)
