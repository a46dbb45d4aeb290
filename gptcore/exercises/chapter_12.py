"""Exercises of chapter 12: beyond."""

import math

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message, close, copied, gradient_of

# --- 12.1 ----------------------------------------------------------------------------------------


def check_best_policy(answer: Answer, fresh: Fresh) -> None:
    cases = [([0.5, 0.5], [1.0, 0.0], 1.0), ([0.8, 0.2], [0.0, 1.0], 0.5), ([0.2, 0.3, 0.5], [300.0, 290.0, 0.0], 2.0)]
    cases.append(([0.5, 0.2, 0.3], [900.0, 899.0, 0.0], 1.0))  # exp overflows, in float64, too
    for size in (4, 20):
        cases.append((fresh.probabilities(size).tolist(), fresh.normal(size).tolist(), fresh.between(0.1, 3)))
    for probabilities, scores, beta in cases:
        for dtype in (torch.float32, torch.float64):
            reference, rewards = torch.tensor(probabilities, dtype=dtype), torch.tensor(scores, dtype=dtype)
            reference = reference / reference.sum()
            weighted = (reference.log() + rewards / beta).softmax(dim=0)
            answer.expect(
                (reference, rewards, beta),
                weighted,
                {
                    "the reference is left out: that is the best policy for a reference that is uniform.": (
                        rewards / beta
                    ).softmax(dim=0),
                    "a small beta is a long leash: divide the rewards by beta, do not multiply.": (
                        reference.log() + rewards * beta
                    ).softmax(dim=0),
                    "beta is left out.": (reference.log() + rewards).softmax(dim=0),
                    "the probabilities do not sum to 1: divide by their sum, Z.": Either(
                        reference * (rewards / beta).exp(),
                        reference * ((rewards - rewards.max()) / beta).exp(),
                        reference * (rewards / beta).softmax(dim=0),
                    ),
                    "those are logarithms of the probabilities: take exp of them.": (
                        reference.log() + rewards / beta
                    ).log_softmax(dim=0),
                    "softmax was taken of the product; reference times exp(reward / beta) only needs to be divided by its "
                    "sum.": (reference * (rewards / beta).exp()).softmax(dim=0),
                    "the probabilities of the reference were added as if they were logarithms.": (
                        reference + rewards / beta
                    ).softmax(dim=0),
                    "the KL costs nothing in yours: everything goes to the best answer.": (rewards == rewards.max()).to(
                        dtype
                    ),
                },
            )


# --- 12.2 ----------------------------------------------------------------------------------------


def _ipo(chosen: Tensor, rejected: Tensor, chosen_reference: Tensor, rejected_reference: Tensor, beta: float, fault=""):
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    goal = 1 / (2 * beta)
    if fault == "reference":
        margin = chosen - rejected
    if fault == "plus":
        margin = (chosen + chosen_reference) - (rejected + rejected_reference)
    if fault == "turned":
        margin = -margin
    if fault == "goal":
        goal = beta / 2
    if fault == "one":
        goal = 1 / beta
    if fault == "no goal":
        goal = 0.0
    if fault == "one-sided":
        return (goal - margin).clamp(min=0).square().mean()
    if fault == "dpo":
        return -torch.nn.functional.logsigmoid(beta * margin).mean()
    if fault == "absolute":
        return (margin - goal).abs().mean()
    if fault == "inside":
        return (beta * margin - goal).square().mean()
    if fault == "outside":
        return (margin.mean() - goal).square()
    if fault == "sum":
        return (margin - goal).square().sum()
    return (margin - goal).square().mean()


