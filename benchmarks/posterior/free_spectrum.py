"""Free spectra of pulsar timing arrays: a flow and emcee against quadrature, and the published background.

Claim: on the free spectra of EPTA DR2new (real) and sim51 (simulated), the posterior of (log10 A, gamma) by flow
variational inference with importance correction and that by emcee agree with direct quadrature in two dimensions (C2ST
at most 0.52, medians within 0.02), and the values injected in sim51 lie inside the 95 % region.  For EPTA the row says
how far the medians are from the published ones, and by how much they move when something about the analysis is changed:
the number of frequencies, one of them left out, the width of the kernel densities, what stands where they are zero or
end, the span, the prior.

The flow is fitted to the likelihood to the power 0.5, whose posterior is wider: the reverse divergence makes tails that
are too light, with a Pareto k from 0.3 to 0.9 between seeds even with the power 0.7, and weights from a wider proposal
are bounded.

    python -m benchmarks.posterior.free_spectrum [--cases epta_9 epta_20 sim51] [--seed 1] [--pictures FOLDER]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.report.figures import save_figure
from sbi_physics.report.pulsar_figures import free_spectrum_figure
from sbi_physics.store.datasets import fetch
from simulators.free_spectrum import FreeSpectrum

NAME = "free_spectrum"
CASES: dict[str, tuple[str, int | None]] = {
    "epta_9": ("epta_dr2_new_hd", 9),
    "epta_20": ("epta_dr2_new_hd", 20),
    "sim51": ("sim51", None),
}
# Medians with the distances down and up to the ends of the interval (arXiv:2306.16214).
PUBLISHED = {"log10_A": (-13.94, 0.48, 0.23), "gamma": (2.71, 0.73, 1.18)}
INJECTED = torch.tensor([-14.698, 4.173], dtype=torch.float64)
LEVELS = [0.16, 0.5, 0.84]
DRAWS, PROPOSALS = 10_000, 200_000
TEMPERED, VI_STEPS = 0.5, 2_000
WALKERS, STEPS = 200, 3_000
COARSE, FINE = 400, 1_000
KERNEL = 5**0.5  # half-width of an Epanechnikov kernel in standard deviations
_ZERO = -30.0  # below which a log-density stands for none


class Quadrature:
    """The posterior on a dense grid over the box that holds it, under uniform priors."""

    def __init__(self, spectrum: FreeSpectrum, n: int = FINE) -> None:
        low, high = spectrum.parameters.bounds.double().clone().T
        centres, p = self._grid(spectrum, low, high, COARSE)
        for i in range(2):  # once around all but 1e-9 of the probability
            kept = torch.nonzero(p.sum(1 - i) > 1e-9 / COARSE).flatten()
            cell = (high[i] - low[i]) / COARSE
            low[i], high[i] = centres[i][kept[0]] - cell, centres[i][kept[-1]] + cell
        low = torch.maximum(low, spectrum.parameters.bounds[:, 0].double())
        high = torch.minimum(high, spectrum.parameters.bounds[:, 1].double())
        self.cell = (high - low) / n
        self.centres, self.p = self._grid(spectrum, low, high, n)
        self.n, self.low = n, low

    @staticmethod
    def _grid(spectrum: FreeSpectrum, low: Tensor, high: Tensor, n: int) -> tuple[list[Tensor], Tensor]:
        place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        centres = [a + (b - a) * place for a, b in zip(low, high, strict=True)]
        with torch.no_grad():
            rows = [
                spectrum.log_likelihood(torch.cartesian_prod(part, centres[1])) for part in centres[0].split(n // 20)
            ]
        return centres, torch.softmax(torch.cat(rows), 0).reshape(n, n)

    def quantiles(self) -> list[list[float]]:
        """Quantiles of each parameter at LEVELS, ``[level][parameter]``."""
        columns = []
        for i in range(2):
            edges = self.low[i] + self.cell[i] * torch.arange(self.n + 1)
            below = np.concatenate([[0.0], self.p.sum(1 - i).cumsum(0).numpy()])
            columns.append(np.interp(LEVELS, below, edges.numpy()))
        return np.stack(columns, -1).tolist()

    def sample(self, n: int, seed: int) -> Tensor:
        """Independent draws ``(n, 2)``: a cell by its probability, a uniform place in it."""
        random = numpy_generator(seed)
        cumulative = self.p.reshape(-1).cumsum(0).numpy()
        cell = np.searchsorted(cumulative, random.random(n) * cumulative[-1])
        index = torch.as_tensor(np.stack(np.unravel_index(cell, (self.n, self.n)), -1))
        return self.low + self.cell * (index + torch.as_tensor(random.random((n, 2))))

    def region(self, theta: Tensor) -> float:
        """The probability of the smallest highest-density region that holds theta ``(2,)``."""
        i, j = ((theta - self.low) / self.cell).long().tolist()
        return float(self.p[self.p > self.p[i, j]].sum())


def main() -> None:
    """Measure each case and write its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    for case in options.cases:
        row = _measure(case, options)
        print({key: value for key, value in row.items() if key not in ("changes", "machine")}, flush=True)
        print(*row["changes"].items(), sep="\n", flush=True)
        print(f"written to {keep_row(NAME, row | {'machine': describe_machine('emcee', 'scikit-learn')}, ['case'])}")


