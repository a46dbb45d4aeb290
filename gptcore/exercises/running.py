"""Run a check so that nothing the reader's code does can hurt the notebook.

On Linux the check runs in a forked copy of the process: an endless loop, even one inside compiled
code, is killed at the time limit, and so is whatever else it started; an exit ends the copy only.
Elsewhere it runs in a thread, which is left behind at the limit. Either way what the code prints is
caught.

Where torch sees a GPU a copy cannot do everything: autograd refuses to work in it once the process has
computed a gradient, be it on the CPU, and so does the GPU. There the copy runs first all the same, since
endless loops and exits show in it, and what it praises is right; what it does not is run again in a thread.
"""

import contextlib
import ctypes
import io
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]
"""What is run; its result must be JSON."""


class TimeUp(BaseException):
    """Raised inside a check in a thread when its time is up; no `except Exception` stops it."""


def run_limited(work: Work, seconds: float, holds: Callable[[Any], bool] = lambda _: True) -> tuple[str, Any, str]:
    """Run something for a limited time.

    Args:
        work: what is run.
        seconds: the limit.
        holds: whether a result of `work` can be trusted even if torch refused to compute something. One that
            cannot, and an error, are found once more in a thread if torch sees a GPU.

    Returns:
        what happened: "done", "time" (the limit was reached), "exit" (the process was ended) or "error";
        the result, or the error in words, or None;
        what was printed.
    """
    if not can_fork():
        return _in_a_thread(work, seconds)
    happened, result, printed = _in_a_copy(work, seconds)
    doubtful = happened == "error" or (happened == "done" and not holds(result))
    if doubtful and sees_a_gpu():
        return _in_a_thread(work, seconds)
    return happened, result, printed


def can_fork() -> bool:
    """Whether a copy of this process could compute: not on Windows or macOS."""
    return sys.platform == "linux"


def sees_a_gpu() -> bool:
    """Whether torch has a device beside the CPU, of whatever make, used or not: that alone hampers a copy."""
    return torch.cuda.is_available() or torch.accelerator.is_available()


def _in_a_copy(work: Work, seconds: float) -> tuple[str, Any, str]:
    with tempfile.TemporaryFile() as printed:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the copy uses none
            child = os.fork()
        if child == 0:
            _be_the_copy(work, writing, printed.fileno())
        os.close(writing)
        try:
            answer = _read_line(reading, time.monotonic() + seconds)
        finally:
            os.close(reading)
            for end in (os.killpg, os.kill):  # with what it started, and if it has no group yet
                with contextlib.suppress(OSError):
                    end(child, signal.SIGKILL)
            os.waitpid(child, 0)
        printed.seek(0)
        text = printed.read(20_000).decode(errors="replace")
    if answer is None:
        return "time", None, text
    try:
        happened, result = json.loads(answer)
    except ValueError:
        return "exit", None, text
    return happened, result, text


def _be_the_copy(work: Work, writing: int, printed: int) -> None:
    """Do the work in the forked process and end it; never returns."""
    try:
        os.setsid()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdin = io.StringIO()
        sys.stdout = sys.stderr = os.fdopen(os.dup(printed), "w", 1, "utf-8", "replace")
        torch.set_num_threads(1)  # the other threads were not copied
        torch.set_default_device("cpu")  # as the inputs, whatever the notebook has set
        torch.set_default_dtype(torch.float32)
        try:
            result = ["done", work()]
        except SystemExit:
            result = ["exit", None]
        except BaseException as error:
            result = ["error", f"{type(error).__name__}: {error}"]
        sys.stdout.flush()
        message = (json.dumps(result) + "\n").encode()
        while message:
            message = message[os.write(writing, message) :]
    finally:
        os._exit(0)


def _read_line(reading: int, deadline: float) -> bytes | None:
    """A line from a pipe; what came before the end if the other side closes it; None if time is up."""
    received = b""
    while not received.endswith(b"\n"):
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        received += piece
    return received


def _in_a_thread(work: Work, seconds: float) -> tuple[str, Any, str]:
    printed = io.StringIO()
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append(("done", work()))
        except TimeUp:
            pass
        except (SystemExit, KeyboardInterrupt):
            outcome.append(("exit", None))
        except BaseException as error:
            outcome.append(("error", f"{type(error).__name__}: {error}"))

    state, python_state, dtype = torch.random.get_rng_state(), random.getstate(), torch.get_default_dtype()
    thread = threading.Thread(target=target, daemon=True)
    stdin, sys.stdin = sys.stdin, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        thread.start()
        assert thread.ident is not None  # it has been started
        thread.join(seconds)
        for _ in range(10):  # a bare `except:` may catch it once or twice
            if not thread.is_alive():
                break
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
            thread.join(0.05)
    sys.stdin = stdin
    torch.random.set_rng_state(state)
    random.setstate(python_state)
    torch.set_default_dtype(dtype)
    happened, result = outcome[0] if outcome else ("time", None)
    return happened, result, printed.getvalue()[:20_000]
