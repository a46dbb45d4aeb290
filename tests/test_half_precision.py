"""What a GPU without bfloat16 (the T4 that Colab lends) would do, on the CPU: every loop in fp16, with a gradient scaler.

Without one a sixth of the gradients of PPO's policy loss vanish, and two fifths of those of the head.
"""

import copy
from dataclasses import replace

import pytest
import torch

from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.corpus import documents_as_tokens, pretraining_documents
from gptcore.groups import GroupConfig, GroupPolicyGradient
from gptcore.loss import IGNORED
from gptcore.ppo import PPO, PPOConfig
from gptcore.prompts import PromptSource
from gptcore.training import Trainer, TrainingConfig

SCALE_THAT_OVERFLOWS = 2.0**60


def set_scale(scaler, scale):
    scaler.load_state_dict(scaler.state_dict() | {"scale": scale})


@pytest.fixture(scope="module")
def models():
    """The fine-tuned model, its tokenizer, and the reward model."""
    sft, tokenizer = load_stage("sft", SHIPPED)
    return sft, tokenizer, load_stage("reward", SHIPPED)[0]


@pytest.fixture(scope="module")
def text(models):
    """A batch of text in which a few targets, in the middle too, do not count."""
    tokens = documents_as_tokens(models[1], pretraining_documents(3), 4 * 65).view(4, 65)
    targets = tokens[:, 1:].clone()
    targets[:, 20:30] = IGNORED
    return tokens[:, :-1], targets


def ppo(models, text):
    sft, tokenizer, reward = models
    config = PPOConfig(rollout_size=16, minibatch_size=16, max_new_tokens=24, value_iterations=0, clip_norm=1e9)
    arguments = copy.deepcopy(sft), copy.deepcopy(sft), copy.deepcopy(reward), tokenizer, PromptSource("train")
    run = PPO(*arguments, config, lambda _: text)
    set_scale(run.value_scaler, 2.0**14)  # at 2^16, its start, these gradients overflow, and the step is left out
    return run


def groups(method, models, text):
    sft, tokenizer, reward = models
    config = GroupConfig(method, rollout_prompts=4, minibatch_size=8, max_new_tokens=24, clip_norm=1e9)
    arguments = copy.deepcopy(sft), copy.deepcopy(sft), copy.deepcopy(reward), tokenizer, PromptSource("train")
    return GroupPolicyGradient(*arguments, config, lambda _: text)


def steps_of_ppo(run):
    """One update of both models on a rollout that is the same in every precision."""
    rollout = steps_of_ppo.rollout
    advantages = torch.linspace(-2, 2, rollout.mask.numel()).view(rollout.mask.shape).masked_fill(~rollout.mask, 0.0)
    run.update(rollout, advantages, rollout.values + advantages, torch.arange(len(rollout.tokens)), True, 0)


def steps_of_groups(run):
    rollout = steps_of_groups.rollout
    advantages = torch.linspace(-2, 2, len(rollout.tokens))
    minibatches = torch.arange(len(rollout.tokens)).split(8)
    run._update(rollout, advantages, minibatches if run.config.method == "reinforce" else minibatches[:1], 0)


def supervised(models, text):
    return Trainer(copy.deepcopy(models[0]), lambda _: text, TrainingConfig(steps=1, clip_norm=1e9))


def seen_gradients(run, act):
    """What the optimisers are given when the loop acts: the gradients of each of them in one vector."""
    found = {}
    names = ("policy_optimizer", "value_optimizer", "optimizer")
    optimizers = getattr(run, "optimizers", None) or [getattr(run, name) for name in names if hasattr(run, name)]
    for number, optimizer in enumerate(optimizers):

        def note(*_, number=number, optimizer=optimizer, **__):
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            found[number] = torch.cat([parameter.grad.flatten() for parameter in parameters])

        optimizer.step = note
    act(run)
    return found


LOOPS = {
    "ppo": (ppo, steps_of_ppo),
    "grpo": (lambda *parts: groups("grpo", *parts), steps_of_groups),
    "reinforce": (lambda *parts: groups("reinforce", *parts), steps_of_groups),
    "supervised": (supervised, lambda run: run.run()),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_in_fp16_are_those_of_fp32(models, text, monkeypatch, loop):
    make, act = LOOPS[loop]
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    run = make(models, text)
    if loop != "supervised":
        act.rollout = run.roll_out(0)
    exact = seen_gradients(run, act)
    monkeypatch.setenv("GPTCORE_PRECISION", "fp16")
    rounded = seen_gradients(make(models, text), act)
    assert exact.keys() == rounded.keys()
    for number, expected in exact.items():
        vanished = (rounded[number] == 0)[expected != 0].float().mean().item()
        assert vanished < 0.001
        assert torch.nn.functional.cosine_similarity(expected, rounded[number], dim=0) > 0.998
        assert rounded[number].norm().item() == pytest.approx(expected.norm().item(), rel=0.02)


@pytest.mark.parametrize("loop", LOOPS)
def test_after_an_overflow_no_parameter_has_moved_and_the_next_step_is_taken(models, text, monkeypatch, loop):
    make, act = LOOPS[loop]
    monkeypatch.setenv("GPTCORE_PRECISION", "fp16")
    run = make(models, text)
    if loop != "supervised":
        act.rollout = run.roll_out(0)
    model = run.model if loop == "supervised" else run.policy
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = run.policy_scaler if loop == "ppo" else run.scaler
    usual = scaler.get_scale()
    set_scale(scaler, SCALE_THAT_OVERFLOWS)
    act(run)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == SCALE_THAT_OVERFLOWS / 2
    set_scale(scaler, usual)
    if loop == "supervised":
        run.config = replace(run.config, steps=2)
    act(run)
    assert not all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_stopped_ppo_goes_on_with_its_scale(models, text, monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "fp16")
    stopped, resumed = ppo(models, text), ppo(models, text)
    set_scale(stopped.value_scaler, 256.0)
    resumed.load_state(*stopped.state())
    assert [scaler.get_scale() for scaler in (resumed.policy_scaler, resumed.value_scaler)] == [65536.0, 256.0]
