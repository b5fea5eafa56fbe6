r"""Flows on a box [-B, B]^D, some of whose dimensions may be circles: coupling layers and the uniform base.

No layer leaves the box, so that a density which is cut by the edge of its support keeps a sharp edge, and one on a
circle is continuous across the wrap.  An interval goes through a bounded spline; a circle through a circular one f
followed by a rotation (Rezende et al. 2020, arXiv:2002.02428),

$$ y = f(x) + \frac{B}{\pi}\,\mathrm{atan2}(b, 1 + a) \mod 2B, $$

whose phase follows a context once around the circle without a jump.  Other dimensions are seen through
$(\cos, \sin)(\pi x/B)$ where they are circles, else as x/B.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions.base import Distribution
from nflows.transforms.base import Transform
from torch import Tensor

from sbi_physics.models.flows.conditioner import coupling_net, residual_net
from sbi_physics.models.flows.spline import Boundary, rational_quadratic_spline, spline_parameters, wrap

__all__ = ["BoxCoupling", "UniformBox"]

_PHASE = 2


class UniformBox(Distribution):
    """The uniform distribution on [-B, B]^D.

    Args:
        features: D.
        bound: B.
    """

    _placed: Tensor

    def __init__(self, features: int, bound: float = 1.0) -> None:
        super().__init__()
        self.features, self.bound = features, bound
        # Knows device and precision.
        self.register_buffer("_placed", torch.zeros(()), persistent=False)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        inside = (inputs.abs() <= self.bound).all(-1)
        level = inputs.new_full((len(inputs),), -self.features * math.log(2 * self.bound))
        return torch.where(inside, level, -torch.inf)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        batch = (num_samples,) if context is None else (len(context), num_samples)
        uniform = torch.rand(*batch, self.features, dtype=self._placed.dtype, device=self._placed.device)
        return self.bound * (2 * uniform - 1)


class BoxCoupling(Transform):
    """A coupling layer on the box: some dimensions move, by splines that the others and the context choose.

    Args:
        features: D.
        context_features: width of the context, or None.
        moved: the dimensions that move, from 0; where all do, the splines depend on the context alone.
        circular: the dimensions that are circles.
        hidden_features: width of the residual conditioner.
        blocks: residual blocks of the conditioner.
        bins: bins of each spline.
        bound: B.
    """

    def __init__(
        self,
        features: int,
        context_features: int | None,
        *,
        moved: Sequence[int],
        circular: Sequence[int] = (),
        hidden_features: int,
        blocks: int,
        bins: int,
        bound: float = 1.0,
    ) -> None:
        super().__init__()
        self.bins, self.bound = bins, bound
        columns = {
            "moved_intervals": [i for i in moved if i not in circular],
            "moved_circles": [i for i in moved if i in circular],
            "kept_intervals": [i for i in range(features) if i not in moved and i not in circular],
            "kept_circles": [i for i in range(features) if i not in moved and i in circular],
        }
        for name, indices in columns.items():
            self.register_buffer(name, torch.tensor(indices, dtype=torch.long), persistent=False)
        seen = len(columns["kept_intervals"]) + 2 * len(columns["kept_circles"])
        self.sizes = [
            len(columns["moved_intervals"]) * spline_parameters(bins, "bounded"),
            len(columns["moved_circles"]) * (spline_parameters(bins, "circular") + _PHASE),
        ]
        self.conditioner = coupling_net(max(seen, 1), sum(self.sizes), context_features, hidden_features, blocks)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: ``(n, D)`` and contexts ``(n, C)`` or ``(1, C)`` give ``(n, D)`` and the log-determinant."""
        return self._move(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        return self._move(inputs, context, inverse=True)

    def _move(self, inputs: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = residual_net(self.conditioner, self._seen(inputs), context).to(inputs).expand(len(inputs), -1)
        intervals, circles = parameters.split(self.sizes, dim=1)
        outputs, ladj = inputs, torch.zeros_like(inputs[:, 0])
        for columns, chosen, move in (
            (self.moved_intervals, intervals, self._move_intervals),
            (self.moved_circles, circles, self._move_circles),
        ):
            if not len(columns):
                continue
            chosen = chosen.unflatten(1, (len(columns), -1))
            values, log_derivative = move(inputs.index_select(1, columns), chosen, inverse)
            outputs, ladj = outputs.index_copy(1, columns, values), ladj + log_derivative.sum(1)
        return outputs, ladj

    def _seen(self, inputs: Tensor) -> Tensor:
        """What the conditioner sees of the dimensions that are kept."""
        intervals = inputs.index_select(1, self.kept_intervals) / self.bound
        angles = inputs.index_select(1, self.kept_circles) * (math.pi / self.bound)
        seen = torch.cat([intervals, torch.cos(angles), torch.sin(angles)], dim=1)
        return seen if seen.shape[1] else torch.zeros_like(inputs[:, :1])

    def _move_intervals(self, values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return self._spline(values, parameters, inverse, "bounded")

    def _move_circles(self, values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters, (a, b) = parameters[..., :-_PHASE], parameters[..., -_PHASE:].unbind(-1)
        phase = torch.atan2(b, 1 + a) * (self.bound / math.pi)
        turned, log_derivative = self._spline(values - phase if inverse else values, parameters, inverse, "circular")
        return wrap(turned if inverse else turned + phase, self.bound), log_derivative

    def _spline(self, values: Tensor, parameters: Tensor, inverse: bool, boundary: Boundary) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"bins": self.bins, "tail_bound": self.bound}
        return rational_quadratic_spline(values, parameters, inverse=inverse, boundary=boundary, **options)
