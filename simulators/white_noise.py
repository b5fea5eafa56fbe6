r"""White noise of pulse arrival times: EFAC, EQUAD and ECORR of each receiver.

Arrival time i of receiver r with measured uncertainty sigma_i has the variance
$s_i^2 = \mathrm{EFAC}_r^2 (\sigma_i^2 + \mathrm{EQUAD}_r^2)$ (the convention of tempo2, "t2equad"), and the times of
one receiver in one epoch share a further normal delay of standard deviation ECORR_r (pulse jitter):
$N = \mathrm{diag}(s^2) + \sum_b e_b^2\, 1_b 1_b^T$.
A root W of the inverse, $W^T W = N^{-1}$, has a closed form:
$W = [1 - u u^T (1 - (1 + u^2)^{-1/2}) / u^2] \, \mathrm{diag}(1/s)$ with $u = e_b / s$ on block b.
Sources: Edwards et al. 2006 (arXiv:astro-ph/0607664); Arzoumanian et al. 2016 (arXiv:1508.03024), section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError

__all__ = ["WhiteCovariance", "WhiteNoise", "epochs_of", "white_covariance"]


@dataclass(frozen=True)
class WhiteNoise:
    """White noise of one receiver.

    Attributes:
        efac: factor of the measured uncertainties.
        log10_equad: base-10 logarithm of EQUAD in seconds, convention t2equad; None for none.
        log10_ecorr: base-10 logarithm of ECORR in seconds; None for none.
    """

    efac: float = 1.0
    log10_equad: float | None = None
    log10_ecorr: float | None = None

    def variance(self, uncertainties: Tensor) -> Tensor:
        """Variance without ECORR in s^2, of uncertainties in seconds ``(*,)``."""
        equad = 0.0 if self.log10_equad is None else 10.0**self.log10_equad
        return self.efac**2 * (uncertainties**2 + equad**2)

    @property
    def ecorr(self) -> float:
        """ECORR in seconds, 0 for none."""
        return 0.0 if self.log10_ecorr is None else 10.0**self.log10_ecorr


@dataclass(frozen=True)
class WhiteCovariance:
    """The covariance of T arrival times, in microseconds squared.

    Attributes:
        scale: s, ``(T,)`` in microseconds.
        ecorr: ECORR of the epoch of each time, ``(T,)`` in microseconds; 0 for none.
        block: number of the epoch of each time, ``(T,)``.
        blocks: how many epochs there are; 0 where no time has an ECORR.
    """

    scale: Tensor
    ecorr: Tensor
    block: Tensor
    blocks: int

    def of(self, keep: Tensor) -> "WhiteCovariance":
        """The covariance of those times where `keep` ``(T,)`` is true."""
        return WhiteCovariance(self.scale[keep], self.ecorr[keep], self.block[keep], self.blocks)

    def to(self, device: torch.device) -> "WhiteCovariance":
        """The same on another device."""
        return WhiteCovariance(self.scale.to(device), self.ecorr.to(device), self.block.to(device), self.blocks)

    def whiten(self, columns: Tensor) -> Tensor:
        """Apply W to columns ``(T, c)``."""
        return self._mix(columns / self.scale.unsqueeze(1))

    def whiten_transposed(self, columns: Tensor) -> Tensor:
        """Apply the transpose of W to columns ``(T, c)``."""
        return self._mix(columns) / self.scale.unsqueeze(1)

    def _mix(self, columns: Tensor) -> Tensor:
        if not self.blocks:
            return columns
        u = (self.ecorr / self.scale).unsqueeze(1)
        root = torch.sqrt(1 + self._sum(u**2))
        shrink = 1 / (root * (1 + root))  # (1 - 1 / root) / u^2, without the division by zero
        return columns - u * (shrink * self._sum(u * columns))[self.block]

    def log_determinant(self) -> Tensor:
        """Logarithm of the determinant of the covariance."""
        diagonal = 2 * torch.log(self.scale).sum()
        if not self.blocks:
            return diagonal
        return diagonal + torch.log1p(self._sum((self.ecorr / self.scale).unsqueeze(1) ** 2)).sum()

    def dense(self) -> Tensor:
        """The covariance ``(T, T)``."""
        same = self.block.unsqueeze(0) == self.block.unsqueeze(1)
        return torch.diag(self.scale**2) + same * self.ecorr.unsqueeze(0) * self.ecorr.unsqueeze(1)

    def draw(self, n: int) -> Tensor:
        """Draw from the global stream ``(n, T)``, in microseconds."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.scale.device}
        noise = torch.randn(n, len(self.scale), **options) * self.scale
        if self.blocks:
            noise = noise + torch.randn(n, self.blocks, **options)[:, self.block] * self.ecorr
        return noise

    def _sum(self, rows: Tensor) -> Tensor:
        """Sum rows ``(T, c)`` over each block."""
        return rows.new_zeros(self.blocks, rows.shape[1]).index_add(0, self.block, rows)


def epochs_of(toas: Tensor, receivers: Sequence[str], window: float) -> Tensor:
    """Number the epochs: times of one receiver within `window` of the first of them.

    Args:
        toas: ``(T,)`` in days.
        receivers: T names.
        window: seconds.

    Returns:
        The number of the epoch of each time, ``(T,)``.
    """
    number, count = torch.empty(len(toas), dtype=torch.long), 0
    for receiver in dict.fromkeys(receivers):
        rows = torch.tensor([i for i, name in enumerate(receivers) if name == receiver])
        first: float | None = None
        for row in rows[torch.argsort(toas[rows], stable=True)].tolist():
            time = float(toas[row])
            if first is None or (time - first) * 86400.0 >= window:
                first, count = time, count + 1
            number[row] = count - 1
    return number


def white_covariance(
    uncertainties: Tensor,
    receivers: Sequence[str],
    epochs: Tensor,
    noise: Mapping[str, WhiteNoise],
    *,
    smallest_epoch: int,
) -> WhiteCovariance:
    """Build the covariance of T arrival times.

    Args:
        uncertainties: ``(T,)`` in seconds.
        receivers: T names.
        epochs: number of the epoch of each time, ``(T,)``.
        noise: the white noise of each receiver.
        smallest_epoch: epochs of fewer times than this have no ECORR.

    Raises:
        UsageError: a receiver has no noise.
    """
    missing = sorted(set(receivers) - set(noise))
    if missing:
        raise UsageError(f"noise: expected white noise for each receiver; none for {', '.join(missing)}")
    variance, ecorr = torch.empty_like(uncertainties), torch.zeros_like(uncertainties)
    for receiver in dict.fromkeys(receivers):
        rows = torch.tensor([name == receiver for name in receivers])
        variance[rows] = noise[receiver].variance(uncertainties[rows])
        ecorr[rows] = noise[receiver].ecorr
    size = torch.bincount(epochs)[epochs]
    ecorr = torch.where(size < smallest_epoch, 0.0, ecorr)
    # ECORR of an epoch of a single time is more variance of that time.
    variance, ecorr = torch.where(size == 1, variance + ecorr**2, variance), torch.where(size == 1, 0.0, ecorr)
    blocks = int(epochs.max()) + 1 if bool((ecorr > 0).any()) else 0
    return WhiteCovariance(torch.sqrt(variance) * 1e6, ecorr * 1e6, epochs, blocks)
