r"""`Trend`: what a linear fit knows of data, given the parameters, so that a network need not learn it.

$$ x = W \phi(\theta) + b + r , $$

where $\phi$ scales the parameters (`ParameterScaling`) and the least squares over the training pairs fix W and b to a
precision that no network reaches from the same pairs.  The residual r is what a density is learned of; the shift leaves
densities as they are.  A line that is fitted to a curve would do harm: only those numbers of x get a trend whose
residual is not explained any better with products and cubes of the parameters.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sbi_physics.models.scaling import ParameterScaling
from sbi_physics.store.row_parts import RowParts, Rows, row_parts

__all__ = ["Trend"]

# Below this many pairs for each coefficient a fit would add more noise than it takes away.
_PAIRS_PER_COEFFICIENT = 20
# Share of the residual variance that a curve may explain where a line is good enough.
_CURVATURE = 0.02
# What moments of Gaussian noise may be off by.
_SIGMAS = 5.0
# Below this share of the largest eigenvalue, a combination of features is none.
_SAME = 1e-13


class Trend(nn.Module):
    """A linear function of parameters, fitted once by least squares; zero until then.

    Args:
        bounds: ``(P, 2)`` of the parameters.
        outputs: D.
    """

    weight: Tensor

    def __init__(self, bounds: Tensor, outputs: int) -> None:
        super().__init__()
        self.scaling = ParameterScaling(bounds)
        self.register_buffer("weight", torch.zeros(len(bounds) + 1, outputs))

    def fit(self, theta: Tensor, x: Rows) -> "Trend":
        """Learn from pairs of theta ``(n, P)`` and x ``(n, D)``, in double precision; returns itself."""
        self.scaling.fit(theta)
        parts, n = row_parts(x), len(theta)
        if n < _PAIRS_PER_COEFFICIENT * self._line_and_curve(theta[:1], n)[1].shape[-1]:
            return self
        if parts.count > 1:
            (weight, _), (variance, least) = self._fits_in_parts(theta, parts)
        else:
            (values,) = parts
            line, curve = self._line_and_curve(theta, n)
            weight, variance = _least_squares(line, values.double())
            least = _least_squares(curve, values.double())[1]
        straight = variance - least <= _CURVATURE * variance
        self.weight.copy_(torch.where(straight, weight, 0.0))
        return self

    def _fits_in_parts(self, theta: Tensor, parts: RowParts) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Coefficients, and variances of the residuals, of line and curve: by normal equations, in two passes."""
        device, n = self.weight.device, len(theta)

        def passes() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            start = 0
            for part in parts:
                line, curve = self._line_and_curve(theta[start : start + len(part)].to(device), n)
                yield line, curve, part.to(device).double()
                start += len(part)

        lines, curves = len(self.weight), self._line_and_curve(theta[:1], n)[1].shape[-1]
        products = torch.zeros(curves, curves, dtype=torch.float64, device=device)
        moments = torch.zeros(curves, self.weight.shape[1], dtype=torch.float64, device=device)
        for _, curve, x in passes():
            products += curve.T @ curve
            moments += curve.T @ x
        # The line is the first columns of the curve; where columns say the same, this is the shortest solution.
        sizes = (lines, curves)
        inverses = [torch.linalg.pinv(products[:k, :k], rtol=_SAME, hermitian=True) for k in sizes]
        weights = [inverse @ moments[: len(inverse)] for inverse in inverses]
        residual = [torch.zeros(self.weight.shape[1], dtype=torch.float64, device=device) for _ in weights]
        for line, curve, x in passes():
            for total, features, weight in zip(residual, (line, curve), weights, strict=True):
                total += (x - features @ weight).square().sum(0)
        variances = [total / (n - k) for total, k in zip(residual, sizes, strict=True)]
        return (weights[0], weights[1]), (variances[0], variances[1])

    def is_all(self, theta: Tensor, x: Tensor) -> bool:
        """Whether pairs of theta ``(n, P)`` and x ``(n, D)`` are the trend and Gaussian noise.

        Each x has a trend, neither the spread of the residuals nor their correlations change with theta, and skewness
        and kurtosis are those of a Gaussian.
        """
        if not bool((self.weight != 0).any(0).all()):
            return False
        residual = (x - self(theta)).double()
        z = (residual - residual.mean(0)) / residual.std(0)
        errors = _SIGMAS / math.sqrt(len(z))
        if bool((z.pow(3).mean(0).abs() > math.sqrt(6) * errors).any()):
            return False
        if bool(((z.pow(4).mean(0) - 3).abs() > math.sqrt(24) * errors).any()):
            return False
        _, curve = self._line_and_curve(theta, len(theta))
        moments = _products(residual)
        moments = moments - moments.mean(0)
        least = _least_squares(curve, moments)[1]
        return bool((moments.var(0) - least <= _CURVATURE * moments.var(0)).all())

    def _line_and_curve(self, theta: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Features of a line, and of a curve, which has more where there are n pairs to fit it to."""
        line = self._features(theta).double()
        return line, torch.cat([line, _curved(line[:, :-1], n)], -1)

    def forward(self, theta: Tensor) -> Tensor:
        """Expected x ``(*, D)`` at theta ``(*, P)``."""
        return self._features(theta) @ self.weight

    def _features(self, theta: Tensor) -> Tensor:
        scaled = self.scaling(theta)
        return torch.cat([scaled, torch.ones_like(scaled[..., :1])], -1)


def _curved(scaled: Tensor, n: int) -> Tensor:
    """Products and cubes of scaled parameters ``(n, P)``; squares only, where there are too many products."""
    dims = scaled.shape[-1]
    few = n < _PAIRS_PER_COEFFICIENT * (1 + 2 * dims + dims * (dims + 1) // 2)
    return torch.cat([scaled.square() if few else _products(scaled), scaled**3], -1)


def _products(columns: Tensor) -> Tensor:
    """Products of all pairs of columns ``(n, D)``, squares among them."""
    first, second = torch.triu_indices(columns.shape[-1], columns.shape[-1])
    return columns[:, first] * columns[:, second]


def _least_squares(features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and unbiased variances of the residuals ``(D,)``."""
    # Columns may say the same; this driver, which there is on the CPU, takes the shortest solution.
    weight = torch.linalg.lstsq(features.cpu(), x.cpu(), driver="gelsd").solution.to(x.device)
    residual = (x - features @ weight).square().sum(0)
    return weight, residual / (len(x) - features.shape[-1])
