"""`MassModel`: how background is distributed in mass inside the signal region.

``"fit"`` fits a falling function to the masses of the control region (`spectrum.fit_spectrum`) and reads it off inside;
it says how many background events there are, too.  ``"kernels"`` spreads the masses of the events in the region (Hallin
et al. 2021, arXiv:2109.00546), which are background almost all of them.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from sbi_physics.anomaly.binning import count_events
from sbi_physics.anomaly.events import Events, SignalRegion
from sbi_physics.anomaly.spectrum import Expectation, SpectrumFit, fit_spectrum
from sbi_physics.core.checks import known_keys
from sbi_physics.core.random import seeded

__all__ = ["MASS_MODELS", "MassModel", "energy_above", "search_edges"]

MASS_MODELS = ("fit", "kernels")
_BINS = 40
_GRID = 401
_ORDERS = (2, 3, 4)
_SHARE_OF_REGION = 0.05


class MassModel:
    """The mass of the background in the signal region.

    Args:
        kind: ``"fit"`` or ``"kernels"``.
        region: the signal region.
        sqrt_s: energy of the collision in the unit of mass; None takes one above all masses.

    Attributes:
        fit_of_spectrum: the fit beside the region.
    """

    fit_of_spectrum: SpectrumFit

    def __init__(self, kind: str, region: SignalRegion, sqrt_s: float | None) -> None:
        known_keys([kind], MASS_MODELS, "mass_model")
        self.kind, self.region, self.sqrt_s = kind, region, sqrt_s

    def fit(self, control: Events, signal: Events) -> Self:
        """Learn from the events beside the region, and for kernels from those inside."""
        mass, weights = torch.cat([control.mass, signal.mass]), torch.cat([control.weights, signal.weights])
        edges = search_edges(mass, self.region)
        plain = bool((weights == 1).all())
        counts, variances = count_events(mass.numpy(), edges, None if plain else weights.numpy())
        energy = self.sqrt_s or energy_above(mass)
        window = (self.region.low, self.region.high)
        self.fit_of_spectrum = fit_spectrum(
            edges, counts, window=window, variances=variances, orders=_ORDERS, sqrt_s=energy
        )
        self._inside = signal
        return self

    @property
    def background(self) -> Expectation:
        """Events expected in the region, by the fit."""
        return self.fit_of_spectrum.background

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw masses ``(n,)``, float64, of background events in the region."""
        low, high = self.region.low, self.region.high
        if self.kind == "kernels":
            return self._spread(n, seed)
        grid = np.linspace(low, high, _GRID)
        cumulative = np.concatenate([[0.0], np.cumsum(self.fit_of_spectrum.predict(grid).counts)])
        with seeded(seed):
            share = torch.rand(n, dtype=torch.float64).numpy() * cumulative[-1]
        return torch.as_tensor(np.interp(share, cumulative, grid)).clamp(max=high)

    def _spread(self, n: int, seed: int) -> Tensor:
        low, high = self.region.low, self.region.high
        width = _SHARE_OF_REGION * (high - low)
        with seeded(seed):
            chosen = torch.multinomial(self._inside.weights.clamp(min=0.0), n, replacement=True)
            mass = self._inside.mass[chosen] + width * torch.randn(n, dtype=torch.float64)
        # What falls out at one side comes in again there, so that the density does not sink towards the edges.
        mass = torch.where(mass < low, 2 * low - mass, mass)
        return torch.where(mass > high, 2 * high - mass, mass).clamp(low, high)


def search_edges(mass: Tensor, region: SignalRegion, bins: int = _BINS) -> np.ndarray:
    """Edges of about so many bins over all masses, of which two are those of the region."""
    low, high = float(mass.min()), float(mass.max())
    # A hair more, so that the smallest mass is inside.
    low, high = low - 1e-9 * (high - low), high + 1e-9 * (high - low)
    parts = [(low, region.low), (region.low, region.high), (region.high, high)]
    pieces = []
    for start, end in parts:
        many = max(2, round(bins * (end - start) / (high - low)))
        pieces.append(np.linspace(start, end, many + 1)[:-1])
    return np.concatenate([*pieces, [high]])


def energy_above(mass: Tensor) -> float:
    """The energy of the LHC if it is above all masses in TeV or in GeV, else twice the largest mass."""
    largest = float(mass.max())
    return next((energy for energy in (13.0, 13_000.0) if largest < energy), 2 * largest)
