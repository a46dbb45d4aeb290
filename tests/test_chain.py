"""The whole chain, in miniature: its report, its interruption, its command line, the shipped models."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from gptcore import chain, curriculum, exam, own_curriculum, own_sizes, recipe, runs
from gptcore.__main__ import main
from gptcore.ballots import collect_ballots
from gptcore.chat import Conversation
from gptcore.checkpoint import SHIPPED, STAGES, load_model, load_stage
from gptcore.corpus import documents_as_tokens
from gptcore.curriculum import AtlasCurriculum
from gptcore.decoder import DecoderConfig
from gptcore.exam import answer_scores
from gptcore.generation import SamplingConfig
from gptcore.machine import describe_machine
from gptcore.own_curriculum import OwnCurriculum, Sources
from gptcore.recipe import Recipe, train_tokenizer
from gptcore.runs import as_table
from gptcore.tokenizer import Tokenizer
from gptcore.words import counted, timed

ROOT = Path(__file__).parent.parent
SCORES = {
    "base_bits_per_byte", "sft_heldout_exact_en", "sft_heldout_exact_zh", "sft_unknown_honest", "sft_known_refused",
    "reward_pair_accuracy", "ppo_heldout_exact_en", "ppo_heldout_exact_zh", "ppo_unknown_honest", "ppo_known_refused",
    "ppo_gold_win_rate", "ppo_kl", "translation_exact", "bleu_translation",
}  # fmt: skip


def tiny_recipe() -> Recipe:
    whole = Recipe()
    return replace(
        whole,
        decoder=replace(whole.decoder, layers=1, width=32, heads=2),
        batch_size=2,
        ballots=16,
        ballot_batch_size=4,
        reward_epochs=1,
        pretraining=replace(whole.pretraining, steps=4),
        finetuning=replace(whole.finetuning, steps=4),
        ppo=replace(whole.ppo, iterations=3, rollout_size=8, minibatch_size=4, value_iterations=1, max_new_tokens=8),
    )


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def learned_once(monkeypatch):
    """The tokenizer of a seed is the same in every run; it need not be learned anew for each of them."""
    monkeypatch.setattr(curriculum, "train_tokenizer", lambda seed, *_, **__: whole_tokenizer(seed))
    make_small(monkeypatch)


@pytest.fixture
def small_exam(monkeypatch):
    """A few questions of each kind instead of hundreds, and a little text to replay and to score."""
    ask_little(monkeypatch)
    everywhere(monkeypatch, "documents_as_tokens", lambda *args: documents_as_tokens(*args[:2], min(args[2], 3000)))


def ask_little(patch) -> None:
    questions = {part: {name: some[:4] for name, some in exam.exam(part).items()} for part in ("validation", "test")}
    patch.setattr(exam, "exam", questions.__getitem__)
    everywhere(patch, "collect_ballots", lambda *args: collect_ballots(*args[:3], min(args[3], 16), *args[4:]))


def everywhere(patch, name: str, function) -> None:
    """Replace a function of the package in all modules of the chain that use it."""
    for module in (curriculum, exam, recipe):
        if hasattr(module, name):
            patch.setattr(module, name, function)


whole_tokenizer = cache(train_tokenizer)
RHYME = "One, two, three, four, five, once I caught a fish alive. "


def make_small(patch) -> None:
    """What is trained on data of the reader's own is tiny, too."""
    shape = DecoderConfig(1, context_length=64, layers=1, width=32, heads=2)
    patch.setitem(own_sizes.SIZES, "minutes", own_sizes.Limits(shape, 2, 4, 600, 2))
    patch.setattr(own_curriculum, "expected_seconds", lambda *_: 1.0)


def run(out: Path, text: Path | None = None, **settings) -> chain.Chain:
    learned = AtlasCurriculum(tiny_recipe()) if text is None else OwnCurriculum(Sources(text))
    return chain.Chain(out, curriculum=learned, progress=False, **settings)


