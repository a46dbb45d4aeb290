"""What must hold of DPO, of GRPO and REINFORCE on groups of answers, and of best-of-n."""

import copy
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

import gptcore.best_of_n as best_of_n_module
from gptcore import dpo, groups, reward, rollouts
from gptcore.advantages import group_advantages, leave_one_out_advantages
from gptcore.ballots import Ballot
from gptcore.best_of_n import best_of_n, best_of_n_kl
from gptcore.dpo import (
    DPOConfig,
    ImplicitReward,
    ballot_log_probabilities,
    ballots_dpo_loss,
    dpo_loss,
    dpo_trainer,
    implicit_reward,
    sequence_log_probabilities,
    with_reference,
)
from gptcore.generation import SamplingConfig, generate
from gptcore.groups import GroupConfig, GroupPolicyGradient, group_policy_loss, reinforce_loss
from gptcore.optimizers import backward_and_step
from gptcore.ppo import policy_loss
from gptcore.questions import Prompt
from gptcore.reward import reward_loss, rewards_of
from gptcore.rollouts import kl_estimate, repeated
from gptcore.shapes import pad_right, trim
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER
from gptcore.training import TrainingConfig, generator_for

steady = settings(deadline=None, derandomize=True)
METHODS = ("grpo", "reinforce")
START, ANSWER, STOP = [SPECIAL[END_OF_TEXT], SPECIAL[USER]], SPECIAL[ASSISTANT], SPECIAL[END]

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def slow_log_probabilities(model, prompt, answer):
    """Of each token of an answer, one forward pass a token."""
    found = []
    for i, token in enumerate(answer):
        found.append(F.log_softmax(model(torch.tensor([prompt + answer[:i]]))[0, -1], dim=-1)[token])
    return torch.stack(found)


# --- DPO: mathematics ----------------------------------------------------------------------------


def test_the_dpo_loss_as_worked_out_by_hand():
    # Margins with beta 1/2: ((-1 + 3) - (-4 + 4)) / 2 = 1 and ((-2 + 2) - (-1 + 7)) / 2 = -3
    loss = dpo_loss(
        torch.tensor([-1.0, -2.0]),
        torch.tensor([-4.0, -1.0]),
        torch.tensor([-3.0, -2.0]),
        torch.tensor([-4.0, -7.0]),
        0.5,
    )
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss.item() == pytest.approx(expected)


def test_the_gradient_of_the_dpo_loss_as_worked_out_by_hand():
    # The margin 0.1 (10 log 3) has sigmoid 3/4: of the pair's weight a quarter is left.
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (-5.0, -9.0))
    references = torch.tensor([-5.0 - 7 * math.log(3)]), torch.tensor([-9.0 + 3 * math.log(3)])
    dpo_loss(chosen, rejected, *references, beta=0.1).backward()
    assert chosen.grad.item() == pytest.approx(-0.1 / 4)  # going downhill raises what won
    assert rejected.grad.item() == pytest.approx(0.1 / 4)  # and lowers what lost


logarithms = st.floats(-60, 0)


@given(st.lists(st.tuples(logarithms, logarithms, logarithms, logarithms), min_size=1, max_size=8), st.floats(0.01, 1))
@steady
def test_the_dpo_loss_equals_plain_arithmetic_a_pair_at_a_time(pairs, beta):
    tensors = torch.tensor(pairs, dtype=torch.float64).T
    expected = 0.0
    for won, lost, won_reference, lost_reference in pairs:
        odds = (math.exp(won - won_reference) / math.exp(lost - lost_reference)) ** beta
        expected -= math.log(odds / (1 + odds)) / len(pairs)
    assert dpo_loss(*tensors, beta).item() == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(logarithms, logarithms), min_size=1, max_size=8), st.floats(0.01, 10))
@steady
def test_at_the_reference_the_dpo_loss_is_log_2_whatever_the_pairs(pairs, beta):
    chosen, rejected = torch.tensor(pairs).T
    assert dpo_loss(chosen, rejected, chosen, rejected, beta).item() == pytest.approx(math.log(2))


