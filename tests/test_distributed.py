"""Two processes that train together must do what one does; run by torchrun, this file is one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_chain import tiny_recipe

from gptcore import chain, exam, recipe
from gptcore.ballots import collect_ballots
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.interruption import Interrupted
from gptcore.loss import IGNORED
from gptcore.parallel import join_processes, leave_processes, processes, rank
from gptcore.recipe import text_batches
from gptcore.training import Trainer, TrainingConfig, generator_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STEPS = 12


def losses() -> list[float]:
    """Some steps on random text in which the windows have very different numbers of trained positions."""
    torch.manual_seed(rank())  # of no influence: the model below is made from a seed of its own
    tiny = tiny_recipe()
    tokens = torch.randint(23, (600,), generator=generator_for(1))
    targets = tokens.masked_fill(torch.arange(600) % 150 < 100, IGNORED)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(23, context_length=tiny.decoder.context_length, layers=1, width=32, heads=2))
    config = TrainingConfig(steps=STEPS, precision="fp32")
    return Trainer(model, text_batches((tokens, targets), tiny, seed=3), config).run()


def small_chain(out: Path, resume: bool = False, stop_at: int | None = None) -> chain.Chain:
    """A chain of a few steps with a few questions; `stop_at` asks process 1 to stop there, as Ctrl-C would."""
    questions = {part: {name: some[:4] for name, some in exam.exam(part).items()} for part in ("validation", "test")}
    run = chain.Chain(out, recipe=tiny_recipe(), progress=False)

    def watched_batches(*args):
        batch_at = text_batches(*args)

        def watched(step):
            run.stop_requested = stop_at is not None and rank() == 1 and step >= stop_at
            return batch_at(step)

        return watched

    with (
        mock.patch.object(exam, "exam", questions.__getitem__),
        mock.patch.object(chain, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(exam, "collect_ballots", lambda *args: collect_ballots(*args[:3], 16, *args[4:])),
        mock.patch.object(chain, "text_batches", watched_batches),
        mock.patch.dict(os.environ, GPTCORE_PRECISION="fp32"),
    ):
        run.run(resume)
    return run


def main(task: str, out: Path) -> None:
    """What each of the processes does."""
    join_processes()
    number = rank()
    torch.set_num_threads(1)
    if task == "losses":
        found = losses()
        (out / f"losses{number}.json").write_text(json.dumps([processes(), found]))
        leave_processes()
        return
    try:
        run = small_chain(out / "run", resume=task == "resume", stop_at=2 if task == "stop" else None)
    except Interrupted:
        (out / f"stopped{number}").touch()
        return
    (out / f"report{number}.json").write_text(json.dumps(run.report))


def together(task: str, out: Path) -> None:
    """Start two processes that do a task."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run([*command, task, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_have_the_losses_of_one(tmp_path):
    together("losses", tmp_path)
    (count, first), (_, second) = (json.loads((tmp_path / f"losses{n}.json").read_text()) for n in (0, 1))
    assert count == 2
    assert first == second
    assert first == pytest.approx(losses(), abs=2e-4)
    assert len(first) == STEPS


def test_a_chain_of_two_processes_is_written_by_one_and_equals_that_of_one(tmp_path):
    together("chain", tmp_path)
    reports = [json.loads((tmp_path / f"report{n}.json").read_text()) for n in (0, 1)]
    assert set(reports[0]["stages"]) == {"tokenizer", "pretrain", "sft", "reward", "ppo", "evaluation"}
    assert "ppo" not in reports[1]["stages"]  # process 1 left after fine-tuning
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == reports[0]
    small_chain(tmp_path / "alone")
    for stage in ("base", "sft"):
        shared, alone = (load_stage(stage, tmp_path / name)[0].state_dict() for name in ("run", "alone"))
        for name, tensor in shared.items():
            # AdamW makes a whole step of the smallest gradient, so that rounding may turn a few of them round.
            far = ((tensor - alone[name]).abs() > 2e-3).float().mean()
            assert far < 0.01, f"{stage}: {far:.1%} of {name} differ"


def test_a_stop_asked_of_one_process_stops_both_and_they_go_on(tmp_path):
    together("stop", tmp_path)
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    assert (tmp_path / "run" / "state.safetensors").exists()
    together("resume", tmp_path)
    assert "scores" in json.loads((tmp_path / "report0.json").read_text())


def test_more_processes_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr(recipe, "processes", lambda: 3)
    with pytest.raises(ValueError, match="start fewer"):
        text_batches((torch.zeros(9), torch.zeros(9)), tiny_recipe(), 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
