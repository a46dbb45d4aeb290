"""The table of scales: against real small models, published counts and a hand calculation."""

import pytest
import torch
from test_decoder import random_decoder, random_tokens
from torch.utils.flop_counter import FlopCounterMode

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.loss import language_model_loss
from gptcore.machine import autocast
from gptcore.ppo import PPO, PPOConfig
from gptcore.reward import RewardModel
from gptcore.scales import (
    SHAPES,
    activation_bytes,
    as_rows,
    gpus_that_fit,
    parameters,
    ppo_state_bytes,
    scale_of,
    state_bytes,
    training_flops,
)
from gptcore.tokenizer import ASSISTANT, Tokenizer

SIZES = [
    {"preset": "gpt2"},
    {"preset": "llama"},
    {"preset": "llama", "tied": True, "layers": 3},
    {"preset": "llama", "key_value_heads": 2, "attention_bias": True, "head_size": 6},
]


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("changes", SIZES)
def test_parameters_are_those_of_a_real_decoder(changes):
    model = random_decoder(**changes)
    assert parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_those_that_were_published():
    gpt2 = DecoderConfig(50_257, 1024, layers=12, width=768, heads=12, preset="gpt2")
    assert parameters(gpt2) == 124_439_808
    assert parameters(SHAPES["1 B"]) == 1_100_048_384  # TinyLlama
    assert parameters(SHAPES["7 B"]) == 6_738_415_616  # Llama 2
    assert parameters(SHAPES["10 M"]) == pytest.approx(10e6, rel=0.1)
    assert parameters(SHAPES["100 M"]) == pytest.approx(100e6, rel=0.1)


@pytest.mark.parametrize("changes", SIZES)
def test_states_are_those_of_a_real_model_after_a_step_of_adamw(changes):
    model = random_decoder(**changes)
    optimizer = torch.optim.AdamW(model.parameters())
    model(random_tokens(0, 2, 12)).sum().backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert state_bytes(model.config, half=False) == {
        "weights": bytes_of(model.parameters()),
        "gradients": bytes_of(parameter.grad for parameter in model.parameters()),
        "moments": bytes_of(moments),
        "half_copies": 0,
    }


