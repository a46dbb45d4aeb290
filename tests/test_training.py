"""What must hold of the training loop, its schedules, losses and optimisers."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gptcore.checkpoint import load_tensors, save_tensors
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.dpo import DPOConfig
from gptcore.groups import GroupConfig
from gptcore.loss import IGNORED, _HeadCrossEntropy, head_cross_entropy, language_model_loss
from gptcore.optimizers import Muon, backward_and_step, orthogonalise, schedule_factor
from gptcore.ppo import PPOConfig
from gptcore.recipe import Recipe, row_starts, text_batches
from gptcore.reward import RewardModel
from gptcore.shapes import pad_rows
from gptcore.training import Trainer, TrainingConfig, generator_for, make_optimizers, sample_windows

VOCABULARY = 23
PRESETS = ("llama", "gpt2")
slow_start = settings(deadline=None, derandomize=True)

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def tiny_decoder(preset="llama", seed=0, layers=2):
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(VOCABULARY, context_length=8, layers=layers, width=16, heads=2, preset=preset))


def random_batch(step, rows=3, length=6):
    generator = generator_for(11, step)
    return tuple(torch.randint(VOCABULARY, (rows, length), generator=generator) for _ in range(2))


def constant_config(steps, **changes):
    return TrainingConfig(steps=steps, schedule="constant", warmup_steps=0, **changes)


def test_a_callback_that_asks_the_model_does_not_leave_it_in_evaluation_mode():
    model, modes = tiny_decoder(), []

    def loss(model, batch):
        modes.append(model.training)
        return language_model_loss(model, batch)

    Trainer(model, random_batch, constant_config(3), loss).run([lambda _: model.eval()])
    assert modes == [True, True, True]


def test_the_loss_of_one_trained_position_among_two_processes_counts_twice_here_and_not_there(monkeypatch):
    model, (tokens, targets) = tiny_decoder(), random_batch(0, rows=1)
    targets[0, 1:] = IGNORED
    alone = language_model_loss(model, (tokens, targets)).item()
    monkeypatch.setattr("gptcore.loss.processes", lambda: 2)
    monkeypatch.setattr("gptcore.loss.average_over_processes_", lambda count: count / 2)  # the other one has none
    # The mean of two processes, of which the other adds 0, must be the loss of the position.
    assert language_model_loss(model, (tokens, targets)).item() / 2 == pytest.approx(alone)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_read_in_parts_is_learned_as_one_read_whole(preset, parts):
    def batch_at(step):
        tokens, targets = random_batch(step, rows=5)
        targets[0, 1:] = IGNORED  # rows of one, of six and of no trained position
        targets[4] = IGNORED
        return tokens, targets

    found, rows = {}, []
    for count in (1, parts):
        model = tiny_decoder(preset)
        model.embedding.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        trainer = Trainer(model, batch_at, constant_config(12, accumulate=count))
        norms = []
        found[count] = trainer.run([lambda report, norms=norms: norms.append(report.gradient_norm)]), norms
    assert rows == [5] * 12 + {2: [3, 2], 3: [2, 2, 1], 5: [1] * 5}[parts] * 12
    assert found[parts][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[parts][1] == pytest.approx(found[1][1], rel=1e-4)


def test_only_text_is_read_in_parts_without_being_told_how_and_that_is_no_other_recipe():
    with pytest.raises(ValueError, match="say with `parts_of` how others are cut"):
        Trainer(tiny_decoder(), random_batch, constant_config(1, accumulate=2), lambda model, batch: None)
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        constant_config(1, accumulate=0)
    assert repr(constant_config(1, accumulate=2)) == repr(constant_config(1))  # runs are told apart by it


def test_the_trainer_asks_the_machine_unless_the_configuration_names_a_precision(monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    model = tiny_decoder()
    assert Trainer(model, random_batch, constant_config(1)).precision == "bf16"
    assert Trainer(model, random_batch, constant_config(1, precision="fp32")).precision == "fp32"


def test_only_fp16_needs_a_gradient_scaler():
    model = tiny_decoder()
    assert Trainer(model, random_batch, constant_config(1, precision="fp16")).scaler.is_enabled()
    assert not Trainer(model, random_batch, constant_config(1, precision="bf16")).scaler.is_enabled()
    assert not Trainer(model, random_batch, constant_config(1, precision="fp32")).scaler.is_enabled()


# --- Batches and loss ----------------------------------------------------------------------------


def test_equal_numbers_give_equal_random_streams_and_others_give_other_streams():
    def stream(*numbers):
        return tuple(torch.randint(1_000_000, (4,), generator=generator_for(*numbers)).tolist())

    assert stream(3, 5) == stream(3, 5)
    assert (
        len({stream(3, 5), stream(5, 3), stream(3, 6), stream(4, 5), stream(3), stream(3, 5, 0), stream(0, 3, 5)}) == 7
    )


@given(length=st.integers(4, 40), context=st.integers(1, 12), seed=st.integers(0, 100))
@slow_start
def test_windows_shift_targets_by_one_and_stay_inside_the_text(length, context, seed):
    tokens = torch.arange(length)
    targets = 100 + torch.arange(length)
    if length <= context:
        with pytest.raises(ValueError, match="longer text or a smaller context"):
            sample_windows(tokens, targets, 5, context, generator_for(seed))
        return
    inputs, wanted = sample_windows(tokens, targets, 5, context, generator_for(seed))
    assert inputs.shape == wanted.shape == (5, context)
    assert torch.equal(wanted, inputs + 101)  # the entry of the next position
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(context))  # neighbours of the text


def test_windows_start_everywhere_that_a_window_fits():
    tokens = torch.arange(7)
    inputs, targets = sample_windows(tokens, tokens, 400, 4, generator_for(0))
    assert set(inputs[:, 0].tolist()) == {0, 1, 2}
    assert targets.max() == 6  # the last token is a target too


def test_a_text_one_token_longer_than_the_context_has_exactly_one_window():
    tokens = torch.tensor([4, 5, 6])
    inputs, targets = sample_windows(tokens, tokens, 3, 2, generator_for(0))
    assert inputs.tolist() == [[4, 5]] * 3
    assert targets.tolist() == [[5, 6]] * 3


def test_windows_keep_ignored_targets():
    tokens = torch.tensor([1, 2, 3])
    inputs, targets = sample_windows(tokens, torch.tensor([1, IGNORED, 3]), 1, 2, generator_for(0))
    assert inputs.tolist() == [[1, 2]]
    assert targets.tolist() == [[IGNORED, 3]]


@pytest.mark.parametrize("rows", [1, 5, 1000])  # 1000: several pieces, the last one not full
def test_head_cross_entropy_and_its_gradients_equal_torchs(rows):
    assert rows < 1000 or rows % _HeadCrossEntropy.ROWS != 0 != rows // _HeadCrossEntropy.ROWS
    features, weight = torch.randn(rows, 12), torch.randn(31, 12)
    targets = torch.randint(31, (rows,))
    ours = [tensor.clone().requires_grad_() for tensor in (features, weight)]
    theirs = [tensor.clone().requires_grad_() for tensor in (features, weight)]
    loss = head_cross_entropy(*ours, targets)
    expected = F.cross_entropy(theirs[0] @ theirs[1].T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    (loss * 0.25).backward()  # the factor that comes from above must reach both gradients
    (expected * 0.25).backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-4)


@given(rows=st.integers(0, 200))
@slow_start
def test_few_shapes_adds_rows_of_zeros_up_to_a_multiple_of_64(rows):
    values = torch.rand(rows, 3) + 1
    padded = pad_rows(values)
    assert len(padded) % 64 == 0
    assert 0 <= len(padded) - rows < 64
    assert torch.equal(padded[:rows], values)
    assert (padded[rows:] == 0).all()


def test_head_cross_entropy_under_autocast_is_near_the_exact_one_with_float32_gradients():
    features, weight = torch.randn(300, 12, requires_grad=True), torch.randn(31, 12, requires_grad=True)
    targets = torch.randint(31, (300,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_cross_entropy(features, weight, targets)
    loss.backward()
    expected = F.cross_entropy(features @ weight.T, targets, reduction="sum")
    exact = torch.autograd.grad(expected, [features, weight])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    for parameter, gradient in zip((features, weight), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - gradient).norm() < 0.02 * gradient.norm()


def test_a_head_that_does_not_learn_gets_no_gradient_and_none_is_stored():
    features, weight = torch.randn(300, 12, requires_grad=True), torch.randn(31, 12)
    targets = torch.randint(31, (300,))
    loss = head_cross_entropy(features, weight, targets)
    assert loss.grad_fn.saved_tensors[-1] is None
    loss.backward()
    expected = F.cross_entropy(features @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(features.grad, torch.autograd.grad(expected, features)[0], rtol=1e-4, atol=1e-5)


def test_head_cross_entropy_of_huge_logits_stays_finite():
    features = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = head_cross_entropy(features, weight, torch.tensor([0, 0]))
    loss.backward()
    # Logits (1000, -1000): sure and right, loss 0. Logits (-1000, 1000): sure and wrong, loss 2000.
    assert loss.item() == pytest.approx(2000)
    torch.testing.assert_close(features.grad, torch.tensor([[0.0], [-2.0]]))


def test_the_loss_in_float64_is_exact_and_passes_gradcheck():
    torch.manual_seed(0)
    features, weight = torch.randn(7, 4).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()
    targets = torch.tensor([0, 4, IGNORED, 2, 1, IGNORED, 3])
    loss = head_cross_entropy(features, weight, targets)
    expected = F.cross_entropy(features @ weight.T, targets, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.autograd.gradcheck(lambda f, w: head_cross_entropy(f, w, targets), (features, weight))


def test_second_derivatives_of_the_loss_equal_torchs():
    torch.manual_seed(0)
    features, weight = torch.randn(7, 4).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()
    targets = torch.tensor([0, 4, IGNORED, 2, 1, IGNORED, 3])
    torch.autograd.gradgradcheck(lambda f, w: head_cross_entropy(f, w, targets), (features, weight))
    # In a model, too, whose loss is divided by a number that needs no gradient.
    model = Decoder(DecoderConfig(50, 16, 1, 32, 2))
    for matrix in model.parameters():
        nn.init.normal_(matrix, std=0.3)
    tokens, wanted = torch.randint(50, (2, 8)), torch.randint(50, (2, 8))
    parameters = [model.layers[-1].feed_forward.down.weight, model.head.weight]
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def curvature(loss):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
        return torch.autograd.grad(slope, parameters)

    found = curvature(language_model_loss(model, (tokens, wanted)))
    expected = curvature(F.cross_entropy(model(tokens).flatten(0, 1), wanted.flatten()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_language_model_loss_and_gradients_equal_torchs_mean_over_trained_positions(preset):
    ours, theirs = tiny_decoder(preset), tiny_decoder(preset)
    nn.init.normal_(ours.head.weight)
    theirs.load_state_dict(ours.state_dict())
    tokens, targets = random_batch(0)
    targets[0, :4] = IGNORED
    targets[2] = IGNORED
    loss = language_model_loss(ours, (tokens, targets))
    expected = F.cross_entropy(theirs(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours_parameter, their_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_parameter.grad, their_parameter.grad, rtol=1e-3, atol=1e-6)


def test_ignored_positions_of_a_row_do_not_count():
    model = tiny_decoder()
    nn.init.normal_(model.head.weight)
    tokens, targets = random_batch(1)
    targets[1:] = IGNORED
    torch.testing.assert_close(
        language_model_loss(model, (tokens, targets)), language_model_loss(model, (tokens[:1], targets[:1]))
    )


def test_ignored_rows_in_the_middle_change_neither_the_loss_nor_a_gradient():
    features, weight = torch.randn(70, 5), torch.randn(VOCABULARY, 5)
    targets = torch.randint(VOCABULARY, (70,))
    targets[[0, 3, 4, 40]] = IGNORED
    results = []
    for function in (head_cross_entropy, lambda x, w, t: F.cross_entropy(x @ w.T, t, reduction="sum")):
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(x, w, targets)
        results.append((loss, *torch.autograd.grad(loss, (x, w))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_loss_is_zero_and_teaches_nothing_if_every_target_is_ignored():
    model = tiny_decoder()
    tokens, targets = random_batch(2)
    loss = language_model_loss(model, (tokens, torch.full_like(targets, IGNORED)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_loss_of_an_untrained_model_is_the_logarithm_of_the_vocabulary():
    assert language_model_loss(tiny_decoder(), random_batch(3)).item() == pytest.approx(math.log(VOCABULARY), abs=1e-5)


def test_rows_begin_where_texts_begin_by_hand():
    # Three texts after the mark 9, of 3, 2 and 5 tokens; rows of 4 read 5 tokens with the last target.
    tokens = torch.tensor([9, 1, 2, 3, 9, 4, 5, 9, 6, 7, 8, 1, 2])
    assert row_starts(tokens, 4, separator=9).tolist() == [0, 4, 7]
    assert row_starts(tokens, 4).tolist() == [0, 4, 8]
    assert row_starts(tokens, 2, separator=9).tolist() == [0, 2, 4, 6, 7, 9]  # long texts are cut
    assert row_starts(tokens[:4], 4, separator=9).tolist() == []


@slow_start
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(8, 20))
def test_every_text_that_fits_is_whole_in_a_row(lengths, context_length):
    tokens = torch.tensor(
        [token for length in lengths for token in [0, *range(1, length)]] + [0] * (context_length + 1)
    )
    starts = row_starts(tokens, context_length, separator=0).tolist()
    place = 0
    for length in lengths:
        if length <= context_length:
            assert any(start <= place and place + length <= start + context_length + 1 for start in starts)
        place += length


def test_every_row_is_read_once_before_any_is_read_again():
    tokens = torch.arange(101)
    recipe = Recipe(decoder=DecoderConfig(101, context_length=10, layers=1, width=8, heads=2), batch_size=2)
    batch_at = text_batches((tokens, tokens + 1000), recipe, seed=0)
    batches = [batch_at(step) for step in range(10)]
    for inputs, targets in batches:
        assert torch.equal(targets, inputs + 1001)
    firsts = [row[0].item() for inputs, _ in batches for row in inputs]
    assert sorted(firsts[:10]) == list(range(0, 100, 10))
    # One long text is cut elsewhere the next time, so that no row is met again and again.
    shifted = [sorted((start + shift) % 91 for start in range(0, 100, 10)) for shift in range(10)]
    assert sorted(firsts[10:]) in shifted[1:]
    assert torch.equal(batch_at(3)[0], batches[3][0])  # whatever was asked for before
    with pytest.raises(ValueError, match="needs at least 11"):
        text_batches((tokens[:10], tokens[:10]), recipe, seed=0)


def test_rows_of_many_texts_begin_with_the_same_texts_each_time_in_another_order():
    tokens = torch.tensor([0, *range(1, 10)] * 10 + [0])
    recipe = Recipe(decoder=DecoderConfig(101, context_length=10, layers=1, width=8, heads=2), batch_size=2)
    batch_at = text_batches((tokens, torch.arange(101)), recipe, seed=0, separator=0)
    ends = [row[-1].item() for step in range(10) for row in batch_at(step)[1]]
    assert sorted(ends[:10]) == sorted(ends[10:]) == list(range(10, 101, 10))
    assert ends[:10] != ends[10:]


# --- Learning rate -------------------------------------------------------------------------------

HALF_ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("steps", "arguments", "expected"),
    [
        (4, {"schedule": "constant"}, [1, 1, 1, 1]),
        (6, {"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        (8, {"schedule": "step"}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (8, {"schedule": "step", "warmup_steps": 2}, [0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (4, {"schedule": "cosine"}, [1, (1 + HALF_ROOT) / 2, 0.5, (1 - HALF_ROOT) / 2]),
        (6, {"schedule": "cosine", "warmup_steps": 2}, [0.5, 1, 1, (1 + HALF_ROOT) / 2, 0.5, (1 - HALF_ROOT) / 2]),
        (10, {"schedule": "linear", "decay_share": 0.5}, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (4, {"schedule": "linear", "decay_share": 1.0}, [1, 0.75, 0.5, 0.25]),
        (5, {"schedule": "linear", "decay_share": 0.4, "warmup_steps": 2}, [0.5, 1, 1, 1, 0.5]),
        (3, {"schedule": "linear", "decay_share": 0.0}, [1, 1, 1]),
    ],
)
def test_schedules_as_worked_out_by_hand(steps, arguments, expected):
    assert [schedule_factor(step, steps, **arguments) for step in range(steps)] == pytest.approx(expected)


def test_the_cosine_schedule_equals_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for step in range(12):
        assert schedule_factor(step, 12, "cosine") == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def settings_that_cannot_work():
    for name in ("steps", "warmup_steps"):
        yield TrainingConfig, name, -1, "at least 0"
        yield TrainingConfig, name, 1.5, "a whole number"
    for name in ("matrix_rate", "embedding_rate", "head_rate", "scalar_rate", "weight_decay"):
        yield TrainingConfig, name, -0.1, "at least 0"
        yield TrainingConfig, name, math.nan, "at least 0"
        yield TrainingConfig, name, math.inf, "finite"
    yield TrainingConfig, "decay_share", 1.5, "at most 1"
    yield TrainingConfig, "clip_norm", 0, "above 0"
    yield TrainingConfig, "seed", "0", "a whole number"
    yield TrainingConfig, "optimizer", "sgd", "choose 'muon' or 'adamw'"
    yield TrainingConfig, "schedule", "cosin", "choose 'constant' or"
    yield TrainingConfig, "precision", "fp8", "choose 'fp32' or 'bf16' or 'fp16'"
    for betas in (0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", "b")):
        yield TrainingConfig, "betas", betas, "two numbers"
    for config, names in (
        (PPOConfig, ("rollout_size", "minibatch_size", "epochs", "max_new_tokens")),
        (GroupConfig, ("rollout_prompts", "group_size", "minibatch_size", "max_new_tokens")),
        (DPOConfig, ("batch_size", "epochs")),
        (Recipe, ("batch_size", "ballots", "ballot_batch_size", "reward_epochs")),
    ):
        for name in names:
            yield config, name, 0, "at least 1"
            yield config, name, 1.0, "a whole number"
    for config, names in (
        (PPOConfig, ("policy_rate", "value_rate", "kl_coefficient", "replay_coefficient")),
        (GroupConfig, ("rate", "kl_coefficient", "replay_coefficient")),
        (DPOConfig, ("replay_coefficient",)),
    ):
        for name in names:
            yield config, name, -1.0, "at least 0"
    for config in (PPOConfig, GroupConfig):
        yield config, "iterations", -1, "at least 0"
        yield config, "clip", 0.0, "above 0"
        yield config, "clip_norm", math.nan, "above 0"
        yield config, "unfinished_score", math.nan, "finite"
        yield config, "seed", 0.5, "a whole number"
    yield PPOConfig, "value_iterations", -1, "at least 0"
    yield PPOConfig, "discount", 1.01, "at most 1"
    yield PPOConfig, "smoothing", -0.1, "at least 0"
    yield PPOConfig, "temperature", 0.0, "above 0"
    yield GroupConfig, "method", "ppo", "choose 'grpo' or 'reinforce'"
    yield DPOConfig, "beta", 0.0, "above 0"
    yield Recipe, "replayed", 1.5, "at most 1"
    yield Recipe, "ballots", 7, "too few for a ballot_batch_size of 8"


@pytest.mark.parametrize(("config", "name", "value", "message"), list(settings_that_cannot_work()))
def test_settings_that_cannot_work_are_refused_by_name(config, name, value, message):
    needed = {"steps": 1} if config is TrainingConfig else {}
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        config(**needed | {name: value})


def test_settings_at_the_edge_of_what_works_are_accepted():
    TrainingConfig(0, warmup_steps=0, matrix_rate=0, decay_share=1, clip_norm=math.inf, betas=(0, 0.999), seed=-1)
    PPOConfig(iterations=0, rollout_size=1, value_iterations=0, discount=0, smoothing=0)
    GroupConfig(group_size=2, kl_coefficient=0)


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="'sawtooth'.*cosine"):
        schedule_factor(0, 10, "sawtooth")


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "linear"])
def test_every_optimiser_group_follows_the_schedule(schedule):
    config = TrainingConfig(
        steps=8,
        schedule=schedule,
        warmup_steps=2,
        decay_share=0.5,
        matrix_rate=0.02,
        embedding_rate=0.03,
        head_rate=0.05,
        scalar_rate=0.07,
    )
    trainer = Trainer(tiny_decoder(), random_batch, config)
    seen = []

    def look(report):
        seen.append(report.rate_factor)
        rates = sorted(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        assert rates == pytest.approx([rate * report.rate_factor for rate in (0.02, 0.03, 0.05, 0.07)])

    trainer.run([look])
    assert seen == pytest.approx([schedule_factor(i, 8, schedule, warmup_steps=2, decay_share=0.5) for i in range(8)])


# --- Muon ----------------------------------------------------------------------------------------


def muon_by_the_book(start, gradients, lr, momentum, weight_decay):
    """One matrix, in float64, as Jordan's page writes it, with an exact-order polynomial."""
    weight, buffer = start.double().clone(), torch.zeros_like(start, dtype=torch.float64)
    for gradient in gradients:
        gradient = gradient.double()
        buffer = momentum * buffer + (1 - momentum) * gradient
        nesterov = momentum * buffer + (1 - momentum) * gradient
        # On the singular values the five iterations are five applications of one odd polynomial.
        left, sizes, right = torch.linalg.svd(nesterov / nesterov.norm(), full_matrices=False)
        for _ in range(5):
            sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
        scale = math.sqrt(max(1.0, start.shape[0] / start.shape[1]))
        weight = weight * (1 - lr * weight_decay) - lr * scale * (left * sizes) @ right
    return weight


