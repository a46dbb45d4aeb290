"""Exercises of chapter 6: training tricks."""

import math
from collections import Counter

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong, by_message

# --- 6.1 -----------------------------------------------------------------------------------------


def check_root_schedule(answer: Answer, fresh: Fresh) -> None:
    warmup = fresh.integer(3, 40)
    cases = [(0, 4), (1, 4), (3, 4), (4, 4), (15, 4), (99, 4), (0, 1)]
    cases += [(step, warmup) for step in (0, warmup // 2, warmup - 1, warmup, 4 * warmup - 1, 10_000)]
    for step, warm in cases:
        n = step + 1
        rising, falling, rises = n / warm, math.sqrt(warm / n), step < warm
        answer.expect(
            (step, warm),
            min(rising, falling),
            {
                "steps begin at 0, so the first step would not move at all: count from 1, step + 1.": Either(
                    lambda: step / warm if rises else math.sqrt(warm / step),
                    lambda: step / warm if rises else falling,
                ),
                "the falling part counts from 0; use step + 1 there, too.": lambda: (
                    rising if rises else math.sqrt(warm / step)
                ),
                "it jumps from 1 to 0.447 when a warm-up of 4 steps ends: which constant makes the curves meet?": (
                    rising if rises else 1 / math.sqrt(n)
                ),
                "the highest point is not 1: in k / sqrt(step + 1), which constant k makes the curves meet at 1?": (
                    min(rising, 1 / math.sqrt(n))
                ),
                "that is the formula of the paper of 2017, whose highest point is 1 / sqrt(warmup); here it is 1.": (
                    min(n**-0.5, n * warm**-1.5)
                ),
                "the warm-up is one step too long: the factor rises above 1.": rising if step <= warm else falling,
                "after the warm-up it falls too fast: with 1 / step instead of 1 / sqrt(step).": min(rising, warm / n),
                "there is no warm-up: the factor starts high and the first steps are the largest.": falling,
                "after the warm-up it stays at 1; it shall fall.": min(rising, 1.0),
                "warm-up and decay are both in force all the time; the smaller of the two counts.": rising * falling,
                "the larger of the two was taken; the smaller one counts.": max(rising, falling),
            },
        )


# --- 6.2: the fifth of the six mistakes ----------------------------------------------------------


def _scaled_step(
    weights: list[Tensor], scaled: list[Tensor], scale: float, limit: float, rate: float, fault: str = ""
) -> list[Tensor]:
    if fault != "overflow" and not all(gradient.isfinite().all() for gradient in scaled):
        return weights
    gradients = scaled if fault in ("clipped first", "never unscaled") else [g / scale for g in scaled]
    if fault == "multiplied":
        gradients = [g * scale for g in scaled]
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    if fault == "each alone":
        factors = [min(1.0, limit / max(g.norm().item(), 1e-12)) for g in gradients]
    elif fault == "every number":
        gradients, factors = [g.clamp(-limit, limit) for g in gradients], [1.0] * len(gradients)
    elif fault == "always":
        factors = [limit / max(norm, 1e-12)] * len(gradients)
    elif fault == "not clipped":
        factors = [1.0] * len(gradients)
    else:
        factors = [min(1.0, limit / max(norm, 1e-12))] * len(gradients)
    if fault in ("clipped first", "twice"):
        gradients = [g / scale for g in gradients]
    return [w - rate * f * g for w, f, g in zip(weights, factors, gradients, strict=True)]


def check_scaled_step(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "clipped first": "the step depends on the scale: the larger it is, the shorter the step. Which gradients are "
        "compared with the limit, and in which gradients is it meant?",
        "twice": "the gradients were divided by the scale twice.",
        "never unscaled": "the gradients were never divided by the scale: their direction is right, their length is not.",
        "multiplied": "the gradients must be divided by the scale, not multiplied once more.",
        "each alone": "each tensor was clipped by its own norm, which turns the step; the limit is for the norm of all "
        "gradients together.",
        "every number": "each number was clipped, which turns the step; the limit is for the norm of all of them.",
        "always": "a gradient that is shorter than the limit stays as it is; yours was made longer.",
        "not clipped": "nothing was clipped.",
        "overflow": "a gradient that is infinite or NaN has overflowed: leave all weights as they are.",
    }
    infinite = float("inf")
    by_hand = [
        ([[0.0]], [[4.0]], 8.0, 1.0, 1.0),  # 0.5 without the scale: not clipped
        ([[0.0]], [[24.0]], 8.0, 1.0, 1.0),  # 3: clipped
        ([[0.0], [0.0]], [[24.0], [32.0]], 8.0, 1.0, 1.0),  # 3 and 4, together 5
        ([[0.0, 0.0]], [[24.0, 32.0]], 8.0, 1.0, 1.0),
        ([[1.0], [2.0]], [[1.6], [1.2]], 4.0, 1.0, 0.5),
        ([[1.0], [2.0]], [[0.4], [0.0]], 4.0, 1.0, 0.5),
        ([[1.0], [2.0]], [[0.3], [0.0]], 1.0, 1.0, 0.5),
        ([[1.0], [2.0]], [[infinite], [8.0]], 4.0, 1.0, 0.5),
        ([[1.0], [2.0]], [[math.nan], [8.0]], 4.0, 1.0, 0.5),
    ]
    cases = []
    for scale in (1024.0, 65536.0, 1.0):
        size = fresh.integer(2, 6)
        cases.append(
            (
                [fresh.normal(size, 3), fresh.normal(4)],
                [fresh.normal(size, 3) * scale, fresh.normal(4) * scale],
                scale,
                fresh.between(0.3, 1.0),
                fresh.between(0.1, 1.0),
            )
        )
    for weights, scaled, scale, limit, rate in [*by_hand, *cases]:
        tensors = [torch.as_tensor(w) for w in weights]
        arguments = (tensors, [torch.as_tensor(g) for g in scaled], scale, limit, rate)
        answer.expect(
            arguments,
            _scaled_step(*arguments),
            by_message(mistakes, lambda fault: _scaled_step(*arguments, fault)),
            tolerance=1e-4,
        )


# --- 6.3 -----------------------------------------------------------------------------------------


def check_safe_scale(answer: Answer, fresh: Fresh) -> None:
    cases = [1.0, 0.5, 3.0, 1e-4, 32752.0, 65504.0, 40000.0, 1e5, 3e5, 1e-8]
    cases += [math.exp(fresh.between(-15, 8)) for _ in range(6)]
    for largest in cases:
        exact = math.log2(65504 / largest)
        power = math.floor(exact)
        answer.expect(
            (largest,),
            2.0**power,
            {
                "that is one power of two too many: the largest gradient overflows.": 2.0 ** math.ceil(exact)
                if math.ceil(exact) != power
                else None,
                "that fits, but it is not a power of two; only those change nothing but the exponent.": 2.0**exact,
                "that fits, but it is not the largest power of two that does.": 2.0 ** (power - 1),
                "that is the exponent; wanted is the factor, 2 to its power.": power,
                "the scale is a factor for the loss: 65504 divided by the largest gradient, not the other way round.": (
                    2.0 ** (-power)
                ),
                "for 100000 the factor is 0.5: it may be smaller than 1.": max(1.0, 2.0**power),
                "for 100000 the factor is 0.5: `int` rounds negative exponents up, use `math.floor`.": 2.0
                ** int(exact),
            },
        )


# --- 6.4 -----------------------------------------------------------------------------------------


def _lion(
    weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float, beta1: float, beta2: float, decay: float, fault=""
) -> tuple[Tensor, Tensor]:
    new = beta2 * momentum + (1 - beta2) * gradient
    mixed = beta1 * momentum + (1 - beta1) * gradient
    if fault == "new":
        mixed = new
    if fault == "swapped":
        new, mixed = mixed, new
    if fault == "one beta":
        new = mixed
    if fault == "first":
        mixed = beta1 * new + (1 - beta1) * gradient
    if fault == "mirrored":
        mixed = (1 - beta1) * momentum + beta1 * gradient
    direction = mixed if fault == "no sign" else mixed.sign()
    if fault in ("zero up", "zero down"):
        direction = torch.where(mixed >= 0 if fault == "zero up" else mixed > 0, 1.0, -1.0)
    if fault == "zero divided":
        direction = mixed / mixed.abs()
    if fault == "l2":
        direction = (mixed + decay * weight).sign()
        decay = 0.0
    if fault == "free decay":
        return weight - rate * direction - decay * weight, new
    if fault == "no decay":
        decay = 0.0
    sign = 1 if fault == "uphill" else -1
    weight = weight + sign * rate * (direction + decay * weight)
    return (new, weight) if fault == "outputs" else (weight, momentum if fault == "kept" else new)


def check_lion_step(answer: Answer, fresh: Fresh) -> None:
    zero = "sign(0) is 0: what has no gradient and no momentum only decays."
    mistakes = {
        "no sign": "only the sign of the mixture is the direction: every weight moves by the same amount.",
        "zero up": zero,
        "zero down": zero,
        "zero divided": zero,
        "one beta": "the momentum that is kept is mixed with beta2; beta1 is only for the direction of this step.",
        "swapped": "beta1 and beta2 have changed places.",
        "new": "the direction comes from the old momentum mixed by beta1, not from the new momentum.",
        "first": "the momentum was updated before the direction was computed; the direction comes from the old one.",
        "kept": "the old momentum was returned; the new one is wanted.",
        "outputs": "first the new weight, then the new momentum.",
        "mirrored": "beta1 belongs to the momentum, 1 - beta1 to the gradient.",
        "no decay": "the weight decay is missing: rate * decay * weight is subtracted, too.",
        "l2": "the decay was put under the sign, where it is as strong as the gradient or nothing; it stands beside it.",
        "free decay": "the decay must be multiplied by the rate, too, or it goes on when the rate has fallen to 0.",
        "uphill": "the step goes up: the direction is subtracted.",
    }
    fixed = [([1.0], [1.0], [-0.75], 0.9), ([1.0], [1.0], [-0.3], 0.9), ([1.0, 1.0], [0.5, 0.0], [0.0, 0.0], 0.9)]
    cases = [([torch.tensor(part) for part in parts], beta2) for *parts, beta2 in fixed]
    for shape in [(2,), (3, 2), (fresh.integer(4, 20), fresh.integer(4, 20))]:
        for dtype in (torch.float64, torch.float32):
            weight, gradient, momentum = (fresh.normal(*shape, dtype=dtype) for _ in range(3))
            momentum = momentum * 0.3
            near = (0.6 * momentum + 0.4 * gradient).abs() < 0.01  # too near to 0 for a sign that all agree on
            cases.append(([weight, torch.where(near, gradient + 0.1, gradient), momentum], fresh.between(0.85, 0.99)))
    for (weight, gradient, momentum), beta2 in cases:
        arguments = (weight, gradient, momentum, 0.1, 0.6, beta2, 0.5)
        answer.expect(
            arguments,
            _lion(*arguments),
            by_message(mistakes, lambda fault: _lion(*arguments, fault)),
        )


# --- 6.5 -----------------------------------------------------------------------------------------


def check_judge(answer: Answer, fresh: Fresh) -> None:
    scales = (0.01, 3.0)
    for runs in (4, 5, 8):
        said = Counter()  # how often which word for which truth at which scale
        wrong = {}  # for each truth an experiment that was not judged by it
        repeats = {"unclear": 60, "a": 20, "b": 20}
        for scale in scales:
            for truth, number in repeats.items():
                for _ in range(number):
                    a, b = (
                        [10 + scale * fresh.random.gauss(-4 if truth == name else 0, 1) for _ in range(runs)]
                        for name in "ab"
                    )
                    word = answer(a, b)
                    if word not in ("a", "b", "unclear"):
                        raise Wrong(f'"a", "b" or "unclear" is expected.\n{answer.example((a, b), yours=word)}')
                    said[truth, scale, word] += 1
                    if word != truth:
                        wrong.setdefault(truth, answer.example((a, b), expected=truth, yours=word))

        def share(truth: str, word: str, *at: float, said: Counter = said, repeats: dict = repeats) -> float:
            return sum(said[truth, scale, word] for scale in at or scales) / repeats[truth] / len(at or scales)

        about = f"\n    with {runs} runs of each setting, for example:\n"
        alarms = [1 - share("unclear", "unclear", scale) for scale in scales]
        finds = [(share("a", "a", scale) + share("b", "b", scale)) / 2 for scale in scales]
        by_name = {word: share(word, word) for word in "ab"}
        if share("a", "b") > 0.5 and share("b", "a") > 0.5:
            raise Wrong(f"you name the worse one: a lower loss is better.{about}{wrong['a']}")
        if min(alarms) > 0.95:
            raise Wrong(
                "you always name a winner. Two settings that are the same never give exactly the same losses; chance "
                f"alone makes one of them look better.{about}{wrong['unclear']}"
            )
        if max(finds) < 0.05:
            raise Wrong(
                "you never find anything: a gap of four times the standard deviation of the runs of one setting is "
                f"large.{about}{wrong['a']}"
            )
        if (min(alarms) < 0.05 and max(alarms) > 0.5) or (min(finds) < 0.05 and max(finds) > 0.55):
            raise Wrong(
                "your limit is a fixed number. What is a large difference depends on how much the runs of one setting "
                f"differ among themselves.{about}{wrong['unclear' if max(alarms) > 0.5 else 'a']}"
            )
        for word, other in ("ab", "ba"):
            if by_name[word] < 0.05 and by_name[other] > 0.5:
                raise Wrong(
                    f"you never name {word}, although in half of the experiments with a difference {word} was better."
                    f"{about}{wrong[word]}"
                )
        false, found = sum(alarms) / 2, sum(finds) / 2
        if false > 0.18:
            raise Wrong(
                f"you cry wolf: where both settings are in truth the *same*, you name a winner in {false:.0%} of the "
                f"experiments; at most 1 in 10 is allowed, give or take some luck.{about}{wrong['unclear']}"
            )
        if found < 0.58:
            raise Wrong(
                "you are too careful: where the gap is four times the standard deviation of the runs of one setting, "
                f"you name the better one in {found:.0%} of the experiments; at least 7 of 10 are wanted."
                f"{about}{wrong['a'] if 'a' in wrong else wrong['b']}"
            )


EXERCISES = (
    Exercise(
        number="6.1",
        title="The schedule of 2017",
        minutes=10,
        difficulty=2,
        task="""\
The first transformer was trained with a rate that rises in a straight line for `warmup` steps and then falls with
one over the root of step + 1. Derive the factor for step 0, 1, 2, ... such that it rises with `(step + 1) / warmup`,
is exactly 1 at its highest point, and has no jump.""",
        stub='''\
def root_schedule(step, warmup):
    """What the learning rate is multiplied by at a step, counted from 0."""
    ...''',
        demo="print([root_schedule(step, 4) for step in (0, 3, 15, 63)])  # 0.25, 1, then half, a quarter",
        checker=check_root_schedule,
        hints=(
            "With n = step + 1, the falling part is k / sqrt(n). Which k gives 1 at n = warmup?",
            "The rising and the falling curve meet at n = warmup. Before it the one is smaller, after it the other: "
            "`min`.",
        ),
        solution='''\
def root_schedule(step, warmup):
    """What the learning rate is multiplied by at a step, counted from 0."""
    n = step + 1
    return min(n / warmup, (warmup / n) ** 0.5)''',
        praise="It never reaches 0, so a run can be continued as long as one likes; schedules that end at 0 reach a "
        "lower loss, but must know the end in advance.",
    ),
    Exercise(
        number="6.2",
        title="Find the bug: a step that depends on the scale",
        minutes=6,
        difficulty=2,
        task="""\
One step of training in fp16, with a gradient scaler and clipping. The loss was multiplied by `scale`, so all
gradients are `scale` times too large. The step shall be the same as without a scaler: plain descent, with the
gradients cut to the norm `limit` all together if they are longer. If a gradient has overflowed, nothing moves.

The cell takes steps with two tensors of one gradient each, first 3 and 4, of norm 5 together, then 0.3 and 0.4, which
are within the limit of 1. The steps should not depend on the scale. They do. Find the reason, and repair it.""",
        stub='''\
import torch


def scaled_step(weights, scaled_gradients, scale, limit, rate):
    """New weights after one step: lists of tensors, the gradients multiplied by `scale`."""
    if not all(gradient.isfinite().all() for gradient in scaled_gradients):
        return weights
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in scaled_gradients))
    factor = min(1.0, limit / (norm.item() + 1e-12))
    gradients = [factor * gradient / scale for gradient in scaled_gradients]
    return [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]''',
        demo="""\
for length in (5.0, 0.5):  # right: -0.6 and -0.8, then -0.3 and -0.4, whatever the scale
    for loss_scale in (1.0, 64.0, 1024.0):
        scaled = [loss_scale * length * torch.tensor([share]) for share in (0.6, 0.8)]
        moved = scaled_step([torch.zeros(1), torch.zeros(1)], scaled, loss_scale, limit=1.0, rate=1.0)
        print(f"norm {length}, scale {loss_scale:6.0f}: the weights move by", [round(w.item(), 4) for w in moved])""",
        checker=check_scaled_step,
        hints=(
            "Which norm is compared with the limit, that of the gradients without the scale, or of the scaled ones?",
            "Divide all gradients by the scale right after the overflow check, and compute norm and factor from those.",
        ),
        solution='''\
import torch


def scaled_step(weights, scaled_gradients, scale, limit, rate):
    """New weights after one step: lists of tensors, the gradients multiplied by `scale`."""
    if not all(gradient.isfinite().all() for gradient in scaled_gradients):
        return weights
    gradients = [gradient / scale for gradient in scaled_gradients]
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    factor = min(1.0, limit / (norm.item() + 1e-12))
    return [weight - rate * factor * gradient for weight, gradient in zip(weights, gradients, strict=True)]''',
        praise="With torch's scaler the same is `scaler.unscale_(optimizer)` before `clip_grad_norm_`. AdamW hides the "
        "bug, since it does not care about the size of gradients: then the limit just has no meaning.",
    ),
    Exercise(
        number="6.3",
        title="The largest safe scale",
        minutes=10,
        difficulty=2,
        task="""\
The largest number of fp16 is 65504. The largest gradient of a step is `largest` (its absolute value, before
scaling). Which is the largest power of two by which the loss may be multiplied so that no gradient overflows? It may
be smaller than 1. Predict it for gradients of at most 1, then of at most 0.0001.""",
        stub='''\
import math


def safe_scale(largest):
    """The largest power of two (a float) such that largest times it is at most 65504."""
    ...''',
        demo="""\
for largest in (1.0, 1e-4, 1e5):
    print(largest, safe_scale(largest))""",
        checker=check_safe_scale,
        hints=(
            "largest x 2 ** k <= 65504. Solve for k.",
            "k is the largest whole number not above log2(65504 / largest): `math.floor`.",
        ),
        solution='''\
import math


def safe_scale(largest):
    """The largest power of two (a float) such that largest times it is at most 65504."""
    return 2.0 ** math.floor(math.log2(65504 / largest))''',
        praise="Powers of two change only the exponent, so scaling loses no digit. Nobody knows the largest gradient "
        "in advance: torch's scaler finds this number by trial.",
    ),
    Exercise(
        number="6.4",
        title="An optimiser found by a machine",
        minutes=20,
        difficulty=3,
        task="""\
*Lion* (arXiv 2302.06675) was found by a program that searched among millions of update rules. It keeps one average
instead of AdamW's two. With m the momentum and g the gradient:

    direction  = sign(beta1 m + (1 - beta1) g)
    new weight = weight - rate (direction + decay weight)
    new m      = beta2 m + (1 - beta2) g

Write one step.""",
        stub='''\
import torch


def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    """The new weight and the new momentum, as a tuple; all tensors have one shape."""
    ...''',
        demo="""\
# weight 1, gradient 1, momentum -0.75; rate 0.1, beta1 0.6, beta2 0.9, decay 0.5
print(lion_step(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-0.75]), 0.1, 0.6, 0.9, 0.5))
# right: 1.05 and -0.575""",
        checker=check_lion_step,
        hints=(
            "The momentum is used twice: once mixed by beta1, only for the direction, and once mixed by beta2, which "
            "is kept.",
            "If you work in place, compute the direction before you change the momentum.",
        ),
        solution='''\
import torch


def lion_step(weight, gradient, momentum, rate, beta1, beta2, decay):
    """The new weight and the new momentum, as a tuple; all tensors have one shape."""
    direction = (beta1 * momentum + (1 - beta1) * gradient).sign()
    weight = weight - rate * (direction + decay * weight)
    return weight, beta2 * momentum + (1 - beta2) * gradient''',
        praise="Every weight moves by the same amount in every step, so the rate must be several times smaller than "
        "AdamW's; try it in the laboratory of this chapter.",
    ),
    Exercise(
        number="6.5",
        title="Design an experiment: is it better, or luck?",
        minutes=20,
        difficulty=4,
        task="""\
You have trained with setting a and with setting b, each with several seeds, and you have the final losses as two
lists. Write the judge: `"a"` if a is better (its loss lower), `"b"` if b is, `"unclear"` if the runs do not tell. The
runs are not paired: the first of a has no more to do with the first of b than with any other.

The check makes up many experiments for you, with 4, 5 or 8 runs of each setting, and with losses that differ little or
much from seed to seed. It asks two things. Where both settings are in truth the *same*, you may name a winner in at
most 1 of 10 experiments. Where one is better by four times the standard deviation of the runs of one setting, you must
name it in at least 7 of 10, whether it is a or b. (The chapter measures the spread in another way, by the largest loss
minus the smallest one; either will do.)""",
        stub='''\
def judge(losses_a, losses_b):
    """ "a", "b" or "unclear": which setting has the lower loss, if the runs can tell."""
    ...''',
        demo="""\
print(judge([2.31, 2.35, 2.30, 2.33], [2.34, 2.32, 2.36, 2.30]))  # right: unclear
print(judge([2.31, 2.35, 2.30, 2.33], [2.54, 2.52, 2.56, 2.50]))  # right: a""",
        checker=check_judge,
        seconds=30.0,
        hints=(
            "How large a difference is large? Compare it with how much the runs of *one* setting differ.",
            "The mean of n runs is itself a matter of luck. How far it is typically off, its *standard error*, is "
            "stdev / sqrt(n). The standard error of a difference of two means is the root of the sum of both squares.",
            "Name a winner if the means differ by more than about 2.3 such standard errors.",
        ),
        solution='''\
from statistics import mean, stdev


def judge(losses_a, losses_b):
    """ "a", "b" or "unclear": which setting has the lower loss, if the runs can tell."""
    difference = mean(losses_a) - mean(losses_b)
    error = (stdev(losses_a) ** 2 / len(losses_a) + stdev(losses_b) ** 2 / len(losses_b)) ** 0.5
    if abs(difference) < 2.3 * error:  # a little more than 2, since the deviations are estimated from few runs
        return "unclear"
    return "a" if difference < 0 else "b"


# The rule of the chapter, that all runs of one setting lie below all runs of the other, passes as well.''',
        praise="Half of the tricks in circulation were found with one run each. A judge of five lines protects you from "
        "them, and your readers from you.",
    ),
)
