"""Rounds of points of an integration, and what they say of a map that they were not drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbi_physics.integration.cells import CellMap
from sbi_physics.integration.channels import Draws, Mixture
from sbi_physics.integration.estimate import Iteration
from sbi_physics.integration.grid import ProductGrid

__all__ = ["MOST_CELL_DIMS", "Round", "cells_of", "efficiency_of", "gathered", "reweighted"]

MOST_CELL_DIMS = 6
"""Dimensions in which a tree of cells is worth a try."""

_CELL_SHARE = 0.95


@dataclass(frozen=True)
class Round:
    """The points of one round, and what they say.

    Attributes:
        draws: the points.
        values: the integrand there, ``(n,)``.
        iteration: value, error and calls.
        kind: of the map.
        efficiency: effective sample size of the weights over their number.
    """

    draws: Draws
    values: Tensor
    iteration: Iteration
    kind: str
    efficiency: float

    @property
    def weights(self) -> Tensor:
        """What each point adds to the value of the round, ``(n,)``."""
        return self.draws.factor * self.values * torch.exp(-self.draws.log_q) / self.iteration.repetitions

    def without_points(self) -> "Round":
        """The round with what it found, but not its points."""
        return replace(self, draws=self.draws.first(0), values=self.values[:0])


def gathered(rounds: Sequence[Round], most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of rounds, latest first: where, |f|, log-density drawn from, worth of a point of its round."""
    rows = [(r.draws.points, r.values.abs(), r.draws.log_q, _worth(r)) for r in reversed(rounds)]
    columns = [torch.cat(each)[:most] for each in zip(*rows, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


def _worth(of: Round) -> Tensor:
    return of.draws.factor * len(of.values) * max(of.efficiency, 1e-6)


def reweighted(mixture: Mixture, of: Round) -> tuple[Tensor, Tensor]:
    """Weights f/q of a mixture at the points of a round of another one, and how probable these points are under it."""
    log_q = mixture.log_prob(of.draws.points)
    return of.values * torch.exp(-log_q), of.draws.factor * torch.exp(log_q - of.draws.log_q)


def efficiency_of(mixture: Mixture, of: Round) -> float:
    """Effective share of the weights that a mixture would have, by the points of a round of another one."""
    weights, chance = reweighted(mixture, of)
    first, second = float((chance * weights.abs()).sum()), float((chance * weights.square()).sum())
    return first**2 / second / of.iteration.repetitions if second > 0 else 0.0


def cells_of(points: Tensor, values: Tensor, log_q: Tensor) -> Mixture:
    """A tree of cells fitted to points, and beside it the uniform density."""
    tree = CellMap.fitted(points, values, torch.exp(log_q))
    shares = torch.tensor([_CELL_SHARE, 1 - _CELL_SHARE], dtype=torch.float64)
    return Mixture((tree, ProductGrid.uniform(points.shape[1])), shares)
