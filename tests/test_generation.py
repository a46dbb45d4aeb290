"""Generation against a plain loop without cache, and its distributions against hand calculation."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gptcore.decoder import Decoder, DecoderConfig
from gptcore.generation import GREEDY, SamplingConfig, choose, draw, generate, next_token_probabilities, stream
from gptcore.shapes import pad_left

# The same examples on every machine: a failure can be repeated.
few_examples = settings(max_examples=15, deadline=None, derandomize=True)
PRESETS = ("gpt2", "llama")
VOCABULARY, CONTEXT, STOP = 23, 20, 3

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def random_decoder(preset="llama", seed=0, vocabulary=VOCABULARY):
    """A small decoder with opinions: its weights are so large that its next tokens vary."""
    model = Decoder(DecoderConfig(vocabulary, CONTEXT, layers=2, width=16, heads=2, hidden_width=24, preset=preset))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            # Large biases would give every position the same next token.
            spread = 0.05 if name.endswith("bias") else 1.0 if "positions" in name else 0.5
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model


def never_stopping(*arguments, **keywords):
    """A random decoder that gives the stop token no probability."""
    model = random_decoder(*arguments, **keywords)
    model.head.register_forward_hook(lambda *call: call[-1].index_fill(-1, torch.tensor([STOP]), -math.inf))
    return model


def plain_greedy(model, prompt, config, stop_token):
    """The most likely token again and again; the whole text is read anew for each."""
    model.eval()
    tokens, answer = list(prompt), []
    with torch.no_grad():
        while len(answer) < config.max_new_tokens and len(tokens) < model.config.context_length:
            token = model(torch.tensor([tokens]))[0, -1].argmax().item()
            tokens.append(token)
            answer.append(token)
            if token == stop_token:
                break
    return answer


def greedy(max_new_tokens):
    return SamplingConfig(greedy=True, max_new_tokens=max_new_tokens)


prompts_strategy = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=6)

# Answers to these end at the stop token after different numbers of tokens, or not at all.
PROMPTS = [[0], [1, 2], [6, 6, 6], [2, 0, 1, 5], [4, 5], [1], [0, 1, 2, 3, 4, 5, 6], [5, 3, 5]]


# --- Greedy answers ------------------------------------------------------------------------------


@few_examples
@given(st.sampled_from(PRESETS), st.integers(0, 2**32 - 1), prompts_strategy, st.integers(1, 4))
def test_greedy_answers_equal_a_plain_loop_whatever_the_batch(preset, seed, prompts, batch_size):
    model = random_decoder(preset, seed)
    config = greedy(10)
    expected = [plain_greedy(model, prompt, config, STOP) for prompt in prompts]
    assert generate(model, prompts, config, STOP) == expected
    assert generate(model, prompts, config, STOP, batch_size=batch_size) == expected
    assert generate(model, prompts[::-1], config, STOP) == expected[::-1]
    assert [generate(model, [prompt], config, STOP)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_that_end_early_leave_the_others_unchanged(preset):
    config = greedy(10)
    lengths = set()
    for seed in range(12):
        model = random_decoder(preset, seed)
        expected = [plain_greedy(model, prompt, config, STOP) for prompt in PROMPTS]
        assert generate(model, PROMPTS, config, STOP) == expected
        lengths |= {len(answer) for answer in expected}
    assert len(lengths) >= 4  # the examples would prove little if all rows ended together


def test_the_stop_token_ends_an_answer_and_is_part_of_it():
    model = never_stopping(seed=2)
    without_stop = plain_greedy(model, [1, 2], greedy(8), STOP)
    assert len(without_stop) == 8
    stop = without_stop[2]
    assert stop not in without_stop[:2]
    assert generate(model, [[1, 2]], greedy(8), stop) == [without_stop[:3]]


def test_a_stop_token_in_the_prompt_neither_ends_nor_hides_anything():
    # The stop token also fills the padding, where it must not be seen.
    model = random_decoder()
    prompts = [[STOP, 1, STOP], [STOP], [1, 2, 0, 1, 2, STOP]]
    expected = [plain_greedy(model, prompt, greedy(5), STOP) for prompt in prompts]
    assert generate(model, prompts, greedy(5), STOP) == expected


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_answers_are_no_longer_than_asked_for(limit):
    model = never_stopping()
    answers = generate(model, [[1, 2], [0]], greedy(limit), STOP)
    assert [len(answer) for answer in answers] == [limit, limit]
    assert len(list(stream(model, [1, 2], greedy(limit), STOP))) == limit


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("length", [1, 15, CONTEXT - 1])
def test_answers_end_with_the_context(preset, length):
    model = never_stopping(preset)
    prompt = [token % VOCABULARY for token in range(length)]
    expected = plain_greedy(model, prompt, greedy(100), STOP)
    assert len(expected) == CONTEXT - length
    assert generate(model, [prompt, prompt], greedy(100), STOP) == [expected, expected]
    assert list(stream(model, prompt, greedy(100), STOP)) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_a_long_neighbour_does_not_cut_a_short_prompts_answer(preset):
    model = never_stopping(preset)
    prompts = [[1], [2] * (CONTEXT - 2)]
    expected = [plain_greedy(model, prompt, greedy(100), STOP) for prompt in prompts]
    assert generate(model, prompts, greedy(100), STOP) == expected


def test_no_prompts_give_no_answers():
    assert generate(random_decoder(), [], GREEDY, STOP) == []


def test_generation_puts_the_model_into_evaluation_mode():
    for run in (
        lambda model: generate(model, [[1]], greedy(1), STOP),
        lambda model: [*stream(model, [1], greedy(1), 0)],
    ):
        model = random_decoder().train()
        run(model)
        assert not model.training


def test_each_step_reads_only_new_tokens_of_hardly_more_rows_than_are_unfinished():
    model = random_decoder(seed=11)
    prompts = PROMPTS * 12
    answers = [plain_greedy(model, prompt, greedy(10), STOP) for prompt in PROMPTS] * 12
    shapes = []
    model.embedding.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    assert generate(model, prompts, greedy(10), STOP) == answers
    steps = range(1, max(map(len, answers)))
    still_going = [sum(len(answer) > step for answer in answers) for step in steps]
    assert [time for _, time in shapes] == [16] + [1] * len(still_going)  # prompts are padded to whole sixteens
    rows = [rows for rows, _ in shapes[1:]]
    assert all(read % 16 == 0 for read in rows)  # few shapes
    for going, read in zip(still_going, rows, strict=True):
        assert going <= read < 2 * (going + 16)
    assert rows[-1] <= len(prompts) / 2  # some were dropped


def test_generation_runs_in_half_precision(monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    model = random_decoder()
    answers = generate(model, PROMPTS, SamplingConfig(max_new_tokens=6), STOP, torch.Generator().manual_seed(0))
    for answer in answers:
        assert 1 <= len(answer) <= 6
        assert all(0 <= token < VOCABULARY for token in answer)
        assert STOP not in answer[:-1]
    assert len(list(stream(never_stopping(), [1, 2], greedy(6), STOP))) == 6


class Conversions(TorchDispatchMode):
    """Counts how often each parameter of a model is converted to another dtype."""

    def __init__(self, model):
        super().__init__()
        self.times = dict.fromkeys((parameter.data_ptr() for parameter in model.parameters()), 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.times:
            self.times[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


def test_in_half_precision_each_weight_is_converted_once_and_not_for_every_token(monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    model = never_stopping()
    with Conversions(model) as conversions:
        generate(model, [[1, 2]] * 64, greedy(5), STOP)
    assert max(conversions.times.values()) == 1


# --- Streaming -----------------------------------------------------------------------------------


@few_examples
@given(st.sampled_from(PRESETS), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_stream_yields_what_generate_returns_without_the_stop_token(preset, seed, prompt):
    model = random_decoder(preset, seed)
    for config in (greedy(10), SamplingConfig(temperature=1.5, top_k=5, max_new_tokens=10)):
        (answer,) = generate(model, [prompt], config, STOP, torch.Generator().manual_seed(seed))
        streamed = list(stream(model, prompt, config, STOP, torch.Generator().manual_seed(seed)))
        assert streamed == [token for token in answer if token != STOP]


def test_stream_yields_each_token_as_soon_as_it_is_there():
    model = never_stopping()
    reads = []
    model.embedding.register_forward_hook(lambda *_: reads.append(1))
    tokens = stream(model, [1, 2], greedy(5), STOP)
    for number in (1, 2, 3):
        next(tokens)
        assert len(reads) == number


# --- Distributions -------------------------------------------------------------------------------

# In no particular order, so that a mistake in sorting back shows.
LOGITS = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        # Temperature 1/2 squares the probabilities: 0.0225, 0.25, 0.0025, 0.09, in all 0.365.
        ({"temperature": 0.5}, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        # The two most likely sum to 0.8, the three most likely to 0.95.
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 3}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_k": 4}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        # The first alone has 0.5, the first two 0.8, the first three 0.95.
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.49}, [0, 1, 0, 0]),
        ({"top_p": 0.51}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.79}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.81}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_p": 0.96}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 1.0}, [0.15, 0.5, 0.05, 0.3]),
        # After top-k the first two have 0.8 / 0.95 = 0.842 of what is left, which is enough for 0.83.
        ({"top_k": 3, "top_p": 0.83}, [0, 0.625, 0, 0.375]),
        # After temperature 1/2 the first has 0.25 / 0.365 = 0.685.
        ({"temperature": 0.5, "top_p": 0.68}, [0, 1, 0, 0]),
    ],
)
def test_distributions_by_hand(settings_, expected):
    probabilities = next_token_probabilities(LOGITS, SamplingConfig(**settings_))
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.float32))


def test_each_row_of_logits_has_a_distribution_of_its_own():
    logits = torch.stack((LOGITS, LOGITS.flip(0), torch.tensor([0.4, 0.1, 0.1, 0.4]).log()))
    probabilities = next_token_probabilities(logits, SamplingConfig(top_k=2, top_p=0.9))
    expected = [[0, 0.625, 0, 0.375], [0.375, 0, 0.625, 0], [0.5, 0, 0, 0.5]]
    torch.testing.assert_close(probabilities, torch.tensor(expected))


def test_a_high_temperature_makes_all_tokens_alike_and_a_low_one_the_most_likely_certain():
    hot = next_token_probabilities(LOGITS, SamplingConfig(temperature=1e4))
    torch.testing.assert_close(hot, torch.full((4,), 0.25), atol=1e-3, rtol=0)
    cold = next_token_probabilities(LOGITS, SamplingConfig(temperature=0.01))
    torch.testing.assert_close(cold, torch.tensor([0.0, 1, 0, 0]))


@few_examples
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 3),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.05, 1),
)
def test_distributions_sum_to_one_and_keep_the_order_of_the_logits(seed, temperature, top_k, top_p):
    logits = 3 * torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
    probabilities = next_token_probabilities(logits, SamplingConfig(temperature, top_k, top_p))
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(5))
    in_order = probabilities.gather(-1, logits.argsort(dim=-1, descending=True))
    assert (in_order.diff(dim=-1) <= 0).all()
    assert (in_order[:, 0] > 0).all()
    if top_k is not None:
        assert ((probabilities > 0).sum(dim=-1) <= top_k).all()


def test_logits_in_half_precision_give_float32_probabilities():
    probabilities = next_token_probabilities(LOGITS.bfloat16(), SamplingConfig())
    assert probabilities.dtype == torch.float32
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0, 3])
def test_top_k_keeps_k_tokens_even_if_more_are_equally_likely(value):
    probabilities = next_token_probabilities(torch.full((2, 6), float(value)), SamplingConfig(top_k=2))
    assert ((probabilities > 0).sum(dim=-1) == 2).all()


# --- Drawing -------------------------------------------------------------------------------------


def assert_frequencies(tokens, probabilities):
    """Frequencies within five standard deviations of a fair draw, and none where there is no chance."""
    tokens = torch.as_tensor(tokens)
    for token, probability in enumerate(probabilities):
        share = (tokens == token).double().mean().item()
        if probability == 0:
            assert share == 0
        assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / len(tokens)), token


def test_draw_has_the_frequencies_of_the_probabilities():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.001, 0.199, 0.0])
    tokens = draw(probabilities.expand(50_000, -1), torch.Generator().manual_seed(1))
    assert tokens.shape == (50_000,)
    assert_frequencies(tokens, probabilities.tolist())


def test_rows_are_drawn_independently_and_from_their_own_probabilities():
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]).repeat(20_000, 1)
    tokens = draw(rows, torch.Generator().manual_seed(2)).view(-1, 2)
    assert_frequencies(tokens[:, 0], [0.5, 0.5, 0])
    assert_frequencies(tokens[:, 1], [0, 0.5, 0.5])
    pairs = 2 * tokens[:, 0] + tokens[:, 1] - 1  # (0, 1), (0, 2), (1, 1), (1, 2)
    assert_frequencies(pairs, [0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    ("uniform", "expected"), [(0.0, 1), (0.1, 1), (0.2, 3), (0.45, 3), (0.55, 4), (0.9, 4), (1 - 2**-24, 4)]
)
def test_draw_finds_where_the_running_sum_passes_the_uniform_number(monkeypatch, uniform, expected):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, uniform))
    # Running sum: 0, 0.1875, 0.1875, 0.5, 1, 1.
    probabilities = torch.tensor([[0, 0.1875, 0, 0.3125, 0.5, 0]])
    assert draw(probabilities).tolist() == [expected]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.0, 0.0, 1e-7, 0.1, 0.3, 1.0]), min_size=1, max_size=8).filter(any), st.data())
def test_a_token_without_probability_is_never_drawn(weights, data):
    # The smallest and the largest number that torch.rand can give, and some between.
    uniform = data.draw(
        st.sampled_from([0.0, 2**-24, 0.25, 0.5, 1 - 2**-24]) | st.floats(0, 1, width=16).filter(lambda x: x < 1)
    )
    probabilities = torch.tensor([weights])
    probabilities = probabilities / probabilities.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, uniform))
        token = draw(probabilities).item()
    assert probabilities[0, token] > 0


def test_choose_takes_the_most_likely_token_when_greedy_and_draws_otherwise():
    logits = torch.stack((LOGITS, LOGITS.flip(0)))
    assert choose(logits, GREEDY).tolist() == [1, 2]
    tokens = choose(LOGITS.expand(20_000, -1), SamplingConfig(top_k=2), torch.Generator().manual_seed(3))
    assert_frequencies(tokens, [0, 0.625, 0, 0.375])


def test_generated_pairs_of_tokens_have_the_models_own_probabilities():
    model = never_stopping(vocabulary=5, seed=6)
    config = SamplingConfig(temperature=2.0, max_new_tokens=2)
    with torch.no_grad():
        # Probability of the first token, and of the second after each first, from whole texts.
        first = (model(torch.tensor([[1, 2]]))[0, -1] / 2).softmax(dim=-1)
        second = (model(torch.tensor([[1, 2, token] for token in range(5)]))[:, -1] / 2).softmax(dim=-1)
    expected = (first[:, None] * second).flatten()
    # Two other prompts, of other lengths, share the batches.
    prompts = [[1, 2], [4], [0, 0, 1]] * 8000
    answers = generate(model, prompts, config, STOP, torch.Generator().manual_seed(4), batch_size=9000)
    pairs = [5 * answer[0] + answer[1] for answer in answers[::3]]
    assert_frequencies(pairs, expected.tolist())
    assert (expected > 0.01).sum() >= 4  # not one certain pair


def test_equal_seeds_give_equal_answers_and_other_seeds_others():
    model = random_decoder()
    config = SamplingConfig(temperature=3.0, max_new_tokens=10)
    first, again, other = (
        generate(model, PROMPTS, config, STOP, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


# --- Bad input, and padding ----------------------------------------------------------------------


def test_pad_left_aligns_sequences_at_their_ends_in_a_width_of_whole_sixteens():
    ids, mask = pad_left([[1, 2, 3], [4], [5, 6]], pad_token=9)
    assert ids.shape == mask.shape == (3, 16)
    assert ids[:, -3:].tolist() == [[1, 2, 3], [9, 9, 4], [9, 5, 6]]
    assert mask[:, -3:].tolist() == [[True, True, True], [False, False, True], [False, True, True]]
    assert (ids[:, :-3] == 9).all()
    assert not mask[:, :-3].any()
    assert pad_left([[1] * 17, [1]], pad_token=9)[0].shape == (2, 32)


def test_sequences_of_one_length_are_not_padded():
    ids, mask = pad_left([[1, 2, 3], [4, 5, 6]], pad_token=9)
    assert ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert mask is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0, got 0; for the most likely token choose greedy"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": -3}, "top_k must be at least 1, got -3"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_p": -0.5}, "top_p must be above 0 and at most 1, got -0.5"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, got 2.5"),
        ({"top_k": 2.0}, "top_k must be a whole number, got 2.0"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": "0.9"}, "top_p must be a number, got '0.9'"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
    ],
)
def test_bad_sampling_settings_are_refused_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)


def test_sampling_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GREEDY.temperature = 2.0


@pytest.mark.parametrize(
    "run",
    [
        lambda model, prompt: generate(model, [[1], prompt], GREEDY, STOP),
        lambda model, prompt: list(stream(model, prompt, GREEDY, STOP)),
    ],
)
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "a prompt needs at least one token"),
        ([1] * CONTEXT, f"a prompt of {CONTEXT} tokens leaves no room for an answer in a context of {CONTEXT}"),
        ([1] * (CONTEXT + 5), f"a prompt of {CONTEXT + 5} tokens leaves no room .*: shorten it"),
        ([1, VOCABULARY], f"ids outside the vocabulary of {VOCABULARY}: encode it with the model's own tokenizer"),
        ([-1, 1], f"ids outside the vocabulary of {VOCABULARY}"),
    ],
)
def test_bad_prompts_are_refused_with_advice(run, prompt, message):
    with pytest.raises(ValueError, match=message):
        run(random_decoder(), prompt)
