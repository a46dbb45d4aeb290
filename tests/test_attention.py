"""Attention against torch's own, against hand calculation, and against its promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gptcore.attention import (
    KeyValueCache,
    MultiHeadAttention,
    causal_mask,
    rotary_angles,
    rotate,
    scaled_dot_product_attention,
)

# The same examples on every machine: a failure can be repeated.
few_examples = settings(max_examples=30, deadline=None, derandomize=True)
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def random_tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def randomise(module, seed=0, scale=0.5):
    """Weights and biases that are all different from 0 and from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


# --- The causal mask -----------------------------------------------------------------------------


def test_causal_mask_allows_the_position_itself_and_everything_before():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(3).dtype == torch.bool


def test_queries_of_a_causal_mask_are_the_last_key_positions():
    # Two new positions after two cached ones: the first may look at keys 0 to 2, the second at all.
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_causal_mask_with_fewer_keys_than_queries_is_refused():
    with pytest.raises(ValueError, match="3 queries need at least as many keys, got 2"):
        causal_mask(3, 2)


# --- Scaled dot-product attention ----------------------------------------------------------------


def test_two_tokens_by_hand():
    # D = 4, so the scores are divided by 2.
    # Scores of the first query: (2 log 3, 0) / 2 = (log 3, 0), so its weights are 3/4 and 1/4.
    # Scores of the second query: (0, 0), so its weights are 1/2 and 1/2.
    query = torch.tensor([[2.0, 0, 0, 0], [0, 0, 1.0, 0]])
    key = torch.tensor([[math.log(3), 5.0, 0, 0], [0, 7.0, 0, 0]])
    value = torch.tensor([[4.0, 0, 1], [8.0, 4, 1]])
    output, weights = scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    torch.testing.assert_close(output, torch.tensor([[5.0, 1, 1], [6.0, 2, 1]]))
    # With the causal mask the first query sees the first value only; the second is unchanged.
    output, weights = scaled_dot_product_attention(query, key, value, causal_mask(2))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0], [0.5, 0.5]]))
    torch.testing.assert_close(output, torch.tensor([[4.0, 0, 1], [6.0, 2, 1]]))


@few_examples
@given(seeds, sizes, sizes, sizes, sizes, sizes)
def test_attention_equals_torch_without_a_mask(seed, batch, heads, queries, keys, size):
    query, key, value = random_tensors(
        seed, (batch, heads, queries, size), (batch, heads, keys, size), (batch, heads, keys, size)
    )
    output, weights = scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value))
    # With the identity as values torch's output is its weights.
    identity = torch.eye(keys).expand(batch, heads, keys, keys)
    torch.testing.assert_close(weights, F.scaled_dot_product_attention(query, key, identity))


@few_examples
@given(seeds, sizes, sizes, sizes, sizes, sizes, st.data())
def test_attention_equals_torch_with_a_mask(seed, batch, heads, queries, keys, size, data):
    query, key, value = random_tensors(
        seed, (batch, heads, queries, size), (batch, heads, keys, size), (batch, heads, keys, size)
    )
    shape = data.draw(st.sampled_from([(queries, keys), (batch, 1, queries, keys), (batch, 1, 1, keys)]))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., data.draw(st.integers(0, keys - 1))] = True  # no row is empty
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(batch, heads, queries))
    assert (weights[~mask.expand_as(weights)] == 0).all()


@few_examples
@given(seeds, sizes, sizes, sizes)
def test_attention_with_the_causal_mask_equals_torchs_causal_attention(seed, batch, positions, size):
    query, key, value = random_tensors(seed, *[(batch, positions, size)] * 3)
    output, _ = scaled_dot_product_attention(query, key, value, causal_mask(positions))
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_gradients_of_attention_equal_torchs():
    inputs = [tensor.requires_grad_() for tensor in random_tensors(1, (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4))]
    (slope,) = random_tensors(2, (2, 3, 5, 4))
    ours = torch.autograd.grad((scaled_dot_product_attention(*inputs, causal_mask(5))[0] * slope).sum(), inputs)
    torchs = torch.autograd.grad((F.scaled_dot_product_attention(*inputs, is_causal=True) * slope).sum(), inputs)
    for our, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(our, theirs)


