r"""Type Ia supernovae as standard candles: magnitudes at known redshifts in a flat universe.

$$ m_i \sim N(\mu(z_i) + M,\; C), \qquad \mu = 5 \log_{10} \frac{(1 + z_{\rm hel})\, D_C(z)}{10\,{\rm pc}}, $$

with the comoving distance D_C (`simulators.expansion`) at the cosmological redshift z, the heliocentric redshift in the
factor by which light is dimmed (Davis et al. 2011, arXiv:1012.2912), and the full covariance C of statistical and
systematic errors.  Supernovae alone do not tell the Hubble constant from their absolute magnitude: mu is taken at
$H_0 = 70$ km/s/Mpc, and the offset $M$ absorbs both.  It is a parameter, or integrated out under a uniform prior on
[a, b], which is exact: with the weights $v = C^{-1} 1$, the residuals $r = m - \mu$, their mean
$\hat M = v \cdot r / s$, where $s = v \cdot 1$ is the inverse of its variance,

$$ p(m) = \frac{N(r;\,\hat M, C)\sqrt{2\pi/s}}{b - a}
   \left[\Phi\!\left(\sqrt{s}\,(b - \hat M)\right) - \Phi\!\left(\sqrt{s}\,(a - \hat M)\right)\right]. $$
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, known_keys
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from simulators.expansion import ComovingDistance
from simulators.supernova_table import read_supernovae

__all__ = ["HUBBLE_CONSTANT", "Supernovae", "supernovae"]

HUBBLE_CONSTANT = 70.0
"""In km/s/Mpc, of the distances to which the offset is added."""

Model = Literal["LambdaCDM", "wCDM", "w0waCDM"]

_HUBBLE_DISTANCE = 299_792.458 / HUBBLE_CONSTANT  # c / H_0 in Mpc
_MODELS: dict[str, tuple[str, ...]] = {
    "LambdaCDM": ("Omega_m",),
    "wCDM": ("Omega_m", "w"),
    "w0waCDM": ("Omega_m", "w0", "wa"),
}
# Those of the DESI collaboration (arXiv:2404.03002, table 2).
_PRIORS = {"Omega_m": (0.01, 0.99), "w": (-3.0, 1.0), "w0": (-3.0, 1.0), "wa": (-3.0, 2.0)}
_LABELS = {"Omega_m": r"$\Omega_m$", "w": "$w$", "w0": "$w_0$", "wa": "$w_a$", "offset": "$M$"}
_ASYMMETRY = 1e-5  # share of the largest number by which a covariance may fail to be symmetric


class Supernovae:
    """A simulator of the magnitudes of N supernovae, with an exact likelihood.

    The parameters are ``Omega_m``, then ``w`` or ``w0`` and ``wa`` with $w(a) = w_0 + w_a (1 - a)$, then ``offset``
    [mag] unless it is marginalised.

    Args:
        redshifts: ``(N,)`` cosmological redshifts, corrected for peculiar motions.
        magnitudes: ``(N,)`` magnitudes, or distance moduli, that were measured; None where there are none.
        covariance: ``(N, N)`` of the magnitudes, or ``(N,)`` variances.
        heliocentric: ``(N,)`` redshifts as observed; the cosmological ones where None.
        model: ``"LambdaCDM"``, ``"wCDM"`` or ``"w0waCDM"``.
        priors: by name, in place of the uniform ones: Omega_m in [0.01, 0.99], w and w0 in [-3, 1], wa in [-3, 2], the
            offset within 1 mag of where the measured magnitudes put it for Omega_m = 0.3 and w = -1, to a tenth.
        marginalise_offset: whether to integrate the offset out; its prior must be uniform.
        name: name of the simulator.

    Attributes:
        parameters: names, units, labels and prior.
        x_shape: ``(N,)``.
        observed: float32 ``(N,)``, or None.
        offset_prior: of the offset, whether or not it is a parameter.

    Raises:
        ShapeError: lengths differ.
        NonFiniteError: a number is NaN or infinite.
        UsageError: a redshift is not positive, a covariance is not symmetric or not positive definite, or a model or a
            prior is not known.
    """

    def __init__(
        self,
        redshifts: Any,
        magnitudes: Any,
        covariance: Any,
        *,
        heliocentric: Any = None,
        model: Model = "LambdaCDM",
        priors: Mapping[str, td.Distribution] | None = None,
        marginalise_offset: bool = False,
        name: str = "supernovae",
    ) -> None:
        known_keys([model], list(_MODELS), "model")
        self.name, self.cosmology = name, model
        self._distance = ComovingDistance(as_tensor(redshifts, "redshifts", dtype=torch.float64))
        self.redshifts = self._distance.redshifts
        count = len(self.redshifts)
        self.heliocentric = self.redshifts if heliocentric is None else _column(heliocentric, "heliocentric", count)
        if not bool((self.heliocentric > -1).all()):
            raise UsageError(f"heliocentric: expected more than -1, got {float(self.heliocentric.min()):g}")
        self.covariance = _covariance(covariance, count)
        self._factor = _factor(self.covariance)
        self._whiten = torch.linalg.solve_triangular(self._factor, torch.eye(count).double(), upper=False)
        self._ones = self._whiten.sum(-1)
        self.x_shape = torch.Size([count])
        measured = None if magnitudes is None else _column(magnitudes, "magnitudes", count)
        self.observed = None if measured is None else measured.to(torch.float32)
        centre = self._place_of_offset(measured)
        self._reference = self.distance_modulus(0.3) + centre
        self.offset_prior, self.parameters = self._priors(dict(priors or {}), centre, marginalise_offset)
        self.marginalise_offset = marginalise_offset

    @classmethod
    def from_files(
        cls,
        table: str | Path,
        covariance: str | Path | None = None,
        *,
        minimum_redshift: float | None = None,
        **model: Any,
    ) -> "Supernovae":
        """Build the simulator from published files, whose magnitudes become `observed`.

        Args:
            table: in the layout of JLA, Pantheon and Union3, or in that of Pantheon+ (`simulators.supernova_table`).
            covariance: file of the covariance; None takes the errors in the table alone.
            minimum_redshift: rows below it are left out; None takes 0.01 for Pantheon+ and 0 for the other layout.
            **model: `model`, `priors`, `marginalise_offset`, `name`.

        Raises:
            StoreError: a file is missing or malformed; the message names it, and the line.
            NonFiniteError: a number is NaN or infinite.
            UsageError: as for the class, or no row is left.
        """
        rows = read_supernovae(table, covariance, minimum_redshift=minimum_redshift)
        given = {"heliocentric": rows.heliocentric} | model
        return cls(rows.redshifts, rows.magnitudes, rows.covariance, **given)

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, P)`` gives float32 magnitudes ``(n, N)``.

        A marginalised offset is drawn from its prior.
        """
        mean = self.model(theta)
        with seeded(seed, theta.device):
            noise = torch.randn(mean.shape, dtype=torch.float64, device=theta.device)
            place = torch.rand((*mean.shape[:-1], 1), dtype=torch.float64, device=theta.device)
        if self.marginalise_offset:
            low, high = self._offset_range()
            mean = mean + low + (high - low) * place
        return (mean + noise @ self._factor.T.to(theta.device)).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, P)`` broadcast with x ``(*, N)`` in mag gives ``(*,)``.

        Minus infinity where no universe has the parameters, as may be for a matter density below zero.
        """
        count = len(self.redshifts)
        if x.ndim == 0 or x.shape[-1] != count:
            raise ShapeError(f"x: expected shape (*, {count}), got {tuple(x.shape)}")
        residual = x.to(theta.device, torch.float64) - self.model(theta)
        white = residual @ self._whiten.T.to(theta.device)
        possible = ~torch.isnan(white).any(-1)
        white = torch.where(possible.unsqueeze(-1), white, 0.0)
        value = self._log_marginal(white) if self.marginalise_offset else -0.5 * (white**2).sum(-1)
        constant = float(self._factor.diagonal().log().sum()) + 0.5 * count * math.log(2 * math.pi)
        return torch.where(possible, value - constant, -torch.inf)

    def _log_marginal(self, white: Tensor) -> Tensor:
        """Of whitened residuals ``(*, N)``: ln of the integral of exp(-chi^2 / 2) over the prior of the offset."""
        ones = self._ones.to(white.device)
        precision = float(self._ones @ self._ones)
        offset = (white @ ones) / precision
        squares = ((white - offset.unsqueeze(-1) * ones) ** 2).sum(-1)
        low, high = self._offset_range()
        scale = precision**0.5
        inside = _log_normal_probability(scale * (low - offset), scale * (high - offset))
        return inside - 0.5 * squares + 0.5 * math.log(2 * math.pi / precision) - math.log(high - low)

    def model(self, theta: Tensor) -> Tensor:
        """Magnitudes without noise, or distance moduli where the offset is marginalised.

        Args:
            theta: ``(*, P)``.

        Returns:
            mag, float64 ``(*, N)``; differentiable in theta.
        """
        self.parameters.check_width(theta)
        columns = theta.to(torch.float64).unbind(-1)
        moduli = self.distance_modulus(*columns[: len(_MODELS[self.cosmology])])
        return moduli if self.marginalise_offset else moduli + columns[-1].unsqueeze(-1)

    def distance_modulus(self, omega_m: Any, w0: Any = -1.0, wa: Any = 0.0) -> Tensor:
        """Distance moduli at `HUBBLE_CONSTANT` for parameters ``(*,)`` that broadcast: float64 ``(*, N)`` [mag]."""
        distance = _HUBBLE_DISTANCE * self._distance(torch.as_tensor(omega_m, dtype=torch.float64), w0, wa)
        return 5 * torch.log10((1 + self.heliocentric.to(distance.device)) * distance) + 25

    def whiten(self, x: Tensor) -> Tensor:
        """Differences from flat LambdaCDM with Omega_m = 0.3, made independent and of unit noise.

        A linear and invertible map of magnitudes ``(*, N)`` to float32 ``(*, N)``, which makes them easier to learn
        from than magnitudes whose common error is large.
        """
        white = (x.to(torch.float64) - self._reference.to(x.device)) @ self._whiten.T.to(x.device)
        return white.to(torch.float32)

    def _place_of_offset(self, magnitudes: Tensor | None) -> float:
        """The weighted mean of the magnitudes above the reference cosmology, to a tenth; 0 where there are none."""
        if magnitudes is None:
            return 0.0
        white = self._whiten @ (magnitudes - self.distance_modulus(0.3))
        return round(float(white @ self._ones / (self._ones @ self._ones)), 1)

    def _priors(
        self, given: dict[str, td.Distribution], centre: float, marginalise: bool
    ) -> tuple[td.Distribution, Parameters]:
        names = (*_MODELS[self.cosmology], "offset")
        known_keys(list(given), names, "priors")
        ranges = _PRIORS | {"offset": (centre - 1, centre + 1)}
        priors = {name: given.get(name) or td.Uniform(*ranges[name]) for name in names}
        offset = priors["offset"]
        if marginalise and not isinstance(offset, td.Uniform):
            raise UsageError(f"priors: expected a uniform prior of an offset to integrate out, got {offset}")
        free = names[:-1] if marginalise else names
        units = {"offset": "mag"}
        return offset, Parameters([Parameter(n, priors[n], units.get(n, ""), _LABELS[n]) for n in free])

    def _offset_range(self) -> tuple[float, float]:
        prior: Any = self.offset_prior
        return float(prior.low), float(prior.high)


def supernovae(model: Model = "LambdaCDM", *, marginalise_offset: bool = False) -> Supernovae:
    """Build a small synthetic survey, for demonstrations and tests: no file is needed.

    40 supernovae between z = 0.02 and 1.2 with an error of 0.12 mag each, a common calibration error of 0.02 mag of
    those below z = 0.1 and one of 0.01 mag growing with redshift; Omega_m = 0.3, w = -1, M = -19.3.
    """
    z = torch.logspace(math.log10(0.02), math.log10(1.2), 40, dtype=torch.float64)
    near = 0.02 * (z < 0.1).double()
    covariance = 0.12**2 * torch.eye(40).double() + torch.outer(near, near) + 1e-4 * torch.outer(z, z)
    options: Any = {"model": model, "marginalise_offset": marginalise_offset}
    plain = Supernovae(z, None, covariance)
    x = plain(torch.tensor([[0.3, -19.3]]), seed=0)[0]
    return Supernovae(z, x, covariance, **options)


def _column(values: Any, name: str, count: int) -> Tensor:
    column = finite(as_tensor(values, name, dtype=torch.float64), name).cpu()
    if column.shape != (count,):
        raise ShapeError(f"{name}: expected shape ({count},), one for each redshift, got {tuple(column.shape)}")
    return column


def _covariance(values: Any, count: int) -> Tensor:
    matrix = finite(as_tensor(values, "covariance", dtype=torch.float64), "covariance").cpu()
    matrix = torch.diag(matrix) if matrix.ndim == 1 else matrix
    if matrix.shape != (count, count):
        raise ShapeError(f"covariance: expected shape ({count}, {count}), got {tuple(matrix.shape)}")
    uneven = float((matrix - matrix.T).abs().max())
    if uneven > _ASYMMETRY * float(matrix.abs().max()):
        raise UsageError(f"covariance: expected a symmetric matrix, got differences up to {uneven:g}")
    return (matrix + matrix.T) / 2


def _factor(covariance: Tensor) -> Tensor:
    """The lower triangular L with C = L L^T."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        least = float(torch.linalg.eigvalsh(covariance)[0])
        raise UsageError(f"covariance: expected a positive definite matrix, got a least eigenvalue of {least:g}")
    return factor


def _log_normal_probability(low: Tensor, high: Tensor) -> Tensor:
    """Ln of the probability that a standard normal number lies between two, low below high, also far from zero."""
    # The lower tail keeps full relative precision: an interval above zero is mirrored there.
    mirrored = low > 0
    a, b = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top, bottom = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    return top + torch.log(-torch.expm1(bottom - top))
