"""What the report says of posteriors by all methods against Markov chains."""

from typing import Any

from benchmarks.tables import table

__all__ = ["against_mcmc"]

_TITLES = {
    "k2_24": "Two planets of K2-24 from 32 radial velocities",
    "union3": "Flat wCDM from the Union3 supernovae, offset free",
}


def against_mcmc(result: dict[str, Any]) -> list[str]:
    """A table for each problem: cost once and for each observation, independent draws a second, C2ST."""
    parts = [
        "## Posteriors by all methods, against emcee and Hamiltonian Monte Carlo on the exact likelihood",
        "Seconds are those of simulating and training, once, and of each observation after that. Independent draws: "
        "all of a network (which may be biased: see the C2ST), the effective number under importance weights, the "
        "effective sample size of a chain. C2ST is to a run of emcee three times as long, thinned by its "
        "autocorrelation time. The last column says from how many observations on a method takes less time than emcee.",
    ]
    for row in result["rows"]:
        reference = row["reference"]
        head = ["method", "once [s]", "each observation [s]", "likelihood calls each"]
        head += ["independent draws", "draws a second", "C2ST", "pays from"]
        methods = [_method(name, found, row["methods"]["emcee"]) for name, found in row["methods"].items()]
        parts += [
            f"### {_TITLES[row['case']]}: {row['parameters']} parameters, {row['simulations']:,} simulations",
            table(head, methods),
            f"The reference has {reference['independent']:,} thinned draws ({reference['verdict']}); its halves have a "
            f"C2ST of {reference['floor']:.3f}.",
        ]
    return parts


def _method(name: str, found: dict[str, Any], emcee: dict[str, Any]) -> list[str]:
    once, each = found["simulating"] + found["training"], found["each"]
    mark = "" if found.get("converged", True) else " (not converged)"
    return [
        name + mark,
        f"{once:.0f}" if once else "",
        f"{each:.2f}",
        f"{found['calls']:,}",
        f"{found['independent']:,.0f}",
        f"{found['independent'] / each:,.0f}",
        f"{found['c2st']:.3f}",
        _pays_from(once, each, emcee["each"]),
    ]


def _pays_from(once: float, each: float, chain: float) -> str:
    """The number of observations from which on it takes less time than a chain for each."""
    if not once:
        return ""
    return f"{int(once / (chain - each)) + 1}" if chain > each else "never"
