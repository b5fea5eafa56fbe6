r"""Monotonic rational-quadratic splines on [-B, B] (Durkan et al. 2019, arXiv:1906.04032).

With K bins, knots $(x_k, y_k)$, widths w, heights h, slopes $s = h/w$, derivatives $\delta_0, \delta_1$ at the edges
of a bin and $\xi = (x-x_k)/w$, inside a bin (their equations 4 and 5)

$$ y = y_k + h\,\frac{s\xi^2 + \delta_0\,\xi(1-\xi)}{D}, \qquad D = s + (\delta_1+\delta_0-2s)\,\xi(1-\xi) $$

$$ \frac{dy}{dx} = \frac{s^2 N}{D^2}, \qquad N = \delta_1\xi^2 + 2s\,\xi(1-\xi) + \delta_0(1-\xi)^2 $$

What happens at the edges is the boundary:

============  ===========================================================  ==========================
``linear``    the identity outside, both end derivatives one               the real line
``bounded``   [-B, B] onto itself, both end derivatives free               an interval
``circular``  period 2B, both end derivatives one free number              an angle; Rezende et al.
                                                                           2020 (arXiv:2002.02428)
============  ===========================================================  ==========================

Every element goes through the same arithmetic: there is no boolean mask and nothing waits for the host.  The backward
pass is analytic: the partial derivatives with respect to the six quantities of the bin are a few products, and only
then are they spread over the K bins.  The inverse has the same backward by the implicit function theorem.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Boundary", "rational_quadratic_spline", "spline_parameters", "wrap"]

Boundary = Literal["linear", "bounded", "circular"]

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3
# softplus(UNIT_DERIVATIVE) + MIN_DERIVATIVE == 1, so that a conditioner that returns zero gives the identity.
UNIT_DERIVATIVE = math.log(math.expm1(1.0 - MIN_DERIVATIVE))
# Free derivatives at the K + 1 knots, less K.
_MORE_DERIVATIVES: dict[Boundary, int] = {"linear": -1, "bounded": 1, "circular": 0}


def spline_parameters(bins: int, boundary: Boundary = "linear") -> int:
    """The number of unconstrained parameters for one dimension.

    K widths, K heights and the free derivatives: K - 1 (linear), K + 1 (bounded) or K (circular).
    """
    return 3 * bins + _MORE_DERIVATIVES[boundary]


def wrap(values: Tensor, bound: float) -> Tensor:
    """Values ``(*)`` less whole periods 2B, in [-B, B] (B itself by rounding alone); inside they keep their bits."""
    return (values - 2 * bound * torch.floor((values + bound) / (2 * bound))).clamp(-bound, bound)


def rational_quadratic_spline(
    inputs: Tensor,
    parameters: Tensor,
    *,
    bins: int,
    tail_bound: float,
    inverse: bool = False,
    boundary: Boundary = "linear",
) -> tuple[Tensor, Tensor]:
    """Transform each element by its own spline f.

    Args:
        inputs: ``(*)``.
        parameters: ``(*, spline_parameters(K, boundary))`` unconstrained; zero gives the identity.
        bins: K.
        tail_bound: B.
        inverse: whether to apply the inverse.
        boundary: outside [-B, B] the map is the identity (linear), goes on with period 2B as ``f(x + 2B) = f(x) + 2B``
            (circular), or is that of the nearer edge, output and derivative (bounded), where the caller is at fault.

    Returns:
        outputs ``(*)`` and the logarithm of the derivative of the applied map ``(*)``; differentiable once.
    """
    outputs, log_derivative, *_ = _Spline.apply(inputs, parameters, bins, tail_bound, inverse, boundary)
    return outputs, log_derivative


class _Bin(NamedTuple):
    """The bin that each element falls into; all but `shares` of the shape of the input."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    raw_derivatives: Tensor  # (2, *), before the softplus
    derivatives: Tensor  # (2, *)
    shares: Tensor  # (2, K, *) softmax of widths and heights
    position: Tensor  # (1, *)


def _find_bin(
    clamped: Tensor, parameters: Tensor, bins: int, tail_bound: float, inverse: bool, boundary: Boundary
) -> _Bin:
    # The bins come first: operations over them then run along long rows, several times faster than along eight numbers.
    leading = parameters.movedim(-1, 0).contiguous()
    shares = torch.softmax(leading[: 2 * bins].unflatten(0, (2, bins)), dim=1)
    sizes = (shares * (2 * tail_bound * (1 - MIN_BIN * bins))).add_(2 * tail_bound * MIN_BIN)
    right_edges = torch.cumsum(sizes, dim=1).sub_(tail_bound)
    index = (clamped >= right_edges[1 if inverse else 0, :-1]).sum(0, keepdim=True)
    both = index.expand(2, *index.shape).contiguous()
    size = sizes.gather(1, both).squeeze(1)
    left, bottom = (right_edges.gather(1, both).squeeze(1) - size).unbind(0)
    width, height = size.unbind(0)
    raw = _at_knots(leading[2 * bins :], boundary).gather(0, torch.cat([index, index + 1]))
    derivatives = F.softplus(raw + UNIT_DERIVATIVE) + MIN_DERIVATIVE
    return _Bin(left, width, bottom, height, raw, derivatives, shares, index)


