"""What must hold where a notebook has set torch's default device or dtype: all works as before.

A machine with a GPU and `torch.set_default_device("cuda")` is played by the device "meta": there, too, a
random draw that names no device is made elsewhere than its generator, and a tensor that names none cannot
meet one of the CPU.
"""

import copy

import pytest
import torch

from gptcore import evaluation, ppo, reward
from gptcore.ballots import BallotBatches, collect_ballots
from gptcore.best_of_n import best_of_n
from gptcore.chat import Conversation
from gptcore.chat_template import encode_answer, encode_prompt
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.dpo import DPOConfig, ImplicitReward, dpo_trainer
from gptcore.exercises.exercise import Fresh
from gptcore.finetuning import demonstrations, pack
from gptcore.generation import SamplingConfig, generate
from gptcore.groups import GroupConfig, GroupPolicyGradient
from gptcore.lora import with_adapters
from gptcore.prompts import PromptSource
from gptcore.tokenizer import ASSISTANT
from gptcore.training import Trainer, TrainingConfig, generator_for, sample_windows
from gptcore.widgets.chat import answer_probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the models must be on the CPU"),
    pytest.mark.usefixtures("exact_arithmetic"),
]


@pytest.fixture(scope="module")
def shipped():
    """The fine-tuned model, the reward model and their tokenizer."""
    model, tokenizer = load_stage("sft", SHIPPED)
    return model, load_stage("reward", SHIPPED)[0], tokenizer


@pytest.fixture(params=["device", "dtype"])
def other_default(request):
    """After it is called, torch makes tensors elsewhere, or in float64, unless told otherwise."""

    def set_default():
        if request.param == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)

    yield set_default
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def small_decoder():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(300, 16, layers=1, width=32, heads=2))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def same_before_and_after(set_default, work):
    """The result of some work; it must be the same under another default."""
    expected = work()
    set_default()
    found = work()
    torch.set_default_device(None)
    assert str(found) == str(expected)  # the printed values, dtype and device of tensors


def test_training(other_default):
    model, stream = small_decoder(), torch.arange(200) % 300

    def train():
        trained = copy.deepcopy(model)
        config = TrainingConfig(steps=2)
        return Trainer(trained, lambda step: sample_windows(stream, stream, 2, 8, generator_for(step)), config).run()

    same_before_and_after(other_default, train)


def test_adapters(other_default):
    model = small_decoder()
    same_before_and_after(other_default, lambda: with_adapters(model, 4).state_dict())


def test_generation(other_default):
    model = small_decoder()
    for sampling in (SamplingConfig(max_new_tokens=6), SamplingConfig(max_new_tokens=6, top_k=5, top_p=0.9)):
        for prompts in ([[1, 2], [3]], [[1], [2]]):
            expected = generate(model, prompts, sampling, 0, generator_for(1))
            other_default()
            assert generate(model, prompts, sampling, 0, generator_for(1)) == expected
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)


def test_a_chat_with_a_loaded_model(other_default):
    def answer():
        model, tokenizer = load_stage("ppo", SHIPPED)
        assert next(model.parameters()).dtype == torch.float32
        conversation = Conversation(model, tokenizer, SamplingConfig(temperature=0.5), generator=generator_for(0))
        text = "".join(conversation.say("What is the capital of Peru?"))
        shown = answer_probabilities(model, encode_prompt(tokenizer, "Hello!"), conversation.answer_ids, 3)
        return text, [round(value, 4) for value, _ in shown]

    same_before_and_after(other_default, answer)


def test_reward_and_best_of_n(other_default, shipped):
    model, reward_model, tokenizer = shipped
    prompt = encode_prompt(tokenizer, "What is the capital of Peru?")
    sequences = [prompt + encode_answer(tokenizer, answer) for answer in ("Lima.", "The capital of Peru is Lima.")]

    def work():
        chosen = best_of_n(model, reward_model, tokenizer, [prompt], n=2)
        ballots = list(collect_ballots(model, tokenizer, PromptSource(), 2, seed=0))
        batches = BallotBatches(ballots, 2, seed=0)
        return reward.rewards_of(reward_model, sequences), chosen, reward.reward_loss(reward_model, batches(0)).item()

    same_before_and_after(other_default, work)


def test_a_new_reward_model_is_where_its_decoder_is(other_default):
    decoder = small_decoder()
    sequences, expected = [[1, 3, 4], [3, 5]], reward.RewardModel(decoder, 3)
    other_default()
    found = reward.RewardModel(decoder, 3)
    found.load_state_dict(expected.state_dict())
    assert reward.rewards_of(found, sequences).tolist() == reward.rewards_of(expected, sequences).tolist()


def test_ppo_grpo_and_dpo(other_default, shipped):
    model, reward_model, tokenizer = shipped
    parts = (model, reward_model, tokenizer, PromptSource())
    ballots = list(collect_ballots(model, tokenizer, PromptSource(), 4, seed=0))
    stream = pack(tokenizer, demonstrations(0), iter(()), 0.0, 400, 0)

    def replay(number):
        return sample_windows(*stream, 2, 32, generator_for(number))

    def work():
        common = {"iterations": 1, "minibatch_size": 4, "max_new_tokens": 4}
        settings = ppo.PPOConfig(rollout_size=8, value_iterations=0, **common)
        first = ppo.PPO(copy.deepcopy(model).requires_grad_(True), *parts, settings, replay).run()[0]
        group = GroupConfig(rollout_prompts=4, group_size=2, **common)
        second = GroupPolicyGradient(copy.deepcopy(model).requires_grad_(True), *parts, group, replay).run()[0]
        settings = DPOConfig(batch_size=2)
        third = dpo_trainer(copy.deepcopy(model).requires_grad_(True), ballots, settings, replay).run()
        return [round(number, 3) for number in (first.score, first.kl, second.score, second.kl, *third)]

    same_before_and_after(other_default, work)


def test_evaluation_and_the_implicit_reward(other_default, shipped):
    model, _, tokenizer = shipped
    text = "The capital of Peru is Lima. The symbol of gold is Au."
    ids = tokenizer.encode(text)
    sequence = encode_prompt(tokenizer, "Hello!") + encode_answer(tokenizer, "Hello!")

    def work():
        implicit = ImplicitReward(model, model, 0.1, tokenizer.special[ASSISTANT])
        bits = evaluation.bits_per_byte(model, ids, len(text.encode()))
        return round(bits, 5), reward.rewards_of(implicit, [sequence])

    same_before_and_after(other_default, work)


def test_packing_and_fresh_inputs_of_exercises(other_default, shipped):
    def work():
        fresh = Fresh(0)
        packed = pack(shipped[2], demonstrations(0), iter(()), 0.0, 40, 0)
        return fresh.normal(2, 3), fresh.integers(0, 9, 4), fresh.probabilities(3), packed

    same_before_and_after(other_default, work)
