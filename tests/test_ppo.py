"""What must hold of PPO's mathematics, its rollouts and its loop."""

import copy
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gptcore import policy_training, ppo, reward, rollouts
from gptcore.advantages import explained_variance, generalised_advantages, token_rewards, whiten
from gptcore.checkpoint import load_tensors, save_tensors
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.ppo import PPO, PPOConfig, policy_loss, value_loss
from gptcore.prompts import PromptSource
from gptcore.questions import Prompt
from gptcore.reward import RewardModel, rewards_of
from gptcore.rollouts import answer_mask, kl_estimate, kl_of_answers, token_log_probabilities
from gptcore.shapes import masked_mean, pad_right
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER
from gptcore.training import generator_for

steady = settings(deadline=None, derandomize=True)
VOCABULARY, SPECIAL = 8, {USER: 4, ASSISTANT: 5, END: 6, END_OF_TEXT: 7}
WANTED = 1  # the token that the toy reward model likes

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- Mathematics ---------------------------------------------------------------------------------


def answers_mask(starts_and_lengths, width):
    """One row for each answer: True from its start on, for its length."""
    position = torch.arange(width)
    return torch.stack([(position >= start) & (position < start + length) for start, length in starts_and_lengths])


def rows_with_answers(draw, width=7):
    rows = draw(st.integers(1, 4))
    spans = []
    for _ in range(rows):
        start = draw(st.integers(0, width - 1))
        spans.append((start, draw(st.integers(1, width - start))))
    return answers_mask(spans, width)


@st.composite
def rewards_values_and_mask(draw):
    mask = rows_with_answers(draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rewards, values = torch.randn(2, *mask.shape, generator=generator, dtype=torch.float64)
    return rewards, values, mask


shares = st.sampled_from([0.0, 0.3, 0.95, 1.0])
HUGE = 1e6  # what may stand in padding


def test_the_masked_mean_counts_masked_entries_only():
    values = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 6.0, -math.inf]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert masked_mean(values, mask).item() == pytest.approx(3)
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0


@given(rewards_values_and_mask(), shares, shares)
@steady
def test_advantages_equal_the_brute_force_double_sum(data, discount, smoothing):
    rewards, values, mask = data
    advantages, returns = generalised_advantages(
        rewards.masked_fill(~mask, HUGE), values.masked_fill(~mask, -HUGE), mask, discount, smoothing
    )
    for row in range(len(mask)):
        own = mask[row].nonzero().flatten().tolist()
        for t in range(mask.shape[1]):
            if t not in own:
                assert advantages[row, t] == returns[row, t] == 0
                continue
            expected = 0.0
            for k in range(t, own[-1] + 1):
                next_value = values[row, k + 1].item() if k + 1 <= own[-1] else 0.0
                delta = rewards[row, k].item() + discount * next_value - values[row, k].item()
                expected += (discount * smoothing) ** (k - t) * delta
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(expected + values[row, t].item(), abs=1e-9)


@given(rewards_values_and_mask(), shares)
@steady
def test_with_lambda_1_advantages_are_monte_carlo_returns_minus_values(data, discount):
    rewards, values, mask = data
    advantages, returns = generalised_advantages(rewards, values, mask, discount, 1.0)
    for row, t in mask.nonzero().tolist():
        end = mask[row].nonzero().max().item()
        earned = sum(discount ** (k - t) * rewards[row, k].item() for k in range(t, end + 1))
        assert returns[row, t].item() == pytest.approx(earned, abs=1e-9)
        assert advantages[row, t].item() == pytest.approx(earned - values[row, t].item(), abs=1e-9)