def _at_knots(free: Tensor, boundary: Boundary) -> Tensor:
    """The raw derivatives ``(K + 1, *)`` at all knots from those that are free."""
    if boundary == "bounded":
        return free
    if boundary == "circular":
        return torch.cat([free, free[:1]])
    # The outermost derivatives are one, which a raw value of zero gives.
    zero = free.new_zeros(1, *free.shape[1:])
    return torch.cat([zero, free, zero])


def _forward(x: Tensor, b: _Bin) -> tuple[Tensor, Tensor]:
    """Position in the bin and output."""
    slope, (d0, d1) = b.height / b.width, b.derivatives.unbind(0)
    xi = ((x - b.left) / b.width).clamp(0, 1)
    mixed = xi * (1 - xi)
    denominator = slope + (d0 + d1 - 2 * slope) * mixed
    return xi, b.bottom + b.height * (slope * xi.square() + d0 * mixed) / denominator


def _backward(y: Tensor, b: _Bin) -> tuple[Tensor, Tensor]:
    """Position in the bin and input, from the quadratic of their equations 6 to 8."""
    slope, (d0, d1) = b.height / b.width, b.derivatives.unbind(0)
    rise = (y - b.bottom).clamp(min=0)
    bend = rise * (d0 + d1 - 2 * slope)
    quadratic, linear, constant = b.height * (slope - d0) + bend, b.height * d0 - bend, -slope * rise
    # Clamped: rounding may push the discriminant of a monotonic spline below zero.
    root = (linear.square() - 4 * quadratic * constant).clamp(min=1e-30).sqrt()
    xi = (2 * constant / (-linear - root)).clamp(0, 1)
    return xi, b.left + xi * b.width


def _log_derivative(xi: Tensor, b: _Bin) -> Tensor:
    slope, (d0, d1) = b.height / b.width, b.derivatives.unbind(0)
    mixed = xi * (1 - xi)
    numerator = d1 * xi.square() + 2 * slope * mixed + d0 * (1 - xi).square()
    return torch.log(slope.square() * numerator / (slope + (d0 + d1 - 2 * slope) * mixed).square())


