"""A run's folder: its report, what tells it from other runs, and the lines to paste with which it goes on.

No chapter is about it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptcore.files import write_whole
from gptcore.machine import cores, describe_machine, peak_memory_mb
from gptcore.parallel import rank
from gptcore.words import counted


def program(together: bool = False) -> list[str]:
    """The words with which this program was called, up to its first argument: `python -m gptcore`, or `gptcore`.

    Args:
        together: whether to start as many processes as `torchrun` did, where it called this one.
    """
    called = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if called[-2:] == ["-m", "gptcore"]:
        count = os.environ.get("WORLD_SIZE", "1")
        if together and count != "1" and count == os.environ.get("LOCAL_WORLD_SIZE"):  # all on one machine
            return [_as_typed(called[0]), "-m", "torch.distributed.run", "--nproc-per-node", count, "-m", "gptcore"]
        return [_as_typed(called[0]), *called[1:]]
    if len(called) == 2 and Path(called[1]).stem == "gptcore" and not Path(called[1]).is_dir():
        return [_as_typed(called[1])]
    return ["python", "-m", "gptcore"]  # in a notebook, or called by another program


def _as_typed(path: str) -> str:
    """A program's name where the shell finds it by that, else where it lies."""
    name, place = Path(path).name, str(Path(path).absolute())
    return name if path == name or shutil.which(name) == place else place


def shell_line(command: str, *flags: str, threads: int | None = None, **options: Path | str | int | None) -> str:
    """A command of this program, quoted for the shell, that means the same in any folder.

    Args:
        command: `train`, `evaluate` or `chat`.
        flags: options without a value, such as `--resume`.
        threads: `--threads`, which stands before the command.
        options: the others; None leaves one out.
    """
    words = program(together=command == "train")  # the others are for one
    if threads is not None:
        words += ["--threads", str(threads)]
    words.append(command)
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value.absolute() if isinstance(value, Path) else value)]
    words += flags
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


DECODERS = ("base", "sft", "dpo", "grpo", "ppo")
"""The stages whose models write, the best last; dpo and grpo only on data of the reader's own."""

SOURCES = ("text", "conversations", "comparisons", "prompts", "base")
"""The data of the reader's own that a run may be given."""

SETTINGS = ("vocabulary", "context", "steps", "finetuning_steps", "iterations", "lora")
"""The numbers that a run on such data may be given, and goes on with."""


def resume_line(folder: Path, begun: dict[str, Any], threads: int | None = None) -> str:
    """The line that goes on with the run in a folder, which was begun with these options of `train`."""
    options: dict[str, Any] = {"out": folder}
    options |= {name: Path(begun[name]) for name in SOURCES if begun.get(name) is not None}
    options |= {"preset": begun["preset"], "seed": begun["seed"]}
    flags = [*["--shard"] * bool(begun.get("shard")), "--resume"]
    if len(options) > 3:  # data of the reader's own
        options |= {name: begun.get(name) for name in ("method", "size", *SETTINGS, "accumulate")}
        flags += ["--skip-bad"] if begun.get("skip_bad") else []
    return shell_line("train", *flags, threads=threads, **options)


def last_decoder(folder: Path) -> str:
    """The last stage of a run whose model writes; `ppo` where there is no report that says how far the run goes."""
    if not (folder / "report.json").is_file():
        return DECODERS[-1]
    report = read_report(folder)
    reached = report.get("models") or (DECODERS if report["text"] is None else ["base"])  # older reports have none
    return next(stage for stage in reversed(DECODERS) if stage in reached)


MACHINE = "{processor} ({instructions}), {precision}, {threads}, torch {torch}"
"""How a machine of a report is shown, its threads counted."""


