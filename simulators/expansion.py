r"""Distances in a flat universe of matter and dark energy.

$$ E^2(z) = \Omega_m (1+z)^3 + (1 - \Omega_m)\,(1+z)^{3(1 + w_0 + w_a)} e^{-3 w_a z / (1 + z)}, \qquad
   \frac{H_0}{c} D_C(z) = \int_0^z \frac{dz'}{E(z')} = \int_0^{\ln(1 + z)} \frac{e^u}{E(u)}\,du, $$

for an equation of state $w(a) = w_0 + w_a (1 - a)$; radiation and the mass of neutrinos are left out.  The integrand is
smooth in u = ln(1 + z): it is evaluated at Chebyshev points between 0 and the largest redshift, and the polynomial
through them is integrated exactly up to each redshift.  All distances of all cosmologies are one matrix product.
Sources: Hogg 1999 (arXiv:astro-ph/9905116); Chevallier & Polarski 2001 (arXiv:gr-qc/0009008); Linder 2003
(arXiv:astro-ph/0208512).
"""

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["ComovingDistance"]

_POINTS = 64


class ComovingDistance:
    """Comoving distances at given redshifts, in units of c / H_0.

    Args:
        redshifts: ``(N,)``, positive.
        points: at which 1 / E is evaluated.

    Raises:
        ShapeError: the redshifts are not ``(N,)`` with N at least 1.
        NonFiniteError: one is NaN or infinite.
        UsageError: one is not positive.
    """

    def __init__(self, redshifts: Tensor, points: int = _POINTS) -> None:
        self.redshifts = finite(redshifts.to("cpu", torch.float64), "redshifts")
        if self.redshifts.ndim != 1 or len(self.redshifts) == 0:
            raise ShapeError(f"redshifts: expected shape (N,), got {tuple(self.redshifts.shape)}")
        if not bool((self.redshifts > 0).all()):
            raise UsageError(f"redshifts: expected positive numbers, got {float(self.redshifts.min()):g}")
        at = torch.log1p(self.redshifts).numpy()
        places, half = chebyshev.chebpts1(points), at.max() / 2
        coefficients = 2 / points * chebyshev.chebvander(places, points - 1).T
        coefficients[0] /= 2
        integrals = chebyshev.chebint(coefficients, lbnd=-1, scl=half)
        self._weights = torch.as_tensor(integrals.T @ chebyshev.chebvander(at / half - 1, points).T)
        self._u = torch.as_tensor(half * (places + 1))

    def __call__(self, omega_m: Tensor, w0: Tensor | float = -1.0, wa: Tensor | float = 0.0) -> Tensor:
        """Distances for parameters ``(*,)`` that broadcast: float64 ``(*, N)``, differentiable.

        NaN where E^2 is not positive at all redshifts, as may be for a matter density below zero.
        """
        matter = torch.as_tensor(omega_m, dtype=torch.float64).unsqueeze(-1)
        w0, wa = (torch.as_tensor(v, dtype=torch.float64, device=matter.device).unsqueeze(-1) for v in (w0, wa))
        u = self._u.to(matter.device)
        dark = torch.exp(3 * (1 + w0 + wa) * u + 3 * wa * torch.expm1(-u))
        squared = matter * torch.exp(3 * u) + (1 - matter) * dark
        possible = squared > 0
        inverse = torch.where(possible, squared, 1.0).rsqrt()
        distances = (torch.exp(u) * inverse) @ self._weights.to(matter.device)
        return torch.where(possible.all(-1, keepdim=True), distances, torch.nan)
