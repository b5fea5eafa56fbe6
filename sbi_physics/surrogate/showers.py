r"""`Showers`: calorimeter showers as the energies of their layers, and then the voxels given those.

The first stage draws the response $E/E_{inc}$, in units of how far it scatters at that energy (a calorimeter resolves a
TeV a hundred times better than a GeV), and, for all layers but the one that holds most on average, the ratio
$E_l/E_{ref}$ (the additive log-ratios of compositions: Aitchison 1982, JRSS B 44, 139), each by its kind
(`models.columns`), so that an empty layer stays empty.  The second draws all voxels given those, and what they hold is
scaled to the energy of their layer (as CaloFlow: Krause and Shih 2021, arXiv:2106.05285).  Below the threshold of the
read-out a voxel is exactly zero.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.diagnostics.shower_features import high_level_features
from sbi_physics.models.columns import ColumnKind, Columns
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.store.row_parts import row_parts
from sbi_physics.surrogate.conditional_scale import ConditionalScale
from sbi_physics.surrogate.native.showers import decode_showers
from sbi_physics.surrogate.preprocessing import Preprocessing
from sbi_physics.surrogate.symmetry import Symmetry, fit_columns, shower_symmetry

__all__ = ["Showers"]

# Scaling to the energy of a layer takes voxels across the threshold, and so the scale changes again, by less.
_ROUNDS = 3
_OPTIONS: dict[str, dict[str, Any]] = {
    "vae": {"decoder": "hurdle", "latent": 8, "latent_prior": "flow", "hidden_features": 256},
    "gan": {"hidden_features": 256},
}


class Showers(Preprocessing):
    """Layer energies first, then voxels.

    Args:
        geometry: layers and voxels.
        threshold: smallest energy of a voxel that is read out, in the unit of the showers.
        symmetries: whether the particle is on the axis of a detector that is the same in all directions, so that
            showers do not change by rotation and mirror (`symmetry.shower_symmetry`).

    Raises:
        UsageError: the threshold is not positive, there is one layer only, or there are symmetries and no sectors.
    """

    KIND = "showers"
    STREAMS = True
    reference: Tensor
    layer_of: Tensor

    def __init__(self, geometry: VoxelGeometry, *, threshold: float = 1.0, symmetries: bool = False) -> None:
        if not (math.isfinite(threshold) and threshold > 0):
            raise UsageError(f"threshold: expected a positive energy, got {threshold!r}")
        layers = len(geometry.layers)
        if layers < 2:
            raise UsageError("geometry: expected at least two layers; showers of one are plain numbers")
        super().__init__((geometry.size,), 1)
        self.geometry, self.threshold = geometry, float(threshold)
        self.layers, self.voxels = Columns(layers), Columns(geometry.size)
        self.response = ConditionalScale()
        self.group = shower_symmetry(geometry) if symmetries else None
        self.register_buffer("reference", torch.zeros((), dtype=torch.int64))
        index = torch.cat([torch.full((layer.size,), i) for i, layer in enumerate(geometry.layers)])
        self.register_buffer("layer_of", index, persistent=False)

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Two stages."""
        first = self.layers.varying
        return ((first, 1), (self.voxels.varying, 1 + first))

    @property
    def symmetry(self) -> Symmetry | None:
        """Rotations and the mirror."""
        return self.group

    @property
    def stage_symmetries(self) -> list[Symmetry | None]:
        """Layers stay as they are; voxels that vary are moved."""
        return [None, None if self.group is None else self.group.restricted(self.voxels.varies)]

    def fit(self, theta: Tensor, x: Any) -> "Showers":
        """Learn from incident energies ``(n, 1)`` and showers ``(n, voxels)``.

        Raises:
            ShapeError: there is more than one parameter, or another number of voxels.
            SupportError: an energy is negative.
        """
        if theta.shape[1] != 1:
            raise ShapeError(f"theta: expected the incident energy alone, shape (n, 1), got {tuple(theta.shape)}")
        if x.shape[1:] != self.x_shape:
            raise ShapeError(f"x: expected {self.geometry.size} voxels, got shape {tuple(x.shape)}")
        parts = row_parts(x)
        least = parts.map(lambda part: part.amin(1), ()).tensor()
        if bool((least < 0).any()):
            row = int((least < 0).nonzero()[0, 0])
            raise SupportError(f"x: expected energies of at least zero, got {float(least[row]):g} in row {row}")
        energies = parts.map(self._layer_energies, (len(self.geometry.layers),)).tensor()
        self.reference.copy_(energies.mean(0).argmax())
        self.response.fit(theta[:, 0].log(), energies.sum(1) / theta[:, 0])
        self.layers.fit(self._ratios(theta, energies))
        fit_columns(self.voxels, x, self.group)
        # Voxels of a ring are alike: not the smallest energy that each has seen, nor whether it was ever zero, counts.
        self.voxels.threshold.fill_(self.threshold)
        self.voxels.kinds[self.voxels.varies] = int(ColumnKind.ZEROS)
        return self

    def encode(self, theta: Tensor, x: Any, *, seed: int) -> list[Any]:
        """Events of the layers ``(n, L)`` and of the voxels."""
        energies = row_parts(x).map(self._layer_energies, (len(self.geometry.layers),)).tensor(x.device)
        voxels = self.voxels.encoded(x, seed=seed + 1)
        return [
            self.layers.encode(self._ratios(theta, energies), seed=seed),
            voxels if isinstance(x, DiskRows) else voxels.tensor(x.device),
        ]

    def context(self, theta: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """The logarithm of the incident energy, and the events of the layers."""
        return torch.cat([theta.log(), *earlier], -1)

    def decode(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """Showers ``(n, voxels)`` whose layers have the energies that were drawn."""
        wanted = self.energies(theta, events[0])
        shower = self.voxels.decode(events[1])
        empty = self._layer_energies(shower) == 0
        shower = torch.where(empty[:, self.layer_of], self._nearest(events[1]), shower)
        for _ in range(_ROUNDS):
            scale = wanted / self._layer_energies(shower).clamp(min=torch.finfo(shower.dtype).tiny)
            shower = shower * scale[:, self.layer_of]
            largest = self._largest(shower)
            shower = torch.where((shower < self.threshold) & (shower < largest), 0.0, shower)
        return torch.where(shower < self.threshold, 0.0, shower)

    def outputs(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """As `decode`, in one pass where there is native code for it."""
        wanted, ends = self.energies(theta, events[0]), [part.stop for part in self.geometry.layer_slices]
        made = decode_showers(wanted, events[1], self.voxels, ends, threshold=self.threshold, rounds=_ROUNDS)
        return self.decode(theta, events) if made is None else made

    def energies(self, theta: Tensor, events: Tensor) -> Tensor:
        """Layer energies ``(n, L)`` of the events of the first stage."""
        numbers = self.layers.decode(events)
        response = self.response.inverse(theta[:, 0].log(), numbers[:, 0]).clamp(min=0.0).unsqueeze(1)
        layer = torch.arange(numbers.shape[1], device=numbers.device)
        # The layers before the one of reference stand one place further, after the response.
        ratios = numbers.clamp(min=0.0)[:, layer + (layer < self.reference).long()]
        ratios = torch.where(layer == self.reference, 1.0, ratios)
        energies = theta * response * ratios / ratios.sum(1, keepdim=True)
        return torch.where(energies < self.threshold, 0.0, energies)

    def features(self, theta: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The high-level features of the CaloChallenge."""
        return high_level_features(x, theta, self.geometry, threshold=self.threshold)

    def energy(self, theta: Tensor, x: Tensor) -> Tensor:
        """The energy of all voxels."""
        return x.sum(1)

    def model_options(self, model: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """For those models that can use it, that voxels may be zero, and that those of a ring are alike."""
        if model not in _OPTIONS or chosen.get("decoder", "hurdle") != "hurdle":
            return {}
        varies = self.voxels.varies.cpu()
        groups, angles = self.geometry.ring_of[varies].tolist(), self.geometry.angles[varies].tolist()
        return {"groups": groups, "angles": angles, **_OPTIONS[model]}

    def describe(self) -> dict[str, Any]:
        """Kind, geometry, threshold and symmetries."""
        layers = [
            {"identifier": layer.identifier, "r_edges": list(layer.r_edges), "sectors": layer.sectors}
            for layer in self.geometry.layers
        ]
        found = {"kind": self.KIND, "layers": layers, "threshold": self.threshold}
        return {**found, "symmetries": True} if self.group is not None else found

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Showers":
        """Read what `describe` wrote."""
        layers = [
            VoxelLayer(int(layer["identifier"]), tuple(map(float, layer["r_edges"])), int(layer["sectors"]))
            for layer in description["layers"]
        ]
        symmetries = bool(description.get("symmetries", False))
        return cls(VoxelGeometry(tuple(layers)), threshold=float(description["threshold"]), symmetries=symmetries)

    def _layer_energies(self, showers: Tensor) -> Tensor:
        return torch.stack([showers[:, part].sum(1) for part in self.geometry.layer_slices], 1)

    def _other_layers(self) -> list[int]:
        return [i for i in range(len(self.geometry.layers)) if i != int(self.reference)]

    def _ratios(self, theta: Tensor, energies: Tensor) -> Tensor:
        """The response, and the other layers over the one of reference, of layer energies: ``(n, L)``."""
        # Where the layer of reference is empty the others are many times the threshold, not infinitely much.
        reference = energies[:, int(self.reference)].clamp(min=self.threshold).unsqueeze(1)
        response = self.response(theta[:, 0].log(), energies.sum(1) / theta[:, 0]).unsqueeze(1)
        return torch.cat([response, energies[:, self._other_layers()] / reference], 1)

    def _largest(self, showers: Tensor) -> Tensor:
        """The largest voxel of its layer, for each voxel."""
        largest = torch.stack([showers[:, part].amax(1) for part in self.geometry.layer_slices], 1)
        return largest[:, self.layer_of]

    def _nearest(self, events: Tensor) -> Tensor:
        """Showers in which the voxels that came nearest to the threshold hold what their layer has."""
        full = self.voxels.place(events, -torch.inf)
        return (full == self._largest(full)).to(events.dtype) * self.threshold
