"""Numbers for people. No chapter is about it."""


def counted(count: int, what: str) -> str:
    """A count with its noun: "1 step of training", "2,000 steps of training".

    Args:
        count: how many.
        what: one of them; the first word is given an s where there are others than one.
    """
    noun, *more = what.split(" ", 1)
    return " ".join([f"{count:,}", noun if count == 1 else f"{noun}s", *more])


def timed(seconds: float) -> str:
    """A time for people, in minutes or seconds."""
    return counted(round(seconds / 60), "minute") if seconds > 90 else counted(round(seconds), "second")
