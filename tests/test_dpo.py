"""What must hold of direct preference optimisation."""

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
    answers_mask,
    snapshot,
    text_batch,
    tiny_decoder,
    unchanged,
)
from torch.nn import functional as F

from gptcore import dpo, reward, rollouts
from gptcore.advantages import leave_one_out_advantages
from gptcore.ballots import Ballot
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
from gptcore.questions import Prompt
from gptcore.reward import reward_loss, rewards_of
from gptcore.shapes import pad_right
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, USER
from gptcore.training import TrainingConfig

steady = settings(deadline=None, derandomize=True)
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
