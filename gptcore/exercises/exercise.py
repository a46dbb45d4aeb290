"""What an exercise is, and the tools with which its checker looks at an answer.

A checker is a function of two arguments: the reader's answer, and a source of fresh random inputs.
It calls `answer.expect(arguments, expected, mistakes)` for one case after another, from the smallest
to the largest, so that the first one that fails is also the easiest to understand. `mistakes` gives,
for each mistake that people make, what it would have produced. The message names the mistake that
explains most of the cases that fail, instead of guessing from one.

The checker never sees the reader's function itself, only `Answer`, which hands it copies of the
arguments and turns whatever happens into words. So an answer may work in place, and it may live in
another process (see `sandbox`).
"""

import ast
import contextlib
import inspect
import math
import numbers
import random
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from traceback import extract_tb
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a right answer may be off, relative to the larger of 1 and the number: another order of operations."""


class Wrong(Exception):
    """An answer is wrong; the message tells the reader why."""


@contextlib.contextmanager
def fresh_torch() -> Iterator[None]:
    """Torch as it is when Python starts, whatever the notebook has switched off or over: an answer is judged alike.

    What notebooks switch: `torch.set_grad_enabled(False)`, `torch.set_default_dtype` and `torch.set_default_device`.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


# --- An exercise ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    """A task for the reader, and all that is needed to check the answer and to help."""

    number: str
    """Chapter and place in it, such as "3.2"."""
    title: str
    """A heading of a few words, as the notebook, the marks and all that a check says show it."""
    minutes: int
    """How long it may take a reader who has read the chapter."""
    difficulty: int
    """From 1, a line, to 5, a small project; also the points in a class."""
    task: str
    """Markdown: what to do, and why it is worth doing."""
    stub: str
    """Python: what the reader begins with. It defines `answer` and runs as it stands."""
    checker: Callable[["Answer", "Fresh"], None]
    """Raises `Wrong` for a wrong answer."""
    hints: tuple[str, ...]
    """One after another, each says more than the one before."""
    solution: str
    """Python that defines `answer`; gptcore's own source where gptcore has the piece."""
    praise: str
    """What it was good for, told when the answer is right."""
    demo: str = ""
    """Python that follows the answer in its cell and shows what the code does; it runs before anything is written."""
    seconds: float = 10.0
    """Time limit of a check, for answers that never end."""

    @property
    def chapter(self) -> int:
        """The chapter whose notebook holds the exercise: its number up to the dot."""
        return int(self.number.split(".")[0])

    @property
    def name(self) -> str:
        """The name of the function that the reader writes: the last one that the stub defines."""
        return self._function.name

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the function's arguments, in order; messages show the values of a failed case under them."""
        return tuple(argument.arg for argument in self._function.args.args)

    @property
    def _function(self) -> ast.FunctionDef:
        return [part for part in ast.parse(self.stub).body if isinstance(part, ast.FunctionDef)][-1]

    def is_the_course_s(self, found: Any) -> bool:
        """Whether an answer is a function of gptcore, as the chapter has imported it before the exercise."""
        return type(found) is types.FunctionType and str(found.__module__).split(".")[0] == "gptcore"

    def cell(self, code: str | None = None) -> str:
        """The code cell of the notebook, with the stub or with an answer in its place."""
        return "\n\n\n".join(part.strip("\n") for part in (code or self.stub, self.demo) if part.strip())

    def is_blank(self, found: Any) -> bool:
        """Whether an answer is the stub, comments and spaces aside."""
        if type(found) is not types.FunctionType:  # another object's attributes could do anything
            return found is Ellipsis
        code = found.__code__
        # A notebook compiles each statement by itself, and a function that does not see the imports beside it
        # becomes another bytecode.
        whole, alone = ast.parse(self.stub), ast.Module([self._function], [])
        return any(
            _fingerprint(code) == _fingerprint(stub)
            for tree in (whole, alone)
            for stub in compile(tree, "stub", "exec").co_consts
            if getattr(stub, "co_name", "") == self.name
        )


def _fingerprint(code: types.CodeType) -> tuple:
    """What a function does, whatever its line numbers, its comments and its documentation."""
    constants = tuple(
        _fingerprint(constant) if isinstance(constant, types.CodeType) else repr(constant)
        for constant in code.co_consts
        if not (isinstance(constant, str) and len(constant) > 20)  # documentation, and messages
    )
    return code.co_code, constants, code.co_names, code.co_varnames


