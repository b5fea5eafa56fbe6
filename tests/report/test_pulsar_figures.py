"""The picture of a free spectrum: a violin at each frequency, bands that hold the draws, nothing cut off."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.report.figures import save_figure
from sbi_physics.report.pulsar_figures import free_spectrum_figure

FREQUENCIES = 3e-9 * np.arange(1, 6)
GRID = np.linspace(-10.0, -4.0, 601)
MEANS = np.linspace(-6.5, -8.0, 5)
DENSITY = -0.5 * ((GRID - MEANS[:, None]) / 0.2) ** 2
CURVES = MEANS + 0.1 * np.random.default_rng(0).standard_normal((400, 5))


def test_a_violin_for_each_frequency_and_two_shades_for_each_band(tmp_path):
    figure = free_spectrum_figure(
        FREQUENCIES, GRID, DENSITY, {"flow": CURVES, "emcee": CURVES + 0.5}, fitted=[0, 1, 2], truth=MEANS, title="five"
    )
    (axis,) = figure.axes
    assert len(axis.collections) == 5 + 2 * 2
    for k, violin in enumerate(axis.collections[:5]):
        points = violin.get_paths()[0].vertices
        assert 0.5 * (points[:, 0].min() + points[:, 0].max()) == pytest.approx(3.0 * (k + 1))
        widest = points[points[:, 0].argmax(), 1]
        assert widest == pytest.approx(MEANS[k], abs=0.011)
    colours = [tuple(violin.get_facecolor()[0]) for violin in axis.collections[:5]]
    assert colours[0] == colours[1] == colours[2] != colours[3] == colours[4]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["density from the data", "flow", "emcee", "injected"]
    low, high = axis.get_ylim()
    # Three standard deviations of the lowest density, and the 97.5 % quantile of the higher curves, are in sight.
    assert low < MEANS.min() - 0.6
    assert high > MEANS.max() + 0.65
    assert figure.get_suptitle() == "five"
    for ending in (".png", ".svg"):
        save_figure(figure, tmp_path / f"spectrum{ending}")
        assert (tmp_path / f"spectrum{ending}").stat().st_size > 10_000
    assert plt.get_fignums() == []


def test_one_frequency_is_enough():
    figure = free_spectrum_figure(FREQUENCIES[:1], GRID, DENSITY[:1], {})
    assert figure.get_suptitle() == ""
    figure.canvas.draw()


def test_what_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"log_density: expected shape \(5, 601\), got \(4, 601\)"):
        free_spectrum_figure(FREQUENCIES, GRID, DENSITY[:4], {})
    with pytest.raises(ShapeError, match=r"flow: expected shape \(n, 5\)"):
        free_spectrum_figure(FREQUENCIES, GRID, DENSITY, {"flow": CURVES[:, :4]})
    with pytest.raises(ShapeError, match="truth: expected shape"):
        free_spectrum_figure(FREQUENCIES, GRID, DENSITY, {}, truth=MEANS[:2])
    with pytest.raises(UsageError, match="fitted: expected numbers from 0 to 4"):
        free_spectrum_figure(FREQUENCIES, GRID, DENSITY, {}, fitted=[5])
    with pytest.raises(NonFiniteError, match="flow"):
        free_spectrum_figure(FREQUENCIES, GRID, DENSITY, {"flow": np.full((3, 5), np.nan)})
