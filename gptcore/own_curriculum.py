"""A chain on data of the reader's own: texts, conversations, comparisons, prompts, and a base model to start from.

Any part may be left out, and the chain goes as far as the data reach: text gives a base model, conversations a fine-tuned
one, comparisons a reward model and a policy. Sizes and steps follow from the data (`own_sizes`). A tenth of everything is
held out for the exams (`own_exam`); they have no gold score, but a second judge, trained on other votes, which shows when
the policy has learned to please the first one only. Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gptcore.ballots import Ballot
from gptcore.base_model import BaseModel
from gptcore.chat_template import Turn, encode_answer, encode_conversation, encode_prompt, room_for_prompt
from gptcore.corpus import documents_as_tokens
from gptcore.curriculum import AtlasCurriculum, Batches, Curriculum, Models, Tick
from gptcore.decoder import Decoder
from gptcore.finetuning import pack
from gptcore.lora import check_rank
from gptcore.own_data import Comparison, Conversation, Question
from gptcore.own_exam import HeldOut, own_scores
from gptcore.own_sizes import SIZES, Amounts, Size, Wishes, expected_seconds, own_recipe, vocabulary_size
from gptcore.own_sources import PIECE, Divided, Sources, questions_of
from gptcore.own_votes import prompt_of
from gptcore.pieces import again, pieces_of
from gptcore.questions import Part
from gptcore.recipe import Recipe, text_batches
from gptcore.runs import SETTINGS, SOURCES
from gptcore.tokenizer import END_OF_TEXT, Tokenizer
from gptcore.words import counted, timed

Method = Literal["ppo", "grpo", "dpo"]


@dataclass(frozen=True)
class OwnPrompts:
    """Draws from a list of questions."""

    questions: Sequence[Question]
    """What is asked."""

    def draw_ids(self, rng: random.Random, tokenizer: Tokenizer, room: int) -> list[int]:
        """One of them in the chat template; of a long conversation the last turns.

        Raises:
            ValueError: if it does not fit.
        """
        question = rng.choice(self.questions)
        return encode_prompt(tokenizer, question.text, question.history, room)


@dataclass
class OwnCurriculum:
    """Data of the reader's own, read and checked at once."""

    sources: Sources
    """Where they lie."""
    method: Method = "ppo"
    """How the policy learns from the votes."""
    size: Size = "minutes"
    """How large the model may be, and how long it may take."""
    preset: Literal["llama", "gpt2"] = "llama"
    """Architecture, where no base model has its own."""
    wishes: Wishes = field(default_factory=Wishes)
    """Numbers that the reader has set."""
    skip_bad: bool = False
    """Whether to go on without records that cannot be used."""

    def __post_init__(self) -> None:
        read = Divided(self.sources, self.skip_bad)
        self._seen, self._held_out, self._passed_over = read.seen, read.held_out, read.passed_over
        self._voters = read.voters
        base = self.sources.base
        self._base = None if base is None else BaseModel(base, chats=self.sources.conversations is None)
        if self.wishes.lora is not None:
            if self._base is None:
                raise ValueError("LoRA adapts a model that knows something already: give --base FOLDER with --lora")
            check_rank(self._base.model, self.wishes.lora)

    @property
    def stages(self) -> tuple[str, ...]:
        """As far as the data reach."""
        found = ["base"]
        if self._seen.conversations or self._seen.votes:
            found.append("sft")
        if self._seen.votes:
            found += ["reward", self.method, *["second_reward"] * bool(self._seen.second_votes)]
        return tuple(found)

    @property
    def exams(self) -> int:
        """One for each model."""
        return len(self.stages)

    def identity(self) -> dict[str, Any]:
        """Paths and hashes, and what the reader has set."""
        chosen = {"size": self.size, "method": self.method, "skip_bad": self.skip_bad}
        return {**self.sources.identity(), **chosen, **asdict(self.wishes)}

    @property
    def recipe(self) -> Recipe:
        """That of `own_recipe`."""
        return self._recipe  # a cached property is no property to pyright

    @cached_property
    def _recipe(self) -> Recipe:
        text = sum(len(piece.encode()) for piece in self._seen.text)
        talk = sum(len(said.encode()) for c in self._seen.conversations for turn in c.turns for said in turn)
        shape = replace(SIZES[self.size].decoder, preset=self.preset)
        wishes, published = self.wishes, False
        if self._base is not None:
            shape = self._base.shape(wishes.context, shape.context_length)
            wishes, published = replace(wishes, context=None), self._base.published
        amounts = Amounts(text, talk, len(questions_of(self._seen.votes)))
        return own_recipe(amounts, self.size, wishes, shape, published)

    def learn_tokenizer(self, _seed: int, after_merge: Tick) -> Tokenizer:
        """That of the base model, or one learned from text and conversations."""
        if self._base is not None:
            return self._base.tokenizer
        texts = [*self._seen.text, *(said for c in self._seen.conversations for turn in c.turns for said in turn)]
        size = vocabulary_size(sum(len(text.encode()) for text in texts), self.size, self.wishes)
        return Tokenizer.train((f" {text}" for text in texts), size, after_merge)

    def start(self) -> Decoder | None:
        """The base model, if one is given."""
        return None if self._base is None else self._base.shortened(self.recipe.decoder.context_length)

    def pretraining_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Rows cut anywhere; at other places in each pass."""
        tokens = documents_as_tokens(tokenizer, self._seen.text, 1 << 62)
        return text_batches((tokens, tokens), self.recipe, seed)

    def finetuning_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Conversations, and pieces of the text between them."""
        return self._mixed(tokenizer, self.recipe, self.recipe.finetuning.steps, seed)

    def replay(self, tokenizer: Tokenizer, seed: int) -> Batches | None:
        """Conversations and text; None where there is neither: a model that chats already, and votes."""
        if not self._seen.conversations and not self._seen.text:
            return None
        rows = replace(self.recipe, batch_size=max(1, self.recipe.batch_size // 4))
        return self._mixed(tokenizer, rows, 200, seed + 2)

    def _mixed(self, tokenizer: Tokenizer, recipe: Recipe, steps: int, seed: int) -> Batches:
        talk = self._fitting(tokenizer, self._seen.conversations)
        texts = [piece for text in self._seen.text for piece in pieces_of(text, PIECE // 2)]
        count = (steps * recipe.batch_size + 1) * recipe.decoder.context_length + 1
        stream = pack(
            tokenizer, again(talk, seed), again(texts, seed + 1), recipe.replayed if talk else 1.0, count, seed
        )
        return text_batches(stream, recipe, seed, tokenizer.special[END_OF_TEXT])

    def _fitting(self, tokenizer: Tokenizer, talk: Sequence[Conversation]) -> list[Sequence[Turn]]:
        """Of each conversation the turns that fit into the context; nothing of those whose first does not."""
        context, found = self.recipe.decoder.context_length, []
        for conversation in talk:
            turns = list(conversation.turns)
            while turns and len(encode_conversation(tokenizer, turns)[0]) > context:
                turns.pop()
            if turns:
                found.append(turns)
        return found

    def ballots(self, judge: str, _sft: Decoder, tokenizer: Tokenizer, _seed: int) -> Iterator[Ballot]:
        """The answers to each question, and the votes on them."""
        votes = self._seen.votes if judge == "reward" else self._seen.second_votes
        return iter(self._as_ballots(votes, tokenizer))

    def _as_ballots(self, votes: Sequence[Comparison], tokenizer: Tokenizer) -> list[Ballot]:
        context, found = self.recipe.decoder.context_length, []
        by_question: dict[Question, list[Comparison]] = {}
        for vote in votes:
            by_question.setdefault(vote.question, []).append(vote)
        for question, compared in by_question.items():
            texts = list(dict.fromkeys(text for vote in compared for text in (vote.chosen, vote.rejected)))
            answers = [encode_answer(tokenizer, text) for text in texts]
            prompt = self._encoded(tokenizer, question, context - max(map(len, answers)))
            if prompt is not None:
                pairs = [(texts.index(vote.chosen), texts.index(vote.rejected)) for vote in compared]
                found.append(Ballot(prompt_of(question), prompt, answers, pairs))
        return found

    def _encoded(self, tokenizer: Tokenizer, question: Question, room: int) -> list[int] | None:
        """A question in the chat template; None if it does not fit."""
        with suppress(ValueError):
            return encode_prompt(tokenizer, question.text, question.history, room)
        return None

    def _askable(self, tokenizer: Tokenizer, questions: Sequence[Question]) -> dict[Question, list[int]]:
        room = room_for_prompt(self.recipe.decoder.context_length, self.recipe.ppo.max_new_tokens)
        encoded = {question: self._encoded(tokenizer, question, room) for question in questions}
        return {question: ids for question, ids in encoded.items() if ids is not None}

    def prompts(self, tokenizer: Tokenizer) -> OwnPrompts:
        """The prompts given, or the questions of the comparisons: those that fit."""
        return OwnPrompts(list(self._askable(tokenizer, self._seen.prompts)))

    def _counts(self, tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
        """Of what must fit into the context: its name, how many fit, and how many there are."""
        votes = [*self._seen.votes, *self._seen.second_votes]
        fitting = self._fitting(tokenizer, self._seen.conversations)
        asked = self._askable(tokenizer, self._seen.prompts)
        return [
            ("conversation", len(fitting), len(self._seen.conversations)),
            ("question with votes", len(self._as_ballots(votes, tokenizer)), len(questions_of(votes))),
            ("prompt", len(asked), len(self._seen.prompts)),
        ]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a text shorter than a row, and a context into which nothing fits."""
        context = self.recipe.decoder.context_length
        if self.recipe.pretraining.steps:
            row = documents_as_tokens(tokenizer, self._seen.text, context + 1)
            text_batches((row, row), self.recipe, 0)
        for name, fitting, all_of_them in self._counts(tokenizer):
            if all_of_them and not fitting:
                raise ValueError(f"no {name} fits into {counted(context, 'token')}: give a larger --context")
        for votes in filter(None, (self._seen.votes, self._seen.second_votes)):
            if len(self._as_ballots(votes, tokenizer)) < 2:  # the rewards of one have no scale
                raise ValueError(
                    f"each judge needs votes on at least 2 questions that fit into {counted(context, 'token')}: "
                    "give more --comparisons or a larger --context"
                )

    def told(self, tokenizer: Tokenizer) -> str:
        """What there is, what is left out, and how long it will take."""
        recipe, shape = self.recipe, self.recipe.decoder
        lines, more = self._passed_over[:10], len(self._passed_over) - 10
        if more > 0:
            lines.append(f"and {more:,} more")
        if self._passed_over:
            lines.append(f"left out:      {counted(len(self._passed_over), 'record')}")
        lines += [
            f"too long:      {all_of_them - fitting:,} of {counted(all_of_them, name)}"
            for name, fitting, all_of_them in self._counts(tokenizer)
            if fitting < all_of_them
        ]

        def amounts(text: str, amount: int, data: Any) -> str:
            found = (amount, text), (len(data.conversations), "conversation"), (len(data.votes), "comparison")
            return ", ".join(counted(*each) for each in found)

        characters, pieces = sum(map(len, self._seen.text)), len(self._held_out.text)
        second = f"{len(self._seen.second_votes):,} for a second judge"
        lines.append(f"to learn from: {amounts('character of text', characters, self._seen)}, {second}")
        lines.append(f"held out:      {amounts('piece of text', pieces, self._held_out)}")
        lines += self._voters
        lines.append(
            f"model:         {tokenizer.vocabulary_size:,} tokens, {counted(shape.layers, 'layer')} {shape.width} wide, "
            f"context of {shape.context_length}"
        )
        if recipe.lora is not None:
            lines.append(f"learning:      adapters of rank {recipe.lora}, beside weights that stay as they are")
        steps = (
            f"{counted(recipe.pretraining.steps, 'step of pretraining')}, {recipe.finetuning.steps:,} of fine-tuning"
        )
        if "reward" in self.stages:
            iterations = counted(recipe.ppo.iterations, f"iteration of {self.method}")
            steps += f", {iterations if self.method != 'dpo' else 'dpo'}"
        lines.append(f"training:      {steps}")
        lines.append(f"about {timed(expected_seconds(recipe, tokenizer.vocabulary_size, self.stages))} on this machine")
        return "\n".join(lines)

    def score(self, tokenizer: Tokenizer, models: Models, seed: int, _part: Part, tick: Tick) -> dict[str, Any]:
        """What can be said without a gold score, on what was held out; there is one part only."""
        held_out = HeldOut(
            self._held_out.text,
            self._fitting(tokenizer, self._held_out.conversations),
            self._as_ballots(self._held_out.votes, tokenizer),
            list(self._askable(tokenizer, self._held_out.prompts).values()),
        )
        return own_scores(held_out, tokenizer, models, seed, self.recipe.ppo.max_new_tokens, tick)


def curriculum_of(begun: Mapping[str, Any]) -> Curriculum:
    """What a run learns from.

    Args:
        begun: the options of `train`, or the report of a run.

    Raises:
        FileNotFoundError: if data are not where they are said to be.
        ValueError: if they cannot be used, or something is set that the atlas has no use for.
    """
    sources = {name: Path(begun[name]) for name in SOURCES if begun.get(name) is not None}
    wishes = Wishes(**{name: begun.get(name) for name in (*SETTINGS, "accumulate")})
    method, size = begun.get("method") or "ppo", begun.get("size") or "minutes"
    if sources:
        return OwnCurriculum(Sources(**sources), method, size, begun["preset"], wishes, bool(begun.get("skip_bad")))
    if wishes != Wishes() or (method, size) != ("ppo", "minutes") or begun.get("skip_bad"):
        raise ValueError("such options are for data of your own: give --text or --base, too")
    recipe = Recipe()
    return AtlasCurriculum(replace(recipe, decoder=replace(recipe.decoder, preset=begun["preset"])))
