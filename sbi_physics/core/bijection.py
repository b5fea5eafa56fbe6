r"""The bijection between the support of a prior and the whole real space, or a box where both bounds are finite.

Each parameter is mapped on its own, by its bounds alone:

=================  ==============================================  =====================
bounds             to the real line                                used for
=================  ==============================================  =====================
both finite        $z = \Phi^{-1}((\theta-a)/(b-a))$ (probit)      uniform, beta
lower finite       $z = \ln(\theta-a)$                             log-normal, half-normal
upper finite       $z = -\ln(b-\theta)$                            the mirror image
none               $z = \theta$                                    normal
=================  ==============================================  =====================

For a model that lives on a box $[-B, B]^P$ itself, the map of two finite bounds is affine,
$z = B\,(2\theta-a-b)/(b-a)$; the others stay as they are.

The probit makes a uniform prior exactly a standard normal, so that a posterior which is cut by the edge of its prior
has Gaussian tails in z, which a flow with a Gaussian base represents without effort.  The arithmetic is in double
precision, and points on the real line always land strictly inside the support in the precision of the caller.
"""

import math

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, SupportError

__all__ = ["SupportBijection"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_TINY = torch.finfo(torch.float64).tiny


class SupportBijection:
    """An elementwise bijection between a product of intervals and R^P, or the [-B, B] of those with two bounds.

    Args:
        bounds: ``(P, 2)`` lower and upper bounds; infinite where there is none.
        box: B, for an affine map of intervals onto [-B, B]; None maps onto R^P.

    Raises:
        ShapeError: bounds are not ``(P, 2)``.
        SupportError: a lower bound is not below its upper bound, or a bound is NaN.
    """

    def __init__(self, bounds: Tensor, *, box: float | None = None) -> None:
        bounds = torch.as_tensor(bounds, dtype=torch.float64).detach().cpu()
        if bounds.ndim != 2 or bounds.shape[1] != 2:
            raise ShapeError(f"bounds: expected shape (P, 2), got {tuple(bounds.shape)}")
        if not bool((bounds[:, 0] < bounds[:, 1]).all()):
            raise SupportError(f"bounds: expected lower < upper for each parameter, got {bounds.tolist()}")
        has_lower, has_upper = torch.isfinite(bounds[:, 0]), torch.isfinite(bounds[:, 1])
        self.bounds, self.box = bounds, box
        self.dims = len(bounds)
        self._groups = {
            "both": torch.nonzero(has_lower & has_upper)[:, 0],
            "lower": torch.nonzero(has_lower & ~has_upper)[:, 0],
            "upper": torch.nonzero(~has_lower & has_upper)[:, 0],
        }

    @property
    def is_identity(self) -> bool:
        """Whether no parameter has a bound."""
        return not any(len(group) for group in self._groups.values())

    @property
    def interior(self) -> Tensor:
        """A point ``(P,)`` inside the bounds, float64: where the real line has its origin."""
        return self.to_support(torch.zeros(self.dims, dtype=torch.float64))[0]

    def within(self, theta: Tensor) -> Tensor:
        """Whether each row of theta ``(*, P)`` lies within the closed bounds: boolean ``(*,)``; False for NaN."""
        lower, upper = self.bounds.to(theta.device, theta.dtype).unbind(-1)
        return ((theta >= lower) & (theta <= upper)).all(-1)

    def to_unbounded(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Map theta ``(*, P)`` to z ``(*, P)``, with ln|dz/dtheta| ``(*,)``, both in the dtype of theta.

        A value on a bound counts as the next number inside it; a value outside its bounds becomes NaN.
        """
        if self.is_identity:
            return theta, theta.new_zeros(theta.shape[:-1])
        value = self.strictly_inside(theta).double()
        lower, upper = self.bounds.to(theta.device, theta.dtype).unbind(-1)
        value = torch.where((theta >= lower) & (theta <= upper), value, torch.nan)
        z, ladj = value.clone(), torch.zeros_like(value)
        for kind, index, lower, upper in self._each(theta.device):
            column = value[..., index]
            if kind == "both" and self.box is not None:
                z[..., index] = self.box * ((column - lower) - (upper - column)) / (upper - lower)
                ladj[..., index] = torch.log(2 * self.box / (upper - lower))
            elif kind == "both":
                # From the nearer bound, where the difference is exact and never rounds to nothing.
                nearer_lower = column - lower < upper - column
                share = torch.where(nearer_lower, column - lower, upper - column) / (upper - lower)
                quantile = torch.special.ndtri(share.clamp(min=_TINY))
                z[..., index] = torch.where(nearer_lower, quantile, -quantile)
                ladj[..., index] = 0.5 * quantile**2 + _LOG_SQRT_2PI - torch.log(upper - lower)
            elif kind == "lower":
                log = torch.log(column - lower)
                z[..., index], ladj[..., index] = log, -log
            else:
                log = torch.log(upper - column)
                z[..., index], ladj[..., index] = -log, -log
        return z.to(theta.dtype), ladj.sum(-1).to(theta.dtype)

    def to_support(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z ``(*, P)`` to theta strictly inside the bounds, with ln|dtheta/dz| ``(*,)``, both in the dtype of z."""
        if self.is_identity:
            return z, z.new_zeros(z.shape[:-1])
        value = z.double()
        theta, ladj = value.clone(), torch.zeros_like(value)
        for kind, index, lower, upper in self._each(z.device):
            column = value[..., index]
            if kind == "both" and self.box is not None:
                theta[..., index] = lower + (column + self.box) / (2 * self.box) * (upper - lower)
                ladj[..., index] = torch.log((upper - lower) / (2 * self.box))
            elif kind == "both":
                nearer_lower = column < 0
                distance = (upper - lower) * torch.special.ndtr(torch.where(nearer_lower, column, -column))
                theta[..., index] = torch.where(nearer_lower, lower + distance, upper - distance)
                ladj[..., index] = torch.log(upper - lower) - 0.5 * column**2 - _LOG_SQRT_2PI
            elif kind == "lower":
                theta[..., index], ladj[..., index] = lower + torch.exp(column), column
            else:
                theta[..., index], ladj[..., index] = upper - torch.exp(-column), -column
        largest = torch.finfo(z.dtype).max
        return self.strictly_inside(theta.to(z.dtype).clamp(-largest, largest)), ladj.sum(-1).to(z.dtype)

    def strictly_inside(self, theta: Tensor) -> Tensor:
        """Move values of theta ``(*, P)`` on or beyond a bound to the next number inside it; NaN stays."""
        exact_lower, exact_upper = self.bounds.to(theta.device).unbind(-1)
        lower, upper = exact_lower.to(theta.dtype), exact_upper.to(theta.dtype)
        infinity = torch.full_like(lower, torch.inf)
        # A double bound may round inwards or outwards in single precision: step only where the number is not inside.
        inner_lower = torch.where(lower.double() > exact_lower, lower, torch.nextafter(lower, infinity))
        inner_upper = torch.where(upper.double() < exact_upper, upper, torch.nextafter(upper, -infinity))
        inside = torch.where(exact_lower.isfinite(), torch.maximum(theta, inner_lower), theta)
        return torch.where(exact_upper.isfinite(), torch.minimum(inside, inner_upper), inside)

    def _each(self, device: torch.device) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        bounds = self.bounds.to(device)
        groups = ((kind, index.to(device)) for kind, index in self._groups.items() if len(index))
        return [(kind, index, bounds[index, 0], bounds[index, 1]) for kind, index in groups]
