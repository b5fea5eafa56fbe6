"""The table of i-flow: how many evaluations a relative error takes, and whether the error can be believed.

Claim: over all rows and seeds, 55 in all, the pulls (estimate minus exact value, over the error) have a standard
deviation between 0.8 and 1.2 and none is beyond 4; and the median number of evaluations, those of training included, is
below that of i-flow (arXiv:2001.05486) in each row.

Published figures stand beside: i-flow, VEGAS as its authors ran it in 2020, and vegas 6.4.1.  ``--methods vegas`` runs
vegas 6.4 on this machine, see `vegas_peer`; a run of it that states the wanted error but is more than five such errors
off counts as not done.

    python -m benchmarks.integration.table [--rows "gauss, 2d"] [--seeds 1 2 3 4 5] [--methods vegas]
"""

import argparse
import json
from statistics import mean, median, stdev
from typing import Any

import torch

import sbi_physics as sp
from benchmarks.integration.integrands import Problem
from benchmarks.integration.vegas_peer import integrated
from benchmarks.machine import RESULTS, describe_machine, keep_row, write_result

NAME = "integration_table"
MILLION = 1e6
MORE = 50.0  # which were not enough
WRONG = 5.0  # a pull beyond which a run has not found the integral, whatever error it states

# Integrand, relative error, millions of evaluations by i-flow, by VEGAS in 2020 and by vegas 6.4.1; None: no figure.
ROWS: dict[str, tuple[Problem, float, tuple[float | None, ...]]] = {
    str(problem): (problem, rel_error, published)
    for problem, rel_error, published in (
        (Problem("gauss", 2), 1e-4, (2.31, 0.164, 0.168)),
        (Problem("gauss", 4), 1e-4, (2.29, 0.632, 0.716)),
        (Problem("gauss", 8), 1e-4, (3.10, 1.30, 1.44)),
        (Problem("gauss", 16), 1e-4, (7.23, 2.77, 2.77)),
        (Problem("camel", 2), 1e-4, (2.23, 0.421, 0.368)),
        (Problem("camel", 4), 1e-4, (8.22, 24.1, 21.8)),
        (Problem("camel", 8), 1e-4, (19.5, MORE, MORE)),
        (Problem("camel", 16), 1e-3, (None, None, None)),
        (Problem("polynomial", 18), 1e-5, (0.585, 42.8, 1.77)),
        (Problem("polynomial", 54), 1e-5, (0.685, MORE, 4.40)),
        (Problem("polynomial", 96), 1e-5, (1.15, MORE, 13.8)),
    )
}


def main() -> None:
    """Measure the rows, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=["sbi_physics"], choices=["sbi_physics", "vegas"])
    parser.add_argument("--max-calls", type=int, default=50_000_000, help="at most, for vegas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.rows:
        problem, rel_error, _ = ROWS[name]
        for seed in options.seeds:
            if "sbi_physics" in options.methods:
                _kept(name, "sbi_physics", seed, _ours(problem, rel_error, seed))
            if "vegas" in options.methods:
                found = integrated(problem, problem.dims, rel_error, seed, options.max_calls)
                _kept(name, "vegas", seed, {**found, **_pull(problem, found), "max_calls": options.max_calls})
    result = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    summary = summarised(result["rows"])
    published = {name: row[2] for name, row in ROWS.items()}
    write_result(NAME, {"rows": result["rows"], "summary": summary, "published_millions": published})
    print(json.dumps(summary, indent=2))


def _kept(name: str, method: str, seed: int, found: dict[str, Any]) -> None:
    row = {"row": name, "method": method, "seed": seed, "rel_error": ROWS[name][1], **found}
    print({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    keep_row(NAME, {**row, "machine": describe_machine("vegas")}, ["row", "method", "seed"])


def _ours(problem: Problem, rel_error: float, seed: int) -> dict[str, Any]:
    found = sp.integrate(problem, problem.dims, rel_error=rel_error, seed=seed, progress=False)
    plain = {"value": found.value, "error": found.error}
    return {
        "calls": found.calls,
        **plain,
        **_pull(problem, plain),
        "seconds": found.seconds,
        "trusted": found.trusted,
        "verdict": found.verdict,
        "kinds": list(found.kinds),
    }


def _counted(row: dict[str, Any]) -> float:
    """Calls of a run of vegas, or the budget where it did not find the integral with the wanted error."""
    done = row["calls"] is not None and abs(row["pull"]) < WRONG
    return float(row["calls"] if done else row["max_calls"])


def _pull(problem: Problem, found: dict[str, Any]) -> dict[str, Any]:
    return {"pull": (found["value"] - problem.exact) / found["error"]}


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pulls over all rows, and the median calls of each beside those of others."""
    ours = [row for row in rows if row["method"] == "sbi_physics"]
    pulls = [row["pull"] for row in ours]
    table = {}
    for name, (_, _, published) in ROWS.items():
        mine = [row for row in ours if row["row"] == name]
        if not mine:
            continue
        theirs = [_counted(row) for row in rows if row["method"] == "vegas" and row["row"] == name]
        known = [MILLION * each for each in published if each is not None] + ([median(theirs)] if theirs else [])
        calls = median(row["calls"] for row in mine)
        table[name] = {
            "calls": calls,
            "seconds": median(row["seconds"] for row in mine),
            "trusted": sum(row["trusted"] for row in mine),
            "runs": len(mine),
            "largest_pull": max((row["pull"] for row in mine), key=abs),
            "i_flow_over_ours": None if published[0] is None else MILLION * published[0] / calls,
            "vegas_of_this_run": median(theirs) if theirs else None,
            "best_other_over_ours": min(known) / calls if known else None,
        }
    versus_i_flow = [row["i_flow_over_ours"] for row in table.values() if row["i_flow_over_ours"] is not None]
    versus_all = [row["best_other_over_ours"] for row in table.values() if row["best_other_over_ours"] is not None]
    return {
        "pulls": len(pulls),
        "pull_deviation": stdev(pulls) if len(pulls) > 1 else None,
        "pull_mean": mean(pulls),
        "largest_pull": max(pulls, key=abs),
        "trusted": sum(row["trusted"] for row in ours),
        "rows_below_i_flow": [sum(each > 1 for each in versus_i_flow), len(versus_i_flow)],
        "rows_below_all_others": [sum(each > 1 for each in versus_all), len(versus_all)],
        "table": table,
    }


if __name__ == "__main__":
    main()
