"""What must hold of sums whose answers a program checks."""

import json
import math
import random
from itertools import islice

import pytest
import torch
import verifiable_rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore.chat_template import decode_answer, encode_answer, encode_prompt
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.files import ASSETS
from gptcore.generation import GREEDY, generate
from gptcore.groups import GroupConfig, GroupPolicyGradient
from gptcore.reward import rewards_of
from gptcore.sums import (
    DEMONSTRATIONS,
    FORGETS,
    HELD_OUT,
    REINFORCEMENT,
    Checker,
    SumSource,
    demonstrations_of_sums,
    draw_sum,
    graded,
    held_out_answers,
    held_out_sums,
    is_right,
    pass_at_k,
    question_of,
    shows_working,
    trainer_of_sums,
    work_out,
)
from gptcore.tokenizer import ASSISTANT, END, Tokenizer
from gptcore.training import generator_for

steady = settings(deadline=None, derandomize=True)
BYTES = Tokenizer([])
three_digits = st.integers(100, 999)

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- The task ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [
        ((348, 275), "8+5=13, 4+7+1=12, 3+2+1=6: 623"),
        ((100, 100), "0+0=0, 0+0=0, 1+1=2: 200"),
        ((999, 999), "9+9=18, 9+9+1=19, 9+9+1=19: 1998"),
        ((505, 405), "5+5=10, 0+0+1=1, 5+4=9: 910"),
    ],
)
def test_sums_worked_out_by_hand(numbers, answer):
    assert work_out(numbers) == answer
    assert work_out(numbers, steps=False) == answer.split(": ")[1]


def test_a_forgotten_carry_changes_what_follows_and_nothing_else():
    assert work_out((348, 275), remembers=lambda: False) == "8+5=13, 4+7=11, 3+2=5: 513"
    for remembered, answer in (
        ([True, False], "8+5=13, 4+7+1=12, 3+2=5: 523"),
        ([False, True], "8+5=13, 4+7=11, 3+2+1=6: 613"),
    ):
        asked = iter(remembered)
        assert work_out((348, 275), remembers=lambda asked=asked: next(asked)) == answer
    asked = iter([True])  # the last carry is written down with the result, it cannot be forgotten
    assert work_out((800, 900), remembers=lambda: next(asked)).endswith("8+9=17: 1700")


@given(three_digits, three_digits)
@steady
def test_every_step_and_the_result_are_true_where_no_carry_is_forgotten(a, b):
    steps, _, result = work_out((a, b)).partition(": ")
    assert int(result) == a + b
    for step in steps.split(", "):
        terms, _, total = step.partition("=")
        assert sum(map(int, terms.split("+"))) == int(total)
    assert is_right(question_of((a, b)), work_out((a, b))) == 1


def test_nothing_that_is_held_out_is_trained_in_either_order():
    withheld = {question_of(numbers) for pair in held_out_sums() for numbers in (pair, pair[::-1])}
    assert len(held_out_sums()) == HELD_OUT == len(set(held_out_sums()))
    shown = {turns[0][0] for seed in range(3) for turns in islice(demonstrations_of_sums(seed), 5000)}
    assert not shown & withheld

    class Draws(random.Random):
        """Would draw a held-out sum, the same one turned round, and then another."""

        def randint(self, low, high):
            return next(numbers)

    first, last = held_out_sums()[0], (111, 888)
    assert last not in held_out_sums()
    numbers = iter([*first, *first[::-1], *last])
    assert draw_sum(Draws()) == last


def test_the_source_asks_for_sums_in_the_template():
    ids = SumSource().draw_ids(random.Random(0), BYTES, 60)
    a, b = draw_sum(random.Random(0))
    assert ids == encode_prompt(BYTES, f"{a}+{b}")
    with pytest.raises(ValueError, match="reads at most 5"):
        SumSource().draw_ids(random.Random(0), BYTES, 5)


# --- Demonstrations ------------------------------------------------------------------------------