def check_ipo_loss(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "reference": "the reference is left out: what counts is how much *likelier than under the reference* each answer "
        "has become.",
        "turned": "chosen and rejected have changed places.",
        "plus": "the reference's logarithms are subtracted, not added.",
        "goal": "the goal of the margin is 1 / (2 beta), not beta / 2: a small beta lets it grow.",
        "one": "the goal of the margin is 1 / (2 beta); yours is 1 / beta.",
        "no goal": "the margin is pulled to 0, to no preference at all; its goal is 1 / (2 beta).",
        "dpo": "that is DPO's loss, which pushes a margin for ever; here it has a goal.",
        "one-sided": "a margin beyond the goal must be punished, too.",
        "absolute": "the distance to the goal is squared.",
        "inside": "the margin itself is compared with the goal, not beta times the margin.",
        "outside": "each pair has its own distance to the goal: square first, then take the mean.",
        "sum": "the mean over the pairs is wanted.",
    }
    cases = [([[-1.0], [-6.0], [-2.0], [-3.0]], 0.25)]  # a margin of 4, beyond the goal of 2
    cases.append(([[-1.0, -2.0], [-6.0, -3.0], [-2.0, -2.0], [-3.0, -3.0]], 0.25))  # margins of 4 and 0
    for count in (3, fresh.integer(5, 30)):
        parts = [(-fresh.normal(count, scale=4.0).abs()).tolist() for _ in range(4)]
        cases.append((parts, fresh.between(0.06, 0.4)))
    for parts, beta in cases:
        for dtype in (torch.float64, torch.float32):
            chosen, rejected, chosen_reference, rejected_reference = (torch.tensor(part, dtype=dtype) for part in parts)
            arguments = (chosen, rejected, chosen_reference, rejected_reference, beta)
            answer.expect(
                arguments,
                _ipo(*arguments),
                by_message(mistakes, lambda fault: _ipo(*arguments, fault)),
                tolerance=1e-3 if dtype is torch.float32 else None,
            )
    parts, beta = cases[0]
    first = (*(torch.tensor(part) for part in parts), beta)
    slope = gradient_of(_ipo, [copied(argument) for argument in first], 0)
    answer.expect(
        first,
        slope,
        {
            "the gradient does not pass: `.item()`, `.detach()` and NumPy cut it off, and a model could not be trained "
            "on this loss. Return the tensor.": torch.zeros_like(slope)
        },
        gradient=0,
        tolerance=1e-3,
    )


# --- 12.3 ----------------------------------------------------------------------------------------


def check_speculate(answer: Answer, fresh: Fresh) -> None:
    cases = [([0.8, 0.2], [0.4, 0.6], 1), ([0.8, 0.2], [0.4, 0.6], 0), ([0.5, 0.5], [0.5, 0.5], 0)]
    for size in (3, 5, 8):
        first, second = (fresh.probabilities(size, sharpness=1.5).tolist() for _ in range(2))
        cases.append((first, second, fresh.random.randrange(size)))
    for first, second, token in cases:
        draft, target = (torch.tensor(part, dtype=torch.float64) for part in (first, second))
        draft, target = draft / draft.sum(), target / target.sum()
        chance = min(1.0, (target[token] / draft[token]).item())
        excess = (target - draft).clamp(min=0)
        same = excess.sum() < 1e-9
        rest = target if same else excess / excess.sum()
        if not same and excess.sum() < 1e-3:
            continue
        other = min(1.0, (draft[token] / target[token]).item())

        found = [answer(draft, target, drafted) for drafted in range(len(draft))]

        def right_but_slow() -> tuple[float, Tensor] | None:
            accept = torch.tensor([float(part[0]) for part in found], dtype=torch.float64)
            other_rest, most = torch.as_tensor(found[token][1]), (target / draft).clamp(max=1)
            outcome = draft * accept + (1 - (draft * accept).sum()) * other_rest
            fair = close(outcome, target, 1e-5) and close(other_rest.sum().item(), 1.0, 1e-5)
            slow = fair and (accept < most + 1e-6).all() and (accept < most - 1e-4).any()
            return found[token] if slow else None

        def with_rest(rest: Tensor | None, accept: float = chance) -> tuple[float, Tensor] | None:
            return None if rest is None else (accept, rest)

        signed = target - draft
        answer.expect(
            (draft, target, token),
            (chance, rest),
            {
                "the ratio is upside down: what the large model likes better than the small one is always accepted.": (
                    other,
                    rest,
                ),
                "a probability is at most 1: min(1, target / draft).": ((target[token] / draft[token]).item(), rest),
                "that is how often x is drafted *and* accepted; divide by draft(x).": (
                    min(draft[token], target[token]).item(),
                    rest,
                ),
                "that accepts with the large model's own probability; a token that both like is then thrown away too "
                "often.": (target[token].item(), rest),
                "what comes out is right, but you could accept more often: a rejection costs time.": right_but_slow,
                "a rejected token was drawn too often by the small model. Drawing anew from the whole target would count "
                "the others twice; only what the target has *more* than the draft may be drawn.": with_rest(
                    None if same else target, chance
                ),
                "the excess of the target must be cut off at 0: a probability is never negative.": with_rest(
                    None if same else signed / excess.sum()
                ),
                "the excess must be divided by its sum to be a distribution.": with_rest(None if same else excess),
                "that is what the draft has more than the target; it is the other way round.": with_rest(
                    None if same else (-signed).clamp(min=0) / excess.sum()
                ),
                "where both models agree, the excess is 0 everywhere and 0 / 0 is NaN. Nothing is ever rejected then; "
                "return the target.": (chance, excess / excess.sum()),
                "softmax changes the ratios; divide by the sum.": with_rest(None if same else excess.softmax(dim=0)),
            },
            tolerance=1e-5,
        )


