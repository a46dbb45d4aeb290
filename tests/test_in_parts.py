"""A batch that is read in parts must teach what it teaches when it is read whole, in every stage that reads more than text."""

import pytest
import torch
from test_dpo import UNEVEN, toy_ballots
from test_groups import toy as toy_groups
from test_ppo import VOCABULARY, Letters, tiny_decoder
from test_ppo import toy as toy_ppo
from torch import nn

from gptcore.ballots import ballots_in_parts
from gptcore.dpo import DPOConfig, dpo_trainer
from gptcore.groups import GroupConfig
from gptcore.parallel import rows_of_parts
from gptcore.ppo import PPOConfig
from gptcore.reward import train_reward_model
from gptcore.training import TrainingConfig, generator_for

pytestmark = pytest.mark.usefixtures("exact_arithmetic")

STAGES = ("reward", "dpo", "ppo", "grpo", "reinforce", "best")


def text_batch(number):
    generator = generator_for(17, number)
    return tuple(torch.randint(VOCABULARY, (3, 6), generator=generator) for _ in range(2))


def figures_of(stage, parts, between=lambda loop: None):
    """What the steps of a stage looked like, on a toy: losses and norms, or diagnostics and sums of weights.

    `between` is shown the loops of those that sample after each iteration.
    """
    if stage in ("reward", "dpo"):
        found = []

        def run(trainer):
            trainer.run([lambda report: found.extend((report.loss, report.gradient_norm))])

        ballots = toy_ballots(10) + UNEVEN
        config = TrainingConfig(steps=4, optimizer="adamw", matrix_rate=0.003, accumulate=parts)
        if stage == "dpo":
            run(dpo_trainer(tiny_decoder(), ballots, DPOConfig(batch_size=6, epochs=2, training=config), text_batch))
        else:
            train_reward_model(tiny_decoder(), Letters(), ballots, config, 6, 2, text_batch, run)
        return found
    given = {"policy": tiny_decoder(5), "replay": text_batch, "accumulate": parts}
    loop = toy_ppo(**given) if stage == "ppo" else toy_groups(stage, **given)
    loop.run([lambda _: between(loop)])
    diagnostics = [value for entry in loop.history for name, value in entry._asdict().items() if "seconds" not in name]
    return diagnostics + [parameter.sum().item() for model in loop.learning for parameter in model.parameters()]


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_in_parts_it_learns_as_if_it_were_whole(stage):
    rows = []

    def seen(module, inputs):
        if isinstance(module, nn.Embedding) and torch.is_grad_enabled():
            rows[-1].append(len(inputs[0]))

    with nn.modules.module.register_module_forward_pre_hook(seen):
        found = []
        for parts in (1, 3):
            rows.append([])
            found.append(figures_of(stage, parts))
    assert found[1] == pytest.approx(found[0], rel=2e-3, abs=2e-4)
    assert 2 * max(rows[1]) <= max(rows[0])


def test_rows_are_divided_evenly_and_weigh_by_their_entries():
    assert rows_of_parts([1, 0, 2, 5, 0], 2) == [(slice(0, 3), 3 / 8), (slice(3, 5), 5 / 8)]
    assert rows_of_parts([3, 1], 5) == [(slice(0, 1), 3 / 4), (slice(1, 2), 1 / 4)]  # no more parts than rows
    assert rows_of_parts([0, 0], 2) == [(slice(0, 1), 0), (slice(1, 2), 0)]  # nothing is learned of nothing


def test_text_comes_before_the_votes_and_alone():
    parts = ballots_in_parts((UNEVEN, text_batch(0)), 2)
    assert [(votes is None, text is None) for (votes, text), _ in parts] == [(True, False)] * 2 + [(False, True)] * 2
    assert [weight for _, weight in parts] == pytest.approx([2 / 3, 1 / 3, 3 / 4, 1 / 4])
    assert ballots_in_parts((UNEVEN, None), 1) == [((UNEVEN, None), 1.0)]


def test_the_parts_are_no_part_of_what_tells_recipes_apart():
    for config in (TrainingConfig(1), PPOConfig(), GroupConfig()):
        assert "accumulate" not in repr(config)
    for kind in (PPOConfig, GroupConfig):
        with pytest.raises(ValueError, match="accumulate must be at least 1"):
            kind(accumulate=0)
