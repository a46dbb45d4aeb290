"""A run's folder for those who come back to it: its report, and the lines to paste with which it goes on."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def program() -> list[str]:
    """The words with which this program was called, up to its first argument: `python -m gptcore`, or `gptcore`."""
    called = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if called[-2:] == ["-m", "gptcore"]:
        together = os.environ.get("WORLD_SIZE", "1")
        if together != "1" and together == os.environ.get("LOCAL_WORLD_SIZE"):  # torchrun called it, on one machine
            return [_as_typed(called[0]), "-m", "torch.distributed.run", "--nproc-per-node", together, "-m", "gptcore"]
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
    words = program()
    if threads is not None:
        words += ["--threads", str(threads)]
    words.append(command)
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
    words += flags
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def resume_line(folder: Path, begun: dict[str, Any], threads: int | None = None) -> str:
    """The line that goes on with the run in a folder, which was begun with some `text`, `preset` and `seed`."""
    text = begun["text"] and Path(begun["text"])
    options = {"out": folder, "text": text, "preset": begun["preset"], "seed": begun["seed"]}
    return shell_line("train", "--resume", threads=threads, **options)


MACHINE = "{processor} ({instructions}), {precision}, {threads} threads, torch {torch}"
"""How a machine of a report is shown."""


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
    if report["text"] is not None and (folder / "base.safetensors").is_file():
        line = shell_line("chat", stage="base", out=folder)
        return f"a text of your own gives a base model only, which continues a text: `{line}`"
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
