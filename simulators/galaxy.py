r"""A galaxy whose stars can be drawn at will: the truth that upsampled star particles are compared with.

A simulation of a galaxy has star particles of thousands of solar masses.  To compare it with a catalogue like Gaia's,
each is *upsampled* into stars in position and velocity (Lim et al. 2022, GalaxyFlow, arXiv:2211.11765).  Here the
density that particles and stars are drawn from is known,

$$ p(w, \tau, [\mathrm{Fe/H}]) = \sum_k \frac{M_k}{M} \, p_k(w) \, p_k(\tau) \, p_k([\mathrm{Fe/H}] \mid \tau, R), $$

with w = (x, v) and k over discs, a stellar halo, streams and satellites in the potential of the discs and a dark halo.
Each component's module says what is exact and what is approximate in its dynamics; the density is exactly that of the
draws.  The galaxy is not in equilibrium beyond the Jeans equations, has no bar, no spiral arms and no bulge.

It is a plain class, not a `Simulator`: the problem is to learn one density from draws, and the age and metallicity of
a star, on which one may condition, are drawn along with it, not set.

    galaxy = Galaxy()
    particles = galaxy.sample_particles(20_000, seed=0)
    stars = fixed_kernel_upsample(particles, 10, seed=1)      # the baseline
    truth = galaxy.sample_stars(200_000, seed=2)
    table = to_gaia(truth.positions, truth.velocities)
    table.write("stars.fits", format="fits")
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import batch_of, positive_integer, same_length
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from simulators.galaxy_components import Component, PhaseSpaceDensity
from simulators.galaxy_disc import Disc
from simulators.galaxy_halo import StellarHalo
from simulators.galaxy_population import Population
from simulators.galaxy_potential import NFW, Potential, TotalPotential
from simulators.galaxy_stars import StarParticles, Stars
from simulators.galaxy_structures import Satellite, Stream
from simulators.velocity_table import in_unit

__all__ = ["Galaxy", "default_components"]


def default_components() -> tuple[Component, ...]:
    """Return the components of a galaxy like the Milky Way.

    A thin and a thick disc with the age-metallicity relations and radial gradients of the solar neighbourhood, an old
    metal-poor halo, a cold stream on an inclined orbit with its progenitor, and a dwarf galaxy farther out.  The
    masses of stream and satellites are larger than those in the Milky Way, so that a few ten thousand particles show
    them.
    """
    progenitor = ((12.0, 6.0, 9.0), (-95.0, 130.0, 110.0))
    old = Population(youngest=10.0, oldest=13.0, metallicity=-1.5, scatter=0.15)
    return (
        Disc(
            name="thin disc",
            mass=5.5e10,
            radial_scale=3.0,
            vertical_scale=0.36,
            anisotropy=1.6,
            max_height=3.0,
            population=Population(
                youngest=0.0,
                oldest=10.0,
                formation_timescale=8.0,
                metallicity=0.0,
                enrichment=0.03,
                gradient=-0.05,
                scatter=0.15,
            ),
        ),
        Disc(
            name="thick disc",
            mass=1.5e10,
            radial_scale=2.2,
            vertical_scale=0.9,
            anisotropy=1.3,
            population=Population(
                youngest=8.0, oldest=13.0, metallicity=-0.35, enrichment=0.12, gradient=0.0, scatter=0.2
            ),
        ),
        StellarHalo(
            name="halo",
            mass=1.5e9,
            scale_radius=20.0,
            population=Population(youngest=10.0, oldest=13.0, metallicity=-1.3, scatter=0.35),
        ),
        Stream(
            name="stream",
            mass=1.0e9,
            position=progenitor[0],
            velocity=progenitor[1],
            population=old,
            leading=0.15,
            trailing=0.25,
            position_width=0.15,
            velocity_width=4.0,
        ),
        Satellite(
            name="progenitor",
            mass=3.0e8,
            position=progenitor[0],
            velocity=progenitor[1],
            radius=0.2,
            dispersion=6.0,
            population=old,
        ),
        Satellite(
            name="dwarf",
            mass=7.0e8,
            position=(-25.0, 30.0, -20.0),
            velocity=(60.0, 90.0, -100.0),
            radius=0.8,
            dispersion=10.0,
            elapsed=0.5,
            population=Population(
                youngest=2.0, oldest=13.0, metallicity=-0.8, enrichment=0.08, formation_timescale=5.0, scatter=0.2
            ),
        ),
    )


class Galaxy:
    """A galaxy of stars with a known density in phase space.

    Args:
        components: what its stars are; those of `default_components` where none are given.
        dark_halo: its dark matter; by default that of McMillan 2017 (arXiv:1608.00971), of 8.54e6 solar masses per
            kpc^3 at 19.6 kpc.

    Attributes:
        components: as given.
        names: of the components, in their order.
        fractions: the share of each component in the mass of the stars, float64 ``(components,)``.
        stellar_mass: of all components, in solar masses.
        potential: of the dark halo and all discs.

    Raises:
        UsageError: there is no component, one is none, or two have the same name.
    """

    def __init__(self, components: Sequence[Component] | None = None, dark_halo: NFW | None = None) -> None:
        self.components = tuple(default_components() if components is None else components)
        self.names = tuple(getattr(component, "name", "") for component in self.components)
        if not self.components or not all(isinstance(component, Component) for component in self.components):
            raise UsageError(
                f"components: expected one Disc, StellarHalo, Stream or Satellite or more, got {components!r}"
            )
        if len(set(self.names)) < len(self.names):
            raise UsageError(f"components: expected different names, got {', '.join(self.names)}")
        discs = tuple(component.matter for component in self.components if isinstance(component, Disc))
        halo = NFW(scale_density=8.54e6, scale_radius=19.6) if dark_halo is None else dark_halo
        self.potential: Potential = TotalPotential((halo, *discs))
        masses = torch.tensor([component.stellar_mass for component in self.components], dtype=torch.float64)
        self.stellar_mass = float(masses.sum())
        self.fractions = masses / self.stellar_mass
        self._densities = {component.name: component.phase_space(self.potential) for component in self.components}

    def sample_stars(self, n: int, *, seed: int = 0) -> Stars:
        """Draw n true stars; same seed, same stars.

        Raises:
            UsageError: n is no integer of at least 1, or the seed none in [0, 2**63).
        """
        with seeded(derive(seed, "labels")):
            labels = torch.multinomial(self.fractions, positive_integer(n, "n"), replacement=True)
        phase_space = torch.empty(n, 6, dtype=torch.float64)
        ages, metallicities = torch.empty(2, n, dtype=torch.float64)
        for k, component in enumerate(self.components):
            rows = torch.nonzero(labels == k).squeeze(-1)
            drawn = self.phase_space_density(component.name).sample(len(rows), seed=derive(seed, "stars", k))
            phase_space[rows] = drawn
            ages[rows], metallicities[rows] = component.population.sample(drawn, seed=derive(seed, "populations", k))
        return Stars(phase_space[:, :3], phase_space[:, 3:], ages, metallicities, labels, self.names)

    def sample_particles(self, n: int, *, mass: Any = None, neighbours: int = 16, seed: int = 0) -> StarParticles:
        """Draw n star particles from the same density, as an ideal simulation would have them.

        Args:
            n: number of particles.
            mass: of each, in solar masses or as an astropy quantity; by default they share the stellar mass.
            neighbours: of which the smoothing lengths are made.
            seed: of the draws; the particles are not the stars of `sample_stars` with the same seed.

        Raises:
            UsageError: n is not above `neighbours`, or the mass is not positive.
        """
        each = self.stellar_mass / positive_integer(n, "n") if mass is None else in_unit(mass, "M_sun", "mass")
        stars = self.sample_stars(n, seed=derive(seed, "particles"))
        return StarParticles.from_stars(stars, torch.full((n,), each, dtype=torch.float64), neighbours=neighbours)

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density in nats per kpc^3 (km/s)^3 at `phase_space` ``(n, 6)`` in kpc and km/s: float64 ``(n,)``.

        Raises:
            ShapeError: `phase_space` has another shape.
        """
        terms = [self.component_log_density(name, phase_space) for name in self.names]
        return torch.logsumexp(torch.stack(terms) + self._log_fractions(phase_space), 0)

    def component_log_density(self, name: str, phase_space: Tensor) -> Tensor:
        """Log-density of one component alone, normalised to one, at `phase_space` ``(n, 6)``: float64 ``(n,)``.

        Raises:
            UsageError: there is no component of that name.
            ShapeError: `phase_space` has another shape.
        """
        w = batch_of(phase_space, (6,), "phase_space").to(torch.float64)
        return self.phase_space_density(name).log_density(w)

    def log_joint_density(self, phase_space: Tensor, ages: Tensor, metallicities: Tensor) -> Tensor:
        """Log-density of phase space, age and metallicity together (also per Gyr and dex): float64 ``(n,)``.

        The density of phase space given age and metallicity is this up to a factor.

        Raises:
            ShapeError: an array has another shape or number of rows.
        """
        w = batch_of(phase_space, (6,), "phase_space").to(torch.float64)
        tau, feh = (batch_of(values, (), name) for values, name in ((ages, "ages"), (metallicities, "metallicities")))
        same_length(phase_space=w, ages=tau, metallicities=feh)
        terms = [
            self.component_log_density(component.name, w) + component.population.log_density(w, tau, feh)
            for component in self.components
        ]
        return torch.logsumexp(torch.stack(terms) + self._log_fractions(w), 0)

    def phase_space_density(self, name: str) -> PhaseSpaceDensity:
        """Return the density of one component, which also draws from it.

        Raises:
            UsageError: there is no component of that name.
        """
        if name not in self._densities:
            raise UsageError(f"component: expected one of {', '.join(self.names)}; got {name!r}")
        return self._densities[name]

    def _log_fractions(self, phase_space: Tensor) -> Tensor:
        return torch.log(self.fractions).to(phase_space.device).unsqueeze(-1)
