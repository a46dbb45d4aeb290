"""Exercises of chapter 9: the reward model."""

import math
from typing import Any

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong, close, plain


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- 9.1 -----------------------------------------------------------------------------------------


def check_reward_gap(answer: Answer, fresh: Fresh) -> None:
    for p in (0.5, 0.75, 0.9, 0.2, 0.999, fresh.between(0.02, 0.98)):
        answer.expect(
            (p,),
            math.log(p / (1 - p)),
            {
                "that is the logarithm of the probability; the odds p / (1 - p) are needed.": math.log(p),
                "those are the odds; the gap is their logarithm.": p / (1 - p),
                "that is the way from a gap to a probability; the way back is wanted.": _sigmoid(p),
                "the sign: an answer that wins more than half of the votes has the *higher* reward.": math.log(
                    (1 - p) / p
                ),
                "that is the base-10 logarithm, as in chess; here it is the natural one.": math.log10(p / (1 - p)),
                "with log 2 the sigmoid does not give the probability back; take the natural logarithm.": math.log2(
                    p / (1 - p)
                ),
            },
            tolerance=1e-4,
        )


# --- 9.2 -----------------------------------------------------------------------------------------


def check_rewards_at_end(answer: Answer, fresh: Fresh) -> None:
    cases = [(1, 4, [2]), (2, 3, [3, 2]), (3, 5, [1, 5, 3])]
    cases.append((6, 12, [fresh.integer(2, 12) for _ in range(6)]))
    for B, T, lengths in cases:
        for dtype in (torch.float32, torch.bfloat16):
            values, ends = fresh.normal(B, T, dtype=dtype), torch.tensor(lengths)
            if B == 1:
                values = torch.tensor([[1.0, 3.0, 7.0, 8.0]], dtype=dtype)
            rows = torch.arange(B)
            real = torch.arange(T) < ends[:, None]
            answer.expect(
                (values, ends),
                values[rows, ends - 1],
                {
                    "one too far: a row of n tokens has its last one at n - 1.": lambda: values[
                        rows, ends.clamp(max=T - 1)
                    ],
                    "the last column was read: in a shorter row that is padding, and its number means nothing.": values[
                        :, -1
                    ],
                    "one too early: the last token of a row of n stands at n - 1, not at n - 2.": values[
                        rows, (ends - 2).clamp(min=0)
                    ],
                    "that is the mean over the tokens of the row; the number at its last token is wanted.": (
                        (values * real).sum(dim=1) / ends
                    ),
                    "the mean even counts the padding; the number at the last real token is wanted.": values.mean(
                        dim=1
                    ),
                    "the first column was read: there the model has not yet seen the answer.": values[:, 0],
                    "every row was read at every end: (B, B) instead of (B,). Rows and columns must be indexed in "
                    "pairs.": values[:, ends - 1],
                    "the axis of length 1 is still there: squeeze it.": values[rows, ends - 1][:, None],
                },
            )


# --- 9.3 -----------------------------------------------------------------------------------------


def check_best_accuracy(answer: Answer, fresh: Fresh) -> None:
    cases = [([0.0], 6.0), ([0.2], 6.0), ([-0.2], 6.0), ([0.1, -0.5], 6.0)]
    for size in (3, 20):
        cases.append(([fresh.between(-1, 1) for _ in range(size)], fresh.between(0.5, 8)))
    for gaps, sharpness in cases:
        n = len(gaps)
        chances = [_sigmoid(sharpness * abs(gap)) for gap in gaps]
        right = sum(chances) / n
        answer.expect(
            (gaps, sharpness),
            right,
            {
                "that is how often the *first* answer wins. The judge knows which is better, and is wrong only when the "
                "voter is.": sum(_sigmoid(sharpness * gap) for gap in gaps) / n,
                "the sharpness of the voters is left out.": sum(_sigmoid(abs(gap)) for gap in gaps) / n,
                "the mean of the gaps was put into the sigmoid; a curve's mean is not the curve at the mean.": _sigmoid(
                    sharpness * sum(map(abs, gaps)) / n
                ),
                "that is how often two *voters* agree; a judge that knows the truth does not waver.": sum(
                    p**2 + (1 - p) ** 2 for p in chances
                )
                / n,
                "that is the sum over the pairs; their mean is wanted.": sum(chances),
                "that is in per cent; a share between 0 and 1 is wanted.": 100 * right,
                "a judge that knows the truth still disagrees with a voter who errs: it cannot reach 1.": 1.0,
                "that is how often the judge and the voter disagree.": 1 - right,
            },
            tolerance=1e-5,
        )
    if answer.diagnosing:
        gaps = [fresh.between(-1, 1) for _ in range(20)]
        found = [answer(gaps, 2.0) for _ in range(6)]
        if not all(close(other, found[0], equal_nan=True) for other in found):
            raise Wrong(
                "the result is another one each time: votes were drawn. The probability itself can be computed, so no "
                f"chance is needed.\n{answer.example((gaps, 2.0), once=found[0], again=found[1:])}"
            )


