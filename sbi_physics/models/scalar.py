r"""`ScalarDistribution`: the distribution of one number t given theta, as a map that knows every quantile at once.

An increasing function of t that depends on theta takes it to a standard normal, so that its cumulative distribution and
its quantiles are

$$ F(t|\theta) = \Phi(f(s(t); \theta)), \qquad t_p(\theta) = s^{-1}(f^{-1}(\Phi^{-1}(p); \theta)). $$

First s takes t to the Gaussian quantile of its rank among all values of the training, which makes any scale, tail or
bound harmless; what is left for f, a straight line followed by a spline, is how the distribution changes with theta.
Where it does not, f is the identity, and the answer is as exact as the ranks.  The network sees theta, those of its
components that have two bounds also stretched to the real line, since near a bound much may happen in a small space,
and all products of two of these: a square is soon learned from a square.
"""

import math

import torch
from torch import Tensor, nn

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.models.flows.spline import rational_quadratic_spline, spline_parameters
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import ParameterScaling, Standardise

__all__ = ["ScalarDistribution"]

_BINS = 8
_TAIL_BOUND = 5.0
_ROWS_AT_ONCE = 1 << 16
# A logarithm near its bound is many standard deviations away, and its square would rule the training.
_FARTHEST = 5.0


class ScalarDistribution(nn.Module):
    """The distribution of one number, given parameters.

    Args:
        bounds: ``(P, 2)`` of the parameters.
        size: number of values that it is learned from, N.
        hidden_features: width of the network.
        blocks: its residual blocks.

    Attributes:
        ranked: the values in order, ``(N,)``.
        known: ``(P, 2)`` from where to where the parameters go that it is learned from.
    """

    ranked: Tensor
    known: Tensor
    stretched: Tensor
    pairs: Tensor

    def __init__(self, bounds: Tensor, size: int, *, hidden_features: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.bijection = SupportBijection(bounds)
        self.scaling = ParameterScaling(bounds)
        self.register_buffer("stretched", bounds.isfinite().all(-1).nonzero()[:, 0], persistent=False)
        self.stretched_scaling = Standardise((len(self.stretched),))
        self.register_buffer("ranked", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("known", bounds.float().clone())
        seen = len(bounds) + len(self.stretched)
        self.register_buffer("pairs", torch.triu_indices(seen, seen), persistent=False)
        inputs, outputs = seen + seen * (seen + 1) // 2, 2 + spline_parameters(_BINS)
        self.network = ResidualNetwork(inputs, outputs, hidden_features=hidden_features, blocks=blocks)

    def fit_scaling(self, theta: Tensor, value: Tensor) -> "ScalarDistribution":
        """Learn the scaling of theta ``(N, P)`` and the ranks of the values ``(N,)``."""
        self.scaling.fit(theta)
        if len(self.stretched):
            self.stretched_scaling.fit(self._stretch(theta))
        self.known.copy_(torch.stack([theta.amin(0), theta.amax(0)], -1))
        self.ranked.copy_(value.double().sort().values)
        return self

    def training_scores(self, value: Tensor) -> Tensor:
        """Gaussian quantiles ``(N,)`` of the ranks of the values ``(N,)``, equal ones spread on the random stream."""
        value = value.double().to(self.ranked.device)
        below = torch.searchsorted(self.ranked, value)
        upto = torch.searchsorted(self.ranked, value, right=True)
        share = torch.rand(value.shape, dtype=torch.float64, device=value.device)
        return self._quantile((below + share * (upto - below)) / len(self.ranked))

    def encode(self, theta: Tensor) -> Tensor:
        """What the network sees of theta ``(n, P)``."""
        low, high = self.known.unbind(-1)
        inside = torch.maximum(torch.minimum(theta.to(low), high), low)
        seen = torch.cat([self.scaling(inside), self.stretched_scaling(self._stretch(inside))], 1)
        seen = seen.clamp(-_FARTHEST, _FARTHEST)
        first, second = self.pairs
        return torch.cat([seen, seen[:, first] * seen[:, second]], 1)

    def loss(self, score: Tensor, encoded: Tensor) -> Tensor:
        """Minus the log-density of scores ``(n,)`` given *encoded* theta: ``(n,)``."""
        line, spline = self._maps(encoded)
        noise, ladj = rational_quadratic_spline(_along(line, score), spline, bins=_BINS, tail_bound=_TAIL_BOUND)
        return 0.5 * noise.square() - ladj - line[:, 1] + 0.5 * math.log(2 * math.pi)

    @torch.no_grad()
    def cumulative(self, value: Tensor, theta: Tensor) -> Tensor:
        """The probability below values ``(n,)`` at theta ``(n, P)``: float64 ``(n,)``.

        It is never nearer to 0 or 1 than half of one in N, which is what N values can tell.  Beyond the parameters that
        it was learned from it is that of the nearest ones.
        """
        below = torch.searchsorted(self.ranked, value.double().to(self.ranked.device))
        score = self._quantile(below / len(self.ranked))
        parts = []
        for at, rows in zip(score.split(_ROWS_AT_ONCE), theta.split(_ROWS_AT_ONCE), strict=True):
            line, spline = self._maps(self.encode(rows))
            noise, _ = rational_quadratic_spline(_along(line, at), spline, bins=_BINS, tail_bound=_TAIL_BOUND)
            parts.append(torch.special.ndtr(noise.double()))
        least = 0.5 / len(self.ranked)
        return torch.cat(parts).clamp(least, 1 - least)

    @torch.no_grad()
    def quantile(self, probability: float, theta: Tensor) -> Tensor:
        """The value ``(n,)`` that the number is below with this probability at theta ``(n, P)``."""
        line, spline = self._maps(self.encode(theta))
        noise = torch.full_like(line[:, 0], float(torch.special.ndtri(torch.tensor(probability))))
        score, _ = rational_quadratic_spline(noise, spline, bins=_BINS, tail_bound=_TAIL_BOUND, inverse=True)
        rank = torch.special.ndtr(((score - line[:, 0]) * torch.exp(-line[:, 1])).double()) * len(self.ranked)
        return self.ranked[rank.ceil().long().clamp(1, len(self.ranked)) - 1]

    def _stretch(self, theta: Tensor) -> Tensor:
        return self.bijection.to_unbounded(theta)[0][:, self.stretched]

    def _maps(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-slope of the line ``(n, 2)``, and the parameters of the spline."""
        found = self.network(encoded)
        return found[:, :2], found[:, 2:]

    def _quantile(self, share: Tensor) -> Tensor:
        least = 0.5 / len(self.ranked)
        return torch.special.ndtri(share.double().clamp(least, 1 - least)).float()


def _along(line: Tensor, score: Tensor) -> Tensor:
    return score * torch.exp(line[:, 1]) + line[:, 0]
