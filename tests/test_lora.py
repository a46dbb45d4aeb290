"""Low-rank adapters: a start that changes nothing, the paper's formula, and only what shall learn learns."""

import copy
from types import SimpleNamespace

import pytest
import torch
from test_dpo import toy_ballots
from test_ppo import SPECIAL, VOCABULARY, snapshot, tiny_decoder, toy, unchanged

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.dpo import DPOConfig, dpo_trainer
from gptcore.finetuning import introduce_chat_tokens
from gptcore.interruption import Interrupted
from gptcore.lora import ALPHA, LowRank, merged, rank_of, tell_chat_tokens_apart, with_adapters
from gptcore.reward import RewardModel, replayed_reward_loss, rewards_of
from gptcore.tokenizer import ASSISTANT, END, USER
from gptcore.training import Trainer, TrainingConfig, generator_for, sample_windows

pytestmark = pytest.mark.usefixtures("exact_arithmetic")

TOKENS = torch.arange(60).view(3, 20) % VOCABULARY
PRESETS = pytest.mark.parametrize("preset", ["llama", "gpt2"])
KINDS = pytest.mark.parametrize("kind", ["decoder", "reward"])


def model_of(kind, preset="llama"):
    model = tiny_decoder(preset=preset)
    return model if kind == "decoder" else RewardModel(model, SPECIAL[ASSISTANT])


def output(model):
    """Logits, and a reward model's values beside them."""
    if isinstance(model, Decoder):
        return model(TOKENS)
    return torch.cat((model.trunk(TOKENS), model.values(TOKENS)[..., None]), dim=-1)


def trainer_of(model, precision=None):
    """A decoder learns text; a reward model votes and text."""

    def text(step):
        stream = torch.arange(200) ** 2 % VOCABULARY
        return sample_windows(stream, stream, 2, 12, generator_for(step))

    config = TrainingConfig(steps=6, optimizer="adamw", matrix_rate=0.01, precision=precision)
    if isinstance(model, Decoder):
        return Trainer(model, text, config)
    return Trainer(model, lambda step: (toy_ballots(2, step), text(step)), config, replayed_reward_loss)


def those_that_learn(model):
    """Names of the parameters that shall learn."""
    names = {name for name, _ in model.named_parameters() if name.endswith((".down", ".up"))}
    return names | ({"head.weight", "head.bias"} if isinstance(model, RewardModel) else set())


def with_states(model, *optimizers):
    """Names of the parameters of which an optimiser keeps averages."""
    kept = {parameter for optimizer in optimizers for parameter in optimizer.state}
    return {name for name, parameter in model.named_parameters() if parameter in kept}


# --- Mathematics ---------------------------------------------------------------------------------


def test_a_layer_as_worked_out_by_hand():
    linear = torch.nn.Linear(2, 3)
    layer = LowRank(linear, 2, generator_for(0))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        linear.bias.copy_(torch.tensor([0.0, 0.0, 7.0]))
        layer.down.copy_(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
        layer.up.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    # x = (3, 1): W x + bias = (5, 13, 28); A x = (2, 1); B A x = (2, 2, 0), times 32 / 2.
    expected = torch.tensor([5.0 + 32, 13.0 + 32, 28.0])
    assert ALPHA == 32
    assert torch.equal(layer(torch.tensor([3.0, 1.0])), expected)
    # B A = ((1, -1), (0, 2), (0, 0)): W + 16 B A, the formula of the library `peft`.
    folded = layer.merged()
    assert type(folded) is torch.nn.Linear
    assert folded.weight.tolist() == [[17, -14], [3, 36], [5, 6]]
    assert torch.equal(folded(torch.tensor([3.0, 1.0])), expected)


def test_a_starts_between_plus_and_minus_one_over_the_root_of_the_inputs():
    layer = LowRank(torch.nn.Linear(100, 8), 8, generator_for(0))
    assert 0.095 < layer.down.abs().max() <= 0.1
    assert layer.down.mean().abs() < 0.01
    assert not layer.up.any()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@PRESETS
@KINDS
def test_at_the_start_a_model_does_exactly_what_it_did(kind, preset, precision):
    model = model_of(kind, preset)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        assert torch.equal(output(with_adapters(model, 4)), output(model))


def test_every_linear_layer_inside_the_layers_gets_adapters_of_the_rank():
    for preset, count in (("llama", 7), ("gpt2", 6)):
        adapted = with_adapters(tiny_decoder(preset=preset), 4)
        layers = [part for part in adapted.modules() if isinstance(part, LowRank)]
        assert len(layers) == count
        assert all(len(layer.down) == layer.up.shape[1] == 4 for layer in layers)
        assert rank_of(adapted) == 4


def test_the_seed_alone_fixes_the_start():
    first, again, other = (snapshot(with_adapters(tiny_decoder(), 4, seed)) for seed in (1, 1, 2))
    name = "layers.0.attention.query.down"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["layers.0.attention.key.down"])