def test_a_query_that_may_look_nowhere_gets_zeros_and_no_nan_gradient():
    query, key, value = (tensor.requires_grad_() for tensor in random_tensors(3, (2, 4), (3, 4), (3, 4)))
    mask = torch.tensor([[False, False, False], [True, False, True]])
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    assert torch.equal(output[0], torch.zeros(4))
    assert torch.equal(weights[0], torch.zeros(3))
    torch.testing.assert_close(
        output[1], F.scaled_dot_product_attention(query[1:], key[[0, 2]], value[[0, 2]]).squeeze(0)
    )
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))


def test_head_sizes_that_differ_are_refused_with_both_sizes():
    query, key = torch.zeros(2, 4), torch.zeros(2, 6)
    with pytest.raises(ValueError, match="same head size, got 4 and 6"):
        scaled_dot_product_attention(query, key, key)


def test_keys_without_values_are_refused_with_both_counts():
    with pytest.raises(ValueError, match="each key needs a value, got 3 keys and 2 values"):
        scaled_dot_product_attention(torch.zeros(1, 4), torch.zeros(3, 4), torch.zeros(2, 4))


# --- Rotary positions ----------------------------------------------------------------------------


def test_rotation_by_hand():
    # D = 4 and base 100: the pairs (0, 2) and (1, 3) turn by 100^0 = 1 and 100^(-1/2) = 0.1 radians a position.
    cosine, sine = rotary_angles(torch.tensor([3]), 4, base=100.0)
    torch.testing.assert_close(cosine, torch.tensor([[math.cos(3), math.cos(0.3)] * 2]))
    torch.testing.assert_close(sine, torch.tensor([[-math.sin(3), -math.sin(0.3), math.sin(3), math.sin(0.3)]]))
    # Feature i is paired with feature i + D / 2: (1, 0) turns into (cos, sin), (0, 1) into (-sin, cos).
    turned = rotate(torch.tensor([[[[1.0, 0, 0, 1]]]]), cosine, sine)
    torch.testing.assert_close(turned, torch.tensor([[[[math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]]]]))


@few_examples
@given(seeds, st.sampled_from([2, 4, 8, 16]), *[st.integers(0, 60)] * 3)
def test_dot_products_of_rotated_vectors_depend_on_distance_only(seed, size, first, second, shift):
    query, key = random_tensors(seed, (1, 1, 1, size), (1, 1, 1, size))

    def dot(query_position, key_position):
        turned_query = rotate(query, *rotary_angles(torch.tensor([query_position]), size))
        turned_key = rotate(key, *rotary_angles(torch.tensor([key_position]), size))
        return (turned_query * turned_key).sum()

    torch.testing.assert_close(dot(first + shift, second + shift), dot(first, second), atol=1e-4, rtol=1e-4)
    # The distance itself does count.
    assert not torch.isclose(dot(first + 1, first), dot(first, first), atol=1e-7, rtol=1e-7)


@few_examples
@given(seeds, st.sampled_from([2, 4, 8]))
def test_rotation_leaves_position_zero_unchanged_and_keeps_every_norm(seed, size):
    (x,) = random_tensors(seed, (2, 3, 5, size))
    turned = rotate(x, *rotary_angles(torch.arange(5), size))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[:, :, 1:], x[:, :, 1:])


def test_rotation_keeps_the_dtype():
    x = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    assert rotate(x, *rotary_angles(torch.arange(2), 4)).dtype == torch.bfloat16


def test_rotary_positions_refuse_an_odd_head_size():
    with pytest.raises(ValueError, match="head size must be even, got 5"):
        rotary_angles(torch.arange(3), 5)


# --- The cache -----------------------------------------------------------------------------------


