"""Unweighted events of two processes: which share of the points of a learned map becomes events?

Claim: with as many evaluations, of the same integrand on the unit cube, the unweighting efficiency is
at least 3 times that of vegas 6.4, or at least 0.6.  And the events follow the distributions of brute force, which
are uniform points kept with probability f over the largest f seen (Kolmogorov-Smirnov above 0.01 for each observable).

Every method is given 300,000 evaluations to learn from.  Then fresh weights f/q are drawn, as many for all, and judged
by the same functions: the mean weight over what counts as the largest, by the quantile (events above it have 0.1 % of
the integral beyond it) and by the bootstrap (median of the largest of 50,000).  The methods:

==================  ===================================================================================================
``maps``            `sp.integrate(calls=300_000).for_events()`: whatever kind of map it chooses; flows among them
``vegas_map``       ten iterations that adapt the map alone (beta = 0), and points that it maps
``vegas``           ten iterations of its defaults, and points of the adapted stratification, which is a density too
``madnis``          its defaults, 1,024 points a step
``emcee``           no map, but a chain of 64 walkers on the cube: events are its draws over their autocorrelation time,
                    the efficiency is the number of these over that of evaluations
==================  ===================================================================================================

    python -m benchmarks.integration.events [--cases three_jets drell_yan] [--methods maps vegas ...] [--seed 1]
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

import sbi_physics as sp
from benchmarks.integration.vegas_peer import vectorised
from benchmarks.machine import RESULTS, describe_machine, keep_row, write_result
from sbi_physics.core.random import derive, seeded
from sbi_physics.integration.cross_section import CrossSection
from sbi_physics.integration.unweight import accept, maximum_weight
from simulators.drell_yan import drell_yan
from simulators.three_jets import three_jets

NAME = "integration_events"
CASES = {
    "three_jets": three_jets,
    "three_jets, even": lambda: three_jets(even=True),
    "drell_yan": drell_yan,
    "drell_yan, resonance": lambda: drell_yan(mapping="resonance"),
}
METHODS = ("maps", "vegas_map", "vegas", "madnis", "emcee")
CALLS, DRAWN, SET = 300_000, 200_000, 50_000
WALKERS = 64
ITERATIONS = 10
BRUTE_FORCE = 2_000_000
COMPARED = 20_000
BATCH = 1 << 16
OBSERVABLES = {
    "three_jets": ("energy share of the quark", "energy share of the gluon", "cosine of the gluon to the beam"),
    "drell_yan": ("log10 of the mass [GeV]", "rapidity of the pair", "pseudorapidity of the lepton"),
}


def main() -> None:
    """Measure the cases by each method, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["three_jets", "drell_yan"], choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in options.cases:
        integrand = CrossSection.of(CASES[case]())
        reference = brute_force(case, integrand, derive(options.seed, "brute force"))
        for method in options.methods:
            row = {"case": case, "method": method, "seed": options.seed}
            measure = by_chain if method == "emcee" else measured
            row |= measure(case, integrand, method, options.seed, reference)
            shown = {key: value for key, value in row.items() if key not in ("rounds", "histograms")}
            print(json.dumps(shown), flush=True)
            keep_row(NAME, {**row, "machine": describe_machine("vegas", "madnis")}, ["case", "method", "seed"])
    rows = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))["rows"]
    write_result(NAME, {"rows": rows, "summary": summarised(rows)})
    print(json.dumps(summarised(rows), indent=2))


def measured(case: str, f: CrossSection, method: str, seed: int, reference: Tensor) -> dict[str, Any]:
    """Efficiencies of a method, its integral, and its events against those of brute force ``(n, 3)``."""
    began = time.monotonic()
    points, weights, found = learned(f, method, derive(seed, case))
    quantile = maximum_weight(weights)
    bootstrap = maximum_weight(weights, strategy="bootstrap", events=SET, seed=seed)
    events, sizes = accept(points, weights, quantile, derive(seed, "accept"))
    ours, theirs = observables(case, f, events[:COMPARED]), reference
    mean = float(weights.mean())
    return {
        **found,
        "calls_drawn": len(weights),
        "efficiency_quantile": mean / quantile,
        "efficiency_bootstrap": mean / bootstrap,
        "effective_share": float(weights.sum() ** 2 / weights.square().sum() / len(weights)),
        "overweight_share": float((sizes - 1).sum() / sizes.sum()),
        "p_values": [float(ks_2samp(a, b).pvalue) for a, b in zip(ours.T.numpy(), theirs.T.numpy(), strict=True)],
        "events_compared": [len(ours), len(theirs)],
        "histograms": {"log10_weight": _histogram(np.log10(weights[weights > 0].numpy() / mean), -2.0, 1.5)},
        "seconds": time.monotonic() - began,
    }


def by_chain(case: str, f: CrossSection, _: str, seed: int, reference: Tensor) -> dict[str, Any]:
    """As `measured`, of draws of an ensemble of Markov chains: one in an autocorrelation time counts."""
    began = time.monotonic()
    random = torch.Generator().manual_seed(derive(seed, case, "start"))
    start = torch.rand((100 * WALKERS, f.dims), generator=random, dtype=torch.float64)
    start = start[f(start) > 0]

    def log_density(u: Tensor) -> Tensor:
        inside = ((u > 0) & (u < 1)).all(1)
        return torch.where(inside, f(u.clamp(1e-9, 1 - 1e-9)).log(), -torch.inf)

    chain = sp.mcmc(
        log_density, start, steps=CALLS // WALKERS, walkers=WALKERS, seed=seed, device="cpu", progress=False
    )
    found = chain.diagnostics
    independent = found["effective_sample_size"]
    every = max(1, int(len(chain) / independent))
    ours = observables(case, f, torch.as_tensor(chain.values)[::every][:COMPARED])
    return {
        "calls": chain.cost.likelihood_calls,
        "converged": found["converged"],
        "autocorrelation_time": found["autocorrelation_time"],
        "efficiency_quantile": independent / chain.cost.likelihood_calls,
        "efficiency_bootstrap": independent / chain.cost.likelihood_calls,
        "p_values": [float(ks_2samp(a, b).pvalue) for a, b in zip(ours.T.numpy(), reference.T.numpy(), strict=True)],
        "events_compared": [len(ours), len(reference)],
        "seconds": time.monotonic() - began,
    }


