r"""What is rare depends on the coordinates: a test that says how much.

A density is not invariant.  In coordinates y = T(x)

$$ \ln p_Y(y) = \ln p_X(x) - \ln\left|\det \frac{\partial T}{\partial x}\right|, $$

so that one may make any event as unlikely as any other by a choice of T, even if both densities were known exactly (Le
Lan and Dinh 2021, arXiv:2012.03808).  `coordinate_caveat` fits the same detector in two coordinate systems, and tells
whether it finds the same events unusual.  A search that stands on such scores should name its coordinates, and not
change its findings with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from scipy.stats import spearmanr
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import check_seed, derive
from sbi_physics.train.split import held_out_rows

__all__ = ["CoordinateComparison", "Scorer", "coordinate_caveat"]


class Scorer(Protocol):
    """What learns from events, and scores others."""

    def fit(self, features: Any, *, weights: Any = None, seed: int = 0, progress: bool = True) -> "Scorer":
        """Learn from features ``(N, D)``."""

    def score(self, features: Any) -> Tensor:
        """Scores ``(n,)`` of features ``(n, D)``, the higher the less usual."""


@dataclass(frozen=True)
class CoordinateComparison:
    """How alike the scores of the same events are in two coordinate systems.

    Attributes:
        rank_correlation: Spearman's, over all events scored; 1 where the coordinates do not matter.
        overlap: of the most unusual events in one system, the share that is so in the other; 1 where the coordinates do
            not matter, `share` where both have nothing to do with each other.
        share: of the events that counts as the most unusual.
        events: how many were scored.
    """

    rank_correlation: float
    overlap: float
    share: float
    events: int

    def __str__(self) -> str:
        return (
            f"{self.overlap:.0%} of the most unusual {self.share:.1%} of {self.events} events are so in both "
            f"coordinate systems (by chance {self.share:.1%}); rank correlation {self.rank_correlation:.2f}"
        )


def coordinate_caveat(
    detector: Callable[[], Scorer],
    features: Any,
    transform: Callable[[Tensor], Tensor],
    *,
    weights: Any = None,
    share: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> CoordinateComparison:
    """Fit a detector in two coordinate systems to one half of the events, and compare its scores of the other half.

    Args:
        detector: makes an untrained detector, as ``lambda: OutlierDetector("nsf")``.
        features: ``(N, D)``.
        transform: from features to other coordinates ``(n, D')`` of the same events, invertible for the comparison to
            mean something.
        weights: ``(N,)`` weights of the events in training; None for none.
        share: of the events that counts as the most unusual, in (0, 1).
        seed: of the halves and the trainings.
        progress: whether to show progress bars.

    Raises:
        UsageError: the share is not in (0, 1), or is less than one event.
        ShapeError: the transform or the weights do not have as many rows.
        NonFiniteError: features, or their transform, are not finite.
    """
    check_seed(seed)
    if not 0 < share < 1:
        raise UsageError(f"share: expected a number in (0, 1), got {share!r}")
    rows = as_tensor(features, "features", dtype=torch.float64).cpu()
    if rows.ndim != 2:
        raise ShapeError(f"features: expected shape (N, D), got {tuple(rows.shape)}")
    finite(batch_of(rows, rows.shape[1:], "features", minimum=2), "features")
    others = finite(as_tensor(transform(rows), "transform", dtype=torch.float64).cpu(), "transform")
    if others.ndim != 2 or len(others) != len(rows):
        raise ShapeError(f"transform: expected shape ({len(rows)}, D), got {tuple(others.shape)}")
    trained, scored = held_out_rows(len(rows), 0.5, derive(seed, "halves"))
    most = round(share * len(scored))
    if most < 1:
        raise UsageError(f"share: {share:g} of the {len(scored)} events scored is less than one")
    mass = None if weights is None else as_tensor(weights, "weights", dtype=torch.float64).cpu()
    if mass is not None:
        same_length(features=rows, weights=mass)
        mass = mass[trained]
    scores = [
        detector().fit(system[trained], weights=mass, seed=derive(seed, "fit"), progress=progress).score(system[scored])
        for system in (rows, others)
    ]
    first, second = (torch.zeros(len(scored), dtype=torch.bool).scatter(0, s.topk(most).indices, True) for s in scores)
    return CoordinateComparison(
        rank_correlation=float(spearmanr(*scores).statistic),
        overlap=float((first & second).sum()) / most,
        share=share,
        events=len(scored),
    )