@pytest.mark.slow
def test_a_run_writes_every_model_and_a_report_with_every_key(tmp_path, small_exam):
    report = run(tmp_path).run()
    assert set(report["scores"]) >= SCORES
    assert {"tokenizer", "pretrain", "sft", "reward", "ppo"} <= set(report["stages"])
    assert all(report[key] > 0 for key in ("total_seconds", "peak_rss_mb", "cores", "parameters"))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    for stage in STAGES:
        load_stage(stage, tmp_path)
    assert "ppo_unknown_honest" in as_table(report)


def ask_to_stop(run: chain.Chain) -> None:
    run.stop_requested = True


class StopAt:
    """Stands in for a reader who presses Ctrl-C in the middle of a stage, or for whatever else ends a run there."""

    def __init__(self, monkeypatch, stage: str, end: Callable[[chain.Chain], object] = ask_to_stop) -> None:
        original = chain.Chain.run_resumably

        def interrupted(run, name, worker, total):
            if name != stage:
                return original(run, name, worker, total)
            step, calls = worker.run, []

            def run_and_stop(callbacks):
                def stop_after_second(report):
                    calls.append(report)
                    if len(calls) == 2:
                        end(run)

                return step([stop_after_second, *callbacks])

            worker.run = run_and_stop
            return original(run, name, worker, total)

        monkeypatch.setattr(chain.Chain, "run_resumably", interrupted)


@pytest.mark.slow
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


def press_ctrl_c(times: int = 1) -> None:
    """From the second time on slowly enough to be meant."""
    for number in range(times):
        time.sleep(0.6 if number else 0)
        signal.raise_signal(signal.SIGINT)


def ctrl_c_in(monkeypatch, owner, name: str, times: int = 1) -> None:
    """Whoever calls that function presses Ctrl-C in the middle of it, and it must not come to its end."""

    def interrupted(*args, **settings):
        press_ctrl_c(times)
        pytest.fail(f"{name} went on")

    monkeypatch.setattr(owner, name, interrupted)


@pytest.fixture
def small_runs(monkeypatch):
    """What the command line trains is tiny."""
    tiny = tiny_recipe()
    monkeypatch.setattr(own_curriculum, "Recipe", lambda: tiny)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        (curriculum, "train_tokenizer"),
        (curriculum, "documents_as_tokens"),
        (curriculum, "collect_ballots"),
        (exam, "answer_scores"),
    ],
    ids=lambda place: place[1],
)
def test_outside_of_steps_one_ctrl_c_stops_at_once_and_the_line_printed_finishes_the_run(
    tmp_path, small_exam, small_runs, monkeypatch, place
):
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, *place)
        with pytest.raises(SystemExit) as stopped:
            command(patch, "train", "--out", str(tmp_path))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    told = command(monkeypatch, *pasted(str(stopped.value)))
    assert set(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["scores"]) >= SCORES
    assert "ppo_unknown_honest" in told


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_step_ends_before_a_first_ctrl_c_stops_and_not_before_a_second(
    tmp_path, small_exam, small_runs, monkeypatch, capsys, times
):
    text_batches, calls = curriculum.text_batches, []

    def interrupted(*args):
        batch_at = text_batches(*args)

        def watched(step):
            calls.append(step)
            if len(calls) == 2:
                press_ctrl_c(times)
                signal.raise_signal(signal.SIGINT)  # the shell's Ctrl-C, handed on by torchrun: at the same moment
            return batch_at(step)

        return watched

    monkeypatch.setattr(curriculum, "text_batches", interrupted)
    with pytest.raises(SystemExit, match="go on with"):
        command(monkeypatch, "train", "--out", str(tmp_path))
    assert "Stopping after this step" in capsys.readouterr().err
    assert (tmp_path / "state.safetensors").exists() == (times == 1)
    assert len(calls) == 2


