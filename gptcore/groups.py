"""GRPO and REINFORCE: several answers to one prompt are each other's baseline. And training on the best of them.

All (arXiv 2402.03300; Williams 1992, for language models 2402.14740; RAFT, 2304.06767) sample and grade as PPO does,
but need no value model: how much better than expected an answer is, its group tells. Built step by step in
notebooks/12_beyond.ipynb.

Letters: `P` prompts with `G` answers each, so that there are N = P G answers. Shapes and mask of per-token tensors
are those of `rollouts`: `(N, T - 1)`, column t is about the choice of token t + 1.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gptcore.advantages import check_group, group_advantages, leave_one_out_advantages
from gptcore.checks import choice, numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.dpo import implicit_reward
from gptcore.engines import Engine
from gptcore.loss import BesideText, loss_beside_text
from gptcore.machine import autocast, gradient_scaler
from gptcore.optimizers import load_optimizer_tensors, optimizer_tensors, schedule_factor
from gptcore.parallel import weight_of_share
from gptcore.policy_training import PolicyTrainer
from gptcore.ppo import policy_loss
from gptcore.rollouts import Rollout, kl_estimate, token_log_probabilities
from gptcore.shapes import batches_by_length, masked_mean, trim
from gptcore.training import generator_for

# --- Mathematics ---------------------------------------------------------------------------------


def group_policy_loss(
    log_probabilities: Tensor,
    old_log_probabilities: Tensor,
    reference: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    kl_coefficient: float,
) -> Tensor:
    """GRPO's objective, equation 3 of arXiv 2402.03300, as a loss: PPO's clipped one plus beta times the KL.

    Two things differ from PPO. The mean is taken over the tokens of each answer first and over the
    answers then, so that a token of a short answer weighs more than one of a long answer (arXiv 2503.20783
    objects to this, too); in PPO all tokens weigh alike. And the KL (k3, equation 4) stands in the loss, not in
    the reward; on average its gradient is that of KL(reference || policy).

    Args:
        log_probabilities: `(N, T - 1)` of the chosen tokens.
        old_log_probabilities: `(N, T - 1)` the same, under the policy that chose them.
        reference: `(N, T - 1)` the same, under the reference.
        advantages: `(N,)`, one for all tokens of an answer.
        mask: `(N, T - 1)` bool; at least one True in each row.
        clip: as in `ppo.policy_loss`.
        kl_coefficient: beta.
    """
    # What turns a mean over all tokens into a mean over answers of means over tokens.
    weights = mask.sum() / (len(mask) * mask.sum(dim=1, keepdim=True))  # (N, 1)
    # Weights may stand at the advantages, since PPO's loss of a token is proportional to them.
    loss = policy_loss(log_probabilities, old_log_probabilities, advantages[:, None] * weights, mask, clip)
    kl = kl_estimate(log_probabilities.masked_fill(~mask, 0.0), reference.masked_fill(~mask, 0.0))
    return loss + kl_coefficient * masked_mean(kl * weights, mask)


def reinforce_loss(log_probabilities: Tensor, advantages: Tensor) -> Tensor:
    """Williams 1992: minus the mean of advantage times log-probability, whose gradient is the policy gradient.

    The whole answer is one action: no token has an advantage of its own.

    Args:
        log_probabilities: `(N,)` of whole answers, under the policy that drew them.
        advantages: `(N,)`.

    Raises:
        ValueError: if there are no answers.
    """
    if len(advantages) == 0:
        raise ValueError("there is no answer to learn from: draw at least one")
    return -(advantages * log_probabilities).mean()


def best_of_groups(rollout: Rollout, size: int) -> Rollout:
    """The best answer of each group. A group of equals has none, and nothing of it is kept.

    Args:
        rollout: `P` groups, one after the other.
        size: `G`, answers of a group.
    """
    groups = rollout.scores.view(-1, size)
    best = groups.argmax(dim=1) + size * torch.arange(len(groups), device="cpu")  # (P,)
    kept = best[groups.amin(dim=1) < groups.amax(dim=1)]
    return Rollout(*(part[kept] for part in rollout))


# --- Settings and diagnostics --------------------------------------------------------------------


@dataclass(frozen=True)
class GroupConfig:
    """How the policy is improved; where PPO has the same number, it is PPO's."""

    method: Literal["grpo", "reinforce", "best"] = "grpo"
    """GRPO makes an update of each minibatch, with clipping; REINFORCE one of the whole rollout; `best` one of the best
    answer of each group, which it is fine-tuned on as if somebody had written it."""
    iterations: int = 56
    """Rollouts, each followed by its updates."""
    rollout_prompts: int = 64
    """Prompts `P` in a rollout."""
    group_size: int = 4
    """Answers `G` to each; 64 x 4 are as many answers as in a rollout of PPO."""
    minibatch_size: int = 64
    """Answers read at a time, or in `accumulate` parts."""
    rate: float = 5e-4
    """AdamW's learning rate; falls linearly to 0."""
    kl_coefficient: float = 0.02
    """Beta: price of each nat away from the reference, in GRPO's loss or REINFORCE's reward; `best` has none."""
    clip: float = 0.2
    """Largest change of a ratio that is rewarded, in GRPO."""
    max_new_tokens: int = 64
    """Longest answer."""
    replay_coefficient: float = 0.5
    """Weight of the loss on replayed rows mixed into the policy's."""
    unfinished_score: float = -2.0
    """Score of an answer without an end token, two deviations below the mean."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of prompts, samples and minibatches; all methods begin with the same prompts and answers."""
    accumulate: int = field(default=1, repr=False)  # as in `PPOConfig`
    """Parts in which a minibatch is read, one after the other, where it does not fit into memory as a whole."""

    def __post_init__(self) -> None:
        choice(self, "method", ("grpo", "reinforce", "best"))
        whole_numbers(self, "iterations", at_least=0)
        counts = "rollout_prompts", "group_size", "minibatch_size", "max_new_tokens", "accumulate"
        whole_numbers(self, *counts, at_least=1)
        whole_numbers(self, "seed")
        numbers(self, "rate", "kl_coefficient", "replay_coefficient", at_least=0)
        numbers(self, "clip", above=0)
        numbers(self, "clip_norm", above=0, finite=False)  # infinite: nothing is clipped
        numbers(self, "unfinished_score")
        check_group(self.group_size)


