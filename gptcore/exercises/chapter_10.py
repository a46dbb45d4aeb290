"""Exercises of chapter 10: RLHF with PPO."""

import torch
from torch import Tensor

from gptcore.advantages import token_rewards, whiten
from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message, close, from_gptcore
from gptcore.shapes import masked_mean

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
    ratio = (old - new).exp() if fault == "upside down" else (new - old).exp()
    if fault == "no exp":
        ratio = new - old
    clipped = ratio.clamp(1 - clip, 1 + clip)
    if fault == "unclipped":
        gain = ratio * advantages
    elif fault == "only clipped":
        gain = clipped * advantages
    elif fault == "larger":
        gain = torch.maximum(ratio * advantages, clipped * advantages)
    elif fault.startswith("product"):
        gain = (ratio * advantages).clamp(1 - clip, 1 + clip)
        gain = torch.minimum(ratio * advantages, gain) if fault == "product, smaller" else gain
    elif fault.startswith("reinforce"):
        gain = new * advantages
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
    if fault == "detached kl":
        kl = kl.detach()
    if fault in ("kl", "reinforce"):
        return -gain.mean()
    if fault == "sum":
        return (-gain + beta * kl).sum()
    return (-gain + beta * kl).mean()


def check_ppo_loss(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "vocabulary": "the reward is given to *every* token of the vocabulary, also to those that were not chosen: praise "
        "for all at once only flattens the policy. Only the sampled action's probability may be pushed.",
        "baseline": "there is no baseline: with rewards that are all positive, everything that was tried becomes more "
        "probable, also what was worse than average. Subtract the mean reward of the batch.",
        "reinforce": "that is REINFORCE with a baseline. A rollout that is used more than once needs the ratio of new to "
        "old probability, the clip and the KL penalty.",
        "reinforce and kl": "log-probability times advantage is REINFORCE. A rollout that is used more than once needs "
        "the ratio of new to old probability and its clip instead.",
        "no exp": "new - old is the logarithm of the ratio, for these are logarithms: ratio = exp(new - old).",
        "unclipped": "the ratio is not clipped: a step may run away as far as it likes.",
        "only clipped": "take the *smaller* of the clipped and the unclipped gain: a step that went the wrong way must "
        "still be pushed back.",
        "larger": "of the clipped and the unclipped gain the *smaller* one counts; the larger one rewards running away.",
        "product": "the product was clipped; clip the ratio alone, then multiply by the advantage.",
        "product, smaller": "the product was clipped; clip the ratio alone, then multiply by the advantage.",
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

    def case(N: int, V: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits, old and reference log-probabilities, actions and rewards."""
        if N == 2:  # ratios 2 and 1, advantages 0.5 and -0.5
            old, reference = torch.tensor([[0.25, 0.5], [0.5, 0.5]], dtype=dtype).log()
            return (
                torch.zeros(2, 2, dtype=dtype),
                old,
                reference,
                torch.tensor([0, 1]),
                torch.tensor([1.0, 0.0]).to(dtype),
            )
        if N == 4:  # ratios 0.625, 0.625, 2 and 2, advantages of both signs with either
            old, reference = torch.tensor([[0.8, 0.8, 0.25, 0.25], [0.8, 0.3, 0.7, 0.2]], dtype=dtype).log()
            rewards = torch.tensor([4.0, 0.0, 3.0, 1.0], dtype=dtype)
            return torch.zeros(4, 2, dtype=dtype), old, reference, torch.tensor([0, 1, 1, 0]), rewards
        actions = fresh.integers(0, V, N)
        logits = fresh.normal(N, V, dtype=dtype, scale=1.5)
        new = logits.log_softmax(dim=-1).gather(1, actions[:, None]).squeeze(1)
        old, reference = ((new + fresh.normal(N, dtype=dtype, scale=0.6)).clamp(max=-0.01) for _ in range(2))
        return logits, old, reference, actions, fresh.normal(N, dtype=dtype) + 2

    for N, V, clip, beta in ((2, 2, 0.2, 0.0), (4, 2, 0.2, 0.5), (3, 3, 0.1, 0.1), (fresh.integer(6, 20), 8, 0.2, 0.3)):
        for dtype in (torch.float64, torch.float32):
            arguments = (*case(N, V, dtype), clip, beta)
            right = _loss(*arguments)
            found = answer.expect(
                arguments,
                right,
                by_message(mistakes, lambda fault: _loss(*arguments, fault)),
            )
            if not close(found, right):
                continue

            def gradient(fault: str = "") -> Tensor:
                logits = arguments[0].clone().requires_grad_(True)
                return torch.autograd.grad(_loss(logits, *arguments[1:], fault), logits)[0]

            answer.expect(
                arguments,
                gradient(),
                {
                    "no gradient reaches the logits: is there a `detach` or a `no_grad` too many? Below is the gradient "
                    "of the loss with respect to them.": torch.zeros_like(arguments[0]),
                    "the KL has no gradient: is there a `detach` or a `no_grad` too many? Below is the gradient of the "
                    "loss with respect to the logits.": lambda: gradient("detached kl"),
                    "the loss is right, but its gradient with respect to the logits, below, is not.": lambda: answer(
                        *arguments, gradient=0
                    ),
                },
                gradient=0,
            )


# --- 10.2 ----------------------------------------------------------------------------------------


def check_still_pushed(answer: Answer, fresh: Fresh) -> None:
    cases = [([r], [a], 0.2) for r, a in ((1.5, 1.0), (0.5, 1.0), (1.5, -1.0), (0.5, -1.0), (1.0, 1.0), (1.0, -1.0))]
    cases += [([1.1], [1.0], 0.05), ([0.9], [-1.0], 0.05), ([1.3], [1.0], 0.5), ([0.7], [-1.0], 0.5)]
    cases.append(([0.5, 0.5, 2.0, 2.0], [1.0, -1.0, 1.0, -1.0], 0.2))
    for clip in (0.2, fresh.between(0.05, 0.4)):
        ratio = (1 + fresh.normal(30, scale=0.5)).abs().clamp(0.05, 3.0)
        ratio[((ratio - 1).abs() - clip).abs() < 1e-3] = 1.0  # none on an edge
        advantage = fresh.normal(30)
        advantage[advantage == 0] = 0.5
        cases.append((ratio.tolist(), advantage.tolist(), clip))
    for ratios, advantages, clip in cases:
        ratio, advantage = torch.tensor(ratios), torch.tensor(advantages)

        def pushed(clip: float, ratio: Tensor = ratio, advantage: Tensor = advantage) -> Tensor:
            return torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)

        right = pushed(clip)
        answer.expect(
            (ratio, advantage, clip),
            right,
            {
                "the sign of the advantage decides, too: a ratio that has gone the *wrong* way is still pushed back, "
                "however far it went.": (ratio - 1).abs() < clip,
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
                "your edge does not depend on `clip`: 0.2 is only the usual one.": pushed(0.2),
                "inside the range, from 1 - clip to 1 + clip, both gains are equal, and the gradient is there.": (
                    torch.where(advantage > 0, ratio < 1 - clip, ratio > 1 + clip)
                ),
            },
        )


# --- 10.3 ----------------------------------------------------------------------------------------


def check_whole_kl(answer: Answer, fresh: Fresh) -> None:
    cases: list[list[list[float]] | tuple[int, ...]] = [[[3.0, 0.0], [0.0, 0.0]], (1, 3), (2, 4)]
    cases += [[[200.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [200.0, 0.0]], (3, 2, fresh.integer(5, 40))]
    for case in cases:
        for dtype in (torch.float32, torch.float64):
            if isinstance(case, list):
                policy, reference = (torch.tensor(logits, dtype=dtype) for logits in case)
            else:
                policy, reference = (fresh.normal(*case, dtype=dtype, scale=1.5) for _ in range(2))
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
                    "that is the estimator k3, summed over the vocabulary; it is for sampled tokens. Here the "
                    "probabilities are known: weigh log p - log q by them.": ((q - p).exp() - 1 - (q - p)).sum(dim=-1),
                    "the logarithm of a softmax breaks for large logits, where a probability is rounded to 0; "
                    "`log_softmax` does not.": (p.exp() * (p.exp().log() - q.exp().log())).sum(dim=-1),
                    "a number was added inside the logarithm: it changes the KL wherever a probability is small. "
                    "`log_softmax` needs none.": Either(
                        *(
                            (p.exp() * ((p.exp() + small).log() - (q.exp() + small).log())).sum(dim=-1)
                            for small in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)
                        )
                    ),
                },
                tolerance=1e-3 if dtype is torch.float32 else 1e-5,
            )


# --- 10.4 ----------------------------------------------------------------------------------------


def check_whiten(answer: Answer, fresh: Fresh) -> None:
    cases = [
        (torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([2])),
        (torch.tensor([[0.0, 2.0, 9.0], [4.0, 6.0, 9.0]]), torch.tensor([2, 2])),
    ]
    for lengths in ([3, 1], [4, 2, 3], [fresh.integer(2, 9) for _ in range(6)]):
        ends, T = torch.tensor(lengths), max(lengths) + 1
        while True:  # a small number beside the variance or the deviation must not matter
            values = fresh.normal(len(lengths), T, dtype=torch.float64) * 2 + 3
            values[torch.arange(T) >= ends[:, None]] = 9.0
            if values[torch.arange(T) < ends[:, None]].std(correction=0) > 0.5:
                break
        cases.append((values, ends))
    for numbers, ends in cases:
        for dtype in (torch.float32, torch.float64):
            values, mask = numbers.to(dtype), torch.arange(numbers.shape[1]) < ends[:, None]
            real, zeroed = values[mask], values.masked_fill(~mask, 0.0)
            mean, deviation = real.mean(), real.std(correction=0)
            own = zeroed.sum(dim=1, keepdim=True) / ends[:, None]
            spreads = ((values - own) ** 2 * mask).sum(dim=1, keepdim=True) / ends[:, None]
            shifted = (values - mean) * mask
            answer.expect(
                (values, mask),
                shifted / deviation,
                {
                    "mean and deviation were taken over everything, padding included.": Either(
                        (values - values.mean()) / values.std(correction=0) * mask,
                        (values - values.mean()) / values.std() * mask,
                    ),
                    "mean and deviation were taken over everything, padding included, and padding is not set to 0.": (
                        (values - values.mean()) / values.std()
                    ),
                    "padding was set to 0 before mean and deviation were taken: its zeros count.": Either(
                        (zeroed - zeroed.mean()) / zeroed.std(correction=0) * mask,
                        (zeroed - zeroed.mean()) / zeroed.std() * mask,
                        (zeroed - zeroed.mean()) / zeroed.std(),
                        (zeroed - zeroed.mean()) / zeroed.std(correction=0),
                    ),
                    "the mean is right, but the deviation still counts the padding.": Either(
                        shifted / values.std(correction=0), shifted / values.std()
                    ),
                    "the sum of the squares was divided by one less than their number; here the variance is their mean.": (
                        shifted / real.std()
                    ),
                    "the real entries are right; set the padding to 0.": (values - mean) / deviation,
                    "the mean was subtracted, but the spread is not 1.": shifted,
                    "divided by the variance; the root of it is the deviation.": shifted / deviation**2,
                    "the squares were taken before the mean was subtracted; the variance is the mean of the squared "
                    "distances from the mean.": shifted / (real**2).mean().sqrt(),
                    # A row alone, or a row with a single entry, would tell nothing.
                    "every row was whitened by itself: then a bad answer is as good as a good one.": (
                        (values - own) / spreads.sqrt() * mask if len(ends) > 1 and ends.min() > 1 else None
                    ),
                },
                tolerance=1e-4,
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
    if fault.startswith(("column", "number")):  # the score at another column, inside the mask, outside it, or both
        column = mask.sum(dim=1) - 1 if fault.startswith("number") else -1
        if fault.endswith("added later"):
            rewards = rewards.masked_fill(~mask, 0.0)
        rewards[rows, column] += scores
        return rewards.masked_fill(~mask, 0.0) if fault.endswith("masked") else rewards
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
        **dict.fromkeys(
            ("column", "column, masked", "column, added later"),
            "the score stands in the last column, in a short answer in the padding; the answer ends at its last True.",
        ),
        **dict.fromkeys(
            ("number", "number, masked", "number, added later"),
            "the number of choices is not the column of the last one: the answer begins behind the prompt.",
        ),
        "every": "every token of the answer got the whole score; only the last one does.",
        "spread": "the score was spread over the tokens; it is given once, for the whole answer, at its last token.",
        "replaced": "the last token gets the score *and* its penalty.",
        "late": "the score stands one place too late; the last True of the row is the choice of the last token.",
        "first": "the score stands at the first choice of the answer; it belongs to the last.",
        "outside": "outside the mask the rewards must be 0: these tokens are not the policy's.",
    }
    cases = [(1, 4, [(1, 3)]), (1, 2, [(0, 1)]), (2, 5, [(1, 3), (2, 5)]), (2, 5, [(2, 4), (1, 2)])]
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
            if (N, T) == (1, 4):
                scores = torch.tensor([1.0], dtype=dtype)
                own = torch.tensor([[-1.0, -2.0, -1.0, -3.0]], dtype=dtype)
                reference = torch.tensor([[-1.5, -4.0, -2.0, -1.0]], dtype=dtype)
            arguments = (scores, own, reference, mask, 0.5)
            answer.expect(
                arguments,
                _token_rewards(*arguments),
                by_message(mistakes, lambda fault: _token_rewards(*arguments, fault)),
            )


EXERCISES = (
    Exercise(
        number="10.1",
        title='Find the bug: a "PPO" that is none',
        minutes=20,
        difficulty=4,
        task="""\
This loss is called PPO in many a tutorial. The cell lets it learn a single choice between three answers with rewards
1.0, 0.9 and 0.2. After a thousand steps the policy should nearly always give the first one. It does not care.

Five things are missing. Write the loss with all of them, for `N` samples: the log-probability of the **sampled
action** only (from the `(N, V)` logits), a **baseline**, the mean reward of the batch, the **ratio** to the
probability at the time of sampling (`old`, `(N,)` log-probabilities), the **clip**, and the **KL** penalty,
`beta` times the estimator k3 = exp(d) - 1 - d with d = log p_ref - log p of the sampled action (`reference`, `(N,)`,
is its log p_ref). The chapter charges the KL in the rewards; here, for a single choice, it stands in the loss.
Everything is averaged over the samples. The cell makes three updates with each batch, so that ratio and clip count:
they hold the largest ratio at about 1.2.""",
        stub='''\
import torch


def ppo_loss(logits, old, reference, actions, rewards, clip, beta):
    """Loss of N samples: logits (N, V), the rest (N,); a scalar."""
    return -(torch.log_softmax(logits, dim=-1) * rewards[:, None]).mean()''',
        demo="""\
def learn_a_choice(loss_function):
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(3, requires_grad=True)  # the policy: logits of the three answers
    step = torch.optim.SGD([scores], lr=2.0)
    largest = 0.0
    for _ in range(350):
        old = scores.detach().log_softmax(dim=0)
        actions = old.exp().multinomial(16, replacement=True, generator=generator)
        rewards = torch.tensor([1.0, 0.9, 0.2])[actions]
        for _ in range(3):  # the same batch
            reference = torch.full((16,), 1 / 3).log()
            loss = loss_function(scores.expand(16, 3), old[actions], reference, actions, rewards, clip=0.2, beta=0.01)
            step.zero_grad()
            loss.backward()
            step.step()
        largest = max(largest, (scores.detach().log_softmax(dim=0) - old)[actions].exp().max().item())
    print("probabilities:", [round(p, 2) for p in scores.softmax(dim=0).tolist()], "(right: the first 0.96)")
    print(f"largest ratio: {largest:.2f} (right: 1.20)")


learn_a_choice(ppo_loss)""",
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
good action (A above 0) or bad action, ratio below 1 - clip or above 1 + clip. And what holds between these edges? Then
write it for tensors of any length: True where it is still pushed. (No advantage is 0, and no ratio lies on an edge.)""",
        stub='''\
import torch


def still_pushed(ratio, advantage, clip):
    """Where the clipped objective has a gradient: (N,) ratios and advantages to (N,) bool."""
    ...''',
        demo="""\
print("good action, ratio 0.5, 1 and 2:", still_pushed(torch.tensor([0.5, 1.0, 2.0]), torch.ones(3), 0.2))
print("bad action, ratio 0.5, 1 and 2:", still_pushed(torch.tensor([0.5, 1.0, 2.0]), -torch.ones(3), 0.2))""",
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
        minutes=8,
        difficulty=2,
        task="""\
In training the KL is estimated from the sampled token alone. With the logits of both models it can be computed
exactly, over the whole vocabulary. Write KL(policy || reference) in nats for logits `(..., V)`: one number for each
position, `(...)`. Logits may be in the hundreds.""",
        stub='''\
import torch


def whole_kl(policy_logits, reference_logits):
    """KL(policy || reference) at every position: logits (..., V) to (...)."""
    ...''',
        demo='print(whole_kl(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 2)), "(right: 0, 0.5023)")',
        checker=check_whole_kl,
        hints=(
            "KL(p || q) is the expectation under p of log p - log q.",
            "`p = policy_logits.log_softmax(-1)`, the same for q, then `(p.exp() * (p - q)).sum(-1)`.",
        ),
        solution='''\
import torch


def whole_kl(policy_logits, reference_logits):
    """KL(policy || reference) at every position: logits (..., V) to (...)."""
    p, q = policy_logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)''',
        praise="The estimators of this chapter give this number on average; sampling makes them cheap and noisy.",
    ),
    Exercise(
        number="10.4",
        title="Repair: advantages spoiled by padding",
        minutes=6,
        difficulty=2,
        task="""\
Before the update, advantages are shifted and scaled to mean 0 and variance 1. The rows are padded, and the mask says
what is real: in `(N, T)` a row is an answer, and columns are choices. In the cell the padding holds a 9 in one case and
a 0 in the other; the real entries should come out the same. Repair the function: mean and variance over the real
entries of the whole batch, and 0 where the mask is False. The variance is the mean of the squared distances from the
mean (not divided by n - 1).""",
        stub='''\
import torch


def whiten(values, mask):
    """Mean 0 and variance 1 over the mask: values (N, T) and a bool mask (N, T) to (N, T)."""
    return (values - values.mean()) / values.std()''',
        demo="""\
is_real = torch.tensor([[True, True, True], [True, False, False]])
for filler in (9.0, 0.0):
    print(whiten(torch.tensor([[1.0, 2.0, 3.0], [4.0, filler, filler]]), is_real))
# (right, both times: -1.3416, -0.4472, 0.4472; 1.3416, 0, 0)""",
        checker=check_whiten,
        hints=(
            "`values[mask]` is a vector of the real entries.",
            "With `real = values[mask]`: `real.mean()`, `real.var(correction=0)`, then `torch.where(mask, ..., 0.0)`.",
        ),
        solution=from_gptcore(whiten, masked_mean, imports="import torch\nfrom torch import Tensor"),
        praise="Statistics over padding are one of the quiet bugs: everything runs, and the step size depends on how "
        "long the longest answer of the batch is.",
    ),
    Exercise(
        number="10.5",
        title="A reward for every token",
        minutes=18,
        difficulty=4,
        task="""\
The reward model grades whole answers; PPO needs a reward for each token. Every choice pays the KL penalty, beta
(`kl_coefficient`) times (log p - log p_ref); the last choice of the answer also gets the score. In `(N, T)` columns are
choices, and the bool `mask` says which of them are the policy's own: before the first True of a row stands the prompt,
the answer ends at the last True, and behind it there is padding. Return `(N, T)`, 0 outside the mask.""",
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
        torch.tensor([[-1.5, -4.0, -2.0, -1.0]]),
        torch.tensor([[False, True, True, False]]),
        0.5,
    )
)  # (right: 0, -1, 1 - 0.5, 0)""",
        checker=check_token_rewards,
        hints=(
            "First the penalty everywhere, then the score at one place of each row, then zeros outside the mask.",
            "The last True of a row: turn the row round, find the first True with `argmax`, and count back.",
        ),
        solution=from_gptcore(token_rewards, imports="import torch\nfrom torch import Tensor"),
        praise="An answer earns its grade only at the end; how the praise finds its way back to the token that deserved "
        "it is the business of the values.",
    ),
)
