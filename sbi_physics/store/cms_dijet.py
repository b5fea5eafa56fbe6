"""The spectrum of dijet masses that CMS measured at 13 TeV: 42 bins from 1.5 to 8.7 TeV.

CMS Collaboration 2020 (arXiv:1911.03947, Fig. 5).  Published are cross sections per TeV; with the 137 fb^-1 of the
measurement they give the counts that a Poisson likelihood wants, n = round(cross section x width x luminosity).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.errors import StoreError
from sbi_physics.store.datasets import fetch
from sbi_physics.store.tables import read_table

__all__ = ["DijetSpectrum", "load_cms_dijet"]

_LUMINOSITY = 137.0
_PER_PICOBARN = 1_000.0
_TEV = 1e-3


@dataclass(frozen=True)
class DijetSpectrum:
    """Counts of events in bins of the dijet mass.

    Attributes:
        edges: of the n bins, ``(n + 1,)`` [TeV], float64.
        counts: events in each bin ``(n,)``, whole numbers as float64.
        cross_section: as published, ``(n,)`` [pb / TeV].
        luminosity: [fb^-1].
        energy: of the collision, sqrt(s) [TeV].
    """

    edges: Tensor
    counts: Tensor
    cross_section: Tensor
    luminosity: float
    energy: float

    def __len__(self) -> int:
        return len(self.counts)


def load_cms_dijet() -> DijetSpectrum:
    """Read the spectrum, which ships with the package.

    Raises:
        StoreError: the table is missing or damaged, or its bins have gaps.
    """
    path = fetch("cms_dijet", progress=False)["spectrum.csv"]
    table = read_table(path, ["m_center", "m_width", "dsigma_dm"])
    low, high = (_TEV * (table["m_center"] + side * table["m_width"] / 2) for side in (-1, 1))
    if not torch.allclose(high[:-1], low[1:], rtol=0, atol=1e-6):
        raise StoreError(f"{path}: expected bins that follow each other without gaps")
    edges = torch.cat([low, high[-1:]])
    counts = table["dsigma_dm"] * edges.diff() * _LUMINOSITY * _PER_PICOBARN
    return DijetSpectrum(edges, counts.round(), table["dsigma_dm"], _LUMINOSITY, energy=13.0)
