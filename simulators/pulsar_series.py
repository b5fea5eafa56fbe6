"""The residuals of a pulsar timing array as series for recurrent encoders.

Each pulsar is a series of epochs: when, the residual, its uncertainty, and the receiver.  Residuals of one receiver
that share an epoch are averaged first (`simulators.pulsar.averaged`), which loses no more of slow noise than the white
noise hides.  They go in as arsinh of the residual over the typical uncertainty of the pulsar, linear in noise and
logarithmic in signals.
"""

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from simulators.pulsar import averaged
from simulators.pulsar_timing import PulsarTimingArray

__all__ = ["PulsarSeries"]

_ROWS_AT_ONCE = 2048


class PulsarSeries:
    """A simulator of the averaged residuals of all pulsars of an array, each with its epoch and what was measured how.

    Observations are ``(n_p, E, 3 + receivers)``: time from -1 to 1 over the span of the array, the scaled residual,
    log10 of the uncertainty in microseconds, and one number for each receiver of the array, one for that of the epoch.
    Epochs that are not there are rows of NaN, as are those of a pulsar that is absent.

    Args:
        array: the pulsars and their model.
        absent: probability that a pulsar is left out of a simulation; one at least stays.

    Attributes:
        array: the pulsars and their model.
        missing: whether NaN in what is simulated is no failure.
        parameters: of the array.
        x_shape: ``(n_p, E, 3 + receivers)``, E the largest number of epochs.
        receivers: their names, in the order of the channels.

    Raises:
        UsageError: `absent` is no probability below one.
    """

    name = "pulsar_series"

    def __init__(self, array: PulsarTimingArray, *, absent: float = 0.0) -> None:
        if not 0 <= absent < 1:
            raise UsageError(f"absent: expected a probability in [0, 1), got {absent!r}")
        self.array, self.absent = array, float(absent)
        self.parameters: Parameters = array.parameters
        self._epochs = [averaged(pulsar) for pulsar in array.pulsars]
        self.receivers = tuple(sorted({name for each in self._epochs for name in each.receivers}))
        self._scales = [float(each.uncertainties.median()) * 1e6 for each in self._epochs]
        self._design = self._constant_channels()
        self.missing = self.absent > 0 or bool(torch.isnan(self._design).any())
        self.x_shape = torch.Size([*self._design.shape[:2], self._design.shape[2] + 1])

    def _constant_channels(self) -> Tensor:
        """Time, log10 of the uncertainty, receivers ``(n_p, E, 2 + receivers)``; NaN after the last epoch."""
        longest = max(len(each.toas) for each in self._epochs)
        found = torch.full((len(self._epochs), longest, 2 + len(self.receivers)), torch.nan)
        first = min(float(each.toas.min()) for each in self._epochs)
        last = max(float(each.toas.max()) for each in self._epochs)
        for p, each in enumerate(self._epochs):
            count = len(each.toas)
            found[p, :count, 0] = (2 * (each.toas - first) / (last - first) - 1).float()
            found[p, :count, 1] = torch.log10(each.uncertainties * 1e6).float()
            found[p, :count, 2:] = torch.tensor(
                [[name == r for r in self.receivers] for name in each.receivers]
            ).float()
        return found

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, P)`` gives float32 ``(n, n_p, E, 3 + receivers)``."""
        self.parameters.check_width(theta)
        x = torch.empty((len(theta), *self.x_shape), dtype=torch.float32, device=theta.device)
        for first in range(0, len(theta), _ROWS_AT_ONCE):
            rows = theta[first : first + _ROWS_AT_ONCE]
            x[first : first + len(rows)] = self.observe(self.array(rows, seed=derive(seed, first)))
        if self.absent:
            members = len(self._epochs)
            with seeded(derive(seed, "absent"), theta.device):
                gone = torch.rand((len(theta), members), device=theta.device) < self.absent
                one = torch.randint(members, (len(theta), 1), device=theta.device)
            x[gone.scatter(1, one, False)] = torch.nan
        return x

    def observe(self, residuals: Tensor) -> Tensor:
        """What a network sees of residuals ``(*, n_p, T_max)`` in microseconds, NaN where missing.

        Returns:
            float32 ``(*, n_p, E, 3 + receivers)``.

        Raises:
            ShapeError: they are not those of the array.
        """
        if residuals.ndim < 2 or residuals.shape[-2:] != self.array.x_shape:
            shape = tuple(self.array.x_shape)
            raise ShapeError(f"residuals: expected shape (*, {shape[0]}, {shape[1]}), got {tuple(residuals.shape)}")
        design = self._design.to(residuals.device)
        values = torch.full((*residuals.shape[:-1], self.x_shape[1]), torch.nan, device=residuals.device)
        for p, (each, pulsar) in enumerate(zip(self._epochs, self.array.pulsars, strict=True)):
            mean = each.mean(residuals[..., p, : len(pulsar)].double())
            values[..., p, : len(each.toas)] = torch.asinh(mean / self._scales[p]).float()
        there = torch.isfinite(values).unsqueeze(-1)
        constant = torch.where(there, design.expand(*values.shape, design.shape[-1]), torch.nan)
        return torch.cat([constant[..., :1], values.unsqueeze(-1), constant[..., 1:]], -1)
