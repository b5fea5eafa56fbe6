"""Posteriors from few simulations of long, noisy observations: what a network learns that is no noise.

    python -m benchmarks.posterior.wide [--cases spectrum image noise] [--simulations 10000]
        [--sides mcmc ours sbi] [--peers nsf]

``spectrum``   a line on a falling background, 300 bins of Poisson counts
``image``      a blurred source in 16 x 16 pixels with normal noise, as a flat list
``noise``      100 normal numbers, of which mean and size are asked for

Ours with its defaults, with the whole observation (``embedding="residual"``) and with its discriminants alone; sbi with
its defaults; and the exact posteriors by MCMC, tempered.  Judged by fresh simulations: mean log-density, and for each
parameter the share of 68 % intervals that hold the truth and the share of medians that lie below it, of which the worst
is told.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, Poisson, Uniform

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from sbi_physics.sampling.smc import tempered_smc

NAME = "wide"
FRESH, DRAWS = 1000, 200
FRESH_MCMC = 200
# That rejection sampling may take in sbi.
MOST_SECONDS = 300.0
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "whole observation": {"embedding": "residual"},
    "discriminants": {"embedding": "discriminant"},
}


class Case:
    """A simulator of long observations: independent numbers about what is expected.

    Args:
        bounds: of each parameter, by name.
        noise: from theta ``(*, P)`` to the distribution of x ``(*, D)``.
    """

    def __init__(
        self, bounds: dict[str, tuple[float, float]], noise: Callable[[Tensor], torch.distributions.Distribution]
    ) -> None:
        self.parameters = sp.Parameters([sp.Parameter(name, Uniform(*ends)) for name, ends in bounds.items()])
        self._noise = noise

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Observations ``(n, D)`` at theta ``(n, P)``."""
        generator, noise = torch.Generator().manual_seed(seed), self._noise(theta)
        if isinstance(noise, Poisson):
            return torch.poisson(noise.rate, generator=generator)
        return noise.mean + noise.stddev * torch.randn(noise.mean.shape, generator=generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Of x ``(*, D)`` at theta ``(*, P)``: ``(*,)``."""
        return self._noise(theta).log_prob(x).sum(-1)


def _spectrum(theta: Tensor) -> Poisson:
    height, place, width, background = theta.unsqueeze(-1).unbind(-2)
    energy = torch.linspace(0.0, 10.0, 300).to(theta)
    peak = height * torch.exp(-0.5 * ((energy - place) / width) ** 2)
    return Poisson(peak + 20 * background * torch.exp(-energy / 4), validate_args=False)


def _image(theta: Tensor) -> Normal:
    x, y, width = theta.unsqueeze(-1).unsqueeze(-1).unbind(-3)
    axis = torch.linspace(-1.0, 1.0, 16).to(theta)
    source = torch.exp(-((axis[:, None] - x) ** 2 + (axis - y) ** 2) / (2 * width**2))
    return Normal(source.flatten(-2), 0.3, validate_args=False)


def _noise(theta: Tensor) -> Normal:
    mean, log_size = theta.unsqueeze(-1).unbind(-2)
    return Normal(mean.expand(*theta.shape[:-1], 100), torch.exp(log_size), validate_args=False)


CASES = {
    "spectrum": Case({"height": (1, 20), "place": (2, 8), "width": (0.1, 0.8), "background": (0.5, 2)}, _spectrum),
    "image": Case({"x": (-1, 1), "y": (-1, 1), "width": (0.1, 0.5)}, _image),
    "noise": Case({"mean": (-2, 2), "log_size": (-2, 2)}, _noise),
}


def main() -> None:
    """Fit each case in each way, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--peers", nargs="*", default=["nsf"], help="density estimators of sbi")
    parser.add_argument("--sides", nargs="+", default=["mcmc", "ours", "sbi"], choices=["mcmc", "ours", "sbi"])
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    for name in options.cases:
        case, n, seed = CASES[name], options.simulations, options.seed
        theta, x = sp.simulate(case, n, seed=seed, workers=1, progress=False).training_set()
        fresh = sp.simulate(case, FRESH, seed=seed + 1, workers=1, progress=False).training_set()
        sides = [("exact likelihood", "MCMC", _mcmc)] if "mcmc" in options.sides else []
        sides += [("sbi_physics", way, _ours) for way in OURS if "ours" in options.sides]
        sides += [("sbi", each, _sbi) for each in options.peers if "sbi" in options.sides]
        for package, way, fit in sides:
            began = time.monotonic()
            judge = fit(way, case, theta, x, seed)
            row = {"case": name, "entries": x.shape[1], "simulations": n, "package": package, "way": way, "seed": seed}
            row |= {"seconds": round(time.monotonic() - began, 1), **judge(*fresh)}
            print(row, flush=True)
            keep_row(NAME, row | {"machine": describe_machine("sbi")}, ["case", "simulations", "package", "way"])


def _mcmc(way: str, case: Case, theta: Tensor, x: Tensor, seed: int) -> Any:
    """The exact posteriors, whose normalisation tempering gives as well: what a network can reach at best."""

    def judge(truth: Tensor, fresh: Tensor) -> dict[str, Any]:
        truth, fresh = truth[:FRESH_MCMC].double(), fresh[:FRESH_MCMC].double()
        began = time.monotonic()
        draws = tempered_smc(
            lambda theta, which: case.log_likelihood(theta, fresh[which].unsqueeze(1)),
            case.parameters,
            DRAWS,
            batch=len(fresh),
            seed=seed,
        )
        evidence = torch.tensor(draws.diagnostics["log_evidence"], dtype=torch.float64)
        density = case.log_likelihood(truth, fresh) + case.parameters.log_prob(truth) - evidence
        each = (time.monotonic() - began) / len(fresh)
        converged = sum(draws.diagnostics["converged"]) / len(fresh)
        return {**_judged(draws.values, truth, density), "seconds_each": round(each, 3), "converged": converged}

    return judge


def _ours(way: str, case: Case, theta: Tensor, x: Tensor, seed: int) -> Any:
    posterior = sp.NPE(case.parameters, **OURS[way]).fit(theta, x, seed=seed, progress=False)

    def judge(truth: Tensor, fresh: Tensor) -> dict[str, Any]:
        draws = posterior.sample(DRAWS, fresh, seed=seed).values
        found = _judged(draws, truth, posterior.log_prob(truth, fresh))
        return {**found, "discriminants": posterior.provenance["discriminants"]}

    return judge


def _sbi(name: str, case: Case, theta: Tensor, x: Tensor, seed: int) -> Any:
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(seed)
    bounds = case.parameters.bounds.float()
    # sbi leaves logs in the working directory.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        inference = NPE(BoxUniform(bounds[:, 0], bounds[:, 1]), density_estimator=name, show_progress_bars=False)
        inference.append_simulations(theta, x).train()
    posterior: Any = inference.build_posterior()

    def judge(truth: Tensor, fresh: Tensor) -> dict[str, Any]:
        how: dict[str, Any] = {"x": fresh, "show_progress_bars": False}
        try:
            draws, rejected = posterior.sample_batched((DRAWS,), max_sampling_time=MOST_SECONDS, **how), True
        except RuntimeError:
            # Of some observations next to no draw is inside the prior.
            draws, rejected = posterior.sample_batched((DRAWS,), reject_outside_prior=False, **how), False
        density = posterior.log_prob_batched(truth.unsqueeze(0), x=fresh, norm_posterior=False)[0]
        return {**_judged(draws.movedim(0, 1), truth, density), "inside_prior": rejected}

    return judge


def _judged(draws: Tensor, truth: Tensor, log_density: Tensor) -> dict[str, Any]:
    """Of draws ``(n, L, P)``, truths ``(n, P)`` and the log-densities of these ``(n,)``."""
    found = sp.diagnostics.sbc_from_samples(draws, truth)
    worst = int((found.coverage_68 - 0.683).abs().argmax())
    skewed = int((found.above_median - 0.5).abs().argmax())
    return {
        "log_density": round(float(log_density.double().mean()), 3),
        "log_density_error": round(float(log_density.double().std()) / len(truth) ** 0.5, 3),
        "coverage_68": round(float(found.coverage_68[worst]), 3),
        "above_median": round(float(found.above_median[skewed]), 3),
    }


if __name__ == "__main__":
    main()
