"""Answers to the exercises of chapter 10: others that are right, and wrong ones with what they are told."""

from answers import Answers

_PPO = """
import torch

def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    log_p = logits - torch.logsumexp(logits, 1, keepdim=True)
    new = log_p[torch.arange(len(actions)), actions]
    advantage = rewards - rewards.sum() / len(rewards)
    ratio = torch.exp(new - old)
    loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))
    kl = torch.exp(reference - new) - (reference - new) - 1
    return loss.mean() + beta * kl.mean()
"""

_TOKENS = """
import torch

def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = torch.zeros_like(log_probabilities)
    for i, row in enumerate(mask):
        places = row.nonzero().flatten()
        rewards[i, places] = kl_coefficient * (reference[i, places] - log_probabilities[i, places])
        rewards[i, places[-1]] += scores[i]
    return rewards
"""

ANSWERS = {
    "10.1": Answers(
        right=[_PPO],
        wrong={
            "no baseline": _PPO.replace("rewards - rewards.sum() / len(rewards)", "rewards"),
            "the ratio is not clipped": _PPO.replace("torch.clamp(ratio, 1 - clip, 1 + clip)", "ratio"),
            "KL penalty is missing": _PPO.replace(" + beta * kl.mean()", ""),
            "that is REINFORCE": """
import torch

def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    new = logits.log_softmax(1).gather(1, actions[:, None]).squeeze(1)
    return -((rewards - rewards.mean()) * new).mean()
""",
            "ratio = exp(new - old)": _PPO.replace("torch.exp(new - old)", "new - old"),
            "log-probability times advantage is REINFORCE": _PPO.replace(
                "torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))", "-advantage * new"
            ),
            "the product was clipped": _PPO.replace(
                "torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))",
                "-(ratio * advantage).clamp(1 - clip, 1 + clip)",
            ),
            "clip the ratio alone": _PPO.replace(
                "torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))",
                "-torch.min(ratio * advantage, (ratio * advantage).clamp(1 - clip, 1 + clip))",
            ),
            "the KL has no gradient": _PPO.replace("beta * kl.mean()", "beta * kl.mean().detach()"),
            "its gradient with respect to the logits": _PPO.replace(
                "    ratio =", "    new = new + (advantage * (new - new.detach())).sum()\n    ratio ="
            ),
            "*smaller* one counts": _PPO.replace("torch.max", "torch.min"),
            "only flattens the policy": """
def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    return -(logits.log_softmax(-1) * rewards[:, None]).mean()
""",
            "*every* token of the vocabulary": """
def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    return -(logits.softmax(-1).log() * rewards.unsqueeze(1)).mean()
""",
            "no gradient reaches": _PPO.replace("    new = log_p[", "    log_p = log_p.detach()\n    new = log_p["),
        },
    ),
    "10.2": Answers(
        right=[
            """
import torch

def still_pushed(ratio, advantage, clip):
    ratio = ratio.clone().requires_grad_(True)
    torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum().backward()
    return ratio.grad != 0
""",
            """
def still_pushed(ratio, advantage, clip):
    return ratio * advantage <= ratio.clamp(1 - clip, 1 + clip) * advantage
""",
        ],
        wrong={
            "still pushed back": "def still_pushed(ratio, advantage, clip):\n    return (ratio - 1).abs() < clip",
            "does not depend on `clip`": """
import torch

def still_pushed(ratio, advantage, clip):
    return torch.where(advantage > 0, ratio < 1.2, ratio > 0.8)
""",
            "both gains are equal": """
def still_pushed(ratio, advantage, clip):
    return ratio * advantage < ratio.clamp(1 - clip, 1 + clip) * advantage
""",
            "for bad actions": "def still_pushed(ratio, advantage, clip):\n    return ratio < 1 + clip",
            "where the clip stops": """
import torch

def still_pushed(ratio, advantage, clip):
    return torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
""",
            "only good actions": """
def still_pushed(ratio, advantage, clip):
    return (advantage > 0) & (ratio < 1 + clip)
""",
        },
    ),
    "10.3": Answers(
        right=[
            """
from torch.nn import functional as F

def whole_kl(policy_logits, reference_logits):
    p = policy_logits.softmax(-1)
    return F.kl_div(reference_logits.log_softmax(-1), p, reduction="none").sum(-1)
"""
        ],
        wrong={
            "the wrong way round": """
def whole_kl(policy_logits, reference_logits):
    p, q = policy_logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1)
""",
            "only after `log_softmax`": """
def whole_kl(policy_logits, reference_logits):
    return (policy_logits.softmax(-1) * (policy_logits - reference_logits)).sum(-1)
""",
            "the cross-entropy": """
def whole_kl(policy_logits, reference_logits):
    return -(policy_logits.softmax(-1) * reference_logits.log_softmax(-1)).sum(-1)
""",
            "the logarithm of a softmax breaks": """
def whole_kl(policy_logits, reference_logits):
    p, q = policy_logits.softmax(-1), reference_logits.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)
""",
            "`log_softmax` does not": """
def whole_kl(policy_logits, reference_logits):
    p, q = policy_logits.softmax(-1), reference_logits.softmax(-1)
    return (p * (p / q).log()).sum(-1)
""",
            "a number was added inside the logarithm": """
def whole_kl(policy_logits, reference_logits):
    p, q = policy_logits.softmax(-1), reference_logits.softmax(-1)
    return (p * ((p + 1e-10).log() - (q + 1e-10).log())).sum(-1)
""",
            "the estimator k3": """
def whole_kl(policy_logits, reference_logits):
    d = reference_logits.log_softmax(-1) - policy_logits.log_softmax(-1)
    return (d.exp() - 1 - d).sum(-1)
""",
            "all positions were added": """
def whole_kl(policy_logits, reference_logits):
    p, q = policy_logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()
""",
        },
    ),
    "10.4": Answers(
        right=[
            """
import torch

def whiten(values, mask):
    real = values[mask]
    result = torch.zeros_like(values)
    result[mask] = (real - real.mean()) / real.std(correction=0)
    return result
""",
            """
import torch

def whiten(values, mask):
    real = values[mask]
    return torch.where(mask, (values - real.mean()) / (real.var(correction=0) + 1e-5).sqrt(), 0.0)
""",
            """
def whiten(values, mask):
    real = values[mask]
    return (values - real.mean()) / (real.std(correction=0) + 1e-5) * mask
""",
        ],
        wrong={
            "padding included": """
def whiten(values, mask):
    return ((values - values.mean()) / values.std()) * mask
""",
            "its zeros count": """
def whiten(values, mask):
    values = values * mask
    return ((values - values.mean()) / values.std(correction=0)) * mask
""",
            "set the padding to 0": """
def whiten(values, mask):
    return (values - values[mask].mean()) / values[mask].std(correction=0)
""",
            "the squares were taken before": """
def whiten(values, mask):
    real = values[mask]
    return (values - real.mean()) / (real**2).mean().sqrt() * mask
""",
            "one less than their number": """
def whiten(values, mask):
    return (values - values[mask].mean()) / values[mask].std() * mask
""",
            "whitened by itself": """
import torch

def whiten(values, mask):
    result = torch.zeros_like(values)
    for row, (numbers, real) in enumerate(zip(values, mask)):
        result[row, real] = (numbers[real] - numbers[real].mean()) / (numbers[real].var(correction=0) + 1e-8).sqrt()
    return result
""",
            "deviation still counts": """
def whiten(values, mask):
    return ((values - values[mask].mean()) / values.std(correction=0)) * mask
""",
        },
    ),
    "10.5": Answers(
        right=[_TOKENS],
        wrong={
            "stands in the last column": """
def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = -kl_coefficient * (log_probabilities - reference)
    rewards[:, -1] += scores
    return rewards * mask
""",
            "the answer ends at its last True": """
def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = -kl_coefficient * (log_probabilities - reference) * mask
    rewards[:, -1] += scores
    return rewards
""",
            "the answer begins behind the prompt": """
import torch

def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = -kl_coefficient * (log_probabilities - reference)
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards * mask
""",
            "the number of choices is not the column": """
import torch

def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = -kl_coefficient * (log_probabilities - reference) * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards
""",
            "in a short answer in the padding": """
def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    rewards = -kl_coefficient * (log_probabilities - reference)
    rewards[:, -1] += scores
    return rewards
""",
            "the sign of the penalty": _TOKENS.replace(
                "(reference[i, places] - log_p", "-(reference[i, places] - log_p"
            ),
            "*and* its penalty": _TOKENS.replace("] += scores[i]", "] = scores[i]"),
            "got the whole score": _TOKENS.replace("rewards[i, places[-1]]", "rewards[i, places]"),
        },
    ),
}
