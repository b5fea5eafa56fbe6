"""The part of the report on networks for which there is an exact answer."""

from typing import Any

from benchmarks.tables import table

__all__ = ["known_answers", "wide"]


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


def wide(result: dict[str, Any]) -> list[str]:
    """How well posteriors of long, noisy observations fit and cover, by case."""
    order = {name: i for i, name in enumerate(dict.fromkeys(row["case"] for row in result["rows"]))}
    rows = [
        [
            row["case"],
            f"{row['entries']}",
            f"{row['simulations']:,}",
            f"{row['package']}, {row['way']}" + (f" ({row['discriminants']})" if row.get("discriminants") else ""),
            f"{row['log_density']:.2f} ± {row['log_density_error']:.2f}",
            f"{row['coverage_68']:.0%}{'' if row.get('inside_prior', True) else ' *'}",
            f"{row['above_median']:.0%}",
            f"{row['seconds_each']:.2f} each" if "seconds_each" in row else f"{row['seconds']:.0f}",
        ]
        for row in sorted(result["rows"], key=lambda row: (order[row["case"]], row["simulations"], row["package"]))
    ]
    words = (
        "A thousand fresh simulations each: mean log-density of the truth in nats; share of 68 % intervals that hold "
        "it and share of truths above the median, of the parameter in which that is farthest off (3 % by chance). "
        "In brackets: how many discriminants were kept. The exact likelihood by MCMC (tempered) for the first 200 of "
        "them: what can be reached with more simulations. Defaults of both packages. * of draws that may lie outside "
        "the prior: those within it did not come in 300 seconds, by rejection."
    )
    head = ["case", "numbers", "simulations", "network", "log-density", "coverage", "above median", "training [s]"]
    return ["## Long, noisy observations", words, table(head, rows)]
