r"""Populations of jet pairs with a density in closed form; no simulator, but what `dijet` stands on.

Four independent standard normal numbers z become the mass of the lighter jet, the difference of both masses, and how
two-pronged each jet looks, one after the other, all in TeV; with r = ln(m_JJ / 3.5 TeV),

$$ \ln m_1 = \mu_1 + a_1 r + s_1 z_1, \qquad
   \Delta m = \lambda\, e^{a_2 r} \left(-\ln \Phi(-z_2)\right)^{1/k}, $$
$$ \mathrm{logit}\,\tau_i = \mu_{\tau i} + a_\tau r - c_i\, g(m_i / \rho_i) + s_{\tau i} z, \qquad
   g(y) = \tfrac14 \ln(1 + y^4), $$

where m_2 = m_1 + Delta m is the heavier jet: beyond a mass rho a jet of quarks and gluons is the heavier the more it
looks like two.  Delta m is of Weibull's distribution.  As each step inverts, z is the Rosenblatt transform of the
features, and the density is that of z with the Jacobian.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FEATURES", "JetPopulation"]

FEATURES = ("m_J1", "delta_m", "tau21_J1", "tau21_J2")

_REFERENCE_MASS = 3.5
_LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class JetPopulation:
    """Pairs of jets of one kind; masses in TeV.

    Attributes:
        mass: median of the mass of the lighter jet at a dijet mass of 3.5 TeV.
        mass_spread: standard deviation of its logarithm.
        difference: scale lambda of the difference of masses.
        difference_shape: Weibull's k.
        tau: medians of logit tau21 of the lighter and the heavier jet, where they are light.
        tau_spread: standard deviations of these.
        tau_fall: how fast they fall with the masses, c.
        tau_mass: the masses rho from which on they fall.
        growth: powers of the dijet mass with which both masses grow, and the slope of logit tau21 in ln m_JJ.
    """

    mass: float
    mass_spread: float
    difference: float
    difference_shape: float
    tau: tuple[float, float]
    tau_spread: tuple[float, float]
    tau_fall: tuple[float, float] = (0.0, 0.0)
    tau_mass: tuple[float, float] = (0.2, 0.17)
    growth: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def features(self, z: Tensor, dijet_mass: Tensor) -> Tensor:
        """The features ``(n, 4)`` that belong to standard normal numbers z ``(n, 4)`` at dijet masses ``(n,)``."""
        log_ratio = torch.log(dijet_mass / _REFERENCE_MASS)
        lighter = torch.exp(self._log_mass(log_ratio) + self.mass_spread * z[..., 0])
        hazard = -torch.special.log_ndtr(-z[..., 1])
        difference = self._difference(log_ratio) * hazard ** (1 / self.difference_shape)
        masses = (lighter, lighter + difference)
        taus = [
            torch.sigmoid(self._logit(i, masses[i], log_ratio) + self.tau_spread[i] * z[..., 2 + i]) for i in (0, 1)
        ]
        return torch.stack([lighter, difference, *taus], -1)

    def latent(self, x: Tensor, dijet_mass: Tensor) -> Tensor:
        """The standard normal numbers ``(*, 4)`` that belong to features x ``(*, 4)`` in the support."""
        return torch.stack(self._invert(x, dijet_mass)[0], -1)

    def log_prob(self, x: Tensor, dijet_mass: Tensor) -> Tensor:
        """Log-density of features x ``(*, 4)``, inside the support, given dijet masses ``(*,)``."""
        z, log_slopes = self._invert(x, dijet_mass)
        # The second is of Weibull's density itself: a normal density times a slope would be 0 times infinity far out.
        normal = sum(-0.5 * z[i] ** 2 - 0.5 * _LOG_TWO_PI for i in (0, 2, 3))
        return torch.as_tensor(normal + log_slopes)

    def _invert(self, x: Tensor, dijet_mass: Tensor) -> tuple[list[Tensor], Tensor]:
        """z, and the logarithm of the slopes dz/dx of all but the second, with the density of the second."""
        log_ratio = torch.log(dijet_mass / _REFERENCE_MASS)
        lighter, difference = x[..., 0], x[..., 1]
        z = [(torch.log(lighter) - self._log_mass(log_ratio)) / self.mass_spread]
        ratio = difference / self._difference(log_ratio)
        hazard = ratio**self.difference_shape
        z.append(_normal_of_hazard(hazard))
        log_slopes = (
            math.log(self.difference_shape / self.mass_spread)
            - torch.log(lighter)
            + self.difference_shape * torch.log(ratio)
            - torch.log(difference)
            - hazard
        )
        for i, heavy in enumerate((lighter, lighter + difference)):
            tau = x[..., 2 + i]
            z.append((torch.logit(tau) - self._logit(i, heavy, log_ratio)) / self.tau_spread[i])
            log_slopes = log_slopes - torch.log(tau) - torch.log1p(-tau) - math.log(self.tau_spread[i])
        return z, log_slopes

    def _log_mass(self, log_ratio: Tensor) -> Tensor:
        return math.log(self.mass) + self.growth[0] * log_ratio

    def _difference(self, log_ratio: Tensor) -> Tensor:
        return self.difference * torch.exp(self.growth[1] * log_ratio)

    def _logit(self, i: int, mass: Tensor, log_ratio: Tensor) -> Tensor:
        heavy = torch.nn.functional.softplus(4 * torch.log(mass / self.tau_mass[i])) / 4
        return self.tau[i] + self.growth[2] * log_ratio - self.tau_fall[i] * heavy


def _normal_of_hazard(hazard: Tensor) -> Tensor:
    """The z of which hazard = -ln Phi(-z), exact to the last digits in both tails."""
    above = -torch.special.ndtri(torch.exp(-hazard))
    below = torch.special.ndtri(-torch.expm1(-hazard))
    return torch.where(hazard > math.log(2), above, below)
