"""A scalar field on an 8 x 8 torus: a Boltzmann generator against Hamiltonian Monte Carlo.

Claim: at m^2 = -4 and the couplings of Albergo, Kanwar and Shanahan (arXiv:1904.12072) for sides of 6 and 8, and at one
near the transition, more than half of the flow's proposals are accepted after some minutes of training on one core, a
draw of the corrected chain forgets the one before sooner than one of Hamiltonian Monte Carlo, and |M|, susceptibility,
free energy and its differences agree within three standard errors.

    python -m benchmarks.integration.lattice [--side 8] [--couplings 6.975 6.008 5.0] [--steps 1500]
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe_machine, keep_row
from sbi_physics.core.random import derive, seeded
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics.chains import autocorrelation_time
from sbi_physics.integration.boltzmann import BoltzmannGenerator
from sbi_physics.integration.thermodynamic import thermodynamic_integration
from sbi_physics.models.flows.lattice import lattice_flow
from sbi_physics.sampling.hmc import hmc
from simulators.lattice import ScalarField, magnetisation, susceptibility

NAME = "lattice"
MASS_SQUARED = -4.0
FREE_MASS_SQUARED = 1.0
CHAINS, STEPS = 256, 300
WEIGHTS = 50_000
WIDTH = 0.4
HMC: dict[str, Any] = {"warmup": 300, "acceptance": 0.8, "device": "cpu", "progress": False}
OBSERVABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute_magnetisation": lambda phi: magnetisation(phi).abs(),
    "susceptibility": susceptibility,
}


def main() -> None:
    """Run each coupling, and write a row for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--couplings", type=float, nargs="+", default=[6.975, 6.008, 5.0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    before: dict[str, Any] | None = None
    for coupling in options.couplings:
        row = _coupling(options.side, coupling, options.steps, derive(options.seed, f"{coupling:g}"))
        if before is not None:
            row["difference"] = _difference(before, row, options.seed)
        before = row
        keep_row(NAME, row, ("side", "mass_squared", "coupling"))
        print({key: value for key, value in row.items() if key != "machine"}, flush=True)


def _coupling(side: int, coupling: float, steps: int, seed: int) -> dict[str, Any]:
    field, free = ScalarField(side, MASS_SQUARED, coupling), ScalarField(side, FREE_MASS_SQUARED, 0.0)
    start = _start(field, seed)
    generator = BoltzmannGenerator(field.log_density, lattice_flow(side, seed=seed), device="cpu")
    began = time.monotonic()
    generator.fit(steps=steps, seed=seed, progress=False)
    training = time.monotonic() - began
    reference = hmc(field.log_density, start, steps=STEPS, trajectory=2.0, seed=seed, **HMC)
    draws = generator.sample(CHAINS * STEPS, chains=CHAINS, observables=OBSERVABLES, seed=seed)
    began = time.monotonic()
    found = generator.free_energy(WEIGHTS, reference=reference, seed=seed)
    weighing = time.monotonic() - began
    path = thermodynamic_integration(
        free.log_density, field.log_density, start[:64], nodes=8, steps=500, seed=seed, **HMC
    )
    by_path = path.value + free.free_energy()
    by_flow, by_hmc = _summary(draws, by_step=True), _summary(reference, by_step=False)
    return {
        "side": side,
        "mass_squared": MASS_SQUARED,
        "coupling": coupling,
        "training_seconds": round(training, 1),
        "training_steps": steps,
        "flow": {**by_flow, "acceptance": round(draws.diagnostics["acceptance"], 4)},
        "hmc": {**by_hmc, "acceptance": round(reference.diagnostics["acceptance"], 4)},
        "pulls": {name: _pull(by_flow[name], by_hmc[name]) for name in OBSERVABLES},
        "free_energy": {
            "flow": [found.value, found.error],
            "integration": [by_path, path.error],
            "pull": _pull([found.value, found.error], [by_path, path.error]),
            "efficiency": round(found.efficiency, 4),
            "pareto_k": round(found.pareto_k, 3),
            "missed": found.missed,
            "trusted": found.trusted,
            "verdict": found.verdict,
            "seconds": round(weighing, 1),
        },
        "machine": describe_machine("emcee"),
    }


def _start(field: ScalarField, seed: int) -> Tensor:
    with seeded(derive(seed, "start")):
        return WIDTH * torch.randn(CHAINS, field.sites, dtype=torch.float64)


def _summary(draws: Samples, *, by_step: bool) -> dict[str, Any]:
    """Means with errors from the means of the chains, autocorrelation times, and independent draws per second."""
    result: dict[str, Any] = {"seconds": round(draws.cost.seconds, 2), "draws": len(draws)}
    times = []
    for name, function in OBSERVABLES.items():
        each = function(draws.values)
        chains = each.reshape(-1, CHAINS) if by_step else each.reshape(CHAINS, -1).T
        means = chains.mean(0)
        result[name] = [float(means.mean()), float(means.std()) / math.sqrt(CHAINS)]
        times.append(float(autocorrelation_time(chains.unsqueeze(-1))[0]))
    result["autocorrelation_time"] = {name: round(t, 3) for name, t in zip(OBSERVABLES, times, strict=True)}
    result["independent_per_second"] = round(len(draws) / max(times) / draws.cost.seconds)
    return result


def _difference(first: dict[str, Any], second: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of the free energies of two couplings, by the flows and by integration from one to the other."""
    fields = [ScalarField(row["side"], row["mass_squared"], row["coupling"]) for row in (first, second)]
    path = thermodynamic_integration(
        fields[0].log_density,
        fields[1].log_density,
        _start(fields[0], seed)[:64],
        nodes=6,
        steps=500,
        seed=derive(seed, "difference"),
        **HMC,
    )
    (f_0, e_0), (f_1, e_1) = (row["free_energy"]["flow"] for row in (first, second))
    by_flow = [f_1 - f_0, math.hypot(e_0, e_1)]
    by_path = [path.value, path.error]
    return {
        "from_coupling": first["coupling"],
        "flow": by_flow,
        "integration": by_path,
        "pull": _pull(by_flow, by_path),
    }


def _pull(one: list[float], other: list[float]) -> float:
    return round((one[0] - other[0]) / math.hypot(one[1], other[1]), 2)


if __name__ == "__main__":
    main()
