r"""What can be computed of a pulsar before any parameter is known: the projection of residuals onto Fourier modes.

Let N be the covariance of the white noise, $W^T W = N^{-1}$, M the design matrix and F the Fourier basis.
A QR decomposition of [W M, W F] gives orthonormal Q_M, Q_F and the upper triangular R with
$W F = Q_M (\dots) + Q_F R$.  Residuals r, with a flat prior of infinite width on the timing model, enter only as

$$ z = Q_F^T W r, \qquad \rho = |(1 - Q_M Q_M^T - Q_F Q_F^T) W r|^2, $$

and if the Fourier coefficients have the covariance $\varphi$, then z is normal with covariance $1 + R \varphi R^T$:
without a signal it is white.  In the usual notation $R^T R = F^T K^{-1} F$ and $z = R^{-T} F^T K^{-1} r$; but QR never
squares the condition number, and here modes are ordered from low to high frequency, so that a steep spectrum gives a
nearly diagonal covariance.  A mode that the timing model and lower modes already span gets no direction: its z is zero.
Sources: van Haasteren & Vallisneri 2014 (arXiv:1407.1838); Golub & Van Loan, Matrix Computations, chapter 5.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.pulsar import Pulsar
from simulators.red_noise import fourier_basis
from simulators.timing_model import orthonormal_span
from simulators.white_noise import WhiteCovariance

__all__ = ["Projection", "project"]

# A column that loses all but this fraction of its length holds rounding errors only.
_DEPENDENT = 1e-9
# Where each keeps more than this fraction, a plain QR decomposition is as good as can be.
_INDEPENDENT = 1e-3


@dataclass(frozen=True)
class Projection:
    """Projection of those T' of T arrival times that are there.

    Attributes:
        white: covariance of the white noise of the T' times.
        timing: Q_M ``(T', r)``.
        modes: Q_F ``(T', 2 K)``, a zero column for each mode without a direction of its own.
        triangle: R ``(2 K, 2 K)``.
        constant: the part of the log-likelihood that depends neither on the data nor on the parameters.
    """

    white: WhiteCovariance
    timing: Tensor
    modes: Tensor
    triangle: Tensor
    constant: float

    def to(self, device: torch.device) -> "Projection":
        """The same on another device."""
        timing, modes, triangle = (t.to(device) for t in (self.timing, self.modes, self.triangle))
        return Projection(self.white.to(device), timing, modes, triangle, self.constant)

    def gram(self, modes: int) -> Tensor:
        """Outer products of the columns of R, summed over sine and cosine: ``(K, 4 K^2)``, highest mode first."""
        columns = self.triangle.flip(0).T.unflatten(0, (modes, 2))
        return torch.einsum("kci,kcj->kij", columns, columns).flatten(1)

    def coefficients(self, x: Tensor) -> Tensor:
        """Map residuals ``(B, T')`` in microseconds to z ``(B, 2 K)``."""
        return x @ self.white.whiten_transposed(self.modes)

    def remainder(self, x: Tensor, z: Tensor) -> Tensor:
        """Squared length of what neither the timing model nor the modes span: rho ``(B,)``."""
        whitened = self.white.whiten(x.T)
        rest = whitened - self.timing @ (self.timing.T @ whitened) - self.modes @ z.T
        return (rest**2).sum(0)


def project(pulsar: Pulsar, keep: Tensor, modes: int, span: float, start: float) -> Projection:
    """Compute the projection of a pulsar.

    Args:
        pulsar: T arrival times.
        keep: which of them are there, boolean ``(T,)``.
        modes: K.
        span: T_span in days.
        start: time of phase zero in days.
    """
    white = pulsar.white_covariance.of(keep)
    model = orthonormal_span(pulsar.matrix[keep])
    timing, factor = torch.linalg.qr(white.whiten(model))
    basis = white.whiten(fourier_basis(pulsar.toas[keep], modes, span, start))
    directions, triangle = _orthogonalise(basis, timing)
    freedom = int(keep.sum()) - model.shape[1]
    log_model = 2 * torch.log(factor.diagonal().abs()).sum()
    constant = -0.5 * (freedom * math.log(2 * math.pi) + float(white.log_determinant() + log_model))
    return Projection(white, timing, directions, triangle, constant)


def _orthogonalise(basis: Tensor, timing: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormalise columns ``(T, m)`` against others ``(T, r)`` and each other, in their order: Q and R."""
    m = basis.shape[1]
    if len(basis) >= m + timing.shape[1]:
        rest = basis - timing @ (timing.T @ basis)
        directions, triangle = torch.linalg.qr(rest - timing @ (timing.T @ rest))
        sign = torch.sign(triangle.diagonal())
        if bool((triangle.diagonal().abs() > _INDEPENDENT * basis.norm(dim=0)).all()):
            return directions * sign, triangle * sign.unsqueeze(1)
    # Gram-Schmidt, done twice, sees which columns depend on those before.
    directions, triangle = torch.zeros_like(basis), basis.new_zeros(m, m)
    for j in range(m):
        column = basis[:, j]
        length = column.norm()
        for _ in range(2):
            column = column - timing @ (timing.T @ column)
            share = directions[:, :j].T @ column
            triangle[:j, j] += share
            column = column - directions[:, :j] @ share
        rest = column.norm()
        if bool(rest > _DEPENDENT * length):
            directions[:, j], triangle[j, j] = column / rest, rest
    return directions, triangle
