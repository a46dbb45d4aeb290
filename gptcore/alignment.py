"""Alternatives to PPO: DPO, GRPO, REINFORCE and best-of-n, each with less machinery than PPO has.

All start from the fine-tuned model and learn what PPO learns, that some answers are liked better than
others, without straying far from where they started:

- DPO (arXiv 2305.18290) needs neither a reward model nor sampling: it is a supervised stage on the
  comparisons themselves.
- GRPO (arXiv 2402.03300) and REINFORCE (Williams 1992; for language models 2402.14740) sample and
  grade as PPO does, but need no value model: several answers to one prompt are each other's baseline.
- Best-of-n (in arXiv 2112.09332, for one) trains nothing: of n answers it gives the one that the reward
  model likes most.

Letters: `N` answers; `P` prompts with `G` answers each, so that N = P G; `T` tokens of a sequence, prompt
first, padded on the right. Per-token tensors and masks are those of `ppo`: `(N, T - 1)`, column t is about
the choice of token t + 1.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gptcore.checks import choice, numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.finetuning import PromptSource, as_typed, encode_prompt
from gptcore.generation import SamplingConfig, generate
from gptcore.machine import autocast, gradient_scaler
from gptcore.ppo import answer_mask, kl_estimate, masked_mean, policy_loss, token_log_probabilities
from gptcore.reward import Ballot, BallotBatches, RewardModel, answer_begins, pad_right, preference_loss, score
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import (
    Trainer,
    TrainingConfig,
    backward,
    generator_for,
    language_model_loss,
    schedule_factor,
    update,
)

# --- Direct preference optimisation --------------------------------------------------------------


def sequence_log_probabilities(model: Decoder, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each whole answer, given its prompt.

    Args:
        model: policy or reference.
        tokens: `(N, T)`.
        mask: `(N, T - 1)` bool, True at the choices of the answer.

    Returns:
        `(N,)` float32, in nats.
    """
    return token_log_probabilities(model, tokens, mask, temperature=1.0).sum(dim=1)


