r"""High-level features of calorimeter showers: what a physicist looks at before and after a shower is replaced.

With the energy $E_i$ of voxel i of a layer at $\eta_i, \phi_i$, the centre of energy and the width are

$$ \langle\eta\rangle = \frac{\sum_i \eta_i E_i}{\sum_i E_i}, \qquad
   \sigma_\eta = \sqrt{\frac{\sum_i \eta_i^2 E_i}{\sum_i E_i} - \langle\eta\rangle^2}, $$

likewise in phi, for layers that are cut in the angle, and in the radius for all; the sparsity is the share of voxels
at or below a threshold.  The definitions are those of the Fast Calorimeter Simulation Challenge (arXiv:2410.21611); a
layer without energy has centre and width zero.
"""

from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, same_length
from sbi_physics.core.errors import ShapeError, SupportError
from sbi_physics.core.voxels import VoxelGeometry

__all__ = ["high_level_features"]


def high_level_features(
    showers: Any, incident_energies: Any, geometry: VoxelGeometry, *, threshold: float = 0.0
) -> dict[str, Tensor]:
    """Features of each shower, by name.

    Args:
        showers: energy of each voxel in MeV, ``(N, voxels)``.
        incident_energies: energy of each particle in MeV, ``(N,)`` or ``(N, 1)``.
        geometry: the voxels.
        threshold: energy in MeV that a voxel must exceed to count as hit in the sparsity; it changes nothing else.

    Returns:
        Float64 ``(N,)`` each: ``response`` (deposited over incident energy), and for each layer with the number l
        ``energy[l]`` in MeV, ``sparsity[l]``, ``radius[l]`` and ``radius_width[l]`` in mm, and, where the layer has
        sectors, ``eta[l]``, ``phi[l]``, ``eta_width[l]`` and ``phi_width[l]`` in mm.

    Raises:
        ShapeError: the showers do not have the voxels of the geometry, or the numbers of rows differ.
        NonFiniteError: a number is NaN or infinite.
        SupportError: an incident energy is not positive.
    """
    energies = finite(
        batch_of(as_tensor(showers, "showers", dtype=torch.float64), [geometry.size], "showers"), "showers"
    )
    incident = _incident(incident_energies)
    same_length(showers=energies, incident_energies=incident)
    incident = incident.to(energies.device)
    eta, phi, radii = (values.to(energies.device) for values in (geometry.eta, geometry.phi, geometry.radii))
    features = {"response": energies.sum(1) / incident}
    for layer, place in zip(geometry.layers, geometry.layer_slices, strict=True):
        inside, name = energies[:, place], layer.identifier
        features[f"energy[{name}]"] = inside.sum(1)
        features[f"sparsity[{name}]"] = (inside <= threshold).double().mean(1)
        axes = {"radius": radii[place]}
        if layer.sectors > 1:
            axes |= {"eta": eta[place], "phi": phi[place]}
        for axis, positions in axes.items():
            features[f"{axis}[{name}]"], features[f"{axis}_width[{name}]"] = _centre_and_width(inside, positions)
    return features


def _incident(values: Any) -> Tensor:
    incident = as_tensor(values, "incident_energies", dtype=torch.float64)
    if incident.ndim == 2 and incident.shape[1] == 1:
        incident = incident.squeeze(1)
    if incident.ndim != 1:
        raise ShapeError(f"incident_energies: expected shape (N,) or (N, 1), got {tuple(incident.shape)}")
    finite(incident, "incident_energies")
    if bool((incident <= 0).any()):
        row = int(torch.nonzero(incident <= 0)[0, 0])
        raise SupportError(f"incident_energies: expected positive energies, got {float(incident[row]):g} in row {row}")
    return incident


def _centre_and_width(energies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(N,)`` of the positions ``(voxels,)``, weighted by the energies ``(N, voxels)``."""
    total = energies.sum(1)
    weights = torch.where(total > 0, 1 / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    centre = energies @ positions * weights
    square = energies @ positions**2 * weights
    # Rounding leaves a variance of about -1e-16 where all energy is in one voxel.
    return centre, torch.sqrt((square - centre**2).clamp_min(0))
