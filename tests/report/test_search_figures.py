"""The page of a search has a panel for everything there is, and words that stay in their places."""

from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sbi_physics.anomaly.scan import Injection, RegionScan
from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.anomaly.significance import significance_improvement
from sbi_physics.report.search_figures import injection_figure, region_scan_figure, search_figure, template_figure
from simulators.dijet import FEATURES, DijetResonance


@pytest.fixture(scope="module")
def search():
    data = DijetResonance().events(background=3000, signal=100, seed=1)
    quick = {"members": 1, "folds": 2, "config": {"epochs": 1}, "transforms": 2, "hidden_features": 16}
    return ResonantSearch((3.3, 3.7), **quick).fit(data.features, data.mass, progress=False)


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return [axis for axis in figure.axes if axis.axison]


def test_the_page_has_a_panel_for_each_feature_and_each_result(search):
    result, template = search.search(toys=100), search.sample_background(1000)
    axes = drawn(search_figure(result, search.signal_events, template, names=FEATURES))
    assert len(axes) == 3 + 4
    assert [axis.get_xlabel() for axis in axes[3:]] == list(FEATURES)
    improvement = significance_improvement(torch.randn(100), 1 + torch.randn(50))
    axes = drawn(search_figure(result, search.signal_events, template, improvement=improvement))
    assert len(axes) == 5 + 4
    assert axes[4].get_ylabel() == "significance improvement"
    counts = axes[0].get_legend().get_texts()
    assert [text.get_text() for text in counts] == ["all", "0.2", "0.1", "0.05", "0.01"]


def test_template_and_data_have_the_same_number_of_events_in_their_panel(search):
    axes = drawn(template_figure(search.signal_events, search.sample_background(4000)))
    made = sum(patch.get_data().values.sum() for patch in axes[0].patches)
    assert made == pytest.approx(len(search.signal_events.mass), rel=0.02)


def test_scan_and_injection(search):
    result = search.search(toys=100)
    scan = RegionScan((replace(result, global_p_value=0.5), replace(result, global_p_value=0.02)))
    assert scan.verdict.endswith(": 2.1 standard deviations there, 1.8 in all")
    scan = RegionScan((replace(result, global_p_value=0.5), replace(result, global_p_value=0.0)))
    assert scan.verdict.endswith(": more than 2.3 standard deviations there, more than 2.1 in all")
    axis = drawn(region_scan_figure(scan))[0]
    assert (axis.get_yscale(), axis.get_xlabel()) == ("log", "mass")
    assert drawn(region_scan_figure(scan, unit="GeV"))[0].get_xlabel() == "mass [GeV]"
    values = torch.tensor([[0.0, 0.5], [3.0, 4.0]], dtype=torch.float64).numpy()
    axis = drawn(injection_figure(Injection((0, 100), values, values, values / 2)))[0]
    assert list(axis.lines[0].get_ydata()) == [0.25, 3.5]
