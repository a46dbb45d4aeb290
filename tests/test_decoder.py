"""The decoder against transformers' models, against counts by hand, and against its promises."""

import math

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptcore.attention import KeyValueCache, causal_mask
from gptcore.decoder import Decoder, DecoderConfig, RMSNorm
from gptcore.flops import forward_flops
from gptcore.generation import SamplingConfig, generate
from gptcore.interchange import as_transformers
from gptcore.machine import autocast
from gptcore.reward import RewardModel, rewards_of

PRESETS = ("gpt2", "llama")
# The same examples on every machine: a failure can be repeated.
few_examples = settings(max_examples=20, deadline=None, derandomize=True)
presets = st.sampled_from(PRESETS)
seeds = st.integers(0, 2**32 - 1)

SMALL = {"vocabulary_size": 23, "context_length": 12, "layers": 2, "width": 16, "heads": 4, "hidden_width": 24}


def random_decoder(seed=0, **changes):
    """A small decoder whose weights are far from their start: no zeros, no ones, no small numbers."""
    model = Decoder(DecoderConfig(**SMALL | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_tokens(seed, *shape):
    return torch.randint(SMALL["vocabulary_size"], shape, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


# --- Equal to the published architectures --------------------------------------------------------


def in_transformers(model):
    """transformers' GPT-2 or Llama with the weights of a decoder."""
    config, tensors = as_transformers(model)
    if model.config.preset == "gpt2":
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    else:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    theirs.load_state_dict(tensors, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("changes", [{}, {"norm_epsilon": 0.1}, {"hidden_width": None, "layers": 3, "heads": 2}])
def test_gpt2_preset_gives_the_logits_of_transformers_gpt2(changes):
    model = random_decoder(preset="gpt2", **changes)
    tokens = random_tokens(1, 3, 12)
    with torch.no_grad():
        assert_same(model(tokens), in_transformers(model)(tokens).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_value_heads": 2},
        {"key_value_heads": 1},
        {"norm_epsilon": 0.1},
        {"rotary_base": 100.0},
        {"hidden_width": None, "layers": 3, "heads": 2},
    ],
)
def test_llama_preset_gives_the_logits_of_transformers_llama(changes):
    model = random_decoder(preset="llama", **changes)
    tokens = random_tokens(2, 3, 12)
    with torch.no_grad():
        assert_same(model(tokens), in_transformers(model)(tokens).logits)


def test_rms_norm_by_hand():
    # The mean of the squares of (1, 7) is 25, its root 5.
    norm = RMSNorm(2, epsilon=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([0.2, 14.0]))
    # The epsilon is added to the mean of the squares, under the root: 16 + 9 = 25 again.
    norm = RMSNorm(2, epsilon=9.0)
    torch.testing.assert_close(norm(torch.tensor([4.0, -4.0])), torch.tensor([0.8, -0.8]))


# --- What must not change the logits -------------------------------------------------------------


@few_examples
@given(presets, seeds, st.integers(2, 12), st.data())
def test_future_tokens_do_not_change_the_past(preset, seed, length, data):
    model = random_decoder(seed, preset=preset)
    tokens = random_tokens(seed, 2, length)
    place = data.draw(st.integers(1, length - 1))
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + data.draw(st.integers(1, 22))) % 23
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=1e-5)
    # The change is seen from its own position on, to the last.
    assert not torch.isclose(after[:, place:], before[:, place:]).all(dim=-1).any()


@few_examples
@given(presets, seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda pieces: sum(pieces) <= 12))
def test_with_a_cache_pieces_give_the_logits_of_the_whole(preset, seed, pieces):
    model = random_decoder(seed, preset=preset, key_value_heads=2)
    tokens = random_tokens(seed, 2, sum(pieces))
    cache = KeyValueCache(model.config.layers, sum(pieces))
    with torch.no_grad():
        logits = torch.cat([model(part, cache=cache) for part in tokens.split(pieces, dim=1)], dim=1)
        assert_same(logits, model(tokens))
    assert cache.length == sum(pieces)


def padded(seed, lengths, side):
    """Random sequences of these lengths, with random tokens, not zeros, as padding."""
    longest = max(lengths)
    tokens = random_tokens(seed, len(lengths), longest)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = True
    return tokens, mask if side == "left" else mask.flip(1)


