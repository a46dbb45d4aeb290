"""Proximal policy optimisation: improve the model's answers by the reward model's grades.

The model answers prompts and the reward model grades the answers (`policy_training`), and each token is made
more likely or less by how much better than expected things went from there on (advantage). Two
leashes keep it from running off: steps are clipped, and leaving the fine-tuned model costs reward
(KL). Built step by step in notebooks/10_rlhf_ppo.ipynb.

Papers: PPO (arXiv 1707.06347), GAE (1506.02438), RLHF with both (1909.08593, 2203.02155), the
details that decide (2403.17031). Shapes and mask of per-token tensors are those of `rollouts`: `(N, T - 1)`,
column t is about the choice of token t + 1.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptcore.advantages import explained_variance, generalised_advantages, token_rewards, whiten
from gptcore.checks import numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.engines import Engine
from gptcore.lora import rank_of, with_adapters
from gptcore.loss import BesideText, language_model_loss
from gptcore.machine import autocast, gradient_scaler
from gptcore.optimizers import load_optimizer_tensors, optimizer_tensors, schedule_factor
from gptcore.parallel import weight_of_share
from gptcore.policy_training import PolicyTrainer
from gptcore.reward import RewardModel
from gptcore.rollouts import Rollout, in_batches, token_log_probabilities
from gptcore.shapes import batches_by_length, masked_mean, trim
from gptcore.training import generator_for

# --- Losses --------------------------------------------------------------------------------------


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


# --- Settings and diagnostics --------------------------------------------------------------------


@dataclass(frozen=True)
class PPOConfig:
    """How the policy is improved."""

    iterations: int = 40
    """Rollouts, each followed by updates."""
    rollout_size: int = 160
    """Answers in a rollout."""
    minibatch_size: int = 40
    """Answers in an update."""
    epochs: int = 1
    """Passes over a rollout; clipping makes more than one safe, at the price of time."""
    policy_rate: float = 8e-4
    """AdamW's learning rate for the policy; falls linearly to 0."""
    value_rate: float = 9e-4
    """AdamW's learning rate for the value model; falls likewise."""
    value_iterations: int = 4
    """First iterations, in which only the value model learns: bad advantages would harm the policy."""
    kl_coefficient: float = 0.02
    """Beta: reward lost for each nat away from the reference."""
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
    """Weight of the loss on replayed rows mixed into the policy's (equation 2 of arXiv 2203.02155)."""
    unfinished_score: float = -2.0
    """Score of an answer without an end token, two deviations below the mean."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of prompts, samples and minibatches."""
    accumulate: int = field(default=1, repr=False)  # as in `TrainingConfig`
    """Parts in which a minibatch is read, one after the other, where it does not fit into memory as a whole."""

    def __post_init__(self) -> None:
        whole_numbers(self, "iterations", "value_iterations", at_least=0)
        whole_numbers(self, "rollout_size", "minibatch_size", "epochs", "max_new_tokens", "accumulate", at_least=1)
        whole_numbers(self, "seed")
        numbers(self, "policy_rate", "value_rate", "kl_coefficient", "replay_coefficient", at_least=0)
        numbers(self, "discount", "smoothing", at_least=0, at_most=1)
        numbers(self, "clip", "temperature", above=0)
        numbers(self, "clip_norm", above=0, finite=False)  # infinite: nothing is clipped
        numbers(self, "unfinished_score")


class Diagnostics(NamedTuple):
    """What one iteration looked like; every mean is over real tokens or answers only."""

    iteration: int
    score: float
    """Mean reward of the answers; an unfinished one has the penalty in its place."""
    kl: float
    """KL to the reference, summed over an answer, mean over answers, in nats (estimator k3)."""
    entropy: float
    """Of the next-token distribution, in nats; estimated by the mean of -log p of the tokens drawn."""
    approximate_kl: float
    """Half the mean squared change of the log-probabilities since the rollout, as each update finds it (estimator k2)."""
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


