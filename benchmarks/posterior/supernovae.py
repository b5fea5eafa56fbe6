"""Cosmology from the Union3 supernovae: NPE, variational inference and emcee on one exact likelihood.

Claim: for flat LambdaCDM (Omega_m) and flat wCDM (Omega_m, w), with the offset of the magnitudes free, the posteriors
of NPE and of variational inference, both corrected by importance weights, and that of emcee cannot be told from each
other (C2ST at most 0.53 for each pair), and Omega_m in flat LambdaCDM is within 0.02 of the published 0.356 +0.028
-0.026 (Rubin et al. 2023, arXiv:2311.12098).  Quantiles are compared with quadrature over the cosmological parameters,
for which the offset is integrated out analytically.

NPE learns with its defaults from the 22 whitened magnitudes, and serves any further observation for the price of its
draws and their correction; the others begin anew.

The distance moduli of Union3 are themselves a posterior, whose prior is not flat in the parameters of a cosmology
(arXiv:2412.14181): like other users of the binned table, all three methods take it for a likelihood.

    python -m benchmarks.posterior.supernovae [--models LambdaCDM wCDM] [--seed 1] [--simulations 20000] [--steps 4000]
"""

import argparse
import math
import time
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from benchmarks.posterior.chains import emcee, shuffled
from sbi_physics.core.random import derive
from sbi_physics.store.datasets import fetch
from simulators.supernovae import Supernovae

NAME = "supernovae"
MODELS = ("LambdaCDM", "wCDM")
# The lower end, the middle and the upper end of the interval.
PUBLISHED = {"LambdaCDM": {"Omega_m": (0.330, 0.356, 0.384)}}
LEVELS = [0.16, 0.5, 0.84]
DRAWS, PROPOSALS = 10_000, 100_000
VI_STEPS = 2_000
WALKERS, STEPS = 200, 4_000
GRID = 800
WEIGHTS = ("efficiency", "pareto_k", "log_evidence")


