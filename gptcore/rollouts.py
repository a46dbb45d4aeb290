"""Rollouts: the current policy answers prompts, and the reward model, or a program, grades the answers.

PPO, GRPO and REINFORCE begin each of their iterations so; they differ in what they make of the grades. What they
share stands here, built step by step in notebooks/10_rlhf_ppo.ipynb.

All per-token tensors have shape `(N, T - 1)` for `N` sequences of `T` tokens, prompt first, padded on the
right: column t is about the choice of token t + 1, made at position t. A mask says which choices are
the model's own: those of the answer, up to and including its end token.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gptcore.chat_template import room_for_prompt
from gptcore.decoder import Decoder
from gptcore.generation import SamplingConfig, generate_together
from gptcore.lora import merged
from gptcore.loss import chosen_log_probabilities, language_model_loss
from gptcore.machine import autocast
from gptcore.parallel import processes, rank, sum_over_processes_
from gptcore.reward import Grader, rewards_of
from gptcore.shapes import batches_by_length, masked_mean, pad_right, trim
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for

# --- Answers as tensors --------------------------------------------------------------------------


def repeated(prompt_ids: Sequence[list[int]], times: int) -> list[list[int]]:
    """Each prompt that many times, one right after the other."""
    return [prompt for prompt in prompt_ids for _ in range(times)]


def answer_mask(lengths: Tensor, prompt_lengths: Tensor, width: int) -> Tensor:
    """Which choices are the model's own.

    Args:
        lengths: `(N,)` tokens of prompt and answer.
        prompt_lengths: `(N,)` tokens of the prompt.
        width: `T` of the padded batch.

    Returns:
        `(N, T - 1)` bool; the first True of a row stands at the prompt's last token.
    """
    position = torch.arange(width - 1, device=lengths.device)
    return (position >= prompt_lengths[:, None] - 1) & (position < lengths[:, None] - 1)


def pad_answers(
    prompt_ids: Sequence[list[int]], answers: Sequence[list[int]], longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their answers as one tensor.

    Args:
        prompt_ids: `N` prompts.
        answers: `N` answers.
        longest: the model's context length.

    Returns:
        tokens `(N, T)`, lengths `(N,)` and the mask of the answers' choices `(N, T - 1)`.
    """
    tokens, lengths = pad_right([[*p, *a] for p, a in zip(prompt_ids, answers, strict=True)], longest)
    mask = answer_mask(lengths, lengths.new_tensor([len(prompt) for prompt in prompt_ids]), tokens.shape[1])
    return tokens, lengths, mask


