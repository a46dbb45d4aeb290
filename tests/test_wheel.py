"""Installed as a wheel, away from its repository, the package has all that it needs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PARTS = ("gptcore", "assets", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def run(*words: str | Path, **settings) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, encoding="utf-8", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """An empty environment into which the wheel was installed, and the variables with which its programs run."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for part in PARTS:  # a copy, for a build leaves its traces
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("gptcore-*.whl")
    venv.create(folder / "environment", with_pip=True)
    scripts = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    # The libraries that it needs are those of this environment; gptcore itself is not found there.
    run(scripts / "python", *pip[1:], "install", "--no-deps", "--no-index", wheel)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return scripts, variables | {"PYTHONPATH": sysconfig.get_paths()["purelib"], "PYTHONUTF8": "1"}


def test_the_console_command_chats_with_the_shipped_model(installed, tmp_path):
    scripts, variables = installed
    asked = "What is the capital of Peru?\n"
    assert "Lima" in run(scripts / "gptcore", "chat", input=asked, cwd=tmp_path, env=variables)


def test_it_is_the_wheel_s_package_and_its_files_that_are_used(installed, tmp_path):
    scripts, variables = installed
    code = (
        "import gptcore.atlas, gptcore.checkpoint, gptcore.exercises, gptcore.files as files\n"
        "from gptcore.widgets import PPOLab\n"
        "print(gptcore.__file__, files.ASSETS, files.RUNS, sep='\\n')\n"
        "print(len(gptcore.atlas.entities()), len(gptcore.exercises.exercises()))\n"
        "print(sorted(path.name for path in (files.ASSETS / 'benchmarks').iterdir()))\n"
        "PPOLab()\n"
    )
    package, assets, runs, counts, records, *_ = run(
        scripts / "python", "-c", code, cwd=tmp_path, env=variables
    ).splitlines()
    assert Path(package).is_relative_to(scripts.parent)
    assert Path(assets) == Path(package).parent / "assets"
    assert Path(runs) == tmp_path / "runs"  # what the reader makes does not go into the environment
    from gptcore.atlas import entities
    from gptcore.exercises import exercises

    assert counts == f"{len(entities())} {len(exercises())}"
    assert records == str(sorted(path.name for path in (ROOT / "assets" / "benchmarks").iterdir()))


def test_every_asset_that_the_package_reads_is_in_the_wheel(installed):
    (place,) = (installed[0].parent).rglob("gptcore/assets")
    for folder in ("atlas", "benchmarks", "checkpoints"):
        expected = {path.name for path in (ROOT / "assets" / folder).iterdir()}
        assert {path.name for path in (place / folder).iterdir()} == expected
    assert (place / "ppo_lab.json").is_file()