def from_gptcore(function: Callable, *helpers: Callable, name: str | None = None, imports: str = "") -> str:
    """The source of a piece of gptcore as a solution, under the name that the exercise asks for.

    Args:
        function: the piece.
        helpers: functions of gptcore that it calls; their sources come first.
        name: the name in the exercise; None if it is the same.
        imports: lines that the source needs.
    """
    sources = [dedent(inspect.getsource(part)).strip() for part in (*helpers, function)]
    if name is not None:
        sources[-1] = sources[-1].replace(f"def {function.__name__}(", f"def {name}(", 1)
    return "\n\n\n".join([imports.strip(), *sources] if imports else sources)


# --- Inputs --------------------------------------------------------------------------------------


class Fresh:
    """Random inputs; equal seeds, equal inputs."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Numbers from N(0, scale^2), rounded to two digits where they are few, so that they can be read."""
        numbers = torch.randn(*shape, generator=self._generator, dtype=torch.float64, device="cpu") * scale
        return (numbers.round(decimals=2) if numbers.numel() <= 64 else numbers).to(dtype)

    def probabilities(self, *shape: int, sharpness: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positive numbers that sum to 1 along the last axis."""
        return (self.normal(*shape, dtype=torch.float64) * sharpness).softmax(dim=-1).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """A tensor of integers from low to high - 1, as torch counts; `integer` gives a single one, `high` included."""
        return torch.randint(low, high, shape, generator=self._generator, device="cpu")

    def between(self, low: float, high: float) -> float:
        """A number from low to high, to two digits, so that a message can show all of it."""
        return round(self.random.uniform(low, high), 2)

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return self.random.randint(low, high)


# --- Comparing -----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A number as Python's own, whatever library it is from; a tensor on the CPU, wherever it was."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float)):  # a fraction, say
        return float(value)
    return value


def close(found: Any, expected: Any, tolerance: float | None = None, equal_nan: bool = False) -> bool:
    """Whether two results are the same but for rounding; a list of numbers is as good as a tensor.

    Args:
        found, expected: the results.
        tolerance: relative, and absolute below 1; by default that of the dtype, or 1e-6.
        equal_nan: whether NaN equals NaN, as it does where two wrong results are compared.
    """
    found, expected = plain(found), plain(expected)
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor):
            try:
                found = torch.as_tensor(found)
            except (TypeError, ValueError, RuntimeError):
                return False
        if found.shape != expected.shape or (expected.dtype is torch.bool) != (found.dtype is torch.bool):
            return False
        tolerance = TOLERANCE.get(expected.dtype, 0.0) if tolerance is None else tolerance
        a, b = found.detach().double(), expected.detach().double()
        same = b.isfinite() & ((a - b).abs() <= tolerance * b.abs().clamp(min=1)) | (a == b)
        if equal_nan:
            same |= a.isnan() & b.isnan()
        return bool(same.all())
    if isinstance(found, Tensor):
        if isinstance(expected, (bool, int, float)) and found.numel() != 1:
            return False
        found = found.tolist()
    if isinstance(expected, bool) or isinstance(found, bool):
        return isinstance(found, (bool, int)) and isinstance(expected, (bool, int)) and found == expected
    if isinstance(expected, (int, float)):
        if not isinstance(found, (int, float)):
            return False
        if found == expected:
            return True
        if isinstance(expected, int) and isinstance(found, int) and tolerance is None:
            return False  # a count is exact
        tolerance = 1e-6 if tolerance is None else tolerance
        try:
            near = math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an integer beyond all floats
            return False
        return near or (equal_nan and math.isnan(found) and math.isnan(expected))
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(found, (list, tuple))
            and len(found) == len(expected)
            and all(close(f, e, tolerance, equal_nan) for f, e in zip(found, expected, strict=True))
        )
    if isinstance(expected, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == expected.keys()
            and all(close(found[key], value, tolerance, equal_nan) for key, value in expected.items())
        )
    return type(found) is type(expected) and found == expected


def show(value: Any, depth: int = 0) -> str:
    """A value in a line, long ones by their shape."""
    value = plain(value)
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.numel() <= 24:
            entries = str(value.detach().tolist())
            text = re.sub(r"-?\d+\.\d+(?:e-?\+?\d+)?", lambda m: f"{float(m[0]) + 0.0:.4g}", entries)  # no -0
            return text if value.dim() else f"{text} (a tensor without axes)"
        return f"a {kind} tensor of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value + 0.0:.6g}"
    if isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values()):
        kinds = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in value.values()]
        shapes = ", ".join(f"{str(key)[:40]}: {kind}" for key, kind in list(zip(value, kinds, strict=True))[:3])
        return f"a dictionary of {len(value)} tensors ({shapes}, ...)"
    if isinstance(value, (list, tuple)) and any(isinstance(plain(part), (Tensor, float)) for part in value):
        inner = ", ".join(show(part, depth + 1) for part in value[:6]) + (", ..." if len(value) > 6 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    text = repr(value)
    return text if len(text) <= 240 else text[:236] + " ..."


# --- The reader's answer -------------------------------------------------------------------------


def copied(value: Any) -> Any:
    """A copy of an argument, so that an answer that works in place harms nobody."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [copied(part) for part in value]
    if isinstance(value, tuple):
        return tuple(copied(part) for part in value)
    return deepcopy(value)


def gradient_of(function: Callable, arguments: Sequence[Any], position: int) -> Tensor:
    """The gradient of a function's scalar result with respect to one of its arguments."""
    arguments = list(arguments)
    arguments[position] = arguments[position].requires_grad_(True)
    result = function(*arguments)
    if not isinstance(result, Tensor) or not result.requires_grad:
        return torch.zeros_like(arguments[position]).detach()
    (gradient,) = torch.autograd.grad(result.sum(), arguments[position], allow_unused=True)
    return torch.zeros_like(arguments[position]).detach() if gradient is None else gradient


def describe(error: BaseException) -> str:
    """An error of the reader's code in a line, and the line that raised it."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not _is_of_a_library(frame.filename)]
    text = str(error).strip().split("\n")[0][:300]
    where = f"\n    in the line: {frames[-1].line}" if frames and frames[-1].line else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{where}"


def _is_of_a_library(filename: str) -> bool:
    return filename.startswith(str(Path(__file__).parent.parent)) or "site-packages" in filename or "torch" in filename


class Either:
    """The results of several ways to make a mistake, all of which one message names.

    A class of its own: a list or a tuple is itself a result in many exercises.
    """

    def __init__(self, *results: Any) -> None:
        self.results = results


def by_message(faults: Mapping[str, str], faulty: Callable[[str], Any]) -> dict[str, Either]:
    """The mistakes that `Answer.expect` looks for, where one function computes all of their results.

    Args:
        faults: for each fault, by the name under which `faulty` knows it, its message; faults may share one.
        faulty: computes the result with a fault; called only once an answer has failed.
    """
    return {
        message: Either(*(partial(faulty, fault) for fault, text in faults.items() if text == message))
        for message in faults.values()
    }


class Failure(NamedTuple):
    """A case in which the reader's result was not the expected one."""

    difference: str
    """What `difference` says about both results."""
    details: str
    """The arguments and both results."""
    matching: list[str]
    """The mistakes that would have given the reader's result."""


class Answer:
    """The reader's function, as checkers see it."""

    def __init__(self, exercise: Exercise, found: Any) -> None:
        self.name, self.parameters = exercise.name, exercise.parameters
        self._found = found
        self.begin()

    def begin(self, diagnosing: bool = False) -> None:
        """Forget what was found; `diagnosing`: go through all cases to find the reason."""
        self.diagnosing = diagnosing
        self._failures: list[Failure] = []
        self._excluded: set[str] = set()  # mistakes that would have spoiled a case that is right

    def _invoke(self, arguments: Sequence[Any], gradient: int | None = None) -> Any:
        """Call the function, or compute a gradient of it. Other kinds of answer have their own way."""
        arguments = [copied(argument) for argument in arguments]
        try:
            return self._found(*arguments) if gradient is None else gradient_of(self._found, arguments, gradient)
        except Exception as error:
            raise Wrong(f"the code stopped with {describe(error)}") from error

    def __call__(self, *arguments: Any, gradient: int | None = None) -> Any:
        """The reader's result for these arguments, or its gradient with respect to argument number `gradient`.

        Raises:
            Wrong: if the code raises, or returns nothing.
        """
        try:
            result = self._invoke(arguments, gradient)
        except Wrong as wrong:
            self.conclude()  # smaller cases first
            raise Wrong(f"{wrong}\n{self.example(arguments)}") from None
        if result is None or result is Ellipsis:
            self.conclude()
            raise Wrong(
                f"`{self.name}` returns nothing. Is there a `return` on every way through it?\n{self.example(arguments)}"
            )
        return plain(result)

    def example(self, arguments: Sequence[Any], **more: Any) -> str:
        """Lines that show the arguments, and what else is named."""
        shown = dict(zip(self.parameters, arguments, strict=False)) | more
        return "\n".join(f"    {name} = {show(value)}" for name, value in shown.items())

    def expect(
        self,
        arguments: Sequence[Any],
        expected: Any,
        mistakes: Mapping[str, Any] | None = None,
        tolerance: float | None = None,
        gradient: int | None = None,
    ) -> Any:
        """Call the answer and compare.

        At first the first case that is wrong ends the check. Then the check is run again to find out why: now
        all cases are gone through and kept for `conclude`, since in small ones many mistakes look alike.

        Args:
            arguments: what to call it with.
            expected: the right result.
            mistakes: for each message the result of the mistake that it names, or a function without
                arguments that computes it; `Either` of those where there are several ways to make it.
            tolerance: relative, and absolute below 1; by default that of the dtype, or 1e-6.
            gradient: compare the gradient with respect to this argument instead of the result.

        Returns:
            the reader's result.

        Raises:
            Wrong: if the result is wrong and the reason is not looked for yet.
        """
        found = self(*arguments, gradient=gradient)
        right = close(found, expected, tolerance)
        if right and not self.diagnosing:
            return found
        matches: dict[str, bool] = {}
        for message, mistake in (mistakes or {}).items():
            for result in mistake.results if isinstance(mistake, Either) else (mistake,):
                with contextlib.suppress(Exception):  # a mistake may be impossible with these shapes
                    result = result() if callable(result) else result
                    if result is not None:
                        same = close(found, result, tolerance, equal_nan=True)
                        matches[message] = matches.get(message, False) or same
        if right:
            self._excluded.update(message for message, same in matches.items() if not same)
            return found
        details = self.example(arguments, expected=expected, yours=found)
        matching = [message for message, same in matches.items() if same]
        self._failures.append(Failure(difference(found, expected), details, matching))
        if not self.diagnosing:
            self.conclude()
        return found

    def conclude(self) -> None:
        """Say what is wrong, if any case was: the mistake that explains most of them, and the first one as an example.

        Raises:
            Wrong: if a case was wrong.
        """
        if not self._failures:
            return
        failures, self._failures = self._failures, []
        first = failures[0]
        counts = Counter(message for failure in failures for message in failure.matching)
        counts = Counter({m: n for m, n in counts.items() if m not in self._excluded}) or counts
        if counts:
            message, count = counts.most_common(1)[0]  # of equally many the one that the checker names first
            if count > len(failures) / 2:
                example = next(failure for failure in failures if message in failure.matching)
                raise Wrong(f"{message}\n{example.details}")
        raise Wrong(f"{first.difference}\n{first.details}")


def difference(found: Any, expected: Any) -> str:
    """In what way two results differ, in words."""
    found, expected = plain(found), plain(expected)
    if isinstance(found, types.GeneratorType):
        return "that is a generator; return a list of what it yields."
    if isinstance(found, Tensor) and found.dim() == 0 and not isinstance(expected, Tensor):
        found = found.item()
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor):
            return f"a tensor of shape {tuple(expected.shape)} is expected, not {type(found).__name__}."
        if found.shape != expected.shape:
            return f"the shape is {tuple(found.shape)}, expected is {tuple(expected.shape)}."
        if (found.dtype is torch.bool) != (expected.dtype is torch.bool):
            return f"the dtype is {found.dtype}, expected is {expected.dtype}."
        odd = ~found.double().isfinite() & (found.double() != expected.double()) & ~expected.double().isnan()
        if odd.any():
            kind = "NaN" if found[odd].isnan().any() else "infinity where none should be"
            return (
                f"the result holds {kind}. It comes from 0 / 0, the logarithm of 0, infinity minus infinity, "
                "0 times infinity, or exp of a large number."
            )
        if expected.numel() == 1:
            return f"the number is not the expected one{_too_alike(found, expected)}."
        wrong = ((found.double() - expected.double()).abs() > 1e-9).sum().item()
        kind = "entries" if expected.dtype is torch.bool else "numbers"
        return f"the shape is right, but {wrong} of {expected.numel()} {kind} are not{_too_alike(found, expected)}."
    if isinstance(expected, (tuple, list)) and isinstance(found, (tuple, list)):
        if len(found) != len(expected):
            if isinstance(expected, list):
                return f"the list should have {len(expected)} entries, yours has {len(found)}."
            return f"{len(expected)} results are expected, not {len(found)}."
        if isinstance(expected, tuple):
            first = next(i for i in range(len(found)) if not close(found[i], expected[i]))
            return f"result {first + 1} of {len(found)}: {difference(found[first], expected[first])}"
    if isinstance(expected, tuple) and not isinstance(found, (tuple, list)):
        return f"{len(expected)} results are expected, as a tuple, not one {type(found).__name__}."
    if isinstance(found, float) and math.isnan(found):
        return "the result is NaN. It comes from 0 / 0, the logarithm of 0, or infinity minus infinity."
    if isinstance(expected, (int, float)) and not isinstance(found, (int, float, Tensor)):
        return f"a number is expected, not {type(found).__name__}."
    return "the result is not the expected one."


def _too_alike(found: Tensor, expected: Tensor) -> str:
    """How far two tensors lie apart, if they look the same when they are shown."""
    if not expected.is_floating_point() or show(found) != show(expected):
        return ""
    return f": the largest difference is {(found.double() - expected.double()).abs().nan_to_num(0).max().item():.1g}"
