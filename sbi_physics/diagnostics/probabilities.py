r"""Are probabilities what they say?  Reliability curves and the expected calibration error of a classifier.

Of all events that are given the probability p of a class, a share p should be of it.  In bins of equal content, with
mean probability $\bar p_k$ and share $s_k$ of the $n_k$ events of a bin,

$$ \mathrm{ECE} = \sum_k \frac{n_k}{n}\,|s_k - \bar p_k| $$

(Naeini, Cooper and Hauskrecht 2015, AAAI; Guo et al. 2017, arXiv:1706.04599), the mean over the classes.  It is never
zero: what perfect probabilities give is found by drawing the classes anew from them (Vaicenavicius et al. 2019,
arXiv:1902.06977), and the share of such draws with an error at least as large is the p-value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import check_seed, derive, seeded

__all__ = ["Reliability", "reliability"]

_RESAMPLINGS = 300
_LEAST = 50


@dataclass(frozen=True)
class Reliability:
    """Calibration of the probabilities of M classes over n events, in K bins.

    Attributes:
        names: of the classes.
        predicted: mean probability in each bin, ``(M, K)``.
        observed: share of events that are of the class, ``(M, K)``.
        error: standard deviation of that share if the probabilities are right, ``(M, K)``.
        counts: events in each bin, ``(M, K)``.
        calibration_error: the expected calibration error.
        calibration_error_spread: its standard deviation, by bootstrap.
        expected: what it would be on the average if the probabilities were right.
        p_value: of an error as large as this if they are.
        over_confidence: mean probability of the likeliest class less the share of events that are of it.
        events: n.
        level: the probability that right probabilities flunk.
    """

    names: tuple[str, ...]
    predicted: Tensor
    observed: Tensor
    error: Tensor
    counts: Tensor
    calibration_error: float
    calibration_error_spread: float
    expected: float
    p_value: float
    over_confidence: float
    events: int
    level: float

    @property
    def passed(self) -> bool:
        """Whether the probabilities are not significantly off."""
        return self.p_value >= self.level

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        kind = "calibrated"
        if not self.passed:
            kind = "over-confident" if self.over_confidence > 0 else "under-confident"
        return (
            f"{kind}: expected calibration error {100 * self.calibration_error:.1f} ± "
            f"{100 * self.calibration_error_spread:.1f} %, where right probabilities give {100 * self.expected:.1f} % "
            f"over {self.events} events (p-value {self.p_value:.2g})"
        )


def reliability(
    probability: Any,
    label: Any,
    names: Sequence[str] | None = None,
    *,
    bins: int = 10,
    level: float = 0.01,
    seed: int = 0,
) -> Reliability:
    """Check probabilities against what happened.

    Args:
        probability: ``(n, M)``, rows that sum to one.
        label: ``(n,)`` the class of each event, from 0.
        names: M names; class_0, ... where None.
        bins: K, of equal content for each class.
        level: the probability that right probabilities flunk.
        seed: of the bootstrap and the resampled classes.

    Raises:
        ShapeError: the shapes do not fit, or there are fewer than 50 events.
        NonFiniteError: a probability is NaN.
        UsageError: rows do not sum to one, a label is no class, or there are not M names.
    """
    share = finite(as_tensor(probability, "probability", dtype=torch.float64), "probability").cpu()
    labels = as_tensor(label, "label", dtype=torch.float64).cpu()
    if share.ndim != 2 or labels.shape != share.shape[:1] or len(share) < _LEAST:
        raise ShapeError(
            f"expected probability (n, M) and label (n,) with n of at least {_LEAST}, got {tuple(share.shape)} and "
            f"{tuple(labels.shape)}"
        )
    n, classes = share.shape
    if bool((share < 0).any()) or not torch.allclose(share.sum(1), torch.ones(n, dtype=torch.float64), atol=1e-4):
        raise UsageError("probability: expected rows of numbers of at least 0 that sum to one")
    which = labels.long()
    if not bool(((which == labels) & (which >= 0) & (which < classes)).all()):
        raise UsageError(f"label: expected whole numbers from 0 to {classes - 1}")
    titles = tuple(names) if names is not None else tuple(f"class_{i}" for i in range(classes))
    if len(titles) != classes:
        raise UsageError(f"names: expected {classes}, one for each class, got {len(titles)}")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability in (0, 1), got {level!r}")
    place = _bins(share, min(positive_integer(bins, "bins"), n // 5))
    counts, predicted, observed = _shares(share, which, place)
    found = float(_error(counts, predicted, observed))
    again = _resampled(share, place, derive(check_seed(seed), "classes"))
    with seeded(derive(seed, "bootstrap")):
        rows = torch.randint(n, (_RESAMPLINGS, n))
    boot = torch.stack([_error(*_shares(share[r], which[r], place[r])) for r in rows])
    variance = _sum_in_bins(share * (1 - share), place)
    confidence, guess = share.max(1)
    return Reliability(
        titles,
        predicted,
        observed,
        variance.sqrt() / counts.clamp(min=1),
        counts,
        found,
        float(boot.std()),
        float(again.mean()),
        float((1 + (again >= found).sum()) / (1 + len(again))),
        float((confidence - (guess == which).double()).mean()),
        n,
        level,
    )


def _bins(share: Tensor, bins: int) -> Tensor:
    """The bin ``(n, M)`` of each probability among those of its class, of equal content."""
    order = share.argsort(dim=0, stable=True).argsort(dim=0)
    return (order * bins) // len(share)


def _sum_in_bins(values: Tensor, place: Tensor) -> Tensor:
    """Sums ``(M, K)`` of values ``(n, M)``."""
    bins = int(place.max()) + 1
    return torch.zeros(bins, values.shape[1], dtype=values.dtype).scatter_add(0, place, values).T


def _shares(share: Tensor, which: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, mean probabilities and shares of each class in each bin: ``(M, K)``."""
    hit = torch.nn.functional.one_hot(which, share.shape[1]).double()
    counts = _sum_in_bins(torch.ones_like(share), place)
    filled = counts.clamp(min=1)
    return counts, _sum_in_bins(share, place) / filled, _sum_in_bins(hit, place) / filled


def _error(counts: Tensor, predicted: Tensor, observed: Tensor) -> Tensor:
    return ((counts * (observed - predicted).abs()).sum(1) / counts.sum(1)).mean()


def _resampled(share: Tensor, place: Tensor, seed: int) -> Tensor:
    """Calibration errors of classes that are drawn from the probabilities."""
    edges = share.cumsum(1)[:, :-1].contiguous()
    found = []
    with seeded(seed):
        for _ in range(_RESAMPLINGS):
            u = torch.rand(len(share), 1, dtype=torch.float64)
            found.append(_error(*_shares(share, (u > edges).sum(1), place)))
    return torch.stack(found)
