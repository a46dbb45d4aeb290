"""Exercises of chapter 12: beyond."""

import math

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message, close, copied, gradient_of

# --- 12.1 ----------------------------------------------------------------------------------------


def _price(reference: Tensor, rewards: Tensor, nats: float, fault: str = "") -> float:
    """The price at which the best policy is `nats` from the reference, by bisection of its logarithm."""
    p = (torch.ones_like(reference) / len(reference)) if fault == "uniform" else reference
    p, rewards = p.double(), rewards.double()

    def distance(beta: float) -> float:
        best = (p.log() + rewards / beta).log_softmax(dim=0)
        if fault == "turned":
            return (p * (p.log() - best)).sum().item()
        return (best.exp() * (best - p.log())).sum().item()

    wanted = nats * math.log(2) if fault == "bits" else nats
    low, high = math.log(1e-4), math.log(1e6)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(math.exp(middle)) > wanted else (low, middle)
    return math.exp(low)


def check_price_of_distance(answer: Answer, fresh: Fresh) -> None:
    cases = [([0.5, 0.5], [1.0, 0.0], 0.1), ([0.25, 0.25, 0.25, 0.25], [2.0, 4.0, 6.0, 9.0], 0.5)]
    cases.append(([0.7, 0.2, 0.1], [0.0, 1.0, 1.5], 1.2))
    cases.append(([0.6, 0.3, 0.1], [100.0, 300.0, 310.0], 0.8))  # rewards in the hundreds
    for size in (5, 20):
        p = fresh.probabilities(size).tolist()
        cases.append((p, fresh.normal(size).tolist(), fresh.between(0.1, 0.5)))
    for probabilities, scores, nats in cases:
        for dtype in (torch.float64, torch.float32):
            reference, rewards = torch.tensor(probabilities, dtype=dtype), torch.tensor(scores, dtype=dtype)
            reference = reference / reference.sum()
            beta = _price(reference, rewards, nats)
            answer.expect(
                (reference, rewards, nats),
                beta,
                {
                    "that is 1 / beta: the rewards are divided by the price.": 1 / beta,
                    "the KL is turned round: the expectation is over what the *policy* says.": lambda: _price(
                        reference, rewards, nats, "turned"
                    ),
                    "the reference is left out: that is the price for a reference that is uniform.": lambda: _price(
                        reference, rewards, nats, "uniform"
                    ),
                    "the distance is meant in nats, with the natural logarithm.": lambda: _price(
                        reference, rewards, nats, "bits"
                    ),
                    "that is the logarithm of the price.": math.log(beta),
                    "that is the best policy; wanted is the price at which it is this far away.": (
                        (reference.log() + rewards / beta).softmax(dim=0)
                    ),
                },
                tolerance=1e-2,
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


def _bytes_of_one(parameters: float, processes: int, divided: list[str], fault: str = "") -> float:
    sizes = {"weights": 2, "gradients": 2, "optimiser": 12}
    if fault == "no master copy":
        sizes["optimiser"] = 8
    if fault == "fp32 gradients":
        sizes["gradients"] = 4
    if fault == "all":
        divided = list(sizes)
    if fault == "none":
        divided = []
    if fault == "others":
        divided = [part for part in sizes if part not in divided]
    if fault == "only divided":
        sizes = {part: size for part, size in sizes.items() if part in divided}
    return parameters * sum(size / processes if part in divided else size for part, size in sizes.items())


def check_bytes_of_one(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "no master copy": "Adam's two averages are 8 bytes; the optimiser also holds the fp32 copy of the weights, 4 more.",
        "fp32 gradients": "the gradients are kept in half precision, 2 bytes.",
        "all": "everything was divided; only the parts that are named are.",
        "none": "nothing was divided: the parts that are named are shared out, and each process holds its own piece.",
        "others": "the parts that are named are those that are divided; yours divides the others.",
        "only divided": "the parts that are not divided are there as well, whole, in every process.",
    }
    cases = [(1.0, 4, []), (1.0, 4, ["optimiser"]), (10.0, 2, ["optimiser", "gradients"])]
    cases += [(1e9, 8, ["weights", "gradients", "optimiser"]), (1e9, 1, ["gradients"])]
    for parts in (["optimiser"], ["gradients", "optimiser"], ["weights"]):
        cases.append((fresh.integer(1, 200) * 1e9, fresh.integer(2, 100), parts))
    for parameters, processes, divided in cases:
        arguments = (parameters, processes, divided)
        answer.expect(
            arguments,
            _bytes_of_one(*arguments),
            {
                **{
                    message: Either(lambda fault=fault: _bytes_of_one(*arguments, fault))
                    for fault, message in mistakes.items()
                },
                "that is what all processes hold together; one of them is asked for.": (
                    processes * _bytes_of_one(*arguments) if processes > 1 else None
                ),
            },
        )


EXERCISES = (
    Exercise(
        number="12.1",
        title="How long is the leash?",
        minutes=15,
        difficulty=3,
        task="""\
The chapter gives the price beta and finds the best policy, p(answer) proportional to p_ref(answer) exp(r / beta). In
practice one would rather say how far the policy may go. Given the reference's probabilities `(n,)`, the rewards `(n,)`
and a distance in nats, find the price at which the best policy has exactly this KL to the reference. No formula gives
it; but the KL falls as the price grows, so the right price can be enclosed: **bisection** keeps two prices, one too low
and one too high, and tries the middle of their logarithms, again and again. Prices from 0.001 to 10,000 occur, rewards
may be in the hundreds, and 1 % is accurate enough. The distance can be reached. Predict: how far can the policy go at
most, when the price falls to zero?""",
        stub='''\
import torch


def price_of_distance(reference, rewards, nats):
    """The price beta at which the best policy is `nats` away from the reference: a number."""
    ...''',
        demo="""\
for distance in (0.01, 0.1, 0.6):
    print(distance, price_of_distance(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), distance))
# (right: 3.52, 1.06, 0.253)""",
        checker=check_price_of_distance,
        hints=(
            "First a function of the price: the best policy by a softmax of log p_ref + r / beta, and its KL, the sum of "
            "p (log p - log p_ref).",
            "Begin with the logarithms of 0.0001 and 1,000,000. If the KL at the middle is too large, the price is too low.",
            "`best = (reference.log() + rewards / beta).log_softmax(0)`, `(best.exp() * (best - reference.log())).sum()`.",
        ),
        solution='''\
import math

import torch


def price_of_distance(reference, rewards, nats):
    """The price beta at which the best policy is `nats` away from the reference: a number."""
    reference, rewards = reference.double(), rewards.double()

    def distance(beta):
        best = (reference.log() + rewards / beta).log_softmax(dim=0)
        return (best.exp() * (best - reference.log())).sum().item()

    low, high = math.log(1e-4), math.log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        if distance(math.exp(middle)) > nats:
            low = middle  # too cheap: the policy goes too far
        else:
            high = middle
    return math.exp(low)''',
        praise="At a price of zero all goes to the best answer: the farthest a policy can go is minus the logarithm of what "
        "the reference gave it.",
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
`E + A / N ** alpha + B / D ** beta`. Training costs `compute` = 6 N D operations. Derive which N and D give the lowest
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
        title="What one of many cards must hold",
        minutes=6,
        difficulty=2,
        task="""\
In data parallelism every process holds all that training needs: for each parameter 2 bytes of weight, 2 of gradient,
and 12 of the optimiser (Adam's two averages and its fp32 copy of the weight). *ZeRO* (arXiv 1910.02054) divides some of
these parts among the processes, each of which then holds its own piece and, whole, what is not divided. How many bytes
does one process hold? `divided` is a list of any of "weights", "gradients", "optimiser". Before you run the cell,
predict for GPT-3 on 1,024 cards of 80 GB: is it enough to divide the optimiser's state, the largest part by far?""",
        stub='''\
def bytes_of_one(parameters, processes, divided):
    """Bytes that one process holds, when the named parts are divided among all processes."""
    ...''',
        demo="""\
for parts in ([], ["optimiser"], ["optimiser", "gradients"], ["optimiser", "gradients", "weights"]):
    held = bytes_of_one(175e9, 1024, parts)
    print(parts, "-" if held is None else f"{held / 1e9:.0f} GB")
# (right: 2800, 702, 352, 3)""",
        checker=check_bytes_of_one,
        hints=(
            "16 bytes a parameter in all: 2 + 2 + 12.",
            "A part that is divided counts with its size over the number of processes, every other one with its whole size.",
        ),
        solution='''\
def bytes_of_one(parameters, processes, divided):
    """Bytes that one process holds, when the named parts are divided among all processes."""
    sizes = {"weights": 2, "gradients": 2, "optimiser": 12}
    return parameters * sum(size / processes if part in divided else size for part, size in sizes.items())''',
        praise="However many cards there are, what is not divided stays on each: at this size even the weights have to be.",
    ),
)
