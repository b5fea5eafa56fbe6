"""Pictures of an integration: every method in both panels, every observable in one, nothing left out of sight."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sbi_physics.report.figures import save_figure
from sbi_physics.report.integration_figures import integration_figure

ROUNDS = {"one": [(1000, 2.0, 0.1), (2000, 2.1, 0.05), (4000, 2.05, 0.03)], "other": [(1000, -2.0, 0.2)]}


@pytest.fixture
def figure():
    random = np.random.default_rng(0)
    weights = {"one": random.gamma(2, 1, 1000), "other": np.concatenate([np.zeros(10), [1e6], random.gamma(1, 1, 99)])}
    events = {"mass [GeV]": (random.normal(size=2000), random.normal(size=1500)), "angle": (random.random(99),) * 2}
    made = integration_figure(ROUNDS, weights, events, title="An integration")
    yield made
    plt.close(made)


def test_each_method_has_its_line_and_each_observable_its_panel(figure, tmp_path):
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_xlabel() for axis in drawn[2:]] == ["mass [GeV]", "angle"]
    for axis in drawn[:2]:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "other"]
    save_figure(figure, tmp_path / "integration.png")
    assert (tmp_path / "integration.png").stat().st_size > 10_000


def test_errors_stand_over_the_calls_so_far(figure):
    line, other = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1000, 3000, 7000])
    np.testing.assert_allclose(line.get_ydata(), [0.05, 0.05 / 2.1, 0.03 / 2.05])
    np.testing.assert_allclose(other.get_ydata(), [0.1])


def test_all_weights_that_are_not_zero_are_drawn(figure):
    one, other = (patch.get_xy() for patch in figure.axes[1].patches)
    for outline, share in ((one, 1.0), (other, 100 / 110)):
        edges, heights = np.unique(outline[:, 0]), outline[1::2, 1]
        assert sum(heights[: len(edges) - 1]) == pytest.approx(share)
