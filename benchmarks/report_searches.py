"""The parts of the report on searches for resonances."""

from typing import Any

from benchmarks.tables import median_and_range, table

__all__ = ["background", "methods", "null"]


def methods(result: dict[str, Any]) -> list[str]:
    """How much of a known signal each method finds."""
    rows = result["rows"]
    data = list(dict.fromkeys(row["data"] for row in rows))
    cells = []
    for method in dict.fromkeys(row["method"] for row in rows):
        values = [[row["maximum"] for row in rows if (row["data"], row["method"]) == (one, method)] for one in data]
        cells.append([method, *(median_and_range(each) if each else "" for each in values)])
    parts = [
        "## Resonance searches: largest significance improvement",
        "Median over seeds, and in brackets the smallest and the largest. `dijet` and `shifted` are simulated, `clean` "
        "and `contaminated` are LHC Olympics events without and with signal in the control region.",
        table(["method", *data], cells),
    ]
    closed = [
        [
            row["data"],
            row["method"],
            str(row["seed"]),
            f"{row['closure_auc']:.3f} ± {row['closure_expected_error']:.3f}" if "closure_auc" in row else "",
            f"{row['background_passing']:,}",
            *(f"{row[name][0]:.1f} ± {row[name][1]:.1f}" for name in ("by_fit", "by_template")),
        ]
        for row in rows
        if "by_fit" in row
    ]
    head = ["data", "method", "seed", "closure AUC", "background after a 1 % cut", "by fit", "by template"]
    return [*parts, table(head, closed)]


def null(result: dict[str, Any]) -> list[str]:
    """Whether data without a signal give uniform p-values."""
    rows = [
        [
            name,
            str(case["toys"]),
            f"{case['uniform_p_value']:.3g}",
            str(case["beyond_three_sigma"]),
            " ".join(f"{value:.2f}" for value in case["chi2_per_ndf"]),
            " ".join(
                f"{value:.2f} ± {spread:.2f}"
                for value, spread in zip(case["local_mean"], case["local_spread"], strict=True)
            ),
            f"{case['minutes']:.0f}",
        ]
        for name, case in result["cases"].items()
    ]
    head = [
        "method",
        "toys",
        "p-value of uniform global p-values",
        "beyond 3 sigma",
        "chi2/ndf of the shape after a cut",
    ]
    return [
        "## Resonance searches in data without a signal",
        "Global p-values over toys, and, at cuts of 20, 10, 5 and 1 %, the shape of the spectrum after the cut against "
        "that before it, and mean and spread of the local significances by the fit (0 and 1 are expected).",
        table([*head, "local significance", "minutes"], rows),
    ]


def background(result: dict[str, Any]) -> list[str]:
    """The background in the signal region by the template and by fits, and the spectrum of CMS."""
    cms = result["cms"]
    rows = [
        [
            f"{row['efficiency']:.0%}",
            f"{row['observed']:.0f}",
            *(f"{row[name][0]:.1f} ± {row[name][1]:.1f}" for name in ("by_template", "by_fit", "by_emcee")),
        ]
        for row in result["rows"]
    ]
    return [
        "## Background after a cut: template, fit of the spectrum, and its posterior by emcee",
        f"{result['events']:,} events without a signal; a search takes {result['search_seconds']:.0f} s.",
        table(["cut", "observed", "template", "fit", "emcee"], rows),
        f"CMS dijet spectrum: chi2/ndf {cms['chi2']:.1f}/{cms['ndf']}, largest local significance "
        f"{cms['largest_local_significance']:.1f} in {cms['windows']} windows, global p-value "
        f"{cms['global_p_value']:.2f} from {cms['toys']:,} pseudo-experiments in {cms['seconds']:.0f} s.",
    ]
