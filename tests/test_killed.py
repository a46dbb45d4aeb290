"""Processes that are killed: what was saved is gone on with, and no other process waits for one that has ended.

Run as a program, this file is such a process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_chain import RHYME, StopAt, make_small, pasted

from gptcore import interruption, own_sizes
from gptcore.__main__ import main
from gptcore.checkpoint import load_model, load_tensors
from gptcore.own_curriculum import OwnCurriculum
from gptcore.parallel import rank
from gptcore.published_tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="the signal is one of Unix")]

ROOT = Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "reward", "ppo", "second_reward")  # as the report and the states call them


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Options of `train`: data of the reader's own, as little as go through every stage."""
    folder = tmp_path_factory.mktemp("data")
    sums = [(f"What is {a} + {b}?", f"It is {a + b}.", f"It is {a + b + 1}.") for a in range(4) for b in range(4)]
    talk = [{"prompt": asked, "completion": right} for asked, right, _ in sums]
    votes = [{"prompt": asked, "chosen": right, "rejected": wrong} for asked, right, wrong in sums]
    (folder / "text.txt").write_text(RHYME * 120, encoding="utf-8")
    for name, records in (("conversations", talk), ("comparisons", votes)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    given = [f"--{name}={folder}/{name}.jsonl" for name in ("conversations", "comparisons")]
    return [f"--text={folder}/text.txt", *given, "--iterations=3"]  # in two of them only PPO's value model learns


def program(out: Path, data: list[str], *options: str, killed_at: str = "", count: int = 1) -> tuple[int, str]:
    """Train in `count` processes, of which the last one is killed at a stage; exit code and what was said."""
    words = [sys.executable]
    if count > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words += [__file__, killed_at, "train", "--out", str(out), *data, *options]
    settings = os.environ | {"GPTCORE_PRECISION": "fp32", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def die(*_: object) -> None:
    """As the system ends a process when there is no memory left: the last one of them."""
    if rank() == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        os.kill(os.getpid(), signal.SIGKILL)


def die_while_others_are_busy(*_: object) -> str:
    """No error reaches those that wait for no answer."""
    die()
    time.sleep(3000)  # far longer than anybody waits for the program
    return ""


def train_and_die() -> None:
    """What each of the processes does: it dies in the second step of a stage, when the state of the first is saved."""
    killed_at = sys.argv.pop(1)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(own_sizes, "FEWEST_ROWS", 3)  # one for each of three processes
        patch.setattr(interruption, "SAVE_EVERY", 0)
        if killed_at == "tokenizer":
            patch.setattr(OwnCurriculum, "check", die)  # it is learned, and not yet saved
        elif killed_at == "told":
            patch.setattr(OwnCurriculum, "told", die_while_others_are_busy)
        elif killed_at:
            StopAt(patch, killed_at, die)
        main()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of all models, with their names."""
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    models = {path.stem: load_model(path, tokenizer)[0] for path in folder.glob("*.safetensors")}
    return {f"{name} {part}": tensor for name, model in models.items() for part, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("method", "stages"), [("ppo", ("tokenizer", *STAGES)), ("grpo", ["grpo"]), ("dpo", ["dpo"])])
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(tmp_path, data, method, stages):
    whole, parts, chosen = tmp_path / "whole", tmp_path / "parts", f"--method={method}"
    assert program(whole, data, chosen) == (0, mock.ANY)
    for stage in stages:
        assert program(parts, data, chosen, "--resume", killed_at=stage) == (-signal.SIGKILL, mock.ANY)
        if stage == "tokenizer":
            assert [path.name for path in parts.iterdir()] == [".lock"]
        else:
            _, saved = load_tensors(parts / "state.safetensors")
            assert (saved["stage"], saved["done"]) == (stage, 1)
    (parts / ".ppo.safetensors.77").write_bytes(b"half")  # as if it had been killed while it wrote a file
    assert program(parts, data, chosen, "--resume") == (0, mock.ANY)
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    found, expected = weights(parts), weights(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("killed_at", ["told", "sft"])
def test_where_one_of_several_is_killed_the_others_end_and_say_how_to_go_on(tmp_path, data, killed_at):
    out = tmp_path / "out"
    code, said = program(out, data, killed_at=killed_at, count=2)
    assert code == 1
    assert said.count("Stopped: another process has ended. What is done, ") == 1
    line = pasted(said)
    assert (line[0], line[-1]) == ("train", "--resume")
    assert line[line.index("--out") + 1] == str(out)
    assert program(out, data, "--resume", count=3) == (0, mock.ANY)  # on another number of processes
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(report["stages"]) == {"tokenizer", *STAGES, "evaluation"}
    assert {"base_bits_per_byte", "ppo_kl"} <= report["scores"].keys()


def test_where_the_first_refuses_the_others_end_without_a_word(tmp_path, data):
    (tmp_path / "out").write_text("no folder")
    code, said = program(tmp_path / "out", data, count=2)
    assert code == 1
    assert said.count("is a file: choose a folder with --out") == 1
    assert "another process has ended" not in said


if __name__ == "__main__":
    train_and_die()
