r"""`Mixture`: several maps of the unit cube, drawn from in fixed numbers and weighted by their common density.

With shares $\alpha_c$ and densities $q_c$ each point gets the weight $f/q$ with $q = \sum_c \alpha_c q_c$, from
whichever channel it came (the balance heuristic: Kleiss and Pittau 1994, hep-ph/9405257; Veach and Guibas 1995).  No
weight exceeds $f/(\alpha_0 q_0)$, so that a small share of the uniform density keeps the weights of a bounded
integrand bounded.  How many points a channel gives is fixed beforehand: for any numbers $n_c$

$$ \sum_c \frac{\alpha_c}{n_c} \sum_{i \in c} \frac{f(x_i)}{q(x_i)} $$

is unbiased, and the scatter between the channels, which is that of a mixture drawn at random, is not there.  The
points of a channel are scrambled nets (`nets`), whose independent repetitions give the error.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbi_physics.core.random import derive
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.nets import scrambled_nets

__all__ = ["Channel", "Draws", "GridChannel", "Map", "Mixture"]

_FEWEST = 8


class Map(Protocol):
    """A bijection of the unit cube, which makes uniform points into those of a density; its inverse may be unknown."""

    @property
    def dims(self) -> int:
        """D."""

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(n, D)`` from uniform ones ``(n, D)``, with their log-density ``(n,)``."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""


@runtime_checkable
class Channel(Protocol):
    """A bijection of the unit cube that can be followed both ways: what a user knows of the peaks of an integrand."""

    @property
    def dims(self) -> int:
        """D."""

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(n, D)`` from uniform ones ``(n, D)``, with their log-density ``(n,)``."""

    def to_v(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The uniform points ``(n, D)`` of points ``(n, D)``, with the log-density of these ``(n,)``."""


@dataclass(frozen=True)
class GridChannel:
    """A product grid, and after it a channel of the user: the grid learns what the channel leaves.

    Attributes:
        grid: the inner map, from uniform numbers to those of the channel.
        channel: the outer map, to points of the cube; None for the identity.
    """

    grid: ProductGrid
    channel: Channel | None = None

    @property
    def dims(self) -> int:
        """D."""
        return self.grid.dims

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the cube ``(n, D)`` from uniform ones, and the log-density there ``(n,)``."""
        y, log_grid = self.grid.to_x(v)
        if self.channel is None:
            return y, log_grid
        x, log_channel = self.channel.to_x(y)
        return x, log_grid + log_channel

    def to_v(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: uniform points ``(n, D)`` of points of the cube, and the log-density of these ``(n,)``."""
        if self.channel is None:
            return self.grid.to_v(x)
        y, log_channel = self.channel.to_v(x)
        v, log_grid = self.grid.to_v(y)
        return v, log_grid + log_channel

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""
        return self.to_v(x)[1]

    def fitted(self, x: Tensor, weights: Tensor) -> "GridChannel":
        """The channel with its grid fitted to points ``(n, D)`` with weights ``(n,)`` that are not negative."""
        y = x if self.channel is None else self.channel.to_v(x)[0]
        return replace(self, grid=self.grid.fitted(y, weights))


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

    def first(self, n: int) -> "Draws":
        """The first n of them."""
        return Draws(*(getattr(self, name)[:n] for name in Draws.__dataclass_fields__))


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

    def draw(self, n: float, repetitions: int, seed: int, allocation: Tensor | None = None) -> Draws:
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
            x, log_own = self.maps[c].to_x(scrambled_nets(count, self.dims, repetitions, derive(seed, c)).flatten(0, 1))
            rows = torch.arange(repetitions).repeat_interleave(count)
            factor = torch.full((len(x),), float(self.shares[c]) / count, dtype=torch.float64)
            parts.append(Draws(x, self._log_prob_of(c, x, log_own), torch.full_like(rows, c), rows, factor))
        return Draws(*(torch.cat([getattr(p, name) for p in parts]) for name in Draws.__dataclass_fields__))

    def independent(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Independent points ``(n, D)``, with the log-density of the mixture there ``(n,)``."""
        random = torch.Generator().manual_seed(derive(seed, "points"))
        channel = torch.multinomial(self.shares, n, replacement=True, generator=random)
        uniform = torch.rand((n, self.dims), generator=random, dtype=torch.float64)
        points, log_q = torch.empty_like(uniform), torch.empty(n, dtype=torch.float64)
        for c, each in enumerate(self.maps):
            mine = channel == c
            x, log_own = each.to_x(uniform[mine])
            points[mine], log_q[mine] = x, self._log_prob_of(c, x, log_own)
        return points, log_q

    def _log_prob_of(self, own: int, x: Tensor, log_own: Tensor) -> Tensor:
        """As `log_prob`, where the density of one channel is known."""
        logs = [log_own if c == own else each.log_prob(x) for c, each in enumerate(self.maps)]
        return (torch.stack(logs, 1) + self.shares.log()).logsumexp(1)

    def _counts(self, n: float, allocation: Tensor) -> list[int]:
        wanted = (allocation / allocation.sum() * n).clamp(min=_FEWEST)
        return [1 << max(0, round(math.log2(float(each)))) for each in wanted]
