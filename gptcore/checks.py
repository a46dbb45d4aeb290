"""Checks of settings: what cannot work is refused where it is written, by its name.

Without them a wrong number is noticed in some product of matrices far away, or never. A field may be
None if that is its default. No chapter is about it.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any


def _values(settings: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(settings, name)
        if value is not None or type(settings).__dataclass_fields__[name].default is not None:
            yield name, value


def whole_numbers(settings: Any, *names: str, at_least: int | None = None) -> None:
    """Refuse fields of a dataclass that are no integers, or too small.

    Raises:
        ValueError: with name, bound and value.
    """
    for name, value in _values(settings, names):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}")


def numbers(
    settings: Any,
    *names: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> None:
    """Refuse fields of a dataclass that are no numbers, NaN, infinite unless that is allowed, or out of bounds.

    Raises:
        ValueError: with name, bounds and value.
    """
    for name, value in _values(settings, names):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number, got {value!r}")
        bounds = []
        if at_least is not None:
            bounds.append((f"at least {at_least}", value >= at_least))
        if above is not None:
            bounds.append((f"above {above}", value > above))
        if at_most is not None:
            bounds.append((f"at most {at_most}", value <= at_most))
        if not all(kept for _, kept in bounds):
            raise ValueError(f"{name} must be {' and '.join(words for words, _ in bounds)}, got {value}")
        if math.isnan(value) or (finite and math.isinf(value)):
            raise ValueError(f"{name} must be a finite number, got {value}")


def choice(settings: Any, name: str, choices: Collection[str]) -> None:
    """Refuse a field of a dataclass that is none of some words.

    Raises:
        ValueError: with name, value and words.
    """
    for _, value in _values(settings, [name]):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}: choose {' or '.join(map(repr, choices))}")
