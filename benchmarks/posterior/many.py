"""NLE and NRE on a hundred observations of slcp in one call: how long, how well mixed, are all four modes there?

Claim: 10,000 draws for each of 100 observations take at most 5 minutes on 2 cores, with an effective sample size of at
least 1,000 each.  The signs of two parameters do not matter for slcp, so that each of the four pairs of signs must hold
a quarter of the draws.  For some of the observations the draws are compared with those of NPE, corrected by importance
weights to the same learned posterior (which tests the sampler) and to the exact one (which tests the network).

    python -m benchmarks.posterior.many [--methods nle nre] [--observations 100] [--draws 10000] [--compared 3]
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, write_result
from sbi_physics.core.errors import ConvergenceError
from simulators.slcp import SLCP

ESTIMATORS: dict[str, dict[str, Any]] = {"nle": {}, "nle-maf": {"model": "maf"}, "nre": {}}
SIMULATIONS = 10_000


def main() -> None:
    """Fit, draw, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["nle", "nre"], choices=ESTIMATORS)
    parser.add_argument("--observations", type=int, default=100)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    simulator = SLCP()
    training = sp.simulate(simulator, SIMULATIONS, seed=options.seed, progress=False)
    observed = sp.simulate(simulator, options.observations, seed=options.seed + 1000, progress=False).x
    npe = sp.NPE(simulator.parameters).fit(training, seed=options.seed, progress=options.progress)
    rows = []
    for method in options.methods:
        rows.append(_measure(method, training, observed, npe, options))
        print({key: value for key, value in rows[-1].items() if key != "compared"}, flush=True)
        print(*rows[-1]["compared"], sep="\n", flush=True)
    result = {
        "task": simulator.name,
        "simulations": SIMULATIONS,
        "observations": options.observations,
        "draws": options.draws,
        "rows": rows,
        "machine": describe_machine("scikit-learn"),
    }
    print(f"written to {write_result('many_observations', result)}")


def _measure(method: str, training: Any, observed: Tensor, npe: sp.Posterior, options: argparse.Namespace) -> Any:
    estimator: Any = sp.NRE if method.startswith("nre") else sp.NLE
    began = time.monotonic()
    posterior = estimator(npe.parameters, **ESTIMATORS[method]).fit(
        training, seed=options.seed, progress=options.progress
    )
    trained = time.monotonic() - began
    samples = posterior.sample(options.draws, observed, seed=options.seed)
    spent = time.monotonic() - began - trained
    signs = (samples.values[..., 2] > 0).int() * 2 + (samples.values[..., 3] > 0).int()
    shares = torch.nn.functional.one_hot(signs.long(), 4).double().mean(1)
    effective = torch.tensor(samples.diagnostics["effective_sample_size"])
    return {
        "method": method,
        "training_seconds": trained,
        "seconds": spent,
        "likelihood_calls": samples.diagnostics["likelihood_calls"],
        "effective_sample_size": {"smallest": float(effective.min()), "median": float(effective.median())},
        "r_hat": max(samples.diagnostics["r_hat"]),
        "share_of_a_mode": {"smallest": float(shares.min()), "largest": float(shares.max())},
        "compared": [
            _compared(npe, posterior, observed[i], samples.values[i], options.seed) for i in range(options.compared)
        ],
    }


def _compared(npe: sp.Posterior, posterior: sp.Posterior, x_obs: Tensor, draws: Tensor, seed: int) -> dict[str, Any]:
    """C2ST of the draws with those of NPE, corrected to the learned and to the exact posterior."""

    def learned(theta: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return posterior.log_likelihood(theta, x)  # type: ignore[attr-defined,no-any-return]

    row: dict[str, Any] = {}
    for name, log_likelihood in (("learned", learned), ("exact", SLCP().log_likelihood)):
        try:
            corrected = npe.correct(log_likelihood, x_obs, n=20 * len(draws), seed=seed)
        except ConvergenceError as error:
            row[name] = {"refused": str(error)}
            continue
        # Draws with replacement would hold copies, which a classifier finds.
        number = min(len(draws), int(corrected.effective_sample_size) // 2)
        reference = corrected.resample(number, seed=seed, replace=False).values
        distance = sp.diagnostics.c2st(reference, draws[:: len(draws) // number][:number], workers=2)
        row[name] = {"c2st": distance, "draws": number, "pareto_k": corrected.diagnostics["pareto_k"]}
    return row


if __name__ == "__main__":
    main()