def test_cache_returns_everything_stored_so_far_for_each_layer_alone():
    cache = KeyValueCache(layers=2, capacity=5)
    keys = random_tensors(4, (2, 1, 3, 4), (2, 1, 3, 4), (2, 1, 2, 4), (2, 1, 2, 4))
    for part in (0, 1):  # three positions, then two
        for layer in (0, 1):
            new = keys[2 * part + layer]
            stored_keys, stored_values = cache.extend(layer, new, -new)
            expected = torch.cat([keys[2 * earlier + layer] for earlier in range(part + 1)], dim=2)
            assert torch.equal(stored_keys, expected)
            assert torch.equal(stored_values, -expected)
        assert cache.length == (3, 5)[part]


def test_cache_overflow_is_refused_with_the_capacity():
    cache = KeyValueCache(layers=1, capacity=4)
    new = torch.zeros(1, 1, 3, 2)
    cache.extend(0, new, new)
    with pytest.raises(ValueError, match="room for 4 positions, position 6 does not fit"):
        cache.extend(0, new, new)


@pytest.mark.parametrize("rows", [torch.tensor([True, False, True]), torch.tensor([0, 2])])
def test_cache_keeps_only_the_rows_asked_for(rows):
    cache = KeyValueCache(layers=2, capacity=4)
    first, second = random_tensors(5, (3, 1, 2, 2), (2, 1, 1, 2))
    for layer in (0, 1):
        cache.extend(layer, first + layer, first - layer)
    cache.keep(rows)
    for layer in (0, 1):
        keys, values = cache.extend(layer, second, second)
        assert torch.equal(keys, torch.cat([first[[0, 2]] + layer, second], dim=2))
        assert torch.equal(values, torch.cat([first[[0, 2]] - layer, second], dim=2))


# --- Multi-head attention ------------------------------------------------------------------------


def torch_multihead(ours):
    """torch's module with the weights of ours."""
    theirs = torch.nn.MultiheadAttention(ours.heads * ours.head_size, ours.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    return theirs


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (8, 2), (12, 3), (6, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_equals_torchs_module(width, heads, masked):
    ours = randomise(MultiHeadAttention(width, heads))
    theirs = torch_multihead(ours)
    (x,) = random_tensors(6, (2, 5, width))
    allowed = causal_mask(5) if masked else torch.ones(5, 5, dtype=torch.bool)
    expected, expected_weights = theirs(x, x, x, attn_mask=~allowed, need_weights=True, average_attn_weights=False)
    fused, none = ours(x, mask=allowed)
    written_out, weights = ours(x, mask=allowed, return_weights=True)
    assert none is None
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(written_out, expected)
    torch.testing.assert_close(weights, expected_weights)


@few_examples
@given(seeds, st.integers(1, 3), st.integers(1, 7), st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]), st.data())
def test_written_out_attention_equals_the_fused_one(seed, batch, positions, heads, data):
    attention = randomise(MultiHeadAttention(4 * heads[0], *heads), seed)
    (x,) = random_tensors(seed, (batch, positions, 4 * heads[0]))
    rotary = rotary_angles(torch.arange(positions), 4) if data.draw(st.booleans()) else None
    mask = None
    if data.draw(st.booleans()):  # any mask, rows that may look nowhere included
        mask = torch.rand((batch, 1, positions, positions), generator=torch.Generator().manual_seed(seed)) < 0.5
    fused, _ = attention(x, mask=mask, rotary=rotary)
    written_out, weights = attention(x, mask=mask, rotary=rotary, return_weights=True)
    torch.testing.assert_close(fused, written_out)
    assert weights.shape == (batch, heads[0], positions, positions)


def test_without_a_mask_multi_head_attention_is_causal():
    attention = randomise(MultiHeadAttention(8, 2))
    (x,) = random_tensors(7, (1, 4, 8))
    torch.testing.assert_close(attention(x)[0], attention(x, mask=causal_mask(4))[0])
    _, weights = attention(x, return_weights=True)
    assert (weights[0, :, ~causal_mask(4)] == 0).all()


def test_a_position_that_may_look_nowhere_gets_only_the_output_bias():
    attention = randomise(MultiHeadAttention(8, 2))
    (x,) = random_tensors(8, (1, 3, 8))
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    for return_weights in (False, True):
        output, _ = attention(x, mask=mask, return_weights=return_weights)
        torch.testing.assert_close(output[0, 1], attention.output.bias)