def load(case: str) -> FreeSpectrum:
    """All frequencies of the folder of a case."""
    folder = CASES[case][0]
    files = {PurePosixPath(n).name: p for n, p in fetch("pta_freespec").items() if n.startswith(f"{folder}/")}
    return FreeSpectrum.from_folder(files, name=folder)


def lowest(whole: FreeSpectrum, bins: Any, **changed: Any) -> FreeSpectrum:
    """The likelihood of some of the frequencies, with other numbers in its tables where they are named."""
    chosen = list(range(bins)) if isinstance(bins, int) else list(bins)
    table = changed.pop("table", whole.observed)
    keep = {"span": whole.span, "parameters": whole.parameters, "name": whole.name} | changed
    return FreeSpectrum(whole.frequencies[chosen], whole.grid, table[chosen], **keep)


def _measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    whole = load(case)
    bins = CASES[case][1] or len(whole.frequencies)
    spectrum = lowest(whole, bins)
    began = time.monotonic()
    quadrature = Quadrature(spectrum)
    exact = quadrature.quantiles()
    seconds = time.monotonic() - began
    reference = quadrature.sample(DRAWS, derive(options.seed, "reference"))
    twin = quadrature.sample(DRAWS, derive(options.seed, "twin"))
    answers = {"flow": _flow(spectrum, options.seed), "emcee": _emcee(spectrum, options.seed)}
    row: dict[str, Any] = {
        "case": case,
        "bins": bins,
        "seed": options.seed,
        "draws": DRAWS,
        "parameters": list(spectrum.parameters.names),
        "levels": LEVELS,
        "quadrature": {
            "quantiles": exact,
            "seconds": seconds,
            "points": COARSE**2 + FINE**2,
            "half_the_points": Quadrature(spectrum, FINE // 2).quantiles(),
            "c2st_of_two_sets": sp.diagnostics.c2st(reference, twin),
        },
    }
    for name, (samples, numbers) in answers.items():
        quantiles = samples.quantile(LEVELS)
        draws = samples.resample(DRAWS, seed=options.seed, replace=False).values
        row[name] = numbers | {
            "seconds": samples.cost.seconds + numbers.get("training_seconds", 0.0),
            "quantiles": quantiles.tolist(),
            "median_distance": (quantiles[1] - torch.tensor(exact)[1]).tolist(),
            "c2st": sp.diagnostics.c2st(reference, draws),
        }
    shares = spectrum.off_grid_shares(reference)
    row["off_grid"] = {"below": shares[0].tolist(), "above": shares[1].tolist()}
    row |= _against_what_is_known(case, quadrature, exact)
    row["changes"] = _changes(whole, bins)
    if options.pictures:
        draws = {"quadrature": sp.Samples.of(reference, spectrum.parameters)} | {n: s for n, (s, _) in answers.items()}
        _pictures(case, whole, bins, draws, options.pictures)
    return row


def _flow(spectrum: FreeSpectrum, seed: int) -> tuple[sp.Samples, dict[str, Any]]:
    began = time.monotonic()

    def tempered(theta: Tensor, x: Tensor) -> Tensor:
        return TEMPERED * spectrum.log_likelihood(theta, x)

    posterior = sp.VI(spectrum.parameters, tempered).fit(spectrum.observed, steps=VI_STEPS, seed=seed, progress=False)
    seconds = time.monotonic() - began
    samples = posterior.correct(spectrum.log_likelihood, spectrum.observed, n=PROPOSALS, seed=derive(seed, "flow"))
    calls = posterior.provenance["likelihood_calls"] + samples.cost.likelihood_calls
    numbers = {key: samples.diagnostics[key] for key in ("efficiency", "pareto_k", "log_evidence")}
    return samples, numbers | {
        "power": TEMPERED,
        "steps": VI_STEPS,
        "training_seconds": seconds,
        "likelihood_calls": calls,
    }


def _emcee(spectrum: FreeSpectrum, seed: int) -> tuple[sp.Samples, dict[str, Any]]:
    prior = spectrum.parameters

    def log_posterior(theta: Tensor) -> Tensor:
        return prior.log_prob(theta) + spectrum.log_likelihood(theta)

    wide = prior.sample(20_000, seed=derive(seed, "start")).double()
    start = wide[log_posterior(wide).topk(WALKERS).indices]
    samples = sp.mcmc(
        log_posterior, start, steps=STEPS, walkers=WALKERS, parameters=prior, seed=seed, device="cpu", progress=False
    )
    kept = ("autocorrelation_time", "r_hat", "effective_sample_size", "acceptance", "converged")
    return samples, {key: samples.diagnostics[key] for key in kept} | {
        "likelihood_calls": samples.cost.likelihood_calls
    }


def _against_what_is_known(case: str, quadrature: Quadrature, exact: list[list[float]]) -> dict[str, Any]:
    if case == "sim51":
        return {"injected": INJECTED.tolist(), "region_of_injected": quadrature.region(INJECTED)}
    rows = {}
    for i, (name, (median, down, up)) in enumerate(PUBLISHED.items()):
        away = exact[1][i] - median
        rows[name] = {"published": [median - down, median, median + up], "distance": away}
        rows[name]["in_published_errors"] = away / (up if away > 0 else down)
    return {"published": rows}


def _changes(whole: FreeSpectrum, bins: int) -> dict[str, Any]:
    """Quantiles by quadrature of analyses that differ in one thing."""
    count, table = len(whole.frequencies), whole.observed
    deepest = [max(low, float(table.min())) for low in (-10.0, -20.0)]
    analyses: dict[str, Callable[[], FreeSpectrum]] = {
        f"lowest {n}": lambda n=n: lowest(whole, n) for n in range(3, count + 1)
    }
    analyses |= {
        f"without number {b + 1}": lambda b=b: lowest(whole, [k for k in range(bins) if k != b]) for b in range(bins)
    }
    analyses |= {
        f"floor {floor:g}": lambda floor=floor: lowest(whole, bins, table=table.clamp(min=floor)) for floor in deepest
    }
    analyses |= {
        "lower end of the tables mended": lambda: lowest(whole, bins, table=_mended(whole)),
        "kernels of twice the variance": lambda: lowest(whole, bins, table=_broadened(whole)),
        "span 10.33 yr": lambda: lowest(whole, bins, span=10.33 * 365.25 * 86_400),
        "log10 A up to -11": lambda: lowest(whole, bins, parameters=_wider_prior()),
    }
    return {name: Quadrature(build(), FINE // 2).quantiles() for name, build in analyses.items()}


def _bandwidths(whole: FreeSpectrum) -> Tensor:
    path = next(p for n, p in fetch("pta_freespec").items() if n == f"{whole.name}/bandwidths.npy")
    return torch.as_tensor(np.load(path))


def _mended(whole: FreeSpectrum) -> Tensor:
    """Densities that below the lowest draw stay what they are two kernels above it: there the prior ended, no more."""
    table = whole.observed.clone()
    for row, bandwidth in zip(table, _bandwidths(whole), strict=True):
        lowest_draw = whole.grid[row > _ZERO][0]
        first = int(torch.searchsorted(whole.grid, lowest_draw + 2 * KERNEL * bandwidth))
        row[:first] = torch.maximum(row[:first], row[first])
    return table


def _broadened(whole: FreeSpectrum) -> Tensor:
    """Densities convolved with their kernel once more, in units of the grid's step."""
    step = float(whole.grid[1] - whole.grid[0])
    rows = []
    for row, bandwidth in zip(whole.observed.exp().numpy(), _bandwidths(whole).tolist(), strict=True):
        reach = int(KERNEL * bandwidth / step)
        kernel = np.clip(1 - (np.arange(-reach, reach + 1) * step / (KERNEL * bandwidth)) ** 2, 0, None)
        rows.append(np.log(np.maximum(convolve1d(row, kernel / kernel.sum(), mode="nearest"), np.finfo(float).eps)))
    return torch.as_tensor(np.stack(rows))


def _wider_prior() -> sp.Parameters:
    uniform = torch.distributions.Uniform
    return sp.Parameters([sp.Parameter("log10_A", uniform(-18.0, -11.0)), sp.Parameter("gamma", uniform(0.0, 7.0))])


def _pictures(case: str, whole: FreeSpectrum, bins: int, draws: dict[str, sp.Samples], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    truth = INJECTED if case == "sim51" else None
    figure = free_spectrum_figure(
        whole.frequencies,
        whole.grid,
        whole.observed,
        {"power law, posterior": whole.log10_rho(draws["quadrature"].values)},
        fitted=range(bins),
        truth=None if truth is None else whole.log10_rho(truth),
    )
    save_figure(figure, folder / f"free_spectrum_{case}.png")
    save_figure(sp.corner(draws, truth=truth), folder / f"free_spectrum_corner_{case}.png")


if __name__ == "__main__":
    main()
