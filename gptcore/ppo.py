"""Proximal policy optimisation: improve the model's answers by the reward model's grades.

The model answers prompts (rollout), the reward model grades the answers, and each token is made
more likely or less by how much better than expected things went from there on (advantage). Two
leashes keep it from running off: steps are clipped, and leaving the fine-tuned model costs reward
(KL). Papers: PPO (arXiv 1707.06347), GAE (1506.02438), RLHF with both (1909.08593, 2203.02155), the
details that decide (2403.17031).

All per-token tensors have shape `(N, T - 1)` for sequences of `T` tokens, prompt first, padded on the
right: column t is about the choice of token t + 1, made at position t. A mask says which choices are
the model's own: those of the answer, up to and including its end token.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gptcore.checks import numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.finetuning import PromptSource, as_typed, encode_prompt
from gptcore.generation import SamplingConfig, generate
from gptcore.machine import autocast, gradient_scaler
from gptcore.reward import RewardModel, pad_right, score
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import (
    few_shapes,
    generator_for,
    language_model_loss,
    load_optimizer_tensors,
    load_scaler,
    optimizer_tensors,
    scaler_state,
    schedule_factor,
    update,
)

# --- Mathematics ---------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries whose mask is True; what stands elsewhere does not matter."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def kl_estimate(log_probabilities: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference) from sampled tokens; never negative.

    The estimator k3 = exp(d) - 1 - d with d = log p_ref - log p (Schulman 2020,
    joschu.net/blog/kl-approx.html).
    """
    difference = reference - log_probabilities
    return difference.exp() - 1 - difference


