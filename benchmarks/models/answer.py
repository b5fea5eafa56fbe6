"""What a part of the benchmark of networks gives back."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

__all__ = ["Answer", "Side", "timed"]

T = TypeVar("T")


class Side(NamedTuple):
    """One way to the answer.

    Attributes:
        name: in words.
        values: one for each quantity of the answer.
        seconds: of training; None for what needs none.
    """

    name: str
    values: list[float]
    seconds: float | None = None


class Answer(NamedTuple):
    """A problem, the exact answer and what was found.

    Attributes:
        problem: in words.
        quantities: what is measured, with units.
        sides: the exact answer first.
        choices: settings that were chosen on other seeds, in words.
    """

    problem: str
    quantities: list[str]
    sides: list[Side]
    choices: str = ""


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """A result and the seconds that it took."""
    began = time.monotonic()
    return function(), round(time.monotonic() - began, 2)