@few_examples
@given(presets, seeds, st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_padding_and_neighbours_in_the_batch_change_nothing(preset, seed, lengths, side):
    model = random_decoder(seed, preset=preset)
    tokens, mask = padded(seed, lengths, side)
    with torch.no_grad():
        logits = model(tokens, mask)
        for row in range(len(lengths)):
            alone = model(tokens[row : row + 1, mask[row]])
            assert_same(logits[row, mask[row]], alone[0])
    assert logits.isfinite().all()


@few_examples
@given(presets, seeds, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.lists(st.integers(1, 3), max_size=3))
def test_left_padding_changes_nothing_with_a_cache_either(preset, seed, lengths, pieces):
    model = random_decoder(seed, preset=preset)
    tokens, mask = padded(seed, lengths, "left")
    more = random_tokens(seed + 1, len(lengths), sum(pieces))
    whole = torch.cat((tokens, more), dim=1)
    whole_mask = torch.cat((mask, torch.ones_like(more, dtype=torch.bool)), dim=1)
    assume(whole.shape[1] <= 12)
    cache, logits, end = KeyValueCache(model.config.layers, 12), [], 0
    with torch.no_grad():
        for part in whole.split([tokens.shape[1], *pieces], dim=1):
            end += part.shape[1]
            logits.append(model(part, whole_mask[:, :end], cache))
        logits = torch.cat(logits, dim=1)
        for row in range(len(lengths)):
            alone = model(whole[row : row + 1, whole_mask[row]])
            assert_same(logits[row, whole_mask[row]], alone[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_mask_without_padding_changes_nothing(preset):
    model = random_decoder(preset=preset)
    tokens = random_tokens(3, 2, 9)
    with torch.no_grad():
        assert_same(model(tokens, torch.ones(2, 9, dtype=torch.bool)), model(tokens))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_order_of_the_batch_changes_nothing(preset):
    model = random_decoder(preset=preset)
    tokens, mask = padded(4, [3, 12, 7, 1], "left")
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        real = mask[order]
        assert_same(model(tokens[order], mask[order])[real], model(tokens, mask)[order][real])


SEPARATOR = 0
TWO_TEXTS = torch.tensor([[4, 5, SEPARATOR, 7, 8, 9], [SEPARATOR, 5, 6, 7, SEPARATOR, 9]])  # each row: two texts


@torch.no_grad()
def test_texts_in_one_window_are_read_as_if_each_stood_alone():
    model = random_decoder(preset="llama", separator=SEPARATOR)
    together = model(TWO_TEXTS)
    for row, begin in ((0, 2), (1, 4)):
        assert_same(together[row, :begin], model(TWO_TEXTS[row : row + 1, :begin])[0])
        assert_same(together[row, begin:], model(TWO_TEXTS[row : row + 1, begin:])[0])


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
def test_only_a_separator_hides_the_earlier_text(preset):
    other = TWO_TEXTS.clone()
    other[0, 0] = 11
    for separator, hidden in ((SEPARATOR, True), (None, False)):
        model = random_decoder(preset=preset, separator=separator)
        change = (model(TWO_TEXTS) - model(other)).abs()[0]
        assert change[:2].amax(dim=1).min() > 1e-3  # the text itself
        assert (change[2:].max() < 1e-6) == hidden


@torch.no_grad()
def test_separated_texts_may_be_padded_too():
    model = random_decoder(preset="llama", separator=SEPARATOR)
    mask = torch.tensor([[True] * 6 + [False] * 2] * 2)
    with_padding = model(torch.cat((TWO_TEXTS, random_tokens(3, 2, 2)), dim=1), token_mask=mask)[:, :6]
    assert_same(with_padding, model(TWO_TEXTS))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_order_of_the_tokens_does_count(preset):
    # Without positions attention could not tell two orders of the same earlier tokens apart.
    model = random_decoder(preset=preset, layers=1)
    with torch.no_grad():
        forwards, swapped = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(forwards[0, -1], swapped[0, -1], atol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_asking_for_attention_weights_gives_one_tensor_a_layer_and_the_same_features(preset):
    model = random_decoder(preset=preset, key_value_heads=2)
    tokens = random_tokens(5, 2, 6)
    weights = []
    with torch.no_grad():
        assert_same(model.hidden(tokens, attention_weights=weights), model.hidden(tokens))
    assert [tuple(tensor.shape) for tensor in weights] == [(2, 4, 6, 6)] * 2
    for tensor in weights:
        torch.testing.assert_close(tensor.sum(dim=-1), torch.ones(2, 4, 6))
        assert (tensor[..., ~causal_mask(6)] == 0).all()
    assert not torch.allclose(weights[0], weights[1])


def test_attention_weights_equal_those_of_transformers():
    model = random_decoder(preset="llama", key_value_heads=2)
    theirs = in_transformers(model)
    theirs.set_attn_implementation("eager")
    tokens = random_tokens(6, 2, 6)
    weights = []
    with torch.no_grad():
        model.hidden(tokens, attention_weights=weights)
        expected = theirs(tokens, output_attentions=True).attentions
    for ours, reference in zip(weights, expected, strict=True):
        assert_same(ours, reference)


# --- Initialisation ------------------------------------------------------------------------------


def test_untrained_llama_predicts_every_token_alike_with_a_loss_of_exactly_log_v():
    model = Decoder(DecoderConfig(**SMALL, preset="llama"))
    tokens = random_tokens(7, 4, 10)
    with torch.no_grad():
        logits = model(tokens)
    assert torch.equal(logits, torch.zeros(4, 10, 23))
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(23), rel=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_initial_weights_have_the_spread_of_gpt2s_scheme(preset):
    torch.manual_seed(0)
    config = DecoderConfig(vocabulary_size=300, context_length=100, layers=8, width=64, heads=4, preset=preset)
    model = Decoder(config)
    seen = set()
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-1]
        if "norm" in name:
            expected = 1.0 if kind == "weight" else 0.0
            assert (parameter == expected).all(), name
        elif kind == "bias":
            assert (parameter == 0).all(), name
        elif name == "head.weight":
            assert preset == "llama"
            assert (parameter == 0).all()
        else:
            residual = ".output." in name or ".down." in name
            # 16 additions to the residual stream: their weights are smaller by sqrt(16) = 4.
            std = 0.005 if residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.06), name
            # The mean of N numbers is off by std / sqrt(N); five times that is a mistake.
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
            assert parameter.min() < 0 < parameter.max(), name
            seen.add("residual" if residual else "plain")
    assert seen == {"residual", "plain"}
    assert not torch.equal(model.layers[0].attention.query.weight, model.layers[1].attention.query.weight)
    assert not torch.equal(model.layers[0].attention.query.weight, model.layers[0].attention.key.weight)


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_seeds_give_equal_models(preset):
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(Decoder(DecoderConfig(**SMALL, preset=preset)))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- Size and structure --------------------------------------------------------------------------


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_a_tiny_gpt2_by_hand():
    # Attention: four 8 x 8 matrices with 8 biases each:   4 (64 + 8)        =  288
    # Feed-forward, 4 x 8 = 32 wide:                       256 + 32 + 256 + 8 =  552
    # Two norms, scale and shift:                          2 * 16             =   32
    # A layer:                                                                   872
    # Embedding 11 * 8 = 88, positions 7 * 8 = 56, last norm 16, head tied: 160.
    config = DecoderConfig(vocabulary_size=11, context_length=7, layers=2, width=8, heads=2, preset="gpt2")
    assert parameter_count(Decoder(config)) == 2 * 872 + 160


def test_parameters_of_a_tiny_llama_by_hand():
    # Attention, four query heads and two key and value heads of size 2:
    # query and output 8 x 8, key and value 4 x 8:         2 * 64 + 2 * 32   =  192
    # Gated feed-forward, 20 wide: three 8 x 20 matrices:                       480
    # Two norms, scale only:                                                     16
    # A layer:                                                                  688
    # Embedding and head 11 * 8 = 88 each, last norm 8: 184.
    config = DecoderConfig(
        vocabulary_size=11, context_length=7, layers=3, width=8, heads=4, key_value_heads=2, hidden_width=20
    )
    assert parameter_count(Decoder(config)) == 3 * 688 + 184


def test_feed_forward_is_four_times_as_wide_and_eight_thirds_with_a_gate():
    assert DecoderConfig(vocabulary_size=9, width=192, preset="gpt2").feed_forward_width == 768
    assert DecoderConfig(vocabulary_size=9, width=192, preset="llama").feed_forward_width == 512
    # 8 / 3 * 64 = 170.7; the nearest multiple of 32 is 160.
    assert DecoderConfig(vocabulary_size=9, width=64, heads=2, preset="llama").feed_forward_width == 160
    assert DecoderConfig(vocabulary_size=9, hidden_width=50).feed_forward_width == 50


def test_gpt2_head_is_the_embedding_and_llama_head_is_not():
    gpt2, llama = (Decoder(DecoderConfig(**SMALL, preset=preset)) for preset in PRESETS)
    assert gpt2.head.weight is gpt2.embedding.weight
    assert llama.head.weight is not llama.embedding.weight
    assert not any(name.endswith("bias") for name, _ in llama.named_parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_gets_a_gradient(preset):
    model = random_decoder(preset=preset, key_value_heads=2)
    tokens = random_tokens(8, 4, 12)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# --- Bad input -----------------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown preset 'gpt3': choose 'gpt2' or 'llama'"):
        DecoderConfig(vocabulary_size=9, preset="gpt3")


@pytest.mark.parametrize("name", ["vocabulary_size", "context_length", "layers", "width", "heads"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DecoderConfig(**SMALL | {name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width 18 is not a multiple of 4 heads"),
        ({"key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"key_value_heads": 8}, "4 query heads cannot share 8"),
        ({"key_value_heads": 0}, "key_value_heads must be at least 1, got 0"),
        ({"hidden_width": 0}, "hidden_width must be at least 1, got 0"),
        ({"layers": -1}, "layers must be at least 1, got -1"),
        ({"layers": 2.0}, "layers must be a whole number, got 2.0"),
        ({"heads": True}, "heads must be a whole number, got True"),
        ({"vocabulary_size": None}, "vocabulary_size must be a whole number, got None"),
        ({"width": 12}, "width 12 gives each of 4 heads an odd number"),
        ({"separator": 23}, "separator 23 is no id of a vocabulary of 23"),
        ({"separator": -1}, "separator must be at least 0, got -1"),
        ({"norm_epsilon": -1.0}, "norm_epsilon must be above 0, got -1.0"),
        ({"norm_epsilon": math.nan}, "norm_epsilon must be above 0, got nan"),
        ({"norm_epsilon": "1e-5"}, "norm_epsilon must be a number, got '1e-5'"),
        ({"rotary_base": 0}, "rotary_base must be above 0, got 0"),
        ({"rotary_base": math.inf}, "rotary_base must be a finite number, got inf"),
    ],
)
def test_shapes_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**SMALL | changes)


def test_odd_heads_are_refused_only_where_pairs_are_turned():
    DecoderConfig(**SMALL | {"width": 12}, preset="gpt2")


@pytest.mark.parametrize("width", [2, 4, 6, 8])
def test_the_narrowest_models_have_a_feed_forward_part(width):
    model = Decoder(DecoderConfig(50, 8, width=width, heads=1))
    assert model.layers[0].feed_forward.up.weight.shape == (32, width)


# --- Other dtypes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.4)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_in_another_dtype_computes_in_it(monkeypatch, preset, dtype, tolerance, precision):
    monkeypatch.setenv("GPTCORE_PRECISION", precision)
    model, tokens = random_decoder(preset=preset), random_tokens(1, 2, 9)
    with torch.no_grad():
        expected = model(tokens)
        model = model.to(dtype)
        found = [model(tokens), model.head(model.hidden(tokens, attention_weights=[]))]
        cache = KeyValueCache(2, 9)
        found.append(torch.cat([model(part, cache=cache) for part in tokens.split(3, dim=1)], dim=1))
        found.append(model(tokens, torch.ones(2, 9, dtype=torch.bool)))
        with autocast():
            features = model.hidden(tokens)  # autocast leaves it in its own dtype
    assert features.dtype == dtype
    for logits in found:
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, atol=tolerance, rtol=tolerance)
    # What generates and grades works, too.
    answers = generate(model, [[1, 2], [3]] * 40, SamplingConfig(max_new_tokens=3), 0)
    assert {len(answer) for answer in answers} <= {1, 2, 3}
    assert rewards_of(RewardModel(model, 3).to(dtype), [[1, 3, 4, 5], [3, 5]] * 40).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_in_float64_are_those_of_finite_differences_and_of_float32(preset):
    model, tokens = random_decoder(preset=preset, layers=1, width=8, hidden_width=6), random_tokens(1, 1, 5)
    single = torch.autograd.grad(model(tokens).sin().sum(), list(model.parameters()))
    model = model.double()
    parameters = dict(model.named_parameters())
    double = torch.autograd.grad(model(tokens).sin().sum(), list(parameters.values()))
    for one, other in zip(single, double, strict=True):
        assert_same(one.double(), other)
    for name in ("layers.0.attention.query.weight", "layers.0.feed_forward.up.weight", "embedding.weight"):

        def logits(weight, name=name):
            return torch.func.functional_call(model, {name: weight}, (tokens,))

        torch.autograd.gradcheck(logits, parameters[name].detach().clone().requires_grad_())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_text_longer_than_the_context_is_refused_with_advice(preset):
    model = random_decoder(preset=preset)
    assert model(random_tokens(9, 1, 12)).shape == (1, 12, 23)
    with pytest.raises(ValueError, match="13 tokens do not fit in the context of 12: shorten the text"):
        model(random_tokens(9, 1, 13))


@pytest.mark.parametrize("preset", PRESETS)
def test_cached_positions_count_towards_the_context(preset):
    model = random_decoder(preset=preset)
    cache = KeyValueCache(model.config.layers, 20)
    model(random_tokens(10, 1, 8), cache=cache)
    with pytest.raises(ValueError, match="13 tokens do not fit in the context of 12"):
        model(random_tokens(10, 1, 5), cache=cache)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_takes_no_place_in_the_context(preset):
    model = random_decoder(preset=preset)
    tokens, mask = random_tokens(13, 2, 15), torch.ones(2, 15, dtype=torch.bool)
    mask[0, :3], mask[1, :11] = False, False  # 12 real tokens, as many as fit, and 4
    with torch.no_grad():
        logits = model(tokens, mask)
        assert_same(logits[0, 3:], model(tokens[:1, 3:])[0])
        assert_same(logits[1, 11:], model(tokens[1:, 11:])[0])
    mask[0, 2] = True
    with pytest.raises(ValueError, match="13 tokens do not fit in the context of 12"):
        model(tokens, mask)


@pytest.mark.parametrize("shape", [(5,), (1, 5, 2)])
def test_tokens_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"tokens must have shape \(batch, time\), got \(.*5"):
        random_decoder()(torch.zeros(shape, dtype=torch.long))


def test_a_token_mask_of_a_wrong_shape_is_refused():
    model = random_decoder()
    with pytest.raises(ValueError, match=r"token_mask must have shape \(2, 5\), got \(2, 4\)"):
        model(random_tokens(11, 2, 5), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"token_mask must have shape \(2, 5\), got \(1, 5\)"):
        model(random_tokens(11, 2, 5), torch.ones(1, 5, dtype=torch.bool))


def test_a_token_mask_must_cover_the_cached_positions_too():
    model = random_decoder()
    cache = KeyValueCache(model.config.layers, 12)
    model(random_tokens(12, 2, 5), cache=cache)
    with pytest.raises(ValueError, match=r"token_mask must have shape \(2, 6\), got \(2, 1\)"):
        model(random_tokens(12, 2, 1), torch.ones(2, 1, dtype=torch.bool), cache)


# --- Operations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"preset": "gpt2"}, {"preset": "llama"}, {"preset": "llama", "key_value_heads": 2, "layers": 3}]
)
def test_flops_are_those_that_torch_counts_forwards_and_three_times_as_many_in_training(changes):
    model, tokens = random_decoder(**changes), random_tokens(3, 1, 12)
    with FlopCounterMode(display=False) as counter:
        # Asked for its weights, attention is two plain products, which torch counts whole.
        logits = model.head(model.hidden(tokens, attention_weights=[]))
    forward = sum(forward_flops(model.config, 12).values())
    assert counter.get_total_flops() == forward
    with counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_flops_by_hand():
    # T = 3, C = 4, F = 8, V = 5, one layer: 3 tokens x 4 matrices of 4 x 4; two products of 3 x 3 x 4;
    # 3 tokens x 3 matrices of 4 x 8; 3 tokens x 4 x 5; everything times 2.
    config = DecoderConfig(5, context_length=3, layers=1, width=4, heads=2, hidden_width=8)
    assert forward_flops(config, 3) == {"projections": 384, "attention": 144, "feed_forward": 576, "head": 120}
