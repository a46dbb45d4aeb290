"""The machine: what is chosen, what a container leaves of it, and what the record of a run says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptcore import machine
from gptcore.machine import (
    autocast,
    choose_precision,
    cores,
    describe_machine,
    gradient_scaler,
    peak_memory_mb,
    set_threads,
)


@pytest.fixture(autouse=True)
def as_measured(monkeypatch):
    monkeypatch.delenv("GPTCORE_PRECISION", raising=False)


@pytest.mark.parametrize(
    ("bf16_fast", "device", "expected"),
    [(True, "cpu", "bf16"), (False, "cpu", "fp32"), (True, "cuda", "bf16"), (False, "cuda", "fp16")],
)
def test_precision_is_bf16_where_fast_else_fp16_on_a_gpu_and_fp32_on_a_cpu(monkeypatch, bf16_fast, device, expected):
    monkeypatch.setattr(machine, "bf16_is_fast", lambda: bf16_fast)
    monkeypatch.setattr(machine, "choose_device", lambda: torch.device(device))
    assert choose_precision() == expected


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_the_environment_overrides_the_stopwatch(monkeypatch, wanted):
    monkeypatch.setattr(machine, "bf16_is_fast", lambda: pytest.fail("measured all the same"))
    monkeypatch.setenv("GPTCORE_PRECISION", wanted)
    assert choose_precision() == wanted
    assert gradient_scaler().is_enabled() == (wanted == "fp16")


def test_a_misspelt_precision_is_told(monkeypatch):
    monkeypatch.setenv("GPTCORE_PRECISION", "float32")
    with pytest.raises(ValueError, match="'float32': set it to fp32, bf16 or fp16"):
        choose_precision()


@pytest.mark.parametrize(
    ("asked", "chosen", "expected"),
    [
        (None, "fp32", torch.float32),
        (None, "bf16", torch.bfloat16),
        (None, "fp16", torch.float16),
        ("fp32", "bf16", torch.float32),
        ("bf16", "fp32", torch.bfloat16),
    ],
)
def test_autocast_computes_in_the_precision_asked_for_or_else_the_machines(monkeypatch, asked, chosen, expected):
    monkeypatch.setenv("GPTCORE_PRECISION", chosen)
    monkeypatch.setattr(machine, "choose_device", lambda: torch.device("cpu"))
    matrix = torch.ones(2, 2)
    with autocast(asked):
        assert (matrix @ matrix).dtype == expected
    assert (matrix @ matrix).dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "asked", "expected"),
    [(63, None, torch.float32), (64, None, torch.bfloat16), (1, "bf16", torch.bfloat16)],
)
def test_autocast_leaves_a_few_rows_in_float32(monkeypatch, rows, asked, expected):
    monkeypatch.setenv("GPTCORE_PRECISION", "bf16")
    monkeypatch.setattr(machine, "choose_device", lambda: torch.device("cpu"))
    matrix = torch.ones(2, 2)
    with autocast(asked, rows=rows):
        assert (matrix @ matrix).dtype == expected


def test_peak_memory_counts_megabytes():
    before = peak_memory_mb()
    assert 50 < before < 20_000
    block = torch.ones(max(0, int(before)) + 100, 2**18)  # as many MB as were ever held, and a hundred more
    assert peak_memory_mb() > before + 90
    del block
    assert peak_memory_mb() > before + 90  # it is a peak


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process inherits its parent's maximum")
def test_peak_memory_is_this_process_s_own_and_not_its_parent_s():
    say = "from gptcore.machine import peak_memory_mb; print(peak_memory_mb())"
    parent = "import subprocess, sys; held = bytearray(2**31); held[::4096] = b'1' * len(held[::4096]); "
    parent += f"sys.exit(subprocess.run([sys.executable, '-c', {say!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True)
    assert 50 < float(done.stdout) < 1500


def test_where_linux_does_not_tell_the_peak_the_system_call_does(monkeypatch):
    monkeypatch.setattr(machine, "_lines", lambda _: [])
    assert 50 < peak_memory_mb() < 100_000


def test_set_threads_sets_what_it_returns():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        assert torch.get_num_threads() == 1
        assert set_threads() == torch.get_num_threads() >= 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "message"),
    [(0, "at least 1, got 0"), (-1, "at least 1, got -1"), (100_000, "at most"), (10**30, "at most")],
)
def test_a_number_of_threads_that_cannot_be_is_refused(threads, message):
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=message):
        set_threads(threads)
    assert torch.get_num_threads() == before


def test_as_many_threads_as_processors_are_allowed_whatever_the_quota(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(machine, "_quota", lambda: 1.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert set_threads(3) == 3
    with pytest.raises(ValueError, match="at most 3, that of processors, got 4"):
        set_threads(4)


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups as Linux shows it, and the file that says which is this process's."""
    for name, text in files.items():
        place = folder / "cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # docker --cpus 1.5
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/pod/hub\n", {"pod/cpu.max": "400000 100000\n", "pod/hub/cpu.max": "max 100000\n"}, 4.0),
        ("0::/pod/hub\n", {"pod/cpu.max": "400000 100000\n", "pod/hub/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/gone\n", {}, float("inf")),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        (
            "4:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
        # Both versions in use; this process's group is not shown, but what is shown at the top is its container's.
        (
            "3:cpuacct,cpu:/docker/0a\n1:name=systemd:/docker/0a\n0::/docker/0a\n",
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n", "unified/cgroup.procs": ""},
            2.5,
        ),
        ("0::/../other\n", {"cpu.max": "300000 100000\n"}, 3.0),  # seen from within a namespace
        ("0::/\n", {"cpu.max": "150000\n"}, float("inf")),  # not as it should be
        ("0::/\n", {"cpu.max": "150000 0\n"}, float("inf")),
        ("0::/\n", {"cpu.max": "\n"}, float("inf")),
    ],
)
def test_a_containers_quota_is_read(tmp_path, own, files, expected):
    assert machine._quota(*groups(tmp_path, own, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert machine._quota(tmp_path, tmp_path / "own") == float("inf")


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.5, 2), (64.0, 3), (float("inf"), 3)])
def test_a_quota_bounds_the_cores_and_the_threads(monkeypatch, quota, expected):
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert cores() == set_threads() == expected


def test_importing_the_package_changes_nothing_in_the_process():
    code = (
        "import ctypes, os, random, sys, torch\n"
        "state = lambda: (dict(os.environ), torch.get_num_threads(), torch.random.get_rng_state().tolist(),"
        " random.getstate(), torch.get_default_dtype())\n"
        "calls = []\n"
        "load = ctypes.CDLL.__getattr__\n"
        "ctypes.CDLL.__getattr__ = lambda library, name: calls.append(name) or load(library, name)\n"
        "before = state()\n"
        "import gptcore.chain, gptcore.widgets, gptcore.exercises\n"
        "assert state() == before\n"
        "assert 'mallopt' not in calls\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_record_of_the_machine_names_what_the_figures_depend_on():
    found = describe_machine()
    assert found["precision"] == choose_precision()
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == cores()
    assert found["torch"] == torch.__version__
    assert found["instructions"].startswith(torch.backends.cpu.get_cpu_capability())
    assert all(isinstance(value, (str, int)) and value != "" for value in found.values())


def test_the_laptop_profile_is_recorded_as_such():
    code = "from gptcore.machine import describe_machine as d; print(d()['instructions'], d()['precision'])"
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | limits
    )
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert done.stdout.split() == ["AVX2", "fp32"]
