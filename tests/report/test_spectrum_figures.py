"""Pictures of a resonance search: every spectrum, its pulls, its window, and lines at standard deviations."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import norm

from sbi_physics.anomaly.bump_hunt import bump_hunt
from sbi_physics.anomaly.spectrum import fit_spectrum
from sbi_physics.report.figures import save_figure
from sbi_physics.report.spectrum_figures import p_value_figure, spectrum_figure

EDGES = np.linspace(2.5, 5.0, 26)


def spectrum(events, signal=0.0):
    middle = 0.5 * (EDGES[1:] + EDGES[:-1]) / 13
    share = (1 - middle) ** 8 * middle**-5.2
    bump = np.diff(norm.cdf(EDGES, 3.5, 0.07))
    return np.random.default_rng(0).poisson(events * share / share.sum() + signal * bump)


def test_spectra_stand_above_their_pulls(tmp_path):
    window = (3.3, 3.7)
    fits = {
        "all events": fit_spectrum(EDGES, spectrum(100_000, 600), window=window),
        "after the cut": fit_spectrum(EDGES, spectrum(1_000, 200), window=window),
    }
    figure = spectrum_figure(fits, mass="dijet mass")
    assert len(figure.axes) == 3
    assert (figure.axes[0].get_ylabel(), figure.axes[-1].get_xlabel()) == ("events / unit of mass", "dijet mass")
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"all events", "after the cut"} <= set(labels)
    assert sum(f"χ² / ndf = {fit.chi2:.1f} / {fit.ndf}" in label for fit in fits.values() for label in labels) == 2
    assert figure.axes[0].get_yscale() == "log"
    for axis, fit in zip(figure.axes[1:], fits.values(), strict=True):
        low, high = axis.get_ylim()
        assert low < fit.pulls.min() < fit.pulls.max() < high
    low, high = figure.axes[0].get_ylim()
    for fit in fits.values():
        seen = fit.counts > 0
        density = (fit.counts / np.diff(EDGES))[seen]
        assert low < density.min() < density.max() < high
    for ending in (".png", ".pdf"):
        save_figure(figure, tmp_path / f"spectrum{ending}")
        assert (tmp_path / f"spectrum{ending}").stat().st_size > 10_000
    assert plt.get_fignums() == []


def test_one_spectrum_with_empty_bins_and_weights():
    counts = np.array(spectrum(60), dtype=float)
    assert (counts == 0).any()
    fit = fit_spectrum(EDGES, 0.5 * counts, variances=0.25 * counts)
    figure = spectrum_figure(fit, unit="GeV")
    assert len(figure.axes) == 2
    assert figure.get_suptitle().replace("\n", " ") == str(fit)
    assert figure.axes[-1].get_xlabel() == "mass [GeV]"
    figure.canvas.draw()


@pytest.mark.parametrize("signal", [0.0, 2_000.0])
def test_p_values_stand_between_lines(signal, tmp_path):
    found = bump_hunt(EDGES, spectrum(10_000, signal), widths=(1, 3), orders=(3,), toys=20, progress=False)
    figure = p_value_figure(found)
    axis = figure.axes[0]
    assert figure.get_suptitle().replace("\n", " ") == found.verdict
    low, high = axis.get_ylim()
    # What is beyond all numbers is drawn at 32 standard deviations.
    assert low < max(found.local_p_values.min(), norm.sf(32)) <= found.local_p_values.max() < high
    assert axis.get_legend_handles_labels()[1] == ["1 bin wide", "3 bins wide"]
    lines = [text.get_text() for text in axis.texts if "σ" in text.get_text()]
    assert 3 <= len(lines) <= 6
    save_figure(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000