def token_rewards(
    scores: Tensor, log_probabilities: Tensor, reference: Tensor, mask: Tensor, kl_coefficient: float
) -> Tensor:
    """What each choice earned: the KL penalty everywhere, the score at the answer's last token.

    Args:
        scores: `(N,)` grades of the answers.
        log_probabilities: `(N, T - 1)` of the sampled tokens under the policy that drew them.
        reference: `(N, T - 1)` the same under the frozen reference.
        mask: `(N, T - 1)` bool.
        kl_coefficient: beta.

    Returns:
        `(N, T - 1)`, 0 outside the mask.
    """
    rewards = -kl_coefficient * (log_probabilities - reference)
    # The last choice of an answer is the last True in its row.
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards.masked_fill(~mask, 0.0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, equations 11 to 16 of arXiv 1506.02438.

    delta_t = r_t + discount V_{t+1} - V_t, A_t = delta_t + discount smoothing A_{t+1}; V and A are 0
    after the end.

    Args:
        rewards, values, mask: `(N, T - 1)`.
        discount: gamma.
        smoothing: lambda; 0 trusts the values, 1 the rewards.

    Returns:
        advantages and returns (advantages + values), `(N, T - 1)`, 0 outside the mask.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantages[:, t] = (delta + discount * smoothing * next_advantage).masked_fill(~mask[:, t], 0.0)
        next_advantage, next_value = advantages[:, t], values[:, t]
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the mask; 0 elsewhere, and everywhere if all are equal."""
    chosen = values[mask]
    if len(chosen) == 0 or chosen.min() == chosen.max():  # rounding of the mean would be scaled up to a signal
        return torch.zeros_like(values)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return ((values - mean) / (variance + 1e-8).sqrt()).masked_fill(~mask, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the returns' variance that the values foresaw.

    1 is perfect, 0 no better than a constant, and so it is where the returns do not vary.
    """
    chosen = returns[mask]
    if len(chosen) < 2 or chosen.min() == chosen.max():
        return 0.0
    return 1 - ((returns - values)[mask].var() / chosen.var()).item()


def policy_loss(
    log_probabilities: Tensor, old_log_probabilities: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """The clipped objective, equation 7 of arXiv 1707.06347, as a loss.

    mean of max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = exp(new - old): a step that has
    gone far enough in the direction of its advantage gets no further push.
    """
    ratio = (log_probabilities - old_log_probabilities).masked_fill(~mask, 0.0).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared error of the values, clipped to within `clip` of the old ones, the larger counts."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, samples: int) -> float:
    """Raise beta when the policy strays further than wanted, lower it when less (arXiv 1909.08593, 2.2).

    Args:
        coefficient: beta.
        kl: KL of the answers to the reference, summed over tokens, mean over answers, in nats.
        target: wanted KL.
        samples: answers seen since the last change.

    Raises:
        ValueError: if the target is not above 0, or the KL is no number.
    """
    if not target > 0 or math.isnan(kl):
        raise ValueError(f"beta is adapted to a KL and a target above 0, got {kl} and {target}")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / 10_000)


# --- One rollout ---------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """Answers of the current policy and all that is known of them before the update."""

    tokens: Tensor
    """`(N, T)` prompt and answer, padded on the right."""
    mask: Tensor
    """`(N, T - 1)` bool: the policy's own choices."""
    scores: Tensor
    """`(N,)` grade of each answer, the penalty for an unfinished one included."""
    log_probabilities: Tensor
    """`(N, T - 1)` of the chosen tokens, under the policy that chose them."""
    reference: Tensor
    """`(N, T - 1)` the same, under the reference."""
    values: Tensor
    """`(N, T - 1)` expected sum of rewards from here on."""
    finished: Tensor
    """`(N,)` bool: whether the answer has its end token."""


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


def token_log_probabilities(model: Decoder, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token of the answers, given all before it.

    Args:
        model: policy or reference.
        tokens: `(N, T)`.
        mask: `(N, T - 1)`; only these are computed.
        temperature: the one that sampled; the policy is the tempered distribution.

    Returns:
        `(N, T - 1)`, float32, 0 outside the mask.
    """
    features = model.hidden(tokens[:, :-1])[mask]
    logits = model.head(few_shapes(features))[: len(features)]  # (choices, V)
    logarithms = (logits.float() / temperature).log_softmax(dim=-1)
    chosen = logarithms.gather(1, tokens[:, 1:][mask][:, None]).squeeze(1)
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)


@torch.inference_mode()
def kl_of_answers(
    policy: Decoder,
    reference: Decoder,
    prompt_ids: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> float:
    """KL of the policy to the reference on sampled answers: summed over each answer, mean over answers, in nats.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("the KL is a mean over answers: give at least one")
    total = 0.0
    for start in range(0, len(answers), batch_size):
        rows = range(start, min(start + batch_size, len(answers)))
        tokens, lengths = pad_right([[*prompt_ids[i], *answers[i]] for i in rows], policy.config.context_length)
        mask = answer_mask(lengths, lengths.new_tensor([len(prompt_ids[i]) for i in rows]), tokens.shape[1])
        tokens, mask = tokens.to(policy.device), mask.to(policy.device)
        with autocast():
            own = token_log_probabilities(policy, tokens, mask, 1.0)
            other = token_log_probabilities(reference, tokens, mask, 1.0)
        total += kl_estimate(own, other).masked_fill(~mask, 0.0).sum().item()
    return total / len(answers)


@dataclass(frozen=True)
class PPOConfig:
    """How the policy is improved."""

    iterations: int = 56
    """Rollouts, each followed by updates."""
    rollout_size: int = 256
    """Answers in a rollout."""
    minibatch_size: int = 64
    """Answers in an update."""
    epochs: int = 1
    """Passes over a rollout; clipping makes more than one safe, at the price of time."""
    policy_rate: float = 5e-4
    """AdamW's learning rate for the policy; falls linearly to 0."""
    value_rate: float = 6e-4
    """AdamW's learning rate for the value model; falls likewise."""
    value_iterations: int = 4
    """First iterations, in which only the value model learns: bad advantages would harm the policy."""
    kl_coefficient: float = 0.02
    """Beta: reward lost for each nat away from the reference."""
    kl_target: float | None = None
    """KL at which an adaptive beta aims; None keeps beta."""
    clip: float = 0.2
    """Largest change of a ratio that is rewarded, and of a value."""
    discount: float = 1.0
    """Gamma: an answer is short, its end matters as much as its beginning."""
    smoothing: float = 1.0
    """Lambda of the advantages; 1, for few tokens lie between a choice and its grade."""
    temperature: float = 1.0
    """Of sampling, and of every log-probability."""
    max_new_tokens: int = 64
    """Longest answer."""
    replay_coefficient: float = 0.5
    """Weight of the pretraining loss mixed into the policy's (equation 2 of arXiv 2203.02155)."""
    unfinished_score: float = -2.0
    """Score of an answer without an end token, two deviations below the mean."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of prompts, samples and minibatches."""

    def __post_init__(self) -> None:
        whole_numbers(self, "iterations", "value_iterations", at_least=0)
        whole_numbers(self, "rollout_size", "minibatch_size", "epochs", "max_new_tokens", at_least=1)
        whole_numbers(self, "seed")
        numbers(self, "policy_rate", "value_rate", "kl_coefficient", "replay_coefficient", at_least=0)
        numbers(self, "discount", "smoothing", at_least=0, at_most=1)
        numbers(self, "kl_target", "clip", "temperature", above=0)
        numbers(self, "clip_norm", above=0, finite=False)  # infinite: nothing is clipped
        numbers(self, "unfinished_score")


class Diagnostics(NamedTuple):
    """What one iteration looked like; every mean is over real tokens or answers only."""

    iteration: int
    score: float
    """Mean grade by the reward model."""
    kl: float
    """KL to the reference, summed over an answer, mean over answers, in nats (estimator k3)."""
    entropy: float
    """Of the next-token distribution, in nats; estimated by the mean of -log p of the tokens drawn."""
    approximate_kl: float
    """Half the mean squared change of the log-probabilities by this iteration's updates."""
    clip_fraction: float
    """Share of tokens whose ratio left the clip range, whether or not the advantage made the clip act."""
    explained_variance: float
    """Of the returns, by the values: see the function of that name."""
    finished: float
    """Share of answers that ended properly."""
    length: float
    """Mean answer length in tokens."""
    kl_coefficient: float
    sampling_seconds: float
    scoring_seconds: float
    updating_seconds: float


@dataclass
class PPO:
    """The loop: roll out, grade, update. Can be stopped after any iteration and go on exactly."""

    policy: Decoder
    """Trained in place."""
    reference: Decoder
    """Frozen: the policy's own start."""
    reward_model: RewardModel
    """Frozen: the grader, normalised."""
    tokenizer: Tokenizer
    """Of all of them."""
    prompts: PromptSource
    """Where the questions come from."""
    config: PPOConfig = PPOConfig()
    """How it is done."""
    replay: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """Makes batch number `i` of pretraining text, mixed into the updates against forgetting; None for none."""
    history: list[Diagnostics] = field(default_factory=list)
    """One entry for each iteration so far."""

    def __post_init__(self) -> None:
        self.value_model = copy.deepcopy(self.reward_model).requires_grad_(True)
        self.kl_coefficient = self.config.kl_coefficient
        for frozen in (self.reference, self.reward_model):
            frozen.eval().requires_grad_(False)
        # The policy's and the value model's; an overflow in one says nothing of the other.
        self.scalers = [gradient_scaler(), gradient_scaler()]
        self.optimizers = [
            torch.optim.AdamW(model.parameters(), lr=rate, eps=1e-5, weight_decay=0.0, fused=True)
            for model, rate in (
                (self.policy, self.config.policy_rate),
                (self.value_model, self.config.value_rate),
            )
        ]

    @torch.no_grad()
    def roll_out(self, iteration: int) -> tuple[Rollout, float, float]:
        """Answer fresh prompts and grade the answers; also the seconds for each of the two."""
        start = time.perf_counter()
        config = self.config
        chance = random.Random(f"ppo {config.seed} {iteration}")
        questions = [as_typed(self.prompts.draw(chance).question, chance) for _ in range(config.rollout_size)]
        prompt_ids = [encode_prompt(self.tokenizer, question) for question in questions]
        sampling = SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        generator = generator_for(config.seed, iteration)
        answers = generate(self.policy, prompt_ids, sampling, self.tokenizer.special[END], generator)
        sampled = time.perf_counter()

        # In order of length, so that the chunks below hold little padding.
        pairs = sorted(zip(prompt_ids, answers, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        prompt_ids, answers = zip(*pairs, strict=True)
        sequences = [prompt + answer for prompt, answer in pairs]
        tokens, lengths = pad_right(sequences, self.policy.config.context_length)
        mask = answer_mask(lengths, lengths.new_tensor([len(prompt) for prompt in prompt_ids]), tokens.shape[1])
        finished = torch.tensor([answer[-1] == self.tokenizer.special[END] for answer in answers], device="cpu")
        scores = score(self.reward_model, sequences).masked_fill(~finished, config.unfinished_score)
        parts: list[list[Tensor]] = [[], [], []]
        device = self.policy.device
        for rows in torch.arange(len(tokens), device="cpu").split(config.minibatch_size):
            width = min(-(-int(lengths[rows].max()) // 16) * 16, tokens.shape[1])  # few shapes, as in pad_right
            inputs, own = tokens[rows, :width].to(device), mask[rows, : width - 1].to(device)
            with autocast():
                log_probabilities = token_log_probabilities(self.policy, inputs, own, config.temperature)
                reference = token_log_probabilities(self.reference, inputs, own, config.temperature)
                values = self.value_model.values(inputs[:, :-1])
            for part, columns in zip(parts, (log_probabilities, reference, values), strict=True):
                part.append(nn.functional.pad(columns.cpu(), (0, mask.shape[1] - columns.shape[1])))
        rollout = Rollout(tokens, mask, scores, *(torch.cat(part) for part in parts), finished)
        return rollout, sampled - start, time.perf_counter() - sampled

    def run(self, callbacks: Sequence[Callable[[Diagnostics], None]] = ()) -> list[Diagnostics]:
        """Go through all iterations; call every callback after each; return all diagnostics.

        Raises:
            FloatingPointError: if a loss is no longer a number.
        """
        while len(self.history) < self.config.iterations:
            self.history.append(self._iterate(len(self.history)))
            for callback in callbacks:
                callback(self.history[-1])
        return self.history

    def _iterate(self, iteration: int) -> Diagnostics:
        config = self.config
        # Dropout there is none; evaluation mode says so for all four models.
        self.policy.eval(), self.value_model.eval()
        rollout, sampling_seconds, scoring_seconds = self.roll_out(iteration)
        start = time.perf_counter()
        rewards = token_rewards(
            rollout.scores, rollout.log_probabilities, rollout.reference, rollout.mask, self.kl_coefficient
        )
        advantages, returns = generalised_advantages(
            rewards, rollout.values, rollout.mask, config.discount, config.smoothing
        )
        advantages = whiten(advantages, rollout.mask)
        factor = schedule_factor(iteration, config.iterations, "linear", decay_share=1.0)
        for optimizer, rate in zip(self.optimizers, (config.policy_rate, config.value_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        approximate_kl = clipped = 0.0
        updates = 0
        for epoch in range(config.epochs):
            # A rollout is in order of length: neighbours share a minibatch, for little padding.
            minibatches = torch.arange(len(rollout.tokens), device="cpu").split(config.minibatch_size)
            generator = generator_for(config.seed, iteration, epoch)
            order = torch.randperm(len(minibatches), generator=generator, device="cpu")
            for rows in (minibatches[index] for index in order):
                number = iteration * 1000 + updates if iteration >= config.value_iterations else None
                statistics = self._update(rollout, advantages, returns, rows, number)
                approximate_kl, clipped = approximate_kl + statistics[0], clipped + statistics[1]
                updates += 1
        kl = kl_estimate(rollout.log_probabilities, rollout.reference).masked_fill(~rollout.mask, 0.0).sum(1).mean()
        diagnostics = Diagnostics(
            iteration=iteration,
            score=rollout.scores.mean().item(),
            kl=kl.item(),
            entropy=-masked_mean(rollout.log_probabilities, rollout.mask).item(),
            approximate_kl=approximate_kl / updates,
            clip_fraction=clipped / updates,
            explained_variance=explained_variance(rollout.values, returns, rollout.mask),
            finished=rollout.finished.float().mean().item(),
            length=rollout.mask.sum(1).float().mean().item(),
            kl_coefficient=self.kl_coefficient,
            sampling_seconds=sampling_seconds,
            scoring_seconds=scoring_seconds,
            updating_seconds=time.perf_counter() - start,
        )
        if config.kl_target is not None:
            self.kl_coefficient = adapt_kl_coefficient(
                self.kl_coefficient, diagnostics.kl, config.kl_target, config.rollout_size
            )
        return diagnostics

    def _update(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor, number: int | None
    ) -> tuple[float, float]:
        """One step of the value model and, unless its number is None, of the policy.

        Returns:
            approximate KL and clip fraction.
        """
        config = self.config
        device = self.policy.device
        width = int(rollout.mask[rows].any(0).nonzero().max()) + 2  # tokens up to the longest answer's end
        width = min(-(-width // 16) * 16, rollout.tokens.shape[1])
        tokens = rollout.tokens[rows, :width].to(device)
        columns = (rollout.mask, rollout.log_probabilities, rollout.values, advantages, returns)
        mask, old, old_values, advantages, returns = (column[rows, : width - 1].to(device) for column in columns)
        # One model after the other: only one set of activations is in memory at a time.
        with autocast():
            values = self.value_model.values(tokens[:, :-1])
        self._step(self.value_model, value_loss(values, old_values, returns, mask, config.clip))
        with autocast(), torch.set_grad_enabled(number is not None):
            new = token_log_probabilities(self.policy, tokens, mask, config.temperature)
        if number is not None:
            loss = policy_loss(new, old, advantages, mask, config.clip)
            if self.replay is not None:
                with autocast():
                    loss = loss + config.replay_coefficient * language_model_loss(self.policy, self.replay(number))
            self._step(self.policy, loss)
        change = (new - old).detach()
        clipped = (change.exp() - 1).abs() > config.clip
        return (
            0.5 * masked_mean(change**2, mask).item(),
            masked_mean(clipped.float(), mask).item(),
        )

    def _step(self, model: nn.Module, loss: Tensor) -> None:
        """Backward pass, clipping and update of one of the two models."""
        if not math.isfinite(loss.item()):
            raise FloatingPointError("PPO diverged: lower the learning rates or raise the KL coefficient")
        which = 0 if model is self.policy else 1
        update(model, loss, [self.optimizers[which]], self.config.clip_norm, self.scalers[which])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"value.{name}": value for name, value in self.value_model.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizers)
        scalers = [scaler_state(scaler) for scaler in self.scalers]
        history = [list(entry) for entry in self.history]
        return tensors, {"history": history, "kl_coefficient": self.kl_coefficient, "scalers": scalers}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        for prefix, model in (("policy.", self.policy), ("value.", self.value_model)):
            model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        load_optimizer_tensors(self.optimizers, tensors)
        self.history = [Diagnostics(*entry) for entry in values["history"]]
        self.kl_coefficient = values["kl_coefficient"]
        for scaler, state in zip(self.scalers, values["scalers"], strict=True):
            load_scaler(scaler, state)
