"""The stretch move of Goodman and Weare on a space some of whose axes are circles."""

from typing import Any

import numpy as np
import numpy.typing as npt
from emcee.moves import StretchMove
from torch import Tensor

from sbi_physics.core.circle import wrapped

__all__ = ["CircularStretchMove"]

Array = npt.NDArray[np.float64]


class CircularStretchMove(StretchMove):
    """A stretch along the shortest way to the partner, which may lead over the two bounds that are one point.

    The chart is the turn around the partner, which the move leaves alone: a stretch that would leave it is refused, as
    its way back would be another one.  Within it the move is that of the plane, and so is its acceptance.

    Args:
        bounds: ``(P, 2)``.
        periodic: P flags: which axes are circles.
    """

    def __init__(self, bounds: Tensor, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        self.bounds, self.periodic = bounds, periodic
        self.turn = np.where(periodic, (bounds[:, 1] - bounds[:, 0]).numpy(), np.inf)

    def get_proposal(self, s: Array, c: list[Array], random: Any) -> tuple[Array, Array]:
        """Proposed points within the bounds for the walkers `s`, and the logarithms of their factors."""
        others = np.concatenate(c)
        stretch = ((self.a - 1) * random.rand(len(s)) + 1) ** 2 / self.a
        partner = others[random.randint(len(others), size=len(s))]
        away = s - partner
        circle = np.isfinite(self.turn)
        away[:, circle] -= self.turn[circle] * np.round(away[:, circle] / self.turn[circle])
        away *= stretch[:, None]
        factors = np.where((np.abs(away) > self.turn / 2).any(1), -np.inf, (s.shape[1] - 1) * np.log(stretch))
        return wrapped(self.bounds.new_tensor(partner + away), self.bounds, self.periodic).numpy(), factors