def test_demonstrations_are_few_alike_with_steps_and_without_and_half_of_them_wrong():
    with_steps = [turns[0] for turns in islice(demonstrations_of_sums(3), 10_000)]
    without = [turns[0] for turns in islice(demonstrations_of_sums(3, steps=False), 10_000)]
    assert [(question, answer.split(": ")[1]) for question, answer in with_steps] == without
    assert 0.9 * DEMONSTRATIONS < len(set(with_steps)) <= DEMONSTRATIONS
    # There is a carry of units in 45 % of the sums, of tens in about as many, and of these 60 % are forgotten.
    right = sum(is_right(*turn) for turn in set(with_steps)) / len(set(with_steps))
    assert right == pytest.approx((1 - 0.45 * 0.6) ** 2, abs=0.08)
    assert next(demonstrations_of_sums(3)) == next(demonstrations_of_sums(3)) != next(demonstrations_of_sums(4))


def test_a_verdict_sorts_the_demonstrations():
    every = {turns[0] for turns in islice(demonstrations_of_sums(0), 10_000)}
    kept = {turns[0] for turns in islice(demonstrations_of_sums(0, keeps=is_right), 10_000)}
    assert kept == {turn for turn in every if is_right(*turn)}


def test_equal_seeds_train_equal_models_on_what_the_assistant_says():
    losses = []
    for seed in (0, 0, 1):
        trainer = trainer_of_sums(BYTES, demonstrations_of_sums(0), 2, seed)
        losses.append(trainer.run())
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][0] == pytest.approx(math.log(BYTES.vocabulary_size), abs=0.5)  # knows nothing yet
    inputs, targets = trainer.batch_at(0)
    assert inputs.shape == targets.shape == (8, 128)
    said = [decode_answer(BYTES, row[row >= 0].tolist()) for row in targets]
    assert all(set(text) <= set("0123456789+=,: ") and "=" in text for text in said)


# --- Verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("623", 1),
        ("8+5=13, 4+7+1=12, 3+2+1=6: 623", 1),
        ("it is easy: 1+1=3: 623", 1),  # steps are not looked at
        ("8+5=13, 4+7+1=12, 3+2+1=6: 613", 0),
        ("623: 613", 0),
        ("623 or 613", 0),
        ("613, 623", 0),
        ("0623", 0),
        ("623:", 0),
        ("", 0),
    ],
)
def test_an_answer_is_right_by_what_stands_last(answer, right):
    assert is_right("348+275", answer) == right


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        ("8+5=13, 4+7+1=12, 3+2+1=6: 623", 11 / 20),
        ("1+1=5, 2+2=9: 7", 6 / 20),  # nothing needs to be true
        ("1" + "+1" * 30 + ": 7", 1.0),
        ("1 1 1: 7", 3 / 20),
        ("8+5=13, 4+7+1=12, 3+2+1=6: ", 0.0),
        ("8+5=13, 4+7+1=12, 3+2+1=6", 0.0),
        ("623", 0.0),
        ("", 0.0),
    ],
)
def test_the_form_is_marked_by_the_numbers_in_the_steps(answer, marks):
    assert shows_working("348+275", answer) == pytest.approx(marks)


def small_decoder():
    torch.manual_seed(0)
    return Decoder(DecoderConfig(BYTES.vocabulary_size, 128, layers=1, width=32, heads=1))


def test_a_checker_grades_as_its_verdict_does_whatever_the_padding():
    seen = []

    def verdict(question, answer):
        seen.append((question, answer))
        return len(answer) / 2

    checker = Checker(verdict, BYTES, small_decoder().config)
    conversations = [("348+275", "623"), ("100+100", "0+0=0, 0+0=0, 1+1=2: 200"), ("1+1", "")]
    sequences = [encode_prompt(BYTES, q) + encode_answer(BYTES, a) for q, a in conversations]
    assert rewards_of(checker, sequences, batch_size=2).tolist() == [1.5, 12.0, 0.0]
    assert sorted(seen) == sorted(conversations)
    tokens = torch.full((1, 40), BYTES.special[ASSISTANT])  # in the padding anything may stand
    tokens[0, : len(sequences[0])] = torch.tensor(sequences[0])
    assert checker(tokens, torch.tensor([len(sequences[0])])).tolist() == [1.5]


def test_a_mark_of_the_assistant_within_an_answer_does_not_hide_what_was_said_before():
    said = [*BYTES.encode(" 61"), BYTES.special[ASSISTANT], *BYTES.encode(" 623"), BYTES.special[END]]
    checker = Checker(is_right, BYTES, small_decoder().config)
    assert rewards_of(checker, [encode_prompt(BYTES, "348+275") + said]).tolist() == [0.0]