@pytest.mark.parametrize(("heads", "key_value_heads"), [(4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("return_weights", [False, True])
def test_grouped_queries_equal_full_heads_with_repeated_keys_and_values(heads, key_value_heads, return_weights):
    width, size = 4 * heads, 4
    grouped = randomise(MultiHeadAttention(width, heads, key_value_heads))
    full = MultiHeadAttention(width, heads)
    state = grouped.state_dict()
    for name in ("key", "value"):
        # Query heads 0 .. group - 1 share the first key and value head, the next ones the second.
        for kind in ("weight", "bias"):
            parts = state[f"{name}.{kind}"].split(size)
            state[f"{name}.{kind}"] = torch.cat([parts[head * key_value_heads // heads] for head in range(heads)])
    full.load_state_dict(state)
    (x,) = random_tensors(9, (2, 5, width))
    rotary = rotary_angles(torch.arange(5), size)
    ours = grouped(x, rotary=rotary, return_weights=return_weights)
    expected = full(x, rotary=rotary, return_weights=return_weights)
    torch.testing.assert_close(ours, expected)


@few_examples
@given(seeds, st.lists(st.integers(1, 3), min_size=2, max_size=4), st.sampled_from([1, 2]))
def test_with_a_cache_pieces_give_the_outputs_of_the_whole(seed, lengths, key_value_heads):
    total = sum(lengths)
    attention = randomise(MultiHeadAttention(8, 2, key_value_heads), seed)
    (x,) = random_tensors(seed, (2, total, 8))
    rotary = rotary_angles(torch.arange(total), 4)
    expected, _ = attention(x, rotary=rotary)
    cache, pieces, start = KeyValueCache(1, total), [], 0
    for length in lengths:
        piece = slice(start, start + length)
        mask = causal_mask(length, start + length)
        pieces.append(attention(x[:, piece], mask, (rotary[0][piece], rotary[1][piece]), cache)[0])
        start += length
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


@few_examples
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_without_a_mask_several_new_tokens_after_a_cache_are_causal_too(seed, past, new, return_weights):
    attention = randomise(MultiHeadAttention(8, 2), seed)
    (x,) = random_tensors(seed, (2, past + new, 8))
    expected, _ = attention(x)
    cache = KeyValueCache(1, past + new)
    attention(x[:, :past], cache=cache)
    found, _ = attention(x[:, past:], cache=cache, return_weights=return_weights)
    torch.testing.assert_close(found, expected[:, past:])


def test_multi_head_attention_turns_queries_and_keys_but_not_values():
    # One position only: its weight is 1 whatever its angle, so the output is that of no rotation.
    attention = randomise(MultiHeadAttention(8, 2))
    (x,) = random_tensors(10, (1, 1, 8))
    rotary = rotary_angles(torch.tensor([7]), 4)
    torch.testing.assert_close(attention(x, rotary=rotary)[0], attention(x)[0])
    # All positions turned by the same further angle: nothing changes, since only distances count.
    (x,) = random_tensors(11, (1, 5, 8))
    near, far = rotary_angles(torch.arange(5), 4), rotary_angles(torch.arange(5) + 20, 4)
    torch.testing.assert_close(attention(x, rotary=near)[0], attention(x, rotary=far)[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attention(x, rotary=near)[0], attention(x)[0], atol=1e-2)


@pytest.mark.parametrize("return_weights", [False, True])
def test_attention_under_bfloat16_autocast_stays_close_to_float32(return_weights):
    attention = randomise(MultiHeadAttention(8, 2))
    (x,) = random_tensors(12, (2, 5, 8))
    expected, _ = attention(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = attention(x, return_weights=return_weights)
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


def test_a_width_that_is_no_multiple_of_the_heads_is_refused():
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        MultiHeadAttention(10, 4)


def test_heads_that_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key and value heads"):
        MultiHeadAttention(8, 4, key_value_heads=3)


@pytest.mark.parametrize("heads", [(0, None), (2, 0), (-2, None)])
def test_no_heads_at_all_are_refused(heads):
    with pytest.raises(ValueError, match="must be at least 1"):
        MultiHeadAttention(8, *heads)
