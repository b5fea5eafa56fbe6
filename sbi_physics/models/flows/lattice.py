r"""Flows for fields on an L x L torus that know its symmetries.

From the field to noise, ``lattice_flow`` is

1. `SpectralScaling`: each momentum mode times a learned factor, equal for momenta that rotations and reflections of the
   lattice connect;
2. couplings in turn on the two colours of a checkerboard (Albergo, Kanwar and Shanahan 2019, arXiv:1904.12072): each
   site of one colour moves along a spline (`models.flows.spline`), for which a network looks at all sites of the
   other colour, from where the site is: a convolution on the torus as wide as the torus, then layers site by site;
3. `SpectralScaling` again, after which a Gaussian field is white noise: it is exact for a free theory, and leaves to
   the couplings what is not Gaussian, most of which is local.

All of it commutes with those translations that keep the colours, and where ``odd`` is set with phi -> -phi, too: the
parameters p of a spline are symmetrised, with R, which turns the spline about the origin,

$$ \tfrac12\,[p(\phi) + R\,p(-\phi)], \qquad \text{so that}\quad f_{-\phi}(-x) = -f_{\phi}(x) $$

(equivariant flows: Koehler, Klein and Noe 2020, arXiv:2006.02425; for this field: Del Debbio, Marsh Rossney and Wilson
2021, arXiv:2105.12481).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import CompositeTransform, Transform
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import check_seed, seeded
from sbi_physics.models.flows.spline import MIN_BIN, rational_quadratic_spline, spline_parameters

__all__ = ["CheckerboardCoupling", "SpectralScaling", "lattice_flow"]


def lattice_flow(
    side: int,
    *,
    couplings: int = 4,
    hidden_features: int = 32,
    blocks: int = 1,
    bins: int = 8,
    tail_bound: float = 4.0,
    width: float = 0.5,
    odd: bool = True,
    seed: int = 0,
) -> Flow:
    """A flow from fields ``(n, L*L)``, row by row, to standard-normal noise.

    Args:
        side: L, an even number.
        couplings: how many; the colours take turns.
        hidden_features: of the network of each coupling.
        blocks: its residual layers site by site.
        bins: of the splines.
        tail_bound: the splines act on [-tail_bound, tail_bound], where the field has a width of about one.
        width: standard deviation of the field to begin with.
        odd: whether the density is the same for phi and -phi.
        seed: of the weights.

    Raises:
        UsageError: an argument has a value that it cannot have.
    """
    if positive_integer(side, "side") % 2:
        raise UsageError(f"side: expected an even number, as a checkerboard on a torus needs, got {side}")
    for value, name in ((couplings, "couplings"), (hidden_features, "hidden_features"), (blocks, "blocks")):
        positive_integer(value, name)
    if positive_integer(bins, "bins") * MIN_BIN >= 1:
        raise UsageError(f"bins: expected fewer than {1 / MIN_BIN:g}, got {bins}")
    for number, name in ((tail_bound, "tail_bound"), (width, "width")):
        if not 0 < number < math.inf:
            raise UsageError(f"{name}: expected a finite number above 0, got {number!r}")
    settings: dict[str, Any] = {
        "hidden_features": hidden_features,
        "blocks": blocks,
        "bins": bins,
        "tail_bound": tail_bound,
        "odd": odd,
    }
    with seeded(check_seed(seed)):
        moves = [CheckerboardCoupling(side, i % 2, **settings) for i in range(couplings)]
    layers = [SpectralScaling(side, 1 / width), *moves, SpectralScaling(side)]
    return Flow(CompositeTransform(layers), StandardNormal([side**2]))


class SpectralScaling(Transform):
    """Each momentum mode of a field times its own positive factor.

    Args:
        side: L.
        factor: of all modes to begin with.
    """

    orbit: Tensor

    def __init__(self, side: int, factor: float = 1.0) -> None:
        super().__init__()
        self.side = side
        index = torch.arange(side)
        momentum = torch.minimum(index, side - index)
        large, small = (pick(momentum.unsqueeze(1), momentum) for pick in (torch.maximum, torch.minimum))
        distinct, orbit = (large * side + small).unique(return_inverse=True)
        self.register_buffer("orbit", orbit)
        self.log_factors = nn.Parameter(torch.full((len(distinct),), math.log(factor)))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: fields ``(n, L*L)`` give fields ``(n, L*L)`` and the log-determinant ``(n,)``."""
        return self._scaled(inputs, self.log_factors[self.orbit])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        return self._scaled(inputs, -self.log_factors[self.orbit])

    def _scaled(self, field: Tensor, log_factors: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.side, self.side)
        modes = torch.fft.rfft2(field.unflatten(1, shape)) * log_factors.exp()[:, : self.side // 2 + 1]
        return torch.fft.irfft2(modes, s=shape).flatten(1), log_factors.sum().expand(len(field))


class CheckerboardCoupling(Transform):
    """A spline coupling that moves the sites of one colour of a checkerboard.

    Args:
        side: L, an even number.
        colour: of the sites that move, 0 or 1.
        hidden_features: of the network.
        blocks: its residual layers.
        bins: of each spline.
        tail_bound: the splines act on [-tail_bound, tail_bound].
        odd: whether the coupling commutes with phi -> -phi.
    """

    moved: Tensor
    kept: Tensor
    offset: Tensor
    order: Tensor

    def __init__(
        self, side: int, colour: int, *, hidden_features: int, blocks: int, bins: int, tail_bound: float, odd: bool
    ) -> None:
        super().__init__()
        self.bins, self.tail_bound, self.odd = bins, tail_bound, odd
        row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
        mine = (row + column) % 2 == colour
        moved, kept = torch.nonzero(mine)[:, 0], torch.nonzero(~mine)[:, 0]
        down = (row[moved] - row[kept].unsqueeze(1)) % side
        right = (column[moved] - column[kept].unsqueeze(1)) % side
        distinct, offset = (down * side + right).unique(return_inverse=True)
        self.register_buffer("moved", moved)
        self.register_buffer("kept", kept)
        self.register_buffer("offset", offset)
        self.register_buffer("order", torch.argsort(torch.cat([kept, moved])))
        self.kernel = nn.Parameter(torch.randn(len(distinct), hidden_features) / math.sqrt(len(distinct)))
        self.bias = nn.Parameter(0.5 * torch.randn(hidden_features))
        self.blocks = nn.ModuleList(nn.Linear(hidden_features, hidden_features) for _ in range(blocks))
        self.last = nn.Linear(hidden_features, spline_parameters(bins))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: fields ``(n, L*L)`` give fields ``(n, L*L)`` and the log-determinant ``(n,)``."""
        return self._apply_splines(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        return self._apply_splines(inputs, inverse=True)

    def _apply_splines(self, field: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = field[:, self.kept], field[:, self.moved]
        moved, log_derivative = rational_quadratic_spline(
            moved, self._parameters_of(kept), bins=self.bins, tail_bound=self.tail_bound, inverse=inverse
        )
        return torch.cat([kept, moved], 1)[:, self.order], log_derivative.sum(1)

    def _parameters_of(self, kept: Tensor) -> Tensor:
        """The parameters ``(n, sites, K)`` of the splines, from the field on the sites of the other colour."""
        # The kernel as a matrix: one product, where a convolution would do half of its work on sites that do not count.
        matrix = self.kernel[self.offset].flatten(1)
        seen = (kept @ matrix).unflatten(1, (len(self.moved), -1))
        if not self.odd:
            return self._network(seen)
        plain, mirrored = self._network(torch.cat([seen, -seen])).chunk(2)
        parts = mirrored.split([self.bins, self.bins, self.bins - 1], -1)
        return 0.5 * (plain + torch.cat([part.flip(-1) for part in parts], -1))

    def _network(self, seen: Tensor) -> Tensor:
        hidden = F.silu(seen + self.bias)
        for block in self.blocks:
            hidden = hidden + F.silu(block(hidden))
        return self.last(hidden)
