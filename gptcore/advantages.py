"""Advantages: how much better than expected a choice turned out.

PPO looks at tokens: `token_rewards` says what each earned, and generalised advantage estimation (GAE) compares what
came from there on with what a value model expected. GRPO and REINFORCE compare whole answers to the same prompt with
each other. Built step by step in notebooks/10_rlhf_ppo.ipynb and notebooks/12_beyond.ipynb.

Letters: `N` answers; `P` prompts with `G` answers each. Shapes and mask of per-token tensors are those of `rollouts`:
`(N, T - 1)`, column t is about the choice of token t + 1.
"""

import torch
from torch import Tensor

from gptcore.shapes import masked_mean

# --- Of tokens, by a value model -----------------------------------------------------------------


def token_rewards(
    scores: Tensor, log_probabilities: Tensor, reference: Tensor, mask: Tensor, kl_coefficient: float
) -> Tensor:
    """What each choice earned: the KL penalty everywhere, the score at the answer's last token.

    Args:
        scores: `(N,)` what the whole answers got, `Rollout.scores`.
        log_probabilities: `(N, T - 1)` of the sampled tokens under the policy that drew them.
        reference: `(N, T - 1)` the same under the frozen reference.
        mask: `(N, T - 1)` bool.
        kl_coefficient: beta.

    Returns:
        `(N, T - 1)`, 0 outside the mask.
    """
    # Unlike k3 (`rollouts.kl_estimate`) the plain difference may be negative; its mean is the KL all the same.
    rewards = -kl_coefficient * (log_probabilities - reference)
    # The last choice of an answer is the last True in its row.
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards.masked_fill(~mask, 0.0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, equations 11 to 16 of arXiv 1506.02438.

    delta_t = r_t + discount * V_{t+1} - V_t, A_t = delta_t + discount * smoothing * A_{t+1}; V and A are 0
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


# --- Of answers, by their group ------------------------------------------------------------------


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
    check_group(scores.shape[1])
    centred = scores - scores.mean(dim=1, keepdim=True)
    # Of equals exactly 0: what rounding leaves would be scaled up.
    centred = centred.masked_fill(scores.amin(dim=1, keepdim=True) == scores.amax(dim=1, keepdim=True), 0.0)
    return centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-8).sqrt()


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
    check_group(scores.shape[1])
    others = scores.shape[1] - 1
    return scores - (scores.sum(dim=1, keepdim=True) - scores) / others


def check_group(size: int) -> None:
    """Refuse a group in which there is nothing to compare.

    Raises:
        ValueError: if there are fewer than two.
    """
    if size < 2:
        raise ValueError(f"a group needs at least 2 answers to compare, got {size}")