@pytest.mark.slow
def test_an_interruption_after_a_model_is_saved_does_not_lose_its_stage(tmp_path, monkeypatch):
    text = tmp_path / "rhyme.txt"
    text.write_text(RHYME * 200, encoding="utf-8")
    with monkeypatch.context() as patch:
        StopAt(patch, "pretrain")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", text=text).run()
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, runs.RunFolder, "record_seconds")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", text=text).run(resume=True)
    assert (tmp_path / "out" / "base.safetensors").exists()
    assert (tmp_path / "out" / "state.safetensors").exists()  # or the stage would begin from nothing
    assert "pretrain" in run(tmp_path / "out", text=text).run(resume=True)["stages"]
    assert not (tmp_path / "out" / "state.safetensors").exists()


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(tmp_path, small_exam):
    run(tmp_path).run()
    with pytest.raises(FileExistsError, match="--resume"):
        run(tmp_path).run()
    with pytest.raises(ValueError, match="another --out"):
        run(tmp_path, seed=1).run(resume=True)
    (tmp_path / "report.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for resume in (True, False):  # without its report the run is unknown: training anew would destroy it
        with pytest.raises(FileNotFoundError, match="put it back"):
            run(tmp_path).run(resume)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_model_that_was_deleted_is_made_again(tmp_path, small_exam):
    whole = run(tmp_path).run()
    model = load_stage("sft", tmp_path)[0].state_dict()
    for name in ("sft.safetensors", "tokenizer.json"):
        (tmp_path / name).unlink()
    assert run(tmp_path).run(resume=True)["scores"] == whole["scores"]
    assert all(torch.equal(model[name], tensor) for name, tensor in load_stage("sft", tmp_path)[0].state_dict().items())


def test_the_peak_of_memory_is_that_of_all_parts_of_a_run(tmp_path):
    first = run(tmp_path)
    first.folder.open(resume=False)
    first.report["peak_rss_mb"] = 10.0**6
    first.folder.write_report()
    first.folder.close()
    second = run(tmp_path)
    second.folder.open(resume=True)
    second.folder.write_report()
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["peak_rss_mb"] == 10.0**6


@pytest.mark.slow
def test_the_record_of_a_run_and_the_notes_of_its_models_name_the_machine(tmp_path, small_exam, monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    report = run(tmp_path).run()
    assert report["machine"] == describe_machine()
    assert report["machine"]["precision"] == "fp32"
    assert "fp32" in as_table(report)
    for stage in STAGES:
        _, note = load_model(tmp_path / f"{stage}.safetensors", Tokenizer.load(tmp_path / "tokenizer.json"))
        assert note == {"seed": 0, "stage": stage, "machine": report["machine"]}


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, small_exam, monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    run(tmp_path).run()
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    report = run(tmp_path).run(resume=True)
    assert report["machine"]["precision"] == "fp32"
    assert [machine["precision"] for machine in report["resumed_on"]] == ["bf16"]
    assert "bf16" in as_table(report)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_a_run_is_going_on_refuses_a_second_one_at_once(tmp_path, resume):
    first = run(tmp_path)
    first.folder.open(resume=False)  # in the middle of its first stage; nothing is saved yet
    with pytest.raises(FileExistsError, match="a run is going on in"):
        run(tmp_path).run(resume)
    first.folder.close()
    run(tmp_path).folder.open(resume)


@pytest.mark.slow
def test_a_run_that_was_killed_leaves_its_folder_free(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from gptcore import chain\n"
        "chain.Chain(Path(sys.argv[1])).folder.open(resume=False)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode != 0
    chain.Chain(tmp_path).folder.open(resume=True)


@pytest.mark.slow
def test_a_text_of_the_readers_own_gives_a_base_model_that_continues_it(tmp_path):
    text = tmp_path / "rhyme.txt"
    text.write_text("One, two, three, four, five, once I caught a fish alive. " * 200, encoding="utf-8")
    report = run(tmp_path / "out", text=text).run()
    assert set(report["scores"]) == {"base_bits_per_byte"}
    model, tokenizer = load_stage("base", tmp_path / "out")
    conversation = Conversation(model, tokenizer, SamplingConfig(max_new_tokens=5), plain=True)
    assert isinstance("".join(conversation.say("One, two")), str)


@pytest.mark.slow
def test_a_text_that_changed_or_another_one_is_refused_and_one_that_moved_is_not(tmp_path, monkeypatch):
    text = tmp_path / "rhyme.txt"
    text.write_text(RHYME * 200, encoding="utf-8")
    run(tmp_path / "out", text=text).run()
    other = tmp_path / "other.txt"
    other.write_text(RHYME * 100, encoding="utf-8")
    with pytest.raises(ValueError, match="holds a run on .*rhyme.txt, not on .*other.txt: go on with"):
        run(tmp_path / "out", text=other).run(resume=True)
    with pytest.raises(ValueError, match="holds a run on .*rhyme.txt, not on the atlas: go on with"):
        run(tmp_path / "out").run(resume=True)
    (tmp_path / "books").mkdir()
    moved = text.rename(tmp_path / "books" / "moved.txt")
    monkeypatch.chdir(tmp_path / "books")
    assert run(tmp_path / "out", text=Path("moved.txt")).run(resume=True)["text"] == str(moved)
    moved.write_text(RHYME * 199, encoding="utf-8")
    with pytest.raises(ValueError, match=r"the text .*moved\.txt has changed since"):
        run(tmp_path / "out", text=Path("moved.txt")).run(resume=True)
    with pytest.raises(ValueError, match="has changed since"):
        chain.evaluate_folder(tmp_path / "out")


def command(monkeypatch, *arguments: str, lines: str | bytes = "") -> str:
    """Call the command line; what it printed."""
    lines = lines if isinstance(lines, bytes) else lines.encode()
    monkeypatch.setattr(sys, "argv", ["gptcore", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
    main()
    return sys.stdout.buffer.getvalue().decode()


def pasted(said: str) -> list[str]:
    """The arguments of the last line printed for pasting."""
    line = said[said.rindex("python -m gptcore") :].split("\n")[0].split("`")[0]
    return shlex.split(line)[3:]


def test_lines_to_paste_carry_all_options_and_work_from_any_folder(tmp_path, small_runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my book.txt").write_text(RHYME * 200, encoding="utf-8")
    options = ("--text", "my book.txt", "--preset", "gpt2", "--seed", "3", "--out", "Ada's run")
    with monkeypatch.context() as patch:
        StopAt(patch, "pretrain")
        with pytest.raises(SystemExit) as stopped:
            command(patch, "--threads", "1", "train", *options)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    line = pasted(str(stopped.value))
    assert line[:3] == ["--threads", "1", "train"]
    for wrong in (("--seed", "4"), ("--preset", "llama")):  # each refusal prints the line, too
        with pytest.raises(SystemExit, match="another --out") as refused:
            command(monkeypatch, *line, *wrong)
        assert sorted(pasted(str(refused.value))) == sorted(line[2:])
    with pytest.raises(SystemExit, match="already holds a run") as refused:
        command(monkeypatch, *(word for word in line if word != "--resume"))
    assert sorted(pasted(str(refused.value))) == sorted(line[2:])
    told = command(monkeypatch, *line)
    report = json.loads((tmp_path / "Ada's run" / "report.json").read_text(encoding="utf-8"))
    assert (report["seed"], report["preset"], set(report["scores"])) == (3, "gpt2", {"base_bits_per_byte"})
    talk = pasted(told)
    assert "\n" in command(monkeypatch, *talk, lines="One, two\n")
    with pytest.raises(SystemExit, match="data reach no farther") as refused:
        command(monkeypatch, "chat", "--stage", "ppo", "--out", str(tmp_path / "Ada's run"))
    assert pasted(str(refused.value)) == ["chat", "--stage", "base", *talk[3:]]
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("called", "words"),
    [
        ("python -m gptcore", "python -m gptcore"),
        ("python3.12 -X utf8 -m gptcore", "python3.12 -X utf8 -m gptcore"),
        ("ENV/bin/python -m gptcore", "ROOT/ENV/bin/python -m gptcore"),
        ("/on/path/python /on/path/gptcore", "gptcore"),
        ("/off/path/python /off/path/gptcore", "/off/path/gptcore"),
        ("python -m ipykernel_launcher -f", "python -m gptcore"),
        ("python gptcore", "python -m gptcore"),  # the folder of that name
    ],
)
def test_lines_to_paste_begin_as_the_program_was_called(monkeypatch, called, words):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(shutil, "which", lambda name: f"/on/path/{name}" if name == "gptcore" else None)
    monkeypatch.setattr(sys, "orig_argv", [*called.split(), "chat", "--stage", "sft"])
    monkeypatch.setattr(sys, "argv", ["__main__.py", "chat", "--stage", "sft"])
    assert runs.program() == words.replace("ROOT", str(ROOT)).split()


def test_under_torchrun_the_line_to_paste_starts_as_many_processes(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "gptcore", "train"])
    monkeypatch.setattr(sys, "argv", ["__main__.py", "train"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert runs.shell_line("train").startswith("python -m torch.distributed.run --nproc-per-node 2 -m gptcore train")
    assert runs.shell_line("chat") == "python -u -m gptcore chat"
    monkeypatch.setenv("WORLD_SIZE", "4")  # on two machines: only the reader knows how
    assert runs.shell_line("train") == "python -u -m gptcore train"
    begun = {"preset": "llama", "seed": 0}
    assert "--shard" in runs.resume_line(Path("out"), begun | {"shard": True})
    assert "--shard" not in runs.resume_line(Path("out"), begun)


def test_the_table_of_scores_keeps_its_columns_and_counts_one_in_the_singular():
    machine = describe_machine() | {"threads": 1}
    scores, longest = {"short": 0.5, "a name of a score that is longer than any so far": 0.25}, 48
    report = {"stages": {}, "parameters": 7, "seed": 0, "cores": 1, "peak_rss_mb": 1.0, "machine": machine}
    table = as_table(report | {"scores": scores, "intervals": {"short": [0.4, 0.6, 10]}})
    assert ", 1 core, " in table
    assert ", 1 thread, " in table
    head, short, long = table.splitlines()[-3:]
    assert head.index("value") + len("value") == short.index("0.500") + 5 == long.index("0.250") + 5 == longest + 9
    assert head.index("95 %") == short.index("0.400")
    two = as_table(report | {"scores": {}, "cores": 2, "machine": machine | {"threads": 2}})
    assert ", 2 cores, " in two
    assert ", 2 threads, " in two


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 steps of it"), (1, "1 step of it"), (2, "2 steps of it"), (1234, "1,234 steps of it")]
)
def test_one_is_singular(count, words):
    assert counted(count, "step of it") == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.7, "1 second"), (90, "90 seconds"), (91, "2 minutes"), (3600, "60 minutes")]
)
def test_a_time_is_told_in_seconds_or_minutes(seconds, words):
    assert timed(seconds) == words


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run and one on a text of the reader's own, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished")
    text = folder / "rhyme.txt"
    text.write_text(RHYME * 200, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        ask_little(patch)
        make_small(patch)
        run(folder / "atlas").run()
        run(folder / "text", text=text).run()
    return folder


def without(*names: str, run: str = "atlas", **changes):
    """A finished run that lacks some files, and whose report was changed."""

    def damage(finished: Path, folder: Path) -> None:
        shutil.copytree(finished / run, folder)
        for name in names:
            (folder / name).unlink()
        path = folder / "report.json"
        if changes:
            report = json.loads(path.read_text(encoding="utf-8")) | changes
            path.write_text(
                json.dumps({key: value for key, value in report.items() if value is not ...}), encoding="utf-8"
            )

    return damage


def report_is(text: str):
    def damage(finished: Path, folder: Path) -> None:
        without()(finished, folder)
        (folder / "report.json").write_text(text, encoding="utf-8")

    return damage


MODELS = [f"{stage}.safetensors" for stage in STAGES]


def test_a_run_begun_with_other_numbers_is_not_gone_on_with(tmp_path, small_exam):
    first = run(tmp_path)
    first.folder.open(resume=False)
    first.folder.write_report()
    first.folder.close()
    other = replace(tiny_recipe(), batch_size=3)
    with pytest.raises(ValueError, match="begun with other numbers of the recipe: put them back"):
        chain.Chain(tmp_path, curriculum=AtlasCurriculum(other), progress=False).run(resume=True)


@pytest.mark.slow
def test_models_are_scored_by_the_questions_of_the_part_that_is_asked_for(tmp_path, finished, monkeypatch):
    shutil.copytree(finished / "atlas", tmp_path / "out")
    asked = []

    def few(part):
        asked.append(part)
        return {name: some[:2] for name, some in whole_exam(part).items()}

    whole_exam = exam.exam
    ask_little(monkeypatch)
    monkeypatch.setattr(exam, "exam", few)
    told = command(monkeypatch, "evaluate", "--part", "validation", "--out", str(tmp_path / "out"))
    assert "validation questions" in told
    assert set(asked) == {"validation"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "score"),
    [
        (without(), "ppo_kl"),
        (without(scores=..., intervals=..., total_seconds=...), "ppo_kl"),  # stopped while it was scored
        (without(scores=..., intervals=..., total_seconds=..., stages={}, parameters=...), "ppo_kl"),
        (without(run="text"), "base_bits_per_byte"),
        (without(run="text", scores=..., total_seconds=...), "base_bits_per_byte"),
    ],
)
def test_models_are_scored_whether_their_run_was_or_not(tmp_path, finished, small_exam, monkeypatch, damage, score):
    damage(finished, tmp_path / "out")
    told = command(monkeypatch, "evaluate", "--out", str(tmp_path / "out"))
    assert score in told
    assert "parameters" in told


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["evaluate", "chat"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("ppo.safetensors", scores=...), "lacks ppo.safetensors: the run is not whole"),
        (without(*MODELS[1:], scores=...), "the run is not whole"),
        (without(*MODELS, stages={}, scores=...), "the run is not whole"),
        (without(*MODELS, "tokenizer.json", stages={}, scores=...), "lacks tokenizer.json, "),
        (without("base.safetensors", run="text", stages={}, scores=...), "--text"),
        (without(*MODELS, "report.json"), "holds no run: train one with `python -m gptcore train --out"),
        (without("ppo.safetensors", "report.json"), "put it back"),
        (lambda _, folder: folder.mkdir(), "holds no run"),
        (lambda _, folder: folder.touch(), "holds no run"),
        (lambda _, folder: None, "holds no run"),
    ],
)
def test_a_folder_that_lacks_a_model_is_told_in_one_line_that_says_what_to_do(
    tmp_path, finished, monkeypatch, asked, damage, message
):
    damage(finished, tmp_path / "out")
    monkeypatch.setattr(chain, "load_model", lambda *_: pytest.fail("long work before the check"))
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, asked, "--out", str(tmp_path / "out"))
    said = str(stopped.value)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    if "the run is not whole" in said:
        line = pasted(said)
        assert line[0] == "train"
        assert "--resume" in line
        assert line[line.index("--out") + 1] == str(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"seed": 0, "stages": {}}',
        '{"seed": 0, "preset": "llama", "text": null, "stages": {}, "cores": 2, "machine": {}, "peak_rss_mb": 1}',
    ],
)
@pytest.mark.parametrize("arguments", [("evaluate",), ("train",), ("train", "--resume")], ids=" ".join)
def test_a_damaged_report_is_told_in_one_line(tmp_path, finished, monkeypatch, text, arguments):
    report_is(text)(finished, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"^error: .*report.json is damaged .*: put back a copy of it") as stopped:
        command(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert "\n" not in str(stopped.value)


@pytest.mark.slow
def test_ctrl_c_while_models_are_scored_anew_is_one_line(finished, small_exam, monkeypatch):
    ctrl_c_in(monkeypatch, exam, "wins")
    with pytest.raises(SystemExit, match=r"^\nStopped\.$"):
        command(monkeypatch, "evaluate", "--out", str(finished / "atlas"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "--temperature", "0"], "temperature must be above 0"),
        (["chat", "--temperature", "-1"], "temperature must be above 0"),
        (["chat", "--top-p", "1.5"], "top_p must be above 0 and at most 1"),
        (["chat", "--top-k", "0"], "top_k must be at least 1"),
        (["chat", "--out", "nowhere"], "python -m gptcore train"),
        (["evaluate", "--out", "nowhere"], "python -m gptcore train"),
        (["train", "--out", "OUT", "--text", "missing.txt"], "no text file missing.txt"),
        (["train", "--out", "OUT", "--text", "EMPTY"], "is empty"),
        (["train", "--out", "OUT", "--text", "LATIN"], "not UTF-8"),
        (["train", "--out", "OUT", "--text", "SHORT"], "longer text"),
        (["train", "--out", "EMPTY"], "is a file: choose a folder"),
        (["train", "--out", "EMPTY/below"], ""),
        (["train", "--out", "OUT", "--seed", str(10**30)], "seed must fit"),
        (["--threads", "0", "chat"], "threads must be at least 1"),
        (["--threads", "-1", "chat"], "threads must be at least 1"),
        (["--threads", str(10**6), "chat"], "threads must be at most"),
        (["--threads", str(10**30), "train", "--out", "OUT"], "threads must be at most"),
    ],
)
def test_bad_input_at_the_command_line_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    (tmp_path / "short.txt").write_text("too short")
    places = {name.upper(): str(tmp_path / f"{name}.txt") for name in ("empty", "latin", "short")}
    places |= {"OUT": str(tmp_path / "out"), "EMPTY/below": str(tmp_path / "empty.txt" / "below")}
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *(places.get(argument, argument) for argument in arguments))
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_failed_start_does_not_block_the_next_one(tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "there").mkdir()
    for _ in range(2):  # the second time must not complain of a run that never was
        for name in ("new", "there"):
            with pytest.raises(SystemExit, match="longer text"):
                command(monkeypatch, "train", "--out", str(tmp_path / name), "--text", str(tmp_path / "short.txt"))
    assert not (tmp_path / "new").exists()
    assert {path.name for path in (tmp_path / "there").iterdir()} == {".lock"}


