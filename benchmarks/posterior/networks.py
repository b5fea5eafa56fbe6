"""Every network that NPE can train, on the same simulations, against reference posteriors and against sbi's.

Claim: from 10,000 simulations of two_moons (two separated crescents with sharp edges) every density estimator that has
a counterpart in sbi 0.27 comes nearer to the reference draws of sbibm than that, with the defaults of both: flows and
mixtures in a quarter of the time or less, flow matching in as much, the score model in a third more.  Kernels, which
sbi has none of, are far off.  On slcp (four modes, five parameters) ours are measured alone.  C2ST takes 5,000 draws of
each side, and is the median over the observations.

    python -m benchmarks.posterior.networks [--tasks two_moons slcp] [--models nsf maf ...] [--peers nsf mdn ...]
"""

import argparse
import contextlib
import tempfile
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from benchmarks.posterior.chains import shuffled
from benchmarks.posterior.reference import observation, reference_samples
from sbi_physics.simulation.resolve import resolve_simulator

NAME = "networks"
SIMULATIONS, DRAWS = 10_000, 5_000
MODELS: dict[str, dict[str, Any]] = {
    "nsf": {},
    "nsf, ensemble of 8": {"ensemble": 8},
    "nsf-box": {"model": "nsf-box"},
    "maf": {"model": "maf"},
    "maf-spline": {"model": "maf-spline"},
    "mixture": {"model": "mixture"},
    "made": {"model": "made"},
    "recurrent": {"model": "recurrent"},
    "flow-matching": {"model": "flow-matching"},
    "score": {"model": "score"},
    "kernel": {"model": "kernel"},
    "kernel, bandwidth by likelihood": {"model": "kernel", "bandwidth": "likelihood"},
}
PEERS = ("nsf", "maf", "mdn", "fmpe", "npse")


def main() -> None:
    """Fit, compare, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp"])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="of sbi, on the first task")
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for task in options.tasks:
        simulator: Any = resolve_simulator(task)
        theta, x = sp.simulate(simulator, SIMULATIONS, seed=options.seed, progress=False).training_set()
        sides = [("sbi_physics", name, _ours) for name in options.models]
        if task == options.tasks[0]:
            sides += [("sbi", name, _sbi) for name in options.peers]
        for package, name, fit in sides:
            began = time.monotonic()
            sample = fit(name, simulator, theta, x, options.seed)
            seconds = time.monotonic() - began
            row = {"task": task, "package": package, "model": name, "seed": options.seed, "training_seconds": seconds}
            row |= _judged(sample, task, options.observations)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
            keep_row(NAME, row | {"machine": describe_machine("sbi", "scikit-learn")}, ["task", "package", "model"])


def _ours(name: str, simulator: Any, theta: Tensor, x: Tensor, seed: int) -> Any:
    posterior = sp.NPE(simulator.parameters, **MODELS[name]).fit(theta, x, seed=seed, progress=False)
    return lambda x_obs: posterior.sample(DRAWS, x_obs).values


def _sbi(name: str, simulator: Any, theta: Tensor, x: Tensor, seed: int) -> Any:
    from sbi.inference import FMPE, NPE, NPSE
    from sbi.utils import BoxUniform

    torch.manual_seed(seed)
    bounds = simulator.parameters.bounds.float()
    prior = BoxUniform(bounds[:, 0], bounds[:, 1])
    # sbi leaves logs in the working directory.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if name in ("fmpe", "npse"):
            inference: Any = {"fmpe": FMPE, "npse": NPSE}[name](prior, show_progress_bars=False)
        else:
            inference = NPE(prior, density_estimator=name, show_progress_bars=False)
        inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()
    return lambda x_obs: posterior.sample((DRAWS,), x=x_obs, show_progress_bars=False)


def _judged(sample: Any, task: str, observations: int) -> dict[str, Any]:
    distances, seconds = [], 0.0
    for number in range(1, observations + 1):
        began = time.monotonic()
        draws = sample(observation(task, number))
        seconds += time.monotonic() - began
        reference = shuffled(reference_samples(task, number), DRAWS, number)
        distances.append(round(sp.diagnostics.c2st(reference, draws), 4))
    return {"c2st_median": median(distances), "c2st": distances, "sampling_seconds": seconds / observations}


if __name__ == "__main__":
    main()