def test_the_implicit_reward_of_the_best_policy_is_the_reward_but_for_a_constant():
    generator = torch.Generator().manual_seed(0)
    rewards, reference = torch.randn(6, generator=generator), torch.randn(6, generator=generator).log_softmax(0)
    best = (reference + rewards / 0.3).log_softmax(0)  # earns most when a nat costs 0.3
    left = rewards - implicit_reward(best, reference, beta=0.3)
    torch.testing.assert_close(left, left[:1].expand(6))
    assert rewards.std() > 0.5
    # What REINFORCE pays, the score less the price of the KL, is then the same for every answer: it stands still.
    advantages = leave_one_out_advantages(left.view(2, 3))
    torch.testing.assert_close(advantages, torch.zeros(2, 3), rtol=0, atol=1e-5)


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens_and_no_others():
    model = tiny_decoder()
    prompts, answers = [[7, 4, 1, 5], [7, 4, 5], [7, 4, 2, 3, 5]], [[1, 6], [0, 1, 2, 3, 6], [6]]
    tokens = torch.full((3, 10), WANTED)  # rubbish in the padding
    for row, prompt, answer in zip(tokens, prompts, answers, strict=True):
        row[: len(prompt + answer)] = torch.tensor(prompt + answer)
    mask = answers_mask([(3, 2), (2, 5), (4, 1)], 9)
    expected = [slow_log_probabilities(model, *pair).sum().item() for pair in zip(prompts, answers, strict=True)]
    assert sequence_log_probabilities(model, tokens, mask).tolist() == pytest.approx(expected, abs=1e-4)


# --- DPO: ballots --------------------------------------------------------------------------------

NOTHING = Prompt("?", "en", "talk", ("!",))


def toy_ballots(count, seed=0):
    """Three answers each; that with more of the wanted token wins."""
    rng = random.Random(seed)
    ballots = []
    for _ in range(count):
        prompt = [*START, *rng.choices((2, 3), k=rng.randint(1, 4)), ANSWER]
        answers = []
        for wanted in rng.sample(range(5), 3):
            answer = [WANTED] * wanted + rng.choices((0, 2, 3), k=rng.randint(1, 4))
            rng.shuffle(answer)
            answers.append([*answer, STOP])
        counts = [answer.count(WANTED) for answer in answers]
        votes = [(a, b) if counts[a] > counts[b] else (b, a) for a, b in itertools.combinations(range(3), 2)]
        ballots.append(Ballot(NOTHING, prompt, answers, votes))
    return ballots


UNEVEN = [
    Ballot(NOTHING, [7, 4, 5], [[1, 6], [2, 2, 6], [3, 1, 1, 1, 1, 6]], [(0, 1), (2, 0), (2, 1)]),
    Ballot(NOTHING, [7, 4, 3, 3, 5], [[0, 6]], []),  # all answers alike: nothing to vote on
    Ballot(NOTHING, [7, 4, 2, 5], [[1, 1], [6]], [(1, 0)]),
]


def test_every_answer_is_referenced_in_its_place_whatever_the_batches():
    model = tiny_decoder()
    ballots = toy_ballots(11) + UNEVEN
    for batch_size in (1, 3, 100):
        referenced = with_reference(model, ballots, batch_size)
        assert [(b.prompt_ids, b.answers, b.votes) for b in referenced] == [
            (b.prompt_ids, b.answers, b.votes) for b in ballots
        ]
        for ballot in referenced:
            expected = [slow_log_probabilities(model, ballot.prompt_ids, a).sum().item() for a in ballot.answers]
            assert ballot.reference == pytest.approx(expected, abs=1e-4)


def test_ballots_may_get_a_new_reference():
    first, second = tiny_decoder(0), tiny_decoder(1)
    again = with_reference(second, with_reference(first, UNEVEN))
    assert [ballot.reference for ballot in again] == [ballot.reference for ballot in with_reference(second, UNEVEN)]


