r"""Monotonic rational-quadratic splines on [-B, B] with identity tails (Durkan et al. 2019, arXiv:1906.04032).

With K bins, knots $(x_k, y_k)$, slopes $s_k = (y_{k+1}-y_k)/(x_{k+1}-x_k)$, derivatives $\delta_k$ and
$\xi = (x-x_k)/(x_{k+1}-x_k)$, inside a bin (their equations 4 and 5)

$$ y = y_k + \frac{(y_{k+1}-y_k)\,[s_k\xi^2 + \delta_k\xi(1-\xi)]}{s_k + (\delta_{k+1}+\delta_k-2s_k)\,\xi(1-\xi)} $$

$$ \frac{dy}{dx} = \frac{s_k^2[\delta_{k+1}\xi^2 + 2 s_k\xi(1-\xi) + \delta_k(1-\xi)^2]}
   {[s_k + (\delta_{k+1}+\delta_k-2s_k)\,\xi(1-\xi)]^2} $$

Every element goes through the same arithmetic: there is no boolean mask and nothing waits for the host.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rational_quadratic_spline", "spline_parameters"]

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3
# softplus(_UNIT_DERIVATIVE) + MIN_DERIVATIVE == 1, so that a conditioner that returns zero gives the identity.
_UNIT_DERIVATIVE = math.log(math.expm1(1.0 - MIN_DERIVATIVE))


class _Bin(NamedTuple):
    """The quantities of the bin that each element falls into, all of the shape of the input."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    derivative_left: Tensor
    derivative_right: Tensor


def spline_parameters(bins: int) -> int:
    """The number of unconstrained parameters for one dimension: K widths, K heights, K - 1 inner derivatives."""
    return 3 * bins - 1


def rational_quadratic_spline(
    inputs: Tensor, parameters: Tensor, *, bins: int, tail_bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Transform each element by its own spline.

    Args:
        inputs: ``(*)``.
        parameters: ``(*, 3K - 1)`` unconstrained; zero gives the identity.
        bins: K.
        tail_bound: B; outside [-B, B] the transform is the identity.
        inverse: whether to apply the inverse.

    Returns:
        outputs ``(*)`` and the logarithm of the derivative of the applied map ``(*)``.
    """
    inside = inputs.abs() <= tail_bound
    clamped = inputs.clamp(-tail_bound, tail_bound)
    widths, heights, derivatives = parameters.split([bins, bins, bins - 1], dim=-1)
    bin_ = _find_bin(clamped, widths, heights, derivatives, bins, tail_bound, inverse)
    transformed, log_derivative = (_backward if inverse else _forward)(clamped, bin_)
    return torch.where(inside, transformed, inputs), torch.where(inside, log_derivative, 0.0)


def _find_bin(
    clamped: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, bins: int, tail_bound: float, inverse: bool
) -> _Bin:
    x_knots, y_knots = _knots(widths, bins, tail_bound), _knots(heights, bins, tail_bound)
    searched = y_knots if inverse else x_knots
    index = (clamped.detach().unsqueeze(-1) >= searched.detach()[..., 1:-1]).sum(-1, keepdim=True)
    inner = F.softplus(derivatives + _UNIT_DERIVATIVE) + MIN_DERIVATIVE
    slopes = F.pad(inner, (1, 1), value=1.0)
    edges = torch.cat([index, index + 1], dim=-1)
    left, right = x_knots.gather(-1, edges).unbind(-1)
    bottom, top = y_knots.gather(-1, edges).unbind(-1)
    derivative_left, derivative_right = slopes.gather(-1, edges).unbind(-1)
    return _Bin(left, right - left, bottom, top - bottom, derivative_left, derivative_right)


def _knots(unconstrained: Tensor, bins: int, tail_bound: float) -> Tensor:
    """Knots ``(*, K + 1)`` from -B to B; the last is exactly B whatever the rounding."""
    sizes = MIN_BIN + (1 - MIN_BIN * bins) * torch.softmax(unconstrained, dim=-1)
    inner = (2 * tail_bound) * torch.cumsum(sizes[..., :-1], dim=-1) - tail_bound
    return F.pad(F.pad(inner, (1, 0), value=-tail_bound), (0, 1), value=tail_bound)


def _forward(x: Tensor, b: _Bin) -> tuple[Tensor, Tensor]:
    slope = b.height / b.width
    xi = ((x - b.left) / b.width).clamp(0, 1)
    mixed = xi * (1 - xi)
    curvature = b.derivative_left + b.derivative_right - 2 * slope
    denominator = slope + curvature * mixed
    y = b.bottom + b.height * (slope * xi.square() + b.derivative_left * mixed) / denominator
    return y, _log_derivative(slope, xi, mixed, denominator, b)


def _backward(y: Tensor, b: _Bin) -> tuple[Tensor, Tensor]:
    """Solve the quadratic of their equations 6 to 8 for xi."""
    slope = b.height / b.width
    curvature = b.derivative_left + b.derivative_right - 2 * slope
    rise = (y - b.bottom).clamp(min=0)
    a = b.height * (slope - b.derivative_left) + rise * curvature
    half = b.height * b.derivative_left - rise * curvature
    c = -slope * rise
    # Clamped: rounding may push the discriminant of a monotonic spline below zero.
    root = (half.square() - 4 * a * c).clamp(min=1e-30).sqrt()
    xi = (2 * c / (-half - root)).clamp(0, 1)
    mixed = xi * (1 - xi)
    denominator = slope + curvature * mixed
    return b.left + xi * b.width, -_log_derivative(slope, xi, mixed, denominator, b)


def _log_derivative(slope: Tensor, xi: Tensor, mixed: Tensor, denominator: Tensor, b: _Bin) -> Tensor:
    numerator = b.derivative_right * xi.square() + 2 * slope * mixed + b.derivative_left * (1 - xi).square()
    return 2 * torch.log(slope) + torch.log(numerator) - 2 * torch.log(denominator)