class _Spline(torch.autograd.Function):
    """The spline with an analytic backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        inputs: Tensor, parameters: Tensor, bins: int, tail_bound: float, inverse: bool, boundary: Boundary
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        circular = boundary == "circular"
        clamped = wrap(inputs, tail_bound) if circular else inputs.clamp(-tail_bound, tail_bound)
        bin_ = _find_bin(clamped, parameters, bins, tail_bound, inverse, boundary)
        xi, outputs = (_backward if inverse else _forward)(clamped, bin_)
        log_derivative = _log_derivative(xi, bin_)
        log_derivative = -log_derivative if inverse else log_derivative
        if boundary == "linear":
            inside = inputs.abs() <= tail_bound
            outputs, log_derivative = torch.where(inside, outputs, inputs), torch.where(inside, log_derivative, 0.0)
        else:
            outputs = outputs.clamp(-tail_bound, tail_bound)
            outputs = outputs + (inputs - clamped) if circular else outputs
        sizes = torch.stack([bin_.width, bin_.height])
        return outputs, log_derivative, xi, sizes, bin_.raw_derivatives, bin_.shares, bin_.position

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(True)
        ctx.save_for_backward(inputs[0], *output[2:])
        ctx.bins, ctx.tail_bound, ctx.inverse, ctx.boundary = inputs[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_log: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        inputs, xi, sizes, raw, shares, index = ctx.saved_tensors
        partial = _Partials.at(xi, sizes, F.softplus(raw + UNIT_DERIVATIVE) + MIN_DERIVATIVE)
        grad_out, grad_l, inside = grad_outputs, grad_log, None
        if ctx.boundary == "linear":
            inside = inputs.abs() <= ctx.tail_bound
            grad_out, grad_l = torch.where(inside, grad_out, 0.0), torch.where(inside, grad_l, 0.0)
        if ctx.inverse:
            # x(y, p) from f(x, p) = y: dx = (dy - f_p dp) / f_x, and the log-derivative is -l(x, p).
            through = (grad_out - grad_l * partial.l_xi / sizes[0]) * sizes[0] / partial.y_xi
            grad_inputs, grad_out, grad_l = through, -through, -grad_l
        else:
            grad_inputs = (grad_out * partial.y_xi + grad_l * partial.l_xi) / sizes[0]
        edge, size, derivative = partial.spread(grad_out, grad_l)
        if inside is not None:
            grad_inputs = torch.where(inside, grad_inputs, grad_outputs)
        grad_sizes = _grad_sizes(edge, size, shares, index, ctx.bins, ctx.tail_bound)
        grad_derivatives = _grad_derivatives(derivative, raw, index, ctx.bins, ctx.boundary)
        grad_parameters = torch.cat([grad_sizes, grad_derivatives]).movedim(0, -1).contiguous()
        return grad_inputs, grad_parameters, None, None, None, None


class _Partials(NamedTuple):
    """Partial derivatives of y and of l = ln(dy/dx) with respect to the quantities of the bin."""

    xi: Tensor
    width: Tensor
    slope: Tensor
    y_xi: Tensor
    y_slope: Tensor
    y_height: Tensor
    y_d0: Tensor
    y_d1: Tensor
    l_xi: Tensor
    l_slope: Tensor
    l_d0: Tensor
    l_d1: Tensor

    @classmethod
    def at(cls, xi: Tensor, sizes: Tensor, derivatives: Tensor) -> "_Partials":
        width, height = sizes.unbind(0)
        d0, d1 = derivatives.unbind(0)
        slope, rest = height / width, 1 - xi
        mixed, square, rest_square = xi * rest, xi.square(), rest.square()
        curvature = d0 + d1 - 2 * slope
        inverse_d = 1 / (slope + curvature * mixed)
        numerator = d1 * square + 2 * slope * mixed + d0 * rest_square
        inverse_n = 1 / numerator
        level = (slope * square + d0 * mixed) * inverse_d
        scaled = height * inverse_d
        common = 2 * mixed * inverse_d
        gap = rest - xi
        return cls(
            xi,
            width,
            slope,
            scaled * inverse_d * slope * numerator,
            scaled * (square - level * (1 - 2 * mixed)),
            level,
            scaled * mixed * (1 - level),
            -scaled * mixed * level,
            2 * ((d1 * xi + slope * gap - d0 * rest) * inverse_n - curvature * gap * inverse_d),
            2 * (1 / slope + mixed * inverse_n - (1 - 2 * mixed) * inverse_d),
            rest_square * inverse_n - common,
            square * inverse_n - common,
        )

    def spread(self, grad_y: Tensor, grad_l: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to left and bottom edges, width and height, and derivatives: each ``(2, *)``.

        The position xi moves with left edge and width at fixed x, in either direction of the map; for the inverse the
        caller has put the dependence of x itself into `grad_y`.
        """
        grad_xi = (grad_y * self.y_xi + grad_l * self.l_xi) / self.width
        grad_slope = (grad_y * self.y_slope + grad_l * self.l_slope) / self.width
        edge = torch.stack([-grad_xi, grad_y])
        size = torch.stack([-grad_xi * self.xi - grad_slope * self.slope, grad_y * self.y_height + grad_slope])
        derivative = torch.stack([grad_y * self.y_d0 + grad_l * self.l_d0, grad_y * self.y_d1 + grad_l * self.l_d1])
        return edge, size, derivative


def _grad_sizes(edge: Tensor, size: Tensor, shares: Tensor, index: Tensor, bins: int, bound: float) -> Tensor:
    """From gradients in edges and sizes of the bin to those in the unconstrained widths and heights ``(2K, *)``."""
    position = torch.arange(bins, device=index.device).view(bins, *[1] * (index.ndim - 1))
    # An edge is the sum of all sizes before it.
    each = torch.where(position < index, edge.unsqueeze(1), torch.where(position == index, size.unsqueeze(1), 0.0))
    weighted = each * shares
    spread = weighted.sub_(shares * weighted.sum(1, keepdim=True))
    return spread.mul_(2 * bound * (1 - MIN_BIN * bins)).flatten(0, 1)


def _grad_derivatives(derivative: Tensor, raw: Tensor, index: Tensor, bins: int, boundary: Boundary) -> Tensor:
    """From gradients in the two derivatives of the bin to those in the free raw derivatives, bins first."""
    slopes = derivative * torch.sigmoid(raw + UNIT_DERIVATIVE)
    at_knots = torch.zeros(bins + 1, *index.shape[1:], dtype=slopes.dtype, device=slopes.device)
    at_knots = at_knots.scatter(0, torch.cat([index, index + 1]), slopes)
    if boundary == "bounded":
        return at_knots
    if boundary == "circular":
        return torch.cat([at_knots[:1] + at_knots[-1:], at_knots[1:-1]])
    return at_knots[1:-1]