# --- 12.4 ----------------------------------------------------------------------------------------


def check_best_size(answer: Answer, fresh: Fresh) -> None:
    cases = [(6e6, 1.0, 0.5, 1.0, 0.5), (6e8, 400.0, 0.34, 410.0, 0.28), (1e21, 406.4, 0.34, 410.7, 0.28)]
    cases.append((10 ** fresh.between(18, 25), fresh.between(50, 500), 0.35, fresh.between(50, 900), 0.3))
    cases.append((10 ** fresh.between(18, 25), fresh.between(50, 500), 0.3, fresh.between(50, 900), 0.37))
    for compute, A, alpha, B, beta in cases:

        def best(budget: float, ratio: float, share: float) -> tuple[float, float]:
            size = ratio ** (1 / (alpha + beta)) * (budget / 6) ** (share / (alpha + beta))
            return size, compute / 6 / size

        ratio = alpha * A / (beta * B)
        size, data = best(compute, ratio, beta)
        plain_size, _ = best(6 * compute, ratio, beta)
        found, for_twice = (answer(times * compute, A, alpha, B, beta) for times in (1, 2))

        def stopped() -> tuple[float, float] | None:
            same = close(float(found[0]), float(for_twice[0])) and close(6 * found[0] * found[1] / compute, 1.0, 1e-3)
            return found if same else None

        answer.expect(
            (compute, A, alpha, B, beta),
            (size, data),
            {
                "the 6 is left out: a token costs 6 operations for each parameter.": (plain_size, compute / plain_size),
                "6 N D is not the budget: D is compute / (6 N).": (size, compute / size),
                "size and data have changed places.": (data, size),
                "the budget was divided evenly, the root for each; how fast the two terms fall decides.": (
                    math.sqrt(compute / 6),
                    math.sqrt(compute / 6),
                ),
                "alpha and beta have changed places in the exponent of the budget.": best(compute, ratio, alpha),
                "the ratio is upside down: alpha A stands above, beta B below.": best(compute, 1 / ratio, beta),
                "the two terms were made equal; at the lowest point their *slopes* are, so the factors alpha and beta "
                "come in.": best(compute, A / B, beta),
                "your search stopped at the end of its range: the same size came out for twice the budget.": stopped,
            },
            tolerance=2e-2 if compute < 1e10 else 1e-2,
        )


# --- 12.5 ----------------------------------------------------------------------------------------


def check_join_gradients(answer: Answer, fresh: Fresh) -> None:
    by_hand = [
        ([[1.0], [3.0]], [1, 1]),
        ([[1.0], [3.0]], [3, 1]),
        ([[0.0, 0.0], [3.0, 1.0]], [0, 4]),
        ([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]], [3, 1]),
    ]
    cases = [([torch.tensor(part) for part in lists], counts) for lists, counts in by_hand]
    for processes in (3, 5):
        gradients = [fresh.normal(2, 3) for _ in range(processes)]
        cases.append((gradients, [fresh.integer(1, 100) for _ in range(processes)]))
    for gradients, counts in cases:
        n, total = len(counts), sum(counts)
        weighted = sum(g * c for g, c in zip(gradients, counts, strict=True))
        answer.expect(
            (gradients, counts),
            weighted / total,
            {
                "every process counts alike, however few tokens it had: with other numbers of processes you get "
                "another step.": sum(gradients) / n,
                "the gradients were added: each is a mean already, so the sum is too long.": sum(gradients),
                "weighted by the tokens, but not divided by their sum.": weighted,
                "weighted by the tokens, but divided by the number of processes.": weighted / n,
                "the means were added and divided by the number of tokens: first multiply each by its count.": (
                    sum(gradients) / total
                ),
                "the counts weight the rows of each gradient, not the gradients; these may have any shape.": lambda: (
                    (torch.stack(gradients) * torch.tensor(counts)[:, None]).sum(dim=0) / total
                ),
                "a process with *more* tokens weighs more, not less.": lambda: (
                    sum(g / c for g, c in zip(gradients, counts, strict=True)) / sum(1 / c for c in counts)
                ),
            },
        )