SHAPES = [(6, 6), (12, 5), (5, 12), (1, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_muon_equals_its_definition(shape, steps):
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(steps)]
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.03, momentum=0.9, weight_decay=0.2)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = muon_by_the_book(start, gradients, 0.03, 0.9, 0.2)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("bf16", [False, True])
def test_muon_equals_torchs(monkeypatch, shape, steps, bf16):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no torch.optim.Muon; it came with 2.9")
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16" if bf16 else "fp32")
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    our_optimizer = Muon([ours], lr=0.02, momentum=0.95, weight_decay=0.1)
    their_optimizer = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.1)
    way = torch.zeros(())
    for _ in range(steps):
        gradient, before = torch.randn(shape), theirs.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        our_optimizer.step()
        their_optimizer.step()
        way += (theirs.detach() - before).norm()
    # torch always iterates in bfloat16, whose rounding (2^-9 relative) the five iterations amplify.
    assert (ours - theirs).norm().item() < (0.08 if bf16 else 0.04) * way.item()


def test_muon_treats_matrices_of_one_shape_as_if_each_were_alone():
    start = [torch.randn(4, 7), torch.randn(4, 7), torch.randn(7, 4)]
    gradients = [1000 * torch.randn(4, 7), 0.001 * torch.randn(4, 7), torch.randn(7, 4)]
    together = [nn.Parameter(tensor.clone()) for tensor in start]
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for parameter, tensor, gradient in zip(together, start, gradients, strict=True):
        alone = nn.Parameter(tensor.clone())
        alone.grad = gradient.clone()
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(parameter, alone, rtol=0, atol=1e-5)


