"""What the stages of a chain learn from: the atlas here, data of the reader's own in `own_curriculum`.

`chain` says in which order the stages come, how a run is stopped and goes on; a curriculum gives each of them its texts,
conversations, votes and prompts, and the exams at the end. No chapter is about it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gptcore.ballots import Ballot, collect_ballots
from gptcore.checkpoint import STAGES
from gptcore.corpus import documents_as_tokens, pretraining_documents
from gptcore.decoder import Decoder
from gptcore.exam import score_chain
from gptcore.policy_training import Prompts
from gptcore.prompts import PromptSource
from gptcore.questions import Part
from gptcore.recipe import Recipe, finetuning_stream, replay_batches, text_batches, train_tokenizer
from gptcore.tokenizer import END_OF_TEXT, Tokenizer

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""Makes batch number `i`: inputs and targets `(B, T)`."""
Models = Mapping[str, Any]
"""The models of the stages, by name."""
Tick = Callable[[], object]
"""Called when a part of something long is done: moves a progress bar, and may stop the run."""


class Curriculum(Protocol):
    """What a chain needs to know of the data that it learns from. Equal seeds, equal data."""

    @property
    def recipe(self) -> Recipe:
        """Every number of the stages."""
        ...

    @property
    def stages(self) -> tuple[str, ...]:
        """The models that the data reach, in the order in which they are made."""
        ...

    @property
    def exams(self) -> int:
        """How many exams there are, for a progress bar."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells a run on these data from runs on others: where they lie, and hashes of what they hold."""
        ...

    def learn_tokenizer(self, seed: int, after_merge: Tick, /) -> Tokenizer:
        """The tokenizer, learned or given."""
        ...

    def start(self) -> Decoder | None:
        """The model to start from; None for one with random weights."""
        ...

    def pretraining_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Rows of text."""
        ...

    def finetuning_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Rows of conversations, in which only the answers are trained."""
        ...

    def replay(self, tokenizer: Tokenizer, seed: int) -> Batches | None:
        """Small batches of what was learned before, against forgetting."""
        ...

    def ballots(self, judge: str, sft: Decoder, tokenizer: Tokenizer, seed: int, /) -> Iterator[Ballot]:
        """What a reward model learns from: `reward`, or `second_reward`, whose votes are others."""
        ...

    def check(self, tokenizer: Tokenizer, /) -> None:
        """Refuse data of which nothing can come; before anything is written.

        Raises:
            ValueError: if a stage would have nothing to learn from.
        """
        ...

    def told(self, tokenizer: Tokenizer, /) -> str:
        """What people should know before anything is trained; "" for nothing. Each process must come here."""
        ...

    def prompts(self, tokenizer: Tokenizer, /) -> Prompts:
        """What the policy is asked while it learns."""
        ...

    def score(self, tokenizer: Tokenizer, models: Models, seed: int, part: Part, tick: Tick, /) -> dict[str, Any]:
        """Let the models of all stages sit their exams.

        Returns:
            for the report: `scores` by name, and `intervals` of those that are shares: low and high end of the 95 %
            interval and the number of questions.
        """
        ...


@dataclass(frozen=True)
class AtlasCurriculum:
    """The course's own: facts about countries, elements, planets and animals."""

    recipe: Recipe = Recipe()
    """Every number of the stages."""
    stages: tuple[str, ...] = STAGES
    """All of them."""
    exams: int = 7
    """Those of `score_chain`."""

    def identity(self) -> dict[str, Any]:
        """Nothing: it comes with the course."""
        return {"text": None, "text_sha256": None}

    def learn_tokenizer(self, seed: int, after_merge: Tick) -> Tokenizer:
        """Learned from texts, messages and names."""
        return train_tokenizer(seed, after_merge=after_merge)

    def start(self) -> Decoder | None:
        """Nothing is known before."""
        return None

    def pretraining_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Facts in many wordings; each text is read about once."""
        count = self.recipe.pretraining.steps * self.recipe.batch_size * self.recipe.decoder.context_length
        tokens = documents_as_tokens(tokenizer, pretraining_documents(seed), count)
        return text_batches((tokens, tokens), self.recipe, seed, tokenizer.special[END_OF_TEXT])

    def finetuning_batches(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """Demonstrations, and texts between them."""
        stream = finetuning_stream(tokenizer, self.recipe, self.recipe.finetuning.steps, seed)
        return text_batches(stream, self.recipe, seed, tokenizer.special[END_OF_TEXT])

    def replay(self, tokenizer: Tokenizer, seed: int) -> Batches:
        """More demonstrations and texts."""
        return replay_batches(tokenizer, self.recipe, seed)

    def ballots(self, _judge: str, sft: Decoder, tokenizer: Tokenizer, seed: int) -> Iterator[Ballot]:
        """Votes of simulated voters, on answers of the model and written ones."""
        return collect_ballots(sft, tokenizer, PromptSource("train"), self.recipe.ballots, seed)

    def check(self, _tokenizer: Tokenizer) -> None:
        """Nothing."""

    def told(self, _tokenizer: Tokenizer) -> str:
        """Nothing."""
        return ""

    def prompts(self, _tokenizer: Tokenizer) -> Prompts:
        """Questions about the entities of training."""
        return PromptSource("train")

    def score(self, tokenizer: Tokenizer, models: Models, seed: int, part: Part, tick: Tick) -> dict[str, Any]:
        """The exams about entities that no conversation told of."""
        base, sft, reward_model, ppo = (models[stage] for stage in STAGES)
        scores, intervals = score_chain(tokenizer, base, sft, reward_model, ppo, seed, part, tick)
        return {"scores": scores, "intervals": intervals}