def kept(model: Decoder, rows: int, half: bool) -> tuple[int, int]:
    """Bytes that training keeps from the forward to the backward pass: all but the weights, and of those the half copies of weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {shape for p in model.parameters() if p.dim() == 2 for shape in (tuple(p.shape), tuple(p.shape[::-1]))}
    storages, copies = {}, {}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            storages[place] = tensor  # kept alive, or another may take its place
            if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
                copies[place] = tensor
        return tensor

    tokens = random_tokens(1, rows, 11)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast("bf16" if half else "fp32"):
        language_model_loss(model, (tokens, tokens))
    sizes = [sum(part.untyped_storage().nbytes() for part in found.values()) for found in (storages, copies)]
    return sizes[0], sizes[1]


@pytest.mark.parametrize("changes", [{"preset": "gpt2"}, {"preset": "llama"}, {"tied": True, "head_size": 6}])
def test_half_copies_are_those_that_autocast_keeps(changes):
    model = random_decoder(**changes)
    assert kept(model, 2, half=True)[1] == state_bytes(model.config, half=True)["half_copies"]
    assert kept(model, 2, half=False)[1] == 0


@pytest.mark.parametrize(("half", "least", "most"), [(False, 1.0, 1.15), (True, 1.0, 1.5)])
@pytest.mark.parametrize(
    "changes", [{"preset": "gpt2"}, {"preset": "llama"}, {"key_value_heads": 2, "hidden_width": 64}]
)
def test_activations_are_about_those_that_autograd_keeps(changes, half, least, most):
    model = random_decoder(**{"layers": 6, "width": 32} | changes)
    measured = kept(model, 7, half)[0] - kept(model, 3, half)[0]  # those of four rows: the rest grows with no row
    assert least <= measured / activation_bytes(model.config, 4, 11, half) <= most


@pytest.mark.parametrize("changes", SIZES)
def test_operations_are_three_times_those_that_torch_counts_in_reading(changes):
    model = random_decoder(**changes)
    with FlopCounterMode(display=False) as counter:
        # Asked for its weights, attention is two plain products, which torch counts whole.
        model.head(model.hidden(random_tokens(2, 5, 12), attention_weights=[]))
    assert training_flops(model.config, 5 * 12) == 3 * counter.get_total_flops()


def test_states_of_ppo_are_those_of_a_real_one():
    tokenizer = Tokenizer([])
    config = DecoderConfig(tokenizer.vocabulary_size, context_length=24, layers=2, width=128, heads=4)
    policy, reference = Decoder(config), Decoder(config)
    judge = RewardModel(reference, tokenizer.special[ASSISTANT])

    class Asked:
        def draw_ids(self, rng, tokenizer, room):
            return [tokenizer.special[ASSISTANT]]

    few = PPOConfig(iterations=1, rollout_size=4, minibatch_size=4, max_new_tokens=4, value_iterations=0)
    loop = PPO(policy, reference, judge, tokenizer, Asked(), few)
    loop.run()
    models = (loop.policy, loop.value_model, loop.reference, loop.reward_model)
    moments = [
        state[name]
        for optimizer in (loop.policy_optimizer, loop.value_optimizer)
        for state in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    found = ppo_state_bytes(config, half=False)
    # Two of the models have a head of their own, of one number.
    assert found["weights"] == pytest.approx(bytes_of(p for model in models for p in model.parameters()), rel=1e-3)
    assert found["moments"] == pytest.approx(bytes_of(moments), rel=1e-3)
    assert found["gradients"] == bytes_of(policy.parameters())


def test_how_many_gpus_by_hand():
    giga = 10**9

    def states(shared, half_copies=0):
        return {"weights": shared - 1, "moments": 1, "half_copies": half_copies}

    assert gpus_that_fit(states(70 * giga), 10 * giga) == 1
    assert gpus_that_fit(states(70 * giga + 1), 10 * giga) == 2
    assert gpus_that_fit(states(300 * giga), 30 * giga) == 6
    assert gpus_that_fit(states(300 * giga, 20 * giga), 30 * giga) == 10  # of the copies each has its own
    with pytest.raises(ValueError, match="read fewer rows"):
        gpus_that_fit(states(1), 80 * giga)


def test_the_engine_follows_from_memory_and_then_from_hours():
    config = SHAPES["10 M"]
    flops = training_flops(config, 20 * parameters(config))
    assert scale_of(config, flops / 3600).hours == pytest.approx(1)
    for hours, engine, gpus in ((24, "one process", 1), (25, "DistributedDataParallel", 2)):
        found = scale_of(config, flops / hours / 3600)
        assert (found.engine, found.gpus) == (engine, gpus)
    found = scale_of(SHAPES["7 B"], 1e30)  # done at once, but 18 bytes for each parameter do not fit
    assert (found.engine, found.gpus) == ("fully_shard", 3)


def test_the_table_at_seven_billion_by_hand():
    row = as_rows(4e14)[-1]
    count = 6_738_415_616
    in_products = count - 32_000 * 4096 - 65 * 4096  # neither embedding nor norms
    assert row["scale"] == "7 B"
    assert row["parameters"] == count
    assert row["training_bytes"] == 16 * count + 2 * in_products
    assert row["ppo_bytes"] == (16 + 4 + 16) * count + 2 * in_products
    # A row of 4096 tokens, 32 layers: 26 C + 8 C + 8 F bytes.
    assert row["activation_bytes"] == 4096 * 32 * (34 * 4096 + 8 * 11_008)
    assert row["tokens"] == 20 * count
    # Six operations for each weight and token, and those of attention: 12 layers C T for each token.
    by_hand = 20 * count * (6 * in_products + 12 * 32 * 4096 * 4096)
    assert row["flops"] == by_hand
    assert row["hours"] == pytest.approx(by_hand / 4e14 / 3600)
    assert [each["engine"] for each in as_rows(4e14)] == [
        "one process", "one process", "DistributedDataParallel", "fully_shard",
    ]  # fmt: skip