def token_log_probabilities(model: Decoder, tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token of the answers, given all before it.

    Args:
        model: policy or reference.
        tokens: `(N, T)`.
        mask: `(N, T - 1)`; only these are computed.
        temperature: the one that sampled; the policy is the tempered distribution.

    Returns:
        `(N, T - 1)`, 0 outside the mask.
    """
    return chosen_log_probabilities(model.head, model.hidden(tokens[:, :-1]), tokens, mask, temperature)


# --- KL to the reference ---------------------------------------------------------------------------


def kl_estimate(log_probabilities: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference) from sampled tokens; never negative.

    The estimator k3 = exp(d) - 1 - d with d = log p_ref - log p (Schulman 2020,
    joschu.net/blog/kl-approx.html).
    """
    difference = reference - log_probabilities
    return difference.exp() - 1 - difference


# --- One rollout ---------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """Answers of the current policy and all that is known of them before the update."""

    tokens: Tensor
    """`(N, T)` prompt and answer, padded on the right."""
    lengths: Tensor
    """`(N,)` tokens of prompt and answer."""
    mask: Tensor
    """`(N, T - 1)` bool: the policy's own choices."""
    scores: Tensor
    """`(N,)` the score of each answer: its reward, or the penalty for one without an end token."""
    log_probabilities: Tensor
    """`(N, T - 1)` of the chosen tokens, under the policy that chose them."""
    reference: Tensor
    """`(N, T - 1)` the same, under the reference."""
    finished: Tensor
    """`(N,)` bool: whether the answer has its end token."""
    values: Tensor
    """`(N, T - 1)` expected sum of rewards from here on, by PPO's value model; 0 where there is no such model."""

    def statistics(self) -> dict[str, float]:
        """Means over answers or real tokens: `score`, `kl`, `entropy`, `finished` and `length`."""
        return {
            "score": self.scores.mean().item(),
            "kl": kl_estimate(self.log_probabilities, self.reference).sum(dim=1).mean().item(),  # 0 outside the mask
            "entropy": -masked_mean(self.log_probabilities, self.mask).item(),
            "finished": self.finished.float().mean().item(),
            "length": self.mask.sum(dim=1).float().mean().item(),
        }


@torch.no_grad()
def in_batches(
    compute: Callable[[Any, Tensor, Tensor], Tensor], model: Any, rollout: tuple[Tensor, Tensor, Tensor], size: int
) -> Tensor:
    """A per-token quantity of all answers, computed for a few of like length at a time.

    Args:
        compute: takes the model, tokens `(n, t)` and mask `(n, t - 1)` on its device, and returns `(n, t - 1)`.
        model: whose quantity it is.
        rollout: tokens, lengths and mask of all answers, as `pad_answers` gives them.
        size: answers at a time.

    Returns:
        `(N, T - 1)`; what stands outside the mask does not matter.
    """
    tokens, lengths, mask = rollout
    found = torch.zeros(mask.shape, dtype=torch.float32, device="cpu")
    for rows in batches_by_length(lengths, size)[rank() :: processes()]:
        inputs, choices = (part.to(model.device) for part in trim(rows, lengths, tokens, mask))
        with autocast():
            part = compute(model, inputs, choices)
        found[rows, : part.shape[1]] = part.float().cpu()
    return sum_over_processes_(found)


def kl_of_answers(
    policy: Decoder, reference: Decoder, prompt_ids: Sequence[list[int]], answers: Sequence[list[int]]
) -> float:
    """KL of the policy to the reference on sampled answers: summed over each answer, mean over answers, in nats.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("the KL is a mean over answers: give at least one")
    padded = pad_answers(prompt_ids, answers, policy.config.context_length)
    own, other = (in_batches(token_log_probabilities, model, padded, 64) for model in (policy, reference))
    return kl_estimate(own, other).sum(dim=1).mean().item()  # 0 outside the mask


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
        for frozen in (self.reference, self.reward_model):
            frozen.eval().requires_grad_(False)

    def run(self, callbacks: Sequence[Callable[[Any], None]] = ()) -> list[Any]:
        """Go through all iterations; call every callback after each; return all diagnostics.

        Raises:
            FloatingPointError: if a reward or a loss is no longer a number.
        """
        while len(self.history) < self.config.iterations:
            self.history.append(self.iterate(len(self.history)))
            for callback in callbacks:
                callback(self.history[-1])
        return self.history

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
            writer = merged(self.policy)  # token by token, adapters would cost a fifth more time
            answers = generate_together(writer, prompt_ids, sampling, end, generator_for(config.seed, iteration))
        with self.clock("scoring_seconds"):
            sequences = [prompt + answer for prompt, answer in zip(prompt_ids, answers, strict=True)]
            finished = torch.tensor([answer[-1] == end for answer in answers], device="cpu")
            scores = rewards_of(self.reward_model, sequences).masked_fill(~finished, config.unfinished_score)
            padded = pad_answers(prompt_ids, answers, self.policy.config.context_length)
            log_probabilities = partial(token_log_probabilities, temperature=temperature)
            own, reference = (
                in_batches(log_probabilities, model, padded, config.minibatch_size)
                for model in (self.policy, self.reference)
            )
        return Rollout(*padded, scores, own, reference, finished, torch.zeros_like(own))

    def replayed_loss(self, policy: Decoder, number: int) -> Tensor | float:
        """The loss on batch `number` of what was learned before, to be added to the policy's own."""
        if self.replay is None:
            return 0.0
        with autocast():
            return self.config.replay_coefficient * language_model_loss(policy, self.replay(number))

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add to `seconds`, for the diagnostics, how long the block took."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
