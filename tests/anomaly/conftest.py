"""What the tests of spectra share."""

import numpy as np
import pytest

from sbi_physics.core.resources import shipped

LUMINOSITY = 137_000  # inverse picobarns


@pytest.fixture(scope="session")
def cms_dijet():
    """Edges [GeV] and counts of the CMS spectrum, from its cross sections [pb / TeV] (arXiv:1911.03947)."""
    table = np.genfromtxt(shipped("cms_dijet/spectrum.csv"), delimiter=",", comments="#", names=True, skip_header=1)
    half = table["m_width"] / 2
    edges = np.append(table["m_center"] - half, table["m_center"][-1] + half[-1])
    counts = table["dsigma_dm"] * table["m_width"] / 1000 * LUMINOSITY
    # Cross sections are whole counts over the luminosity: if they were not, something else would have been read.
    assert np.abs(counts - counts.round()).max() < 12
    return edges, counts.round()


@pytest.fixture(scope="session")
def falling():
    """Edges [TeV] and the shares of a spectrum that is a dijet function of three parameters, integrated finely."""

    def make(bins=24, low=2.0, high=5.0):
        edges = np.linspace(low, high, bins + 1)
        fine = np.linspace(low, high, 200 * bins + 1)
        x = 0.5 * (fine[1:] + fine[:-1]) / 13
        share = ((1 - x) ** 8 * x**-5.2).reshape(bins, -1).sum(1)
        return edges, share / share.sum()

    return make


@pytest.fixture(scope="session")
def pyhf_model():
    """A counting experiment in pyhf; its signal strength is in units of 20 events."""
    pyhf = pytest.importorskip("pyhf")

    def make(background, uncertainty, constraint):
        if constraint == "gamma":
            return pyhf.simplemodels.uncorrelated_background([20.0], [background], [uncertainty])
        shift = {"hi_data": [background + uncertainty], "lo_data": [background - uncertainty]}
        signal = {"name": "mu", "type": "normfactor", "data": None}
        samples = [
            {"name": "signal", "data": [20.0], "modifiers": [signal]},
            {
                "name": "background",
                "data": [background],
                "modifiers": [{"name": "shift", "type": "histosys", "data": shift}],
            },
        ]
        return pyhf.Model({"channels": [{"name": "window", "samples": samples}]}, poi_name="mu")

    return make
