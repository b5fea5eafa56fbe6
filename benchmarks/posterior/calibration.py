"""Calibration of every amortised method over 1,000 observations: how long one pass of all checks takes.

Claim: simulation-based calibration, expected coverage and TARP run batched, in minutes, for every method.  Rows of
earlier runs are kept; the same task, method and size again replaces its row.

    python -m benchmarks.posterior.calibration [--task slcp] [--methods npe nle] [--observations 1000] [--draws 200]
"""

import argparse
import time
from typing import Any

import sbi_physics as sp
from benchmarks.machine import RESULTS, describe_machine, keep_row
from sbi_physics.simulation.resolve import resolve_simulator

SIMULATIONS = 10_000
NAME = "calibration"
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "npe": (sp.NPE, {}),
    "npe-mixture": (sp.NPE, {"model": "mixture"}),
    "npe-flow-matching": (sp.NPE, {"model": "flow-matching"}),
    "npe-score": (sp.NPE, {"model": "score"}),
    "nle": (sp.NLE, {}),
    "nre": (sp.NRE, {}),
    "nre-balanced": (sp.NRE, {"balance": 100.0, "candidates": 1}),
}


def main() -> None:
    """Fit each method, check it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="slcp")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--observations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    simulator: Any = resolve_simulator(options.task)
    training = sp.simulate(simulator, SIMULATIONS, seed=options.seed, progress=False)
    fresh = sp.simulate(simulator, options.observations, seed=options.seed + 1, progress=False).training_set()
    for name in options.methods:
        row = {
            "task": simulator.name,
            "method": name,
            "simulations": SIMULATIONS,
            "observations": options.observations,
            "draws": options.draws,
            **_measure(name, simulator, training, fresh, options),
            "machine": describe_machine(),
        }
        print({key: value for key, value in row.items() if key != "machine"}, flush=True)
        keep_row(NAME, row, ("task", "method", "observations", "draws"))
    print(f"written to {RESULTS / NAME}.json")


def _measure(name: str, simulator: Any, training: Any, fresh: Any, options: argparse.Namespace) -> dict[str, Any]:
    estimator, settings = METHODS[name]
    began = time.monotonic()
    posterior = estimator(simulator.parameters, **settings).fit(training, seed=options.seed, progress=options.progress)
    trained = time.monotonic()
    report = sp.diagnostics.calibrate(
        posterior, *fresh, draws=options.draws, seed=options.seed, progress=options.progress
    )
    return {
        "training_seconds": trained - began,
        "seconds": time.monotonic() - trained,
        "sbc": report.sbc.verdict,
        "coverage": report.coverage.verdict,
        "tarp": report.tarp.verdict,
    }


if __name__ == "__main__":
    main()
