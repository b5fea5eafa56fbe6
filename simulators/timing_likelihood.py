r"""Exact likelihood of the residuals of a pulsar timing array, marginalised over the timing models.

Each pulsar is reduced once to whitened Fourier coefficients z and a triangle R (`simulators.timing_projection`).  Given
the parameters, with red noise of variances phi_p, a background of variances g and the Earth term E of its correlations,

$$ \mathrm{Cov}(z_p, z_q) = \delta_{pq} S_p + E_{pq}\, R_p\, g\, R_q^T, \qquad
   S_p = 1 + R_p (\varphi_p + g/2) R_p^T = L_p L_p^T. $$

The pulsar term g/2 belongs to each pulsar alone, so S_p takes in most of the power, and what couples pulsars,
$1 + (L_p^{-1} R_p \sqrt g)\, E_{pq}\, (L_q^{-1} R_q \sqrt g)^T$, has eigenvalues between 1 and a few whatever theta
is: nothing cancels.  R is upper triangular and coordinates run from high to low frequency, so that only the last
2 K_gw coordinates of each pulsar couple, and the coupled matrix has n_p 2 K_gw rows.

**Constant.** The timing model has a flat prior of infinite width; the result is the log-density, in microseconds, of
the components of the residuals in an orthonormal basis of the complement of the design matrix.  It does not change when
any combination of the columns of the design matrix is added to the residuals, and is normalised over what is left.
**Missing data.** A NaN in x is an arrival time that is not there (infinite variance); rows are grouped by what is
missing.
Sources: van Haasteren & Vallisneri 2014 (arXiv:1407.1838); Johnson et al. 2024 (arXiv:2306.16223).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simulators.pulsar import Pulsar
from simulators.timing_projection import Projection, project

__all__ = ["Statistics", "TimingLikelihood"]

Variances = Callable[[Tensor], tuple[Tensor, Tensor | None]]

# Matrices of a piece stay in the cache of a core; on a GPU, or where gradients are kept, pieces are larger.
_ELEMENTS_AT_ONCE = 2**19
_ELEMENTS_IN_MEMORY = 2**25
_PATTERNS_KEPT = 128


@dataclass(frozen=True)
class Statistics:
    """All that the likelihood needs of B sets of residuals.

    Attributes:
        coefficients: z ``(B, n_p, 2 K)``, whitened, from low to high frequency; zero for an absent pulsar.
        constant: the part of the log-likelihood that does not depend on the parameters ``(B,)``.
        groups: for each pattern of missing data, its rows, and its projections.
    """

    coefficients: Tensor
    constant: Tensor
    groups: tuple[tuple[Tensor, tuple[Projection, ...]], ...]


class TimingLikelihood:
    """The likelihood of n_p pulsars as a function of the variances of their Fourier coefficients.

    Args:
        pulsars: n_p pulsars; rows of x are as long as the longest, T_max.
        modes: K, Fourier modes of the red noise.
        span: T_span in days.
        start: time of phase zero in days.
        earth: correlations E ``(n_p, n_p)`` of the part of the background that pulsars share, or None for none.
        background_modes: K_gw, at most K.
    """

    def __init__(
        self,
        pulsars: Sequence[Pulsar],
        *,
        modes: int,
        span: float,
        start: float,
        earth: Tensor | None,
        background_modes: int,
    ) -> None:
        self.pulsars, self.modes, self.span, self.start = tuple(pulsars), modes, span, start
        self.earth, self.background_modes = earth, background_modes
        self.x_shape = torch.Size([len(self.pulsars), max(map(len, self.pulsars))])
        self._projections: OrderedDict[tuple[int, bytes], Projection] = OrderedDict()
        self._stacks: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_projections": OrderedDict(), "_stacks": OrderedDict()}

    def projection(self, pulsar: int, keep: Tensor | None = None) -> Projection:
        """The projection of a pulsar, from those times where `keep` ``(T,)`` is true; from all where None."""
        if keep is None:
            keep = torch.ones(len(self.pulsars[pulsar]), dtype=torch.bool)
        key = (pulsar, keep.numpy().tobytes())
        if key not in self._projections:
            self._projections[key] = project(self.pulsars[pulsar], keep, self.modes, self.span, self.start)
            while len(self._projections) > _PATTERNS_KEPT * len(self.pulsars):
                self._projections.popitem(last=False)
        return self._projections[key]

    def statistics(self, x: Tensor, device: torch.device | None = None) -> Statistics:
        """Reduce residuals ``(B, n_p, T_max)`` in microseconds, NaN where missing, for use on a device."""
        device = device or x.device
        rows, n_p = len(x), len(self.pulsars)
        z = torch.zeros(rows, n_p, 2 * self.modes, dtype=torch.float64, device=device)
        constant = torch.zeros(rows, dtype=torch.float64, device=device)
        kept: list[dict[int, Projection]] = [{} for _ in range(n_p)]
        pattern = torch.zeros(rows, n_p, dtype=torch.long)
        for p, pulsar in enumerate(self.pulsars):
            values = x[:, p, : len(pulsar)]
            for number, (members, keep) in enumerate(_patterns(values)):
                projection = self.projection(p, keep)
                kept[p][number] = projection
                if not bool(keep.any()):
                    pattern[members, p] = number
                    continue
                there, at = projection.to(device), members.to(device)
                columns = torch.nonzero(keep).squeeze(1)
                part = values[members.to(x.device)][:, columns.to(x.device)].to(device, torch.float64)
                z[at, p] = there.coefficients(part)
                constant[at] += there.constant - 0.5 * there.remainder(part, z[at, p])
                pattern[members, p] = number
        combinations, which = torch.unique(pattern, dim=0, return_inverse=True)
        groups = [
            (torch.nonzero(which == i).squeeze(1), tuple(kept[p][k] for p, k in enumerate(row)))
            for i, row in enumerate(combinations.tolist())
        ]
        return Statistics(z, constant, tuple(groups))

    def __call__(
        self,
        variances: Variances,
        theta: Tensor,
        batch: torch.Size,
        statistics: Statistics,
        data: torch.Size,
    ) -> Tensor:
        """Log-likelihood in nats.

        Args:
            variances: maps theta ``(B, P)`` to the variances in microseconds squared of what each pulsar has for itself
                ``(n_p, B, K)`` and of what all share ``(B, K_gw)``, or None where there is nothing.
            theta: ``(numel(batch), P)``, float64.
            batch: leading axes of theta.
            statistics: of the data, on the device of theta.
            data: leading axes of the data.

        Returns:
            float64, of the shape to which `batch` and `data` broadcast.
        """
        shape = torch.broadcast_shapes(batch, data)
        wide, long = ((1,) * (len(shape) - len(axes)) + tuple(axes) for axes in (batch, data))
        if all(1 in pair for pair in zip(wide, long, strict=True)):
            table = self._outer(variances, theta, statistics)
            interleaved = [axis for i in range(len(shape)) for axis in (i, len(shape) + i)]
            return table.reshape((*wide, *long)).permute(interleaved).reshape(shape)
        row = torch.arange(len(theta)).reshape(wide).expand(shape).flatten()
        column = torch.arange(math.prod(data)).reshape(long).expand(shape).flatten()
        return self._paired(variances, theta, row, statistics, column).reshape(shape)

    def _outer(self, variances: Variances, theta: Tensor, statistics: Statistics) -> Tensor:
        """Each row of theta with each row of data: ``(B, D)``."""
        parts, order = [], []
        for members, projections in statistics.groups:
            gram, low = self._stack(projections, theta.device)
            z = statistics.coefficients[members.to(theta.device)].permute(1, 2, 0).unsqueeze(1)
            parts.append(self._in_chunks(variances, theta, z, gram, low))
            order.append(members)
        back = torch.argsort(torch.cat(order)).to(theta.device)
        return torch.cat(parts, dim=1)[:, back] + statistics.constant

    def _paired(
        self, variances: Variances, theta: Tensor, row: Tensor, statistics: Statistics, column: Tensor
    ) -> Tensor:
        """Row `row[i]` of theta with row `column[i]` of data: ``(len(row),)``."""
        parts, order = [], []
        group_of = torch.empty(len(statistics.constant), dtype=torch.long)
        for number, (members, _) in enumerate(statistics.groups):
            group_of[members] = number
        for number, (_, projections) in enumerate(statistics.groups):
            pairs = torch.nonzero(group_of[column] == number).squeeze(1)
            gram, low = self._stack(projections, theta.device)
            z = statistics.coefficients[column[pairs].to(theta.device)].transpose(0, 1).unsqueeze(-1)
            parts.append(self._in_chunks(variances, theta[row[pairs].to(theta.device)], z, gram, low).squeeze(1))
            order.append(pairs)
        back = torch.argsort(torch.cat(order)).to(theta.device)
        return torch.cat(parts)[back] + statistics.constant[column.to(theta.device)]

    def _stack(self, projections: tuple[Projection, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Outer products ``(n_p, K, 4 K^2)`` and the coupled corner of R ``(n_p, 2 K_gw, 2 K_gw)``, high to low."""
        key = (str(device), *map(id, projections))
        if key not in self._stacks:
            gram = torch.stack([p.gram(self.modes) for p in projections]).to(device)
            size = 2 * self.background_modes
            low = torch.stack([p.triangle[:size, :size].flip(0) for p in projections]).to(device)
            self._stacks[key] = (gram, low)
            while len(self._stacks) > 8:
                self._stacks.popitem(last=False)
        return self._stacks[key]

    def _in_chunks(self, variances: Variances, theta: Tensor, z: Tensor, gram: Tensor, low: Tensor) -> Tensor:
        """Log-likelihood ``(B, m)`` of theta ``(B, P)`` and z ``(n_p, B or 1, 2 K, m)``, in pieces that fit."""
        n_p, shared = len(self.pulsars), 0 if self.earth is None else 2 * self.background_modes
        per_row = n_p * 2 * self.modes * max(2 * self.modes, z.shape[-1]) + (n_p * shared) ** 2
        gradient = torch.is_grad_enabled() and theta.requires_grad
        limit = _ELEMENTS_AT_ONCE if theta.device.type == "cpu" and not gradient else _ELEMENTS_IN_MEMORY
        chunk = max(1, limit // per_row)
        if len(theta) <= chunk:
            return self._log_likelihood(variances, theta, z, gram, low)
        parts = []
        for first in range(0, len(theta), chunk):
            data = z if z.shape[1] == 1 else z[:, first : first + chunk]
            arguments = (variances, theta[first : first + chunk], data, gram, low)
            if gradient:
                parts.append(checkpoint(self._log_likelihood, *arguments, use_reentrant=False))
            else:
                parts.append(self._log_likelihood(*arguments))
        return torch.cat(parts)

    def _log_likelihood(self, variances: Variances, theta: Tensor, z: Tensor, gram: Tensor, low: Tensor) -> Tensor:
        own, shared = variances(theta)
        n_p, rows, size = len(self.pulsars), len(theta), 2 * self.modes
        identity = torch.eye(size, dtype=theta.dtype, device=theta.device).view(1, 1, -1)
        covariance = torch.baddbmm(identity, own, gram).view(n_p, rows, size, size)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        highest_first = z.flip(2).expand(n_p, rows, size, z.shape[-1])
        y = torch.linalg.solve_triangular(factor, highest_first, upper=False)
        log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum((0, -1))
        failed = failed.sum(0)
        if shared is None or self.earth is None:
            chi2 = (y**2).sum((0, 2))
        else:
            split = size - 2 * self.background_modes
            coupled = torch.linalg.solve_triangular(
                factor[..., split:, split:],
                low.unsqueeze(1) * torch.repeat_interleave(torch.sqrt(shared), 2, dim=-1).unsqueeze(1),
                upper=False,
            )
            extra_chi2, extra_log_det, bad = self._coupled(coupled, y[:, :, split:], self.earth.to(coupled.device))
            chi2 = (y[:, :, :split] ** 2).sum((0, 2)) + extra_chi2
            log_det, failed = log_det + extra_log_det, failed + bad
        result = -0.5 * (chi2 + log_det.unsqueeze(-1))
        return torch.where((failed > 0).unsqueeze(-1), torch.nan, result)

    def _coupled(self, coupled: Tensor, y: Tensor, earth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chi-squared ``(B, m)`` and log-determinant ``(B,)`` of the coordinates that pulsars share.

        Args:
            coupled: ``(n_p, B, 2 K_gw, 2 K_gw)``, the square root of the shared covariance in whitened coordinates.
            y: ``(n_p, B, 2 K_gw, m)``, whitened coordinates.
            earth: correlations E ``(n_p, n_p)``.
        """
        n_p, rows, size, _ = coupled.shape
        root = coupled.transpose(0, 1).reshape(rows, n_p * size, size)
        earth = earth.repeat_interleave(size, 0).repeat_interleave(size, 1)
        matrix = (root @ root.mT) * earth
        identity = torch.eye(n_p * size, dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(matrix + identity)
        whitened = torch.linalg.solve_triangular(
            factor, y.transpose(0, 1).reshape(rows, n_p * size, y.shape[-1]), upper=False
        )
        log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
        return (whitened**2).sum(1), log_det, failed


def _patterns(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Group rows ``(B, T)`` by where they are NaN: the members of each group, and which times are there."""
    everything = torch.ones(values.shape[1], dtype=torch.bool)
    if values.is_meta or not bool(torch.isnan(values).any()):
        return [(torch.arange(len(values)), everything)]
    keep, which = torch.unique(~torch.isnan(values).cpu(), dim=0, return_inverse=True)
    return [(torch.nonzero(which == i).squeeze(1), row.clone()) for i, row in enumerate(keep)]
