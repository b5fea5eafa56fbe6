"""`OutlierDetector` beside scikit-learn's isolation forest, local outlier factor and kernel density.

=========  ==========================================================  =================================================
case       usual                                                       unusual
=========  ==========================================================  =================================================
``sheet``  four numbers that follow from two but for noise             the same columns, each in an order of its own
``dijet``  background of `DijetResonance` in the signal region         its signal
``lhco``   LHC Olympics R&D events as they are, 0.66 % of them signal  further events of signal
=========  ==========================================================  =================================================

Each is fitted to the same events, and judged by others; labels are used for that alone.  Features are standardised for
the peers; all else is each package's default.  Where the density of what is usual is known, minus its logarithm is the
score that a density estimate approaches.  That is no bound for one given signal, of which no detector has seen any; the
bound is the likelihood ratio to that signal.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sbi_physics.anomaly.outlier import OutlierDetector
from sbi_physics.anomaly.significance import significance_improvement
from sbi_physics.core.random import derive, numpy_generator, seeded
from sbi_physics.diagnostics.scores import Scored, area_under_curve
from sbi_physics.store.lhco import load_lhco
from simulators.dijet import DijetResonance

__all__ = ["CASES", "outliers"]

Array = NDArray[np.float64]

CASES = ("sheet", "dijet", "lhco")
OURS = ("nsf", "autoencoder", "kernel")
THEIRS: dict[str, Callable[[int], Any]] = {
    "isolation forest": lambda seed: IsolationForest(random_state=seed),
    "local outlier factor": lambda _: LocalOutlierFactor(novelty=True),
    "kernel density": lambda _: KernelDensity(bandwidth="scott"),
}
TEST_USUAL, TEST_UNUSUAL = 20_000, 5_000
REGION, RANGE, NODES = (3.3, 3.7), (3.0, 4.2), 32
NOISE = 0.5
EFFICIENCIES, RESAMPLES = (0.01, 0.1), 200


class _Case(NamedTuple):
    """Events to learn from, usual and unusual ones that judge, and log-densities of both where they are known."""

    train: Tensor
    usual: Tensor
    unusual: Tensor
    log_usual: Callable[[Tensor], Tensor] | None = None
    log_unusual: Callable[[Tensor], Tensor] | None = None


def outliers(case: str, events: int, seed: int) -> list[dict[str, Any]]:
    """All detectors on one case: areas, significance improvements, and seconds to fit and to score."""
    data = {"sheet": _sheet, "dijet": _dijet, "lhco": _lhco}[case](events, derive(seed, case))
    rows = []
    usual, unusual = data.log_usual, data.log_unusual
    if usual is not None and unusual is not None:
        rows.append(_judged("exact likelihood ratio", data, lambda x: unusual(x) - usual(x), 0.0, seed))
        rows.append(_judged("exact density", data, lambda x: -usual(x), 0.0, seed))
    for model in OURS:
        began = time.process_time()
        detector = OutlierDetector(model, device="cpu").fit(data.train, seed=seed, progress=False)
        rows.append(_judged(f"ours, {model}", data, detector.score, time.process_time() - began, seed))
    for name, made in THEIRS.items():
        began = time.process_time()
        peer = make_pipeline(StandardScaler(), made(seed)).fit(data.train.numpy())
        seconds = time.process_time() - began
        rows.append(_judged(f"scikit-learn, {name}", data, lambda x, by=peer: _score(by, x), seconds, seed))
    return rows


def _score(peer: Any, x: Tensor) -> Tensor:
    return -torch.from_numpy(np.asarray(peer.score_samples(x.numpy())))


def _judged(name: str, data: _Case, score: Callable[[Tensor], Tensor], fit: float, seed: int) -> dict[str, Any]:
    began = time.process_time()
    usual, unusual = score(data.usual).double(), score(data.unusual).double()
    seconds = time.process_time() - began
    ones = [Scored(one, torch.ones_like(one)) for one in (unusual, usual)]
    area, error, _ = area_under_curve(*ones)
    random = numpy_generator(derive(seed, "bootstrap"))
    again = [_improvements(*(_resampled(one, random) for one in (usual, unusual))) for _ in range(RESAMPLES)]
    row = {
        "detector": name,
        "auc": area,
        "auc_error": error,
        "improvement": _improvements(usual, unusual),
        "improvement_error": np.std(again, axis=0).tolist(),
        "fit_seconds": fit,
        "score_microseconds": 1e6 * seconds / (len(usual) + len(unusual)),
    }
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def _improvements(usual: Tensor, unusual: Tensor) -> list[float]:
    curve = significance_improvement(usual, unusual)
    return [curve.at(efficiency) for efficiency in EFFICIENCIES]


def _resampled(scores: Tensor, random: np.random.Generator) -> Tensor:
    return scores[torch.from_numpy(random.integers(len(scores), size=len(scores)))]


def _sheet(events: int, seed: int) -> _Case:
    x = _on_the_sheet(events + TEST_USUAL, derive(seed, "usual"))
    apart = _on_the_sheet(TEST_UNUSUAL, derive(seed, "unusual"))
    with seeded(derive(seed, "order")):
        apart = torch.stack([column[torch.randperm(TEST_UNUSUAL)] for column in apart.T], -1)
    return _Case(x[:events], x[events:], apart, _log_sheet, _log_apart)


def _on_the_sheet(n: int, seed: int) -> Tensor:
    with seeded(seed):
        z = torch.randn((n, 4), dtype=torch.float64)
    a, b = z[:, 0], z[:, 1]
    return torch.stack([a, b, a + 0.5 * b**2 + NOISE * z[:, 2], a - b + NOISE * z[:, 3]], -1)


def _log_sheet(x: Tensor) -> Tensor:
    a, b, third, fourth = x.T
    return _normal(a) + _normal(b) + _normal(third, a + 0.5 * b**2, NOISE) + _normal(fourth, a - b, NOISE)


def _log_apart(x: Tensor) -> Tensor:
    """Each column by its own density; the third is a normal number and half the square of another."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
    third = _normal(x[:, 2, None], 0.5 * nodes**2, math.hypot(1, NOISE)) + torch.log(weights / weights.sum())
    return _normal(x[:, :2]).sum(-1) + torch.logsumexp(third, -1) + _normal(x[:, 3], 0.0, math.hypot(2**0.5, NOISE))