def test_the_dpo_loss_of_ballots_is_the_mean_over_all_their_votes():
    model, reference = tiny_decoder(0), tiny_decoder(1)
    losses = []
    for ballot in UNEVEN:
        for pair in ballot.votes:
            won, lost = (
                (
                    slow_log_probabilities(model, ballot.prompt_ids, ballot.answers[i]).sum()
                    - slow_log_probabilities(reference, ballot.prompt_ids, ballot.answers[i]).sum()
                ).item()
                for i in pair
            )
            losses.append(math.log(1 + math.exp(-0.3 * (won - lost))))
    loss = ballots_dpo_loss(model, with_reference(reference, UNEVEN), beta=0.3)
    assert len(losses) == 4
    assert max(losses) - min(losses) > 0.1
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_dpo_is_reward_modelling_with_the_implicit_reward_for_the_reward():
    model, reference = tiny_decoder(0), tiny_decoder(1)
    as_reward_model = reward_loss(ImplicitReward(model, reference, 0.3, ANSWER), UNEVEN)
    as_reward_model.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = ballots_dpo_loss(model, with_reference(reference, UNEVEN), 0.3)
    loss.backward()
    torch.testing.assert_close(loss, as_reward_model)
    for found, expected in zip((p.grad for p in model.parameters()), gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_ballots_on_which_nobody_voted_give_dpo_a_loss_of_0():
    model = tiny_decoder()
    loss = ballots_dpo_loss(model, with_reference(tiny_decoder(1), UNEVEN[1:2]), 0.3)
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_step_of_dpo_raises_what_won_and_lowers_what_lost():
    model = tiny_decoder()
    ballots = with_reference(model, [Ballot(NOTHING, [7, 4, 5], [[0, 0, 6], [1, 1, 6], [2, 3, 6]], [(1, 2)])])
    loss = ballots_dpo_loss(model, ballots, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
    change = ballot_log_probabilities(model, ballots) - torch.tensor(ballots[0].reference)
    assert change[1] > 1e-4
    assert change[2] < -1e-4


def test_what_stands_in_the_padding_changes_no_dpo_loss_and_no_implicit_reward(monkeypatch):
    model, reference = tiny_decoder(0), tiny_decoder(1)
    grader = ImplicitReward(model, reference, 0.3, ANSWER)
    sequences = [ballot.prompt_ids + answer for ballot in UNEVEN for answer in ballot.answers]

    def everything():
        return *rewards_of(grader, sequences), ballots_dpo_loss(model, with_reference(reference, UNEVEN), 0.3)

    clean = torch.stack(everything())
    pad_with_rubbish(monkeypatch)
    torch.testing.assert_close(torch.stack(everything()), clean, rtol=0, atol=1e-5)


def pad_with_rubbish(monkeypatch):
    def padded(sequences, longest):
        tokens, lengths = pad_right(sequences, longest)
        rubbish = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, ANSWER)
        return F.pad(rubbish, (0, 2), value=STOP), lengths

    monkeypatch.setattr(rollouts, "pad_right", padded)
    monkeypatch.setattr(reward, "pad_right", padded)


def test_the_implicit_reward_grades_as_worked_out_token_by_token_and_is_0_at_the_reference():
    model, reference = tiny_decoder(0), tiny_decoder(1)
    pairs = [(ballot.prompt_ids, answer) for ballot in UNEVEN for answer in ballot.answers]
    expected = [
        0.3 * (slow_log_probabilities(model, *pair).sum() - slow_log_probabilities(reference, *pair).sum()).item()
        for pair in pairs
    ]
    sequences = [prompt + answer for prompt, answer in pairs]
    assert rewards_of(ImplicitReward(model, reference, 0.3, ANSWER), sequences).tolist() == pytest.approx(
        expected, abs=1e-4
    )
    assert rewards_of(ImplicitReward(model, copy.deepcopy(model), 0.3, ANSWER), sequences).tolist() == [0.0] * len(
        pairs
    )


def test_the_implicit_reward_of_several_turns_is_that_of_the_last_answer():
    model, reference = tiny_decoder(0), tiny_decoder(1)
    grader = ImplicitReward(model, reference, 0.3, ANSWER)
    pairs = [
        ([7, 4, 5], [1, 1, 6]),
        ([7, 4, 5, 2, 6, 7, 3, 5], [1, 1, 6]),  # STOP ends the first answer
        ([7, 4, 5, 6, 7, 3, 5, 0, 0, 6, 7, 5], [2]),
        ([7, 4, 5], [1, 5, 1, 6]),  # a mark that the policy drew
    ]
    expected = [
        0.3 * (slow_log_probabilities(model, *pair).sum() - slow_log_probabilities(reference, *pair).sum()).item()
        for pair in pairs
    ]
    sequences = [prompt + answer for prompt, answer in pairs]
    assert rewards_of(grader, sequences).tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards_of(grader, [[7, 4, 5, 2, 6, 7, 3, 5]]).tolist() == [0]  # nobody has answered the last question yet


def implicit_accuracy(model, reference, ballots):
    grader, right = ImplicitReward(model, reference, 0.1, ANSWER), []
    for ballot in ballots:
        rewards = rewards_of(grader, [ballot.prompt_ids + answer for answer in ballot.answers])
        right += [bool(rewards[winner] > rewards[loser]) for winner, loser in ballot.votes]
    return sum(right) / len(right)


QUICK = TrainingConfig(steps=0, optimizer="adamw", matrix_rate=0.01, warmup_steps=2)


def test_dpo_raises_the_implicit_accuracy_on_held_out_ballots():
    reference = tiny_decoder()
    model = copy.deepcopy(reference)
    losses = dpo_trainer(model, toy_ballots(160), DPOConfig(training=QUICK, epochs=3)).run()
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert sum(losses[-5:]) / 5 < 0.4
    assert implicit_accuracy(model, reference, toy_ballots(60, seed=1)) > 0.8
    assert implicit_accuracy(copy.deepcopy(reference), reference, toy_ballots(60, seed=1)) == 0  # no preferences yet


def test_the_larger_beta_the_closer_the_policy_stays():
    moved = []
    for beta in (0.03, 3.0):
        model = tiny_decoder()
        trainer = dpo_trainer(model, toy_ballots(80), DPOConfig(beta=beta, epochs=3, training=QUICK))
        trainer.run()
        ballots = with_reference(tiny_decoder(), toy_ballots(20, seed=1))
        reference = torch.tensor([value for ballot in ballots for value in ballot.reference])
        moved.append((ballot_log_probabilities(model, ballots) - reference).abs().mean().item())
    assert moved[1] < 0.5 * moved[0]


def test_the_reference_is_the_model_at_the_start_and_read_only_once(monkeypatch):
    model = tiny_decoder()
    start, calls = copy.deepcopy(model), []

    def watched(model, tokens, mask):
        calls.append(len(tokens))
        return sequence_log_probabilities(model, tokens, mask)

    monkeypatch.setattr(dpo, "sequence_log_probabilities", watched)
    trainer = dpo_trainer(model, toy_ballots(16), DPOConfig(batch_size=4, epochs=2, training=QUICK))
    up_front = len(calls)
    trainer.run()
    assert len(calls) - up_front == trainer.config.steps == 8  # the policy alone, once a step
    assert calls[up_front:] == [16] * 8  # 4 ballots of 3 answers, each read once, to a multiple of 8
    assert not unchanged(model, snapshot(start))
    for ballot in trainer.batch_at(7)[0]:
        expected = [slow_log_probabilities(start, ballot.prompt_ids, answer).sum().item() for answer in ballot.answers]
        assert ballot.reference == pytest.approx(expected, abs=1e-4)


def test_dpo_uses_each_ballot_once_an_epoch_and_is_fixed_by_its_seed():
    def run(seed):
        trainer = dpo_trainer(
            tiny_decoder(), toy_ballots(20), DPOConfig(batch_size=4, training=TrainingConfig(steps=0, seed=seed))
        )
        shown = [id(ballot.answers) for step in range(5) for ballot in trainer.batch_at(step)[0]]
        assert len(set(shown)) == 20
        return trainer.run()

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_replayed_text_is_added_to_the_dpo_loss():
    model = tiny_decoder()
    plain, replayed = (
        dpo_trainer(model, toy_ballots(8), DPOConfig(training=QUICK, replay_coefficient=0.7), replay)
        for replay in (None, text_batch)
    )
    losses = [trainer.loss_function(model, trainer.batch_at(0)).item() for trainer in (plain, replayed)]
    tokens, targets = text_batch(0)
    text_loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).item()
    assert losses[1] - losses[0] == pytest.approx(0.7 * text_loss, abs=1e-5)


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

    monkeypatch.setattr(groups, "backward_and_step", watched)
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
    assert run._loss(rollout, advantages, torch.tensor(rows)).item() == pytest.approx(-objective, rel=1e-3)


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
    run = toy(method)
    before = snapshot(run.policy)
    factors = iter([math.nan, 1.0, 1.0])  # the first of three minibatches only
    name = {"grpo": "group_policy_loss", "reinforce": "reinforce_loss"}[method]
    monkeypatch.setattr(groups, name, lambda new, *_: new.sum() * next(factors))
    with pytest.raises(FloatingPointError, match="diverged"):
        run.run()
    assert unchanged(run.policy, before)


