r"""Stars in phase space, and star particles: what a simulation of a galaxy has in their place.

A star particle stands for thousands of stars.  How far its stars are to be spread is estimated from its neighbours in
the six dimensions of phase space.  kpc and km/s have no common scale, so each particle gets its own: among its 4 k
nearest in a metric common to all, the spreads l_x and l_v per direction stretch the metric, and the distance d to the
k-th neighbour in units of them gives the smoothing lengths

$$ h_x = l_x \, d / \sqrt{10}, \qquad h_v = l_v \, d / \sqrt{10}, $$

those of a Gaussian with the variance of the six-dimensional Epanechnikov kernel that reaches to the k-th neighbour.
The idea of a local metric is that of EnBiD (Sharma & Steinmetz 2006, arXiv:astro-ph/0507550), which finds it by
splitting space where the entropy is least.  Here neighbours decide: a structure of about 4 k particles gets nearly its
own ratio of the two lengths; one of many more keeps that of the common metric where its density hardly changes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, same_length
from sbi_physics.core.errors import UsageError

__all__ = ["StarParticles", "Stars", "smoothing_lengths"]

_SCOUTS = 4
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Stars:
    """Stars with ages and metallicities; tensors or arrays come in, float64 tensors are kept.

    Attributes:
        positions: Galactocentric, ``(n, 3)`` in kpc.
        velocities: ``(n, 3)`` in km/s.
        ages: ``(n,)`` in Gyr.
        metallicities: [Fe/H] ``(n,)`` in dex.
        components: index into `names` of the component of each star, int64 ``(n,)``.
        names: of the components.

    Raises:
        ShapeError, NonFiniteError: an array has another shape, or is not finite.
        UsageError: an index is not one of a name.
    """

    positions: Tensor
    velocities: Tensor
    ages: Tensor
    metallicities: Tensor
    components: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, shape in {"positions": (3,), "velocities": (3,), "ages": (), "metallicities": ()}.items():
            values = as_tensor(getattr(self, name), name, dtype=torch.float64)
            object.__setattr__(self, name, finite(batch_of(values, shape, name, minimum=0), name))
        components = batch_of(torch.as_tensor(self.components), (), "components", minimum=0)
        if components.is_floating_point() or bool(((components < 0) | (components >= len(self.names))).any()):
            raise UsageError(f"components: expected integers from 0 to {len(self.names) - 1}")
        object.__setattr__(self, "components", components.long())
        same_length(
            positions=self.positions,
            velocities=self.velocities,
            ages=self.ages,
            metallicities=self.metallicities,
            components=self.components,
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Any) -> "Stars":
        """The stars at a slice, a mask or an array of indices."""
        return Stars(
            self.positions[rows],
            self.velocities[rows],
            self.ages[rows],
            self.metallicities[rows],
            self.components[rows],
            self.names,
        )

    @property
    def phase_space(self) -> Tensor:
        """Positions and velocities side by side, ``(n, 6)``."""
        return torch.cat([self.positions, self.velocities], -1)

    def of(self, name: str) -> "Stars":
        """The stars of one component.

        Raises:
            UsageError: there is no component of that name.
        """
        if name not in self.names:
            raise UsageError(f"component: expected one of {', '.join(self.names)}; got {name!r}")
        return self[self.components == self.names.index(name)]


@dataclass(frozen=True)
class StarParticles:
    """Star particles of a simulation.

    Attributes:
        stars: positions, velocities, ages and metallicities of n particles.
        masses: ``(n,)`` in solar masses.
        position_smoothing: standard deviation in each direction of a particle's stars, ``(n,)`` in kpc.
        velocity_smoothing: the same ``(n,)`` in km/s.

    Raises:
        ShapeError, NonFiniteError: an array has another shape, or is not finite.
        UsageError: a mass or a smoothing length is not positive.
    """

    stars: Stars
    masses: Tensor
    position_smoothing: Tensor
    velocity_smoothing: Tensor

    def __post_init__(self) -> None:
        for name in ("masses", "position_smoothing", "velocity_smoothing"):
            values = finite(batch_of(as_tensor(getattr(self, name), name, dtype=torch.float64), (), name), name)
            if not bool((values > 0).all()):
                raise UsageError(f"{name}: expected positive numbers, got {float(values.min()):g}")
            same_length(**{"stars": self.stars.positions, name: values})
            object.__setattr__(self, name, values)

    @classmethod
    def from_stars(cls, stars: Stars, masses: Any, *, neighbours: int = 16) -> "StarParticles":
        """Make particles of positions and velocities, as of a simulation's snapshot, by their `smoothing_lengths`."""
        position, velocity = smoothing_lengths(stars.phase_space, neighbours=neighbours)
        return cls(stars, masses, position, velocity)

    def __len__(self) -> int:
        return len(self.stars)


def smoothing_lengths(phase_space: Tensor, *, neighbours: int = 16) -> tuple[Tensor, Tensor]:
    """Smoothing lengths of particles from their neighbours in phase space, by the module's formula.

    Args:
        phase_space: positions and velocities ``(n, 6)`` in kpc and km/s.
        neighbours: k, below n; the spreads come from 4 k neighbours, as far as there are so many.

    Returns:
        Standard deviations of the stars about each particle, ``(n,)`` in kpc and ``(n,)`` in km/s.

    Raises:
        ShapeError, NonFiniteError: `phase_space` has another shape, or is not finite.
        UsageError: there are not more than k particles, or k + 1 of them are at one position or velocity.
    """
    w = finite(batch_of(phase_space.to(torch.float64).cpu(), (6,), "phase_space"), "phase_space")
    if positive_integer(neighbours, "neighbours") >= len(w):
        raise UsageError(f"neighbours: expected fewer than the {len(w)} particles, got {neighbours}")
    spread = torch.stack([_spread(w[:, :3]), _spread(w[:, 3:])]).repeat_interleave(3)
    if not bool((spread > 0).all()):
        raise UsageError("phase_space: expected particles that differ in position and in velocity")
    tree = cKDTree((w / spread).numpy())
    scouts = min(_SCOUTS * neighbours + 1, len(w))
    lengths = [
        _local_lengths(block, w[torch.from_numpy(tree.query((block / spread).numpy(), k=scouts)[1])], neighbours)
        for block in w.split(_ROWS_AT_ONCE)
    ]
    position, velocity = torch.cat(lengths, 1)
    if not bool((position > 0).all() and (velocity > 0).all()):
        raise UsageError(f"phase_space: expected fewer than {neighbours + 1} particles at one position or velocity")
    return position, velocity


def _spread(vectors: Tensor) -> Tensor:
    """The mean distance from the middle, per direction, which a few stars far out hardly move."""
    return (vectors - vectors.median(0).values).norm(dim=-1).mean() / math.sqrt(3)


def _local_lengths(particles: Tensor, scouts: Tensor, neighbours: int) -> Tensor:
    """Smoothing lengths ``(2, n)`` of particles ``(n, 6)`` from their scouts ``(n, K, 6)``, themselves among them."""
    offsets = scouts - particles.unsqueeze(1)
    square = torch.stack([(offsets[..., :3] ** 2).sum(-1), (offsets[..., 3:] ** 2).sum(-1)])
    local = square.mean(-1) / 3
    distance = (square / local.unsqueeze(-1)).sum(0).sort(-1).values[:, neighbours].sqrt()
    return torch.sqrt(local) * distance / math.sqrt(10)