class GroupDiagnostics(NamedTuple):
    """What one iteration looked like; each field but `informative` means what it means in `ppo.Diagnostics`."""

    iteration: int
    informative: float
    """Share of groups whose answers did not all get the same score; the others teach nothing."""
    score: float
    kl: float
    entropy: float
    finished: float
    length: float
    sampling_seconds: float
    scoring_seconds: float
    updating_seconds: float


# --- The loop ------------------------------------------------------------------------------------


@dataclass
class GroupPolicyGradient(PolicyTrainer):
    """The loop of all three: roll out groups of answers, grade, compare within each group, update."""

    config: GroupConfig = GroupConfig()
    """The method and its numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scaler = gradient_scaler()
        self._engine = Engine(self.policy, self._loss_of_policy)
        self.optimizer = self.optimizer_for(self._engine, self.config.rate)

    @property
    def name(self) -> str:
        """The method."""
        return self.config.method

    def roll_out(self, iteration: int) -> Rollout:
        """Answer fresh prompts, each several times, and grade the answers."""
        rng = random.Random(f"groups {self.config.seed} {iteration}")
        return self.answer_and_grade(rng, iteration, self.config.rollout_prompts, self.config.group_size)

    def iterate(self, iteration: int) -> GroupDiagnostics:
        """One rollout and its updates."""
        config = self.config
        rollout = self.roll_out(iteration)
        groups = self.check(rollout.scores).view(-1, config.group_size)
        informative = (groups.amin(dim=1) < groups.amax(dim=1)).float().mean().item()
        statistics = rollout.statistics()
        with self.clock("updating_seconds"):
            if config.method == "best":
                rollout = best_of_groups(rollout, config.group_size)
            advantages = self._advantages(rollout)
            factor = schedule_factor(iteration, config.iterations, "linear", decay_share=1.0)
            self.optimizer.param_groups[0]["lr"] = config.rate * factor
            minibatches = batches_by_length(rollout.lengths, config.minibatch_size)
            order = torch.randperm(len(minibatches), generator=generator_for(config.seed, iteration, 0), device="cpu")
            if config.method == "grpo":
                for number, index in enumerate(order):
                    self._update(rollout, advantages, [minibatches[index]], iteration * 1000 + number)
            elif minibatches:
                self._update(rollout, advantages, minibatches, iteration * 1000)
        return GroupDiagnostics(iteration, informative, **statistics, **self.seconds)

    def _advantages(self, rollout: Rollout) -> Tensor:
        """How much better each answer is than the others to its prompt, by the method's own measure: `(N,)`."""
        config = self.config
        if config.method == "grpo":
            return group_advantages(rollout.scores.view(-1, config.group_size)).flatten()
        if config.method == "best":
            return torch.ones_like(rollout.scores)  # with advantage 1 the loss is that of fine-tuning
        # The KL is part of what an answer earned. A policy that has reached the optimum for its reward model has
        # nothing left to learn: score minus implicit reward is the same for all answers to a prompt.
        earned = rollout.scores - implicit_reward(
            rollout.log_probabilities.sum(dim=1), rollout.reference.sum(dim=1), config.kl_coefficient
        )
        return leave_one_out_advantages(earned.view(-1, config.group_size)).flatten()

    def _loss_of_policy(
        self, policy: Decoder, rollout: Rollout, advantages: Tensor, size: int, part: BesideText[Sequence[int]]
    ) -> Tensor:
        """Loss of GRPO's minibatch, or a minibatch's share in the loss of REINFORCE's rollout; with replay, or without.

        Args:
            policy: what learns.
            rollout: the answers.
            advantages: `(N,)`.
            size: answers in the whole minibatch.
            part: numbers of some of them, and replayed text.
        """
        config = self.config

        def own(rows: Sequence[int]) -> Tensor:
            columns = rollout.tokens, rollout.mask, rollout.log_probabilities, rollout.reference
            parts = *trim(rows, rollout.lengths, *columns), advantages[rows]
            tokens, mask, old, reference, better = (part.to(policy.device) for part in parts)
            new = token_log_probabilities(policy, tokens, mask)
            if config.method == "grpo":
                loss = group_policy_loss(new, old, reference, better, mask, config.clip, config.kl_coefficient)
            else:
                # A sum over the minibatch, divided by the rollout's tokens: beside the loss of replayed text, which is
                # one of a token, that of a whole answer would be too heavy.
                loss = reinforce_loss(new.sum(dim=1), better) * size / rollout.mask.sum()
            return loss * weight_of_share(torch.tensor(len(rows)))  # a mean over answers

        with autocast():
            return loss_beside_text(own, config.replay_coefficient, policy, part)

    def _update(self, rollout: Rollout, advantages: Tensor, minibatches: Sequence[Sequence[int]], number: int) -> None:
        """One step of the policy. Gradients of minibatches add up, so that only one of them is in memory at a time."""
        ones = torch.ones_like(rollout.lengths)
        parts = []
        for rows in minibatches:
            own = self.parts_of(rows, ones, number if rows is minibatches[-1] else None)  # the text beside the last
            parts += [((rollout, advantages, len(rows), part), weight) for part, weight in own]
        self.take_step(self._engine, parts, self.optimizer, self.scaler)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on; each process must come here."""
        tensors = {f"policy.{name}": value for name, value in self._engine.weights().items()}
        tensors |= optimizer_tensors([self.optimizer])
        return tensors, {"history": [list(entry) for entry in self.history], "scaler": self.scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._engine.load_weights({name[7:]: value for name, value in tensors.items() if name.startswith("policy.")})
        load_optimizer_tensors([self.optimizer], tensors)
        self.history = [GroupDiagnostics(*entry) for entry in values["history"]]
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
