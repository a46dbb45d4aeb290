"""Exercises of chapter 10: RLHF with PPO."""

import torch
from torch import Tensor

from gptcore import ppo
from gptcore.exercises.exercise import Answer, Exercise, Fresh, from_gptcore

# --- 10.1: the fourth of the six mistakes --------------------------------------------------------


def _loss(
    logits: Tensor,
    old: Tensor,
    reference: Tensor,
    actions: Tensor,
    rewards: Tensor,
    clip: float,
    beta: float,
    fault: str = "",
) -> Tensor:
    logarithms = logits.log_softmax(dim=-1)
    if fault == "vocabulary":
        return -(logarithms * rewards[:, None]).mean()
    if fault == "probabilities":
        logarithms = logits.softmax(dim=-1)
    if fault == "logits":
        logarithms = logits
    new = logarithms.gather(1, actions[:, None]).squeeze(1)
    advantages = rewards if fault == "baseline" else rewards - rewards.mean()
    if fault == "reinforce":
        return -(new * advantages).mean()
    ratio = (old - new).exp() if fault == "upside down" else (new - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    if fault == "unclipped":
        gain = ratio * advantages
    elif fault == "only clipped":
        gain = clipped * advantages
    elif fault == "larger":
        gain = torch.maximum(ratio * advantages, clipped * advantages)
    else:
        gain = torch.minimum(ratio * advantages, clipped * advantages)
    difference = reference - new
    kl = difference.exp() - 1 - difference
    if fault == "k1":
        kl = -difference
    if fault == "turned":
        kl = (-difference).exp() - 1 + difference
    if fault == "sign":
        return (gain + beta * kl).mean()
    if fault == "bonus":
        return (-gain - beta * kl).mean()
    if fault == "kl":
        return -gain.mean()
    if fault == "sum":
        return (-gain + beta * kl).sum()
    return (-gain + beta * kl).mean()


def check_ppo_loss(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "vocabulary": "the reward is given to *every* token of the vocabulary, also to those that were not chosen: reward "
        "and blame cancel, and no answer is learned. Only the sampled action's probability may be pushed.",
        "baseline": "there is no baseline: with rewards that are all positive, everything that was tried becomes more "
        "probable, also what was worse than average. Subtract the mean reward of the batch.",
        "reinforce": "that is REINFORCE with a baseline. A rollout that is used more than once needs the ratio of new to "
        "old probability, the clip and the KL penalty.",
        "unclipped": "the ratio is not clipped: a step may run away as far as it likes.",
        "only clipped": "take the *smaller* of the clipped and the unclipped gain: a step that went the wrong way must "
        "still be pushed back.",
        "larger": "of the clipped and the unclipped gain the *smaller* one counts; the larger one rewards running away.",
        "kl": "the KL penalty is missing: nothing keeps the policy near the reference.",
        "k1": "the estimator k3, exp(d) - 1 - d, is wanted, which is never negative; yours is the plain difference.",
        "turned": "in the KL estimate d = log p_ref - log p; yours has the opposite sign.",
        "upside down": "the ratio is new / old, exp(new - old); yours is upside down.",
        "sign": "the sign: a loss is to fall when gain rises.",
        "bonus": "the KL must raise the loss; yours rewards going away from the reference.",
        "probabilities": "probabilities were used in place of log-probabilities.",
        "logits": "logits are no log-probabilities: `log_softmax` first.",
        "sum": "the mean over the samples is wanted, not the sum.",
    }
    cases = [(2, 2, 0.2, 0.0), (2, 2, 0.2, 0.5), (3, 3, 0.1, 0.1), (fresh.integer(6, 20), 8, 0.2, 0.3)]
    for N, V, clip, beta in cases:
        for dtype in (torch.float64, torch.float32):
            logits = fresh.normal(N, V, dtype=dtype, scale=1.5)
            actions = fresh.integers(0, V, N)
            new = logits.log_softmax(dim=-1).gather(1, actions[:, None]).squeeze(1)
            old, reference = (new + fresh.normal(N, dtype=dtype, scale=0.6) for _ in range(2))
            rewards = fresh.normal(N, dtype=dtype) + 2
            arguments = (logits, old, reference, actions, rewards, clip, beta)
            for gradient in (None, 0):  # the loss, and the gradient that it gives the logits

                def result(fault: str = "") -> Tensor:
                    if gradient is None:
                        return _loss(*arguments, fault)
                    x = logits.clone().requires_grad_(True)
                    (found,) = torch.autograd.grad(_loss(x, *arguments[1:], fault), x)
                    return found

                texts = {text: lambda fault=fault: result(fault) for fault, text in mistakes.items()}
                if gradient == 0:
                    texts["no gradient reaches the logits: is there a `detach` or a `no_grad` too many?"] = (
                        torch.zeros_like(logits)
                    )
                answer.expect(arguments, result(), texts, gradient=gradient)


# --- 10.2 ----------------------------------------------------------------------------------------


def check_still_pushed(answer: Answer, fresh: Fresh) -> None:
    for size in (1, 2, 4, 30):
        for clip in (0.2, fresh.between(0.05, 0.4)):
            ratio = (1 + fresh.normal(size, scale=0.5)).abs().clamp(0.05, 3.0)
            if size == 4:
                ratio = torch.tensor([0.5, 0.5, 2.0, 2.0])
            advantage = fresh.normal(size)
            if size == 4:
                advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
            near = ((ratio - 1).abs() - clip).abs() < 1e-3
            ratio = torch.where(near, torch.ones_like(ratio), ratio)
            advantage[advantage == 0] = 0.5
            inside = (ratio - 1).abs() < clip
            right = torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
            answer.expect(
                (ratio, advantage, clip),
                right,
                {
                    "the sign of the advantage decides, too: a ratio that has gone the *wrong* way is still pushed back, "
                    "however far it went.": inside,
                    "it is the other way round for bad actions: with a negative advantage the ratio is pushed down until "
                    "1 - clip.": ratio < 1 + clip,
                    "it is the other way round for good actions: with a positive advantage the ratio is pushed up until "
                    "1 + clip.": ratio > 1 - clip,
                    "that is where the clip stops the push; wanted is where it goes on.": ~right,
                    "good and bad actions have changed places.": torch.where(
                        advantage > 0, ratio > 1 - clip, ratio < 1 + clip
                    ),
                    "the pattern is right, but True and False are wanted, dtype bool.": right.float(),
                    "only good actions were looked at; bad ones are pushed down.": (advantage > 0) & right,
                },
            )


# --- 10.3 ----------------------------------------------------------------------------------------


def check_exact_kl(answer: Answer, fresh: Fresh) -> None:
    for shape in ((2,), (1, 3), (2, 4), (3, 2, fresh.integer(5, 40))):
        for dtype in (torch.float32, torch.float64):
            policy, reference = (fresh.normal(*shape, dtype=dtype, scale=1.5) for _ in range(2))
            p, q = policy.log_softmax(dim=-1), reference.log_softmax(dim=-1)
            right = (p.exp() * (p - q)).sum(dim=-1)
            answer.expect(
                (policy, reference),
                right,
                {
                    "the wrong way round: that is KL(reference || policy). The expectation is over what the *policy* "
                    "says.": (q.exp() * (q - p)).sum(dim=-1),
                    "logits were subtracted; they are log-probabilities only after `log_softmax`.": (
                        p.exp() * (policy - reference)
                    ).sum(dim=-1),
                    "that is in bits; nats are wanted.": right / torch.log(torch.tensor(2.0, dtype=dtype)),
                    "that is the cross-entropy; subtract the policy's entropy.": -(p.exp() * q).sum(dim=-1),
                    "all positions were added; each has a KL of its own.": right.sum() if right.dim() else None,
                    "the mean over all positions; each has a KL of its own.": right.mean() if right.dim() else None,
                    "the mean over the vocabulary: the probabilities are weights already, so it is a sum.": (
                        p.exp() * (p - q)
                    ).mean(dim=-1),
                    "the differences were not weighed by the policy's probabilities.": (p - q).sum(dim=-1),
                    "the sign: a KL is never negative.": -right,
                },
                tolerance=1e-3 if dtype is torch.float32 else None,
            )


# --- 10.4 ----------------------------------------------------------------------------------------


def check_whiten(answer: Answer, fresh: Fresh) -> None:
    def parts(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mean = values[mask].mean()
        return mean, ((values[mask] - mean) ** 2).mean()

    cases = [([2], 3), ([3, 1], 4), ([4, 2, 3], 5), ([fresh.integer(1, 9) for _ in range(6)], 9)]
    for lengths, T in cases:
        for dtype in (torch.float32, torch.float64):
            mask = torch.arange(T) < torch.tensor(lengths)[:, None]
            values = fresh.normal(len(lengths), T, dtype=dtype) * 2 + 3
            values = torch.where(mask, values, torch.full_like(values, 9.0))
            mean, variance = parts(values, mask)
            right = ((values - mean) / (variance + 1e-8).sqrt()).masked_fill(~mask, 0.0)
            if variance < 1e-4:
                continue
            zeroed = values.masked_fill(~mask, 0.0)
            own = zeroed.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            answer.expect(
                (values, mask),
                right,
                {
                    "mean and deviation were taken over everything, padding included.": lambda: (
                        (values - values.mean()) / values.std(correction=0)
                    ).masked_fill(~mask, 0.0),
                    "mean and deviation were taken over everything, padding included. ": lambda: (
                        (values - values.mean()) / values.std()
                    ).masked_fill(~mask, 0.0),
                    "mean and deviation were taken over everything, padding included, and padding is not set to 0.": (
                        lambda: (values - values.mean()) / values.std()
                    ),
                    "padding was set to 0 before mean and deviation were taken: its zeros count.": lambda: (
                        (zeroed - zeroed.mean()) / zeroed.std(correction=0)
                    ).masked_fill(~mask, 0.0),
                    "padding was set to 0 before mean and deviation were taken: its zeros count. ": lambda: (
                        (zeroed - zeroed.mean()) / zeroed.std()
                    ).masked_fill(~mask, 0.0),
                    "padding was set to 0 before mean and deviation were taken, so its zeros count.": lambda: (
                        (zeroed - zeroed.mean()) / zeroed.std()
                    ),
                    "the mean is right, but the deviation still counts the padding.": lambda: (
                        (values - mean) / values.std(correction=0)
                    ).masked_fill(~mask, 0.0),
                    "the mean is right, but the deviation still counts the padding. ": lambda: (
                        (values - mean) / values.std()
                    ).masked_fill(~mask, 0.0),
                    "the sum of the squares was divided by one less than their number; here the variance is their mean.": (
                        lambda: ((values - mean) / values[mask].std()).masked_fill(~mask, 0.0)
                    ),
                    "the real entries are right; set the padding to 0.": (values - mean) / (variance + 1e-8).sqrt(),
                    "the mean was subtracted, but the spread is not 1.": (values - mean).masked_fill(~mask, 0.0),
                    "divided by the variance; the root of it is the deviation.": (
                        (values - mean) / variance
                    ).masked_fill(~mask, 0.0),
                    "every row was whitened by itself: then a bad answer is as good as a good one.": lambda: (
                        (values - own)
                        / (
                            ((zeroed - own) ** 2).masked_fill(~mask, 0.0).sum(1, keepdim=True)
                            / mask.sum(1, keepdim=True)
                        ).sqrt()
                    ).masked_fill(~mask, 0.0),
                },
                tolerance=1e-3 if dtype is torch.float32 else None,
            )


# --- 10.5 ----------------------------------------------------------------------------------------


def _token_rewards(
    scores: Tensor, own: Tensor, reference: Tensor, mask: Tensor, beta: float, fault: str = ""
) -> Tensor:
    difference = own - reference
    penalty = -beta * difference
    if fault == "bonus":
        penalty = beta * difference
    if fault == "k3":
        penalty = -beta * ((-difference).exp() - 1 + difference)
    if fault == "no kl":
        penalty = torch.zeros_like(difference)
    rewards = penalty.clone()
    ends = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    rows = torch.arange(len(scores))
    if fault == "column":
        rewards[:, -1] += scores
        return rewards
    if fault == "every":
        rewards = rewards + scores[:, None]
    elif fault == "replaced":
        rewards[rows, ends] = scores
    elif fault == "late":
        rewards[rows, (ends + 1).clamp(max=mask.shape[1] - 1)] += scores
        return rewards.masked_fill(~mask & (torch.arange(mask.shape[1]) != (ends + 1)[:, None]), 0.0)
    elif fault == "first":
        rewards[rows, mask.int().argmax(dim=1)] += scores
    elif fault == "spread":
        rewards = rewards + (scores / mask.sum(dim=1))[:, None]
    else:
        rewards[rows, ends] += scores
    return rewards if fault == "outside" else rewards.masked_fill(~mask, 0.0)


def check_token_rewards(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "bonus": "the sign of the penalty: a token that the policy likes more than the reference does must cost.",
        "k3": "the penalty of a token is beta (log p - log p_ref) itself; the estimator k3 is for the diagnostics.",
        "no kl": "the KL penalty is missing.",
        "column": "the score stands in the last column; in a short answer that is padding. It belongs to the last True of "
        "the row.",
        "every": "every token of the answer got the whole score; only the last one does.",
        "spread": "the score was spread over the tokens; it is given once, for the whole answer, at its last token.",
        "replaced": "the last token gets the score *and* its penalty.",
        "late": "the score stands one place too late; the last True of the row is the choice of the last token.",
        "first": "the score stands at the first choice of the answer; it belongs to the last.",
        "outside": "outside the mask the rewards must be 0: these tokens are not the policy's.",
    }
    cases = [(1, 2, [(0, 1)]), (1, 4, [(1, 3)]), (2, 5, [(1, 3), (2, 5)])]
    for N, T in ((3, 7), (6, 14)):
        spans = []
        for _ in range(N):
            start = fresh.integer(0, T - 3)
            spans.append((start, fresh.integer(start + 1, T - 1)))
        cases.append((N, T, spans))
    for N, T, spans in cases:
        for dtype in (torch.float32, torch.float64):
            position = torch.arange(T)
            mask = torch.stack([(position >= a) & (position < b) for a, b in spans])
            scores = fresh.normal(N, dtype=dtype)
            own, reference = (-fresh.normal(N, T, dtype=dtype).abs() for _ in range(2))
            arguments = (scores, own, reference, mask, 0.5)
            answer.expect(
                arguments,
                _token_rewards(*arguments),
                {text: lambda fault=fault: _token_rewards(*arguments, fault) for fault, text in mistakes.items()},
            )


EXERCISES = (
    Exercise(
        number="10.1",
        title='Find the bug: a "PPO" that is none',
        minutes=30,
        difficulty=4,
        task="""\
This loss is called PPO in many a tutorial. The cell lets it learn a single choice between three answers with rewards
1.0, 0.9 and 0.2. After a thousand steps the policy should nearly always give the first one. It does not care.

Five things are missing. Write the loss with all of them, for `N` samples: the log-probability of the **sampled
action** only (from the `(N, V)` logits), a **baseline**, the mean reward of the batch, the **ratio** to the
probability at the time of sampling (`old`, `(N,)` log-probabilities), the **clip**, and the **KL** penalty,
`beta` times the estimator k3 = exp(d) - 1 - d with d = log p_ref - log p. Everything is averaged over the samples.""",
        stub='''\
import torch


def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    """Loss of N samples: logits (N, V), the rest (N,); a scalar."""
    return -(torch.log_softmax(logits, dim=-1) * rewards[:, None]).mean()''',
        demo="""\
torch.manual_seed(0)
policy = torch.zeros(3, requires_grad=True)
optimizer = torch.optim.SGD([policy], lr=0.5)
for _ in range(1000):
    logits = policy.expand(16, 3)
    actions = torch.multinomial(logits.softmax(dim=-1).detach(), 1).squeeze(1)
    old = logits.log_softmax(dim=-1).gather(1, actions[:, None]).squeeze(1).detach()
    rewards = torch.tensor([1.0, 0.9, 0.2])[actions]
    loss = ppo_loss(logits, old, torch.full((16,), 1 / 3).log(), actions, rewards, clip=0.2, beta=0.01)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("probabilities of the three answers:", [round(p, 3) for p in policy.softmax(dim=-1).tolist()])""",
        checker=check_ppo_loss,
        hints=(
            "One after the other. The sampled action: `log_softmax(...).gather(1, actions[:, None]).squeeze(1)`. The "
            "baseline: `rewards - rewards.mean()`.",
            "The gain of a sample is the smaller of ratio x advantage and clamped ratio x advantage; the loss is minus "
            "the gain, plus beta x k3.",
            "`ratio = (new - old).exp()`, `gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)`.",
        ),
        solution='''\
import torch


def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    """Loss of N samples: logits (N, V), the rest (N,); a scalar."""
    new = torch.log_softmax(logits, dim=-1).gather(1, actions[:, None]).squeeze(1)  # of the sampled action
    advantages = rewards - rewards.mean()  # better or worse than the batch
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    difference = reference - new
    kl = difference.exp() - 1 - difference
    return (-gain + beta * kl).mean()''',
        praise="You now have all of PPO but the values; each of the five parts answers a failure that somebody has "
        "seen.",
    ),
    Exercise(
        number="10.2",
        title="Does the clip still let it go?",
        minutes=12,
        difficulty=2,
        task="""\
PPO takes the smaller of `ratio * A` and `clamp(ratio, 1 - clip, 1 + clip) * A`. For which ratios and advantages does
the gradient still push the policy, and for which has the clip stopped it? Think the four cases through on paper:
good or bad action, ratio above or below its band. Then write it for tensors of any length: True where it is still
pushed. (No advantage is 0, and no ratio lies on an edge.)""",
        stub='''\
import torch


def still_pushed(ratio, advantage, clip):
    """Where the clipped objective has a gradient: (N,) ratios and advantages to (N,) bool."""
    ...''',
        demo="print(still_pushed(torch.tensor([0.5, 0.5, 2.0, 2.0]), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2))",
        checker=check_still_pushed,
        hints=(
            "Where the clamped one is the smaller of the two, the ratio has no influence and there is no gradient.",
            "A good action whose probability has *fallen* is pushed up with full force. A good one that has risen beyond "
            "1 + clip is left alone.",
        ),
        solution='''\
import torch


def still_pushed(ratio, advantage, clip):
    """Where the clipped objective has a gradient: (N,) ratios and advantages to (N,) bool."""
    return torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)''',
        praise="The clip is no wall but a one-way gate: what has gone far enough is no longer pushed, what went astray is "
        "brought back.",
    ),
    Exercise(
        number="10.3",
        title="The whole KL",
        minutes=12,
        difficulty=2,
        task="""\
In training the KL is estimated from the sampled token alone. With the logits of both models it can be computed
exactly, over the whole vocabulary. Write KL(policy || reference) in nats for logits `(..., V)`: one number for each
position, `(...)`.""",
        stub='''\
import torch


def exact_kl(policy_logits, reference_logits):
    """KL(policy || reference) at every position: logits (..., V) to (...)."""
    ...''',
        demo="print(exact_kl(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 2)))",
        checker=check_exact_kl,
        hints=(
            "KL(p || q) is the expectation under p of log p - log q.",
            "`p = policy_logits.log_softmax(-1)`, the same for q, then `(p.exp() * (p - q)).sum(-1)`.",
        ),
        solution='''\
import torch


def exact_kl(policy_logits, reference_logits):
    """KL(policy || reference) at every position: logits (..., V) to (...)."""
    p, q = policy_logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)''',
        praise="The estimators of this chapter give this number on average; sampling makes them cheap and noisy.",
    ),
    Exercise(
        number="10.4",
        title="Find the bug: advantages spoiled by padding",
        minutes=12,
        difficulty=2,
        task="""\
Before the update, advantages are shifted and scaled to mean 0 and variance 1. The rows are padded, and the mask says
what is real. In the cell the padding holds a 9 in one case and a 0 in the other; the real entries should come out the
same. Repair the function: mean and variance over the real entries of the whole batch (the variance is the mean of the
squares), and 0 where the mask is False.""",
        stub='''\
import torch


def whiten(values, mask):
    """Mean 0 and variance 1 over the mask: values (N, T) and a bool mask (N, T) to (N, T)."""
    return (values - values.mean()) / values.std()''',
        demo="""\
mask = torch.tensor([[True, True, True], [True, False, False]])
for padding in (9.0, 0.0):
    print(whiten(torch.tensor([[1.0, 2.0, 3.0], [4.0, padding, padding]]), mask))""",
        checker=check_whiten,
        hints=(
            "`values[mask]` is a vector of the real entries.",
            "gptcore has `masked_mean(values, mask)`; use it twice, and `masked_fill` at the end.",
        ),
        solution=from_gptcore(ppo.whiten, ppo.masked_mean, imports="import torch\nfrom torch import Tensor"),
        praise="Statistics over padding are one of the quiet bugs: everything runs, and the step size depends on how "
        "long the longest answer of the batch is.",
    ),
    Exercise(
        number="10.5",
        title="A reward for every token",
        minutes=25,
        difficulty=4,
        task="""\
The reward model grades whole answers; PPO needs a reward for each token. Every choice pays the KL penalty, beta times
(log p - log p_ref); the last choice of the answer also gets the score. `mask` `(N, T)` says which choices are the
policy's own; the answer ends at the last True of a row, and behind it there is padding. Return `(N, T)`, 0 outside
the mask.""",
        stub='''\
import torch


def token_rewards(scores, log_probabilities, reference, mask, kl_coefficient):
    """Rewards (N, T) from scores (N,) and the log-probabilities (N, T) of policy and reference."""
    ...''',
        demo="""\
print(
    token_rewards(
        torch.tensor([1.0]),
        torch.tensor([[-1.0, -2.0, -1.0, -3.0]]),
        torch.tensor([[-1.5, -2.0, -2.0, -1.0]]),
        torch.tensor([[False, True, True, False]]),
        0.5,
    )
)  # by hand: 0, -0, 1 - 0.5, 0""",
        checker=check_token_rewards,
        hints=(
            "First the penalty everywhere, then the score at one place of each row, then zeros outside the mask.",
            "The last True of a row: turn the row round, find the first True with `argmax`, and count back.",
        ),
        solution=from_gptcore(ppo.token_rewards, imports="import torch\nfrom torch import Tensor"),
        praise="An answer earns its grade only at the end; how the praise finds its way back to the token that deserved "
        "it is the business of the values.",
    ),
)