@pytest.mark.parametrize("method", ["grpo", "reinforce", "best"])
def test_the_group_methods_take_a_checker_in_place_of_a_reward_model(method):
    def wants_a_digit(question, answer):
        assert len(question) == 7
        return float(any(map(str.isdecimal, answer)))

    policy, reference = small_decoder(), small_decoder()
    config = GroupConfig(method, 1, 8, 4, 16, rate=0.01, max_new_tokens=6, unfinished_score=0.0)
    checker = Checker(wants_a_digit, BYTES, policy.config)
    run = GroupPolicyGradient(policy, reference, checker, BYTES, SumSource(), config)
    rollout = run.roll_out(0)
    for row, length, choices, score in zip(rollout.tokens, rollout.lengths, rollout.mask, rollout.scores, strict=True):
        answer = row[1:length][choices[: length - 1]].tolist()
        said = decode_answer(BYTES, answer)
        assert score == (float(any(map(str.isdecimal, said))) if answer[-1] == BYTES.special[END] else 0.0)
    (entry,) = run.run()
    assert entry.score == pytest.approx(rollout.scores.mean().item())


# --- Evaluation ----------------------------------------------------------------------------------


def test_pass_at_k_as_worked_out_by_hand():
    one_of_four = torch.tensor([[0, 1, 0, 0]])
    assert pass_at_k(one_of_four, 1) == pytest.approx(1 / 4)
    assert pass_at_k(one_of_four, 2) == pytest.approx(1 / 2)  # 3 of the 6 pairs hold it
    assert pass_at_k(one_of_four, 4) == 1
    # Beside a question that is never answered rightly, and one that always is.
    assert pass_at_k(torch.tensor([[0, 1, 0, 0], [0] * 4, [1] * 4]), 2) == pytest.approx((1 / 2 + 0 + 1) / 3)
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to 4"):
            pass_at_k(one_of_four, k)


@given(st.floats(0.0, 1.0), st.integers(1, 6), st.integers(1, 6))
@steady
def test_pass_at_k_is_unbiased(p, n, k):
    k = min(k, n)
    expected = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(torch.tensor([[1] * c + [0] * (n - c)]), k)
        for c in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-6)


def test_held_out_answers_stand_in_groups_and_unfinished_ones_count_as_nothing(monkeypatch):
    model = small_decoder()
    prompts = [encode_prompt(BYTES, question_of(numbers)) for numbers in held_out_sums()]
    drawn = generate(model, prompts, GREEDY, BYTES.special[END], generator_for(0))
    found = held_out_answers(model, BYTES, 1, greedy=True)
    expected = [decode_answer(BYTES, ids) if ids[-1] == BYTES.special[END] else "" for ids in drawn]
    assert [group[0] for group in found] == expected

    def answers(_model, asked, *_):
        texts = [BYTES.decode(ids).strip() for ids in asked]
        replies = [work_out(tuple(map(int, text.split("+")))) for text in texts]
        whole = [encode_answer(BYTES, reply) for reply in replies]
        return [ids if i % 2 else ids[:-1] for i, ids in enumerate(whole)]

    monkeypatch.setattr("gptcore.sums.generate", answers)
    right = graded(is_right, held_out_answers(model, BYTES, 4))
    assert right.tolist() == [[0.0, 1.0, 0.0, 1.0]] * HELD_OUT


# --- The record ----------------------------------------------------------------------------------


def test_the_record_is_that_of_the_script_with_three_seeds_and_as_much_work_for_both_methods():
    record = json.loads((ASSETS / "benchmarks" / "verifiable_rewards.json").read_text(encoding="utf-8"))
    runs, config = record["runs"], REINFORCEMENT
    assert {len(found) for found in runs.values()} == {3}
    assert record["settings"] == {
        "demonstrations": DEMONSTRATIONS,
        "forgets": FORGETS,
        "held out": HELD_OUT,
        "each": verifiable_rewards.EACH,
    }
    for name in ("GRPO", "best of each group", "reward for the form", "without steps, GRPO"):
        assert {run["answers"] for run in runs[name]} == {
            config.iterations * config.rollout_prompts * config.group_size
        }
        for points in record["curves"][name]:
            assert [point["iteration"] for point in points] == list(range(5, config.iterations + 1, 5))
    for run, other in zip(runs["fine-tuning alone"], runs["right ones alone"], strict=True):
        assert run["updates"] == other["updates"] > 2 * verifiable_rewards.STEPS
