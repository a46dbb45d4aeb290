"""Direct preference optimisation: the reward model's loss, on the policy itself.

DPO (arXiv 2305.18290) learns what PPO learns, that some answers are liked better than others, without straying far
from where it started; but it needs neither a reward model nor sampling: it is a supervised stage on the comparisons
themselves. Built step by step in notebooks/12_beyond.ipynb. Shapes and mask of per-token tensors are those of
`rollouts`: `(N, T - 1)`, column t is about the choice of token t + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from gptcore.ballots import Ballot, BallotBatches, VotesAndText, answers_of, ballots_in_parts, votes_of
from gptcore.checks import numbers, whole_numbers
from gptcore.decoder import Decoder
from gptcore.loss import loss_beside_text
from gptcore.machine import autocast
from gptcore.parallel import weight_of_share
from gptcore.reward import answer_begins, preference_loss
from gptcore.rollouts import pad_answers, token_log_probabilities
from gptcore.shapes import batches_by_length
from gptcore.training import Trainer, TrainingConfig

# --- Mathematics ---------------------------------------------------------------------------------


def sequence_log_probabilities(model: Decoder, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each whole answer, given its prompt.

    Args:
        model: policy or reference.
        tokens: `(N, T)`.
        mask: `(N, T - 1)` bool, True at the choices of the answer.

    Returns:
        `(N,)` float32, in nats.
    """
    return token_log_probabilities(model, tokens, mask).sum(dim=1)


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


# --- Training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferencedBallot(Ballot):
    """A ballot, and what the reference thinks of its answers; it never changes, so it is computed once."""

    reference: list[float]
    """Log-probability of each answer under the reference."""


def ballot_log_probabilities(model: Decoder, ballots: Sequence[Ballot]) -> Tensor:
    """Log-probability of every answer of some ballots, in their order; each answer is read once."""
    tokens, _, mask = pad_answers(*answers_of(ballots), model.config.context_length)
    found = sequence_log_probabilities(model, tokens.to(model.device), mask.to(model.device))
    return found[: sum(len(ballot.answers) for ballot in ballots)]


@torch.inference_mode()
def with_reference(reference: Decoder, ballots: Sequence[Ballot], batch_size: int = 16) -> list[ReferencedBallot]:
    """The ballots, in their order, with the reference's log-probabilities of all answers."""
    reference.eval()
    referenced = {}
    for rows in batches_by_length([ballot.longest for ballot in ballots], batch_size):
        batch = [ballots[i] for i in rows]
        with autocast():
            values = ballot_log_probabilities(reference, batch)
        for i, ballot, own in zip(rows, batch, values.split([len(b.answers) for b in batch]), strict=True):
            referenced[i] = ReferencedBallot(
                ballot.prompt, ballot.prompt_ids, ballot.answers, ballot.votes, own.tolist()
            )
    return [referenced[i] for i in range(len(ballots))]


def ballots_dpo_loss(model: Decoder, ballots: Sequence[ReferencedBallot], beta: float) -> Tensor:
    """DPO loss over all votes of some ballots."""
    own = ballot_log_probabilities(model, ballots)
    reference = own.new_tensor([value for ballot in ballots for value in ballot.reference])
    winners, losers = votes_of(ballots)
    loss = dpo_loss(own[winners], own[losers], reference[winners], reference[losers], beta)
    return loss * weight_of_share(torch.tensor(len(winners)))


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
    """Weight of the loss on replayed rows mixed in, as in PPO."""
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
        config: its numbers.
        replay: makes batch number `i` of what was learned before, against forgetting; None for none.
    """
    batches = BallotBatches(with_reference(model, ballots), config.batch_size, config.training.seed)

    def loss_function(model: Decoder, batch: VotesAndText[ReferencedBallot]) -> Tensor:
        own = partial(ballots_dpo_loss, model, beta=config.beta)
        return loss_beside_text(own, config.replay_coefficient, model, batch)

    steps = batches.per_epoch * config.epochs
    return Trainer(
        model, batches.beside(replay), replace(config.training, steps=steps), loss_function, ballots_in_parts
    )


class ImplicitReward(nn.Module):
    """The reward model that a policy is, in the form of `RewardModel`: `rewards_of` and `pair_accuracy` take it.

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