# --- 9.4 -----------------------------------------------------------------------------------------


def _ranking_gradient(rewards: Tensor) -> Tensor:
    """The gradient of the loss: for each choice the probabilities of what was left, minus 1 at what was chosen."""
    gradient = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        gradient[i:] += rewards[i:].softmax(dim=0)
        gradient[i] -= 1
    return gradient


def check_ranking_loss(answer: Answer, fresh: Fresh) -> None:
    cases = [[0.0, 0.0], [1.0, 0.0], [1.0, 3.0, 2.0], [500.0, -500.0, 0.0]]
    cases += [fresh.normal(4).tolist(), fresh.normal(fresh.integer(5, 9), scale=2.0).tolist()]
    for values in cases:
        for dtype in (torch.float32, torch.float64):
            rewards = torch.tensor(values, dtype=dtype)
            n = len(values)
            terms = [torch.logsumexp(rewards[i:], 0) - rewards[i] for i in range(n)]
            loss = torch.stack(terms).sum()
            pairs = [
                torch.logaddexp(torch.zeros_like(rewards[0]), rewards[j] - rewards[i])
                for i in range(n)
                for j in range(i + 1, n)
            ]
            backwards = [torch.logsumexp(rewards[: i + 1], 0) - rewards[i] for i in range(n)]
            ordered = rewards.sort(descending=True).values
            tolerance = 1e-3 if dtype is torch.float32 else None

            def infinite() -> Any:
                found = answer(rewards)
                return None if rewards.abs().max() < 100 or math.isfinite(found) else found

            found = answer.expect(
                (rewards,),
                loss,
                {
                    "all pairs were compared as if each had been voted on alone. The first is chosen among *all*, the "
                    "second among the rest, and so on.": sum(pairs),
                    "only neighbours were compared; each choice is among all that are left.": lambda: sum(
                        torch.logaddexp(torch.zeros_like(rewards[0]), rewards[i + 1] - rewards[i]) for i in range(n - 1)
                    ),
                    "an answer that is placed is still among those to choose from: the sum runs over what is left.": sum(
                        torch.logsumexp(rewards, 0) - rewards[i] for i in range(n)
                    ),
                    "only the first choice was counted; a ranking has n of them (the last one is certain).": terms[0],
                    "the order is reversed: the first entry is the best answer.": sum(backwards),
                    "the sign: the loss is minus the logarithm of the probability.": -loss,
                    "that is the mean; the loss of a ranking is the sum of its choices.": Either(
                        loss / n, loss / (n - 1)
                    ),
                    "that is the probability of the ranking; the loss is minus its logarithm.": (-loss).exp(),
                    "do not sort the rewards: the order in which they stand is the voter's.": sum(
                        torch.logsumexp(ordered[i:], 0) - ordered[i] for i in range(n)
                    ),
                    "rewards in the hundreds break it: exp(500) is too large, and exp(-500) is 0. It does not help to "
                    "subtract one maximum from all, for what is left may lie far below it: subtract the maximum of what "
                    "is left, or use logsumexp.": infinite,
                },
                tolerance=tolerance,
            )
            if close(found, loss, tolerance):
                answer.expect(
                    (rewards,),
                    _ranking_gradient(rewards),
                    {
                        "the loss is right, but no gradient reaches the rewards, so nothing could be learned from it: "
                        "`float`, `.item()`, `.detach()` and `torch.tensor([...])` cut it off. Below is the gradient.": (
                            torch.zeros_like(rewards)
                        ),
                        "the loss is right, but its gradient with respect to the rewards, below, is not.": lambda: (
                            answer(rewards, gradient=0)
                        ),
                    },
                    tolerance=tolerance,
                    gradient=0,
                )


