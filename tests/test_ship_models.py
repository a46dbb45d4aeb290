"""Shipping a run: what is copied, what is refused, and whose seconds are recorded."""

import json
import shutil

import pytest
from ship_models import note_seconds, ship

from gptcore.checkpoint import SHIPPED

FILES = {
    "base.safetensors",
    "sft.safetensors",
    "reward.safetensors",
    "ppo.safetensors",
    "tokenizer.json",
    "report.json",
}


@pytest.fixture
def run(tmp_path):
    """A finished run, with the files that one leaves behind besides."""
    folder = tmp_path / "run"
    shutil.copytree(SHIPPED, folder)
    (folder / ".lock").touch()
    return folder


def test_the_files_of_a_run_are_copied_and_no_others(run, tmp_path):
    ship(run, tmp_path / "shipped")
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "shipped" / name).read_bytes() == (SHIPPED / name).read_bytes()


def change_report(folder, change):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    change(report)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: change_report(folder, lambda report: report.pop("scores")),
        lambda folder: change_report(folder, lambda report: report.update(text="rhyme.txt")),
        lambda folder: (folder / "ppo.safetensors").unlink(),
        lambda folder: (folder / "reward.safetensors").write_bytes(b"half"),
        lambda folder: (folder / "report.json").write_bytes((folder / "report.json").read_bytes() + b" " * 6_000_000),
    ],
    ids=["not scored", "another text", "a model is missing", "a damaged model", "a large file"],
)
def test_a_run_that_is_not_whole_is_refused_and_nothing_is_copied(run, tmp_path, damage):
    damage(run)
    with pytest.raises((ValueError, FileNotFoundError)):
        ship(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


HERE = {"processor": "a", "instructions": "AVX2"}
STAGES = {"pretrain": {"seconds": 2.5}}


@pytest.mark.parametrize(
    ("report", "noted"),
    [
        ({"machine": HERE}, True),
        ({"machine": HERE | {"instructions": "AVX512"}}, False),
        ({"machine": HERE, "resumed_on": [{"processor": "b"}]}, False),
    ],
    ids=["trained here", "elsewhere", "partly elsewhere"],
)
def test_only_seconds_of_this_machine_are_recorded(report, noted):
    costs = {"laptop": {"unit": 1, "chain": {"pretrain": {"seconds": 9}}}, "AMX": {"chain": 0}}
    assert note_seconds(costs, "laptop", report | {"stages": STAGES}, HERE) == noted
    expected = 2.5 if noted else 9
    assert costs == {"laptop": {"unit": 1, "chain": {"pretrain": {"seconds": expected}}}, "AMX": {"chain": 0}}
