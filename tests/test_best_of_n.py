"""What must hold of best-of-n."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ppo import (
    SPECIAL,
    WANTED,
    CountsWanted,
    Letters,
    tiny_decoder,
)

import gptcore.best_of_n as best_of_n_module
from gptcore.best_of_n import best_of_n, best_of_n_kl
from gptcore.generation import SamplingConfig, generate
from gptcore.groups import reinforce_loss
from gptcore.rollouts import repeated
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER
from gptcore.training import generator_for

steady = settings(deadline=None, derandomize=True)
START, ANSWER, STOP = [SPECIAL[END_OF_TEXT], SPECIAL[USER]], SPECIAL[ASSISTANT], SPECIAL[END]

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- Best of n -----------------------------------------------------------------------------------

PROMPTS = [[*START, *question, ANSWER] for question in ([2], [3, 2], [2, 3, 2, 3])] * 10
TALKATIVE = tiny_decoder(4)  # every fifth answer finds no end


def test_prompts_are_repeated_one_right_after_the_other():
    assert repeated([[1, 2], [3]], 3) == [[1, 2], [1, 2], [1, 2], [3], [3], [3]]


def best_toy(n, seed=0, sign=1):
    class Grader(CountsWanted):
        def forward(self, tokens, lengths):
            return sign * super().forward(tokens, lengths)

    return best_of_n(TALKATIVE, Grader(TALKATIVE, ANSWER), Letters(), PROMPTS, n, seed)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_n_answers_the_best_finished_one_is_given(sign):
    drawn = generate(TALKATIVE, repeated(PROMPTS, 4), SamplingConfig(), STOP, generator_for(3))
    overruled = 0
    for number, found in enumerate(best_toy(4, seed=3, sign=sign)):
        group = drawn[4 * number : 4 * number + 4]
        finished = [answer for answer in group if answer[-1] == STOP] or group
        assert found in group
        assert sign * found.count(WANTED) == max(sign * answer.count(WANTED) for answer in finished)
        assert found in finished
        overruled += max(sign * answer.count(WANTED) for answer in group) > sign * found.count(WANTED)
    assert overruled > 0 or sign == -1  # long unfinished answers hold most of the wanted token


def test_the_best_of_1_is_plain_sampling():
    assert best_toy(1, seed=7) == generate(TALKATIVE, PROMPTS, SamplingConfig(), STOP, generator_for(7))
    assert best_toy(1, seed=8) != best_toy(1, seed=7)


@pytest.mark.slow
def test_the_more_answers_are_drawn_the_better_is_the_best():
    means = []
    for n in (1, 4, 16):
        answers = [answer for seed in range(3) for answer in best_toy(n, seed)]
        grades = [answer.count(WANTED) if answer[-1] == STOP else -1 for answer in answers]
        means.append(sum(grades) / len(grades))
    assert means[0] + 0.5 < means[1] < means[2] - 0.5


def test_the_best_of_none_and_of_rewards_that_are_no_numbers_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="at least 1 answer, got n = 0"):
        best_of_n(TALKATIVE, None, Letters(), PROMPTS, 0)
    monkeypatch.setattr(best_of_n_module, "rewards_of", lambda _, sequences: torch.full((len(sequences),), math.nan))
    with pytest.raises(ValueError, match="not a number"):
        best_of_n(TALKATIVE, None, Letters(), PROMPTS, 2)
    with pytest.raises(ValueError, match="at least one"):
        reinforce_loss(torch.zeros(0), torch.zeros(0))


def exact_best_of_n_kl(probabilities, n):
    """KL of best-of-n to its model where every answer has a grade of its own, in order of the grades."""
    below, total = 0.0, 0.0
    for probability in probabilities:
        best = (below + probability) ** n - below**n  # all n are at most this good, and not all worse
        total += best * math.log(best / probability) if best > 0 else 0.0
        below += probability
    return total


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=10), st.integers(1, 20))
@steady
def test_the_kl_of_best_of_n_is_never_above_the_bound(weights, n):
    assert exact_best_of_n_kl([weight / sum(weights) for weight in weights], n) <= best_of_n_kl(n) + 1e-9


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_is_all_but_reached_where_no_answer_is_drawn_twice(n):
    assert exact_best_of_n_kl([1 / 20_000] * 20_000, n) == pytest.approx(best_of_n_kl(n), abs=1e-3)
    assert exact_best_of_n_kl([0.5, 0.5], 4) < 0.8 * best_of_n_kl(4)
    assert best_of_n_kl(1) == 0
