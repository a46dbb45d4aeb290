"""Processes that train together must do what one does; run by torchrun, this file is one of them."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_chain import tiny_recipe as recipe_of_two_rows
from test_in_parts import STAGES, figures_of
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gptcore import chain, curriculum, engines, exam
from gptcore.ballots import collect_ballots
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.curriculum import AtlasCurriculum
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.interruption import Interrupted
from gptcore.lora import with_adapters
from gptcore.loss import IGNORED
from gptcore.parallel import join_processes, leave_processes, processes, rank
from gptcore.recipe import Recipe, text_batches
from gptcore.runs import resume_line
from gptcore.training import Trainer, TrainingConfig, generator_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STEPS = 12


def tiny_recipe(parts: int = 1) -> Recipe:
    """With rows for three processes, or two with parts."""
    tiny = recipe_of_two_rows()
    stages = {
        name: replace(getattr(tiny, name), accumulate=parts) for name in ("pretraining", "finetuning", "reward", "ppo")
    }
    return replace(tiny, batch_size=6, **stages)


def numbers_in(*tensors: torch.Tensor) -> int:
    """How many this process holds."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)


def losses(task: str = "losses", parts: int = 1, preset: str = "llama") -> tuple[list[float], int, int]:
    """Some steps on random text in which the windows have very different numbers of trained positions.

    Returns:
        the losses, how many numbers this process's optimisers keep, and the model between two steps.
    """
    torch.manual_seed(rank())  # of no influence: the model below is made from a seed of its own
    tiny = tiny_recipe()
    tokens = torch.randint(23, (600,), generator=generator_for(1))
    targets = tokens.masked_fill(torch.arange(600) % 150 < 100, IGNORED)
    torch.manual_seed(0)
    shape = DecoderConfig(23, tiny.decoder.context_length, layers=1, width=32, heads=2, preset=preset)
    model = Decoder(shape)
    config = TrainingConfig(steps=STEPS, precision="fp32", accumulate=parts)
    if task == "lora":
        torch.nn.init.normal_(model.head.weight, std=0.3)  # it stays as it is: at 0 nothing could be learned
        model, config = with_adapters(model, 4), replace(config, optimizer="adamw", matrix_rate=0.003)
    trainer = Trainer(model, text_batches((tokens, targets), tiny, seed=3), config)
    held = []
    found = trainer.run([lambda _: held.append(numbers_in(*model.parameters()))])
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    return found, numbers_in(*(tensor for state in states for tensor in state.values())), held[-1]


