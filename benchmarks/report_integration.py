"""The parts of the report on integrals and lattices."""

import statistics
from typing import Any

from benchmarks.tables import table

__all__ = ["events", "integrals", "lattice"]


def integrals(result: dict[str, Any]) -> list[str]:
    """Calls to a stated error, ours and VEGAS, beside what is published."""
    rows, published = result["rows"], result["published_millions"]
    pulls = [row["pull"] for row in rows if row["method"] == "sbi_physics"]
    cells = []
    for name in dict.fromkeys(row["row"] for row in rows):
        ours = [row for row in rows if (row["row"], row["method"]) == (name, "sbi_physics")]
        peer = [row for row in rows if (row["row"], row["method"]) == (name, "vegas")]
        cells.append(
            [
                name,
                f"{ours[0]['rel_error']:g}",
                f"{statistics.median(row['calls'] for row in ours):,.0f}",
                " ".join(f"{row['pull']:+.1f}" for row in ours),
                f"{statistics.median(row['seconds'] for row in ours):.1f}",
                *(_peer(peer[0]) if peer else ["", ""]),
                *("" if each is None else f"{each:g}" for each in published[name]),
            ]
        )
    head = ["integrand", "relative error", "calls", "pulls by seed", "seconds", "vegas here", "its pull"]
    return [
        "## Integrals of the i-flow paper: calls to a relative error",
        f"Median over seeds, all calls counted. {len(pulls)} pulls have mean {statistics.mean(pulls):+.2f}, standard "
        f"deviation {statistics.stdev(pulls):.2f} and largest size {max(map(abs, pulls)):.2f}. Published figures in "
        "millions (arXiv:2001.05486); vegas 6.4.1 as measured.",
        table([*head, "i-flow", "VEGAS 2020", "vegas 6.4.1"], cells),
    ]


def _peer(row: dict[str, Any]) -> list[str]:
    if row["calls"] is None:
        return [f"not in {row['max_calls']:,}", ""]
    return [f"{row['calls']:,.0f}", "" if row["pull"] is None else f"{row['pull']:+.1f}"]


def events(result: dict[str, Any]) -> list[str]:
    """Which share of the points of a learned map becomes unweighted events."""
    order = {name: i for i, name in enumerate(("maps", "vegas_map", "vegas", "madnis", "emcee"))}
    cells = [
        [
            row["case"],
            str(row["seed"]),
            "sbi_physics" if row["method"] == "maps" else row["method"],
            f"{row['efficiency_quantile']:.3f}",
            f"{row['efficiency_bootstrap']:.3f}",
            " ".join(f"{each:.2f}" for each in row["p_values"]),
            f"{row['seconds']:.0f}",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["case"], row["seed"], order[row["method"]]))
    ]
    head = ["process", "seed", "method", "by the quantile", "by the bootstrap", "p-values", "seconds"]
    return [
        "## Unweighted events after 300,000 evaluations",
        "Mean weight over what counts as the largest: events above it hold 0.1 % of the integral beyond it, or the "
        "median of the largest of 50,000. emcee: draws over their autocorrelation time, for each evaluation. P-values: "
        "Kolmogorov-Smirnov, three observables against brute force.",
        table(head, cells),
    ]


def lattice(result: dict[str, Any]) -> list[str]:
    """A Boltzmann generator beside Hamiltonian Monte Carlo."""
    cells = []
    for row in sorted(result["rows"], key=lambda row: -row["coupling"]):
        both, energy, gap = (row["flow"], row["hmc"]), row["free_energy"], row.get("difference")
        cells.append(
            [
                f"{row['side']} x {row['side']}, {row['coupling']:g}",
                f"{row['training_seconds']:.0f}",
                f"{row['flow']['acceptance']:.2f}",
                " / ".join(f"{max(each['autocorrelation_time'].values()):.2f}" for each in both),
                " / ".join(f"{each['independent_per_second']:,}" for each in both),
                " ".join(f"{pull:+.1f}" for pull in row["pulls"].values()),
                f"{energy['flow'][0]:.4f} ± {energy['flow'][1]:.4f}",
                f"{energy['pull']:+.1f}" + (f" {gap['pull']:+.1f}" if gap else ""),
            ]
        )
    head = ["side, coupling", "training [s]", "acceptance", "autocorrelation", "independent draws per second"]
    return [
        "## A scalar field at m^2 = -4: a Boltzmann generator and Hamiltonian Monte Carlo",
        "Autocorrelation times of the slower of |M| and the susceptibility, and independent draws per second (warm-up "
        "included, training not): of the flow's corrected chain / of Hamiltonian Monte Carlo. Pulls in standard "
        "errors: of |M| and susceptibility; of the free energy, and of its difference from the line above.",
        table([*head, "pulls", "free energy", "pulls"], cells),
    ]