@pytest.mark.parametrize("rank", [-1, 0, 17])
def test_a_rank_that_no_matrix_has_is_refused(rank):
    with pytest.raises(ValueError, match=f"from 1 to 16, the model's narrowest layer, got {rank}"):
        with_adapters(tiny_decoder(), rank)


# --- What learns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@PRESETS
@KINDS
def test_only_adapters_and_a_reward_models_head_learn(kind, preset, precision):
    model = model_of(kind, preset)
    adapted, before = with_adapters(model, 4), snapshot(model)
    trainer = trainer_of(adapted, precision)
    start = snapshot(adapted)
    trainer.loss_function(adapted, trainer.batch_at(0)).backward()
    names = those_that_learn(adapted)
    assert {name for name, parameter in adapted.named_parameters() if parameter.grad is not None} == names
    trainer.run()
    assert {name for name, value in adapted.named_parameters() if not torch.equal(value, start[name])} == names
    assert with_states(adapted, *trainer.optimizers) == names
    assert unchanged(model, before)


@PRESETS
@KINDS
def test_merged_a_model_does_what_it_did_with_adapters_and_is_an_ordinary_one(kind, preset):
    model = model_of(kind, preset)
    adapted = with_adapters(model, 4)
    trainer_of(adapted).run()
    with torch.no_grad():
        before, folded = snapshot(adapted), merged(adapted)
        torch.testing.assert_close(output(folded), output(adapted), rtol=1e-4, atol=1e-5)
        assert (output(folded) - output(model)).abs().max() > 0.1  # it has learned something
    assert unchanged(adapted, before)
    assert rank_of(folded) is None
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in folded.parameters())
    assert merged(folded) is folded


def test_adapted_model_and_merged_one_keep_no_second_copy_of_what_does_not_learn():
    model = tiny_decoder()
    adapted = with_adapters(model, 4)
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    added = {name for name, value in adapted.named_parameters() if value.data_ptr() not in mine}
    assert added == those_that_learn(adapted)
    folded = {name for name, value in merged(adapted).named_parameters() if value.data_ptr() in mine}
    assert folded == {name for name, _ in model.named_parameters() if "norm" in name} | {
        "embedding.weight",
        "head.weight",
    }