# --- The loop ------------------------------------------------------------------------------------


def value_of_choices(value_model: RewardModel, tokens: Tensor, _: Tensor) -> Tensor:
    """What the value model expects at each choice: tokens `(N, T)` to `(N, T - 1)`."""
    return value_model.values(tokens[:, :-1])


@dataclass
class PPO(PolicyTrainer):
    """The loop: roll out, grade, update. Can be stopped after any iteration and go on exactly.

    Policy and value model share no parameters, so that the value loss needs no coefficient; entropy has no bonus: the
    KL to the reference keeps the policy from saying always the same.
    """

    reward_model: RewardModel
    """Grades the answers, and is what the value model starts from; it must be normalised, and is frozen."""
    config: PPOConfig = PPOConfig()
    """Every number of PPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if adapters := rank_of(self.policy):  # the value model learns as the policy does
            self.value_model = with_adapters(self.reward_model, adapters, self.config.seed)
        else:
            self.value_model = copy.deepcopy(self.reward_model).requires_grad_(True)
        self.learning = self.policy, self.value_model
        self._policy_engine = Engine(self.policy, self._loss_of_policy)
        self._value_engine = Engine(self.value_model, self._loss_of_value_model)
        self.policy_optimizer = self.optimizer_for(self._policy_engine, self.config.policy_rate)
        self.value_optimizer = self.optimizer_for(self._value_engine, self.config.value_rate)
        # One for each model; an overflow in one says nothing of the other.
        self.policy_scaler, self.value_scaler = gradient_scaler(), gradient_scaler()

    def roll_out(self, iteration: int) -> Rollout:
        """Answer fresh prompts, grade the answers, and ask the value model what it expected; in order of length."""
        rng = random.Random(f"ppo {self.config.seed} {iteration}")
        rollout = self.answer_and_grade(rng, iteration, self.config.rollout_size, temperature=self.config.temperature)
        padded = rollout.tokens, rollout.lengths, rollout.mask
        with self.clock("scoring_seconds"):
            values = in_batches(value_of_choices, self.value_model, padded, self.answers_at_a_time)
        order = rollout.lengths.argsort(stable=True)  # that of the minibatches
        return Rollout(*(part[order] for part in rollout._replace(values=values)))

    def iterate(self, iteration: int) -> Diagnostics:
        """One rollout and its updates."""
        config = self.config
        # There is no dropout; evaluation mode in case you add some, for the ratios compare two passes of one model.
        self._policy_engine.learner.eval()
        self._value_engine.learner.eval()
        rollout = self.roll_out(iteration)
        with self.clock("updating_seconds"):
            rewards = token_rewards(
                rollout.scores, rollout.log_probabilities, rollout.reference, rollout.mask, config.kl_coefficient
            )
            advantages, returns = generalised_advantages(
                rewards, rollout.values, rollout.mask, config.discount, config.smoothing
            )
            advantages = whiten(advantages, rollout.mask)
            factor = schedule_factor(iteration, config.iterations, "linear", decay_share=1.0)
            self.policy_optimizer.param_groups[0]["lr"] = config.policy_rate * factor
            self.value_optimizer.param_groups[0]["lr"] = config.value_rate * factor
            minibatches = batches_by_length(rollout.lengths, config.minibatch_size)
            train_policy = iteration >= config.value_iterations
            figures = []
            for epoch in range(config.epochs):
                generator = generator_for(config.seed, iteration, epoch)
                for index in torch.randperm(len(minibatches), generator=generator, device="cpu"):
                    replay_step = iteration * 1000 + len(figures)  # another one at each update
                    rows = minibatches[index]
                    figures.append(self.update(rollout, advantages, returns, rows, train_policy, replay_step))
        approximate_kl, clip_fraction = map(mean, zip(*figures, strict=True))
        return Diagnostics(
            iteration=iteration,
            approximate_kl=approximate_kl,
            clip_fraction=clip_fraction,
            explained_variance=explained_variance(rollout.values, returns, rollout.mask),
            kl_coefficient=config.kl_coefficient,
            **rollout.statistics(),
            **self.seconds,
        )

    def update(
        self,
        rollout: Rollout,
        advantages: Tensor,
        returns: Tensor,
        rows: Sequence[int],
        train_policy: bool,
        replay_step: int,
    ) -> tuple[float, float]:
        """One step of the value model and, after its first iterations, of the policy.

        Args:
            rollout: the answers.
            advantages, returns: `(N, T - 1)`.
            rows: those of the minibatch; several processes share them.
            train_policy: whether the policy learns, too.
            replay_step: number of the replayed batch that is mixed in.

        Returns:
            approximate KL and clip fraction, before the step of the policy; 0 while it does not learn.
        """
        choices = rollout.mask.sum(dim=1)
        # One model after the other: only one set of activations is in memory at a time.
        parts = [((rollout, returns, own), weight) for (own, _), weight in self.parts_of(rows, choices)]
        self.take_step(self._value_engine, parts, self.value_optimizer, self.value_scaler)
        if not train_policy:
            return 0.0, 0.0
        parts = [((rollout, advantages, part), weight) for part, weight in self.parts_of(rows, choices, replay_step)]
        found = self.take_step(self._policy_engine, parts, self.policy_optimizer, self.policy_scaler)
        return found[1].item(), found[2].item()

    def _loss_of_value_model(
        self, model: RewardModel, rollout: Rollout, returns: Tensor, rows: Sequence[int]
    ) -> Tensor:
        parts = trim(rows, rollout.lengths, rollout.tokens, rollout.mask, rollout.values, returns)
        tokens, mask, old_values, returns = (part.to(model.device) for part in parts)
        with autocast():
            values = value_of_choices(model, tokens, mask)
        return value_loss(values, old_values, returns, mask, self.config.clip) * weight_of_share(mask.sum())

    def _loss_of_policy(
        self, policy: Decoder, rollout: Rollout, advantages: Tensor, part: BesideText[Sequence[int]]
    ) -> Tensor:
        """`(3,)`: the loss, and of the answers approximate KL and clip fraction."""
        rows, text = part
        found = torch.zeros(3, dtype=torch.float32, device=policy.device)
        with autocast():
            if rows is not None:
                parts = trim(rows, rollout.lengths, rollout.tokens, rollout.mask, rollout.log_probabilities, advantages)
                tokens, mask, old, better = (part.to(policy.device) for part in parts)
                new = token_log_probabilities(policy, tokens, mask, self.config.temperature)
                log_ratio = (new - old).detach()
                outside = (log_ratio.exp() - 1).abs() > self.config.clip
                figures = (0.5 * masked_mean(log_ratio**2, mask), masked_mean(outside.float(), mask))
                loss = policy_loss(new, old, better, mask, self.config.clip)
                found = found + torch.stack((loss, *figures)) * weight_of_share(mask.sum())
            if text is not None:
                found[0] += self.config.replay_coefficient * language_model_loss(policy, text)
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on; each process must come here."""
        tensors = {f"policy.{name}": value for name, value in self._policy_engine.weights().items()}
        tensors |= {f"value.{name}": value for name, value in self._value_engine.weights().items()}
        tensors |= optimizer_tensors([self.policy_optimizer, self.value_optimizer])
        scalers = [scaler.state_dict() for scaler in (self.policy_scaler, self.value_scaler)]
        return tensors, {"history": [list(entry) for entry in self.history], "scalers": scalers}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        for prefix, engine in (("policy.", self._policy_engine), ("value.", self._value_engine)):
            engine.load_weights({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        load_optimizer_tensors([self.policy_optimizer, self.value_optimizer], tensors)
        self.history = [Diagnostics(*entry) for entry in values["history"]]
        for scaler, state in zip((self.policy_scaler, self.value_scaler), values["scalers"], strict=True):
            if state:  # a run that goes on in another precision begins with a fresh scaler
                scaler.load_state_dict(state)