def test_muon_leaves_parameters_without_a_gradient_alone():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))]
    parameters[0].grad = torch.eye(2)
    Muon(parameters, lr=0.1, weight_decay=0.5).step()
    assert not torch.equal(parameters[0], torch.ones(2, 2))
    assert torch.equal(parameters[1], torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_muon_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match=re.escape(f"matrices only, got shape {shape}")):
        Muon([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(shape))])


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 10), (2, 10, 24)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_directions(shape):
    matrices = torch.randn(shape)
    results = orthogonalise(matrices)
    assert results.shape == matrices.shape
    assert results.dtype == matrices.dtype
    before = torch.linalg.svdvals(matrices / matrices.norm(dim=(1, 2), keepdim=True))
    after = torch.linalg.svdvals(results)
    assert after.max() < 1.25
    assert after[before > 0.01].min() > 0.6  # five iterations do not lift what is nearly singular
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    seen = left.mT @ results @ right.mT  # diagonal if the singular vectors are the same
    torch.testing.assert_close(seen, torch.diag_embed(seen.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4)
    assert (seen.diagonal(dim1=1, dim2=2) > 0).all()


def test_orthogonalise_ignores_the_size_of_a_matrix_and_survives_zero():
    matrix = torch.randn(1, 5, 5)
    torch.testing.assert_close(orthogonalise(matrix), orthogonalise(1e4 * matrix), rtol=0, atol=1e-4)
    assert torch.equal(orthogonalise(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


# --- Which optimiser gets what -------------------------------------------------------------------


def models_of_every_kind():
    for preset in PRESETS:
        yield f"{preset} decoder", tiny_decoder(preset)
        yield f"{preset} reward model", RewardModel(tiny_decoder(preset), 1)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_each_parameter_is_in_exactly_one_optimiser_group(optimizer):
    for name, model in models_of_every_kind():
        optimizers = make_optimizers(model, constant_config(1, optimizer=optimizer))
        ids = [id(p) for one in optimizers for group in one.param_groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters()), name


def test_muon_gets_the_matrices_inside_the_layers_and_adamw_everything_else():
    for name, model in models_of_every_kind():
        optimizers = make_optimizers(model, constant_config(1, optimizer="muon"))
        muon = {id(p) for one in optimizers if isinstance(one, Muon) for g in one.param_groups for p in g["params"]}
        trunk = model.trunk if isinstance(model, RewardModel) else model
        inside = {id(p) for p in trunk.layers.parameters() if p.dim() == 2}
        assert muon == inside, name
        assert {type(one) for one in optimizers} == {Muon, torch.optim.AdamW}, name


def test_with_adamw_alone_every_parameter_learns_at_the_matrix_rate():
    config = constant_config(1, optimizer="adamw", matrix_rate=0.011, head_rate=0.5, embedding_rate=0.5)
    (optimizer,) = make_optimizers(tiny_decoder(), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {0.011}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weight_decay_shrinks_the_matrices_inside_the_layers_only(optimizer):
    model = tiny_decoder("gpt2")
    for one in make_optimizers(model, constant_config(1, optimizer=optimizer, weight_decay=0.3)):
        for group in one.param_groups:
            inside = {id(p) for p in model.layers.parameters() if p.dim() == 2}
            expected = {0.3 if id(p) in inside else 0.0 for p in group["params"]}
            assert expected == {group["weight_decay"]}


def test_frozen_parameters_go_to_no_optimiser():
    model = tiny_decoder()
    model.layers[0].requires_grad_(False)
    optimizers = make_optimizers(model, constant_config(1))
    ids = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    assert ids == {id(p) for p in model.parameters() if p.requires_grad}


# --- One update ----------------------------------------------------------------------------------

INPUT = torch.tensor([3.0, 0.0, 4.0])  # the gradient of `slope`'s loss: its norm is 5


def slope():
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def scaler_of(scale):
    return torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)


@pytest.mark.parametrize("scale", [None, 1.0, 1024.0])
def test_clipping_sees_the_true_gradients(scale):
    model, optimizer = slope()
    norm = backward_and_step(model, model(INPUT).sum(), [optimizer], 1.0, scaler_of(scale))
    assert norm == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.detach(), -INPUT[None] / 5)
    assert model.weight.grad is None


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_below_the_limit_are_not_clipped(scale):
    model, optimizer = slope()
    norm = backward_and_step(model, model(INPUT).sum(), [optimizer], 5.5, scaler_of(scale))
    assert norm == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.detach(), -INPUT[None])


def test_clipping_before_unscaling_would_be_noticed():
    def clip_first(model, loss, optimizer, scaler):
        scaler.scale(loss).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return float(norm)

    model, optimizer = slope()
    norm = clip_first(model, model(INPUT).sum(), optimizer, scaler_of(1024.0))
    assert norm == pytest.approx(5.0 * 1024)
    # The whole scale is lost on the way: the update is 1024 times too small.
    torch.testing.assert_close(model.weight.detach(), -INPUT[None] / 5 / 1024)


def test_the_norm_is_that_of_all_gradients_of_all_optimisers_together():
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    optimizers = [torch.optim.SGD(part.parameters(), lr=1.0) for part in model]
    before = [part.weight.detach().clone() for part in model]
    loss = 3 * model[0].weight.sum() + 4 * model[1].weight.sum()
    assert backward_and_step(model, loss, optimizers, 1.0, scaler_of(8.0)) == pytest.approx(5.0)
    torch.testing.assert_close(before[0] - model[0].weight.detach(), torch.tensor([[0.6]]))
    torch.testing.assert_close(before[1] - model[1].weight.detach(), torch.tensor([[0.8]]))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_changes_no_parameter_and_halves_the_scale(bad):
    # The overflow is in one optimiser's gradients only; the other one's must not be spoiled by it.
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    optimizers = [torch.optim.AdamW(part.parameters(), lr=0.1, weight_decay=0.0) for part in model]
    before = [part.weight.detach().clone() for part in model]
    scaler = scaler_of(1024.0)
    loss = model[0].weight.sum() * bad + model[1].weight.sum()
    backward_and_step(model, loss, optimizers, 1.0, scaler)
    assert [torch.equal(part.weight, old) for part, old in zip(model, before, strict=True)] == [True, True]
    assert scaler.get_scale() == 512


# --- The loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("preset", PRESETS)
def test_training_learns_a_batch_by_heart(preset, optimizer):
    batch = random_batch(0)
    rate = 0.02 if optimizer == "muon" else 0.01
    model = tiny_decoder(preset)
    losses = Trainer(model, lambda _: batch, constant_config(60, optimizer=optimizer, matrix_rate=rate)).run()
    assert losses[-1] < 0.1 * losses[0]


def test_each_step_takes_its_own_batch_and_is_reported_once_with_the_loss_before_the_update():
    asked, reports = [], []
    model = tiny_decoder()
    untrained = language_model_loss(model, random_batch(0)).item()

    def batch_at(step):
        asked.append(step)
        return random_batch(step)

    losses = Trainer(model, batch_at, constant_config(4)).run([reports.append, reports.append])
    assert asked == [0, 1, 2, 3]
    assert [report.step for report in reports] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert {report.steps for report in reports} == {4}
    assert [report.loss for report in reports[::2]] == losses
    assert losses[0] == pytest.approx(untrained)
    assert all(report.seconds > 0 for report in reports)


def test_the_reported_norm_is_that_before_clipping():
    def run(clip_norm):
        reports = []
        Trainer(tiny_decoder(), random_batch, constant_config(1, clip_norm=clip_norm)).run([reports.append])
        return reports[0].gradient_norm

    model = tiny_decoder()
    language_model_loss(model, random_batch(0)).backward()
    expected = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
    assert expected > 1e-3
    assert run(1e-3) == run(1e3) == pytest.approx(expected, rel=1e-4)


def test_training_switches_the_model_to_training_mode():
    model = tiny_decoder().eval()
    Trainer(model, random_batch, constant_config(1)).run()
    assert model.training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_with_advice(bad):
    def loss_function(model, batch):
        loss = language_model_loss(model, batch)
        return loss * bad if len(trainer.losses) == 2 else loss

    trainer = Trainer(tiny_decoder(), random_batch, constant_config(5), loss_function)
    with pytest.raises(FloatingPointError, match="step 2: lower the learning rates"):
        trainer.run()
    assert len(trainer.losses) == 2
    assert all(map(math.isfinite, trainer.losses))


def test_a_loss_that_is_no_number_does_not_touch_the_weights():
    model = tiny_decoder()
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(model, random_batch, constant_config(5), lambda m, b: language_model_loss(m, b) * math.nan)
    with pytest.raises(FloatingPointError):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- Stop and go on ------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_after(steps):
    def callback(report):
        if report.step == steps:
            raise StoppedError

    return callback


def interrupted_after(steps, preset, config):
    trainer = Trainer(tiny_decoder(preset), random_batch, config)
    with pytest.raises(StoppedError):
        trainer.run([stop_after(steps)])
    assert trainer.step == steps
    return trainer


def assert_goes_on_like(resumed, whole):
    assert resumed.run() == whole.run()  # bitwise
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(preset, optimizer, precision):
    config = TrainingConfig(
        steps=7, optimizer=optimizer, schedule="cosine", warmup_steps=2, weight_decay=0.1, precision=precision
    )
    whole = Trainer(tiny_decoder(preset), random_batch, config)
    stopped = interrupted_after(4, preset, config)
    resumed = Trainer(tiny_decoder(preset, seed=5), random_batch, config)
    resumed.load_state(*stopped.state())
    assert resumed.step == 4
    assert resumed.losses == stopped.losses
    assert_goes_on_like(resumed, whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_resumed_from_a_file_is_bitwise_the_uninterrupted_one(tmp_path, preset):
    config = TrainingConfig(steps=7, schedule="linear", warmup_steps=2)
    whole = Trainer(tiny_decoder(preset), random_batch, config)
    save_tensors(tmp_path / "run.safetensors", *interrupted_after(3, preset, config).state())
    resumed = Trainer(tiny_decoder(preset, seed=5), random_batch, config)
    resumed.load_state(*load_tensors(tmp_path / "run.safetensors"))
    assert resumed.step == 3
    assert_goes_on_like(resumed, whole)


def test_a_stopped_run_goes_on_in_place():
    config = TrainingConfig(steps=6, warmup_steps=2)
    assert_goes_on_like(interrupted_after(3, "llama", config), Trainer(tiny_decoder("llama"), random_batch, config))


def test_a_finished_run_does_nothing_more():
    trainer = Trainer(tiny_decoder(), random_batch, constant_config(2))
    losses = list(trainer.run())
    assert trainer.run([stop_after(3)]) == losses


def test_without_the_optimisers_averages_a_resumed_run_would_differ():
    config = constant_config(6)
    whole = Trainer(tiny_decoder(), random_batch, config).run()
    tensors, values = interrupted_after(3, "llama", config).state()
    resumed = Trainer(tiny_decoder(), random_batch, config)
    resumed.load_state({name: value for name, value in tensors.items() if name.startswith("model.")}, values)
    assert resumed.run() != whole


def test_a_state_goes_on_in_the_precision_that_it_was_taken_in(monkeypatch):
    # Stopped on a machine that chose fp16, resumed on one that would choose something else.
    stopped = interrupted_after(2, "llama", constant_config(4, precision="fp16"))
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    resumed = Trainer(tiny_decoder(), random_batch, constant_config(4))
    resumed.load_state(*stopped.state())
    assert resumed.precision == "fp16"
    assert resumed.scaler.is_enabled()  # fp16 without a scaler loses small gradients
    assert resumed.scaler.get_scale() == stopped.scaler.get_scale()
    # And the other way round.
    stopped = interrupted_after(2, "llama", constant_config(4, precision="fp32"))
    monkeypatch.setenv("GPTCORE_PRECISION", "fp16")
    resumed = Trainer(tiny_decoder(), random_batch, constant_config(4))
    resumed.load_state(*stopped.state())
    assert (resumed.precision, resumed.scaler.is_enabled()) == ("fp32", False)


@pytest.mark.parametrize("other", [{"preset": "gpt2"}, {"layers": 3}])
def test_the_state_of_another_model_is_refused(other):
    stopped = interrupted_after(1, "llama", constant_config(2))
    with pytest.raises(ValueError, match="another shape: start anew"):
        Trainer(tiny_decoder(**other), random_batch, constant_config(2)).load_state(*stopped.state())
