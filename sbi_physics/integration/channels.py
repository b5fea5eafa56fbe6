r"""`Mixture`: several maps of the unit cube, drawn from in fixed numbers and weighted by their common density.

With shares $\alpha_c$ and densities $q_c$ each point gets the weight $f/q$ with $q = \sum_c \alpha_c q_c$, from
whichever channel it came (the balance heuristic: Kleiss and Pittau 1994, hep-ph/9405257; Veach and Guibas 1995).  No
weight exceeds $f/(\alpha_0 q_0)$, so that a small share of the uniform density keeps the weights of a bounded
integrand bounded.  How many points a channel gives is fixed beforehand: for any numbers $n_c$

$$ \sum_c \frac{\alpha_c}{n_c} \sum_{i \in c} \frac{f(x_i)}{q(x_i)} $$

is unbiased, and the scatter between the channels, which is that of a mixture drawn at random, is not there.  The
points of a channel are scrambled Sobol nets (Owen 1995; Matousek 1998), whose independent repetitions give the error.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sbi_physics.core.random import derive

__all__ = ["Draws", "Map", "Mixture", "sobol_points"]

_RESOLUTION = 2.0**-30
_FEWEST = 8


class Map(Protocol):
    """A bijection of the unit cube, which makes uniform points into those of a density."""

    @property
    def dims(self) -> int:
        """D."""

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(n, D)`` from uniform ones ``(n, D)``, with their log-density ``(n,)``."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""


@dataclass(frozen=True)
class Draws:
    """Points of a mixture.

    Attributes:
        points: ``(n, D)``.
        log_q: log-density of the mixture, ``(n,)``.
        channel: whence each point is, ``(n,)``.
        repetition: the independent repetition that it belongs to, ``(n,)``.
        factor: what its weight f/q is multiplied by in the sum of its repetition, ``(n,)``.
    """

    points: Tensor
    log_q: Tensor
    channel: Tensor
    repetition: Tensor
    factor: Tensor


@dataclass(frozen=True)
class Mixture:
    """Maps with shares that sum to one, ``(C,)`` float64."""

    maps: tuple[Map, ...]
    shares: Tensor

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def dims(self) -> int:
        """D."""
        return self.maps[0].dims

    def log_joint(self, x: Tensor) -> Tensor:
        """Log of share times density of each channel at points ``(n, D)``: ``(n, C)``."""
        return torch.stack([each.log_prob(x) for each in self.maps], 1) + self.shares.log()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""
        return self.log_joint(x).logsumexp(1)

    def draw(self, n: int, repetitions: int, seed: int, allocation: Tensor | None = None) -> Draws:
        """About n points in independent repetitions, each with fixed numbers of points in the channels.

        Args:
            n: wanted number; the numbers in channels are powers of two.
            repetitions: R, independent of one another.
            seed: of the scrambling.
            allocation: share of the points that each channel gives ``(C,)``; None takes the shares of the density.
        """
        counts = self._counts(n / repetitions, self.shares if allocation is None else allocation)
        parts = []
        for c, count in enumerate(counts):
            uniform = torch.cat([sobol_points(count, self.dims, derive(seed, c, r)) for r in range(repetitions)])
            x, log_own = self.maps[c].to_x(uniform)
            rows = torch.arange(repetitions).repeat_interleave(count)
            factor = torch.full((len(x),), float(self.shares[c]) / count, dtype=torch.float64)
            parts.append(Draws(x, self._log_prob_of(c, x, log_own), torch.full_like(rows, c), rows, factor))
        return Draws(*(torch.cat([getattr(p, name) for p in parts]) for name in Draws.__dataclass_fields__))

    def _log_prob_of(self, own: int, x: Tensor, log_own: Tensor) -> Tensor:
        """As `log_prob`, where the density of one channel is known."""
        logs = [log_own if c == own else each.log_prob(x) for c, each in enumerate(self.maps)]
        return (torch.stack(logs, 1) + self.shares.log()).logsumexp(1)

    def _counts(self, n: float, allocation: Tensor) -> list[int]:
        wanted = (allocation / allocation.sum() * n).clamp(min=_FEWEST)
        return [1 << max(0, round(math.log2(float(each)))) for each in wanted]


def sobol_points(n: int, dims: int, seed: int) -> Tensor:
    """A scrambled Sobol net ``(n, dims)`` float64 in [0, 1), whose every point is uniform; best with n a power of two."""
    net = torch.quasirandom.SobolEngine(dims, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    # The net has 30 binary digits: below them each point moves at random, or no point would come near the faces.
    random = torch.Generator().manual_seed(derive(seed, "digits"))
    return net + _RESOLUTION * torch.rand(net.shape, generator=random, dtype=torch.float64)