def test_a_group_of_one_and_an_unknown_method_are_refused():
    with pytest.raises(ValueError, match="at least 2 answers to compare, got 1"):
        GroupConfig(group_size=1)
    with pytest.raises(ValueError, match="unknown method 'ppo': choose 'grpo' or 'reinforce'"):
        GroupConfig("ppo")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_replayed_text_is_added_once_an_update(monkeypatch, method):
    run = toy(method, iterations=3, replay_coefficient=0.7)
    numbers, found = [], []

    def asked(number):
        numbers.append(number)
        return text_batch(number)

    def nothing_else(self, rollout, advantages, rows):
        return sum(parameter.sum() for parameter in self.policy.parameters()) * 0.0

    def watched(model, loss, *rest):
        tokens, targets = text_batch(numbers[-1])
        expected = 0.7 * F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        found.append((loss.item(), expected.item()))
        return backward_and_step(model, loss, *rest)

    run.replay = asked
    monkeypatch.setattr(GroupPolicyGradient, "_loss", nothing_else)
    monkeypatch.setattr(groups, "backward_and_step", watched)
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
@pytest.mark.parametrize("method", METHODS)
def test_a_toy_reward_rises_within_a_few_iterations_and_a_large_kl_coefficient_keeps_the_policy_near(method):
    free, held = (toy(method, **LEARNING, kl_coefficient=beta).run() for beta in (0.0, 20.0))
    first, last = (sum(entry.score for entry in part) / 3 for part in (free[:3], free[-3:]))
    assert last > first + 1
    assert free[-1].kl > 2
    assert free[-1].entropy < free[0].entropy
    # The first steps, before there is any KL to punish, are as long as without a leash.
    assert max(entry.kl for entry in held[5:]) < 0.1 * free[-1].kl
    assert held[-1].score < free[-1].score - 1


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
