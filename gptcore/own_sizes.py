"""How large a model, and how many steps, data of the reader's own are worth, and how long that will take here.

Tried in notebooks/13_your_own_chatgpt.ipynb.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from gptcore.checks import whole_numbers
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.lora import with_adapters
from gptcore.machine import choose_device
from gptcore.parallel import share_of
from gptcore.ppo import PPOConfig
from gptcore.recipe import Recipe
from gptcore.tokenizer import SMALLEST_VOCABULARY
from gptcore.training import Trainer, TrainingConfig

Size = Literal["minutes", "evening", "gpu"]
"""How long a chain may take: minutes or an evening on a laptop, or an evening on one GPU."""


@dataclass(frozen=True)
class Limits:
    """What a size allows."""

    decoder: DecoderConfig
    """Shape; the vocabulary is the tokenizer's."""
    batch_size: int
    """Most rows in a batch of text."""
    steps: int
    """Most steps of pretraining, and twice those of fine-tuning."""
    vocabulary: int
    """Most tokens."""
    iterations: int
    """Of reinforcement learning."""


SIZES: Mapping[Size, Limits] = {
    "minutes": Limits(DecoderConfig(1, context_length=256), 8, 800, 4096, 16),
    "evening": Limits(DecoderConfig(1, context_length=512, layers=6, width=384, heads=12), 16, 6000, 8192, 60),
    "gpu": Limits(DecoderConfig(1, context_length=1024, layers=12, width=768, heads=12), 32, 20_000, 32_768, 200),
}

TEXT_PASSES, CONVERSATION_PASSES, VOTE_PASSES = 20, 16, 4
"""How often a small set of data is read; a large one as often as the steps of its size allow (EXPERIMENTS.md)."""
REPLAYED = 0.5
"""Share of pieces of text among the conversations of fine-tuning."""
FEWEST_ROWS = 2
"""Rows in a batch of text where there is little of it. As many tokens in more and smaller steps teach more; with single
rows the steps become too noisy (EXPERIMENTS.md)."""
BYTES_A_TOKEN = 3
"""About; so that the number of steps is known before there is a tokenizer."""


@dataclass(frozen=True)
class Amounts:
    """How much there is to learn from."""

    text: int
    """Bytes of text."""
    conversations: int
    """Bytes of conversations."""
    questions: int
    """With votes on their answers."""


@dataclass(frozen=True)
class Wishes:
    """Numbers that the reader may set; None for what the data are worth."""

    vocabulary: int | None = None
    """Tokens of the vocabulary."""
    context: int | None = None
    """Tokens of the longest conversation."""
    steps: int | None = None
    """Of pretraining."""
    finetuning_steps: int | None = None
    """Of fine-tuning."""
    iterations: int | None = None
    """Of reinforcement learning."""
    lora: int | None = None
    """Rank of the adapters that learn in place of the base model's weights."""
    accumulate: int | None = None
    """Parts in which each batch is read; one by default."""

    def __post_init__(self) -> None:
        names = "context", "steps", "finetuning_steps", "iterations", "lora", "accumulate"
        whole_numbers(self, *names, at_least=1)
        whole_numbers(self, "vocabulary", at_least=SMALLEST_VOCABULARY)


def vocabulary_size(text_bytes: int, size: Size, wishes: Wishes) -> int:
    """About one token for each hundred bytes of text: rarer ones are hardly learned."""
    return wishes.vocabulary or max(512, min(round(text_bytes / 100 / 64) * 64, SIZES[size].vocabulary))


