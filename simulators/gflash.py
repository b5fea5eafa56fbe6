r"""Electromagnetic showers as GFLASH describes them: profiles along and across the axis, and how many spots they make.

Along the axis the energy follows a Gamma distribution in the depth t (in radiation lengths), whose maximum T and shape
alpha fluctuate from shower to shower, log-normally and correlated; across it two rational functions, a core and a tail,

$$ \frac{1}{E}\frac{dE}{dt} = \frac{(\beta t)^{\alpha-1} \beta e^{-\beta t}}{\Gamma(\alpha)}, \quad
   T = \frac{\alpha - 1}{\beta}; \qquad
   f(r) = p \frac{2 r R_C^2}{(r^2 + R_C^2)^2} + (1 - p) \frac{2 r R_T^2}{(r^2 + R_T^2)^2}, $$

whose radii and weight depend on $\tau = t / T$ and the energy.  With $y = E/E_c$, in a homogeneous medium
$\langle\ln T\rangle = \ln(\ln y - 0.812)$ and $\langle\ln\alpha\rangle = \ln(0.81 + (0.458 + 2.26/Z) \ln y)$; a
sampling calorimeter of the frequency $F_S$ and the signal ratio $\hat e$ (electrons over minimum ionising particles)
shifts them.  Formulas and numbers: Grindhammer and Peters, hep-ex/0001020, with its appendix.  The bounds on
spread and shape, which act below a GeV, are near those of Geant4's gflash.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError

__all__ = [
    "LEAD",
    "LEAD_ARGON",
    "LIQUID_ARGON",
    "GammaProfile",
    "Material",
    "Medium",
    "longitudinal_profile",
    "number_of_spots",
    "radial_profile",
    "spot_profile",
]

_SCATTERING_ENERGY = 21.2  # MeV, in R_M = X_0 E_s / E_c


@dataclass(frozen=True)
class Material:
    """A pure material.

    Attributes:
        atomic_number: Z.
        mass_number: A.
        density: g/cm^3.
        radiation_length: g/cm^2.
        interaction_length: nuclear, g/cm^2.
    """

    atomic_number: float
    mass_number: float
    density: float
    radiation_length: float
    interaction_length: float

    @property
    def critical_energy(self) -> float:
        """In MeV, 2.66 (X_0 Z / A)^1.1, the approximation of the paper."""
        return 2.66 * (self.radiation_length * self.atomic_number / self.mass_number) ** 1.1


@dataclass(frozen=True)
class Medium:
    """What a calorimeter is made of, on average over its plates; `sampling` and `homogeneous` make one.

    Attributes:
        atomic_number: effective Z.
        critical_energy: MeV.
        radiation_length: mm.
        moliere_radius: mm.
        interaction_length: mm.
        plates: 1 / F_S, thickness of a passive and an active plate in radiation lengths; 0 in a homogeneous medium.
        signal_ratio: e over mip; 1 in a homogeneous medium.
        resolution: sampling fluctuations, sigma / E times sqrt(E) in sqrt(GeV); 0 in a homogeneous medium.

    Raises:
        UsageError: there are plates without sampling fluctuations, or fluctuations without plates.
    """

    atomic_number: float
    critical_energy: float
    radiation_length: float
    moliere_radius: float
    interaction_length: float
    plates: float = 0.0
    signal_ratio: float = 1.0
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if min(self.plates, self.resolution) < 0 or bool(self.plates) != bool(self.resolution):
            raise UsageError(
                "medium: expected plates and a resolution, both positive, or neither, got plates "
                f"{self.plates!r} and resolution {self.resolution!r}"
            )

    @classmethod
    def homogeneous(cls, material: Material) -> "Medium":
        """A block of one material, in which every spot is seen."""
        return cls._mixed([(material, 1.0)])

    @classmethod
    def sampling(
        cls, passive: Material, passive_mm: float, active: Material, active_mm: float, resolution: float
    ) -> "Medium":
        """Plates of a passive and an active material in turn.

        Args:
            passive: material of the absorber.
            passive_mm: thickness of its plates in mm.
            active: material of the gaps.
            active_mm: thickness of the gaps in mm.
            resolution: sampling fluctuations, sigma / E times sqrt(E) in sqrt(GeV).
        """
        average = cls._mixed([(passive, passive_mm), (active, active_mm)])
        return cls(
            average.atomic_number,
            average.critical_energy,
            average.radiation_length,
            average.moliere_radius,
            average.interaction_length,
            plates=(passive_mm + active_mm) / average.radiation_length,
            signal_ratio=1 / (1 + 0.007 * (passive.atomic_number - active.atomic_number)),
            resolution=resolution,
        )

    @classmethod
    def _mixed(cls, parts: list[tuple[Material, float]]) -> "Medium":
        """Averages weighted with the mass of each part."""
        mass = [material.density * thickness for material, thickness in parts]
        density = sum(mass) / sum(thickness for _, thickness in parts)
        share = [(material, m / sum(mass)) for (material, _), m in zip(parts, mass, strict=True)]
        per_length = sum(w / m.radiation_length for m, w in share)
        loss = sum(w * m.critical_energy / m.radiation_length for m, w in share)
        to_mm = 10 / density
        return cls(
            atomic_number=sum(w * m.atomic_number for m, w in share),
            critical_energy=loss / per_length,
            radiation_length=to_mm / per_length,
            moliere_radius=to_mm * _SCATTERING_ENERGY / loss,
            interaction_length=to_mm / sum(w / m.interaction_length for m, w in share),
        )


LEAD = Material(82, 207.2, 11.35, 6.37, 199.6)
LIQUID_ARGON = Material(18, 39.95, 1.396, 19.55, 119.7)
LEAD_ARGON = Medium.sampling(LEAD, 1.53, LIQUID_ARGON, 4.2, resolution=0.10)
"""About the plates of the ATLAS barrel (JINST 3 (2008) S08003) without steel and glue, and its 10 % / sqrt(E)."""


@dataclass(frozen=True)
class GammaProfile:
    """A Gamma distribution along the axis for each of n showers.

    Attributes:
        shape: alpha, float64 ``(n,)``.
        rate: beta per unit of depth, float64 ``(n,)``.
    """

    shape: Tensor
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean depth ``(n,)``."""
        return self.shape / self.rate

    def between(self, edges: Tensor) -> Tensor:
        """Share of the energy ``(n, K)`` in the intervals between the depths ``(n, K + 1)``, nothing below zero."""
        depth = (self.rate.unsqueeze(-1) * edges).clamp_min(0)
        return torch.special.gammainc(self.shape.unsqueeze(-1).expand_as(depth), depth).diff(dim=-1)


