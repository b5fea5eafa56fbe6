r"""`check_template`: does the template equal the data where there is no signal?

Bands of the control region next to the signal region are left out of the fit, and the template is drawn at their
masses: an interpolation that is right over the wider gap is right over the narrower one.  Data and template are
compared by a classifier, beside the same for two halves of the data (its floor), and by histograms of each feature and
of each pair,

$$ \chi^2 = \sum_b \frac{(n_b - r\,t_b)^2}{n_b + r^2 t_b}, \qquad r = n / t. $$
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_physics.anomaly.conditional import DensitySettings, MassConditional
from sbi_physics.anomaly.events import Events, SignalRegion
from sbi_physics.core.errors import SupportError
from sbi_physics.core.random import derive, seeded
from sbi_physics.diagnostics.classifier import ClassifierTest, Kind, classifier_auc

__all__ = ["Closure", "Histogram", "check_template", "distance_correlation", "histogram_pulls"]

Array = NDArray[np.float64]
_FEWEST = 200
_BINS, _BINS_OF_PAIRS = 20, 6
_SHARE_OF_REGION, _SHARE_OF_SIDE = 0.5, 0.5
_MOST_FOR_DISTANCES = 2000


@dataclass(frozen=True, eq=False)
class Histogram:
    """Data and template in bins of equal numbers of template events.

    Attributes:
        edges: of each axis, ``(B + 1,)`` each.
        data: counts ``(B,)`` or ``(B, B)``.
        template: expected counts, likewise.
        pulls: differences in standard deviations of both together, likewise.
    """

    edges: tuple[Array, ...]
    data: Array
    template: Array
    pulls: Array

    @property
    def chi2(self) -> float:
        """The sum of the squared pulls."""
        return float(np.square(self.pulls).sum())

    @property
    def ndf(self) -> int:
        """Bins less one."""
        return int(np.isfinite(self.pulls).sum()) - 1


@dataclass(frozen=True, eq=False)
class Closure:
    """How far a template is from data without signal.

    Attributes:
        bands: masses that were left out of the fit and compared, (low, high) each.
        events: of data in the bands.
        test: the classifier between data and template.
        floor: that between two halves of the data.
        features: histograms of each feature.
        pairs: of each pair of features, by their numbers.
    """

    bands: tuple[tuple[float, float], ...]
    events: int
    test: ClassifierTest
    floor: ClassifierTest
    features: tuple[Histogram, ...]
    pairs: dict[tuple[int, int], Histogram]

    @property
    def passed(self) -> bool:
        """Whether the classifier tells data from template no better than by chance."""
        return self.test.passed

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        what = "cannot be told from" if self.passed else "differs from"
        worst = max(one.chi2 / one.ndf for one in self.features)
        return (
            f"the template {what} {self.events} events beside the signal region: AUC {self.test.auc:.3f} ± "
            f"{self.test.expected_error:.3f}, two halves of the data {self.floor.auc:.3f}; largest chi2/ndf of a "
            f"feature {worst:.1f}"
        )


def check_template(
    control: Events, region: SignalRegion, settings: DensitySettings, *, seed: int, progress: bool
) -> Closure:
    """Fit p(x | m) without bands next to the signal region, and compare its draws with the events there.

    Args:
        control: events of the control region.
        region: the signal region.
        settings: of the density.
        seed: of everything random.
        progress: whether to show a progress bar.

    Raises:
        SupportError: there are too few events in the bands, or beyond them.
    """
    bands = _bands(control.mass, region)
    inside = torch.zeros(len(control.mass), dtype=torch.bool)
    for low, high in bands:
        inside |= (control.mass > low) & (control.mass <= high)
    data, rest = control.rows(inside), control.rows(~inside)
    if min(len(data.mass), len(rest.mass)) < _FEWEST:
        raise SupportError(
            f"closure: expected at least {_FEWEST} events in bands next to the signal region and beyond them, got "
            f"{len(data.mass)} and {len(rest.mass)}"
        )
    density = MassConditional(settings)
    density.fit(rest, control.features, seed=derive(seed, "density"), progress=progress, description="closure")
    made = density.sample(data.mass, seed=derive(seed, "sample"))
    weights = None if bool((data.weights == 1).all()) else data.weights
    kind: Kind = "network" if bool((data.weights < 0).any()) else "trees"
    test = classifier_auc(data.features, made, weights=weights, kind=kind, seed=derive(seed, "test"), progress=progress)
    return Closure(
        bands,
        len(data.mass),
        test,
        _floor(data, kind, seed),
        tuple(histogram_pulls(data.features[:, [i]], made[:, [i]], data.weights) for i in range(made.shape[1])),
        {
            pair: histogram_pulls(data.features[:, list(pair)], made[:, list(pair)], data.weights)
            for pair in combinations(range(made.shape[1]), 2)
        },
    )


def histogram_pulls(data: Tensor, template: Tensor, weights: Tensor | None = None) -> Histogram:
    """Compare one feature, or two, in bins of equal numbers of template events.

    Args:
        data: ``(n, 1)`` or ``(n, 2)``.
        template: ``(t, 1)`` or ``(t, 2)``.
        weights: of the data ``(n,)``; None for ones.
    """
    x, t = data.double().numpy(), template.double().numpy()
    w = np.ones(len(x)) if weights is None else weights.double().numpy()
    many = _BINS if x.shape[1] == 1 else _BINS_OF_PAIRS
    edges = []
    for column in t.T:
        inner = np.unique(np.quantile(column, np.linspace(0, 1, many + 1)[1:-1]))
        edges.append(np.concatenate([[-np.inf], inner, [np.inf]]))
    counts, squares = (np.histogramdd(x, edges, weights=power)[0] for power in (w, w**2))
    made = np.histogramdd(t, edges)[0]
    ratio = w.sum() / len(t)
    variance = squares + ratio**2 * made
    with np.errstate(invalid="ignore", divide="ignore"):
        pulls = np.where(variance > 0, (counts - ratio * made) / np.sqrt(variance), 0.0)
    return Histogram(tuple(edges), counts, ratio * made, pulls)


def distance_correlation(x: Tensor, y: Tensor, *, seed: int = 0) -> float:
    """Distance correlation of two variables ``(n,)``: zero only if they are independent, one if one gives the other.

    Székely, Rizzo and Bakirov 2007 (doi:10.1214/009053607000000505); of scores and masses: Kasieczka and Shih 2020,
    arXiv:2001.05310.  Of more than 2,000 events a random part is taken.
    """
    if len(x) > _MOST_FOR_DISTANCES:
        with seeded(derive(seed, "distances")):
            rows = torch.randperm(len(x))[:_MOST_FOR_DISTANCES]
        x, y = x[rows], y[rows]
    centred = []
    for values in (x.double(), y.double()):
        d = (values[:, None] - values[None, :]).abs()
        centred.append(d - d.mean(0) - d.mean(1, keepdim=True) + d.mean())
    products = [float((centred[i] * centred[j]).mean()) for i, j in ((0, 1), (0, 0), (1, 1))]
    if products[1] <= 0 or products[2] <= 0:
        return 0.0
    return float(np.sqrt(max(products[0], 0.0) / np.sqrt(products[1] * products[2])))


def _floor(data: Events, kind: Kind, seed: int) -> ClassifierTest:
    with seeded(derive(seed, "halves")):
        order = torch.randperm(len(data.mass))
    half = len(order) // 2
    first, second = order[:half], order[half : 2 * half]
    return classifier_auc(
        data.features[first],
        data.features[second],
        weights=data.weights[first],
        generated_weights=data.weights[second],
        kind=kind,
        seed=derive(seed, "floor"),
    )


def _bands(mass: Tensor, region: SignalRegion) -> tuple[tuple[float, float], ...]:
    """Half as wide as the region on either side, but no more than half of that side."""
    width = _SHARE_OF_REGION * (region.high - region.low)
    below = min(width, _SHARE_OF_SIDE * (region.low - float(mass.min())))
    above = min(width, _SHARE_OF_SIDE * (float(mass.max()) - region.high))
    return (region.low - below, region.low), (region.high, region.high + above)
