r"""Free spectra of a pulsar timing array: the likelihood of any gravitational-wave spectrum, from published densities.

A collaboration that fits one amplitude rho_k to the data at each frequency f_k, with a prior flat in log10 rho_k,
publishes the posterior densities p_k of these amplitudes; up to constants they are likelihoods.  A spectrum with
parameters theta then has

$$ \ln L(\theta) = \sum_k \ln p_k\big(\log_{10} \rho_k(\theta)\big), \qquad
   \rho_k^2 = \frac{P(f_k)}{T} = \frac{h_c^2(f_k)}{12 \pi^2 f_k^3 T}, $$

with the span T of the data (1 / f_1) and the characteristic strain h_c, for a power law
$h_c = A (f / f_{yr})^{(3 - \gamma) / 2}$.  What is left out are correlations between the frequencies.

The densities are read from tables in the layout of ceffyl, and interpolated linearly in ln p.  Beyond the ends of its
grid a table says nothing: there a bin counts as if it were at the end, which is right below the smallest amplitude that
the data can tell from zero, and wrong elsewhere.  `FreeSpectrum.off_grid` tells for which theta this happens.  (A
table may also be zero where the prior behind it ended, as those of sim51 below log10 rho of about -12.2.)
Sources: Lamb, Taylor and van Haasteren 2023 (arXiv:2303.15442); Phinney 2001 (astro-ph/0108028).
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Uniform

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import NonFiniteError, SBIPhysicsError, ShapeError, StoreError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters

__all__ = ["YEAR", "FreeSpectrum", "Spectrum", "broken_power_law", "power_law", "turnover"]

YEAR = 365.25 * 86_400.0
"""The Julian year [s]; spectra state their amplitude at the frequency 1 / YEAR."""

Spectrum = Callable[[Tensor, Tensor], Tensor]
"""Frequencies ``(K,)`` [Hz] and theta ``(*, P)`` to log10 of the characteristic strain, ``(*, K)``, differentiable."""

_log = logging.getLogger(__name__)
# ln of the float64 epsilon, where the published tables end too: what a density of zero is raised to.
_FLOOR = math.log(np.finfo(np.float64).eps)
_LN_10 = math.log(10.0)
_TABLES = ("freqs.npy", "log10rhogrid.npy", "density.npy")
_LISTS = ("log10rholabels.txt", "pulsar_list.txt")


def power_law(frequencies: Tensor, theta: Tensor) -> Tensor:
    """log10 h_c of a power law, P(f) falling as f**-gamma; theta is (log10_A, gamma)."""
    log10_amplitude, gamma = theta.unsqueeze(-1).unbind(-2)
    return log10_amplitude + 0.5 * (3 - gamma) * torch.log10(frequencies * YEAR)


def turnover(frequencies: Tensor, theta: Tensor) -> Tensor:
    """log10 h_c of a power law that turns over below a frequency, as by stars and gas around the binaries.

    The strain of the power law is divided by sqrt(1 + (f_turn / f)**kappa); theta is (log10_A, gamma, log10_f_turn,
    kappa).  Source: Sampson, Cornish and McWilliams 2015 (arXiv:1503.02662).
    """
    log10_turn, kappa = theta[..., 2:].unsqueeze(-1).unbind(-2)
    exponent = kappa * (log10_turn - torch.log10(frequencies)) * _LN_10
    return power_law(frequencies, theta[..., :2]) - 0.5 * _log10_of_one_plus(exponent)


def broken_power_law(frequencies: Tensor, theta: Tensor, *, delta: float = 0.0, smoothness: float = 0.1) -> Tensor:
    """log10 h_c of a power law whose P(f) bends at a frequency from f**-gamma, below, to f**-delta, above.

    theta is (log10_A, gamma, log10_f_break).  Source: Arzoumanian et al. 2020 (arXiv:2009.04496), eq. 2.
    """
    gamma, log10_break = theta[..., 1:].unsqueeze(-1).unbind(-2)
    exponent = (torch.log10(frequencies) - log10_break) / smoothness * _LN_10
    bend = 0.5 * smoothness * (gamma - delta) * _log10_of_one_plus(exponent)
    return power_law(frequencies, theta[..., :2]) + bend


def _log10_of_one_plus(exponent: Tensor) -> Tensor:
    return torch.nn.functional.softplus(exponent) / _LN_10


_POWER_LAW = (
    Parameter("log10_A", Uniform(-18.0, -12.0), label=r"$\log_{10} A$"),
    Parameter("gamma", Uniform(0.0, 7.0), label=r"$\gamma$"),
)
_PRIORS: dict[Any, tuple[Parameter, ...]] = {
    power_law: _POWER_LAW,
    turnover: (
        *_POWER_LAW,
        Parameter("log10_f_turn", Uniform(-9.0, -7.0), label=r"$\log_{10} (f_{\rm turn} / {\rm Hz})$"),
        Parameter("kappa", Uniform(0.0, 7.0), label=r"$\kappa$"),
    ),
    broken_power_law: (
        *_POWER_LAW,
        Parameter("log10_f_break", Uniform(-9.0, -7.0), label=r"$\log_{10} (f_{\rm break} / {\rm Hz})$"),
    ),
}


class FreeSpectrum:
    """The likelihood of a spectrum under tabulated densities; nothing to simulate, so no `Simulator`.

    Args:
        frequencies: ``(K,)`` [Hz], ascending.
        grid: ``(G,)`` values of log10 rho (rho in seconds), ascending; G at least 2.
        log_density: ln p of log10 rho, up to a constant for each frequency: ``(K, G)``, or ``(pulsars, K, G)``, whose
            densities are multiplied; minus infinity counts as ln of the float64 epsilon, about -36.04.
        spectrum: `power_law`, `turnover`, `broken_power_law`, or a function of yours.
        parameters: names and prior of theta; by default of the spectra above log10_A in [-18, -12], gamma in [0, 7],
            log10 of a frequency in [-9, -7], kappa in [0, 7], all uniform.
        span: T [s]; 1 / f_1 where None.
        name: what messages call it.

    Attributes:
        parameters: as above.
        frequencies: float64 ``(K,)`` [Hz].
        grid: float64 ``(G,)``.
        observed: float64 ``(K, G)`` log-densities, which are the data of this likelihood.
        x_shape: ``(K, G)``.
        span: T [s].

    Raises:
        ShapeError: shapes do not fit each other.
        NonFiniteError: a number is NaN or infinite, but for densities of zero.
        UsageError: something is not ascending or not positive, or a spectrum of yours comes without parameters.
    """

    def __init__(
        self,
        frequencies: Any,
        grid: Any,
        log_density: Any,
        *,
        spectrum: Spectrum = power_law,
        parameters: Parameters | None = None,
        span: float | None = None,
        name: str = "free_spectrum",
    ) -> None:
        self.name, self.spectrum = name, spectrum
        self.frequencies, self.grid, self.observed = _checked(frequencies, grid, log_density)
        self.x_shape = self.observed.shape
        self.span = 1 / float(self.frequencies[0]) if span is None else float(span)
        if not 0 < self.span < math.inf:
            raise UsageError(f"span: expected a positive number of seconds, got {span!r}")
        if parameters is None and spectrum not in _PRIORS:
            raise UsageError("parameters: expected the names and priors of theta with a spectrum of your own, got None")
        self.parameters = Parameters(_PRIORS[spectrum]) if parameters is None else Parameters.from_prior(parameters)
        self._strain_to_rho = -0.5 * (
            math.log10(12 * math.pi**2) + math.log10(self.span) + 3 * torch.log10(self.frequencies)
        )

    @classmethod
    def from_folder(
        cls,
        path: str | Path | Mapping[str, str | Path],
        bins: int | Sequence[int] | None = None,
        *,
        pulsars: Sequence[str] | None = None,
        span: float | None = None,
        **model: Any,
    ) -> "FreeSpectrum":
        """Read a folder in the layout of ceffyl.

        Args:
            path: holds ``density.npy`` (``(K, G)`` or ``(pulsars, K, G)``), ``freqs.npy`` and ``log10rhogrid.npy``,
                and it may hold ``log10rholabels.txt`` and ``pulsar_list.txt``, a name for each line.  Files that lie
                in several folders are given as a mapping from these names to paths.
            bins: how many of the lowest frequencies to take, or which ones, counted from 0; all where None.
            pulsars: whose densities to take, by the names in ``pulsar_list.txt``; all where None.
            span: T [s]; 1 / f_1 of the lowest frequency in the folder, taken or not, where None.
            **model: `spectrum`, `parameters`, `name`.

        Raises:
            StoreError: a file is missing or damaged, or the files do not fit each other.
            UsageError: bins or pulsars that the folder does not have.
        """
        files = _files(path)
        where = files["density.npy"].parent
        raw = [_array(files[name]) for name in _TABLES]
        try:
            frequencies, grid, density = _checked(*raw, join=False)
        except SBIPhysicsError as error:
            raise StoreError(f"{where}: {error}") from error
        lines = [_words(files[name]) for name in _LISTS]
        for name, found, wanted in zip(_LISTS, lines, (len(frequencies), len(density)), strict=True):
            if found and len(found) != wanted:
                raise StoreError(f"{files[name]}: expected {wanted} lines, got {len(found)}")
        chosen = _chosen(bins, len(frequencies))
        density = density[_numbers(pulsars, lines[1])] if pulsars is not None else density
        span = 1 / float(frequencies[0]) if span is None else span
        return cls(frequencies[chosen], grid, density[:, chosen], span=span, **{"name": where.name} | model)

    def log10_rho(self, theta: Tensor) -> Tensor:
        """log10 of rho_k [s] that theta ``(*, P)`` predicts: float64 ``(*, K)``, differentiable."""
        count = len(self.parameters)
        if theta.ndim == 0 or theta.shape[-1] != count:
            raise ShapeError(f"theta: expected shape (*, {count}), got {tuple(theta.shape)}")
        frequencies = self.frequencies.to(theta.device)
        return self.spectrum(frequencies, theta.double()) + self._strain_to_rho.to(theta.device)

    def log_likelihood(self, theta: Tensor, x: Tensor | None = None) -> Tensor:
        """Log-likelihood in nats, up to a constant, float64.

        A bin beyond an end of the grid counts as if it were at that end, with a gradient of zero: see `off_grid`.

        Args:
            theta: ``(*, P)``.
            x: ``(*, K, G)`` log-densities on the grid, broadcast with theta; `observed` where None.

        Returns:
            ``(*,)``, differentiable in theta.
        """
        rho = self.log10_rho(theta)
        table = (self.observed if x is None else x).to(theta.device, torch.float64)
        if table.shape[-2:] != self.x_shape:
            raise ShapeError(f"x: expected shape (*, {', '.join(map(str, self.x_shape))}), got {tuple(table.shape)}")
        batch = torch.broadcast_shapes(rho.shape[:-1], table.shape[:-2])
        grid = self.grid.to(theta.device)
        at = rho.clamp(float(self.grid[0]), float(self.grid[-1])).expand(*batch, -1)
        cell = torch.searchsorted(grid, at.detach().contiguous(), right=True).sub(1).clamp(0, len(grid) - 2)
        ends = table.expand(*batch, -1, -1).gather(-1, torch.stack([cell, cell + 1], -1))
        share = (at - grid[cell]) / (grid[cell + 1] - grid[cell])
        return torch.lerp(ends[..., 0], ends[..., 1], share).sum(-1)

    def off_grid(self, theta: Tensor) -> Tensor:
        """Which bins leave the grid: int8 ``(*, K)`` for theta ``(*, P)``; -1 below it, 1 above it, 0 on it."""
        rho = self.log10_rho(theta)
        low, high = float(self.grid[0]), float(self.grid[-1])
        return (rho > high).to(torch.int8) - (rho < low).to(torch.int8)

    def off_grid_shares(self, theta: Tensor) -> Tensor:
        """The share of draws theta ``(n, P)`` that leave the grid, for each bin: ``(2, K)``, below and above it.

        A warning is logged where there are any: for these draws the likelihood is an extrapolation.
        """
        where = self.off_grid(theta).reshape(-1, len(self.frequencies))
        shares = torch.stack([(where == side).double().mean(0) for side in (-1, 1)])
        if bool((shares > 0).any()):
            worst = shares.sum(0).argmax()
            _log.warning(
                "%s: %.2g of the draws leave the grid of log10 rho in some bin, most often at %.3g Hz (%.2g); "
                "there the density at the end of the grid, %.4g or %.4g, is taken",
                self.name,
                float((where != 0).any(-1).double().mean()),
                float(self.frequencies[worst]),
                float(shares[:, worst].sum()),
                float(self.grid[0]),
                float(self.grid[-1]),
            )
        return shares


def _checked(frequencies: Any, grid: Any, log_density: Any, *, join: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The three tables in float64, densities as ``(K, G)``, or as ``(pulsars, K, G)`` without `join`."""
    f, g, density = (
        as_tensor(value, name, dtype=torch.float64).cpu()
        for value, name in ((frequencies, "frequencies"), (grid, "grid"), (log_density, "log_density"))
    )
    for name, column, least in (("frequencies", f, 1), ("grid", g, 2)):
        if column.ndim != 1 or len(column) < least:
            raise ShapeError(f"{name}: expected shape (n,) with n at least {least}, got {tuple(column.shape)}")
        finite(column, name)
        if not bool((column.diff() > 0).all()):
            raise UsageError(f"{name}: expected ascending numbers, got {float(column.diff().min()):g} as a step")
    if not bool(f[0] > 0):
        raise UsageError(f"frequencies: expected positive numbers, got {float(f[0]):g} Hz")
    density = density.unsqueeze(0) if density.ndim == 2 else density
    if density.ndim != 3 or density.shape[1:] != (len(f), len(g)) or not len(density):
        raise ShapeError(
            f"log_density: expected shape ({len(f)}, {len(g)}) or (pulsars, {len(f)}, {len(g)}), for as many "
            f"frequencies and points of the grid, got {tuple(density.shape)}"
        )
    density = torch.where(density == -torch.inf, _FLOOR, density)
    if not bool(torch.isfinite(density).all()):
        raise NonFiniteError(
            f"log_density: expected numbers or minus infinity, got {int((~torch.isfinite(density)).sum())} NaN or "
            f"infinite of {density.numel()}"
        )
    return f, g, density.sum(0) if join else density