def test_a_second_run_that_is_refused_does_not_take_the_folder_of_the_first_away(tmp_path):
    first = run(tmp_path / "out")
    first.folder.open(resume=False)  # nothing is written yet
    for _ in range(2):
        with pytest.raises(FileExistsError, match="a run is going on in"):
            run(tmp_path / "out").run()
    first.folder.close()
    assert not (tmp_path / "out").exists()


# --- Streams -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix closes the streams")
@pytest.mark.parametrize("closed", ["<&-", "</dev/null >&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed):
    words = [sys.executable, "-m", "gptcore", "chat", "--out", str(SHIPPED)]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} {closed}"], capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("chat", "--out", str(SHIPPED)), ("--help",)], ids=["chat", "help"])
def test_a_reader_who_has_read_enough_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "gptcore", *arguments],
        input=b"Hello!\n" * 3, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_streams_of_a_notebook_will_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gptcore", "chat", "--out", str(SHIPPED)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of Peru?\n"))  # neither can be reconfigured
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    main()
    assert "Lima" in sys.stdout.getvalue()


@pytest.mark.slow
def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_is_answered(monkeypatch, capsys):
    lines = "Wie heißt es?\n".encode("latin-1") + "秘鲁的首都是哪里?\n".encode()
    told = command(monkeypatch, "chat", "--out", str(SHIPPED), lines=lines)
    assert "error: the text is no valid Unicode" in capsys.readouterr().err
    assert told.count("\n") == 1
    assert "利马" in told


# --- The models that come with the course --------------------------------------------------------


def test_shipped_models_load_and_stay_small():
    for stage in STAGES:
        assert (SHIPPED / f"{stage}.safetensors").stat().st_size <= 6_000_000
        load_stage(stage, SHIPPED)


@pytest.mark.slow
def test_shipped_models_score_what_their_report_claims():
    claimed = json.loads((SHIPPED / "report.json").read_text(encoding="utf-8"))["scores"]
    for name in ("sft", "ppo"):
        model, tokenizer = load_stage(name, SHIPPED)
        for key, values in answer_scores(model, tokenizer).items():
            # Greedy answers differ between processors in a few close calls only.
            assert sum(values) / len(values) == pytest.approx(claimed[f"{name}_{key}"], abs=0.02)


@pytest.mark.slow
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