def longitudinal_profile(medium: Medium, energy: Tensor, normals: Tensor) -> tuple[GammaProfile, Tensor]:
    """Profiles of individual showers in the depth from their start, in radiation lengths.

    Args:
        medium: where the showers develop.
        energy: GeV, float64 ``(n,)``.
        normals: two independent standard normal numbers for each shower, ``(n, 2)``; zeros give the typical shower.

    Returns:
        The profiles, and tau <t> / t ``(n,)``: tau is 1 at the maximum of the typical shower.
    """
    ln_y = torch.log(1000 * energy / medium.critical_energy)
    gap = 1 - medium.signal_ratio
    maximum = (ln_y - 0.812).clamp_min(0.1) - 0.55 * medium.plates - 0.69 * gap
    shape = 0.81 + (0.458 + 2.26 / medium.atomic_number) * ln_y - 0.476 * medium.plates
    ln_t, ln_alpha = torch.log(maximum.clamp_min(0.5)), torch.log(shape.clamp_min(1.1))
    if medium.plates:
        widths, correlation = (_width(-2.5 + 1.25 * ln_y), _width(-0.82 + 0.79 * ln_y)), 0.784 - 0.023 * ln_y
    else:
        widths, correlation = (_width(-1.4 + 1.26 * ln_y), _width(-0.58 + 0.86 * ln_y)), 0.705 - 0.023 * ln_y
    common, opposite = torch.sqrt((1 + correlation) / 2), torch.sqrt((1 - correlation) / 2)
    first, second = common * normals[:, 0], opposite * normals[:, 1]
    t_max = torch.exp(ln_t + widths[0] * (first + second)).clamp_min(0.5)
    alpha = torch.exp(ln_alpha + widths[1] * (first - second)).clamp_min(1.1)
    typical = torch.exp(ln_alpha)
    return GammaProfile(alpha, (alpha - 1) / t_max), typical / (typical - 1)


def _width(inverse: Tensor) -> Tensor:
    """Standard deviation of a logarithm: at most a half, which the formula exceeds below about a GeV."""
    return 1 / inverse.clamp_min(2.0)


def spot_profile(medium: Medium, profile: GammaProfile) -> GammaProfile:
    """Where along the axis the spots are, given where the energy is."""
    z = medium.atomic_number
    t_max = (profile.shape - 1) / profile.rate
    if medium.plates:
        t_max, alpha = t_max * (0.813 + 0.0019 * z), profile.shape * (0.844 + 0.0026 * z)
    else:
        t_max, alpha = t_max * (0.698 + 0.00212 * z), profile.shape * (0.639 + 0.00334 * z)
    alpha = alpha.clamp_min(1.05)
    return GammaProfile(alpha, (alpha - 1) / t_max)


def number_of_spots(medium: Medium, energy: Tensor) -> Tensor:
    """Mean number of spots that reproduces the fluctuations across the axis, ``(n,)`` for energies ``(n,)`` in GeV."""
    if medium.plates:
        return 10.3 / medium.resolution * energy**0.959
    return 93 * math.log(medium.atomic_number) * energy**0.876


def radial_profile(medium: Medium, energy: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Profile across the axis.

    Args:
        medium: where the showers develop.
        energy: GeV, float64 ``(n,)``.
        tau: relative depth ``(n, K)``.

    Returns:
        Share of the core p, and radii R_C and R_T of core and tail in Moliere radii, each ``(n, K)``.
    """
    z, gap, plates = medium.atomic_number, 1 - medium.signal_ratio, medium.plates
    ln_e = torch.log(energy).unsqueeze(-1)
    core = 0.0251 + 0.00319 * ln_e + (0.1162 - 0.000381 * z) * tau
    tail = (0.659 - 0.00309 * z) * (
        torch.exp(-2.59 * (tau - 0.645)) + torch.exp((0.3585 + 0.0421 * ln_e) * (tau - 0.645))
    )
    x = (0.401 + 0.00187 * z - tau) / (1.313 - 0.0686 * ln_e)
    weight = (2.632 - 0.00094 * z) * torch.exp(x - torch.exp(x))
    core = core - 0.0203 * gap + 0.0397 * plates * torch.exp(-tau)
    tail = tail - 0.14 * gap - 0.495 * plates * torch.exp(-tau)
    weight = weight + gap * (0.348 - 0.642 * plates * torch.exp(-((tau - 1) ** 2)))
    return weight.clamp(0, 1), core.clamp(1e-3, 1e3), tail.clamp(1e-3, 1e3)
