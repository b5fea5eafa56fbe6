r"""Kepler's equation, and what a planet's orbit does to the velocity of its star.

The mean anomaly M = 2 pi (t - t_p) / P grows evenly in time; the eccentric anomaly E follows from

$$ E - e \sin E = M, $$

which has no closed solution.  `eccentric_anomaly` starts from the cubic of Markley (1995, Celest. Mech. Dyn. Astr.
63, 101, eq. 20), good to a few parts in ten thousand for every e, and takes four Newton steps.  Only the last two
carry gradients: by the quadratic convergence of Newton's method they make the first, second and third derivatives
exact, as the implicit function theorem would.

Conventions: velocities are positive away from the observer; omega is the argument of periastron of the *star's* orbit,
in radians; a planet is at inferior conjunction (transit) when true anomaly + omega = pi / 2.  They agree with RadVel
(Fulton et al. 2018, arXiv:1801.01947).
"""

import math

import torch
from torch import Tensor

__all__ = [
    "eccentric_anomaly",
    "mean_anomaly_at_conjunction",
    "mean_anomaly_at_true_anomaly",
    "periastron_time",
    "transit_time",
    "unit_velocity",
]

_TWO_PI = 2 * math.pi


def eccentric_anomaly(mean_anomaly: Tensor, eccentricity: Tensor | float) -> Tensor:
    """Solve Kepler's equation, to 1e-10 rad for eccentricities up to 0.99.

    Args:
        mean_anomaly: M in radians, any real number; broadcast with the eccentricity.
        eccentricity: e in [0, 1).

    Returns:
        E in radians, float64, on the same turn of the orbit as M; NaN where e is outside [0, 1).  Differentiable in
        both arguments, to third order.
    """
    mean, ecc = _doubles(mean_anomaly, eccentricity)
    turns = torch.round(mean.detach() / _TWO_PI) * _TWO_PI
    reduced = mean - turns
    with torch.no_grad():
        solution = _markley_start(reduced, ecc)
        for _ in range(2):
            solution = _newton_step(solution, reduced, ecc)
    for _ in range(2):
        solution = _newton_step(solution, reduced, ecc)
    return torch.where((ecc >= 0) & (ecc < 1), solution + turns, torch.nan)


def _doubles(*values: Tensor | float) -> list[Tensor]:
    """Return float64 tensors on the device of those that are tensors already."""
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]


def _markley_start(mean: Tensor, ecc: Tensor) -> Tensor:
    """The root of the cubic that a Pade approximant makes of Kepler's equation (Markley 1995, eq. 20), |M| <= pi."""
    alpha = (3 * math.pi**2 + 1.6 * math.pi * (math.pi - mean.abs()) / (1 + ecc)) / (math.pi**2 - 6)
    d = 3 * (1 - ecc) + alpha * ecc
    q = 2 * alpha * d * (1 - ecc) - mean**2
    r = 3 * alpha * d * (d - 1 + ecc) * mean + mean**3
    w = (r.abs() + torch.sqrt(q**3 + r**2)) ** (2 / 3)
    return (2 * r * w / (w**2 + w * q + q**2) + mean) / d


def _newton_step(solution: Tensor, mean: Tensor, ecc: Tensor) -> Tensor:
    residual = solution - ecc * torch.sin(solution) - mean
    return solution - residual / (1 - ecc * torch.cos(solution))


def unit_velocity(mean_anomaly: Tensor, eccentricity: Tensor | float, omega: Tensor | float) -> Tensor:
    r"""Velocity of the star for a semi-amplitude of one: $\cos(\nu + \omega) + e \cos\omega$.

    Args:
        mean_anomaly: M in radians.
        eccentricity: e in [0, 1); the plain number 0 skips the solver.
        omega: argument of periastron of the star's orbit in radians.

    Returns:
        float64, of the broadcast shape (Lovis & Fischer 2010, in "Exoplanets", ed. Seager, p. 27).
    """
    mean, ecc, angle = _doubles(mean_anomaly, eccentricity, omega)
    if isinstance(eccentricity, float | int) and eccentricity == 0:
        return torch.cos(mean + angle)
    solution = eccentric_anomaly(mean, ecc)
    cosine, sine = torch.cos(solution), torch.sin(solution)
    distance = 1 - ecc * cosine
    cos_nu, sin_nu = (cosine - ecc) / distance, torch.sqrt(1 - ecc**2) * sine / distance
    return torch.cos(angle) * (cos_nu + ecc) - torch.sin(angle) * sin_nu


def mean_anomaly_at_true_anomaly(true_anomaly: Tensor | float, eccentricity: Tensor | float) -> Tensor:
    r"""Mean anomaly at a true anomaly nu: $E = \mathrm{atan2}(\sqrt{1-e^2}\sin\nu,\, e+\cos\nu)$, M = E - e sin E."""
    nu, ecc = _doubles(true_anomaly, eccentricity)
    solution = torch.atan2(torch.sqrt(1 - ecc**2) * torch.sin(nu), ecc + torch.cos(nu))
    return solution - ecc * torch.sin(solution)


def mean_anomaly_at_conjunction(eccentricity: Tensor | float, omega: Tensor | float) -> Tensor:
    """Mean anomaly in radians at inferior conjunction, where the true anomaly is pi / 2 - omega."""
    return mean_anomaly_at_true_anomaly(math.pi / 2 - omega, eccentricity)


def periastron_time(
    transit: Tensor | float, period: Tensor | float, eccentricity: Tensor | float, omega: Tensor | float
) -> Tensor:
    """Time of the periastron passage that belongs to a time of inferior conjunction, within half a period of it."""
    return transit - period * mean_anomaly_at_conjunction(eccentricity, omega) / _TWO_PI


def transit_time(
    periastron: Tensor | float, period: Tensor | float, eccentricity: Tensor | float, omega: Tensor | float
) -> Tensor:
    """Time of the inferior conjunction that belongs to a time of periastron, within half a period of it."""
    return periastron + period * mean_anomaly_at_conjunction(eccentricity, omega) / _TWO_PI