EXERCISES = (
    Exercise(
        number="12.1",
        title="What a perfect PPO would end with",
        minutes=8,
        difficulty=3,
        task="""\
A policy earns the reward r of each answer and pays beta for each nat of KL to the reference. The best policy can be
written down: p(answer) is proportional to p_ref(answer) exp(r / beta). For a handful of answers, given the
reference's probabilities `(n,)` and the rewards `(n,)`, compute it. Rewards may be in the hundreds. Predict what it
becomes for a very large and for a very small beta.""",
        stub='''\
import torch


def best_policy(reference, rewards, beta):
    """Probabilities (n,) of the policy with the most reward minus beta KL."""
    ...''',
        demo="""\
print(best_policy(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), 1.0), "(right: 0.7311, 0.2689)")
for price in (100.0, 1.0, 0.01):
    print(price, best_policy(torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.0, 1.0, 1.5]), price))""",
        checker=check_best_policy,
        hints=(
            "Work with logarithms: log p_ref + r / beta, up to a constant.",
            "softmax takes the exponential, divides by the sum and is safe for large numbers.",
        ),
        solution='''\
import torch


def best_policy(reference, rewards, beta):
    """Probabilities (n,) of the policy with the most reward minus beta KL."""
    return torch.softmax(reference.log() + rewards / beta, dim=0)''',
        praise="DPO is this formula read backwards: a policy tells which reward it is the best one for.",
    ),
    Exercise(
        number="12.2",
        title="A margin with a goal",
        minutes=8,
        difficulty=3,
        task="""\
Where all voters agree, DPO's loss falls as long as the margin grows: it has no goal. *IPO* (arXiv 2310.12036) gives
the margin one. With the margin of a pair

    margin = (log p(w) - log p_ref(w)) - (log p(l) - log p_ref(l))

the loss is the mean over the pairs of (margin - 1 / (2 beta)) squared. Write it for log-probabilities `(pairs,)`.
What does a margin that is too *large* get, and what would DPO do with it?""",
        stub='''\
import torch


def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    """Loss of pairs of answers from their log-probabilities (pairs,) under policy and reference: a scalar."""
    ...''',
        demo="""\
one_pair = torch.tensor([[-1.0], [-6.0], [-2.0], [-3.0]])  # the margin is 1 - (-3) = 4, its goal 2
print(ipo_loss(*one_pair, 0.25), "(right: 4)")""",
        checker=check_ipo_loss,
        hints=(
            "The first two arguments are the policy's, the other two the reference's.",
            "`((chosen - chosen_reference) - (rejected - rejected_reference) - 1 / (2 * beta)) ** 2`, and the mean.",
        ),
        solution='''\
import torch


def ipo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    """Loss of pairs of answers from their log-probabilities (pairs,) under policy and reference: a scalar."""
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return ((margin - 1 / (2 * beta)) ** 2).mean()''',
        praise="A loss with a goal cannot be driven to a corner by votes that happen to be unanimous; the price is one "
        "more number to choose.",
    ),
    Exercise(
        number="12.3",
        title="Project: a fast draft that changes nothing",
        minutes=40,
        difficulty=4,
        task="""\
A small model drafts the next tokens, a large one checks them: *speculative sampling* (arXiv 2211.17192) gives exactly
the large model's distribution, only sooner. It saves time since several tokens are drafted and then checked in one
pass of the large model, which takes hardly longer than a pass for one. Here you decide about one drafted token.

With a vocabulary of V tokens, `draft` and `target` `(V,)` are the probabilities of the next token under the small and
the large model. `token` was drawn from `draft`. It is accepted with a probability that depends on draft and target;
if it is rejected, another token is drawn from a distribution `rest` `(V,)`.

Derive both from one demand: the probability of every token x must come out as target(x). It is drafted and accepted
with draft(x) accept(x); whatever is missing must come from `rest`. Among all ways to do this, accept as often as
possible: a rejection costs time. Return the acceptance probability of `token`, and `rest`; where draft and target
agree, nothing is ever rejected: return the target as `rest`.""",
        stub='''\
import torch


def speculate(draft, target, token):
    """Probability of accepting the drafted token, and what to draw from otherwise, (V,): a tuple."""
    ...''',
        demo="""\
p_small, p_large = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.3, 0.3, 0.4])
tried = [speculate(p_small, p_large, token) for token in range(3)]
if tried[0] is not None:
    p_accept, p_rest = torch.tensor([float(accepted) for accepted, _ in tried]), tried[0][1]
    print("accepted with:", p_accept, "(none may be above 1)")
    print("what comes out:", p_small * p_accept + (1 - (p_small * p_accept).sum()) * p_rest, "  target:", p_large)""",
        checker=check_speculate,
        hints=(
            "No more may be accepted than is wanted: draft(x) accept(x) <= target(x). And accept(x) <= 1.",
            "So accept(x) = min(1, target(x) / draft(x)), and x has got min(draft(x), target(x)) so far.",
            "What is missing is target - min(draft, target) = max(0, target - draft). Divide it by its sum.",
        ),
        solution='''\
import torch


def speculate(draft, target, token):
    """Probability of accepting the drafted token, and what to draw from otherwise, (V,): a tuple."""
    accept = min(1.0, (target[token] / draft[token]).item())
    missing = (target - draft).clamp(min=0)
    total = missing.sum()
    return accept, missing / total if total > 1e-9 else target''',
        praise="Large services answer sooner in this way, and provably not one token is drawn from another distribution.",
    ),
    Exercise(
        number="12.4",
        title="How large a model for this budget?",
        minutes=35,
        difficulty=4,
        task="""\
The scaling law of *Chinchilla* (arXiv 2203.15556): a model of N parameters that reads D tokens reaches the loss
E + A / N ** alpha + B / D ** beta. Training costs `compute` = 6 N D operations. Derive which N and D give the lowest
loss for a budget: put D = compute / (6 N) into the loss and set its derivative by N to zero. (E does not depend on N
and drops out.) Then predict, for the paper's numbers (the cell), how many tokens a parameter there should be. You may
also search numerically; 1 % is accurate enough. Budgets from 6e6 on occur: choose the range of the search by the
budget.""",
        stub='''\
def best_size(compute, A, alpha, B, beta):
    """The best number of parameters N and of tokens D for a budget of operations, as a tuple."""
    ...''',
        demo="""\
print(best_size(6e6, 1.0, 0.5, 1.0, 0.5), "(right: 1000, 1000)")
size_and_data = best_size(5.76e23, 406.4, 0.34, 410.7, 0.28)  # the budget of Chinchilla itself
if size_and_data is not None:
    print("{:.3g} parameters, {:.3g} tokens".format(*size_and_data))
    print(f"{size_and_data[1] / size_and_data[0]:.0f} tokens a parameter")""",
        checker=check_best_size,
        hints=(
            "With D = compute / (6 N), the loss is E + A N ** -alpha + B (6 N / compute) ** beta.",
            "The derivative is zero where alpha A / N ** alpha = beta B / D ** beta.",
            "N ** (alpha + beta) = alpha A / (beta B) x (compute / 6) ** beta.",
        ),
        solution='''\
def best_size(compute, A, alpha, B, beta):
    """The best number of parameters N and of tokens D for a budget of operations, as a tuple."""
    N = (alpha * A / (beta * B) * (compute / 6) ** beta) ** (1 / (alpha + beta))
    return N, compute / (6 * N)''',
        praise="Most large models of 2021 were several times too large for what they had read; this derivative changed "
        "how they are built.",
    ),
    Exercise(
        number="12.5",
        title="One step from several machines",
        minutes=5,
        difficulty=2,
        task="""\
Several processes train one model together. Each has computed the gradient of the *mean* loss over its own tokens, and
they had different numbers of tokens. Which gradient would a single process have found that had all tokens? Return it.
`gradients` is a list of tensors of one shape, which may be any, and `counts` the list of the numbers of tokens. (A
process may have had no tokens; its gradient is zero then.)""",
        stub='''\
def join_gradients(gradients, counts):
    """Gradient of the mean loss over all tokens, from those of the processes and their numbers of tokens."""
    ...''',
        demo="""\
import torch

print(join_gradients([torch.tensor([1.0]), torch.tensor([3.0])], [3, 1]))  # three pull at 1, one at 3 (right: 1.5)""",
        checker=check_join_gradients,
        hints=(
            "From a mean and a count follows the sum. The same thought as in exercise 7.1.",
            "The sum of gradient times count, divided by the sum of the counts.",
        ),
        solution='''\
def join_gradients(gradients, counts):
    """Gradient of the mean loss over all tokens, from those of the processes and their numbers of tokens."""
    total = sum(gradient * count for gradient, count in zip(gradients, counts))
    return total / sum(counts)''',
        praise="In fine-tuning only some tokens count, and never equally many on each machine; whoever averages plainly "
        "gets a model that depends on how many machines there were.",
    ),
)
