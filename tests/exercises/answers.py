"""What the tests of an exercise hold beside its own solution and stub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """Answers to one exercise, as a reader would write them into the cell."""

    right: list[str]
    """Written in another way than the solution, and right as well."""
    wrong: dict[str, str]
    """Answers of the kind people give, by a piece of the message that they must get."""