def _normal(x: Tensor, mean: Tensor | float = 0.0, spread: float = 1.0) -> Tensor:
    return -0.5 * ((x - mean) / spread) ** 2 - math.log(spread * (2 * math.pi) ** 0.5)


def _dijet(events: int, seed: int) -> _Case:
    simulator = DijetResonance(mass_range=RANGE)
    x, _ = simulator.sample_background(events + TEST_USUAL, window=REGION, seed=seed)
    signal, _ = simulator.sample_signal(TEST_UNUSUAL, window=REGION, seed=seed)
    # Averaged over the dijet mass in the region, of which the detectors know nothing.
    low, high = REGION
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(NODES))
    mass = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    background, peak = (
        torch.log(weights) + of(mass) for of in (simulator.log_mass_background, simulator.log_mass_signal)
    )

    def averaged(of: Callable[[Tensor, Tensor], Tensor], masses: Tensor, at: Tensor) -> Tensor:
        conditional = of(at[:, None, :].expand(-1, NODES, -1), mass.expand(len(at), NODES))
        return torch.logsumexp(masses.log_softmax(-1) + conditional, -1)

    return _Case(
        x[:events],
        x[events:],
        signal,
        lambda at: averaged(simulator.log_background, background, at),
        lambda at: averaged(simulator.log_signal, peak, at),
    )


def _lhco(events: int, seed: int) -> _Case:
    data = load_lhco(progress=False)
    with seeded(seed):
        train, test, signal = (torch.randperm(len(part)) for part in (data.train, data.test, data.extra_signal))
    test = test[data.test.labels[test] == 0][:TEST_USUAL]
    return _Case(
        data.train.features[train[:events]],
        data.test.features[test],
        data.extra_signal.features[signal[:TEST_UNUSUAL]],
    )
