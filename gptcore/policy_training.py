"""What PPO, GRPO and REINFORCE have in common: their parts, the rollout, and one iteration after the other.

The rollout and its tensors are those of `rollouts`, and are built with it in notebooks/10_rlhf_ppo.ipynb.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptcore.chat_template import room_for_prompt
from gptcore.decoder import Decoder
from gptcore.engines import Engine, restore, share, whole
from gptcore.generation import SamplingConfig, generate_together
from gptcore.lora import merged
from gptcore.loss import BesideText, parts_beside_text
from gptcore.optimizers import backward_and_step
from gptcore.parallel import average_over_processes_, share_of
from gptcore.reward import Grader, rewards_of
from gptcore.rollouts import Rollout, in_batches, pad_answers, repeated, token_log_probabilities
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for


class Prompts(Protocol):
    """Where questions come from: `prompts.PromptSource`, or the reader's own."""

    def draw_ids(self, rng: random.Random, tokenizer: Tokenizer, room: int) -> list[int]:
        """One prompt in the chat template, of at most `room` tokens."""
        ...


@dataclass
class PolicyTrainer:
    """What PPO, GRPO and REINFORCE have in common: their parts, the rollout, and one iteration after the other."""

    policy: Decoder
    """Trained in place."""
    reference: Decoder
    """The policy's own start; it is frozen."""
    reward_model: Grader
    """Grades the answers: a normalised reward model, which is frozen, or a program that checks them (`sums.Checker`)."""
    tokenizer: Tokenizer
    """The one that all three models were trained with: with another, every id means something else."""
    prompts: Prompts
    """Where the questions come from."""
    config: Any
    """Every number of the algorithm: a `PPOConfig` or a `GroupConfig`."""
    replay: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """Makes batch number `i` of what was learned before, mixed into the updates against forgetting; None for none."""
    history: list[Any] = field(default_factory=list)
    """The diagnostics of each iteration so far."""

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.learning: tuple[nn.Module, ...] = (self.policy,)
        for frozen in (self.reference, self.reward_model):
            frozen.eval().requires_grad_(False)

    def run(self, callbacks: Sequence[Callable[[Any], None]] = ()) -> list[Any]:
        """Go through all iterations; call every callback after each; return all diagnostics.

        A callback that raises (Ctrl-C does) stops the run; where models are divided, they are empty then.

        Raises:
            FloatingPointError: if a reward or a loss is no longer a number.
        """
        frozen = self.reference, self.reward_model
        share(*frozen)
        while len(self.history) < self.config.iterations:
            self.history.append(self.iterate(len(self.history)))
            for callback in callbacks:
                callback(self.history[-1])
        restore(*self.learning, *frozen)
        return self.history

    @property
    def name(self) -> str:
        """Of the algorithm."""
        return type(self).__name__

    def iterate(self, iteration: int) -> Any:
        """One rollout and its updates; returns the diagnostics."""
        raise NotImplementedError

    @torch.no_grad()
    def answer_and_grade(
        self, rng: random.Random, iteration: int, prompts: int, each: int = 1, temperature: float = 1.0
    ) -> Rollout:
        """Draw prompts, let the policy answer them, and grade the answers.

        Args:
            rng: draws the prompts.
            iteration: fixes the draws of the answers.
            prompts: how many.
            each: answers to each prompt; they stand in rows that follow each other.
            temperature: of sampling, and of the log-probabilities.
        """
        config, end = self.config, self.tokenizer.special[END]
        self.seconds = {}  # an iteration begins
        with self.clock("sampling_seconds"):
            room = room_for_prompt(self.policy.config.context_length, config.max_new_tokens)
            drawn = [self.prompts.draw_ids(rng, self.tokenizer, room) for _ in range(prompts)]
            prompt_ids = repeated(drawn, each)
            sampling = SamplingConfig(temperature=temperature, max_new_tokens=config.max_new_tokens)
            with whole(self.policy):
                writer = merged(self.policy)  # token by token, adapters would cost a fifth more time
                answers = generate_together(writer, prompt_ids, sampling, end, generator_for(config.seed, iteration))
        with self.clock("scoring_seconds"):
            sequences = [prompt + answer for prompt, answer in zip(prompt_ids, answers, strict=True)]
            finished = torch.tensor([answer[-1] == end for answer in answers], device="cpu")
            with whole(self.reward_model):
                scores = rewards_of(self.reward_model, sequences).masked_fill(~finished, config.unfinished_score)
            padded = pad_answers(prompt_ids, answers, self.policy.config.context_length)
            log_probabilities = partial(token_log_probabilities, temperature=temperature)
            own, reference = (
                in_batches(log_probabilities, model, padded, self.answers_at_a_time)
                for model in (self.policy, self.reference)
            )
        return Rollout(*padded, scores, own, reference, finished, torch.zeros_like(own))

    @staticmethod
    def optimizer_for(engine: Engine, rate: float) -> torch.optim.Optimizer:
        """AdamW for what learns; `eps` as in arXiv 2403.17031."""
        return torch.optim.AdamW(engine.learner.parameters(), lr=rate, eps=1e-5, weight_decay=0.0, fused=True)

    @property
    def answers_at_a_time(self) -> int:
        """How many answers are read at a time: as many as a part of a minibatch has."""
        return max(1, self.config.minibatch_size // self.config.accumulate)

    def parts_of(
        self, minibatch: Sequence[int], entries: Tensor, replay_step: int | None = None
    ) -> list[tuple[BesideText[Sequence[int]], float]]:
        """This process's share of a minibatch, and of a batch of what was learned before, in `accumulate` parts.

        Args:
            minibatch: numbers of answers.
            entries: `(N,)` over how many entries of each answer of the rollout the loss takes its mean.
            replay_step: number of the batch of text; None for none.
        """
        rows = share_of(minibatch)
        text = None if self.replay is None or replay_step is None else self.replay(replay_step)
        return parts_beside_text(rows, entries[rows].tolist(), text, self.config.accumulate)

    def take_step(
        self,
        engine: Engine,
        parts: Sequence[tuple[tuple[Any, ...], float]],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> Tensor:
        """A step of one model.

        Args:
            engine: of the model, and what is computed with it.
            parts: with what it is computed in turn, and weights.
            optimizer: of the model.
            scaler: of the model.

        Returns:
            what is computed, of all parts, as the mean of all processes.

        Raises:
            FloatingPointError: if that is no number; all processes agree on it.
        """
        loss, own = engine.backward_but_last(parts, scaler)
        found = self.check(average_over_processes_(own))
        backward_and_step(engine.learner, loss, [optimizer], self.config.clip_norm, scaler)
        return found

    def check(self, values: Tensor) -> Tensor:
        """The values, if they are finite.

        Raises:
            FloatingPointError: if they are not.
        """
        if not values.isfinite().all():
            raise FloatingPointError(f"{self.name} diverged: lower the learning rate or raise the KL coefficient")
        return values

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add to `seconds`, for the diagnostics, how long the block took."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
