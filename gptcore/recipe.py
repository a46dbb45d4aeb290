"""The recipe: every number of the stages, and the texts that they read.

    tokenizer -> pretraining -> fine-tuning -> reward model -> PPO

Choices belong to the validation entities (EXPERIMENTS.md names what was not chosen there). `chain` runs it; the
chapters take its numbers with fewer steps, for the first time in notebooks/05_pretraining.ipynb. Who writes what, and
how often, stands with the writers: `finetuning.STYLES`, `prompts.TASKS` and `GRADED`, `ballots.VOTE_SHARPNESS`.
"""

import bisect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice

import torch
from torch import Tensor

from gptcore.checks import numbers, whole_numbers
from gptcore.corpus import documents_of_several, names_in_all_forms, pretraining_documents, with_leading_space
from gptcore.decoder import DecoderConfig
from gptcore.finetuning import demonstrations, pack
from gptcore.messages import nameless_messages, simplified_characters
from gptcore.parallel import share_of
from gptcore.ppo import PPOConfig
from gptcore.tokenizer import DEFAULT_VOCABULARY_SIZE, END_OF_TEXT, Tokenizer
from gptcore.training import TrainingConfig, generator_for
from gptcore.words import counted


@dataclass(frozen=True)
class Recipe:
    """Every number of the chain."""

    decoder: DecoderConfig = DecoderConfig(vocabulary_size=DEFAULT_VOCABULARY_SIZE, context_length=256)
    """Shape of the model, long enough for a conversation of several turns; vocabulary size and separator are replaced by the
    trained tokenizer's."""
    batch_size: int = 8
    """Rows in a batch of text; 2,048 tokens, enough for the matrix products to be efficient."""
    pretraining: TrainingConfig = TrainingConfig(steps=800)
    """Pretraining; after it the model knows nearly every fact in the words of the texts."""
    finetuning: TrainingConfig = TrainingConfig(steps=2900, embedding_rate=0.01, head_rate=0.002, scalar_rate=0.002)
    """Fine-tuning; a slow head, or names that no conversation holds are forgotten, but faster embeddings: what people type
    has many words that no text has."""
    replayed: float = 0.65
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
    ppo: PPOConfig = PPOConfig(accumulate=4)
    """Reinforcement learning. In four parts, of about as many tokens as a batch of text has: half a gigabyte less, and what
    is computed stays in the processor's cache."""
    lora: int | None = None
    """Rank of the adapters that learn in place of the weights (`lora`); None where the weights learn."""

    def __post_init__(self) -> None:
        whole_numbers(self, "batch_size", "ballots", "ballot_batch_size", "reward_epochs", "lora", at_least=1)
        numbers(self, "replayed", at_least=0, at_most=1)
        if self.ballots < self.ballot_batch_size:
            raise ValueError(f"{self.ballots} ballots are too few for a ballot_batch_size of {self.ballot_batch_size}")


LISTINGS = 100
"""How often the tokenizer's text lists the names: as often as it takes to make each as short as its letters allow."""
SHOUTED = 10
"""One English message of so many stands in capitals, too, in the tokenizer's text."""


def tokenizer_texts(seed: int) -> Iterator[str]:
    """What the tokenizer learns from: pretraining text, what people type, and the names in it as a list.

    Messages without the names in them, and no conversations: there the training entities would be named more often than
    others, their names would become single tokens where others are pieces, and a model would know by that what it was
    asked before. The list keeps the messages' words from pushing out names, and makes "peru" as short as "Peru" and
    "Tiger" as "tiger": texts have but one of them, people type both. Some people shout.
    """
    texts = islice(pretraining_documents(seed), 40_000)
    listed = (name for _ in range(LISTINGS) for name in names_in_all_forms())
    shouted = (text.upper() for text in islice(nameless_messages(), 0, None, SHOUTED) if text.isascii())
    return map(with_leading_space, chain(texts, nameless_messages(), shouted, listed))


def train_tokenizer(
    seed: int, vocabulary_size: int = DEFAULT_VOCABULARY_SIZE, after_merge: Callable[[], object] = lambda: None
) -> Tokenizer:
    """The chain's tokenizer."""
    return Tokenizer.train(tokenizer_texts(seed), vocabulary_size, after_merge, simplified_characters())