# --- 9.5 -----------------------------------------------------------------------------------------


def _most_likely(wins: Tensor) -> Tensor:
    """The rewards that are looked for, by Zermelo's fixed point."""
    wins = wins.double()
    votes = wins + wins.T
    strengths = torch.ones(len(wins), dtype=torch.float64)
    for _ in range(1000):
        strengths = wins.sum(dim=1) / (votes / (strengths[:, None] + strengths)).sum(dim=1)
    rewards = strengths.log()
    return rewards - rewards.mean()


def check_fit_rewards(answer: Answer, fresh: Fresh) -> None:
    # Uneven on purpose: who met strong opponents has won less often.
    tables = [[[0, 3], [1, 0]], [[0, 9, 1], [3, 0, 8], [1, 2, 0]]]
    for n in (4, 6):
        true = fresh.normal(n).tolist()
        table = [[0] * n for _ in range(n)]
        for i in range(n):
            for j in range(i + 1, n):
                votes = fresh.integer(5, 60)
                won = min(votes - 1, max(1, round(votes * _sigmoid(true[i] - true[j]))))
                table[i][j], table[j][i] = won, votes - won
        tables.append(table)
    for table in tables:
        wins = torch.tensor(table)
        _check_rewards(answer, wins, answer(wins))


def _check_rewards(answer: Answer, wins: Tensor, found: Any) -> None:
    """Look at the rewards for one table of votes."""

    def wrong(reason: str) -> Wrong:
        return Wrong(f"{reason}\n{answer.example((wins,), expected=_most_likely(wins), yours=found)}")

    n = len(wins)
    try:
        rewards = torch.as_tensor(plain(found)).detach().double().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise wrong("a reward for each answer is expected.") from None
    if rewards.shape != (n,):
        raise wrong(f"{n} rewards are expected, not {len(rewards)}.")
    if not rewards.isfinite().all():
        raise wrong(
            "the rewards are not all finite. If you take steps, they were too large: divide the gradient by the number "
            "of votes."
        )
    votes, won = (wins + wins.T).double(), wins.sum(dim=1).double()

    def expected(rewards: Tensor) -> Tensor:
        """How many votes the rewards let each answer win."""
        return (votes * (rewards[:, None] - rewards).sigmoid()).sum(dim=1)

    def explains(rewards: Tensor, tolerance: float = 4e-3) -> bool:
        """Whether each answer has won as many votes as expected, but for a small share of its votes."""
        return bool((((won - expected(rewards)) / votes.sum(dim=1)).abs() < tolerance).all())

    if explains(rewards, 2e-3):
        if abs(rewards.mean()) > 1e-3:
            raise wrong(
                "the differences are right, but the rewards are to have mean 0: votes say nothing about their level, so "
                "subtract the mean."
            )
        return
    if explains(-rewards):
        raise wrong("the worst answer has the highest reward: `wins[i, j]` counts the votes that i *won* over j.")
    if (rewards > 0).all() and explains(rewards.log()):
        raise wrong("those are strengths; the reward is their logarithm, shifted to mean 0.")
    share = won / votes.sum(dim=1)
    for simple, reason in (
        (share, "those are shares of votes, and they do not say against whom an answer has won."),
        (
            (share / (1 - share)).log(),
            "those are the log odds of the shares of votes, and they do not say against whom.",
        ),
    ):
        if (rewards - rewards.mean() - (simple - simple.mean())).abs().max() < 1e-3:
            if n == 2:
                return  # a larger table shows it better
            raise wrong(f"{reason} To beat a strong opponent is worth more.")
    if explains(rewards * math.log(10)) or explains(rewards * math.log(2)):
        raise wrong("the rewards are in another base: the sigmoid needs natural logarithms.")
    worst = int(((won - expected(rewards)) / votes.sum(dim=1)).abs().argmax())
    raise wrong(
        f"answer {worst}: won {won[worst]:.0f}, your rewards expect {expected(rewards)[worst]:.1f}. If the method is "
        "right, it needs more steps, or a smaller step: divide the gradient by the number of votes."
    )


