r"""`Symmetry`: permutations of the numbers of an output under which its distribution does not change.

Showers of a particle on the axis look the same after a rotation by a sector and in a mirror.  A group G of such
permutations is used three times: what is learned of a number is learned of all numbers that G moves there; in training
each event is shown, each time, as a random element of G leaves it; and a random element acts on each draw, so that the
distribution that is drawn from,

$$ p_G(x) = \frac{1}{|G|} \sum_{g \in G} p(g x), $$

is exactly invariant, and nearer to an invariant truth than p is: the divergence is convex (Chen, Dobriban and Lee 2020,
arXiv:1907.10905).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.models.columns import Columns
from sbi_physics.models.generator import ConditionalGenerator
from sbi_physics.store.row_parts import Rows, row_parts

__all__ = ["Augmentation", "Symmetry", "fit_columns", "shower_symmetry"]

_MOST_ELEMENTS = 4096


class Symmetry(nn.Module):
    """A finite group of permutations of D columns.

    Args:
        generators: permutations ``(D,)`` whose products are the group; the new column i is the old column
            ``generator[i]``.

    Attributes:
        elements: the group, int64 ``(|G|, D)``; the identity comes first.

    Raises:
        UsageError: a generator is no permutation, or the group has more than 4096 elements.
    """

    elements: Tensor

    def __init__(self, generators: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.register_buffer("elements", _generated([tuple(map(int, each)) for each in generators]), persistent=False)

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def orbit_of(self) -> Tensor:
        """The number of the orbit of each column, the columns that the group moves there: int64 ``(D,)``."""
        return self.elements.amin(0).unique(return_inverse=True)[1]

    def restricted(self, kept: Tensor) -> "Symmetry":
        """The group on some of the columns, boolean ``(D,)``, which must be whole orbits."""
        number = kept.cumsum(0) - 1
        made = Symmetry([range(int(kept.sum()))])
        made.elements = number[self.elements[:, kept]]
        return made

    def moved(self, element: int, x: Tensor) -> Tensor:
        """Rows ``(n, D)`` as an element of the group leaves them."""
        return x[:, self.elements[element]]

    def draw(self, x: Tensor) -> Tensor:
        """Rows ``(n, D)`` as random elements of the group leave them, each its own, on the current random stream."""
        chosen = torch.randint(len(self), (len(x),), device=x.device)
        return x.gather(1, self.elements[chosen])


class Augmentation:
    """Encoded events ``(n, D)`` of a model as random elements of a group leave the events that they stand for.

    Args:
        model: with its scaling learned.
        symmetry: of the events.
    """

    def __init__(self, model: ConditionalGenerator, symmetry: Symmetry) -> None:
        self._model, self._symmetry = model, symmetry.to(model.device)

    def __call__(self, encoded: Tensor) -> Tensor:
        """Draw on the current random stream."""
        return self._model.encode(self._symmetry.draw(self._model.decoded(encoded)[0]))[0].detach()


def fit_columns(columns: Columns, x: Rows, symmetry: Symmetry | None) -> None:
    """Fit columns to x ``(n, D)`` such that those of an orbit share all that is learned."""
    if symmetry is None:
        columns.fit(x)
        return
    orbit_of = symmetry.orbit_of
    orbits = [(orbit_of == orbit).nonzero()[:, 0] for orbit in range(int(orbit_of.max()) + 1)]
    most = max(map(len, orbits))
    # Orbits of fewer columns count theirs several times.
    members = torch.stack([orbit.repeat(-(-most // len(orbit)))[:most] for orbit in orbits])
    images = row_parts(x).map(
        lambda part: part[:, members].transpose(1, 2).reshape(-1, len(orbits)), (len(orbits),), times=members.shape[1]
    )
    shared = Columns(len(orbits)).to(columns.kinds.device).fit(images)
    learned = dict(shared.named_buffers())
    for name, buffer in columns.named_buffers():
        buffer.copy_(learned[name][orbit_of])


def shower_symmetry(geometry: VoxelGeometry) -> Symmetry:
    """Rotations of all layers at once by an angle that is a sector, or several, of each, and the mirror.

    A layer without sectors stays as it is.

    Raises:
        UsageError: no layer has sectors.
    """
    cut = [layer.sectors for layer in geometry.layers if layer.sectors > 1]
    if not cut:
        raise UsageError("symmetries: expected a geometry with a layer that is cut into sectors")
    common = math.gcd(*cut)
    turned, mirrored = [], []
    for layer, part in zip(geometry.layers, geometry.layer_slices, strict=True):
        order = torch.arange(layer.sectors)
        turned += _sectors(layer, part.start, order.roll(-(layer.sectors // common)).tolist())
        mirrored += _sectors(layer, part.start, order.flip(0).tolist())
    return Symmetry([turned, mirrored])


def _sectors(layer: VoxelLayer, start: int, order: Sequence[int]) -> list[int]:
    """The voxels of a layer, whose first is `start`, with its sectors in another order."""
    return [start + sector * layer.rings + ring for sector in order for ring in range(layer.rings)]


def _generated(generators: Sequence[tuple[int, ...]]) -> Tensor:
    """All products of permutations, breadth first from the identity: int64 ``(|G|, D)``."""
    if not generators:
        raise UsageError("permutations: expected at least one")
    identity = tuple(range(len(generators[0])))
    for generator in generators:
        if tuple(sorted(generator)) != identity:
            raise UsageError(f"permutations: expected each of 0 ... {len(identity) - 1} once, got {list(generator)}")
    group = {identity: None}
    for element in (pending := [identity]):
        for generator in generators:
            product = tuple(element[i] for i in generator)
            if product not in group:
                group[product] = None
                pending.append(product)
        if len(group) > _MOST_ELEMENTS:
            raise UsageError(f"permutations: expected a group of at most {_MOST_ELEMENTS} elements, got more")
    return torch.tensor(list(group))
