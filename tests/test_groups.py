"""What must hold of GRPO, REINFORCE and training on the best, which compare the answers of a group."""

import copy
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dpo import pad_with_rubbish, slow_log_probabilities
from test_ppo import (
    SPECIAL,
    WANTED,
    CountsWanted,
    Letters,
    Questions,
    answers_mask,
    rows_with_answers,
    snapshot,
    text_batch,
    tiny_decoder,
    unchanged,
    without_seconds,
)
from torch.nn import functional as F

from gptcore import groups, policy_training
from gptcore.advantages import group_advantages, leave_one_out_advantages
from gptcore.groups import GroupConfig, GroupPolicyGradient, best_of_groups, group_policy_loss, reinforce_loss
from gptcore.optimizers import backward_and_step
from gptcore.ppo import policy_loss
from gptcore.rollouts import Rollout, kl_estimate
from gptcore.shapes import trim
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER

steady = settings(deadline=None, derandomize=True)
METHODS = ("grpo", "reinforce", "best")
START, ANSWER, STOP = [SPECIAL[END_OF_TEXT], SPECIAL[USER]], SPECIAL[ASSISTANT], SPECIAL[END]

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- Advantages ----------------------------------------------------------------------------------


def test_group_advantages_as_worked_out_by_hand():
    # Means 2 and 0; deviations sqrt((1 + 0 + 1) / 3) and sqrt((4 + 16 + 4) / 3).
    scores = torch.tensor([[1.0, 2.0, 3.0], [-2.0, 4.0, -2.0]])
    expected = [[-math.sqrt(1.5), 0, math.sqrt(1.5)], [-math.sqrt(0.5), math.sqrt(2), -math.sqrt(0.5)]]
    torch.testing.assert_close(group_advantages(scores), torch.tensor(expected))


def test_leave_one_out_advantages_as_worked_out_by_hand():
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    # Means of the others: 4, 3.5, 1.5 and 1.5, 1.5, 0.
    expected = torch.tensor([[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]])
    torch.testing.assert_close(leave_one_out_advantages(scores), expected)
    assert leave_one_out_advantages(torch.tensor([[1.0, 5.0]])).tolist() == [[-4.0, 4.0]]


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out_advantages])
def test_groups_of_equals_have_no_advantages_and_a_group_of_one_is_refused(advantages):
    for value in (0.1, -3.3e6):
        assert advantages(torch.full((4, 3), value)).abs().max() <= 1e-6 * abs(value)
    assert advantages(torch.zeros(0, 4)).shape == (0, 4)
    for size in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 answers to compare, got {size}"):
            advantages(torch.zeros(3, size))


def test_equals_get_no_push_from_grpo_whatever_rounding_leaves():
    for value in (0.1, 0.7, -3.3e6):
        assert not group_advantages(torch.full((2, 7), value)).any()


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3])
def test_a_group_of_equals_has_no_advantages(advantages, value):
    found = advantages(torch.tensor([[value] * 5, [0.0, 1.0, 2.0, 3.0, 4.0]]))
    assert found[0].tolist() == pytest.approx([0] * 5, abs=0.01)  # but for rounding; not NaN
    assert found[1].abs().max() > 1


@st.composite
def group_scores(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out_advantages])
@given(scores=group_scores(), shift=st.floats(-50, 50))
@steady
def test_advantages_sum_to_zero_in_each_group_and_a_shift_of_a_group_changes_none(advantages, scores, shift):
    found = advantages(scores)
    torch.testing.assert_close(found.sum(1), torch.zeros(len(scores), dtype=torch.float64), rtol=0, atol=1e-9)
    moved = scores.clone()
    moved[0] += shift  # one group only: no other group notices
    torch.testing.assert_close(advantages(moved), found, rtol=1e-6, atol=1e-9)
    assert (found.argsort(1) == scores.argsort(1)).all()


