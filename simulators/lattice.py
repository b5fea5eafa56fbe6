r"""A real scalar field with a quartic coupling on an L x L torus, known up to its partition function.

With the lattice spacing one and each bond counted once (Albergo, Kanwar and Shanahan 2019, arXiv:1904.12072, eq. 15),

$$ S(\phi) = \sum_x \Big[\sum_\mu (\phi_{x+\mu} - \phi_x)^2 + m^2\phi_x^2 + \lambda\phi_x^4\Big], \qquad
   p(\phi) = e^{-S(\phi)}/Z, \qquad F = -\ln Z. $$

Without a coupling the modes of momentum k are independent Gaussians, and with $\hat k^2 = \sum_\mu (2 - 2\cos k_\mu)$

$$ F = \tfrac12\sum_k \ln\frac{\hat k^2 + m^2}{\pi}, \qquad
   G(x) = \langle\phi_x\phi_0\rangle = \frac{1}{L^2}\sum_k \frac{\cos kx}{2(\hat k^2 + m^2)}. $$

With one, the 2 x 2 torus is left: a sum over a grid in four dimensions, whose error falls faster than any power of its
spacing.  On any torus scaling the field gives the exact $\langle\sum_x\phi_x\,\partial S/\partial\phi_x\rangle = L^2$.
For m^2 < 0 a coupling that is small enough breaks the symmetry phi -> -phi: on a finite torus into two modes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.checks import not_negative, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError

__all__ = ["ExactMoments", "ScalarField", "magnetisation", "susceptibility", "two_point_function"]

_FEWEST_POINTS = 5
_GRID_EDGE = 60.0
"""The action at the edge of the grid, above its least: what lies outside is of the order of e^-60."""


class ExactMoments(NamedTuple):
    """Exact results for a small torus.

    Attributes:
        free_energy: -ln Z.
        absolute_magnetisation: <|M|>, M the mean of the field.
        susceptibility: L^2 <M^2>.
        action: <S> / L^2.
    """

    free_energy: float
    absolute_magnetisation: float
    susceptibility: float
    action: float


class ScalarField:
    """The action of a scalar field on a torus; flat fields ``(*, L*L)``, row by row.

    Args:
        side: L, at least 2.
        mass_squared: m^2, of either sign.
        coupling: lambda.

    Raises:
        UsageError: a coupling below zero, or a side below 2.
        SupportError: no coupling, and a mass squared that is not positive: Z is infinite.
    """

    def __init__(self, side: int, mass_squared: float, coupling: float) -> None:
        self.side = positive_integer(side, "side")
        if self.side < 2:
            raise UsageError(f"side: expected at least 2, got {side}")
        self.coupling = not_negative(coupling, "coupling")
        if not math.isfinite(mass_squared):
            raise UsageError(f"mass_squared: expected a finite number, got {mass_squared!r}")
        if self.coupling == 0 and mass_squared <= 0:
            raise SupportError(f"mass_squared: without a coupling expected a number above 0, got {mass_squared!r}")
        self.mass_squared = float(mass_squared)
        self.sites = self.side**2

    def action(self, field: Tensor) -> Tensor:
        """S, float64 ``(*,)``, of fields ``(*, L*L)``; differentiable.

        Raises:
            ShapeError: the fields do not have L*L sites.
        """
        phi = _square(field, self.side).to(torch.float64)
        bonds = sum((phi.roll(1, axis) - phi).square() for axis in (-1, -2))
        square = phi.square()
        return (bonds + square * (self.mass_squared + self.coupling * square)).sum((-2, -1))

    def log_density(self, field: Tensor) -> Tensor:
        """-S, float64 ``(*,)``: the logarithm of the density up to -ln Z."""
        return -self.action(field)

    def propagator(self) -> Tensor:
        """G(x) of the free theory, float64 ``(L, L)``.

        Raises:
            UsageError: the theory has a coupling.
        """
        return torch.fft.ifft2(0.5 / self._quadratic_form()).real

    def free_energy(self) -> float:
        """-ln Z of the free theory.

        Raises:
            UsageError: the theory has a coupling.
        """
        return float(0.5 * torch.log(self._quadratic_form() / math.pi).sum())

    def exact_moments(self, points: int = 41) -> ExactMoments:
        """Free energy and moments of a 2 x 2 torus by summing over a grid.

        Args:
            points: of the grid, along each of the four axes.

        Raises:
            UsageError: the torus is larger, or the points are too few.
        """
        if self.side != 2 or positive_integer(points, "points") < _FEWEST_POINTS:
            raise UsageError(
                f"expected a 2 x 2 torus and at least {_FEWEST_POINTS} points, got side {self.side} and {points}"
            )
        axis = torch.linspace(-1, 1, points, dtype=torch.float64) * self._edge()
        field = torch.cartesian_prod(axis, axis, axis, axis)
        action = self.action(field)
        log_weights = -action - torch.logsumexp(-action, 0)
        weights, mean = log_weights.exp(), magnetisation(field)
        return ExactMoments(
            -float(torch.logsumexp(-action, 0)) - self.sites * math.log(float(axis[1] - axis[0])),
            float(weights @ mean.abs()),
            float(weights @ susceptibility(field)),
            float(weights @ action) / self.sites,
        )

    def _edge(self) -> float:
        """Where m^2 phi^2 + lambda phi^4 of a site is so far above its least that there is no density."""
        m, coupling = self.mass_squared, self.coupling
        if coupling == 0:
            return math.sqrt(_GRID_EDGE / m)
        # Three more sites may each be at their least.
        height = _GRID_EDGE + 4 * min(m, 0.0) ** 2 / (4 * coupling)
        return math.sqrt((-m + math.sqrt(m**2 + 4 * coupling * height)) / (2 * coupling))

    def _quadratic_form(self) -> Tensor:
        """The eigenvalues k^2 + m^2 ``(L, L)`` of the free action."""
        if self.coupling:
            raise UsageError(f"coupling: only the free theory is solved, expected 0, got {self.coupling:g}")
        lattice_momentum = 2 - 2 * torch.cos(2 * math.pi * torch.arange(self.side, dtype=torch.float64) / self.side)
        return lattice_momentum.unsqueeze(0) + lattice_momentum.unsqueeze(1) + self.mass_squared


def magnetisation(field: Tensor) -> Tensor:
    """M, the mean of each field, of either sign: ``(*, L*L)`` to ``(*,)``."""
    return field.mean(-1)


def susceptibility(field: Tensor) -> Tensor:
    """L^2 M^2 of each field, the sum of its two-point function: ``(*, L*L)`` to ``(*,)``."""
    return field.shape[-1] * magnetisation(field).square()


def two_point_function(field: Tensor) -> Tensor:
    """The mean over y of phi_y phi_(y+x) of each field, for each x: ``(*, L*L)`` to ``(*, L, L)``.

    Raises:
        ShapeError: the fields are not square.
    """
    phi = _square(field, math.isqrt(field.shape[-1]) if field.ndim else 0)
    power = torch.fft.rfft2(phi).abs().square()
    return torch.fft.irfft2(power, s=phi.shape[-2:]) / field.shape[-1]


def _square(field: Tensor, side: int) -> Tensor:
    if field.ndim == 0 or side < 1 or field.shape[-1] != side**2:
        wanted = f"{side**2}" if side else "L*L"
        raise ShapeError(f"field: expected shape (*, {wanted}) of a square lattice, got {tuple(field.shape)}")
    return field.unflatten(-1, (side, side))
