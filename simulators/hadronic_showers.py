r"""Hadronic showers in the manner of GFLASH: a hadronic part, and neutral pions of the first and of later interactions.

The visible energy along the axis is (Grindhammer, Rudowicz, Peters, NIM A290 (1990) 469)

$$ \frac{dE}{ds} = E \left[ \frac{h}{e} (1 - f)\, \mathcal H(s) + f (1 - f_l)\, \mathcal F(s) + f f_l\, \mathcal L(s)
   \right], $$

three Gamma distributions in the depth s behind the first interaction, $\mathcal H$ and $\mathcal L$ in interaction
lengths, $\mathcal F$ in radiation lengths.  The fractions f (energy in neutral pions) and $f_l$ (of it, from later
interactions) fluctuate between 0 and 1; showers without neutral pions, with early and with late ones, the three
classes of the paper, are their limits.  Across the axis the hadronic part and the late pions follow
$2 r R_{50}^2 / (r^2 + R_{50}^2)^2$ with a log-normal $R_{50}$ that grows with the depth, the early pions the
electromagnetic profile.  The paper's tables are tuned to one detector; the numbers here are

- profiles of H and F: Bock, Hansl-Kozanecka and Shah, NIM 186 (1981) 533;
- mean of f: $1 - E^{k-1}$, k = 0.82 and E in GeV (Gabriel et al., NIM A338 (1994) 336), of which a third of the energy
  comes from the first interaction;
- $R_{50}$ and its width: GFLASH as CMS tuned it to test beams (cms-sw/cmssw, ``GflashHadronShowerProfile``);
- e/h = 1.36: about that of the tiles of ATLAS (NIM A606 (2009) 362);
- the spreads of f, f_l and of the profiles, the sampling fluctuations, and the profile of L: chosen here, so that the
  energy resolution is about that of such calorimeters, 50 % / sqrt(E) and a constant term of several per cent.

Bock's fit is to 15 to 140 GeV, and far beyond it is extrapolated.  Ionisation by the hadron before its first
interaction is left out.
"""

from dataclasses import dataclass

import torch
import torch.distributions as td
from torch import Tensor

from simulators.gflash import GammaProfile

__all__ = [
    "HADRONIC_RESOLUTION",
    "HadronicProfiles",
    "energy_shares",
    "hadronic_profiles",
    "hadronic_radius",
    "hadronic_spots",
]

HADRONIC_RESOLUTION = 0.45
"""Sampling fluctuations of the hadronic part in sqrt(GeV)."""

_HADRONIC_RESPONSE = 1 / 1.36
_EXPONENT = 0.82
_FIRST_INTERACTION = 1 / 3
_CONCENTRATION = 8.0
_SPREAD, _CORRELATION = 0.25, 0.5
_DEEPEST = 10.0  # interaction lengths: where the radius stops to grow


@dataclass(frozen=True)
class HadronicProfiles:
    """Profiles along the axis of the three parts of n showers.

    Attributes:
        hadronic: in interaction lengths behind the first interaction.
        early: of the first neutral pions, in radiation lengths.
        late: of later neutral pions, in interaction lengths.
    """

    hadronic: GammaProfile
    early: GammaProfile
    late: GammaProfile


def energy_shares(energy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Visible energies in GeV of the hadronic part, of early and of late neutral pions, each ``(n,)``.

    Draws from the random stream that is current.

    Args:
        energy: incident energies in GeV, float64 ``(n,)``.
    """
    mean = 1 - energy.clamp_min(1) ** (_EXPONENT - 1)
    pions = _fraction(mean)
    late = _fraction((1 - _FIRST_INTERACTION / mean.clamp_min(_FIRST_INTERACTION)).clamp(0, 1))
    return _HADRONIC_RESPONSE * energy * (1 - pions), energy * pions * (1 - late), energy * pions * late


def _fraction(mean: Tensor) -> Tensor:
    """A fraction between 0 and 1 of the given mean; zero where the mean is."""
    inside = mean.clamp(1e-6, 1 - 1e-6)
    drawn = td.Beta(inside * _CONCENTRATION, (1 - inside) * _CONCENTRATION, validate_args=False).sample()
    return torch.where(mean > 0, drawn, 0.0)


def hadronic_profiles(energy: Tensor, normals: Tensor) -> HadronicProfiles:
    """Profiles of individual showers.

    Args:
        energy: incident energies in GeV, float64 ``(n,)``; below 1 GeV the profiles of 1 GeV are taken.
        normals: independent standard normal numbers ``(n, 4)``; zeros give the typical shower.
    """
    ln_e = torch.log(energy.clamp_min(1))
    shape, rate = 0.6165 + 0.3183 * ln_e, 0.9099 - 0.0237 * ln_e
    hadronic = _fluctuated(shape, rate, normals[:, :2])
    early = _fluctuated(shape, torch.full_like(rate, 0.2198), normals[:, 2:])
    return HadronicProfiles(hadronic, early, GammaProfile(hadronic.shape + 1, hadronic.rate))


def _fluctuated(shape: Tensor, rate: Tensor, normals: Tensor) -> GammaProfile:
    other = _CORRELATION * normals[:, 0] + (1 - _CORRELATION**2) ** 0.5 * normals[:, 1]
    return GammaProfile(shape * torch.exp(_SPREAD * normals[:, 0]), rate * torch.exp(_SPREAD * other))


def hadronic_spots(energy: Tensor) -> Tensor:
    """Mean number of spots of the hadronic part ``(n,)``: 50 + 80 ln E with its energy E in GeV, at least 50."""
    return 50 + 80 * torch.log(energy.clamp_min(1))


def hadronic_radius(energy: Tensor, depth: Tensor, hadronic_section: Tensor, normal: Tensor) -> Tensor:
    """The radius R_50 that holds half of the energy, in Moliere radii.

    Args:
        energy: incident energies in GeV, float64 ``(n,)``.
        depth: behind the first interaction in interaction lengths, ``(n, K)``.
        hadronic_section: whether an interval is in the hadronic calorimeter, behind the electromagnetic one, ``(K,)``.
        normal: a standard normal number for each shower, ``(n,)``.

    Returns:
        Log-normal radii ``(n, K)``, of one draw along each shower.
    """
    ln_e, depth = torch.log(energy.clamp_min(1)).unsqueeze(-1), depth.clamp_max(_DEEPEST)
    scale = torch.where(hadronic_section, 14 - 1.5 * ln_e, 5.5 - 0.4 * ln_e).clamp_min(1)
    mean = scale * (0.20 + (0.40 - 0.06 * ln_e).clamp_min(0) * depth)
    relative = (0.70 - 0.05 * ln_e) * (1 + 0.20 * depth)
    width = torch.sqrt(torch.log1p(relative**2))
    return mean * torch.exp(width * normal.unsqueeze(-1) - width**2 / 2)
