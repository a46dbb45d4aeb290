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
from torch.nn.parallel import DistributedDataParallel

from gptcore import chain, curriculum, exam
from gptcore.ballots import collect_ballots
from gptcore.checkpoint import load_stage
from gptcore.curriculum import AtlasCurriculum
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.interruption import Interrupted
from gptcore.lora import with_adapters
from gptcore.loss import IGNORED
from gptcore.parallel import join_processes, leave_processes, processes, rank
from gptcore.recipe import Recipe, text_batches
from gptcore.training import Trainer, TrainingConfig, generator_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STEPS = 12


def tiny_recipe() -> Recipe:
    """With rows for three processes."""
    return replace(recipe_of_two_rows(), batch_size=6)


def losses(task: str = "losses", parts: int = 1) -> list[float]:
    """Some steps on random text in which the windows have very different numbers of trained positions."""
    torch.manual_seed(rank())  # of no influence: the model below is made from a seed of its own
    tiny = tiny_recipe()
    tokens = torch.randint(23, (600,), generator=generator_for(1))
    targets = tokens.masked_fill(torch.arange(600) % 150 < 100, IGNORED)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(23, context_length=tiny.decoder.context_length, layers=1, width=32, heads=2))
    config = TrainingConfig(steps=STEPS, precision="fp32", accumulate=parts)
    if task == "lora":
        torch.nn.init.normal_(model.head.weight, std=0.3)  # it stays as it is: at 0 nothing could be learned
        model, config = with_adapters(model, 4), replace(config, optimizer="adamw", matrix_rate=0.003)
    return Trainer(model, text_batches((tokens, targets), tiny, seed=3), config).run()


def small_chain(out: Path, resume: bool = False, stop_at: int | None = None) -> chain.Chain:
    """A chain of a few steps with a few questions; `stop_at` asks process 1 to stop there, as Ctrl-C would."""
    questions = {part: {name: some[:4] for name, some in exam.exam(part).items()} for part in ("validation", "test")}
    run = chain.Chain(out, curriculum=AtlasCurriculum(tiny_recipe()), progress=False)

    def watched_batches(*args):
        batch_at = text_batches(*args)

        def watched(step):
            run.stop_requested = stop_at is not None and rank() == 1 and step >= stop_at
            return batch_at(step)

        return watched

    with (
        mock.patch.object(exam, "exam", questions.__getitem__),
        mock.patch.object(curriculum, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(exam, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(curriculum, "text_batches", watched_batches),
        mock.patch.dict(os.environ, GPTCORE_PRECISION="fp32"),
    ):
        run.run(resume)
    return run


def main(task: str, out: Path) -> None:
    """What each of the processes does."""
    join_processes()
    number = rank()
    torch.set_num_threads(1)
    if task.startswith(("losses", "lora")):
        kind, parts = re.fullmatch(r"(losses|lora)(\d)", task).groups()
        no_sync = DistributedDataParallel.no_sync
        with mock.patch.object(DistributedDataParallel, "no_sync", autospec=True, side_effect=no_sync) as unshared:
            found = losses(kind, int(parts))
        (out / f"losses{number}.json").write_text(json.dumps([processes(), unshared.call_count, found]))
        leave_processes()
        return
    try:
        run = small_chain(out / "run", resume=task == "resume", stop_at=2 if task == "stop" else None)
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
    ("task", "count", "parts"), [("losses", 2, 1), ("losses", 3, 1), ("losses", 2, 3), ("lora", 2, 1)]
)
def test_several_processes_have_the_losses_of_one(tmp_path, task, count, parts):
    together(f"{task}{parts}", tmp_path, count)
    counts, unshared, found = zip(
        *(json.loads((tmp_path / f"losses{n}.json").read_text()) for n in range(count)), strict=True
    )
    assert counts == (count,) * count
    assert unshared == ((parts - 1) * STEPS,) * count  # gradients are shared once a step, with the last part
    assert all(own == found[0] for own in found)
    assert found[0] == pytest.approx(losses(task), abs=2e-4)
    assert len(found[0]) == STEPS


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A chain in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return small_chain(folder).report, folder


@pytest.mark.parametrize("count", [2, 3])
def test_a_chain_of_several_processes_is_written_by_one_and_equals_that_of_one(tmp_path, alone, count):
    together("chain", tmp_path, count)
    reports = [json.loads((tmp_path / f"report{n}.json").read_text()) for n in range(count)]
    stages = {"tokenizer", "pretrain", "sft", "reward", "ppo"}
    assert set(reports[0]["stages"]) == stages | {"evaluation"}
    assert all(set(report["stages"]) == stages for report in reports[1:])  # only number 0 sits the exams
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == reports[0]
    for shared, own in zip(reports[0]["ppo_history"], alone[0]["ppo_history"], strict=True):
        for name in ("score", "kl", "entropy", "finished", "length", "approximate_kl", "clip_fraction"):
            assert shared[name] == pytest.approx(own[name], rel=0.02, abs=0.02), name
    for stage in ("base", "sft", "reward", "ppo"):
        shared, alone_there = (load_stage(stage, folder)[0].state_dict() for folder in (tmp_path / "run", alone[1]))
        for name, tensor in shared.items():
            # AdamW makes a whole step of the smallest gradient, so that rounding may turn a few of them round.
            if name in ("head.bias", "mean"):  # no vote tells how high all rewards are: rounding alone moves them
                continue
            far = ((tensor - alone_there[name]).abs() > 2e-3).float().mean()
            assert far < 0.01, f"{stage}: {far:.1%} of {name} differ"


def test_a_stop_asked_of_one_process_stops_both_and_they_go_on(tmp_path):
    together("stop", tmp_path)
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    assert (tmp_path / "run" / "state.safetensors").exists()
    together("resume", tmp_path, 3)  # on another number of processes
    assert "scores" in json.loads((tmp_path / "report0.json").read_text())


def test_more_processes_than_rows_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "processes", lambda: tiny_recipe().batch_size + 1)
    with pytest.raises(ValueError, match="start fewer"):
        small_chain(tmp_path / "run")
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