def test_advantages_as_worked_out_by_hand():
    # Prompt, two own choices, padding. deltas: 1 + 0.5*4 - 2 = 1 and 3 + 0 - 4 = -1.
    rewards, values = torch.tensor([[9.0, 1.0, 3.0, 9.0]]), torch.tensor([[9.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[False, True, True, False]])
    advantages, returns = generalised_advantages(rewards, values, mask, discount=0.5, smoothing=0.5)
    assert advantages.tolist() == [[0, 1 + 0.25 * -1, -1, 0]]
    assert returns.tolist() == [[0, 2.75, 3, 0]]


def test_token_rewards_as_worked_out_by_hand():
    old = torch.tensor([[-1.0, -2.0, -3.0, HUGE], [HUGE, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.0, -1.0, -4.0, HUGE], [HUGE, -2.0, -1.0, -0.5]])
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    rewards = token_rewards(torch.tensor([5.0, -7.0]), old, reference, mask, kl_coefficient=0.1)
    # A token that the policy makes more likely than the reference does costs; the score comes once, at the end.
    expected = torch.tensor([[0.0, 0.1, -0.1 + 5.0, 0.0], [0.0, -0.1, 0.0, 0.05 - 7.0]])
    torch.testing.assert_close(rewards, expected)


@given(st.data())
@steady
def test_without_kl_an_answer_earns_its_score_once_at_its_last_token(data):
    mask = rows_with_answers(data.draw)
    scores = torch.arange(1.0, len(mask) + 1)
    same = torch.randn(mask.shape)
    rewards = token_rewards(scores, same, same.clone(), mask, 0.3)
    assert rewards.sum(1).tolist() == scores.tolist()
    for row in range(len(mask)):
        assert rewards[row].nonzero().flatten().tolist() == [mask[row].nonzero().max().item()]


def test_token_rewards_do_not_change_their_inputs():
    inputs = torch.ones(2), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    copies = [tensor.clone() for tensor in inputs]
    token_rewards(*inputs, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@given(rewards_values_and_mask())
@steady
def test_whitened_values_have_mean_0_and_variance_1_over_the_mask_and_are_0_elsewhere(data):
    values, _, mask = data
    result = whiten((5 + 3 * values).masked_fill(~mask, HUGE), mask)
    assert not result[~mask].any()
    assert result[mask].mean().item() == pytest.approx(0, abs=1e-6)
    if mask.sum() > 1:
        assert result[mask].var(correction=0).item() == pytest.approx(1, abs=1e-3)
        spread = values[mask].std(correction=0)
        torch.testing.assert_close(result[mask], (values[mask] - values[mask].mean()) / spread, rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [4.0, 0.1, -3.3e6])  # the mean of many equal float32 numbers is a little off
def test_whitening_equal_values_gives_zeros_not_nan(value):
    mask = torch.ones(1000, 3, dtype=torch.bool)
    assert not whiten(torch.full((1000, 3), value), mask).any()
    one = torch.zeros(1000, 3, dtype=torch.bool)
    assert whiten(torch.full((1000, 3), math.nan), one).tolist() == [[0, 0, 0]] * 1000  # of nothing
    one[4, 1] = True
    assert not whiten(torch.randn(1000, 3) + value, one).any()


def test_the_explained_variance_as_worked_out_by_hand_and_0_where_returns_do_not_vary():
    mask = torch.tensor([[True, True], [True, False]])
    returns, values = torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[1.0, 3.0], [6.0, math.nan]])
    # variances: of the errors 0, -1, 0 it is 1/3, of the returns 1, 2, 6 it is 7
    assert explained_variance(values, returns, mask) == pytest.approx(1 - 1 / 21)
    for few in ([[False, False]] * 2, [[True, False], [False, False]]):
        assert explained_variance(values, returns, torch.tensor(few)) == 0
    assert explained_variance(values, torch.full((2, 2), 0.1), mask) == 0


def test_a_kl_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        kl_of_answers(None, None, [], [])


def test_the_policy_loss_as_worked_out_by_hand():
    old = torch.zeros(1, 5)
    new = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]]).log()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 2.0]])
    # Minus the smaller of A rho and A clip(rho): 1.2, 0.5, -1.5, -0.8, 2.2
    expected = -(1.2 + 0.5 - 1.5 - 0.8 + 2.2) / 5
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert policy_loss(new, old, advantages, mask, clip=0.2).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 1.0, 0.0),  # far enough already: no further push
        (0.5, -1.0, 0.0),
        (1.5, -1.0, 1.5),  # went the wrong way: pushed back however far
        (0.5, 1.0, -0.5),
        (1.1, 1.0, -1.1),  # within the range
        (0.9, -1.0, 0.9),
    ],
)
def test_a_clipped_choice_has_no_gradient_and_any_other_has(ratio, advantage, gradient):
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, clip=0.2).backward()
    assert new.grad.item() == pytest.approx(gradient)


