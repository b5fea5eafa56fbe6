"""What the report says of networks, evidences, intervals and surrogates of stars beside other packages."""

from typing import Any

from benchmarks.tables import numbers, table

__all__ = ["evidences", "intervals", "networks", "star_packages"]

_PROBLEMS = {"linear": "linear Gaussian, ten parameters", "k2_24": "K2-24"}


def networks(result: dict[str, Any]) -> list[str]:
    """A table for each task: every density estimator, ours and sbi's, against the reference posteriors."""
    parts = [
        "## Networks of NPE against reference posteriors, 10,000 simulations",
        "C2ST of 5,000 draws to the reference draws of sbibm, for each observation; defaults of both packages.",
    ]
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = sorted((row for row in result["rows"] if row["task"] == task), key=lambda row: row["c2st_median"])
        cells = [
            [
                row["package"],
                row["model"],
                f"{row['c2st_median']:.3f}",
                numbers(row["c2st"]),
                f"{row['training_seconds']:.0f}",
                f"{1e6 * row['sampling_seconds'] / 5_000:,.0f}",
            ]
            for row in rows
        ]
        head = ["package", "model", "median C2ST", "by observation", "training [s]", "microseconds a draw"]
        parts += [f"### {task}", table(head, cells)]
    return parts


def evidences(result: dict[str, Any]) -> list[str]:
    """Evidences beside nested sampling, and learned Bayes factors beside the exact ones."""
    by_part = {row["part"]: row for row in result["rows"]}
    cells = []
    for part, problem in _PROBLEMS.items():
        row = by_part.get(part, {"models": {}})
        for name, found in row["models"].items():
            ours, nested = found["ours"], found["dynesty"]
            cells.append([
                problem if part == "linear" else f"{problem}, planets {name}",
                f"{row['exact']:.4f}" if "exact" in row else "",
                f"{ours['log_evidence']:.4f} ± {ours['error']:.4f}",
                f"{ours['seconds']:.1f} ({ours['once_seconds']:.0f} once)",
                f"{ours['calls']:,}",
                f"{nested['log_evidence']:.2f} ± {nested['error']:.2f}",
                f"{nested['seconds']:.1f}",
                f"{nested['calls']:,}",
            ])  # fmt: skip
    head = ["problem", "exact ln Z", "corrected NPE", "seconds", "calls", "dynesty", "seconds", "calls"]
    parts = ["## Evidences by importance weights on a learned posterior, beside nested sampling", table(head, cells)]
    if "learned" in by_part:
        row = by_part["learned"]
        told = [
            [name, f"{row[name]['median_error']:.2f}", f"{row[name]['error_95']:.2f}", f"{row[name]['seconds']:.0f}"]
            for name in ("ours", "scikit-learn")
        ]
        parts += [
            "Learned ln B of two Gaussian models against the exact one (standard deviation "
            f"{row['spread_of_exact']:.1f} over the observations):",
            table(["classifiers", "median error", "95 % below", "training [s]"], told),
        ]
    return parts


def intervals(result: dict[str, Any]) -> list[str]:
    """Ends and coverage of Feldman and Cousins' intervals, learned and by toys."""
    cells = []
    for row in result["rows"]:
        level = f"{row['level']:.2%}"
        for name in ("learned", "toys"):
            found = row[name]
            ends = [f"{found['mean_error']:.3f}", f"{found['largest_error']:.3f}"]
            cells.append([level, name, *ends, _coverage(found)])
        cells.append([level, "credible, flat prior", "", "", _coverage(row["credible"])])
    return [
        "## A normal measurement of mu >= 0: Neyman's construction learned, by toys on a grid, and credible intervals",
        f"{result['simulations']:,} simulations or toys; the exact ends are those of Feldman and Cousins 1998. Learned "
        f"in {result['learned_seconds']:.0f} s.",
        table(
            ["level", "intervals", "mean error of an end", "largest", "coverage: mean (least to most) over mu"], cells
        ),
    ]


def _coverage(found: dict[str, float]) -> str:
    return f"{found['coverage']:.3f} ({found['least']:.3f} to {found['most']:.3f})"


def star_packages(result: dict[str, Any]) -> list[str]:
    """AUC, training and time of a star, by package and model."""
    cells = [
        [
            row["package"],
            row["model"],
            f"{row['auc']:.3f} ± {row['error']:.3f}",
            f"{row['fit_seconds']:.0f}",
            f"{1e6 * row['seconds_per_star']:,.1f}",
        ]
        for row in sorted(result["rows"], key=lambda row: row["auc"])
    ]
    return [
        "## Stars of a galaxy by our surrogates and by other packages; students of the diffusion model",
        "For a student the training is that of the distillation alone, with its draws of the teacher.",
        table(["package", "model", "AUC", "training [s]", "microseconds a star"], cells),
    ]
