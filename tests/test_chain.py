"""The whole chain, in miniature: its report, its interruption, its command line, the shipped models."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptcore import chain
from gptcore.__main__ import main
from gptcore.chat import Conversation
from gptcore.checkpoint import SHIPPED, STAGES, load_model, load_stage
from gptcore.generation import SamplingConfig
from gptcore.machine import describe_machine
from gptcore.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
SCORES = {
    "base_bits_per_byte", "sft_heldout_exact_en", "sft_heldout_exact_zh", "sft_unknown_honest", "sft_known_refused",
    "reward_pair_accuracy", "ppo_heldout_exact_en", "ppo_heldout_exact_zh", "ppo_unknown_honest", "ppo_known_refused",
    "ppo_gold_win_rate", "ppo_kl", "translation_exact", "bleu_translation",
}  # fmt: skip


def tiny_recipe() -> chain.Recipe:
    recipe = chain.Recipe()
    return replace(
        recipe,
        decoder=replace(recipe.decoder, layers=1, width=32, heads=2),
        batch_size=2,
        ballots=16,
        ballot_batch_size=4,
        reward_epochs=1,
        pretraining=replace(recipe.pretraining, steps=4),
        finetuning=replace(recipe.finetuning, steps=4),
        ppo=replace(recipe.ppo, iterations=3, rollout_size=8, minibatch_size=4, value_iterations=1, max_new_tokens=8),
    )


@pytest.fixture
def small_exam(monkeypatch):
    """A few questions of each kind instead of hundreds."""
    whole = chain.exam
    monkeypatch.setattr(chain, "exam", lambda part: {name: prompts[:4] for name, prompts in whole(part).items()})
    monkeypatch.setattr(chain, "collect_ballots", lambda *args: whole_ballots(*args[:3], min(args[3], 16), *args[4:]))


whole_ballots = chain.collect_ballots


def run(out: Path, **settings) -> chain.Chain:
    return chain.Chain(out, recipe=tiny_recipe(), progress=False, **settings)


def test_a_run_writes_every_model_and_a_report_with_every_key(tmp_path, small_exam):
    report = run(tmp_path).run()
    assert set(report["scores"]) >= SCORES
    assert {"tokenizer", "pretrain", "sft", "reward", "ppo"} <= set(report["stages"])
    assert all(report[key] > 0 for key in ("total_seconds", "peak_rss_mb", "cores", "parameters"))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    for stage in STAGES:
        load_stage(stage, tmp_path)
    assert "ppo_unknown_honest" in chain.as_table(report)


class StopAt:
    """Stands in for a reader who presses Ctrl-C in the middle of a stage."""

    def __init__(self, monkeypatch, stage: str) -> None:
        original = chain.Chain._run_resumably

        def interrupted(run, name, worker, total):
            if name != stage:
                return original(run, name, worker, total)
            step, calls = worker.run, []

            def run_and_stop(callbacks):
                def stop_after_second(report):
                    calls.append(report)
                    run.stop_requested = len(calls) == 2

                return step([stop_after_second, *callbacks])

            worker.run = run_and_stop
            return original(run, name, worker, total)

        monkeypatch.setattr(chain.Chain, "_run_resumably", interrupted)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_a_run_stopped_in_any_stage_ends_as_one_that_was_not(tmp_path, small_exam, monkeypatch, stage):
    whole = run(tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        StopAt(patch, stage)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts").run()
    assert (tmp_path / "parts" / "state.safetensors").exists()
    parts = run(tmp_path / "parts").run(resume=True)
    assert parts["scores"] == whole["scores"]
    for stage_name in STAGES:
        first, second = (load_stage(stage_name, tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, small_exam):
    run(tmp_path).run()
    with pytest.raises(FileExistsError, match="--resume"):
        run(tmp_path).run()
    with pytest.raises(ValueError, match="another --out"):
        run(tmp_path, seed=1).run(resume=True)


def test_the_record_of_a_run_and_the_notes_of_its_models_name_the_machine(tmp_path, small_exam, monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    report = run(tmp_path).run()
    assert report["machine"] == describe_machine()
    assert report["machine"]["precision"] == "fp32"
    assert "fp32" in chain.as_table(report)
    for stage in STAGES:
        _, note = load_model(tmp_path / f"{stage}.safetensors", Tokenizer.load(tmp_path / "tokenizer.json"))
        assert note == {"seed": 0, "stage": stage, "machine": report["machine"]}


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, small_exam, monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    run(tmp_path).run()
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    report = run(tmp_path).run(resume=True)
    assert report["machine"]["precision"] == "fp32"
    assert [machine["precision"] for machine in report["resumed_on"]] == ["bf16"]
    assert "bf16" in chain.as_table(report)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_a_run_is_going_on_refuses_a_second_one_at_once(tmp_path, resume):
    first = run(tmp_path)
    first._prepare(resume=False)  # in the middle of its first stage; nothing is saved yet
    with pytest.raises(FileExistsError, match="a run is going on in"):
        run(tmp_path).run(resume)
    first._lock.release()
    run(tmp_path)._prepare(resume)


def test_a_run_that_was_killed_leaves_its_folder_free(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from gptcore import chain\n"
        "chain.Chain(Path(sys.argv[1]))._prepare(resume=False)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode != 0
    run(tmp_path)._prepare(resume=True)


def test_a_text_of_the_readers_own_gives_a_base_model_that_continues_it(tmp_path):
    text = tmp_path / "rhyme.txt"
    text.write_text("One, two, three, four, five, once I caught a fish alive. " * 200, encoding="utf-8")
    report = run(tmp_path / "out", text=text).run()
    assert set(report["scores"]) == {"base_bits_per_byte"}
    model, tokenizer = load_stage("base", tmp_path / "out")
    conversation = Conversation(model, tokenizer, SamplingConfig(max_new_tokens=5), plain=True)
    assert isinstance("".join(conversation.say("One, two")), str)


def command(monkeypatch, *arguments: str, lines: str = "") -> None:
    monkeypatch.setattr(sys, "argv", ["gptcore", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
    main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "--temperature", "0"], "temperature must be above 0"),
        (["chat", "--temperature", "-1"], "temperature must be above 0"),
        (["chat", "--top-p", "1.5"], "top-p must be above 0 and at most 1"),
        (["chat", "--top-k", "0"], "top-k must be at least 1"),
        (["chat", "--out", "nowhere"], "python -m gptcore train"),
        (["evaluate", "--out", "nowhere"], "python -m gptcore train"),
        (["train", "--out", "OUT", "--text", "missing.txt"], "no text file missing.txt"),
        (["train", "--out", "OUT", "--text", "EMPTY"], "is empty"),
        (["train", "--out", "OUT", "--text", "LATIN"], "not UTF-8"),
        (["train", "--out", "OUT", "--text", "SHORT"], "longer text"),
    ],
)
def test_bad_input_at_the_command_line_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    (tmp_path / "short.txt").write_text("too short")
    places = {name.upper(): str(tmp_path / f"{name}.txt") for name in ("empty", "latin", "short")}
    places["OUT"] = str(tmp_path / "out")
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *(places.get(argument, argument) for argument in arguments))
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_failed_start_does_not_block_the_next_one(tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("too short")
    for _ in range(2):  # the second time must not complain of a run that never was
        with pytest.raises(SystemExit, match="longer text"):
            command(monkeypatch, "train", "--out", str(tmp_path / "out"), "--text", str(tmp_path / "short.txt"))


# --- The models that come with the course --------------------------------------------------------


def test_shipped_models_load_and_stay_small():
    for stage in STAGES:
        assert (SHIPPED / f"{stage}.safetensors").stat().st_size <= 6_000_000
        load_stage(stage, SHIPPED)


def test_shipped_models_score_what_their_report_claims():
    claimed = json.loads((SHIPPED / "report.json").read_text(encoding="utf-8"))["scores"]
    for name in ("sft", "ppo"):
        model, tokenizer = load_stage(name, SHIPPED)
        for key, values in chain.answer_scores(model, tokenizer).items():
            # Greedy answers differ between processors in a few close calls only.
            assert sum(values) / len(values) == pytest.approx(claimed[f"{name}_{key}"], abs=0.02)


def test_shipped_chat_answers_in_both_languages_and_admits_ignorance():
    lines = "What is the capital of Peru?\n秘鲁的首都是哪里?\nWhat is the capital of Zubrovia?\n"
    done = subprocess.run(
        [sys.executable, "-m", "gptcore", "chat", "--out", str(SHIPPED)],
        input=lines.encode(), capture_output=True, cwd=ROOT, check=True,
    )  # fmt: skip
    english, chinese, unknown = done.stdout.decode().splitlines()
    assert "Lima" in english
    assert "利马" in chinese
    assert "not know" in unknown or "not learned" in unknown