def test_at_ratio_1_the_policy_gradient_is_that_of_reinforce():
    new = torch.randn(3, 4, requires_grad=True)
    advantages, mask = torch.randn(3, 4), answers_mask([(0, 4), (1, 2), (3, 1)], 4)
    policy_loss(new, new.detach().clone(), advantages, mask, 0.2).backward()
    torch.testing.assert_close(new.grad, -advantages.masked_fill(~mask, 0.0) / mask.sum())


def test_the_value_loss_as_worked_out_by_hand():
    values = torch.tensor([[1.0, 0.1, 3.0, -1.0]])
    old, returns = torch.zeros(1, 4), torch.tensor([[2.0, 1.0, 3.0, 0.0]])
    # Clipped to within 0.2 of 0: 0.2, 0.1, 0.2, -0.2. Squared errors: max(1, 3.24), 0.81, max(0, 7.84), max(1, 0.04)
    expected = 0.5 * (3.24 + 0.81 + 7.84 + 1.0) / 4
    loss = value_loss(values, old, returns, torch.ones(1, 4, dtype=torch.bool), clip=0.2)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "target", "gradient"),
    [(0.1, 1.0, -0.9), (0.5, 1.0, 0.0), (0.5, -1.0, 1.5), (-0.5, -1.0, 0.0), (-0.5, 1.0, -1.5)],
)
def test_a_value_that_moved_far_enough_towards_its_return_gets_no_further_push(value, target, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    value_loss(values, torch.zeros(1, 1), torch.tensor([[target]]), one, clip=0.2).backward()
    assert values.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("garbage", [HUGE, -HUGE, math.nan, math.inf])
def test_what_stands_in_the_padding_changes_no_loss(garbage):
    mask = answers_mask([(0, 3), (2, 4), (5, 1)], 6)
    scores, tensors = torch.randn(3), torch.randn(5, 3, 6)

    def everything(old, reference, values, new, new_values):
        rewards = token_rewards(scores, old, reference, mask, 0.1)
        advantages, returns = generalised_advantages(rewards, values, mask, 0.9, 0.8)
        whitened = whiten(advantages, mask)
        return (
            rewards,
            advantages,
            returns,
            whitened,
            policy_loss(new, old, whitened, mask, 0.2),
            value_loss(new_values, values, returns, mask, 0.2),
            masked_mean(kl_estimate(new, reference), mask),
        )

    clean, dirty = everything(*tensors), everything(*tensors.masked_fill(~mask, garbage))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(b, a, rtol=0, atol=0)


def test_what_stands_in_the_padding_has_no_gradient_and_changes_none():
    mask = answers_mask([(0, 3), (2, 4), (5, 1)], 6)
    new, new_values, old, values, advantages, returns = torch.randn(6, 3, 6)

    def gradients(garbage):
        inputs = [t.masked_fill(~mask, garbage).requires_grad_() for t in (new, new_values)]
        others = [t.masked_fill(~mask, -garbage) for t in (old, values, advantages, returns)]
        policy_loss(inputs[0], others[0], others[2], mask, 0.2).backward()
        value_loss(inputs[1], others[1], others[3], mask, 0.2).backward()
        return [t.grad for t in inputs]

    for clean, dirty in zip(gradients(0.0), gradients(1000.0), strict=True):
        assert torch.equal(clean, dirty)
        assert clean[mask].any()
        assert not clean[~mask].any()


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=10))
@steady
def test_the_kl_estimate_is_never_negative_and_0_only_where_both_agree(pairs):
    own, reference = torch.tensor(pairs, dtype=torch.float64).T
    estimate = kl_estimate(own, reference)
    assert (estimate >= -1e-12).all()  # but for rounding
    assert not estimate[own == reference].any()
    assert (estimate[(own - reference).abs() > 1e-3] > 0).all()


