r"""Phase space as a tree of decays of one body into two, with a map for each mass and each angle.

$$ d\Phi_n = d\Phi_2(M; s_1, s_2) \prod_j \frac{ds_j}{2\pi}\; d\Phi_2(\sqrt{s_j}; \ldots), \qquad
   d\Phi_2 = \frac{|p|}{M}\, \frac{d\cos\theta\, d\varphi}{16 \pi^2} $$

(Byckling and Kajantie, Particle Kinematics, 1973, ch. VI; Particle Data Group, Kinematics).  Each decay is described in
its own rest frame, reached from that of the whole by boosts without rotations.  The numbers stand in the order in which
the tree is read from its root: for each decay the mass of its first body, that of its second (where they decay again),
1 - cos theta and the azimuth, and then those of the decays of both.
"""

import math

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.kinematics import (
    azimuth,
    boost_from_rest,
    boost_to_rest,
    direction,
    four_momentum,
    minkowski_dot,
    one_minus_cos,
    turn_from_z,
    turn_to_z,
    two_body_momentum,
)
from sbi_physics.core.processes import Decay, Particle, leaf_masses
from sbi_physics.integration.phase_space import (
    checked_masses,
    checked_momenta,
    checked_numbers,
    energies_like,
    uniform_or_edge,
)

__all__ = ["DecayChain"]

Node = Decay | Particle


