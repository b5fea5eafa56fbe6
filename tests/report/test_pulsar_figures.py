"""Pictures of pulsar timing: of a free spectrum, violins and bands that hold the draws, nothing cut off."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.report.figures import save_figure
from sbi_physics.report.pulsar_figures import correlation_figure, free_spectrum_figure, residuals_figure

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


def test_residuals_of_each_pulsar_with_what_is_missing(tmp_path):
    times = {"J0030+0451": np.linspace(2005, 2017, 30), "J1909-3744": np.linspace(2006, 2017, 20)}
    residuals = {name: np.sin(t) for name, t in times.items()}
    residuals["J1909-3744"][3] = np.nan
    figure = residuals_figure(times, residuals, {name: 0.3 + 0 * t for name, t in times.items()}, title="two")
    assert [axis.get_ylabel() for axis in figure.axes] == list(times)
    drawn = figure.axes[1].lines[0].get_ydata()
    assert int(np.isfinite(drawn).sum()) == 19
    save_figure(figure, tmp_path / "residuals.png")


def test_correlations_over_their_curve():
    angles, curve = np.array([10.0, 80.0, 170.0]), np.cos(np.deg2rad(np.arange(181)))
    figure = correlation_figure(angles, np.array([0.9, 0.1, -1.0]), np.full(3, 0.1), curve)
    (axis,) = figure.axes
    assert len(axis.containers) == 1
    drawn = next(line for line in axis.lines if line.get_label() == "expected")
    np.testing.assert_allclose(drawn.get_ydata(), curve, atol=1e-6)


def test_wrong_residuals_and_correlations():
    one = {"a": np.zeros(3)}
    with pytest.raises(UsageError, match="expected those of a, got b"):
        residuals_figure(one, {"b": np.zeros(3)}, one)
    with pytest.raises(ShapeError, match="a: expected three arrays of one length"):
        residuals_figure(one, {"a": np.zeros(4)}, one)
    with pytest.raises(ShapeError, match=r"a curve \(181,\)"):
        correlation_figure(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(180))
