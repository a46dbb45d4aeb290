"""Rollouts as tensors: answers, their grades, the log-probabilities of their tokens, and the KL.

PPO, GRPO and REINFORCE begin each of their iterations with a rollout (`policy_training` draws it); they differ in what
they make of the grades. Built step by step in notebooks/10_rlhf_ppo.ipynb.

All per-token tensors have shape `(N, T - 1)` for `N` sequences of `T` tokens, prompt first, padded on the
right: column t is about the choice of token t + 1, made at position t. A mask says which choices are
the model's own: those of the answer, up to and including its end token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptcore.decoder import Decoder
from gptcore.engines import whole
from gptcore.loss import chosen_log_probabilities
from gptcore.machine import autocast
from gptcore.parallel import processes, rank, sum_over_processes_
from gptcore.shapes import batches_by_length, masked_mean, pad_right, trim

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
    with whole(model):
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
