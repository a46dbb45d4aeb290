"""The machine: device, precision, threads and memory are chosen here; who departs from it (`fused_attention`) says why.

All of the course runs on an ordinary CPU, and faster where there is more: a processor that multiplies in
bfloat16, or a GPU. Every notebook and every command calls `set_threads` first; `describe_machine` says for a
record what was chosen. Half precision is built in notebooks/06_training_tricks.ipynb. Paper: mixed precision
(arXiv 1710.03740).
"""

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
Method = TypeVar("Method", bound=Callable[..., Tensor])


def choose_device() -> torch.device:
    """The GPU (NVIDIA's, or AMD's under ROCm) if there is one, else the CPU.

    Apple's GPU (`mps`) is left alone: nobody has run the course on one, and it lacks operations that the
    course needs in float64. A Mac's CPU does all of it.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def bf16_is_fast() -> bool:
    """Whether bfloat16 matrix products beat float32 here; measured, since it can be 40x slower."""
    if choose_device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype, device="cpu")
        torch.mm(matrix, matrix)  # the first product chooses a kernel
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def choose_precision() -> Precision:
    """What the environment variable GPTCORE_PRECISION says; else bf16 where it is fast, fp16 on other GPUs, or fp32.

    Whether bf16 is fast is measured by stopwatch, which on a busy machine may come out differently from run
    to run. Who needs two runs equal to the last bit sets the variable.

    Raises:
        ValueError: if the variable holds something else.
    """
    wanted = os.environ.get("GPTCORE_PRECISION")
    if wanted:
        if wanted not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"GPTCORE_PRECISION is {wanted!r}: set it to fp32, bf16 or fp16, or not at all")
        return wanted
    if bf16_is_fast():
        return "bf16"
    return "fp16" if choose_device().type == "cuda" else "fp32"


def autocast(precision: Precision | None = None, rows: int | None = None) -> AbstractContextManager:
    """Context in which matrix products run in half precision: `precision`, or the machine's choice.

    Args:
        precision: None for what is fast here.
        rows: of the matrices that meet the weights, if known. With few of them a CPU gains nothing by half
            precision: every weight would be converted to be used once.
    """
    few = rows is not None and rows < 64 and choose_device().type == "cpu"
    precision = precision or ("fp32" if few else choose_precision())
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(choose_device().type, dtype=dtype, enabled=precision != "fp32")


def in_own_dtype(method: Method) -> Method:
    """Let a method of a model compute in the dtype of its weights, if it is not float32: autocast is for that alone."""

    @wraps(method)
    def computed(self: nn.Module, *args: Any, **settings: Any) -> Tensor:
        weight = next(self.parameters())
        if weight.dtype == torch.float32:
            return method(self, *args, **settings)
        with torch.autocast(weight.device.type, enabled=False):
            return method(self, *args, **settings)

    return cast(Method, computed)


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, in which sums and logarithms are exact enough; float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def gradient_scaler(precision: Precision | None = None) -> torch.amp.GradScaler:
    """What every backward pass in fp16 needs, lest small gradients vanish; in other precisions it does nothing."""
    return torch.amp.GradScaler(choose_device().type, enabled=(precision or choose_precision()) == "fp16")


def cores() -> int:
    """How many cores this process may use: those it may run on, or what a container's quota leaves of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that Linux grants this process's groups (`docker --cpus`); infinite if no limit is set."""
    quotas = [math.inf]
    for line in _lines(own):
        # "0::/a/b" in version 2, "4:cpu,cpuacct:/a/b" in version 1; a limit may stand at any level above.
        _, controllers, place = line.split(":", 2)
        if not controllers:
            top, files = root, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root)
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        folder = top / place.lstrip("/")
        for level in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
            try:
                limit, period = " ".join((level / file).read_text(encoding="ascii") for file in files).split()
                if int(limit) > 0:  # version 1 writes -1 where there is no limit
                    quotas.append(int(limit) / int(period))
            except (OSError, ValueError, ZeroDivisionError):  # no such group here, or "max"
                continue
    return min(quotas)


def set_threads(threads: int | None = None) -> int:
    """Prepare this process to compute: that many CPU threads, and two settings that spare a CPU time and memory.

    Args:
        threads: by default one for each core this process may use, shared with its siblings under `torchrun`.

    Raises:
        ValueError: if it is below 1, or above the number of this computer's processors: more are no faster, and
            thousands can end the process.
    """
    if threads is None:
        threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # set by torchrun
    elif threads < 1:
        raise ValueError(f"the number of threads must be at least 1, got {threads}")
    elif threads > (os.cpu_count() or 1):
        raise ValueError(
            f"the number of threads must be at most {os.cpu_count() or 1}, that of processors, got {threads}"
        )
    torch.set_num_threads(threads)
    # On a CPU, oneDNN keeps a compiled kernel for each shape of matrix it has met, a thousand of them by
    # default. Answers come in every length: without a bound the kernels fill a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    _keep_freed_memory()
    return threads


def _keep_freed_memory() -> None:
    """Let Linux's C library keep freed blocks of up to 8 MB for the next tensor.

    It would give a large tensor's memory back to the system at once and get it again, zeroed, for the next
    one: a tenth of a step's time. The price: the process does not shrink before it ends.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):  # not in musl
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
        library.mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MB of 2^20 bytes."""
    if sys.platform == "win32":
        import psutil  # comes with Jupyter; elsewhere the standard library suffices

        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":
        # Not getrusage: its maximum is handed down from the process that started this one.
        for line in _lines(Path("/proc/self/status")):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    import resource  # not there on Windows

    # ru_maxrss counts bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def describe_machine() -> dict[str, Any]:
    """What the figures of a run depend on, for its record; every value is a string or a number.

    Returns:
        `processor`, `instructions` (the widest that torch uses: "AVX2", "AVX512"; "+AMX" where it multiplies
        bfloat16 in tiles), `device`, `precision`, `threads`, `cores`, `torch`, `python`, `system`.
    """
    device = choose_device()
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(),
        "precision": choose_precision(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def _cpuinfo(name: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo, or nothing."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _lines(path: Path) -> list[str]:
    """The lines of a file of Linux's /proc; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    capability = torch.backends.cpu.get_cpu_capability()  # heeds ATEN_CPU_CAPABILITY
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX").upper()
    amx = capability == "AVX512" and "amx_bf16" in _cpuinfo("flags").split() and "AMX" in limit
    return capability + ("+AMX" if amx else "")
