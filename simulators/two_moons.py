r"""Two moons: a crescent of data, and a posterior of two crescents.

A point is drawn on a half circle of blurred radius, $a \sim U(-\pi/2, \pi/2)$, $r \sim N(0.1, 0.01^2)$,
$p = (r\cos a + 0.25,\; r\sin a)$, and moved by the parameters, whose prior is uniform on $[-1, 1]^2$:

$$ x = p + \Big( -|\theta_0 + \theta_1| / \sqrt 2,\; (\theta_1 - \theta_0) / \sqrt 2 \Big). $$

With $(u, v) = p - (0.25, 0)$ the area element of polar coordinates gives the density of x at theta,

$$ p(x \mid \theta) = \frac{1}{\pi\,|r|}\, N(r;\, 0.1, 0.01^2), \qquad r = \mathrm{sign}(u) \sqrt{u^2 + v^2}. $$

The half plane u < 0 is reached by a negative radius alone, ten standard deviations away: its density is tiny, not zero.
Greenberg et al. 2019 (arXiv:1905.07488); recipe of Lueckmann et al. 2021 (arXiv:2101.04653, T.8).
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import BudgetError, ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded

__all__ = ["TwoMoons"]

_OFFSET, _RADIUS, _WIDTH = 0.25, 0.1, 0.01


class TwoMoons:
    """Two parameters, two observables, a bimodal posterior with crescent-shaped modes."""

    name = "two_moons"

    def __init__(self) -> None:
        bound = torch.ones(2)
        self.parameters = Parameters.from_prior(td.Independent(td.Uniform(-bound, bound), 1))
        self.x_shape = torch.Size([2])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 2)`` gives float32 x ``(n, 2)``."""
        self.parameters.check_width(theta)
        with seeded(seed, theta.device):
            point = _crescent(len(theta), theta.device)
        return (point + _shift(theta)).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 2)`` broadcast with x ``(*, 2)`` gives ``(*,)``."""
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != 2:
            raise ShapeError(f"x: expected shape (*, 2), got {tuple(x.shape)}")
        point = x.to(theta.device, torch.float64) - _shift(theta)
        u, v = point[..., 0] - _OFFSET, point[..., 1]
        distance = torch.sqrt(u**2 + v**2)
        radius = torch.where(u < 0, -distance, distance)
        standard = (radius - _RADIUS) / _WIDTH
        return -0.5 * standard**2 - math.log(_WIDTH * math.sqrt(2 * math.pi)) - math.log(math.pi) - torch.log(distance)

    def sample_posterior(self, n: int, x: Tensor, *, seed: int = 0, max_rounds: int = 1000) -> Tensor:
        """Draw from the exact posterior of one observation x ``(2,)``: float32 ``(n, 2)``.

        theta -> (|theta_0 + theta_1|, theta_1 - theta_0) / sqrt(2) keeps areas and folds the plane once, so a draw is a
        point of the crescent, moved back, with a random sign; those outside the prior are drawn again.

        Raises:
            BudgetError: fewer than n draws after `max_rounds` rounds; x is far from what the prior can give.
        """
        positive_integer(n, "n")
        target = x.reshape(2).to("cpu", torch.float64)
        kept: list[Tensor] = []
        found = 0
        with seeded(seed):
            for _ in range(positive_integer(max_rounds, "max_rounds")):
                moved = _crescent(2 * n, torch.device("cpu")) - target
                total = moved[:, 0] * torch.where(torch.rand(2 * n) < 0.5, -1.0, 1.0)
                difference = -moved[:, 1]
                theta = torch.stack([total - difference, total + difference], -1) / math.sqrt(2)
                kept.append(theta[(moved[:, 0] >= 0) & (theta.abs() <= 1).all(-1)])
                found += len(kept[-1])
                if found >= n:
                    return torch.cat(kept)[:n].to(torch.float32)
        raise BudgetError(f"found {found} of {n} posterior draws for x = {target.tolist()} in {max_rounds} rounds")


def _crescent(n: int, device: torch.device) -> Tensor:
    """Draw n points of the crescent for theta = 0: float64 ``(n, 2)``."""
    angle = (torch.rand(n, dtype=torch.float64, device=device) - 0.5) * math.pi
    radius = _RADIUS + _WIDTH * torch.randn(n, dtype=torch.float64, device=device)
    return torch.stack([radius * torch.cos(angle) + _OFFSET, radius * torch.sin(angle)], -1)


def _shift(theta: Tensor) -> Tensor:
    first, second = theta.to(torch.float64).unbind(-1)
    return torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)