def learned(f: CrossSection, method: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Points ``(n, dims)`` of the map that a method learns, their weights ``(n,)``, and what it found on the way."""
    return {"vegas_map": _vegas, "vegas": _vegas, "madnis": _madnis}.get(method, _ours)(f, method, seed)


def _histogram(values: Any, low: float, high: float) -> dict[str, Any]:
    heights, edges = np.histogram(values, bins=70, range=(low, high))
    return {"edges": edges.tolist(), "counts": heights.tolist()}


def _ours(f: CrossSection, method: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    found = sp.integrate(f, calls=CALLS, seed=seed, progress=False)
    drawn = found.for_events().sample(DRAWN, seed=seed)
    rounds = [[each.calls, each.value, each.error] for each in found.rounds]
    about = {"calls": found.calls, "value": found.value, "error": found.error, "trusted": found.trusted}
    return (
        drawn.points,
        drawn.weights,
        {**about, "verdict": found.verdict, "kinds": list(found.kinds), "rounds": rounds},
    )


def _vegas(f: CrossSection, method: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weights f over the density by which points were drawn: the stated one times their number in the iteration."""
    import gvar
    import vegas

    gvar.ranseed(seed)
    options = {"beta": 0.0} if method == "vegas_map" else {}
    integrator = vegas.Integrator([[0, 1]] * f.dims, neval=CALLS // ITERATIONS, **options)
    result = integrator(vectorised(f), nitn=ITERATIONS)
    points, weights = [], []
    while sum(map(len, points)) < DRAWN:  # whole iterations: the strata come in order
        batches = [[torch.from_numpy(each) for each in batch] for batch in integrator.random_batch()]
        x, share = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
        points.append(x)
        weights.append(f(x) * share * len(x))
    rounds = [[CALLS // ITERATIONS, float(each.mean), float(each.sdev)] for each in result.itn_results]
    about = {"calls": int(result.sum_neval), "value": float(result.mean), "error": float(result.sdev)}
    shuffled = torch.randperm(sum(map(len, points)), generator=torch.Generator().manual_seed(seed))
    return torch.cat(points)[shuffled], torch.cat(weights)[shuffled], {**about, "rounds": rounds}


def _madnis(f: CrossSection, _: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    from madnis.integrator import Integrator

    size = 1024
    with seeded(seed):
        integrator = Integrator(f, f.dims, batch_size=size, dtype=torch.float64)
        integrator.train(CALLS // size)
        with torch.no_grad():
            drawn = integrator.sample(DRAWN)
    value, error = float(drawn.weights.mean()), float(drawn.weights.std()) / len(drawn.weights) ** 0.5
    about = {"calls": CALLS // size * size, "value": value, "error": error, "rounds": []}
    return drawn.x.detach(), drawn.weights.detach(), about


def observables(case: str, f: CrossSection, points: Tensor) -> Tensor:
    """What events are compared by, ``(n, 3)``, of points of the cube ``(n, dims)``."""
    outgoing = f.events(points).outgoing
    if case.startswith("three_jets"):
        quark, _, gluon = outgoing.unbind(1)
        total = outgoing[..., 0].sum(1)
        return torch.stack([2 * quark[:, 0] / total, 2 * gluon[:, 0] / total, gluon[:, 3] / gluon[:, 0]], 1)
    pair, lepton = outgoing.sum(1), outgoing[:, 0]
    mass = (pair[:, 0].square() - pair[:, 1:].square().sum(-1)).sqrt()
    return torch.stack(
        [mass.log10(), torch.atanh(pair[:, 3] / pair[:, 0]), torch.atanh(lepton[:, 3] / lepton[:, 0])], 1
    )


def brute_force(case: str, f: CrossSection, seed: int) -> Tensor:
    """Observables ``(n, 3)`` of uniform points that were kept with probability f over the largest f seen."""
    random = torch.Generator().manual_seed(seed)
    values, points = [], []
    for _ in range(BRUTE_FORCE // BATCH):
        u = torch.rand((BATCH, f.dims), generator=random, dtype=torch.float64)
        points.append(u)
        values.append(f(u))
    u, w = torch.cat(points), torch.cat(values)
    kept = torch.rand(len(w), generator=random, dtype=torch.float64) < w / w.max()
    return observables(case, f, u[kept][:COMPARED])


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Our efficiencies over those of the better of the two ways of vegas, by both definitions, case by case."""
    found: dict[str, Any] = {}
    for case, seed in dict.fromkeys((row["case"], row["seed"]) for row in rows):
        mine = {row["method"]: row for row in rows if (row["case"], row["seed"]) == (case, seed)}
        if not {"vegas", "vegas_map"} <= set(mine):
            continue
        found[f"{case}, seed {seed}"] = of_seed = {}
        for key in ("efficiency_quantile", "efficiency_bootstrap"):
            best = max(mine["vegas"][key], mine["vegas_map"][key])
            of_seed[key] = {name: mine[name][key] for name in METHODS if name in mine}
            of_seed[f"{key}_over_vegas"] = {n: mine[n][key] / best for n in ("maps",)}
    return found


if __name__ == "__main__":
    main()