EXERCISES = (
    Exercise(
        number="9.1",
        title="What a majority is worth",
        minutes=5,
        difficulty=1,
        task="""\
Bradley and Terry: an answer wins with probability sigmoid(gap), where the gap is the difference of the two rewards.
Turn it round: which gap belongs to an answer that wins a share `p` of the votes? Predict for p = 0.5, then for 0.75
and 0.9: does the gap double?""",
        stub='''\
import math


def reward_gap(p):
    """Difference of rewards at which an answer wins with probability p, between 0 and 1."""
    ...''',
        demo="print([reward_gap(p) for p in (0.5, 0.75, 0.9)])",
        checker=check_reward_gap,
        hints=("Solve p = 1 / (1 + exp(-gap)) for the gap.", "exp(-gap) = (1 - p) / p. Take the logarithm."),
        solution='''\
import math


def reward_gap(p):
    """Difference of rewards at which an answer wins with probability p, between 0 and 1."""
    return math.log(p / (1 - p))''',
        praise="Rewards live on the scale of log odds. From 0.5 to 0.75 it is one step, from 0.75 to 0.9 another of the "
        "same length; certainty is infinitely far.",
    ),
    Exercise(
        number="9.2",
        title="Find the bug: a grade for the padding",
        minutes=8,
        difficulty=2,
        task="""\
The reward model gives a number at every position, `(B, T)`. The reward of a conversation is the number at its last
*real* token; rows are padded on the right, and `lengths` `(B,)` says how many tokens of each row are real. The cell
grades the same conversation twice, once alone and once beside a longer one; the grades differ. Repair the function.""",
        stub='''\
import torch


def rewards_at_end(values, lengths):
    """The reward of each row: values (B, T) and lengths (B,) to (B,)."""
    return values[:, -1]''',
        demo="""\
alone = torch.tensor([[0.1, 0.4, 0.9]])
beside = torch.tensor([[0.1, 0.4, 0.9, 7.7, 7.7], [0.2, 0.3, 0.1, 0.5, 0.6]])
print(rewards_at_end(alone, torch.tensor([3])), rewards_at_end(beside, torch.tensor([3, 5])))
# (right: 0.9; 0.9 and 0.6)""",
        checker=check_rewards_at_end,
        hints=(
            "Where does the last real token of a row of n tokens stand?",
            "`values[rows, columns]` with two index tensors takes one entry for each pair; `gather` does it, too.",
        ),
        solution='''\
import torch


def rewards_at_end(values, lengths):
    """The reward of each row: values (B, T) and lengths (B,) to (B,)."""
    return values.gather(1, lengths[:, None] - 1).squeeze(1)''',
        praise="Padding must never change a result. Grade something alone and in a batch: a test of two lines for every "
        "function that takes lengths.",
    ),
    Exercise(
        number="9.3",
        title="How good can a judge be?",
        minutes=6,
        difficulty=2,
        task="""\
Voters err: the better answer wins with probability sigmoid(sharpness x |gap|) only. Somebody reports that a reward
model agrees with 80 % of the votes, and asks why not 100 %. `gaps` is a list of true gaps, of either sign: the quality
of the first answer minus that of the second. Compute the share of votes, between 0 and 1, with which a judge that
knows the *truth* is expected to agree. Predict it for gaps that are all 0.""",
        stub='''\
import math


def best_accuracy(gaps, sharpness):
    """Expected share of votes with which a perfect judge agrees."""
    ...''',
        demo='print(best_accuracy([0.0, 0.0], 6.0), best_accuracy([0.2, -0.5, 0.05], 6.0), "(right: the second is 0.765)")',
        checker=check_best_accuracy,
        hints=(
            "The perfect judge names the better answer of each pair. How probable is it that the voter does, too?",
            "It does not matter which of the two is the better one: |gap|. Take the mean over the pairs.",
        ),
        solution='''\
import math


def best_accuracy(gaps, sharpness):
    """Expected share of votes with which a perfect judge agrees."""
    return sum(1 / (1 + math.exp(-sharpness * abs(gap))) for gap in gaps) / len(gaps)''',
        praise="Before you improve a number, find out where its ceiling is. A model above this one has learned the "
        "voters' noise, has seen the test, or was lucky: look at the interval.",
    ),
    Exercise(
        number="9.4",
        title="Rankings instead of pairs",
        minutes=18,
        difficulty=4,
        task="""\
A voter puts n answers in order, best first. Plackett and Luce extend Bradley and Terry: the best one is chosen among
all n with probability softmax(rewards), the next one in the same way among the n - 1 that are left, and so on.
`rewards` `(n,)` stand in the voter's order. Derive the loss, minus the logarithm of the probability of the whole
order, as a tensor through which a gradient reaches the rewards, and check by hand that for two answers it is the loss
of this chapter. Rewards may be in the hundreds.""",
        stub='''\
import torch


def ranking_loss(rewards):
    """Minus log probability of the order in which the rewards (n,) stand, best first: a scalar tensor."""
    ...''',
        demo="""\
print(ranking_loss(torch.tensor([1.0, 0.0])), "should be", -torch.nn.functional.logsigmoid(torch.tensor(1.0)))
print(ranking_loss(torch.tensor([1.0, 3.0, 2.0])), "(right: 2.7209)")""",
        checker=check_ranking_loss,
        hints=(
            "What is the probability of the first choice? What is left for the second, and what is its probability?",
            "The choice number i contributes log(sum of exp(r_j) over j >= i) - r_i.",
            "`torch.logsumexp(rewards[i:], dim=0)` is safe for large rewards; `logcumsumexp` of the flipped tensor does "
            "all at once.",
        ),
        solution='''\
import torch


def ranking_loss(rewards):
    """Minus log probability of the order in which the rewards (n,) stand, best first: a scalar tensor."""
    left = rewards.flip(0).logcumsumexp(dim=0).flip(0)  # log of the sum over what is left at each choice
    return (left - rewards).sum()''',
        praise="One ranking of four answers says more than one vote, and asks less of people than six votes; the "
        "reward model of InstructGPT (2022) was trained on such rankings, cut into pairs.",
    ),
    Exercise(
        number="9.5",
        title="Project: rewards from a table of votes",
        minutes=25,
        difficulty=4,
        task="""\
No network, only votes: `wins` `(n, n)` holds integers, and `wins[i, j]` counts how often answer i won over answer j.
Every answer has won and lost against every other. Find the rewards `(n,)`, with mean 0, that make these votes most
likely. At the solution each answer has won exactly as many votes as its reward lets one expect: the sum over its votes
of sigmoid(r_i - r_j).

Any method will do: gradient descent on the loss of this chapter, or the fixed point of Zermelo (1929). He begins with
strengths s_i = 1 and replaces all of them again and again, s_i by (votes that i has won) / (sum over j of
n_ij / (s_i + s_j)), where n_ij is the number of votes between i and j. The reward is log s_i.""",
        stub='''\
import torch


def fit_rewards(wins):
    """The rewards (n,) with mean 0 that make the votes wins (n, n) most likely."""
    ...''',
        demo="""\
print(fit_rewards(torch.tensor([[0, 3], [1, 0]])), "(right: 0.549, -0.549)")
print(fit_rewards(torch.tensor([[0, 8, 6], [2, 0, 7], [4, 3, 0]])), "(right: 0.567, -0.142, -0.425)")""",
        checker=check_fit_rewards,
        seconds=30.0,
        hints=(
            "The loss is the sum over i and j of wins[i, j] x softplus(r_j - r_i). Its gradient you may leave to torch.",
            "By hand: the gradient of r_i is minus (votes won - votes expected). Move each reward by that, divided by "
            "the number of its votes, a few hundred times.",
            "Subtract the mean at the end.",
        ),
        solution='''\
import torch


def fit_rewards(wins):
    """The rewards (n,) with mean 0 that make the votes wins (n, n) most likely."""
    wins = wins.double()
    votes = wins + wins.T
    rewards = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(2000):
        expected = votes * (rewards[:, None] - rewards).sigmoid()
        rewards = rewards + 2 * (wins - expected).sum(dim=1) / votes.sum(dim=1)
        rewards = rewards - rewards.mean()
    return rewards''',
        praise="This is how chess players and, on public leaderboards, language models are ranked; the reward model does "
        "the same for answers that nobody has voted on.",
    ),
)
