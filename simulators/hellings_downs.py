r"""Correlation between pulsars of an isotropic, unpolarised background of gravitational waves.

With $x = (1 - \cos\xi)/2$ and $\xi$ the angle between two pulsars on the sky,

$$ \Gamma(\xi) = \tfrac32\, x \ln x - \tfrac14\, x + \tfrac12 , \qquad \Gamma_{aa} = 1 : $$

one half at zero separation for two pulsars, and one for a pulsar with itself, because the waves at the pulsar (the
pulsar term) add as much variance as those at the Earth and are independent from pulsar to pulsar.  So the matrix is
one half of the identity plus the matrix of the Earth term, which is the curve with one half on its diagonal.
Sources: Hellings & Downs 1983 (ApJ 265, L39); Jenet & Romano 2015 (arXiv:1412.1142).
"""

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError

__all__ = ["earth_term", "hellings_downs", "hellings_downs_matrix"]


def hellings_downs(angle: Tensor) -> Tensor:
    """Correlation of two distinct pulsars at an angle ``(*,)`` in radians, float64 ``(*,)``."""
    x = (1 - torch.cos(torch.as_tensor(angle, dtype=torch.float64))) / 2
    return 1.5 * torch.special.xlogy(x, x) - 0.25 * x + 0.5


def earth_term(positions: Tensor) -> Tensor:
    """The correlated part ``(n, n)``: the curve at every pair of unit vectors ``(n, 3)``, one half on the diagonal.

    Raises:
        ShapeError: positions are no rows of three.
    """
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ShapeError(f"positions: expected shape (n, 3), got {tuple(positions.shape)}")
    unit = positions.to(torch.float64)
    unit = unit / unit.norm(dim=1, keepdim=True)
    # The chord keeps its digits at small angles, where the arc cosine of a scalar product loses half of them.
    half_chord = (unit.unsqueeze(0) - unit.unsqueeze(1)).norm(dim=-1) / 2
    return hellings_downs(2 * torch.asin(half_chord.clamp(max=1.0)))


def hellings_downs_matrix(positions: Tensor) -> Tensor:
    """Correlations ``(n, n)`` of n pulsars at unit vectors ``(n, 3)``: the Earth term and one half of the identity."""
    matrix = earth_term(positions)
    return matrix + 0.5 * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
