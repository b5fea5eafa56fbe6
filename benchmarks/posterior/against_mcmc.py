"""One posterior by all methods: NPE, NLE and variational inference, learned and corrected, against emcee and HMC.

Claim: on problems with an exact likelihood the corrected posteriors cannot be told from a long chain (C2ST at most
0.53), and a network that was trained once is cheaper than chains from a few observations on.  The problems are the two
planets of K2-24 from 32 measured radial velocities, and flat wCDM from the Union3 supernovae with the offset of the
magnitudes free.

For each method: likelihood calls (gradients count as one), seconds of all that is done once (simulations, training) and
of each observation, independent draws a second of the latter, and the C2ST to a reference, draws of a long run of emcee
thinned by its autocorrelation time.  Independent are all draws of a network (which may be biased: see the C2ST); the
effective number under importance weights; the effective sample size of a chain.

    python -m benchmarks.posterior.against_mcmc [--cases k2_24 union3] [--seed 1] [--quick]
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import DEVICE, describe_machine, keep_row
from benchmarks.posterior.chains import best_start, emcee, shuffled
from benchmarks.posterior.supernovae import union3
from sbi_physics.core.random import derive
from sbi_physics.sampling.hmc import hmc
from simulators.radial_velocity import k2_24

NAME = "against_mcmc"
DRAWS, PROPOSALS = 10_000, 100_000
WALKERS, CHAINS = 100, 32
LEARNED = "NPE", "NLE", "VI"


@dataclass(frozen=True)
class Case:
    """A problem.

    Attributes:
        simulator: with `observed` and `log_likelihood`.
        seen: what networks see of observables ``(n, N)``.
        simulations: to train on.
        epochs: of NPE.
        steps: of emcee in the comparison; the reference takes three times as many.
        proposals: to correct.
        compared: draws of each set of a C2ST, at most.
    """

    simulator: Any
    seen: Callable[[Tensor], Tensor]
    simulations: int
    epochs: int
    steps: int
    proposals: int
    compared: int


def cases(quick: bool) -> dict[str, Callable[[], Case]]:
    """The problems by name."""
    few = 10 if quick else 1

    def planets() -> Case:
        return Case(
            k2_24(), lambda x: x, 200_000 // few, 8, 10_000 // few, PROPOSALS // few, DRAWS // (5 if quick else 1)
        )

    def cosmology() -> Case:
        simulator = union3("wCDM")
        return Case(
            simulator, simulator.whiten, 20_000 // few, 25, 4_000 // few, PROPOSALS // few, DRAWS // (5 if quick else 1)
        )

    return {"k2_24": planets, "union3": cosmology}


def main() -> None:
    """Measure each case and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(cases(False)), choices=list(cases(False)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of simulations and steps")
    options = parser.parse_args()
    for name in options.cases:
        row = _measure(cases(options.quick)[name](), options.seed)
        row = {"case": name, "seed": options.seed, **row, "machine": describe_machine("emcee", "scikit-learn")}
        print(f"written to {keep_row(NAME, row, ['case'])}")


def _measure(case: Case, seed: int) -> dict[str, Any]:
    reference, found = _emcee(case, 3 * case.steps, derive(seed, "reference"))
    print("reference", found, flush=True)
    methods: dict[str, dict[str, Any]] = {}

    def keep(name: str, draws: Tensor, numbers: dict[str, Any]) -> None:
        n = min(len(draws), len(reference), case.compared)
        one, other = shuffled(draws, n, seed), shuffled(reference, n, seed + 1)
        methods[name] = numbers | {"c2st": sp.diagnostics.c2st(one, other), "compared": n}
        print(name, methods[name], flush=True)

    for name, measure in {"emcee": _emcee, "HMC": _hmc}.items():
        keep(name, *measure(case, case.steps, derive(seed, name)))
    for name, draws, numbers in _networks(case, seed):
        keep(name, draws, numbers)
    half = len(reference) // 2
    floor = sp.diagnostics.c2st(*(shuffled(part, case.compared, seed) for part in (reference[:half], reference[half:])))
    return {
        "parameters": len(case.simulator.parameters),
        "simulations": case.simulations,
        "reference": {**found, "independent": len(reference), "floor": floor},
        "methods": methods,
    }


def _networks(case: Case, seed: int) -> Any:
    """Name, draws and numbers of each method that learns, as learned and corrected."""
    simulator, config = case.simulator, sp.NPE(case.simulator.parameters).config
    began = time.monotonic()
    theta, x = sp.simulate(simulator, case.simulations, seed=seed, progress=False).training_set()
    seen, simulated = case.seen(x), time.monotonic() - began
    x_obs = case.seen(simulator.observed)
    fits: dict[str, Callable[[], sp.Posterior]] = {
        "NPE": lambda: sp.NPE(simulator.parameters, config=replace(config, epochs=case.epochs)).fit(
            theta, seen, seed=seed, progress=False
        ),
        "NLE": lambda: sp.NLE(simulator.parameters, config=replace(config, epochs=case.epochs)).fit(
            theta, seen, seed=seed, progress=False
        ),
        "VI": lambda: sp.VI(simulator.parameters, simulator.log_likelihood).fit(
            simulator.observed, seed=seed, progress=False
        ),
    }
    for name in LEARNED:
        began = time.monotonic()
        posterior = fits[name]()
        trained = time.monotonic() - began
        amortised = name != "VI"
        once = {"simulating": simulated, "training": trained} if amortised else {"simulating": 0.0, "training": 0.0}
        calls = 0 if amortised else posterior.provenance["likelihood_calls"]
        target = x_obs if amortised else simulator.observed
        began = time.monotonic()
        draws = posterior.sample(DRAWS, target, seed=derive(seed, name)).values
        each = time.monotonic() - began + (0.0 if amortised else trained)
        yield name, draws, {**once, "each": each, "calls": calls, "independent": DRAWS}
        began = time.monotonic()
        try:
            samples = posterior.correct(
                _exact(simulator), target, n=case.proposals, seed=derive(seed, name, "corrected")
            )
        except sp.ConvergenceError as error:
            print(f"{name} corrected: refused: {error}", flush=True)
            continue
        corrected = time.monotonic() - began + (0.0 if amortised else trained)
        kept = samples.resample(min(DRAWS, case.proposals // 2), seed=seed, replace=False).values
        calls += samples.cost.likelihood_calls
        numbers = {**once, "each": corrected, "calls": calls}
        numbers["independent"] = samples.diagnostics["efficiency"] * len(samples)
        yield f"{name}, corrected", kept, numbers | {k: samples.diagnostics[k] for k in ("efficiency", "pareto_k")}


def _exact(simulator: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda theta, _: simulator.log_likelihood(theta, simulator.observed)


def _emcee(case: Case, steps: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    samples, thinned, each = emcee(case.simulator, WALKERS, steps, seed)
    return thinned, _chain_numbers(samples, each)


def _hmc(case: Case, steps: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    began = time.monotonic()
    target, start = best_start(case.simulator, CHAINS, seed)
    samples = hmc(
        target, start, steps=max(200, steps // 5), parameters=case.simulator.parameters, seed=seed, device=DEVICE,
        progress=False,
    )  # fmt: skip
    each = time.monotonic() - began
    numbers = _chain_numbers(samples, each)
    stride = max(1, math.ceil(len(samples) / numbers["independent"]))
    return samples.values[::stride], numbers


def _chain_numbers(samples: sp.Samples, each: float) -> dict[str, Any]:
    return {
        "simulating": 0.0,
        "training": 0.0,
        "each": each,
        "calls": samples.diagnostics.get("likelihood_calls", samples.cost.likelihood_calls),
        "independent": float(samples.diagnostics["effective_sample_size"]),
        "converged": bool(samples.diagnostics["converged"]),
        "verdict": samples.diagnostics["verdict"],
    }


if __name__ == "__main__":
    main()