def test_the_kl_estimate_is_unbiased():
    own = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    kl = sum(p * math.log(p / q) for p, q in zip(own.tolist(), reference.tolist(), strict=True))
    assert (own * kl_estimate(own.log(), reference.log())).sum().item() == pytest.approx(kl)
    assert kl > 0.5
    sampled = torch.multinomial(own, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = kl_estimate(own.log()[sampled], reference.log()[sampled])
    assert estimates.mean().item() == pytest.approx(kl, abs=4 * estimates.std().item() / 200)


# --- Log-probabilities ---------------------------------------------------------------------------


def tiny_decoder(seed=0, preset="llama"):
    """A decoder whose untrained predictions are not all alike."""
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(VOCABULARY, context_length=24, layers=1, width=16, heads=2, preset=preset))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def test_the_mask_marks_the_answers_choices_as_written_by_hand():
    # Prompt of two tokens and answer of three; prompt of four and answer of one.
    mask = answer_mask(torch.tensor([5, 5]), torch.tensor([2, 4]), width=7)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_log_probabilities_equal_torchs_at_the_position_before_each_token(preset, temperature):
    model = tiny_decoder(preset=preset)
    tokens, mask = torch.randint(VOCABULARY, (3, 7)), answers_mask([(2, 4), (0, 1), (3, 2)], 6)
    found = token_log_probabilities(model, tokens, mask, temperature)
    distribution = torch.distributions.Categorical(logits=model(tokens)[:, :-1] / temperature)
    expected = distribution.log_prob(tokens[:, 1:])
    torch.testing.assert_close(found, expected.masked_fill(~mask, 0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("times", [1, 30])  # 90 answers are more than are read at a time
def test_the_kl_of_answers_is_summed_over_each_and_averaged_over_all(times):
    policy, reference = tiny_decoder(0), tiny_decoder(1)
    prompts, answers = [[4, 1, 5], [4, 5], [4, 2, 3, 5]], [[1, 6], [0, 1, 2, 6], [6]]
    total = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        for i, token in enumerate(answer):
            before = torch.tensor([prompt + answer[:i]])
            own, other = (F.log_softmax(m(before)[0, -1], 0)[token].item() for m in (policy, reference))
            total += math.exp(other - own) - 1 - (other - own)
    prompts, answers = prompts * times, answers * times
    assert kl_of_answers(policy, reference, prompts, answers) == pytest.approx(total / 3, rel=1e-4)
    assert kl_of_answers(policy, policy, prompts, answers) == pytest.approx(0, abs=1e-6)


# --- The loop, on a toy --------------------------------------------------------------------------


class Letters:
    """A tokenizer of eight ids: four for letters, and the template's special tokens."""

    special = SPECIAL

    def encode(self, text):
        return [ord(letter) % 4 for letter in text]


class Questions(PromptSource):
    """Asks one of a few questions of different lengths, none with the wanted token."""

    def __init__(self):
        self.as_typed = False

    def draw(self, rng, tasks=None):
        return Prompt(rng.choice(["b", "cb", "bcbc"]), "en", "about", ("",))


class CountsWanted(RewardModel):
    """Grades a conversation by how often the wanted token stands in it."""

    def forward(self, tokens, lengths):
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        return ((tokens == WANTED) & real).sum(1).float() - 1


SMALL = {
    "iterations": 2,
    "rollout_size": 16,
    "minibatch_size": 8,
    "epochs": 2,
    "policy_rate": 0.01,
    "value_rate": 0.01,
    "value_iterations": 0,
    "kl_coefficient": 0.05,
    "max_new_tokens": 5,
    "unfinished_score": -3.0,
}


def toy(preset="llama", grader=CountsWanted, policy=None, replay=None, **changes):
    reference = tiny_decoder(preset=preset)
    policy = copy.deepcopy(reference) if policy is None else policy
    torch.manual_seed(1)
    reward_model = grader(reference, SPECIAL[ASSISTANT])
    return PPO(policy, reference, reward_model, Letters(), Questions(), PPOConfig(**SMALL | changes), replay)


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def without_seconds(history):
    return [{k: v for k, v in entry._asdict().items() if not k.endswith("_seconds")} for entry in history]


def rows_of(rollout):
    """Each row's prompt and answer, read off the tokens alone."""
    for row in rollout.tokens.tolist():
        start = row.index(SPECIAL[ASSISTANT]) + 1
        answer = row[start : start + SMALL["max_new_tokens"]]
        if SPECIAL[END] in answer:
            answer = answer[: answer.index(SPECIAL[END]) + 1]
        yield row[:start], answer


def test_a_rollout_holds_no_small_talk():
    class AlsoTalk(Questions):
        def draw(self, rng, tasks=None):
            return Prompt("bbbbbb", "en", "talk", ("",)) if rng.random() < 0.5 else super().draw(rng)

    run = toy(rollout_size=64)
    run.prompts = AlsoTalk()
    lengths = {len(prompt) for prompt, _ in rows_of(run.roll_out(0))}
    assert lengths == {len(prompt) for prompt, _ in rows_of(toy(rollout_size=64).roll_out(0))}


def test_the_mask_of_a_rollout_marks_exactly_the_answers_tokens_and_their_end():
    rollout = toy(rollout_size=64).roll_out(0)
    lengths = set()
    for number, (prompt, answer) in enumerate(rows_of(rollout)):
        positions = rollout.mask[number].nonzero().flatten().tolist()
        assert positions == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
        assert rollout.tokens[number, 1:][rollout.mask[number]].tolist() == answer
        lengths.add((len(prompt), len(answer)))
    assert len(lengths) > 5


def test_an_answer_is_finished_if_it_has_its_end_token_and_else_gets_the_fixed_score():
    run = toy(rollout_size=64)
    rollout = run.roll_out(0)
    assert 5 < rollout.finished.sum() < 59
    for number, (prompt, answer) in enumerate(rows_of(rollout)):
        assert rollout.finished[number].item() == (answer[-1] == SPECIAL[END])
        expected = rewards_of(run.reward_model, [prompt + answer]).item() if rollout.finished[number] else -3.0
        assert rollout.scores[number].item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_holds_the_log_probabilities_and_values_of_each_row_alone(temperature):
    run = toy(temperature=temperature, policy=tiny_decoder(5))
    rollout = run.roll_out(0)
    for number, (prompt, answer) in enumerate(rows_of(rollout)):
        tokens = torch.tensor([prompt + answer])
        own = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        for model, column in ((run.policy, rollout.log_probabilities), (run.reference, rollout.reference)):
            logarithms = (model(tokens)[0, own] / temperature).log_softmax(-1)
            expected = logarithms.gather(1, torch.tensor(answer)[:, None])[:, 0]
            torch.testing.assert_close(column[number, own], expected, rtol=0, atol=1e-5)
        values = run.value_model.values(tokens)[0, own]
        torch.testing.assert_close(rollout.values[number, own], values, rtol=0, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in rollout)


def test_each_iteration_has_fresh_answers_which_the_seed_fixes():
    def tokens(iteration, seed):
        return toy(seed=seed).roll_out(iteration).tokens.tolist()

    assert tokens(0, 0) == tokens(0, 0)
    assert len({str(tokens(iteration, seed)) for iteration in (0, 1) for seed in (0, 1)}) == 4


def test_sampling_follows_the_temperature():
    cold, hot = (toy(rollout_size=64, temperature=t).roll_out(0) for t in (0.05, 5.0))
    assert len({tuple(answer) for _, answer in rows_of(cold)}) < len({tuple(answer) for _, answer in rows_of(hot)}) / 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("minibatch_size", [16, 4])
def test_on_the_first_pass_over_a_rollout_every_ratio_is_1(monkeypatch, temperature, minibatch_size):
    ratios = []

    def watched(new, old, advantages, mask, clip):
        ratios.append((new - old)[mask].exp())
        return policy_loss(new, old, advantages, mask, clip) * 0.0  # without a step every pass is the first

    monkeypatch.setattr(ppo, "policy_loss", watched)
    run = toy(iterations=1, temperature=temperature, minibatch_size=minibatch_size, policy=tiny_decoder(5))
    (diagnostics,) = run.run()
    assert len(ratios) == 2 * 16 // minibatch_size
    for ratio in ratios:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    assert diagnostics.approximate_kl == pytest.approx(0, abs=1e-10)
    assert diagnostics.clip_fraction == 0
    assert diagnostics.kl > 0.01  # to the reference, which is another model here


def test_from_the_second_pass_on_the_policy_has_moved():
    (first,) = toy(iterations=1, epochs=1, minibatch_size=16).run()
    (second,) = toy(iterations=1, epochs=3, minibatch_size=16, clip=0.01).run()
    assert first.approximate_kl == pytest.approx(0, abs=1e-10)
    assert second.approximate_kl > 1e-5
    assert second.clip_fraction > 0


def test_at_the_start_the_policy_is_the_reference():
    assert toy(iterations=1).run()[0].kl == pytest.approx(0, abs=1e-6)


def test_diagnostics_are_those_of_the_rollout():
    run = toy(iterations=1, policy=tiny_decoder(5), rollout_size=20, minibatch_size=20, epochs=1, kl_coefficient=0.3)
    rollout = run.roll_out(0)
    policy = copy.deepcopy(run.policy)
    (found,) = run.run()
    kls, surprises, unexplained, returns, lengths = [], [], [], [], []
    for number, (prompt, answer) in enumerate(rows_of(rollout)):
        own = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        log_ratio = (rollout.log_probabilities - rollout.reference)[number, own].double()
        kls.append((torch.exp(-log_ratio) - 1 + log_ratio).sum().item())
        logits = policy(torch.tensor([prompt + answer]))[0, own]
        surprises += F.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
        rewards, values = (-0.3 * log_ratio).tolist(), rollout.values[number, own].tolist()
        rewards[-1] += rollout.scores[number].item()
        advantage = 0.0
        for t in reversed(range(len(answer))):
            after = values[t + 1] if t + 1 < len(answer) else 0.0
            discounts = run.config.discount, run.config.smoothing
            advantage = rewards[t] + discounts[0] * after - values[t] + discounts[0] * discounts[1] * advantage
            unexplained.append(advantage)
            returns.append(advantage + values[t])
        lengths.append(len(answer))
    variances = [torch.tensor(numbers).var().item() for numbers in (unexplained, returns)]
    assert found.iteration == 0
    assert found.score == pytest.approx(rollout.scores.mean().item())
    assert found.kl == pytest.approx(sum(kls) / 20, rel=1e-4)
    assert found.entropy == pytest.approx(sum(surprises) / len(surprises), rel=1e-4)
    assert found.explained_variance == pytest.approx(1 - variances[0] / variances[1], abs=1e-4)
    assert found.finished == pytest.approx(rollout.finished.float().mean().item())
    assert found.length == pytest.approx(sum(lengths) / 20)
    assert found.kl_coefficient == 0.3


def test_what_stands_in_the_padding_changes_no_diagnostic_and_no_update(monkeypatch):
    clean = toy()
    clean.run()

    def pad_with_rubbish(sequences, longest):
        tokens, lengths = pad_right(sequences, longest)
        rubbish = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, WANTED)
        return F.pad(rubbish, (0, 2), value=SPECIAL[END]), lengths

    monkeypatch.setattr(rollouts, "pad_right", pad_with_rubbish)
    monkeypatch.setattr(reward, "pad_right", pad_with_rubbish)
    dirty = toy()
    dirty.run()
    for a, b in zip(without_seconds(clean.history), without_seconds(dirty.history), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    for a, b in zip(clean.policy.parameters(), dirty.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_reference_and_reward_model_never_change_but_policy_and_value_model_do():
    run = toy()
    before = {name: snapshot(getattr(run, name)) for name in ("policy", "reference", "reward_model", "value_model")}
    run.run()
    same = {name: unchanged(getattr(run, name), state) for name, state in before.items()}
    assert same == {"policy": False, "reference": True, "reward_model": True, "value_model": False}
    for model in (run.reference, run.reward_model):
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(model.training for model in (run.policy, run.reference, run.reward_model, run.value_model))


def test_the_value_model_starts_as_the_reward_model():
    run = toy()
    assert unchanged(run.value_model, snapshot(run.reward_model))
    shared = {id(p) for p in run.value_model.parameters()} & {id(p) for p in run.reward_model.parameters()}
    assert not shared


def test_in_the_first_iterations_only_the_value_model_learns():
    run = toy(iterations=3, value_iterations=2)
    policy, values = snapshot(run.policy), [snapshot(run.value_model)]
    moved = []

    def look(_):
        moved.append((not unchanged(run.policy, policy), not unchanged(run.value_model, values[-1])))
        values.append(snapshot(run.value_model))

    run.run([look])
    assert moved == [(False, True), (False, True), (True, True)]


def test_learning_rates_fall_linearly_to_zero():
    run = toy(iterations=4, policy_rate=0.01, value_rate=0.002)
    rates = []
    run.run(
        [
            lambda _: rates.append(
                [group["lr"] for one in (run.policy_optimizer, run.value_optimizer) for group in one.param_groups]
            )
        ]
    )
    assert [rate for rate, _ in rates] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [rate for _, rate in rates] == pytest.approx([0.002, 0.0015, 0.001, 0.0005])


def test_each_epoch_uses_each_answer_once_its_minibatches_in_a_fresh_order(monkeypatch):
    run = toy(iterations=1, epochs=3, minibatch_size=4)
    seen, update = [], PPO.update

    def watched(self, rollout, advantages, returns, rows, *rest):
        seen.append(rows)
        return update(self, rollout, advantages, returns, rows, *rest)

    monkeypatch.setattr(PPO, "update", watched)
    run.run()
    epochs = [sum(seen[i : i + 4], []) for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # Neighbours in length share a minibatch: each holds four rows of the sorted rollout that follow one another.
    assert all(rows == list(range(rows[0], rows[0] + 4)) for rows in seen)


def test_advantages_are_whitened_after_the_returns_are_taken(monkeypatch):
    run = toy(iterations=1, epochs=1, minibatch_size=16)
    rollout = run.roll_out(0)
    seen, update = {}, PPO.update

    def watched(self, rollout, advantages, returns, rows, *rest):
        seen.update(advantages=advantages, returns=returns)
        return update(self, rollout, advantages, returns, rows, *rest)

    monkeypatch.setattr(PPO, "update", watched)
    run.run()
    own = seen["advantages"][rollout.mask]
    assert own.mean().item() == pytest.approx(0, abs=1e-5)
    assert own.var(correction=0).item() == pytest.approx(1, abs=1e-3)
    raw = (seen["returns"] - rollout.values)[rollout.mask]
    torch.testing.assert_close(own, (raw - raw.mean()) / raw.std(correction=0), rtol=0, atol=1e-3)
    assert abs(raw.mean().item()) > 0.1


def test_a_score_that_is_no_number_stops_the_run_with_advice_before_any_weight_is_touched():
    class Broken(RewardModel):
        def forward(self, _, lengths):
            return torch.full((len(lengths),), math.nan)

    run = toy(grader=Broken)
    before = snapshot(run.policy), snapshot(run.value_model)
    with pytest.raises(FloatingPointError, match="PPO diverged: lower the learning rate or raise the KL coefficient"):
        run.run()
    assert unchanged(run.policy, before[0])
    assert unchanged(run.value_model, before[1])


def test_a_loss_that_is_no_number_in_another_process_stops_this_one_too(monkeypatch):
    run = toy()
    before = snapshot(run.policy), snapshot(run.value_model)
    monkeypatch.setattr(policy_training, "average_over_processes_", lambda own: own + math.nan)
    with pytest.raises(FloatingPointError, match="PPO diverged"):
        run.run()
    assert unchanged(run.policy, before[0])
    assert unchanged(run.value_model, before[1])


# --- Replayed text -------------------------------------------------------------------------------


def text_batch(number):
    generator = generator_for(17, number)
    return tuple(torch.randint(VOCABULARY, (2, 6), generator=generator) for _ in range(2))


def test_the_loss_of_replayed_text_is_added_to_the_policys_alone(monkeypatch):
    run = toy(iterations=1, epochs=1, replay=text_batch, replay_coefficient=0.7, policy=tiny_decoder(5))
    numbers, parts, losses, update = [], [], [], policy_training.backward_and_step

    def asked(number):
        numbers.append(number)
        return text_batch(number)

    def policy_part(*arguments):
        parts.append(policy_loss(*arguments))
        return parts[-1]

    def watched(model, loss, *rest):
        if model is run.policy:
            tokens, targets = text_batch(numbers[-1])
            text_loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            losses.append((loss.item(), (parts[-1] + 0.7 * text_loss).item()))
        return update(model, loss, *rest)

    run.replay = asked
    monkeypatch.setattr(ppo, "policy_loss", policy_part)
    monkeypatch.setattr(policy_training, "backward_and_step", watched)
    run.run()
    assert len(losses) == len(numbers) == 2
    for found, expected in losses:
        assert found == pytest.approx(expected, abs=1e-5)


def test_each_update_of_the_policy_replays_text_of_its_own():
    numbers = []

    def asked(number):
        numbers.append(number)
        return text_batch(number)

    toy(iterations=4, value_iterations=1, replay=asked).run()
    assert len(numbers) == len(set(numbers)) == 3 * 2 * 2  # iterations, epochs, minibatches


def test_replayed_text_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(ppo, "policy_loss", lambda new, *_: new.sum() * 0.0)  # replay is all there is
    tokens = torch.tensor([[1, 2, 3, 0, 1, 2, 3]])

    def loss_after(**changes):
        run = toy(iterations=6, replay=lambda _: (tokens[:, :-1], tokens[:, 1:]), **changes)
        run.run()
        return F.cross_entropy(run.policy(tokens[:, :-1])[0], tokens[0, 1:]).item()

    untouched = loss_after(replay_coefficient=0.0)
    assert loss_after(replay_coefficient=1.0) < 0.5 * untouched


# --- Learning ------------------------------------------------------------------------------------

LEARNING = {
    "iterations": 15,
    "rollout_size": 64,
    "minibatch_size": 32,
    "policy_rate": 0.02,
    "value_rate": 0.02,
    "value_iterations": 1,
    "unfinished_score": -1.0,
}


def test_a_toy_reward_rises_within_a_few_iterations():
    history = toy(**LEARNING, kl_coefficient=0.0).run()
    first, last = (sum(entry.score for entry in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 1
    assert history[-1].kl > 0.5  # with no leash
    assert history[-1].entropy < history[0].entropy


def test_with_a_large_kl_coefficient_the_policy_stays_at_the_reference():
    free, held = (toy(**LEARNING, kl_coefficient=beta).run() for beta in (0.0, 20.0))
    # The very first steps, before there is any KL to punish, go astray, and come back.
    assert sum(entry.kl for entry in held[-5:]) < 0.1 * sum(entry.kl for entry in free[-5:])
    assert held[-1].score < free[-1].score - 0.5


# --- Stop and go on ------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def interrupted_after(done, **changes):
    def stop(entry):
        if entry.iteration + 1 == done:
            raise StoppedError

    run = toy(**changes)
    with pytest.raises(StoppedError):
        run.run([stop])
    assert len(run.history) == done
    return run


def assert_goes_on_like(resumed, whole):
    resumed.run()
    whole.run()
    assert without_seconds(resumed.history) == without_seconds(whole.history)  # bitwise
    assert unchanged(resumed.policy, snapshot(whole.policy))
    assert unchanged(resumed.value_model, snapshot(whole.value_model))


LONGER = {"iterations": 4, "value_iterations": 1, "replay": text_batch}


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_a_run_resumed_from_a_file_is_bitwise_the_uninterrupted_one(tmp_path, preset):
    stopped = interrupted_after(2, preset=preset, **LONGER)
    save_tensors(tmp_path / "run.safetensors", *stopped.state())
    resumed = toy(preset=preset, **LONGER)
    resumed.load_state(*load_tensors(tmp_path / "run.safetensors"))
    assert resumed.history == stopped.history
    assert_goes_on_like(resumed, toy(preset=preset, **LONGER))


def test_a_run_resumed_from_its_state_is_bitwise_the_uninterrupted_one():
    tensors, values = interrupted_after(3, **LONGER).state()
    resumed = toy(**LONGER)
    resumed.load_state(tensors, json.loads(json.dumps(values)))
    assert_goes_on_like(resumed, toy(**LONGER))


def test_a_stopped_run_goes_on_in_place():
    assert_goes_on_like(interrupted_after(2, **LONGER), toy(**LONGER))


def test_a_second_run_may_use_the_same_frozen_models():
    first = toy(iterations=1)
    first.run()
    second = PPO(
        copy.deepcopy(first.reference).requires_grad_(True),
        first.reference,
        first.reward_model,
        Letters(),
        Questions(),
        first.config,
    )
    second.run()
    assert without_seconds(second.history) == without_seconds(first.history)


def test_python_and_torch_random_states_do_not_matter():
    histories = []
    for seed in (1, 2):
        run = toy()
        random.seed(seed)
        torch.manual_seed(seed)
        histories.append(without_seconds(run.run()))
    assert histories[0] == histories[1]


def test_policy_and_reference_predict_alike_at_first_in_every_preset():
    for preset in ("llama", "gpt2"):
        run = toy(preset=preset, iterations=1)
        assert run.run()[0].kl == pytest.approx(0, abs=1e-6)
