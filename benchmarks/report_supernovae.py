"""What the report says of supernova cosmology."""

from typing import Any

from benchmarks.tables import numbers, table

__all__ = ["union3"]

_METHODS = {"npe": "NPE, corrected", "vi": "VI, corrected", "emcee": "emcee"}


def union3(result: dict[str, Any]) -> list[str]:
    """Posteriors of the Union3 supernovae by three methods and by quadrature, what they cost and how they agree."""
    parts = [
        "## Cosmology from the Union3 supernovae",
        "Quadrature integrates the offset of the magnitudes out and is the reference of the cosmological parameters. "
        "Seconds are of the first observation, simulations and training included, and of each one after it.",
    ]
    for row in result["rows"]:
        known = row["quadrature"]["quantiles"]
        head = ["flat " + row["model"], *(f"{name}: 16 %, 50 %, 84 %" for name in row["parameters"])]
        head += ["seconds", "seconds, each further", "likelihood calls", "efficiency", "Pareto k"]
        exact = ["quadrature", *(numbers(known[name]) if name in known else "" for name in row["parameters"])]
        rows = [[*exact, "", "", f"{row['quadrature']['points']:,}", "", ""]]
        rows += [_method(row, name) for name in _METHODS]
        agreement = ", ".join(f"{pair} {value:.3f}" for pair, value in row["c2st"].items())
        parts += [table(head, rows), f"C2ST of {row['draws']:,} draws each: {agreement}. {_break_even(row)}"]
        parts += [_published(row, name, interval) for name, interval in row["published"].items()]
    return parts


def _method(row: dict[str, Any], name: str) -> list[str]:
    found = row[name]
    columns = zip(*found["quantiles"], strict=True)
    cells = [_METHODS[name], *(numbers(column) for column in columns)]
    cells += [f"{found['seconds']:.0f}", f"{found['seconds_each_further']:.1f}", f"{found['likelihood_calls']:,}"]
    weights = [f"{found[key]:.2f}" for key in ("efficiency", "pareto_k")] if "pareto_k" in found else ["", ""]
    return cells + weights


def _break_even(row: dict[str, Any]) -> str:
    """The number of observations from which on training once is less than a chain for each."""
    npe, chain = row["npe"], row["emcee"]["seconds_each_further"]
    saved = chain - npe["seconds_each_further"]
    if saved <= 0:
        return "A chain costs less than a correction of NPE, however many observations there are."
    once = npe["seconds"] - npe["seconds_each_further"]
    return f"NPE takes less time than emcee from {int(once / saved) + 1} observations on."


def _published(row: dict[str, Any], name: str, interval: list[float]) -> str:
    away = row["npe"]["quantiles"][1][row["parameters"].index(name)] - interval[1]
    return f"Flat {row['model']}: the median of {name} by NPE is {away:+.4f} from the published {interval[1]:g}."