class DecayChain:
    """Phase space of n particles from 3n - 4 numbers, along a tree of decays; invertible.

    Args:
        tree: the decays, from the root; the particles are numbered from left to right.
        energy: mass of the root, in GeV.

    Attributes:
        dims: 3n - 4.
        masses: of the particles, in GeV.

    Raises:
        UsageError: the energy is not above the threshold, a map of a mass that may be zero has no finite
            integral, or the root is to have a direction of flight.
    """

    def __init__(self, tree: Decay, energy: float) -> None:
        self.masses = checked_masses(leaf_masses(tree), energy, "DecayChain")
        if not energy > tree.threshold:
            raise UsageError(f"DecayChain: expected an energy above {tree.threshold:g} GeV, got {energy!r}")
        if tree.axis == "flight":
            raise UsageError("DecayChain: expected the axis 'z' at the root, which is at rest, got 'flight'")
        _check_maps(tree)
        self.tree = tree
        self.energy = float(energy)
        self.dims = 3 * len(self.masses) - 4

    def __call__(self, u: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Momenta in the rest frame of all, and their weights.

        Args:
            u: numbers in [0, 1], ``(n_events, 3n - 4)``.
            energy: ``(n_events,)`` in GeV, in place of the one of the map; above the threshold.

        Returns:
            Momenta (E, p_x, p_y, p_z) ``(n_events, n, 4)`` in GeV, and weights ``(n_events,)``.

        Raises:
            ShapeError: u or energy has another shape.
        """
        u = uniform_or_edge(checked_numbers(u, self.dims, "DecayChain"))
        mass = energies_like(energy, self.energy, u)
        at_rest = torch.cat([mass.unsqueeze(-1), mass.new_zeros(len(mass), 3)], -1)
        momenta, weight = _decay(self.tree, at_rest, mass, list(u.unbind(-1)))
        return torch.stack(momenta, -2), weight

    def inverse(self, momenta: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The numbers that momenta belong to, and their weights.

        Args:
            momenta: ``(n_events, n, 4)`` in the rest frame of all, in GeV.
            energy: ``(n_events,)`` in GeV, in place of the one of the map.

        Returns:
            u ``(n_events, 3n - 4)``, outside [0, 1] where the tree cannot give the momenta, and weights
            ``(n_events,)``.

        Raises:
            ShapeError: momenta or energy has another shape.
        """
        momenta = checked_momenta(momenta, len(self.masses), "DecayChain")
        mass = energies_like(energy, self.energy, momenta)
        branch = _Branch(self.tree, list(momenta.unbind(-2)))
        at_rest = torch.cat([mass.unsqueeze(-1), mass.new_zeros(len(mass), 3)], -1)
        numbers, weight = _undecay(branch, at_rest, mass)
        return torch.stack(numbers, -1), weight


def _check_maps(tree: Decay) -> None:
    for node in (tree.first, tree.second):
        if isinstance(node, Decay):
            if node.threshold == 0 and node.mass.needs_positive_low():
                raise UsageError(
                    f"DecayChain: expected a least_mass or an offset, as {node.mass} of a mass that may be zero "
                    "has no finite integral"
                )
            _check_maps(node)


def _decay(node: Node, momentum: Tensor, mass: Tensor, u: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The momenta of all particles of a node and the weight of its phase space; takes what it needs from u."""
    if isinstance(node, Particle):
        return [momentum], torch.ones_like(mass)
    first, first_slope = _drawn_mass(node.first, mass - _least(node.second), u)
    second, second_slope = _drawn_mass(node.second, mass - first, u)
    far, angle_slope = node.angle.forward(u.pop(0), mass.new_zeros(()), mass.new_full((), 2.0))
    length = two_body_momentum(mass, first, second)
    vector = length.unsqueeze(-1) * direction(far, 2 * math.pi * u.pop(0))
    if node.axis == "flight":
        vector = turn_from_z(vector, momentum[..., 1:])
    weight = first_slope * second_slope * angle_slope * length / mass / (8 * math.pi)
    momenta: list[Tensor] = []
    for child, child_mass, towards in ((node.first, first, vector), (node.second, second, -vector)):
        moved = boost_from_rest(four_momentum(towards, child_mass**2), momentum, mass)
        made, factor = _decay(child, moved, child_mass, u)
        momenta += made
        weight = weight * factor
    return momenta, weight


def _least(node: Node) -> float:
    return node.mass if isinstance(node, Particle) else node.threshold


def _drawn_mass(node: Node, most: Tensor, u: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mass of a node, at most `most`, and the slope of its square over 2 pi."""
    if isinstance(node, Particle):
        return torch.full_like(most, node.mass), torch.ones_like(most)
    low = most.new_tensor(node.threshold**2)
    squared, slope = node.mass.forward(u.pop(0), low, most**2)
    return torch.sqrt(squared), slope / (2 * math.pi)


class _Branch:
    """A node with the momenta of its particles summed up."""

    def __init__(self, node: Node, momenta: list[Tensor]) -> None:
        self.node = node
        self.children: list[_Branch] = []
        if isinstance(node, Particle):
            self.momentum = momenta.pop(0)
            self.squared_mass = torch.full_like(self.momentum[..., 0], node.mass**2)
            return
        self.children = [_Branch(node.first, momenta), _Branch(node.second, momenta)]
        first, second = self.children
        self.momentum = first.momentum + second.momentum
        product = minkowski_dot(first.momentum, second.momentum)
        self.squared_mass = first.squared_mass + second.squared_mass + 2 * product


def _undecay(branch: _Branch, momentum: Tensor, mass: Tensor) -> tuple[list[Tensor], Tensor]:
    """The numbers of a branch and the weight of its phase space, in the order in which `_decay` takes them."""
    node = branch.node
    if isinstance(node, Particle):
        return [], torch.ones_like(mass)
    first, second = branch.children
    first_mass, second_mass = torch.sqrt(first.squared_mass), torch.sqrt(second.squared_mass)
    first_u, first_slope = _undrawn_mass(first, mass - _least(node.second))
    second_u, second_slope = _undrawn_mass(second, mass - first_mass)
    seen = boost_to_rest(first.momentum, momentum, mass)
    if node.axis == "flight":
        seen = torch.cat([seen[..., :1], turn_to_z(seen[..., 1:], momentum[..., 1:])], -1)
    far, angle_slope = node.angle.inverse(one_minus_cos(seen), mass.new_zeros(()), mass.new_full((), 2.0))
    length = two_body_momentum(mass, first_mass, second_mass)
    weight = first_slope * second_slope * angle_slope * length / mass / (8 * math.pi)
    numbers = [*first_u, *second_u, far, azimuth(seen) / (2 * math.pi)]
    for child, child_mass in ((first, first_mass), (second, second_mass)):
        found, factor = _undecay(child, child.momentum, child_mass)
        numbers += found
        weight = weight * factor
    return numbers, weight


def _undrawn_mass(branch: _Branch, most: Tensor) -> tuple[list[Tensor], Tensor]:
    if isinstance(branch.node, Particle):
        return [], torch.ones_like(most)
    low = most.new_tensor(branch.node.threshold**2)
    u, slope = branch.node.mass.inverse(branch.squared_mass, low, most**2)
    return [u], slope / (2 * math.pi)