def read_report(folder: Path) -> dict[str, Any]:
    """The `report.json` of a run, finished or not.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if the report is damaged.
    """
    path = folder / "report.json"
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{folder} holds models but no report.json, which was written beside them: put it back and go on "
                f"with `{shell_line('train', '--resume', out=folder)}`, or choose another --out"
            )
        raise FileNotFoundError(f"{folder} holds no run: train one with `{shell_line('train', out=folder)}`")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for name in ("seed", "preset", "text", "cores"):
            report[name]
        float(report["peak_rss_mb"])
        for machine in [report["machine"], *report.get("resumed_on", [])]:
            MACHINE.format(**machine)
        for stage in report["stages"].values():
            float(stage["seconds"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): put back a copy of it, or choose another --out") from error
    return report


def advice(folder: Path) -> str:
    """What to do with the folder of a run that lacks a model.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if its report is damaged.
    """
    report = read_report(folder)
    if report["text"] is not None and "scores" in report:
        line = shell_line("chat", stage=last_decoder(folder), out=folder)
        return f"your own data reach no farther; talk to what there is: `{line}`"
    return f"the run is not whole: `{resume_line(folder, report)}` goes on with it"


def require_models(folder: Path, *stages: str) -> None:
    """Say what to do if a folder lacks the model of a stage.

    Raises:
        FileNotFoundError: if so.
        ValueError: if the folder's report is damaged, too.
    """
    missing = [
        name for name in ("tokenizer.json", *(f"{s}.safetensors" for s in stages)) if not (folder / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: {advice(folder)}")


@dataclass
class RunFolder:
    """The folder of one run of the chain; only one process may use it at a time."""

    path: Path
    """Where everything is written."""
    identity: dict[str, Any]
    """What tells this run from others: `seed`, `preset`, paths and hashes of its data, what the reader set, `models`, its stages, and `recipe`, the hash of its numbers."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report so far; `report.json`."""

    def __post_init__(self) -> None:
        self._lock = FileLock(self.path / ".lock")  # let go of when the process ends, however it ends

    def open(self, resume: bool) -> None:
        """Take the folder for this process, with the report of a run that goes on or a new one.

        Raises:
            FileExistsError: if the folder holds a run and `resume` is not set, or a run is going on in it.
            FileNotFoundError: if the folder has models whose report is lost.
            ValueError: if it holds another run, or its report is damaged.
            OSError: if the folder cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: choose a folder with --out")
        self._is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"a run is going on in {self.path}: wait for it, or choose another --out") from None
        for name in ("report.json", "*.safetensors"):  # a run that was killed while it wrote them
            for half_written in self.path.glob(f".{name}.*"):
                half_written.unlink()
        started = any((self.path / f"{name}.safetensors").exists() for name in ("base", "state"))
        if started and not resume:
            line = resume_line(self.path, read_report(self.path))
            raise FileExistsError(f"{self.path} already holds a run: go on with `{line}`, or choose another --out")
        machine = describe_machine()
        if not started and not (resume and (self.path / "report.json").exists()):
            self.report |= self.identity | {"stages": {}, "cores": cores(), "machine": machine}
            return  # it is written with the first stage: the data may yet be refused
        self.report |= read_report(self.path)
        self.compare()
        if self.report.get("recipe", self.identity["recipe"]) != self.identity["recipe"]:  # older reports have none
            raise ValueError(
                f"the run in {self.path} was begun with other numbers of the recipe: put them back as they were, "
                "or choose another --out"
            )
        if any(self.report.get(name) != self.identity.get(name) for name in SOURCES):  # they lie elsewhere now
            self.report |= {name: self.identity.get(name) for name in SOURCES if name in self.identity}
            self.write_report()
        if machine != self.report["machine"]:  # from here on the figures depend on another one
            self.report.setdefault("resumed_on", []).append(machine)

    def close(self) -> None:
        """Let others use the folder; a new one in which nothing was written goes away."""
        if not self._lock.is_locked:  # it was never opened
            return
        empty = self._is_new and [path.name for path in self.path.iterdir()] == [".lock"]
        self._lock.release()
        if empty:
            with suppress(OSError):  # another run may just have begun in it
                (self.path / ".lock").unlink(missing_ok=True)
                self.path.rmdir()

    def compare(self) -> None:
        """Refuse to go on with a run that was begun with something else.

        Raises:
            ValueError: if it was.
        """
        go_on = f"go on with `{resume_line(self.path, self.report)}`, or choose another --out"

        def compare_numbers(*names: str) -> None:
            for name in names:
                begun, given = self.report.get(name), self.identity.get(name)
                if begun != given:
                    raise ValueError(f"{self.path} holds a run with {name} {begun!r}, not {given!r}: {go_on}")

        compare_numbers("seed", "preset")
        for name in SOURCES:
            if self.report.get(f"{name}_sha256") == self.identity.get(f"{name}_sha256"):
                continue
            begun, given = (
                run.get(name) or ("the atlas" if name == "text" else f"no {name}")
                for run in (self.report, self.identity)
            )
            if begun == given:
                raise ValueError(
                    f"the {name} {given} has changed since the run in {self.path} began: "
                    "put it back as it was, or choose another --out"
                )
            raise ValueError(f"{self.path} holds a run on {begun}, not on {given}: {go_on}")
        compare_numbers("method", "size", *SETTINGS)  # of data of the reader's own

    def write_report(self) -> None:
        """Write `report.json`, all or nothing."""
        if rank() == 0:
            self.report["peak_rss_mb"] = round(max(peak_memory_mb(), self.report.get("peak_rss_mb", 0)), 0)
            write_whole(self.path / "report.json", json.dumps(self.report, indent=1, ensure_ascii=False))

    def record_seconds(self, stage: str, seconds: float) -> None:
        """Put into the report that a stage is done, and what it took."""
        self.report["stages"][stage] = {"seconds": round(seconds, 1)}
        self.write_report()


def as_table(report: dict[str, Any]) -> str:
    """The report for people: stages with their seconds, then scores with 95 % intervals."""
    lines = [f"{'stage':<24}{'seconds':>9}"]
    lines += [f"{name:<24}{stage['seconds']:>9.1f}" for name, stage in report["stages"].items()]
    total = sum(stage["seconds"] for stage in report["stages"].values())
    lines.append(f"{'total':<24}{total:>9.1f}")
    lines.append("")
    lines.append(
        f"{report['parameters']:,} parameters, seed {report['seed']}, {counted(report['cores'], 'core')}, "
        f"peak memory {report['peak_rss_mb']:,.0f} MB"
    )
    for machine in [report["machine"], *report.get("resumed_on", [])]:
        lines.append(MACHINE.format(**machine | {"threads": counted(machine["threads"], "thread")}))
    wide = max([24, *map(len, report["scores"])])
    lines += ["", f"{'score':<{wide}}{'value':>9}   95 % interval, questions"]
    for name, value in report["scores"].items():
        interval = report.get("intervals", {}).get(name)
        beside = f"   {interval[0]:.3f} to {interval[1]:.3f}, {interval[2]}" if interval else ""
        lines.append(f"{name:<{wide}}{value:>9.3f}{beside}")
    return "\n".join(lines)
