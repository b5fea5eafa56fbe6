r"""Spectra of the dijet mass: what falls, and what stands out; no simulator, but what `dijet` stands on.

The background follows the dijet function that fits of the LHC use (CMS, arXiv:1911.03947), with x = m / sqrt(s),

$$ p(m) \propto (1 - x)^{p_1} \, x^{-(p_2 + p_3 \ln x)}, $$

cut to a range of masses.  It has no inverse distribution function in closed form: ln p is taken as linear in each of
4,096 cells, which is wrong by less than 1e-6 of the density.  The signal is a normal peak, cut to the same range.
"""

import math

import torch
from torch import Tensor

__all__ = ["FallingSpectrum", "Peak"]

_CELLS = 4_096


class FallingSpectrum:
    """The dijet function on a range of masses, normalised.

    Args:
        low: lower end [TeV].
        high: upper end [TeV], below `energy`.
        energy: of the collision, sqrt(s) [TeV].
        exponents: p1, p2, p3.
    """

    def __init__(self, low: float, high: float, energy: float, exponents: tuple[float, float, float]) -> None:
        self.low, self.high = low, high
        self._energy, self._exponents = energy, exponents
        self._knots = torch.linspace(low, high, _CELLS + 1, dtype=torch.float64)
        logarithm = self._unnormalised(self._knots)
        self._steps = logarithm.diff()
        cells = torch.exp(logarithm[:-1]) * _growth(self._steps, torch.ones_like(self._steps)) * self._knots.diff()
        total = cells.sum()
        self._log_norm = math.log(float(total))
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cells.cumsum(0) / total])
        self._cumulative[-1] = 1.0

    def log_prob(self, mass: Tensor) -> Tensor:
        """Log-density per TeV at masses ``(*,)``; minus infinity outside the range."""
        inside = (mass >= self.low) & (mass <= self.high)
        logarithm = self._unnormalised(torch.where(inside, mass, self.low)) - self._log_norm
        return torch.where(inside, logarithm, -torch.inf)

    def cdf(self, mass: Tensor) -> Tensor:
        """The probability of a lower mass, ``(*,)``."""
        knots, cumulative, steps = (t.to(mass.device) for t in (self._knots, self._cumulative, self._steps))
        mass = mass.clamp(self.low, self.high)
        cell = torch.searchsorted(knots, mass.contiguous(), right=True).sub(1).clamp(0, _CELLS - 1)
        place = (mass - knots[cell]) / (knots[cell + 1] - knots[cell])
        share = _growth(steps[cell], place) / _growth(steps[cell], torch.ones_like(place))
        return cumulative[cell] + share * (cumulative[cell + 1] - cumulative[cell])

    def inverse_cdf(self, probability: Tensor) -> Tensor:
        """The mass [TeV] below which lies each of the probabilities ``(*,)`` in [0, 1]."""
        knots, cumulative, steps = (t.to(probability.device) for t in (self._knots, self._cumulative, self._steps))
        cell = torch.searchsorted(cumulative, probability.contiguous(), right=True).sub(1).clamp(0, _CELLS - 1)
        share = (probability - cumulative[cell]) / (cumulative[cell + 1] - cumulative[cell])
        step = steps[cell]
        flat = step.abs() < 1e-9
        slope = torch.where(flat, 1.0, step)
        place = torch.where(flat, share, torch.log1p(share * torch.expm1(slope)) / slope)
        return (knots[cell] + place * (knots[cell + 1] - knots[cell])).clamp(self.low, self.high)

    def _unnormalised(self, mass: Tensor) -> Tensor:
        p1, p2, p3 = self._exponents
        x = mass / self._energy
        logarithm = torch.log(x)
        return p1 * torch.log1p(-x) - (p2 + p3 * logarithm) * logarithm


def _growth(step: Tensor, place: Tensor) -> Tensor:
    """The integral of exp(step t) over t from 0 to `place`."""
    flat = step.abs() < 1e-9
    slope = torch.where(flat, 1.0, step)
    return torch.where(flat, place, torch.expm1(slope * place) / slope)


class Peak:
    """A normal distribution of the mass, cut to a range.

    Args:
        low: lower end [TeV].
        high: upper end [TeV].
        width: standard deviation before the cut [TeV].
    """

    def __init__(self, low: float, high: float, width: float) -> None:
        self.low, self.high, self.width = low, high, width

    def log_prob(self, mass: Tensor, centre: Tensor | float) -> Tensor:
        """Log-density per TeV at masses ``(*,)`` of peaks at `centre` ``(*,)`` [TeV]; minus infinity outside."""
        inside = (mass >= self.low) & (mass <= self.high)
        centre = torch.as_tensor(centre, dtype=torch.float64, device=mass.device)
        pull = (torch.where(inside, mass, self.low) - centre) / self.width
        kept = self._below(self.high, centre) - self._below(self.low, centre)
        logarithm = -0.5 * pull**2 - math.log(self.width * math.sqrt(2 * math.pi)) - torch.log(kept)
        return torch.where(inside, logarithm, -torch.inf)

    def share(self, low: float, high: float, centre: float) -> float:
        """The probability of a mass in ``(low, high)``."""
        ends = [self._below(end, torch.tensor(centre, dtype=torch.float64)) for end in (low, high, self.low, self.high)]
        return float((ends[1] - ends[0]) / (ends[3] - ends[2]))

    def inverse_cdf(
        self, probability: Tensor, centre: Tensor | float, window: tuple[float, float] | None = None
    ) -> Tensor:
        """The mass [TeV] below which lies each of the probabilities ``(*,)``, of what falls into a window."""
        low, high = window or (self.low, self.high)
        centre = torch.as_tensor(centre, dtype=torch.float64, device=probability.device)
        first, last = self._below(low, centre), self._below(high, centre)
        return (centre + self.width * torch.special.ndtri(first + probability * (last - first))).clamp(low, high)

    def _below(self, mass: float, centre: Tensor) -> Tensor:
        return torch.special.ndtr((mass - centre) / self.width)