def _files(path: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """Where each file is, or would be."""
    if not isinstance(path, Mapping):
        return {name: Path(path) / name for name in (*_TABLES, *_LISTS)}
    missing = [name for name in _TABLES if name not in path]
    if missing:
        raise StoreError(f"path: expected a mapping with {', '.join(_TABLES)}; there is no {', '.join(missing)}")
    beside = Path(path["density.npy"]).parent
    return {name: Path(path.get(name, beside / name)) for name in (*_TABLES, *_LISTS)}


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("holds several arrays")
        return values.astype(np.float64)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file; expected {', '.join(_TABLES)}") from error
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: expected a NumPy array of numbers: {error}") from error


def _words(path: Path) -> list[str]:
    """Lines that are not empty; none where there is no file."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def _chosen(bins: int | Sequence[int] | None, count: int) -> list[int]:
    """Numbers of the frequencies to take, ascending."""
    if bins is None:
        return list(range(count))
    if isinstance(bins, int | np.integer) and not isinstance(bins, bool) and 1 <= bins <= count:
        return list(range(int(bins)))
    chosen = list(bins) if isinstance(bins, Sequence | np.ndarray | range) and not isinstance(bins, str) else []
    good = all(isinstance(b, int | np.integer) and not isinstance(b, bool) and 0 <= b < count for b in chosen)
    if not chosen or not good or len(set(chosen)) < len(chosen):
        raise UsageError(
            f"bins: expected a number from 1 to {count}, or different ones from 0 to {count - 1}; got {bins!r}"
        )
    return sorted(int(b) for b in chosen)


def _numbers(pulsars: Sequence[str], known: Sequence[str]) -> list[int]:
    chosen = [pulsars] if isinstance(pulsars, str) else list(pulsars)
    if not chosen or len(set(chosen)) < len(chosen) or any(name not in known for name in chosen):
        raise UsageError(f"pulsars: expected different ones of {', '.join(known) or '(no names given)'}; got {chosen}")
    return [known.index(name) for name in chosen]
