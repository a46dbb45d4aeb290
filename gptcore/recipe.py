"""The recipe: every number of the stages, and the texts that they read.

    tokenizer -> pretraining -> fine-tuning -> reward model -> PPO

Choices belong to the validation entities (EXPERIMENTS.md names what was not chosen there). `chain` runs it; the
chapters take its numbers with fewer steps, for the first time in notebooks/05_pretraining.ipynb. Who writes what, and
how often, stands with the writers: `finetuning.STYLES`, `questions.TASKS`, `ballots.VOTE_SHARPNESS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor

from gptcore.checks import numbers, whole_numbers
from gptcore.corpus import documents_as_tokens, pretraining_documents, with_leading_space
from gptcore.decoder import DecoderConfig
from gptcore.finetuning import demonstrations, pack
from gptcore.parallel import processes, rank
from gptcore.ppo import PPOConfig
from gptcore.tokenizer import DEFAULT_VOCABULARY_SIZE, Tokenizer
from gptcore.training import TrainingConfig, generator_for, sample_windows


@dataclass(frozen=True)
class Recipe:
    """Every number of the chain."""

    decoder: DecoderConfig = DecoderConfig(vocabulary_size=DEFAULT_VOCABULARY_SIZE)
    """Shape of the model; vocabulary size and separator are replaced by the trained tokenizer's."""
    batch_size: int = 16
    """Windows in a batch of text; 2,048 tokens, enough for the matrix products to be efficient."""
    pretraining: TrainingConfig = TrainingConfig(steps=560)
    """Pretraining; after it the model knows nearly every fact in the words of the texts."""
    finetuning: TrainingConfig = TrainingConfig(
        steps=1400, matrix_rate=0.006, embedding_rate=0.0004, head_rate=0.0004, scalar_rate=0.0004
    )
    """Fine-tuning; slow embeddings and head, or names that no conversation holds are forgotten."""
    replayed: float = 0.6
    """Share of pretraining documents among the conversations of fine-tuning, against forgetting."""
    ballots: int = 4000
    """Prompts on whose answers is voted, about six comparisons each."""
    ballot_batch_size: int = 8
    """Ballots in a batch, about four answers each."""
    reward_epochs: int = 1
    """Passes over the ballots; more, and the reward model learns the votes' noise by heart."""
    reward: TrainingConfig = TrainingConfig(
        steps=0, matrix_rate=0.002, embedding_rate=0.0003, head_rate=0.003, scalar_rate=0.0003
    )
    """Training of the reward model; the number of steps follows from ballots and epochs."""
    ppo: PPOConfig = PPOConfig()
    """Reinforcement learning."""

    def __post_init__(self) -> None:
        whole_numbers(self, "batch_size", "ballots", "ballot_batch_size", "reward_epochs", at_least=1)
        numbers(self, "replayed", at_least=0, at_most=1)
        if self.ballots < self.ballot_batch_size:
            raise ValueError(f"{self.ballots} ballots are too few for a ballot_batch_size of {self.ballot_batch_size}")


def train_tokenizer(
    seed: int, vocabulary_size: int = DEFAULT_VOCABULARY_SIZE, after_merge: Callable[[], object] = lambda: None
) -> Tokenizer:
    """The chain's tokenizer: learned from pretraining text and conversations of the atlas."""
    texts = list(islice(pretraining_documents(seed), 10_000))
    for turns in islice(demonstrations(seed), 3_000):
        texts += [text for turn in turns for text in turn]
    return Tokenizer.train(map(with_leading_space, texts), vocabulary_size, after_merge)


def text_batches(stream: tuple[Tensor, Tensor], recipe: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Random windows of a stream of ids and targets, batch by number; each of several processes gets its rows.

    Raises:
        ValueError: if there are more processes than rows.
    """
    if processes() > recipe.batch_size:
        raise ValueError(f"a batch of {recipe.batch_size} cannot be shared by {processes()} processes: start fewer")

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        context_length = recipe.decoder.context_length
        inputs, targets = sample_windows(*stream, recipe.batch_size, context_length, generator_for(seed, step))
        return inputs[rank() :: processes()], targets[rank() :: processes()]

    return batch_at


def finetuning_stream(tokenizer: Tokenizer, recipe: Recipe, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Conversations and replayed documents for that many steps; each is met about twice."""
    count = steps * recipe.batch_size * recipe.decoder.context_length // 2
    documents = pretraining_documents(seed + 1)
    return pack(tokenizer, demonstrations(seed), documents, recipe.replayed, count, seed)


def replay_batches(tokenizer: Tokenizer, recipe: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Small batches of pretraining text, to be mixed into later stages against forgetting."""
    text = documents_as_tokens(tokenizer, pretraining_documents(seed + 2), 200_000)
    return text_batches((text, text), replace(recipe, batch_size=4), seed)