@given(group_scores(), st.floats(0.1, 50))
@steady
def test_the_scale_of_a_groups_scores_changes_no_advantage_in_grpo_and_every_one_in_reinforce(scores, factor):
    scaled = scores.clone()
    scaled[0] *= factor
    torch.testing.assert_close(group_advantages(scaled), group_advantages(scores), rtol=1e-2, atol=1e-2)
    found = leave_one_out_advantages(scores)
    found[0] *= factor
    torch.testing.assert_close(leave_one_out_advantages(scaled), found)


@given(group_scores())
@steady
def test_group_advantages_have_variance_1_in_each_group(scores):
    spread = scores.std(dim=1, correction=0)
    variances = group_advantages(scores)[spread > 0.05].var(dim=1, correction=0)
    torch.testing.assert_close(variances, torch.ones_like(variances), rtol=0, atol=1e-5 / 0.05)


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_of_reinforce_is_unbiased_with_the_leave_one_out_baseline(size):
    # Every group that can be drawn from three answers, weighted by its probability.
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    logarithms = logits.log_softmax(0)
    expected_loss = 0.0
    for group in itertools.product(range(3), repeat=size):
        chosen = torch.tensor(group)
        probability = logarithms.detach()[chosen].sum().exp()
        advantages = leave_one_out_advantages(rewards[chosen][None])[0]
        expected_loss = expected_loss + probability * reinforce_loss(logarithms[chosen], advantages)
    (found,) = torch.autograd.grad(expected_loss, logits, retain_graph=True)
    (true,) = torch.autograd.grad((logarithms.exp() * rewards).sum(), logits)
    torch.testing.assert_close(found, -true)
    assert true.abs().max() > 0.1


# --- Losses of groups ----------------------------------------------------------------------------


