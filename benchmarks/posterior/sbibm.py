"""Any method on the tasks of sbibm, by the distance to its reference posteriors.

The distance is the C2ST of 10,000 draws against the 10,000 reference draws (Lueckmann et al. 2021, arXiv:2101.04653);
0.5 is perfect.  Rows of earlier runs are kept; the same task, method, number of simulations and seed again replaces its
row.

    python -m benchmarks.posterior.sbibm [--tasks two_moons slcp] [--methods npe npe-ensemble] [--simulations 10000]
        [--observations 1 2 3 4 5] [--draws 10000] [--seed 0] [--progress]
"""

import argparse
import time
from statistics import median
from typing import Any

import sbi_physics as sp
from benchmarks.machine import RESULTS, describe_machine, keep_row
from benchmarks.posterior.methods import METHODS, NotForThisTaskError
from benchmarks.posterior.reference import observation, reference_samples
from sbi_physics.simulation.resolve import resolve_simulator

TASKS = ("two_moons", "slcp", "gaussian_linear_uniform", "sir")
NAME = "sbibm_posteriors"


def main() -> None:
    """Run each method on each task, and write each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=["npe"], choices=METHODS)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    for task in options.tasks:
        for method in options.methods:
            try:
                row = _measure(task, method, options)
            except NotForThisTaskError as error:
                print(f"{task}: {method} left out: {error}", flush=True)
                continue
            print({key: value for key, value in row.items() if key != "machine"}, flush=True)
            keep_row(NAME, row, ("task", "method", "simulations", "seed"))
    print(f"written to {RESULTS / NAME}.json")


def _measure(task: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    sampler = METHODS[method](resolve_simulator(task), options.simulations, options.seed, options.progress)
    distances, sampling = [], 0.0
    for number in options.observations:
        x_obs = observation(task, number)
        trained, began = sampler.training_seconds, time.monotonic()
        draws = sampler.sample(x_obs, options.draws, options.seed)
        sampling += time.monotonic() - began - (sampler.training_seconds - trained)
        reference = reference_samples(task, number)[: options.draws]
        distances.append(round(sp.diagnostics.c2st(reference, draws, workers=2), 4))
    served = 1 if sampler.amortised else len(options.observations)
    return {
        "task": task,
        "method": method,
        "simulations": options.simulations,
        "seed": options.seed,
        "amortised": sampler.amortised,
        "training_seconds": sampler.training_seconds / served,
        "simulator_calls": sampler.simulator_calls // served,
        "sampling_seconds": sampling / len(options.observations),
        "draws": options.draws,
        "observations": options.observations,
        "c2st": distances,
        "c2st_median": median(distances),
        "held_out_log_density": sampler.held_out,
        "machine": describe_machine("sbibm", "scikit-learn"),
    }


if __name__ == "__main__":
    main()