def test_tied_heads_stay_tied():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(VOCABULARY, 24, 1, 16, 2, tied=True))
    tell_chat_tokens_apart(model, SimpleNamespace(special=SPECIAL))
    adapted = with_adapters(model, 4)
    trainer_of(adapted).run()
    for each in (model, adapted, merged(adapted), copy.deepcopy(adapted)):
        assert each.head.weight is each.embedding.weight
        assert torch.equal(each.head.weight, model.head.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_chat_tokens_that_are_alike_are_moved_apart_as_far_as_others_are_and_nothing_else_is(tied):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(400, 24, 1, 256, 2, tied=tied))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    chat = [SPECIAL[token] for token in (USER, ASSISTANT, END)]
    tokenizer = SimpleNamespace(special=SPECIAL)
    introduce_chat_tokens(model, tokenizer)
    before = copy.deepcopy(model)
    tell_chat_tokens_apart(model, tokenizer)
    for weight, old in ((model.embedding.weight, before.embedding.weight), (model.head.weight, before.head.weight)):
        changed = (weight != old).any(dim=1).nonzero().flatten().tolist()
        assert changed == chat
        # A step of the spread s from the same place; two of them are s sqrt(2) apart, as are two random tokens.
        distances = torch.pdist(weight[chat]) / torch.pdist(old[100:]).mean()
        assert ((distances > 0.8) & (distances < 1.2)).all()


# --- Stages --------------------------------------------------------------------------------------


@KINDS
def test_a_stopped_and_resumed_run_ends_as_one_that_was_not(kind):
    whole, parts, resumed = (trainer_of(with_adapters(model_of(kind), 4)) for _ in range(3))

    def stop(report):
        if report.step == 3:
            raise Interrupted

    whole.run()
    with pytest.raises(Interrupted):
        parts.run([stop])
    saved = copy.deepcopy(parts.state())
    resumed.load_state(*saved)
    resumed.run()
    assert len(resumed.losses) == 6
    assert unchanged(merged(resumed.model), merged(whole.model).state_dict())


def adapted_toy():
    return toy(policy=with_adapters(tiny_decoder(), 4))


def test_in_ppo_the_value_model_learns_by_adapters_as_the_policy_does_and_both_go_on_after_a_stop():
    whole, parts, resumed = adapted_toy(), adapted_toy(), adapted_toy()
    fixed = {model: snapshot(model) for model in (whole.reference, whole.reward_model)}
    whole.run()
    for model, optimizer in ((whole.policy, whole.policy_optimizer), (whole.value_model, whole.value_optimizer)):
        assert rank_of(model) == 4
        assert with_states(model, optimizer) == those_that_learn(model)
    embeddings = (model.trunk.embedding.weight for model in (whole.value_model, whole.reward_model))
    assert len({weight.data_ptr() for weight in embeddings}) == 1
    assert all(unchanged(model, before) for model, before in fixed.items())
    parts.history.append(parts.iterate(0))
    resumed.load_state(*copy.deepcopy(parts.state()))
    resumed.run()
    assert unchanged(merged(resumed.policy), merged(whole.policy).state_dict())
    assert unchanged(resumed.value_model, whole.value_model.state_dict())


def test_answers_are_drawn_from_the_policy_as_it_is_now():
    trained = adapted_toy()
    trained.run()
    rollout = trained.roll_out(5)
    expected = toy(policy=merged(trained.policy)).roll_out(5)
    assert torch.equal(rollout.tokens, expected.tokens)
    torch.testing.assert_close(rollout.log_probabilities, expected.log_probabilities, rtol=1e-4, atol=1e-5)


def test_dpo_learns_votes_by_adapters():
    policy = with_adapters(tiny_decoder(), 4)
    training = TrainingConfig(steps=0, optimizer="adamw", matrix_rate=0.01)
    trainer = dpo_trainer(policy, toy_ballots(40), DPOConfig(epochs=3, training=training))
    losses = trainer.run()
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: as yet the policy is the reference
    assert losses[-1] < 0.6
    assert with_states(policy, *trainer.optimizers) == those_that_learn(policy)


def test_a_merged_reward_model_gives_the_rewards_that_were_normalised():
    model = with_adapters(model_of("reward"), 4)
    trainer_of(model).run()
    model.mean += 0.5
    model.deviation *= 3
    sequences = [ballot.prompt_ids + answer for ballot in toy_ballots(4) for answer in ballot.answers]
    torch.testing.assert_close(rewards_of(merged(model), sequences), rewards_of(model, sequences))
