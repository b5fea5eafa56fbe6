"""Searches where there is nothing to find: are the p-values uniform, and does a cut leave the spectrum as it is?

Claim: over 200 data sets of 10,000 background events the global p-value is uniform (Kolmogorov-Smirnov above 0.01) and
at most one is beyond three standard deviations; the spectrum after a cut has the shape of that before it (chi2 per
degree of freedom below 1.5 at each working point, and below 2 in latent form where features shift with the mass).
Ensembles are small: two classifiers for each fold.  Data sets of earlier runs are kept, so a run may be interrupted.

    python -m benchmarks.anomaly.null [--toys 200] [--events 10000] [--method interpolation] [--shift 0]
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from scipy.stats import kstest

from benchmarks.machine import RESULTS, describe_machine, write_result
from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.core.random import derive
from simulators.dijet import DijetResonance

NAME = "anomaly_null"
REGION = (3.3, 3.7)
SMALL: dict[str, Any] = {"members": 2, "config": {"batch_size": 256}}
THREE_SIGMA = 0.00135
KEPT_EVERY = 5


def main() -> None:
    """Search in each data set, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toys", type=int, default=200)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--method", default="interpolation")
    parser.add_argument("--shift", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    key = f"{options.method}, shift {options.shift:g}, {options.events} events"
    path = RESULTS / f"{NAME}.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    rows = cases.get(key, {}).get("rows", [])
    for k in range(len(rows), options.toys):
        rows.append(_search(options, derive(options.seed, "toy", k)))
        if len(rows) % KEPT_EVERY == 0 or len(rows) == options.toys:
            cases[key] = {**_summary(rows), "machine": describe_machine("scikit-learn"), "rows": rows}
            write_result(NAME, {"cases": cases})
            print(
                len(rows),
                {name: value for name, value in cases[key].items() if name not in ("rows", "machine")},
                flush=True,
            )


def _search(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    data = DijetResonance(shift=options.shift).events(options.events, 0, seed=derive(seed, "data"))
    began = time.monotonic()
    search = ResonantSearch(REGION, method=options.method, **SMALL)
    result = search.fit(data.features, data.mass, seed=derive(seed, "search"), progress=False).search(seed=seed)
    return {
        "global_p_value": result.global_p_value,
        "local": [point.fit.significance for point in result.points],
        "by_template": [point.template.significance for point in result.points],
        "sculpting": [[point.sculpting.chi2, point.sculpting.ndf] for point in result.points],
        "seconds": time.monotonic() - began,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    p_values = np.array([row["global_p_value"] for row in rows])
    sculpting = np.array([row["sculpting"] for row in rows])
    local = np.array([row["local"] for row in rows])
    return {
        "toys": len(rows),
        "uniform_p_value": float(kstest(p_values, "uniform").pvalue),
        "beyond_three_sigma": int((p_values < THREE_SIGMA).sum()),
        "chi2_per_ndf": (sculpting[..., 0].sum(0) / sculpting[..., 1].sum(0)).round(3).tolist(),
        "local_mean": local.mean(0).round(3).tolist(),
        "local_spread": local.std(0).round(3).tolist(),
        "template_mean": np.mean([row["by_template"] for row in rows], 0).round(3).tolist(),
        "template_spread": np.std([row["by_template"] for row in rows], 0).round(3).tolist(),
        "minutes": sum(row["seconds"] for row in rows) / 60,
    }


if __name__ == "__main__":
    main()
