r"""Coordinates in which a galaxy is smooth.

The density of a disc changes by powers of ten within a few kpc, and its stars turn about the centre.  In

$$ u = (\ln R,\ \operatorname{asinh}(z / z_0),\ v_R,\ v_\phi,\ v_z), \qquad \phi, $$

cylindrical with the disc in the plane z = 0, what is left is close to a few Gaussians, and where the galaxy is
symmetric about its axis the azimuth is uniform.  $z_0$ is the median height of the particles.  The volume element is

$$ dx\,dv = R^2 \sqrt{z^2 + z_0^2}\; du\, d\phi . $$
"""

import torch
from torch import Tensor

__all__ = ["GalacticCoordinates"]

# On the axis there is no azimuth: as a share of the median radius.
_NEAREST = 1e-9


class GalacticCoordinates:
    """Cylindrical coordinates of phase space, with lengths on a logarithmic scale.

    Args:
        phase_space: positions and velocities ``(n, 6)`` of the particles, about the centre of the galaxy.

    Attributes:
        height: z_0, in the unit of the positions.
    """

    def __init__(self, phase_space: Tensor) -> None:
        positions = phase_space[:, :3]
        radius = float(torch.hypot(positions[:, 0], positions[:, 1]).median())
        # All in one plane: any scale will do.
        self.height = float(positions[:, 2].abs().median()) or radius or 1.0
        self._nearest = _NEAREST * (radius or 1.0)

    def encode(self, phase_space: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinates u ``(n, 5)``, the azimuth in [-pi, pi] ``(n, 1)``, and ln |d(u, phi) / d(x, v)| ``(n,)``."""
        x, y, z, vx, vy, vz = phase_space.unbind(-1)
        radius = torch.hypot(x, y).clamp(min=self._nearest)
        azimuth = torch.atan2(y, x)
        cos, sin = torch.cos(azimuth), torch.sin(azimuth)
        along = torch.stack([vx * cos + vy * sin, vy * cos - vx * sin, vz], -1)
        shape = torch.stack([torch.log(radius), torch.asinh(z / self.height)], -1)
        ladj = -2 * torch.log(radius) - 0.5 * torch.log(z**2 + self.height**2)
        return torch.cat([shape, along], -1), azimuth.unsqueeze(-1), ladj

    def decode(self, coordinates: Tensor, azimuth: Tensor) -> Tensor:
        """Positions and velocities ``(n, 6)`` of coordinates ``(n, 5)`` and azimuths ``(n, 1)``."""
        log_radius, level, v_radial, v_along, v_up = coordinates.unbind(-1)
        radius, angle = torch.exp(log_radius), azimuth.squeeze(-1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.stack(
            [
                radius * cos,
                radius * sin,
                self.height * torch.sinh(level),
                v_radial * cos - v_along * sin,
                v_radial * sin + v_along * cos,
                v_up,
            ],
            -1,
        )
