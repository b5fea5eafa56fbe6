"""The page of a surrogate's check: all panels that there is something for, and words that do not overlap."""

import itertools

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.report.figures import save_figure
from sbi_physics.report.surrogate_figures import surrogate_check
from sbi_physics.surrogate.check import check_surrogate

GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4), VoxelLayer(2, (0, 10, 20, 40))))
FAST = {"hidden_features": 8, "epochs": 1, "device": "cpu"}


class Showers:
    parameters = sp.Parameters([sp.Parameter("energy", LogUniform(1e3, 3e4), "MeV")])

    def __call__(self, theta, *, seed):
        generator = torch.Generator().manual_seed(seed % 2**63)
        shares = torch.exp(0.5 * torch.randn(len(theta), GEOMETRY.size, generator=generator))
        empty = torch.rand(len(theta), GEOMETRY.size, generator=generator) < 0.2
        return theta * torch.where(empty, 0.0, shares) / GEOMETRY.size


def report(scale=1.0, n=900, **options):
    theta = Showers.parameters.sample(n, seed=1)
    x = Showers()(theta, seed=2)

    class Scaled(Showers):
        def __call__(self, theta, *, seed):
            return scale * Showers.__call__(self, theta, seed=seed)

    return check_surrogate(Scaled(), theta, x, classifier=FAST, progress=False, **{"batches": (1, 10), **options})


def words(figure):
    """Boxes of all words, by their text."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    every = [figure._suptitle]
    for axis in figure.axes:
        every += [axis.title, axis._left_title, axis._right_title, *axis.texts]
        if axis.axison:
            every += [axis.xaxis.label, axis.yaxis.label]
            # Those beyond the ends of an axis are there, but not drawn.
            for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
                every += [tick.label1 for tick in one.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [text for text in every if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]


def check_words(figure):
    found = words(figure)
    page = figure.bbox
    for text, box in found:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    for (text, a), (other, b) in itertools.combinations(found, 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 2, f"{text!r} and {other!r} overlap"


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_showers_fill_a_page(scale, tmp_path):
    found = report(scale, geometry=GEOMETRY, simulator=Showers())
    figure = surrogate_check(found)
    assert figure.get_suptitle().replace("\n", " ") == found.verdict
    check_words(figure)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert {"classifier of whole events", "classifier of features", "mean seen / true energy"} <= set(titles)
    assert sum(title.startswith("S = ") for title in titles) == 8
    assert sum(axis.get_title().startswith("layer ") for axis in figure.axes) == 3
    wrong = [text.get_text() for axis in figure.axes for text in axis.texts if text.get_fontweight() == "bold"]
    assert ("response, generated / real" in wrong) == (scale != 1)
    for ending in (".png", ".pdf"):
        save_figure(figure, tmp_path / f"page{ending}")
        assert (tmp_path / f"page{ending}").stat().st_size > 30_000
    assert plt.get_fignums() == []


def test_plain_numbers_have_neither_showers_nor_a_response():
    figure = surrogate_check(
        report(features=lambda theta, x: {"first": x[:, 0], "a second that is long": x[:, 1].log1p()})
    )
    check_words(figure)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert sum(title.startswith("S = ") for title in titles) == 2
    assert "mean seen / true energy" not in titles
    assert not any(axis.get_title().startswith("layer ") for axis in figure.axes)
    single = surrogate_check(report(features=lambda theta, x: {"alone": x[:, 0]}))
    check_words(single)


def test_weighted_events_are_drawn_with_their_weights():
    weights = torch.ones(1100)
    weights[::20] = -1.0
    figure = surrogate_check(report(n=1100, geometry=GEOMETRY, weights=weights))
    check_words(figure)
