"""Comparison of models: evidences from corrected posteriors beside nested sampling, and learned Bayes factors.

Claim: (a) the evidence that importance weights on a learned posterior give agrees with the exact one of a linear
Gaussian problem of ten parameters and, for the planets of K2-24, with that of nested sampling (dynesty, its defaults
with 500 live points), within three of their joint errors, from fewer likelihood calls with a smaller error.
(b) Classifiers trained on 8,000 simulations of each of two Gaussian models give the exact ln B of 1,000 new
observations closer than one of scikit-learn (two layers of 64, its defaults, early stopping) from the same simulations.

    python -m benchmarks.posterior.evidence [--parts linear k2_24 learned] [--seed 1]
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from sbi_physics.core.random import derive, seeded
from sbi_physics.simulation.resolve import resolve_simulator
from simulators.radial_velocity import RadialVelocity, k2_24

NAME = "evidence"
SIMULATIONS, PROPOSALS = 10_000, 20_000
LIVE_POINTS = 500
DIMS, PAIRS, NEW = 10, 8_000, 1_000


def main() -> None:
    """Measure each part and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[int], dict[str, Any]]] = {"linear": _linear, "k2_24": _planets, "learned": _learned}
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in options.parts:
        row = {"part": name, "seed": options.seed, **parts[name](options.seed)}
        print(row, flush=True)
        keep_row(NAME, row | {"machine": describe_machine("dynesty", "scikit-learn")}, ["part"])


def _linear(seed: int) -> dict[str, Any]:
    """Theta and the noise of x have the variance 0.1 in each of ten dimensions: x that of 0.2."""
    simulator: Any = resolve_simulator("gaussian_linear")
    theta = simulator.parameters.sample(1, seed=derive(seed, "truth"))
    x = simulator(theta, seed=derive(seed, "x"))[0]
    exact = float(td.Normal(0.0, math.sqrt(0.2)).log_prob(x.double()).sum())
    return {"exact": exact, "models": {"gaussian_linear": _both(simulator, x, seed)}}


def _planets(seed: int) -> dict[str, Any]:
    whole = k2_24()
    free = ("gamma", "trend", "log_jitter")
    priors = dict(zip(whole.parameters.names, whole.parameters.prior.components, strict=True))
    sets = {"b and c": whole.planets, "b": whole.planets[:1], "c": whole.planets[1:], "none": ()}
    found = {}
    for name, planets in sets.items():
        simulator = RadialVelocity(
            whole.times,
            whole.errors,
            planets=planets,
            **{one: priors[one] for one in free},
            observed=whole.observed,
            reference_time=whole.reference_time,
        )
        found[name] = _both(simulator, whole.observed, seed)
        print(name, found[name], flush=True)
    return {"models": found}


def _both(simulator: Any, x: Tensor, seed: int) -> dict[str, Any]:
    """The evidence by a corrected posterior and by nested sampling: value, error, calls, seconds."""
    began = time.monotonic()
    run = sp.simulate(simulator, SIMULATIONS, seed=seed, workers=1, progress=False)
    posterior = sp.NPE(simulator.parameters).fit(*run.training_set(), seed=seed, progress=False)
    trained = time.monotonic() - began
    began = time.monotonic()
    samples = posterior.correct(simulator.log_likelihood, x, PROPOSALS, seed=seed)
    value, error = samples.diagnostics["log_evidence"], samples.diagnostics["log_evidence_error"]
    ours = {"log_evidence": value, "error": error, "calls": samples.cost.likelihood_calls}
    ours |= {"once_seconds": trained, "seconds": time.monotonic() - began, "pareto_k": samples.diagnostics["pareto_k"]}
    return {"ours": ours, "dynesty": _nested(simulator, x, seed)}


def _nested(simulator: Any, x: Tensor, seed: int) -> dict[str, Any]:
    import dynesty

    parameters = simulator.parameters
    parts = parameters.prior.components if hasattr(parameters.prior, "components") else None

    def prior_transform(u: np.ndarray) -> np.ndarray:
        unit = torch.from_numpy(np.clip(u, 1e-12, 1 - 1e-12))
        if parts is None:
            return np.asarray(parameters.prior.base_dist.icdf(unit.float()).double())
        return np.array([float(part.icdf(v.float())) for part, v in zip(parts, unit, strict=True)])

    def log_likelihood(theta: np.ndarray) -> float:
        return float(simulator.log_likelihood(torch.from_numpy(theta).unsqueeze(0), x))

    began = time.monotonic()
    sampler = dynesty.NestedSampler(
        log_likelihood, prior_transform, len(parameters), nlive=LIVE_POINTS, rstate=np.random.default_rng(seed)
    )
    sampler.run_nested(print_progress=False)
    found = sampler.results
    return {
        "log_evidence": float(found.logz[-1]),
        "error": float(found.logzerr[-1]),
        "calls": int(np.sum(found.ncall)),
        "seconds": time.monotonic() - began,
    }


def _gaussians() -> dict[str, td.MultivariateNormal]:
    """A common shift of unit variance beside unit noise; and independent noise of variance 1.6."""
    zero, one = torch.zeros(DIMS, dtype=torch.float64), torch.eye(DIMS, dtype=torch.float64)
    return {"common": td.MultivariateNormal(zero, one + 1.0), "alone": td.MultivariateNormal(zero, 1.6 * one)}


def _learned(seed: int) -> dict[str, Any]:
    from sklearn.neural_network import MLPClassifier

    models = _gaussians()

    def simulated(n: int, name: str) -> dict[str, Tensor]:
        with seeded(derive(seed, name)):
            return {key: model.sample((n,)).float() for key, model in models.items()}

    training, new = simulated(PAIRS, "training"), torch.cat(list(simulated(NEW // 2, "new").values()))
    exact = models["common"].log_prob(new.double()) - models["alone"].log_prob(new.double())
    began = time.monotonic()
    learned = sp.ModelComparison(list(training)).fit(training, seed=seed, progress=False)
    ours = {"seconds": time.monotonic() - began}
    values, spread = learned.log_bayes_factor(new, "common", "alone")
    ours |= _distance(values, exact) | {"median_spread": float(spread.median())}
    began = time.monotonic()
    label = np.repeat([1, 0], PAIRS)
    peer = MLPClassifier((64, 64), early_stopping=True, max_iter=500, random_state=seed)
    peer.fit(torch.cat(list(training.values())).numpy(), label)
    seconds = time.monotonic() - began
    log_odds = torch.from_numpy(np.diff(np.log(peer.predict_proba(new.numpy())), axis=1)[:, 0])
    theirs = {"seconds": seconds} | _distance(log_odds, exact)
    return {"ours": ours, "scikit-learn": theirs, "spread_of_exact": float(exact.std())}


def _distance(found: Tensor, exact: Tensor) -> dict[str, float]:
    off = (found.double() - exact).abs()
    return {"median_error": float(off.median()), "error_95": float(off.quantile(0.95))}


if __name__ == "__main__":
    main()
