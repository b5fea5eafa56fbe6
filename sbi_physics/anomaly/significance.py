r"""How much a cut improves a search whose signal is known: efficiencies, and the significance improvement.

Where labels are known, as in a simulation, a cut that keeps a share $\epsilon_S$ of the signal and $\epsilon_B$ of the
background changes S / sqrt(B) by the factor $\epsilon_S / \sqrt{\epsilon_B}$ (the significance improvement
characteristic: Gallicchio et al. 2011, arXiv:1012.2077).  Where few background events are left its estimate is mostly
noise, and so its largest value is looked for where at least some pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError

__all__ = ["SignificanceImprovement", "significance_improvement"]

_FEWEST_BACKGROUND = 25


@dataclass(frozen=True, eq=False)
class SignificanceImprovement:
    """Efficiencies of all cuts, from the tightest to the loosest.

    Attributes:
        signal_efficiency: ``(c,)``.
        background_efficiency: ``(c,)``.
        minimum: background events that pass at least.
    """

    signal_efficiency: Tensor
    background_efficiency: Tensor
    minimum: int

    @property
    def values(self) -> Tensor:
        """The significance improvement ``(c,)``."""
        return self.signal_efficiency / self.background_efficiency.sqrt()

    @property
    def maximum(self) -> float:
        """The largest of them."""
        return float(self.values.max())

    @property
    def best_background_efficiency(self) -> float:
        """Where it is the largest."""
        return float(self.background_efficiency[self.values.argmax()])

    def at(self, background_efficiency: float) -> float:
        """The significance improvement of the cut that keeps this share of the background."""
        place = int(torch.searchsorted(self.background_efficiency, torch.tensor(background_efficiency).double()))
        return float(self.values[min(place, len(self.values) - 1)])


def significance_improvement(
    background_scores: Any, signal_scores: Any, *, minimum: int = _FEWEST_BACKGROUND
) -> SignificanceImprovement:
    """Efficiencies and significance improvement of cuts on a score.

    Args:
        background_scores: of background events ``(n,)``, larger where more signal-like.
        signal_scores: of signal events ``(m,)``.
        minimum: background events that pass the tightest cut.

    Raises:
        ShapeError: there is no signal, or too little background.
        NonFiniteError: a score is NaN or infinite.
    """
    least = positive_integer(minimum, "minimum")
    background, signal = (
        finite(as_tensor(value, name, dtype=torch.float64).flatten().cpu(), name)
        for value, name in ((background_scores, "background_scores"), (signal_scores, "signal_scores"))
    )
    if len(background) < least or not len(signal):
        raise ShapeError(
            f"scores: expected at least {least} background events and one signal event, got {len(background)} and "
            f"{len(signal)}"
        )
    cuts = background.sort(descending=True).values
    # A cut keeps all events that are as high as it: of equal background scores the last.
    passing = len(background) - torch.searchsorted(background.sort().values, cuts)
    kept = passing >= least
    reached = len(signal) - torch.searchsorted(signal.sort().values, cuts)
    return SignificanceImprovement(reached[kept] / len(signal), passing[kept].double() / len(background), least)