def implicit_reward(log_probabilities: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The reward that a policy stands for: `beta (log p - log p_ref)`, equations 4 and 5 of arXiv 2305.18290.

    The policy that earns most, if each nat away from the reference costs beta, is p_ref exp(r / beta) / Z.
    Turned round: whatever a policy has learned, it is the best one for this reward. The missing beta log Z
    is the same for all answers to a prompt and drops out of every comparison.

    Args:
        log_probabilities: `(N,)` of the answers under the policy.
        reference: `(N,)` the same under the reference.
        beta: the smaller, the farther the policy must move for the same reward.
    """
    return beta * (log_probabilities - reference)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_reference: Tensor, rejected_reference: Tensor, beta: float
) -> Tensor:
    """Equation 7 of arXiv 2305.18290: the reward model's loss, with the implicit reward for the reward.

    mean of -log sigmoid(beta (log p(w) - log p_ref(w)) - beta (log p(l) - log p_ref(l))); log 2 where the
    policy is the reference. The gradient of a pair has the weight beta sigmoid(-margin): a pair that the
    implicit reward already ranks rightly by a wide margin hardly pushes any more.

    Args:
        chosen, rejected: `(pairs,)` log-probabilities of the answers that won and lost, under the policy.
        chosen_reference, rejected_reference: `(pairs,)` the same under the reference.
        beta: scale of the implicit reward.
    """
    return preference_loss(
        implicit_reward(chosen, chosen_reference, beta), implicit_reward(rejected, rejected_reference, beta)
    )


@dataclass(frozen=True)
class ReferencedBallot(Ballot):
    """A ballot, and what the reference thinks of its answers; it never changes, so it is computed once."""

    reference: list[float]
    """Log-probability of each answer under the reference."""


def ballot_log_probabilities(model: Decoder, ballots: Sequence[Ballot]) -> Tensor:
    """Log-probability of every answer of some ballots, in their order; each answer is read once."""
    pairs = [(ballot.prompt_ids, answer) for ballot in ballots for answer in ballot.answers]
    count = len(pairs)
    pairs += [pairs[0]] * (-count % 8)  # few shapes, as in `pad_right`
    tokens, lengths = pad_right([prompt + answer for prompt, answer in pairs], model.config.context_length)
    mask = answer_mask(lengths, lengths.new_tensor([len(prompt) for prompt, _ in pairs]), tokens.shape[1])
    return sequence_log_probabilities(model, tokens.to(model.device), mask.to(model.device))[:count]


@torch.inference_mode()
def with_reference(reference: Decoder, ballots: Sequence[Ballot], batch_size: int = 16) -> list[ReferencedBallot]:
    """The ballots, in their order, with the reference's log-probabilities of all answers."""
    reference.eval()
    # Ballots of like length share a batch, for little padding.
    order = sorted(range(len(ballots)), key=lambda i: len(ballots[i].prompt_ids) + max(map(len, ballots[i].answers)))
    referenced = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        with autocast():
            values = ballot_log_probabilities(reference, [ballots[i] for i in rows])
        for i, own in zip(rows, values.split([len(ballots[i].answers) for i in rows]), strict=True):
            referenced[i] = ReferencedBallot(**vars(ballots[i]) | {"reference": own.tolist()})
    return [referenced[i] for i in range(len(ballots))]


def ballots_dpo_loss(model: Decoder, ballots: Sequence[ReferencedBallot], beta: float) -> Tensor:
    """DPO loss over all votes of some ballots."""
    own = ballot_log_probabilities(model, ballots)
    reference = own.new_tensor([value for ballot in ballots for value in ballot.reference])
    starts = accumulate((len(ballot.answers) for ballot in ballots), initial=0)  # of each ballot among all answers
    votes = [
        (start + winner, start + loser)
        for start, ballot in zip(starts, ballots, strict=False)  # one start more: the end
        for winner, loser in ballot.votes
    ]
    winners, losers = torch.tensor(votes, dtype=torch.long, device=own.device).view(-1, 2).T
    return dpo_loss(own[winners], own[losers], reference[winners], reference[losers], beta)


@dataclass(frozen=True)
class DPOConfig:
    """How a model is trained on comparisons directly."""

    beta: float = 0.4
    """Scale of the implicit reward: an answer gets odds of e in a vote for each 2.5 nats gained. With the paper's
    0.1 the policy goes farther from the reference and ends lower (EXPERIMENTS.md)."""
    batch_size: int = 8
    """Ballots in a batch, about four answers each; as for the reward model."""
    epochs: int = 1
    """Passes over the ballots; one, as for the reward model."""
    replay_coefficient: float = 0.5
    """Weight of the pretraining loss mixed in, as in PPO."""
    training: TrainingConfig = TrainingConfig(steps=0, optimizer="adamw", matrix_rate=1e-4)
    """The rest; small steps of AdamW, smaller than PPO's. The number of steps follows from ballots and epochs."""

    def __post_init__(self) -> None:
        whole_numbers(self, "batch_size", "epochs", at_least=1)
        numbers(self, "beta", above=0)
        numbers(self, "replay_coefficient", at_least=0)


def dpo_trainer(
    model: Decoder,
    ballots: Sequence[Ballot],
    config: DPOConfig = DPOConfig(),
    replay: Callable[[int], tuple[Tensor, Tensor]] | None = None,
) -> Trainer:
    """A trainer that teaches a model the votes.

    Args:
        model: trained in place; as it is now it is the reference, too.
        ballots: what to learn from.
        config: how.
        replay: makes batch number `i` of pretraining text, against forgetting; None for none.
    """
    batches = BallotBatches(with_reference(model, ballots), config.batch_size, config.training.seed)

    def batch_at(step: int) -> tuple[list[ReferencedBallot], tuple[Tensor, Tensor] | None]:
        return batches(step), None if replay is None else replay(step)

    def loss_function(model: Decoder, batch: tuple[Sequence[ReferencedBallot], tuple[Tensor, Tensor] | None]) -> Tensor:
        voted, text = batch
        loss = ballots_dpo_loss(model, voted, config.beta)
        return loss if text is None else loss + config.replay_coefficient * language_model_loss(model, text)

    steps = batches.per_epoch * config.epochs
    return Trainer(model, batch_at, replace(config.training, steps=steps), loss_function)


class ImplicitReward(nn.Module):
    """The reward model that a policy is, in the form of `RewardModel`: `score` and `pair_accuracy` take it.

    Args:
        policy: what DPO trained.
        reference: what it started from.
        beta: the one it was trained with.
        answer_start: id of the token after which an answer begins.
    """

    def __init__(self, policy: Decoder, reference: Decoder, beta: float, answer_start: int) -> None:
        super().__init__()
        self.config = policy.config
        self.policy, self.reference = policy, reference
        self.beta, self.answer_start = beta, answer_start

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.policy.device

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Rewards `(B,)` of the last answers of conversations `(B, T)` of `lengths` `(B,)`.

        Padded on the right with anything.
        """
        begins = answer_begins(tokens, self.answer_start).long()
        number = begins.cumsum(dim=1)  # of the answer that each token belongs to, its mark included
        last = number.gather(1, lengths[:, None] - 1)  # (B, 1)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mask = ((number - begins == last) & (last > 0) & real)[:, 1:]  # column t is about the choice of token t + 1
        own, other = (sequence_log_probabilities(model, tokens, mask) for model in (self.policy, self.reference))
        return implicit_reward(own, other, self.beta)


# --- Groups of answers: mathematics --------------------------------------------------------------


def group_advantages(scores: Tensor) -> Tensor:
    """GRPO's advantages: how many deviations an answer is above the mean of its group.

    Section 4.1.2 of arXiv 2402.03300. A group of equals teaches nothing: its advantages are 0. A group
    that nearly agrees counts as much as one that differs widely, a bias that arXiv 2503.20783 criticises.

    Args:
        scores: `(P, G)`, G at least 2.

    Returns:
        `(P, G)`; mean 0 and variance 1 in each row.

    Raises:
        ValueError: if G is less than 2.
    """
    _check_group(scores.shape[1])
    centred = scores - scores.mean(dim=1, keepdim=True)
    # Of equals exactly 0: what rounding leaves would be scaled up.
    centred = centred.masked_fill(scores.amin(dim=1, keepdim=True) == scores.amax(dim=1, keepdim=True), 0.0)
    return centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-8).sqrt()


def _check_group(size: int) -> None:
    if size < 2:
        raise ValueError(f"a group needs at least 2 answers to compare, got {size}")


def leave_one_out_advantages(scores: Tensor) -> Tensor:
    """REINFORCE's advantages: an answer's score minus the mean of the *other* scores of its group.

    RLOO, arXiv 2402.14740. Any baseline leaves the gradient as it is on average and makes it less noisy, if
    only it does not depend on the answer itself.

    Args:
        scores: `(P, G)`, G at least 2.

    Returns:
        `(P, G)`.

    Raises:
        ValueError: if G is less than 2.
    """
    _check_group(scores.shape[1])
    others = scores.shape[1] - 1
    return scores - (scores.sum(dim=1, keepdim=True) - scores) / others


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


# --- Groups of answers: the loop -----------------------------------------------------------------


class GroupRollout(NamedTuple):
    """Groups of answers by the current policy; the answers of one prompt stand in `G` rows that follow each other."""

    tokens: Tensor
    """`(N, T)` prompt and answer, padded on the right."""
    lengths: Tensor
    """`(N,)` tokens of prompt and answer."""
    mask: Tensor
    """`(N, T - 1)` bool: the policy's own choices."""
    scores: Tensor
    """`(N,)` grade of each answer, the penalty for an unfinished one included."""
    log_probabilities: Tensor
    """`(N, T - 1)` of the chosen tokens, under the policy that chose them."""
    reference: Tensor
    """`(N, T - 1)` the same, under the reference."""
    finished: Tensor
    """`(N,)` bool: whether the answer has its end token."""


def cut(rows: Tensor, lengths: Tensor, tokens: Tensor, *columns: Tensor) -> list[Tensor]:
    """Some rows of a padded rollout, no wider than their longest sequence needs.

    Args:
        rows: which.
        lengths: `(N,)`.
        tokens: `(N, T)`.
        columns: per-token tensors `(N, T - 1)`.
    """
    width = min(-(-int(lengths[rows].max()) // 16) * 16, tokens.shape[1])  # few shapes, as in `pad_right`
    return [tokens[rows, :width], *(column[rows, : width - 1] for column in columns)]


@dataclass(frozen=True)
class GroupConfig:
    """How the policy is improved; where PPO has the same number, it is PPO's."""

    method: Literal["grpo", "reinforce"] = "grpo"
    """GRPO makes an update of each minibatch, with clipping; REINFORCE one of the whole rollout."""
    iterations: int = 56
    """Rollouts, each followed by its updates."""
    rollout_prompts: int = 64
    """Prompts `P` in a rollout."""
    group_size: int = 4
    """Answers `G` to each; 64 x 4 are as many answers as in a rollout of PPO."""
    minibatch_size: int = 64
    """Answers read at a time."""
    rate: float = 5e-4
    """AdamW's learning rate; falls linearly to 0."""
    kl_coefficient: float = 0.02
    """Beta: price of each nat away from the reference, in GRPO's loss or REINFORCE's reward."""
    clip: float = 0.2
    """Largest change of a ratio that is rewarded, in GRPO."""
    max_new_tokens: int = 64
    """Longest answer."""
    replay_coefficient: float = 0.5
    """Weight of the pretraining loss mixed into the policy's."""
    unfinished_score: float = -2.0
    """Score of an answer without an end token, two deviations below the mean."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of prompts, samples and minibatches; both methods begin with the same prompts and answers."""

    def __post_init__(self) -> None:
        choice(self, "method", ("grpo", "reinforce"))
        whole_numbers(self, "iterations", at_least=0)
        whole_numbers(self, "rollout_prompts", "group_size", "minibatch_size", "max_new_tokens", at_least=1)
        whole_numbers(self, "seed")
        numbers(self, "rate", "kl_coefficient", "replay_coefficient", at_least=0)
        numbers(self, "clip", above=0)
        numbers(self, "clip_norm", above=0, finite=False)  # infinite: nothing is clipped
        numbers(self, "unfinished_score")
        _check_group(self.group_size)


class GroupDiagnostics(NamedTuple):
    """What one iteration looked like; every mean is over real tokens or answers only."""

    iteration: int
    score: float
    """Mean grade by the reward model."""
    kl: float
    """KL to the reference, summed over an answer, mean over answers, in nats (estimator k3)."""
    entropy: float
    """Of the next-token distribution, in nats; estimated by the mean of -log p of the tokens drawn."""
    finished: float
    """Share of answers that ended properly."""
    length: float
    """Mean answer length in tokens."""
    sampling_seconds: float
    scoring_seconds: float
    updating_seconds: float


@dataclass
class GroupPolicyGradient:
    """The loop of GRPO and REINFORCE: roll out groups of answers, grade, compare within each group, update."""

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
    config: GroupConfig = GroupConfig()
    """How it is done."""
    replay: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """Makes batch number `i` of pretraining text, mixed into the updates against forgetting; None for none."""
    history: list[GroupDiagnostics] = field(default_factory=list)
    """One entry for each iteration so far."""

    def __post_init__(self) -> None:
        for frozen in (self.reference, self.reward_model):
            frozen.eval().requires_grad_(False)
        self.scaler = gradient_scaler()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=self.config.rate, eps=1e-5, weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def roll_out(self, iteration: int) -> tuple[GroupRollout, float, float]:
        """Answer fresh prompts, each several times, and grade the answers; also the seconds for each of the two."""
        start = time.perf_counter()
        config = self.config
        chance = random.Random(f"groups {config.seed} {iteration}")
        questions = [as_typed(self.prompts.draw(chance).question, chance) for _ in range(config.rollout_prompts)]
        prompt_ids = repeated([encode_prompt(self.tokenizer, question) for question in questions], config.group_size)
        sampling, end = SamplingConfig(max_new_tokens=config.max_new_tokens), self.tokenizer.special[END]
        answers = generate(self.policy, prompt_ids, sampling, end, generator_for(config.seed, iteration))
        sampled = time.perf_counter()

        sequences = [prompt + answer for prompt, answer in zip(prompt_ids, answers, strict=True)]
        tokens, lengths = pad_right(sequences, self.policy.config.context_length)
        mask = answer_mask(lengths, lengths.new_tensor([len(prompt) for prompt in prompt_ids]), tokens.shape[1])
        finished = torch.tensor([answer[-1] == end for answer in answers], device="cpu")
        scores = score(self.reward_model, sequences).masked_fill(~finished, config.unfinished_score)
        own, reference = torch.zeros(2, *mask.shape, dtype=torch.float32, device="cpu")
        device = self.policy.device
        for rows in lengths.argsort(stable=True).split(config.minibatch_size):
            inputs, chosen = (part.to(device) for part in cut(rows, lengths, tokens, mask))
            for model, found in ((self.policy, own), (self.reference, reference)):
                with autocast():
                    part = token_log_probabilities(model, inputs, chosen, 1.0)
                found[rows, : part.shape[1]] = part.cpu()
        rollout = GroupRollout(tokens, lengths, mask, scores, own, reference, finished)
        return rollout, sampled - start, time.perf_counter() - sampled

    def run(self, callbacks: Sequence[Callable[[GroupDiagnostics], None]] = ()) -> list[GroupDiagnostics]:
        """Go through all iterations; call every callback after each; return all diagnostics.

        Raises:
            FloatingPointError: if a grade or a loss is no longer a number.
        """
        while len(self.history) < self.config.iterations:
            self.history.append(self._iterate(len(self.history)))
            for callback in callbacks:
                callback(self.history[-1])
        return self.history

    def _iterate(self, iteration: int) -> GroupDiagnostics:
        config = self.config
        rollout, sampling_seconds, scoring_seconds = self.roll_out(iteration)
        start = time.perf_counter()
        advantages = self._finite(self._advantages(rollout))
        factor = schedule_factor(iteration, config.iterations, "linear", decay_share=1.0)
        self.optimizer.param_groups[0]["lr"] = config.rate * factor
        # Answers of like length share a minibatch, for little padding.
        minibatches = rollout.lengths.argsort(stable=True).split(config.minibatch_size)
        order = torch.randperm(len(minibatches), generator=generator_for(config.seed, iteration, 0), device="cpu")
        if config.method == "grpo":
            for number, index in enumerate(order):
                self._update(rollout, advantages, [minibatches[index]], iteration * 1000 + number)
        else:
            self._update(rollout, advantages, minibatches, iteration * 1000)
        kl = kl_estimate(rollout.log_probabilities, rollout.reference).sum(dim=1).mean()  # 0 outside the mask
        return GroupDiagnostics(
            iteration=iteration,
            score=rollout.scores.mean().item(),
            kl=kl.item(),
            entropy=-masked_mean(rollout.log_probabilities, rollout.mask).item(),
            finished=rollout.finished.float().mean().item(),
            length=rollout.mask.sum(dim=1).float().mean().item(),
            sampling_seconds=sampling_seconds,
            scoring_seconds=scoring_seconds,
            updating_seconds=time.perf_counter() - start,
        )

    def _advantages(self, rollout: GroupRollout) -> Tensor:
        """How much better each answer is than the others to its prompt, by the method's own measure: `(N,)`."""
        config = self.config
        if config.method == "grpo":
            return group_advantages(rollout.scores.view(-1, config.group_size)).flatten()
        # The KL is part of what an answer earned. A policy that has reached the optimum for its reward model has
        # nothing left to learn: score minus implicit reward is the same for all answers to a prompt.
        earned = rollout.scores - implicit_reward(
            rollout.log_probabilities.sum(dim=1), rollout.reference.sum(dim=1), config.kl_coefficient
        )
        return leave_one_out_advantages(earned.view(-1, config.group_size)).flatten()

    def _loss(self, rollout: GroupRollout, advantages: Tensor, rows: Tensor) -> Tensor:
        """Loss of GRPO's minibatch, or a minibatch's share in the loss of REINFORCE's rollout."""
        config = self.config
        parts = cut(rows, rollout.lengths, rollout.tokens, rollout.mask, rollout.log_probabilities, rollout.reference)
        tokens, mask, old, reference, own = (part.to(self.policy.device) for part in (*parts, advantages[rows]))
        with autocast():
            new = token_log_probabilities(self.policy, tokens, mask, 1.0)
        if config.method == "grpo":
            return group_policy_loss(new, old, reference, own, mask, config.clip, config.kl_coefficient)
        # A sum over the rows, divided by the rollout's tokens: beside the loss of replayed text, which is one
        # of a token, that of a whole answer would be too heavy.
        return reinforce_loss(new.sum(dim=1), own) * len(rows) / rollout.mask.sum()

    def _update(self, rollout: GroupRollout, advantages: Tensor, minibatches: Sequence[Tensor], number: int) -> None:
        """One step of the policy. Gradients of minibatches add up, so that only one of them is in memory at a time."""
        for rows in minibatches[1:]:
            backward(self._finite(self._loss(rollout, advantages, rows)), self.scaler)
        loss = self._loss(rollout, advantages, minibatches[0])
        if self.replay is not None:
            with autocast():
                text_loss = language_model_loss(self.policy, self.replay(number))
            loss = loss + self.config.replay_coefficient * text_loss
        update(self.policy, self._finite(loss), [self.optimizer], self.config.clip_norm, self.scaler)

    def _finite(self, values: Tensor) -> Tensor:
        if not values.isfinite().all():
            raise FloatingPointError(
                f"{self.config.method} diverged: lower the learning rate or raise the KL coefficient"
            )
        return values


# --- Best of n -----------------------------------------------------------------------------------


def repeated(prompt_ids: Sequence[list[int]], times: int) -> list[list[int]]:
    """Each prompt that many times, one right after the other."""
    return [prompt for prompt in prompt_ids for _ in range(times)]


def best_of_n(
    model: Decoder,
    reward_model: RewardModel | ImplicitReward,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[list[int]],
    n: int,
    seed: int = 0,
) -> list[list[int]]:
    """Draw n answers to each prompt and give the one that the reward model likes most.

    An answer without an end token is given only if all of them lack it.

    Args:
        model: draws, at temperature 1.
        reward_model: grades.
        tokenizer: of both.
        prompt_ids: prompts in the chat template.
        n: answers to each; 1 is plain sampling.
        seed: of the samples.

    Returns:
        an answer's ids for each prompt.

    Raises:
        ValueError: if n is less than 1, or a reward is no number.
    """
    if n < 1:
        raise ValueError(f"the best is chosen of at least 1 answer, got n = {n}")
    prompts, end = repeated(prompt_ids, n), tokenizer.special[END]
    answers = generate(model, prompts, SamplingConfig(), end, generator_for(seed))
    scores = score(reward_model, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    if scores.isnan().any():
        raise ValueError("a reward is not a number: train the reward model again, with a lower learning rate")
    unfinished = torch.tensor([answer[-1] != end for answer in answers], dtype=torch.bool, device="cpu")
    best = scores.masked_fill(unfinished, -math.inf).view(-1, n).argmax(dim=1)
    return [answers[group * n + index] for group, index in enumerate(best.tolist())]


def best_of_n_kl(n: int) -> float:
    """How far from the model best-of-n can be at most: KL to it in nats, log n - (n - 1) / n.

    Often given as the KL itself; it is an upper bound (arXiv 2401.01879), close to the KL where answers are
    so varied that none is drawn twice.
    """
    return math.log(n) - (n - 1) / n
