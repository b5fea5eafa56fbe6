"""The part of the report on networks for which there is an exact answer."""

from typing import Any

from benchmarks.tables import table

__all__ = ["known_answers"]


def known_answers(result: dict[str, Any]) -> list[str]:
    """What each network and its peers found, the exact answer first."""
    rows = [line for row in result["rows"] for line in _lines(row)]
    head = ["problem", "answer", "what is measured", "found", "seconds of training"]
    choices = [row["choices"] for row in result["rows"] if row["choices"]]
    return ["## Networks with a known answer", table(head, rows), *choices]


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """One line for each answer to a problem."""
    return [
        [
            "" if number else row["problem"],
            side["name"],
            "" if number else "; ".join(row["quantities"]),
            "; ".join(f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" for value in side["values"]),
            "" if side["seconds"] is None else f"{side['seconds']:.1f}",
        ]
        for number, side in enumerate(row["sides"])
    ]