def small_chain(out: Path, resume: bool = False, stop_at: int | None = None, parts: int = 1) -> chain.Chain:
    """A chain of a few steps with a few questions; `stop_at` asks process 1 to stop there, as Ctrl-C would."""
    questions = {part: {name: some[:4] for name, some in exam.exam(part).items()} for part in ("validation", "test")}
    run = chain.Chain(out, curriculum=AtlasCurriculum(tiny_recipe(parts)), progress=False)

    def watched_batches(*args):
        batch_at = text_batches(*args)

        def watched(step):
            run.stop_requested = stop_at is not None and rank() == 1 and step >= stop_at
            return batch_at(step)

        return watched

    with (
        mock.patch.object(exam, "exam", questions.__getitem__),
        # That of this seed, which process 0 alone would learn.
        mock.patch.object(curriculum, "train_tokenizer", return_value=load_stage("base", SHIPPED)[1]),
        mock.patch.object(curriculum, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(exam, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(curriculum, "text_batches", watched_batches),
        mock.patch.dict(os.environ, GPTCORE_PRECISION="fp32"),
    ):
        run.run(resume)
    return run


def main(task: str, out: Path) -> None:
    """What each of the processes does."""
    divided, kind, parts, preset = re.fullmatch(r"(divided)?([a-z]+)(\d)(.*)", task).groups()
    join_processes(bool(divided))
    number, parts = rank(), int(parts)
    torch.set_num_threads(1)
    if kind in ("losses", "lora"):
        no_sync = DistributedDataParallel.no_sync
        with mock.patch.object(DistributedDataParallel, "no_sync", autospec=True, side_effect=no_sync) as unshared:
            found = losses(kind, parts, preset or "llama")
        (out / f"losses{number}.json").write_text(json.dumps([processes(), unshared.call_count, *found]))
        leave_processes()
        return
    if kind == "stages":
        held: list[int] = []

        def look(loop):
            models = loop.policy, loop.reference, loop.reward_model
            held.append(numbers_in(*(parameter for model in models for parameter in model.parameters())))

        with mock.patch.dict(os.environ, GPTCORE_PRECISION="fp32"):
            found = {stage: figures_of(stage, parts, look) for stage in STAGES}
        (out / f"stages{number}.json").write_text(json.dumps([found, held]))
        leave_processes()
        return
    try:
        run = small_chain(out / "run", kind == "resume", stop_at=2 if kind == "stop" else None, parts=parts)
    except Interrupted:
        (out / f"stopped{number}").touch()
        return
    (out / f"report{number}.json").write_text(json.dumps(run.report))


def together(task: str, out: Path, count: int = 2) -> None:
    """Start some processes that do a task."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__]
    done = subprocess.run([*command, task, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("task", "count", "parts"),
    [
        ("losses", 2, 1),
        ("losses", 3, 1),
        ("losses", 2, 3),
        ("lora", 2, 1),
        ("dividedlosses", 2, 3),
    ],
)
def test_several_processes_have_the_losses_of_one(tmp_path, task, count, parts):
    divided = task.startswith("divided")
    preset = "gpt2" if divided and parts > 1 else "llama"  # whose head is the embedding
    together(f"{task}{parts}{preset}", tmp_path, count)
    counts, unshared, found, kept, held = zip(
        *(json.loads((tmp_path / f"losses{n}.json").read_text()) for n in range(count)), strict=True
    )
    assert counts == (count,) * count
    # Gradients are averaged once a step, with the last part; where each keeps a share, at every part.
    assert unshared == (0 if divided else (parts - 1) * STEPS,) * count
    assert all(own == found[0] for own in found)
    expected, whole, size = losses(task.removeprefix("divided"), preset=preset)
    assert found[0] == pytest.approx(expected, abs=2e-4)
    assert len(found[0]) == STEPS
    for own in kept:
        assert own == pytest.approx(whole / count if divided else whole, rel=0.1)
    assert held == (0 if divided else size,) * count


def test_where_models_are_divided_every_stage_does_what_one_process_does(tmp_path, exact_arithmetic):
    together("dividedstages2", tmp_path)
    found = [json.loads((tmp_path / f"stages{number}.json").read_text()) for number in range(2)]
    assert found[0] == found[1]
    figures, held = found[0]
    assert held == [0] * 8  # two iterations of each loop, between which no process has a whole model
    for stage in STAGES:
        assert figures[stage] == pytest.approx(figures_of(stage, 1), rel=2e-3, abs=2e-4), stage


def test_one_process_has_nobody_to_divide_a_model_with(tmp_path):
    words = [sys.executable, "-m", "gptcore", "train", "--shard", "--out", str(tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "start several with torchrun, or leave --shard out" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A chain in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return small_chain(folder).report, folder


def assert_same_models(folder: Path, other: Path) -> None:
    """That two runs have come to the same weights, but for rounding."""
    for stage in ("base", "sft", "reward", "ppo"):
        own, expected = (load_stage(stage, place)[0].state_dict() for place in (folder, other))
        for name, tensor in own.items():
            # AdamW makes a whole step of the smallest gradient, so that rounding may turn a few of them round.
            if name in ("head.bias", "mean"):  # no vote tells how high all rewards are: rounding alone moves them
                continue
            far = ((tensor - expected[name]).abs() > 2e-3).float().mean()
            assert far < 0.01, f"{stage}: {far:.1%} of {name} differ"


@pytest.mark.parametrize(("task", "count"), [("chain1", 3), ("dividedchain2", 2)])
def test_a_chain_of_several_processes_is_written_by_one_and_equals_that_of_one(tmp_path, alone, task, count):
    together(task, tmp_path, count)
    reports = [json.loads((tmp_path / f"report{n}.json").read_text()) for n in range(count)]
    stages = {"tokenizer", "pretrain", "sft", "reward", "ppo"}
    assert set(reports[0]["stages"]) == stages | {"evaluation"}
    assert all(set(report["stages"]) == stages for report in reports[1:])  # only number 0 sits the exams
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == reports[0]
    divided = task.startswith("divided")
    assert ("--shard" in resume_line(tmp_path / "run", reports[0])) == divided  # who goes on needs the memory, too
    for shared, own in zip(reports[0]["ppo_history"], alone[0]["ppo_history"], strict=True):
        for name in ("score", "kl", "entropy", "finished", "length", "approximate_kl", "clip_fraction"):
            assert shared[name] == pytest.approx(own[name], rel=0.02, abs=0.02), name
    assert_same_models(tmp_path / "run", alone[1])


def test_a_stop_asked_of_one_process_stops_both_and_they_go_on(tmp_path, alone):
    together("dividedstop1", tmp_path)
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    assert (tmp_path / "run" / "state.safetensors").exists()
    together("dividedresume1", tmp_path, 3)  # on another number of processes
    assert "scores" in json.loads((tmp_path / "report0.json").read_text())
    assert_same_models(tmp_path / "run", alone[1])


def test_more_processes_than_rows_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "processes", lambda: tiny_recipe().batch_size + 1)
    with pytest.raises(ValueError, match="start fewer"):
        small_chain(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_that_have_parameters_in_common_are_not_divided(monkeypatch):
    monkeypatch.setattr(engines, "divided", lambda: True)
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="parameters in common"):
        engines.share(model, torch.nn.Sequential(model))
    assert model.weight.numel() == 4


def test_adapters_and_a_divided_model_are_refused_together(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "divided", lambda: True)
    with pytest.raises(ValueError, match="do not work together: leave one of them out"):
        chain.Chain(tmp_path / "run", curriculum=AtlasCurriculum(replace(tiny_recipe(), lora=4))).run()
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