def row_starts(tokens: Tensor, context_length: int, separator: int | None = None) -> Tensor:
    """Where to cut a stream into rows of `context_length` tokens, so that every text is whole in one of them.

    A row that ends inside a text is followed by one that begins with it: a question that is cut off before its answer
    would teach to answer without one. A text longer than a row is cut where the row ends.

    Args:
        tokens: `(N,)` ids.
        context_length: tokens of a row; one more is needed, for the last target.
        separator: id of the token that begins a text; None for rows end to end.
    """
    begins = (tokens == separator).nonzero().flatten().tolist() if separator is not None else []
    starts, start = [], 0
    while start + context_length < len(tokens):
        starts.append(start)
        last = bisect.bisect_right(begins, start + context_length) - 1
        start = begins[last] if last >= 0 and begins[last] > start else start + context_length
    return torch.tensor(starts, device="cpu")


def text_batches(
    stream: tuple[Tensor, Tensor], recipe: Recipe, seed: int, separator: int | None = None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Rows of a stream of ids and targets, batch by number: all in a random order, then all again in another.

    One long text without separators is cut at other places each time.

    Args:
        stream: ids and targets, `(N,)` each.
        recipe: batch size and context length.
        seed: of the order.
        separator: id of the token that begins a text, see `row_starts`.

    Returns:
        makes inputs and targets `(B, T)` of batch number `i`; each of several processes gets its rows of it.

    Raises:
        ValueError: if the stream is too short for one row.
    """
    tokens, targets = stream
    context_length = recipe.decoder.context_length
    starts = row_starts(tokens, context_length, separator)
    if not len(starts):
        raise ValueError(
            f"the text has {counted(len(tokens), 'token')}, a context of {context_length} needs at least {context_length + 1}: "
            "give a longer text or a smaller context length"
        )

    one_text = separator is None or not (tokens == separator).any()

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        generator = generator_for(seed, epoch)
        shuffled = starts[torch.randperm(len(starts), generator=generator, device="cpu")]
        if one_text and epoch:  # cut elsewhere each time, or a short text would be learned in the same few rows
            shift = torch.randint(context_length, (), generator=generator, device="cpu")
            shuffled = (shuffled + shift) % (len(tokens) - context_length)
        return shuffled

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        numbers = share_of(range(step * recipe.batch_size, (step + 1) * recipe.batch_size))
        rows = torch.stack([order(number // len(starts))[number % len(starts)] for number in numbers])
        indices = rows[:, None] + torch.arange(context_length, device="cpu")
        return tokens[indices], targets[indices + 1]

    return batch_at


UNTOLD = 4
"""How many times as often as others the replayed texts are about things that no conversation tells of: what conversations
ask for they keep alive themselves."""
SEVERAL = 0.12
"""Share of the replayed texts that go from one thing to another, as conversations do."""


def replayed_documents(seed: int) -> Iterator[str]:
    """Endless text against forgetting: pretraining's, with more about what is not asked, and some about several things."""
    rng = random.Random(f"replayed {seed}")
    of_one, of_several = pretraining_documents(seed, UNTOLD), documents_of_several(seed, UNTOLD)
    while True:
        yield next(of_several if rng.random() < SEVERAL else of_one)


def finetuning_stream(tokenizer: Tokenizer, recipe: Recipe, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Conversations and replayed documents, as many tokens as that many steps read."""
    count = steps * recipe.batch_size * recipe.decoder.context_length
    return pack(tokenizer, demonstrations(seed), replayed_documents(seed + 1), recipe.replayed, count, seed)


def replay_batches(tokenizer: Tokenizer, recipe: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Small batches of what was learned before, texts and conversations, to be mixed into later stages against forgetting."""
    stream = pack(tokenizer, demonstrations(seed + 2), replayed_documents(seed + 2), recipe.replayed, 200_000, seed)
    rows = replace(recipe, batch_size=max(1, recipe.batch_size // 4))
    return text_batches(stream, rows, seed, tokenizer.special[END_OF_TEXT])