def main() -> None:
    """Measure each model and write its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=STEPS, help="of emcee")
    options = parser.parse_args()
    for model in options.models:
        row = _measure(model, options.simulations, options.steps, options.seed)
        print(*row.items(), sep="\n", flush=True)
        print(f"written to {keep_row(NAME, row | {'machine': describe_machine('emcee', 'scikit-learn')}, ['model'])}")


def union3(model: Any, **options: Any) -> Supernovae:
    """The 22 bins of Union3."""
    files = fetch("union3")
    return Supernovae.from_files(files["lcparam_full.txt"], files["mag_covmat.txt"], model=model, **options)


def _measure(model: str, simulations: int, steps: int, seed: int) -> dict[str, Any]:
    simulator = union3(model)
    answers = {
        "npe": _npe(simulator, simulations, seed),
        "vi": _vi(simulator, seed),
        "emcee": _emcee(simulator, steps, seed),
    }
    exact = _quadrature(model)
    row: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "parameters": list(simulator.parameters.names),
        "levels": LEVELS,
        "quadrature": exact,
        "published": PUBLISHED.get(model, {}),
    }
    sets = {name: draws for name, (_, draws, _) in answers.items()}
    for name, (samples, draws, numbers) in answers.items():
        row[name] = numbers | {"quantiles": samples.quantile(LEVELS).tolist(), "independent_draws": len(draws)}
    smallest = min(map(len, sets.values()))
    row["draws"] = smallest
    row["c2st"] = {
        f"{a} / {b}": sp.diagnostics.c2st(sets[a][:smallest], sets[b][:smallest]) for a, b in combinations(sets, 2)
    }
    return row


def _npe(simulator: Supernovae, simulations: int, seed: int) -> tuple[sp.Samples, Tensor, dict[str, Any]]:
    began = time.monotonic()
    theta, x = sp.simulate(simulator, simulations, seed=seed, progress=False).training_set()
    simulated = time.monotonic() - began
    posterior = sp.NPE(simulator.parameters).fit(theta, simulator.whiten(x), seed=seed, progress=False)
    trained = time.monotonic() - began - simulated
    began = time.monotonic()
    samples, draws = _corrected(simulator, posterior, simulator.whiten(simulator.observed), derive(seed, "npe"))
    each = time.monotonic() - began
    return samples, draws, {
        "simulations": simulations,
        "simulation_seconds": simulated,
        "training_seconds": trained,
        "seconds": simulated + trained + each,
        "seconds_each_further": each,
        "likelihood_calls": samples.cost.likelihood_calls,
    } | {key: samples.diagnostics[key] for key in WEIGHTS}  # fmt: skip


def _vi(simulator: Supernovae, seed: int) -> tuple[sp.Samples, Tensor, dict[str, Any]]:
    began = time.monotonic()
    posterior = sp.VI(simulator.parameters, simulator.log_likelihood).fit(
        simulator.observed, steps=VI_STEPS, seed=seed, progress=False
    )
    trained = time.monotonic() - began
    samples, draws = _corrected(simulator, posterior, simulator.observed, derive(seed, "vi"))
    seconds = time.monotonic() - began
    return samples, draws, {
        "training_seconds": trained,
        "seconds": seconds,
        "seconds_each_further": seconds,
        "likelihood_calls": posterior.provenance["likelihood_calls"] + samples.cost.likelihood_calls,
    } | {key: samples.diagnostics[key] for key in WEIGHTS}  # fmt: skip


def _corrected(simulator: Supernovae, posterior: sp.Posterior, x_obs: Tensor, seed: int) -> tuple[sp.Samples, Tensor]:
    """Weighted draws, and distinct ones of equal weight; what the posterior sees may be whitened."""

    def log_likelihood(theta: Tensor, _: Tensor) -> Tensor:
        return simulator.log_likelihood(theta, simulator.observed)

    samples = posterior.correct(log_likelihood, x_obs, n=PROPOSALS, seed=seed)
    return samples, samples.resample(DRAWS, seed=seed, replace=False).values


def _emcee(simulator: Supernovae, steps: int, seed: int) -> tuple[sp.Samples, Tensor, dict[str, Any]]:
    samples, thinned, seconds = emcee(simulator, WALKERS, steps, seed)
    kept = ("autocorrelation_time", "r_hat", "effective_sample_size", "acceptance", "converged")
    return samples, shuffled(thinned, DRAWS, seed), {
        "seconds": seconds,
        "seconds_each_further": seconds,
        "likelihood_calls": samples.cost.likelihood_calls,
        "thinned_by": math.ceil(samples.diagnostics["autocorrelation_time"]),
    } | {key: samples.diagnostics[key] for key in kept}  # fmt: skip


def _quadrature(model: str) -> dict[str, Any]:
    """Quantiles on a grid over the prior of the cosmological parameters, the offset integrated out."""
    simulator = union3(model, marginalise_offset=True)
    place = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    axes = [low + (high - low) * place for low, high in simulator.parameters.bounds]
    theta = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    values = torch.cat([simulator.log_likelihood(part, simulator.observed) for part in theta.split(20_000)])
    p = torch.softmax(values, 0).reshape([GRID] * len(axes))
    columns = {}
    for i, (name, axis) in enumerate(zip(simulator.parameters.names, axes, strict=True)):
        marginal = p.sum([k for k in range(len(axes)) if k != i]) if len(axes) > 1 else p
        edges = torch.cat([axis - (axis[1] - axis[0]) / 2, axis[-1:] + (axis[1] - axis[0]) / 2])
        below = torch.cat([torch.zeros(1), marginal.cumsum(0)])
        columns[name] = [_interpolate(q, below, edges) for q in LEVELS]
    return {"quantiles": columns, "points": GRID ** len(axes)}


def _interpolate(q: float, below: Tensor, edges: Tensor) -> float:
    k = int(torch.searchsorted(below, q)) - 1
    share = (q - below[k]) / (below[k + 1] - below[k])
    return float(edges[k] + share * (edges[k + 1] - edges[k]))


if __name__ == "__main__":
    main()