def own_recipe(amounts: Amounts, size: Size, wishes: Wishes, shape: DecoderConfig, published: bool) -> Recipe:
    """The chain's recipe with a size's numbers, and no more steps than the data are worth.

    Args:
        amounts: of the data.
        size: of the model.
        wishes: of the reader.
        shape: of the base model, or the size's with the reader's preset.
        published: whether the base model is one: trained on far more than these data, with AdamW. Small steps, or what
            it knows is lost.
    """
    limits, whole = SIZES[size], Recipe()
    shape = replace(shape, context_length=wishes.context or shape.context_length)
    row = shape.context_length * BYTES_A_TOKEN  # in bytes
    text = TEXT_PASSES * amounts.text
    talk = CONVERSATION_PASSES * amounts.conversations / (1 - REPLAYED if amounts.text else 1)
    worth = int(max(text, talk / 2) // (limits.steps * row))  # rows with which the data last for all steps
    rows = max(FEWEST_ROWS, min(worth, limits.batch_size))

    def steps(wish: int | None, amount: float, most: int) -> int:
        wanted = min(max(20, math.ceil(amount / (rows * row))), most) if wish is None else wish
        return wanted if amount else 0

    stages = whole.pretraining, whole.finetuning, whole.reward
    # Adapters want steps about ten times as long as whole weights (Schulman et al. 2025, thinkingmachines.ai/blog/lora).
    longer = 1 if wishes.lora is None else 10
    if careful := published or wishes.lora is not None:
        rates = (1e-4, 1e-4, 5e-5)
        stages = tuple(TrainingConfig(0, optimizer="adamw", matrix_rate=longer * rate) for rate in rates)
    parts = wishes.accumulate or 1
    pretraining, finetuning, reward = (replace(config, accumulate=parts) for config in stages)
    iterations = limits.iterations if wishes.iterations is None else wishes.iterations
    ppo = PPOConfig(iterations=iterations, value_iterations=min(2, iterations), rollout_size=96, minibatch_size=32)
    ppo = replace(ppo, accumulate=parts)
    # Judges of few votes are right only near to what they have seen: a shorter leash than the atlas's (EXPERIMENTS.md).
    ppo = replace(ppo, kl_coefficient=0.1, policy_rate=2e-4)
    if careful:
        ppo = replace(ppo, policy_rate=longer * 1e-5, value_rate=longer * 1e-5)
    questions = max(1, amounts.questions)
    return Recipe(
        decoder=shape,
        batch_size=rows,
        pretraining=replace(pretraining, steps=steps(wishes.steps, text, limits.steps)),
        finetuning=replace(finetuning, steps=steps(wishes.finetuning_steps, talk, 2 * limits.steps)),
        replayed=REPLAYED if amounts.text else 0.0,
        ballots=questions,
        ballot_batch_size=min(8, questions),
        reward_epochs=VOTE_PASSES,
        reward=reward,
        ppo=ppo,
        lora=wishes.lora,
    )


def expected_seconds(recipe: Recipe, vocabulary: int, stages: tuple[str, ...]) -> float:
    """About how long a chain will take on this machine, from a few steps on noise; right within a factor of two.

    Several processes take these steps together; each must come here.
    """
    shape = replace(recipe.decoder, vocabulary_size=vocabulary)
    with choose_device():
        model = Decoder(shape)
    if recipe.lora is not None:
        model = with_adapters(model, recipe.lora)
    own = len(share_of(range(recipe.batch_size)))
    rows = torch.randint(vocabulary, (own, shape.context_length + 1), device="cpu")
    seconds: list[float] = []
    config = replace(recipe.pretraining, steps=4)
    Trainer(model, lambda _: (rows[:, :-1], rows[:, 1:]), config).run([lambda report: seconds.append(report.seconds)])
    step = min(seconds[1:])
    # In steps of text: a batch of ballots is read with replayed text beside it; an iteration of PPO draws its answers
    # token by token, has them read by four models and is learned from by two.
    total = recipe.pretraining.steps + recipe.finetuning.steps
    ballots = recipe.ballots / recipe.ballot_batch_size * recipe.reward_epochs
    total += 1.5 * ballots * ("reward" in stages) + 0.75 * ballots * ("second_reward" in stages)
    if {"ppo", "grpo"} & set(stages):
        total += 15 * recipe.ppo.iterations
    return total * step
