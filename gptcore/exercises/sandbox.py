"""A process of its own for one returned notebook: what runs inside it, and how the marker talks to it.

The marker trusts nothing in here. Only the cells of the notebook run in this process; the checkers
stay in the marker's, and ask this one to call a function with some arguments. So an altered check, or
code that looks for its checker, finds nothing. What comes back is JSON, which can do nothing but be
wrong.

Where the system allows it (Linux), the process has no network, sees no other process, and can write
in its own copy of the folder only. Everywhere it has limits on time and memory.
"""

import base64
import contextlib
import ctypes
import json
import math
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcore.exercises import MARKING, exercises
from gptcore.exercises.exercise import Answer, Exercise, Wrong, describe, fresh_torch, gradient_of, plain
from gptcore.exercises.returned import read_cells

LONGEST_MESSAGE = 64 * 2**20
MOST_PROCESSES = 64
"""A notebook that starts more processes than this is stopped."""

_DTYPES = {str(dtype): dtype for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}
_DTYPES |= {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


class SandboxError(Exception):
    """The process can no longer be asked; the message says why."""


# --- Values as JSON ------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Numbers, texts, bytes, tensors, and lists, tuples and dictionaries of these; of others the type's name."""
    value = plain(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if value is Ellipsis:
        return {"kind": "blank"}
    if isinstance(value, Tensor) and str(value.dtype) in _DTYPES and value.layout is torch.strided:
        flat = value.detach().cpu().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        text = base64.b64encode(data).decode()
        return {"kind": "tensor", "dtype": str(value.dtype), "shape": list(value.shape), "data": text}
    if isinstance(value, bytes):
        return {"kind": "bytes", "data": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return {"kind": "tuple" if isinstance(value, tuple) else "list", "data": [to_json(part) for part in value]}
    if isinstance(value, Mapping):
        return {"kind": "dict", "data": [[to_json(key), to_json(part)] for key, part in value.items()]}
    return {"kind": "other", "data": type(value).__name__}


def from_json(value: Any) -> Any:
    """What `to_json` wrote.

    Raises:
        Wrong: for a value of another type.
        ValueError, KeyError, TypeError: if it is something else.
    """
    if not isinstance(value, dict):
        return value
    kind = value["kind"]
    if kind == "blank":
        return Ellipsis
    data = value["data"]
    if kind == "tensor":
        raw = bytearray(base64.b64decode(data, validate=True))
        dtype, shape = _DTYPES[value["dtype"]], [int(length) for length in value["shape"]]
        if math.prod(shape) * torch.empty(0, dtype=dtype).element_size() != len(raw) or min(shape, default=0) < 0:
            raise ValueError("a tensor has as many numbers as its shape says")
        if not raw:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)
    if kind == "bytes":
        return base64.b64decode(data, validate=True)
    if kind in ("list", "tuple"):
        parts = [from_json(part) for part in data]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {from_json(key): from_json(part) for key, part in data}
    raise Wrong(f"the result is of type {str(data)[:60]}; a tensor, a number or a list is expected.")


# --- The marker's side ---------------------------------------------------------------------------


@cache
def isolation() -> tuple[str, ...]:
    """The command that cuts a process off as far as this system allows; empty if it does not."""
    strong = ("--user", "--map-root-user", "--net", "--pid", "--ipc", "--mount", "--fork", "--kill-child")
    weak = ("--net", "--pid", "--fork", "--kill-child")
    for options in ((*strong, "--mount-proc"), strong, weak):
        command = ("unshare", *options)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([*command, "true"], capture_output=True, timeout=10).returncode == 0:
                return command
    return ()


def descendants(process: int) -> list[int]:
    """All processes that a process has started, and those they have, where the system tells (Linux)."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.parent.name))
    found = list(children.get(process, ()))
    for one in found:  # grows while we go through it
        found += children.get(one, ())
    return found


class Sandbox:
    """A returned notebook that was run in a process of its own and now answers calls.

    Args:
        notebook: the file; its folder is the copy in which it may write.
        numbers: the exercises that are asked for.
        seconds: limit for running all cells.
        memory_gb: limit of memory.
    """

    def __init__(self, notebook: Path, numbers: Sequence[str], seconds: float, memory_gb: float) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        }
        root = Path(__file__).parents[2]
        environment |= {
            MARKING: "1",
            "PYTHONPATH": str(root),
            "HOME": str(notebook.parent),
            "TMPDIR": str(notebook.parent),
            "IPYTHONDIR": str(notebook.parent / ".ipython"),
            "MPLCONFIGDIR": str(notebook.parent / ".matplotlib"),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "PYTHONUTF8": "1",  # so that a cell can print and write Chinese whatever the marker's locale is
            "PYTHONDONTWRITEBYTECODE": "1",
            # No GPU: everybody's answers are computed on the same device, and none can take another's memory.
            "CUDA_VISIBLE_DEVICES": "-1",
            "HIP_VISIBLE_DEVICES": "-1",
        }
        self._received = b""  # and not yet read as a reply
        self._next_count = 0.0  # when its processes are counted again
        self.process = subprocess.Popen(
            [*isolation(), sys.executable, "-m", "gptcore.exercises.sandbox"],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin is not None  # both are pipes
        assert self.process.stdout is not None
        self._pipes = (self.process.stdin, self.process.stdout)
        place = os.fsencode(notebook).decode("utf-8", "surrogateescape")  # as Python there spells its name
        task = {"notebook": place, "numbers": list(numbers), "memory": memory_gb, "seconds": seconds}
        try:
            self.ask("hello", 120)  # torch is being loaded, however busy the machine is
            self.states: dict[str, Any] = self.ask(task, seconds)
        except BaseException:
            self.close()
            raise

    def ask(self, message: Any, seconds: float) -> Any:
        """Send a message and wait for the reply.

        Raises:
            SandboxError: if none comes.
        """
        deadline = time.monotonic() + seconds
        unsent = json.dumps(message).encode() + b"\n"
        requests, replies = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(requests, False)  # a process that does not read shall not stop us
        while unsent or b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SandboxError(f"it had not ended after {seconds:.0f} seconds.")
            readable, writable, _ = select.select([replies], [requests] if unsent else [], [], min(left, 0.1))
            try:
                if writable:
                    unsent = unsent[os.write(requests, unsent[: 1 << 16]) :]
                if readable:
                    piece = os.read(replies, 1 << 20)
                    if not piece:
                        raise SandboxError("the notebook ended its own process.")
                    self._received += piece
            except BlockingIOError:
                continue
            except OSError as error:
                raise SandboxError("the notebook ended its own process.") from error
            if len(self._received) > LONGEST_MESSAGE:
                raise SandboxError("the result is too large.")
            if time.monotonic() > self._next_count:
                self._next_count = time.monotonic() + 0.1
                if len(descendants(self.process.pid)) > MOST_PROCESSES:
                    raise SandboxError("it starts one process after another.")
        line, _, self._received = self._received.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SandboxError("the notebook interferes with its marking.") from error

    def close(self) -> None:
        """End the process and all that it has started."""
        for _ in range(20):
            started = descendants(self.process.pid)
            for process in (*started, self.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            if not started:
                break
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()


class RemoteAnswer(Answer):
    """An answer that lives in a sandbox; checkers do not see the difference."""

    def __init__(self, exercise: Exercise, sandbox: Sandbox) -> None:
        super().__init__(exercise, None)
        self._number, self._sandbox = exercise.number, sandbox
        self.seconds = exercise.seconds
        self.deadline = time.monotonic() + self.seconds

    def _invoke(self, arguments: Sequence[Any], gradient: int | None = None) -> Any:
        call = {"number": self._number, "arguments": to_json(list(arguments)), "gradient": gradient}
        try:
            reply = self._sandbox.ask(call, max(0.0, self.deadline - time.monotonic()))
        except SandboxError as error:
            if time.monotonic() >= self.deadline:  # not only the last call took this time
                raise SandboxError(f"it had not ended after {self.seconds:.0f} seconds.") from error
            raise
        try:
            if "error" in reply:
                raise Wrong(f"the code stopped with {str(reply['error'])[:500]}")
            return from_json(reply["result"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise SandboxError("the notebook interferes with its marking.") from error


# --- Inside --------------------------------------------------------------------------------------


class CellTimeUp(BaseException):
    """Raised inside a cell that takes too long."""


def main() -> None:
    """Run the notebook that the marker names, then answer its calls until it closes the pipe."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdin, sys.stdout, sys.stderr = (open(os.devnull, mode) for mode in "rww")  # noqa: SIM115
    torch.set_num_threads(1)
    known = exercises()

    def reply(value: Any) -> None:
        try:
            text = json.dumps(value)
        except ValueError as error:  # a number of thousands of digits
            text = json.dumps({"error": describe(error)})
        replies.write(text.encode() + b"\n")
        replies.flush()

    requests.readline()
    reply("ready")
    task = json.loads(requests.readline())
    notebook = Path(task["notebook"])
    os.chdir(notebook.parent)
    tempfile.tempdir = str(notebook.parent)
    _cut_off(notebook.parent)
    _limit(task["memory"])
    try:
        names, errors = _run_cells(notebook, task["seconds"])
    except Exception as error:
        reply({"error": f"the notebook cannot be read ({type(error).__name__})"})
        return
    states: dict[str, Any] = {"errors": errors}
    for number in task["numbers"]:
        found = names.get(known[number].name, Ellipsis)
        blank = known[number].is_blank(found) or known[number].is_the_course_s(found)
        states[number] = "blank" if blank else "there" if callable(found) else type(found).__name__
    reply(states)
    for line in requests:
        call = json.loads(line)
        reply(_answer_call(names.get(known[call["number"]].name), call))


@fresh_torch()
def _answer_call(found: Any, call: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = from_json(call["arguments"])
        position = call["gradient"]
        return {"result": to_json(found(*arguments) if position is None else gradient_of(found, arguments, position))}
    except Exception as error:
        return {"error": describe(error)}


def _run_cells(notebook: Path, seconds: float) -> tuple[dict[str, Any], int]:
    """Run all code cells one after the other; a cell that fails does not stop the others.

    Returns:
        the names that they left, and how many cells failed.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    sources = [cell.source for cell in read_cells(notebook) if cell.is_code]
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.showtraceback = shell.showsyntaxerror = lambda *_, **__: None
    shell.enable_gui = lambda *_, **__: None  # what `%matplotlib inline` asks for
    sys.path.insert(0, str(notebook.parent))  # for what was handed in beside the notebook

    def too_long(*_: Any) -> None:
        raise CellTimeUp

    errors = 0
    end = time.monotonic() + seconds
    for source in sources:
        if hasattr(signal, "SIGALRM"):
            limit = max(0.5, (end - time.monotonic()) / 3)  # so that time is left for the cells below
            signal.signal(signal.SIGALRM, too_long)
            signal.setitimer(signal.ITIMER_REAL, limit, 0.2)  # again and again: a bare `except` may catch it
        try:
            errors += not shell.run_cell(source, store_history=False).success
        except BaseException:
            errors += 1
        finally:
            if hasattr(signal, "SIGALRM"):
                with contextlib.suppress(CellTimeUp):
                    signal.setitimer(signal.ITIMER_REAL, 0)
    return shell.user_ns, errors


def _limit(memory_gb: float) -> None:
    """Limits that the system keeps, where it has them."""
    with contextlib.suppress(ImportError):
        import resource  # not there on Windows

        limits = {"RLIMIT_DATA": int(memory_gb * 2**30), "RLIMIT_FSIZE": 256 * 2**20, "RLIMIT_CORE": 0}
        for name, limit in limits.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (limit, limit))


def _cut_off(folder: Path) -> None:
    """Make everything but the folder read-only, if this process has its own view of the files (see `isolation`)."""
    if sys.platform != "linux" or "--mount" not in isolation_of_this_process():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    read_only, remount, bind = 1, 32, 4096  # of sys/mount.h
    # What an ordinary user may not take away from a mount has to be asked for again.
    flags = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
    own = str(folder.resolve()).encode()
    libc.mount(own, own, None, bind, None)
    for line in Path("/proc/self/mounts").read_bytes().splitlines():
        _, place, _, options, *_ = line.split()
        place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), place)  # a space is written as \040
        kept = sum(flags.get(option, 0) for option in options.decode().split(","))
        if place != own and place.split(b"/")[1] not in (b"proc", b"sys"):
            libc.mount(None, place, None, remount | bind | read_only | kept, None)
    os.chdir(folder)  # into the copy as it is now mounted
    # Without the rights of an administrator nobody can undo this, not even by starting another program.
    drop_from_bounding_set, version_3 = 24, 0x20080522  # of linux/prctl.h and linux/capability.h
    for capability in range(64):
        libc.prctl(drop_from_bounding_set, capability, 0, 0, 0)
    libc.capset(struct.pack("Ii", version_3, 0), bytes(24))


def isolation_of_this_process() -> str:
    """Which of `unshare`'s options brought this process here, in words; empty if none."""
    with contextlib.suppress(OSError):
        # Process 1 in a world of its own, with user ids of its own: the strong form.
        if os.getpid() == 1 and Path("/proc/self/uid_map").read_text().split()[2] == "1":
            return "--mount"
    return ""


if __name__ == "__main__":
    main()
