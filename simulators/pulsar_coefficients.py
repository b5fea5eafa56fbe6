r"""The sufficient statistics of a pulsar timing array as its observations.

With the white noise known, the likelihood depends on the residuals of a pulsar through 2 K numbers, its whitened
Fourier coefficients $z_p = R_p a_p + n_p$ with standard normal n (`simulators.timing_projection`): red noise and
background are powers of ten above the white noise at the lowest frequencies, and buried in it at the highest.  So what
a network is given is $\mathrm{arsinh}\,z$, linear in noise and logarithmic in signals, and beside it
$\ln(1 + \mathrm{diag} R)$, what the cadence of the pulsar can see at each frequency.

No residuals need be made to simulate them, which is fast; and other cadences, the same pulsars with part of their
epochs, or without some pulsars, are simulated at once, so that a network learns to serve them all.
"""

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from simulators.pulsar_timing import PulsarTimingArray

__all__ = ["PulsarCoefficients"]

_ROWS_AT_ONCE = 4096
_FEWEST = 0.2


class PulsarCoefficients:
    """A simulator of the coefficients of all pulsars of an array.

    Observations are ``(n_p, 4 K)``: for each pulsar arsinh of 2 K coefficients, sine before cosine from low to high
    frequency, and 2 K numbers that say what its cadence can see.  A pulsar that is absent is a row of NaN.

    Args:
        array: the pulsars and their model.
        absent: probability that a pulsar is left out of a simulation; one at least stays.
        cadences: number of cadences of each pulsar that are simulated: the first is its own, the others lack at random
            part of its times, at their beginning, at their end, or anywhere.
        seed: of the cadences.

    Attributes:
        array: the pulsars and their model.
        missing: whether NaN in what is simulated is no failure.
        parameters: of the array.
        x_shape: ``(n_p, 4 K)``.

    Raises:
        UsageError: `absent` is no probability below one.
    """

    name = "pulsar_coefficients"

    def __init__(self, array: PulsarTimingArray, *, absent: float = 0.0, cadences: int = 1, seed: int = 0) -> None:
        if not 0 <= absent < 1:
            raise UsageError(f"absent: expected a probability in [0, 1), got {absent!r}")
        self.array, self.absent = array, float(absent)
        self.missing = self.absent > 0
        self.parameters: Parameters = array.parameters
        self.x_shape = torch.Size([len(array.pulsars), 4 * array.red_modes])
        self._triangles = [
            [array.likelihood.projection(p, keep).triangle for keep in masks]
            for p, masks in enumerate(self._masks(positive_integer(cadences, "cadences"), seed))
        ]

    def _masks(self, cadences: int, seed: int) -> list[list[Tensor]]:
        """Which times there are in each cadence of each pulsar."""
        found = []
        for pulsar in self.array.pulsars:
            everything = torch.ones(len(pulsar), dtype=torch.bool)
            place = torch.linspace(0, 1, len(pulsar))
            random = torch.Generator().manual_seed(derive(seed, "cadence", pulsar.name))
            masks = [everything]
            for _ in range(cadences - 1):
                first, last, thinned = (torch.rand(3, generator=random) * torch.tensor([0.4, 0.2, 0.5])).tolist()
                keep = (place >= first) & (place <= 1 - last) & (torch.rand(len(pulsar), generator=random) >= thinned)
                masks.append(keep if float(keep.double().mean()) > _FEWEST else everything)
            found.append(masks)
        return found

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, P)`` gives float32 ``(n, n_p, 4 K)``."""
        self.parameters.check_width(theta)
        x = torch.empty((len(theta), *self.x_shape), dtype=torch.float32, device=theta.device)
        with seeded(seed, theta.device), torch.no_grad():
            for first in range(0, len(theta), _ROWS_AT_ONCE):
                x[first : first + _ROWS_AT_ONCE] = self._rows(theta[first : first + _ROWS_AT_ONCE])
        return x

    def _rows(self, theta: Tensor) -> Tensor:
        signal = self.array.coefficients_of_signal(theta)
        rows, members = len(theta), len(self.array.pulsars)
        x = torch.empty((rows, *self.x_shape), dtype=torch.float32, device=theta.device)
        noise = torch.randn(signal.shape, dtype=signal.dtype, device=theta.device)
        chosen = torch.rand((rows, members), device=theta.device)
        for p, triangles in enumerate(self._triangles):
            which = (chosen[:, p] * len(triangles)).long()
            for number, triangle in enumerate(triangles):
                here = torch.nonzero(which == number)[:, 0]
                root = triangle.to(theta.device)
                x[here, p] = _scaled(signal[p, here] @ root.T + noise[p, here] * _directions(root), root)
        if self.absent:
            gone = torch.rand((rows, members), device=theta.device) < self.absent
            one = torch.randint(members, (rows, 1), device=theta.device)
            x[gone.scatter(1, one, False)] = torch.nan
        return x

    def observe(self, residuals: Tensor) -> Tensor:
        """What a network sees of residuals ``(*, n_p, T_max)`` in microseconds, NaN where missing: ``(*, n_p, 4 K)``.

        Raises:
            ShapeError: they are not those of the array.
        """
        if residuals.ndim < 2 or residuals.shape[-2:] != self.array.x_shape:
            shape = tuple(self.array.x_shape)
            raise ShapeError(f"residuals: expected shape (*, {shape[0]}, {shape[1]}), got {tuple(residuals.shape)}")
        statistics = self.array.likelihood.statistics(residuals.reshape(-1, *self.array.x_shape))
        x = torch.empty((len(statistics.coefficients), *self.x_shape), dtype=torch.float32, device=residuals.device)
        for rows, projections in statistics.groups:
            for p, projection in enumerate(projections):
                x[rows, p] = _scaled(statistics.coefficients[rows, p], projection.triangle.to(residuals.device))
        x = torch.where(self._there(residuals).reshape(len(x), -1, 1), x, torch.nan)
        return x.reshape(*residuals.shape[:-2], *self.x_shape)

    def _there(self, residuals: Tensor) -> Tensor:
        """Whether a pulsar has any times in residuals ``(*, n_p, T_max)``: ``(*, n_p)``."""
        within = [torch.isfinite(residuals[..., p, : len(each)]).any(-1) for p, each in enumerate(self.array.pulsars)]
        return torch.stack(within, -1)


def _scaled(z: Tensor, triangle: Tensor) -> Tensor:
    seen = torch.log1p(triangle.diagonal().abs())
    return torch.cat([torch.asinh(z), seen.expand(z.shape)], -1).to(torch.float32)


def _directions(triangle: Tensor) -> Tensor:
    """One for each mode that the cadence leaves a direction of its own, else zero."""
    return (triangle.diagonal() != 0).to(triangle.dtype)
