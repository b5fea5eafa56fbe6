"""The parts of the report that set a part of ours beside another package: bump hunts, limits, outliers."""

from collections.abc import Callable
from typing import Any

from benchmarks.tables import table

__all__ = ["search_peers"]


def search_peers(result: dict[str, Any]) -> list[str]:
    """Bump hunts beside pyBumpHunter, limits beside pyhf and emcee, outliers beside scikit-learn."""
    parts: dict[str, Callable[[list[dict[str, Any]]], list[str]]]
    parts = {"bumps": _bumps, "limits": _limits, "outliers": _outliers}
    found: list[str] = []
    for part, section in parts.items():
        rows = [row for row in result["rows"] if row["part"] == part]
        found += section(rows) if rows else []
    return found


def _bumps(rows: list[dict[str, Any]]) -> list[str]:
    (row,) = rows
    cms, null, injected = row["cms"], row["null"], row["injected"]
    local = [name for name in cms if isinstance(cms[name], dict)]
    of_cms = "; ".join(
        f"{name} {cms[name]['p_value']:.3f} (smallest local {cms[name]['local_p_value']:.3f}, "
        f"{cms[name]['window'][0]:.2f} to {cms[name]['window'][1]:.2f} TeV, {cms[name]['seconds']:.2f} s)"
        for name in local
    )
    cells = []
    for name, found in injected["methods"].items():
        without = null["methods"][name]
        cells.append([
            name,
            f"{without['uniform_p_value']:.2g}",
            f"{without['mean']:.2f}",
            f"{without['below_level']} of {null['spectra']}",
            *_power(found),
            f"{1000 * found['place_error']:.0f}",
            f"{found['seconds']:.3f}",
        ])  # fmt: skip
    cells += [[name, "", "", "", *_power(found), "", ""] for name, found in injected["exact"].items()]
    head = ["method", "p-value of uniform global p-values", "their mean", f"at most {injected['level']:g}"]
    head += ["significance with a bump", f"power at {injected['level']:g}", "off by [GeV]", "seconds"]
    low, high = injected["signal"]
    return [
        "## Bump hunts beside pyBumpHunter",
        f"CMS dijet spectrum, {cms['windows']} windows, {cms['toys']} pseudo-experiments, global p-value: {of_cms}.",
        f"Simulated spectra of 20,000 events, {null['spectra']} without a signal ({null['toys']} pseudo-experiments) "
        f"and {injected['spectra']} with one of {low:.0f} to {high:.0f} events ({injected['toys']}), of "
        f"which a likelihood ratio that knows all but its size expects {injected['strength']:g} standard deviations. "
        "Significances are global, and in the last rows local ones of the one known place: median and "
        "quartiles.",
        table(head, cells),
    ]


def _power(found: dict[str, Any]) -> list[str]:
    low, median, high = found["significance"]
    return [f"{median:.2f} ({low:.2f} to {high:.2f})", f"{found['power']:.2f}"]


def _limits(rows: list[dict[str, Any]]) -> list[str]:
    (row,) = rows
    cells = [
        [
            f"{one['n']} of {one['background']:g} ± {one['uncertainty']:g}",
            f"{one['ours']['marginal']['observed']:.3f}",
            f"{one['exact']['marginal']['observed']:.3f}",
            f"{one['emcee']['observed']:.3f} ± {one['emcee']['error']:.3f}",
            f"{one['ours']['asymptotic']['observed']:.3f}",
            f"{one['pyhf']['observed']:.3f}",
            f"{one['ours']['known']['observed']:.3f}",
            f"{one['exact']['known']['observed']:.3f}",
            " ".join(f"{1000 * seconds:.1f}" for seconds in _seconds(one)),
        ]
        for one in row["rows"]
    ]
    head = ["observed of expected", "marginal", "by quadrature", "Bayesian, flat prior, emcee", "asymptotic", "pyhf"]
    head += ["background known", "by Poisson sums", "milliseconds: marginal, asymptotic, pyhf, emcee"]
    pairs = (("marginal", "exact"), ("known", "exact"), ("asymptotic", "pyhf"))
    largest = [max(_difference(one, name, other) for one in row["rows"]) for name, other in pairs]
    return [
        "## Upper limits beside pyhf, direct solutions and emcee",
        f"Events of signal at {row['level']:.0%} CLs. Largest relative differences of observed limits and their five "
        f"expected ones: marginal to quadrature {largest[0]:.1g}, known background to Poisson sums {largest[1]:.1g}, "
        f"asymptotic to pyhf {largest[2]:.1g}.",
        table(head, cells),
    ]


def _seconds(one: dict[str, Any]) -> list[float]:
    ours = one["ours"]
    return [part["seconds"] for part in (ours["marginal"], ours["asymptotic"], one["pyhf"], one["emcee"])]


def _difference(one: dict[str, Any], name: str, other: str) -> float:
    """The largest relative difference of the limits of one experiment."""
    ours, theirs = one["ours"][name], one[other] if other == "pyhf" else one[other][name]
    pairs = zip(
        [ours["observed"], *ours["expected"]],
        [theirs["observed"], *theirs["expected"]],
        strict=True,
    )
    return max(abs(found / expected - 1) for found, expected in pairs)


def _outliers(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            row["case"],
            found["detector"],
            f"{found['auc']:.3f} ± {found['auc_error']:.3f}",
            *(
                f"{value:.2f} ± {error:.2f}"
                for value, error in zip(found["improvement"], found["improvement_error"], strict=True)
            ),
            f"{found['fit_seconds']:.1f}",
            f"{found['score_microseconds']:.1f}",
        ]
        for row in rows
        for found in row["detectors"]
    ]
    head = ["case", "detector", "AUC", "significance improvement at 1 %", "at 10 %", "fit [s]", "microseconds a score"]
    return [
        "## Outliers beside scikit-learn",
        f"Learned from {rows[0]['events']:,} events without labels, judged by others. Here an AUC of 1 is perfect and "
        "0.5 finds nothing; the improvement is that of the cut which keeps 1 or 10 % of the usual events.",
        table(head, cells),
    ]
