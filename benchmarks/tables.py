"""What the parts of the report share: tables and numbers in Markdown."""

import statistics
from collections.abc import Iterable

__all__ = ["median_and_range", "numbers", "table"]


def median_and_range(values: list[float]) -> str:
    """The median, and in brackets the smallest and the largest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def numbers(values: Iterable[float]) -> str:
    """Numbers with three digits."""
    return " ".join(f"{value:.3f}" for value in values)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table with its head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