@st.composite
def choices_of_answers(draw):
    mask = rows_with_answers(draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    columns = 0.5 * torch.randn(3, *mask.shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(mask), generator=generator, dtype=torch.float64)
    return *columns, advantages, mask


@given(choices_of_answers(), st.sampled_from([0.1, 0.2]), st.sampled_from([0.0, 0.04, 2.0]))
@steady
def test_grpos_loss_equals_equation_3_written_as_a_loop(choices, clip, beta):
    new, old, reference, advantages, mask = choices
    objective = 0.0
    for i in range(len(mask)):
        own = mask[i].nonzero().flatten().tolist()
        answer = 0.0
        for t in own:
            ratio = math.exp(new[i, t] - old[i, t])
            within = min(max(ratio, 1 - clip), 1 + clip)
            gain = min(ratio * advantages[i].item(), within * advantages[i].item())
            odds = math.exp(reference[i, t] - new[i, t])
            answer += gain - beta * (odds - math.log(odds) - 1)
        objective += answer / len(own)
    loss = group_policy_loss(new, old, reference, advantages, mask, clip, beta)
    assert loss.item() == pytest.approx(-objective / len(mask), rel=1e-6, abs=1e-6)


def test_in_grpo_answers_weigh_alike_and_in_ppo_tokens_do():
    # A short good answer and a long bad one, one policy step away: ratios 1.1 everywhere.
    mask = answers_mask([(0, 1), (0, 4)], 4)
    new, old = torch.full((2, 4), math.log(1.1)), torch.zeros(2, 4)
    advantages = torch.tensor([1.0, -1.0])
    assert group_policy_loss(new, old, new, advantages, mask, 0.2, 0.0).item() == pytest.approx(0, abs=1e-6)
    assert policy_loss(new, old, advantages[:, None], mask, 0.2).item() == pytest.approx(1.1 * (4 - 1) / 5)


@pytest.mark.parametrize("lengths", [(3, 3, 3), (1, 4, 2)])
def test_at_ratio_1_grpos_gradient_is_reinforces_divided_by_each_answers_length(lengths):
    mask = answers_mask([(0, length) for length in lengths], 4)
    new, advantages = torch.randn(3, 4, requires_grad=True), torch.randn(3)
    group_policy_loss(new, new.detach().clone(), new.detach().clone(), advantages, mask, 0.2, 0.0).backward()
    grpo, new.grad = new.grad, None
    reinforce_loss(new.masked_fill(~mask, 0.0).sum(1), advantages).backward()
    torch.testing.assert_close(grpo, new.grad / torch.tensor(lengths)[:, None])
    assert grpo[mask].abs().min() > 0


def test_the_reinforce_loss_as_worked_out_by_hand():
    log_probabilities = torch.tensor([-3.0, -5.0], requires_grad=True)
    loss = reinforce_loss(log_probabilities, torch.tensor([2.0, -1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((2 * 3 - 5) / 2)
    assert log_probabilities.grad.tolist() == [-1.0, 0.5]  # the better answer is raised, the other lowered


@given(choices_of_answers(), st.floats(0.01, 5))
@steady
def test_the_kl_of_grpos_loss_is_never_negative_and_0_at_the_reference(choices, beta):
    new, old, reference, _, mask = choices
    nothing = torch.zeros(len(mask), dtype=torch.float64)
    assert group_policy_loss(new, old, reference, nothing, mask, 0.2, beta) > 0
    assert group_policy_loss(new, old, new.clone(), nothing, mask, 0.2, beta) == 0


def test_the_gradient_of_k3_in_a_loss_is_on_average_that_of_the_kl_of_reference_to_policy():
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    own = logits.log_softmax(0)
    on_average = (own.detach().exp() * kl_estimate(own, reference.log())).sum()
    (found,) = torch.autograd.grad(on_average, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((reference * (reference.log() - own)).sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("garbage", [1000.0, -1000.0, math.nan, math.inf])
def test_what_stands_in_the_padding_changes_neither_grpos_loss_nor_its_gradient(garbage):
    mask = answers_mask([(0, 3), (2, 4), (5, 1)], 6)
    columns, advantages = torch.randn(3, 3, 6), torch.randn(3)

    def loss_and_gradient(filled):
        new, old, reference = columns.masked_fill(~mask, filled)
        new.requires_grad_()
        loss = group_policy_loss(new, old, reference, advantages, mask, 0.2, 0.5)
        loss.backward()
        return loss.detach(), new.grad

    for clean, dirty in zip(loss_and_gradient(0.0), loss_and_gradient(garbage), strict=True):
        assert torch.equal(clean, dirty)
        assert clean.any()


# --- The loop, on a toy --------------------------------------------------------------------------

SMALL = {
    "iterations": 2,
    "rollout_prompts": 5,
    "group_size": 4,
    "minibatch_size": 8,
    "rate": 0.01,
    "kl_coefficient": 0.05,
    "max_new_tokens": 5,
    "unfinished_score": -3.0,
}


def toy(method, grader=CountsWanted, policy=None, replay=None, **changes):
    reference = tiny_decoder()
    policy = copy.deepcopy(reference) if policy is None else policy
    torch.manual_seed(1)
    reward_model = grader(reference, ANSWER)
    config = GroupConfig(method, **SMALL | changes)
    return GroupPolicyGradient(policy, reference, reward_model, Letters(), Questions(), config, replay)


def pairs_of(rollout):
    """Each row's prompt and answer, read off the tokens alone."""
    pairs = []
    for row in rollout.tokens.tolist():
        start = row.index(ANSWER) + 1
        answer = row[start : start + SMALL["max_new_tokens"]]
        pairs.append((row[:start], answer[: answer.index(STOP) + 1] if STOP in answer else answer))
    return pairs


@pytest.mark.parametrize("minibatch_size", [3, 20])
def test_a_rollout_holds_groups_of_answers_and_what_both_models_think_of_them(minibatch_size):
    run = toy("grpo", policy=tiny_decoder(5), minibatch_size=minibatch_size)
    rollout = run.roll_out(0)
    pairs = pairs_of(rollout)
    for group in range(5):
        own = pairs[4 * group : 4 * group + 4]
        assert len({tuple(prompt) for prompt, _ in own}) == 1
        assert len({tuple(answer) for _, answer in own}) > 1
    for row, (prompt, answer) in enumerate(pairs):
        finished = answer[-1] == STOP
        grade = (prompt + answer).count(WANTED) - 1
        assert rollout.lengths[row] == len(prompt + answer)
        assert rollout.finished[row] == finished
        assert rollout.scores[row].item() == (grade if finished else -3)
        choices = range(len(prompt) - 1, len(prompt + answer) - 1)
        assert rollout.mask[row].nonzero().flatten().tolist() == list(choices)
        for model, found in ((run.policy, rollout.log_probabilities), (run.reference, rollout.reference)):
            expected = torch.zeros(rollout.mask.shape[1])
            expected[choices] = slow_log_probabilities(model, prompt, answer).detach()
            torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-4)
    assert {True, False} == set(rollout.finished.tolist())


def test_a_cut_keeps_the_rows_and_drops_only_padding():
    lengths = torch.tensor([3, 18, 5, 40])
    tokens, column = torch.arange(4 * 40).view(4, 40), torch.arange(4 * 39).view(4, 39)
    for rows, width in (([2, 0], 16), ([1], 32), ([3, 0], 40)):
        found = trim(torch.tensor(rows), lengths, tokens, column)
        assert [part.tolist() for part in found] == [tokens[rows, :width].tolist(), column[rows, : width - 1].tolist()]


def test_both_methods_begin_with_the_same_answers_and_every_iteration_and_seed_has_others():
    first = toy("grpo").roll_out(0).tokens.tolist()
    assert toy("reinforce").roll_out(0).tokens.tolist() == first
    assert toy("grpo").roll_out(1).tokens.tolist() != first
    assert toy("grpo", seed=1).roll_out(0).tokens.tolist() != first


def test_grpos_advantages_are_those_of_the_scores():
    run = toy("grpo", policy=tiny_decoder(5))
    rollout = run.roll_out(0)
    found = run._advantages(rollout)
    for group in range(5):
        own = rollout.scores[4 * group : 4 * group + 4].double()
        expected = (own - own.mean()) / max(own.std(correction=0).item(), 1e-4)
        assert found[4 * group : 4 * group + 4].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_reinforces_advantages_are_those_of_the_scores_less_the_price_of_the_kl():
    run = toy("reinforce", policy=tiny_decoder(5), kl_coefficient=0.3)
    rollout = run.roll_out(0)
    earned = []
    for (prompt, answer), grade in zip(pairs_of(rollout), rollout.scores.tolist(), strict=True):
        own, other = (slow_log_probabilities(m, prompt, answer).sum().item() for m in (run.policy, run.reference))
        earned.append(grade - 0.3 * (own - other))
    expected = []
    for start in range(0, 20, 4):
        for i in range(start, start + 4):
            expected.append(earned[i] - sum(earned[j] for j in range(start, start + 4) if j != i) / 3)
    assert run._advantages(rollout).tolist() == pytest.approx(expected, abs=1e-3)


def gradients_of(monkeypatch, run):
    """The gradient of each update of a run's first iteration, which takes no step."""
    found = []

    def watched(model, loss, *_):
        loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        model.zero_grad()

    monkeypatch.setattr(policy_training, "backward_and_step", watched)
    run.iterate(0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("minibatch_size", [20, 8, 3])
def test_the_one_update_of_reinforce_is_that_of_the_whole_rollout_whatever_the_minibatches(monkeypatch, minibatch_size):
    run = toy("reinforce", policy=tiny_decoder(5), minibatch_size=minibatch_size)
    rollout = run.roll_out(0)
    advantages, loss, tokens = run._advantages(rollout), 0.0, 0
    for (prompt, answer), advantage in zip(pairs_of(rollout), advantages.tolist(), strict=True):
        loss = loss - advantage * slow_log_probabilities(run.policy, prompt, answer).sum()
        tokens += len(answer)
    expected = torch.autograd.grad(loss / tokens, list(run.policy.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in expected])
    (found,) = gradients_of(monkeypatch, run)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert expected.norm() > 0.1


def rollout_with(scores):
    """Answers that can be told apart by their one token."""
    columns = torch.arange(len(scores))[:, None]
    return Rollout(columns, columns[:, 0], columns, torch.tensor(scores), columns, columns, columns[:, 0], columns)


def test_the_best_of_each_group_is_kept_and_of_equals_none():
    found = best_of_groups(rollout_with([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, -1.0, -2.0, -1.5, 0.0, 1.0, 1.0]), 3)
    assert found.tokens.flatten().tolist() == [1, 6, 10]  # of two best ones the first
    assert found.scores.tolist() == [3.0, -1.0, 1.0]
    assert all(len(part) == 3 for part in found)


@pytest.mark.parametrize("minibatch_size", [20, 2])
def test_training_on_the_best_is_fine_tuning_on_the_best_answer_of_each_group(monkeypatch, minibatch_size):
    run = toy("best", policy=tiny_decoder(5), minibatch_size=minibatch_size)
    rollout = run.roll_out(0)
    pairs, scores, loss, tokens = pairs_of(rollout), rollout.scores.tolist(), 0.0, 0
    for start in range(0, 20, 4):
        best = max(range(start, start + 4), key=lambda row: scores[row])
        if scores[start : start + 4].count(scores[start]) < 4:
            loss = loss - slow_log_probabilities(run.policy, *pairs[best]).sum()
            tokens += len(pairs[best][1])
    expected = torch.autograd.grad(loss / tokens, list(run.policy.parameters()))
    (found,) = gradients_of(monkeypatch, run)
    expected = torch.cat([gradient.flatten() for gradient in expected])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert expected.norm() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_where_all_answers_get_the_same_score_no_group_informs_and_nothing_is_learned(method):
    class LikesAll(CountsWanted):
        def forward(self, tokens, lengths):
            return torch.ones(len(tokens))

    run = toy(method, grader=LikesAll, unfinished_score=1.0, kl_coefficient=0.0)
    before = snapshot(run.policy)
    assert [entry.informative for entry in run.run()] == [0.0, 0.0]
    assert unchanged(run.policy, before)


@pytest.mark.slow
def test_the_updates_of_grpo_are_those_of_its_minibatches_in_a_fresh_order(monkeypatch):
    run = toy("grpo", policy=tiny_decoder(5))
    rollout = run.roll_out(0)
    advantages, pairs = run._advantages(rollout), pairs_of(rollout)
    expected = []
    for rows in rollout.lengths.argsort(stable=True).split(8):
        loss = 0.0
        for row in rows.tolist():
            own, other = (slow_log_probabilities(m, *pairs[row]) for m in (run.policy, run.reference))
            odds = (other.detach() - own).exp()
            gain = (own - own.detach()).exp() * advantages[row] - 0.05 * (odds - odds.log() - 1)
            loss = loss - gain.mean() / len(rows)
        gradient = torch.autograd.grad(loss, list(run.policy.parameters()))
        expected.append(torch.cat([part.flatten() for part in gradient]))
    found = gradients_of(monkeypatch, run)
    assert len(found) == len(expected) == 3
    for gradient in expected:
        assert min((gradient - other).abs().max().item() for other in found) < 1e-4
        assert gradient.norm() > 0.1
    monkeypatch.setattr(
        GroupPolicyGradient, "_update", lambda self, rollout, advantages, parts, _: parts_seen.append(parts)
    )
    orders = set()
    for iteration in range(6):
        parts_seen = []
        run.iterate(iteration)
        (smallest,) = [i for i, (rows,) in enumerate(parts_seen) if len(rows) == 4]  # the longest answers
        orders.add(smallest)
    assert len(orders) > 1


def test_grpo_compares_with_the_policy_that_drew_the_answers_and_clips():
    run = toy("grpo", clip=0.1, kl_coefficient=0.3)
    rollout = run.roll_out(0)
    with torch.no_grad():
        for parameter in run.policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    advantages, rows, objective, clipped = torch.randn(20), [3, 4, 17], 0.0, 0
    for row in rows:
        prompt, answer = pairs_of(rollout)[row]
        new, other = (slow_log_probabilities(m, prompt, answer).tolist() for m in (run.policy, run.reference))
        old = rollout.log_probabilities[row][rollout.mask[row]].tolist()
        advantage, gain = advantages[row].item(), 0.0
        for own, before, reference in zip(new, old, other, strict=True):
            ratio = math.exp(own - before)
            clipped += abs(ratio - 1) > 0.1
            gain += min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
            gain -= 0.3 * (math.exp(reference - own) - 1 - (reference - own))
        objective += gain / len(answer) / 3
    assert clipped > 0
    loss = run._loss_of_policy(run.policy, rollout, advantages, len(rows), (rows, None))
    assert loss.item() == pytest.approx(-objective, rel=1e-3)


def test_the_learning_rate_falls_linearly_to_zero():
    run = toy("reinforce", iterations=4, rate=0.01)
    rates = []
    run.run([lambda _: rates.append(run.optimizer.param_groups[0]["lr"])])
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_are_those_of_the_rollout(method):
    run = toy(method, iterations=1, policy=tiny_decoder(5))
    rollout = run.roll_out(0)
    start = copy.deepcopy(run.policy)
    (found,) = run.run()
    log_ratios = (rollout.log_probabilities - rollout.reference).double()
    kls = (torch.exp(-log_ratios) - 1 + log_ratios)[rollout.mask]
    surprises = [p for pair in pairs_of(rollout) for p in slow_log_probabilities(start, *pair).tolist()]
    assert found.iteration == 0
    assert found.score == pytest.approx(rollout.scores.mean().item())
    groups_of_scores = [set(rollout.scores[start : start + 4].tolist()) for start in range(0, 20, 4)]
    assert found.informative == pytest.approx(sum(len(group) > 1 for group in groups_of_scores) / 5)
    assert found.kl == pytest.approx(kls.sum().item() / 20, rel=1e-4)
    assert found.kl > 0.1
    assert found.entropy == pytest.approx(-sum(surprises) / len(surprises), rel=1e-4)
    assert found.finished == pytest.approx(sum(rollout.finished.tolist()) / 20)
    assert found.length == pytest.approx(sum(len(answer) for _, answer in pairs_of(rollout)) / 20)
    assert min(found.sampling_seconds, found.scoring_seconds, found.updating_seconds) > 0
    assert toy(method, iterations=1).run()[0].kl == pytest.approx(0, abs=1e-6)  # at the start it is the reference


@pytest.mark.parametrize("method", METHODS)
def test_reference_and_reward_model_never_change_but_the_policy_does(method):
    run = toy(method)
    before = {name: snapshot(getattr(run, name)) for name in ("policy", "reference", "reward_model")}
    run.run()
    same = {name: unchanged(getattr(run, name), state) for name, state in before.items()}
    assert same == {"policy": False, "reference": True, "reward_model": True}
    for model in (run.reference, run.reward_model):
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(model.training for model in (run.policy, run.reference, run.reward_model))


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_in_the_padding_changes_no_diagnostic_and_no_update(monkeypatch, method):
    clean = toy(method)
    clean.run()
    pad_with_rubbish(monkeypatch)
    dirty = toy(method)
    dirty.run()
    for a, b in zip(without_seconds(clean.history), without_seconds(dirty.history), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    for a, b in zip(clean.policy.parameters(), dirty.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_fixed_by_its_seed_and_by_nothing_else(method):
    runs = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        run = toy(method, seed=seed)
        random.seed(state)
        torch.manual_seed(state)
        run.run()
        runs.append((without_seconds(run.history), snapshot(run.policy)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())  # bitwise


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_goes_on_in_place(method):
    def stop(entry):
        if entry.iteration == 1:
            raise KeyboardInterrupt

    stopped, whole = toy(method, iterations=4), toy(method, iterations=4)
    with pytest.raises(KeyboardInterrupt):
        stopped.run([stop])
    assert len(stopped.history) == 2
    stopped.run()
    whole.run()
    assert without_seconds(stopped.history) == without_seconds(whole.history)
    assert unchanged(stopped.policy, snapshot(whole.policy))


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_is_no_number_stops_the_run_with_advice_before_any_weight_is_touched(method):
    class BreaksOnce(CountsWanted):
        def forward(self, tokens, lengths):
            rewards = super().forward(tokens, lengths)
            rewards[0] = math.nan
            return rewards

    run = toy(method, grader=BreaksOnce, minibatch_size=1)
    before = snapshot(run.policy)
    assert run.roll_out(0).scores.isnan().sum() == 1  # the minibatches of all other prompts are sound
    with pytest.raises(FloatingPointError, match=f"{method} diverged: lower the learning rate or raise the KL"):
        run.run()
    assert unchanged(run.policy, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_no_number_stops_the_run_before_any_weight_is_touched(monkeypatch, method):
    run = toy(method, minibatch_size=2 if method == "best" else 8)  # of five answers, or of twenty
    before = snapshot(run.policy)
    factors = iter([math.nan, 1.0, 1.0])  # the first of three minibatches only
    name = "group_policy_loss" if method == "grpo" else "reinforce_loss"
    monkeypatch.setattr(groups, name, lambda new, *_: new.sum() * next(factors))
    with pytest.raises(FloatingPointError, match="diverged"):
        run.run()
    assert unchanged(run.policy, before)


def test_a_group_of_one_and_an_unknown_method_are_refused():
    with pytest.raises(ValueError, match="at least 2 answers to compare, got 1"):
        GroupConfig(group_size=1)
    with pytest.raises(ValueError, match="unknown method 'ppo': choose 'grpo' or 'reinforce' or 'best'"):
        GroupConfig("ppo")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_replayed_text_is_added_once_an_update(monkeypatch, method):
    numbers, found = [], []

    def asked(number):
        numbers.append(number)
        return text_batch(number)

    def nothing_else(new, *_):
        return new.sum() * 0.0

    def watched(model, loss, *rest):
        tokens, targets = text_batch(numbers[-1])
        expected = 0.7 * F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        found.append((loss.item(), expected.item()))
        return backward_and_step(model, loss, *rest)

    run = toy(method, iterations=3, replay_coefficient=0.7, replay=asked)
    monkeypatch.setattr(groups, "group_policy_loss", nothing_else)
    monkeypatch.setattr(groups, "reinforce_loss", nothing_else)
    monkeypatch.setattr(policy_training, "backward_and_step", watched)
    run.run()
    assert len(numbers) == len(set(numbers)) == len(found) == 3 * (3 if method == "grpo" else 1)
    for loss, expected in found:
        assert loss == pytest.approx(expected, abs=1e-5)
    assert found[-1][0] != pytest.approx(found[0][0], abs=1e-3)


# --- Learning ------------------------------------------------------------------------------------

LEARNING = {
    "iterations": 20,
    "rollout_prompts": 16,
    "minibatch_size": 32,
    "rate": 0.005,
    "unfinished_score": -1.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "reinforce"])
def test_a_toy_reward_rises_within_a_few_iterations_and_a_large_kl_coefficient_keeps_the_policy_near(method):
    free, held = (toy(method, **LEARNING, kl_coefficient=beta).run() for beta in (0.0, 20.0))
    first, last = (sum(entry.score for entry in part) / 3 for part in (free[:3], free[-3:]))
    assert last > first + 1
    assert free[-1].kl > 2
    assert free[-1].entropy < free[0].entropy
    # The first steps, before there is any KL to punish, are as long as without a leash.
    assert max(entry.kl for entry in held[5:]) < 0.1 * free[-1].kl
    assert held[-1].score < free[-1].score - 1


@pytest.mark.slow
def test_a_toy_reward_rises_by_training_on_the_best():
    history = toy("best", **LEARNING).run()
    first, last = (sum(entry.score for entry in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 1
