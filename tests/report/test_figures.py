import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import sbi_physics as sp
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics import expected_coverage, sbc_from_samples
from sbi_physics.report.figures import calibration, corner, curve, losses, save_figure

NAMES, UNITS, LABELS = ("K_b", "gamma", "s"), ("m / s", "m / s", ""), ("$K_b$", r"$\gamma$", r"$\ln s$")


def draws(n=2000, shift=0.0, seed=0, dims=3):
    generator = torch.Generator().manual_seed(seed)
    values = shift + torch.randn(n, dims, generator=generator)
    return Samples(values, NAMES[:dims], UNITS[:dims], LABELS[:dims])


def visible(figure):
    return [axis for axis in figure.axes if axis.axison and axis.get_frame_on()]


def check(figure, path, axes):
    assert isinstance(figure, Figure)
    assert len(visible(figure)) == axes
    save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_corner(dims, tmp_path):
    check(corner(draws(dims=dims)), tmp_path / "c.png", dims * (dims + 1) // 2)


def test_corner_of_several(tmp_path):
    sets = {"NPE": draws(), "corrected": draws(500, 0.1, 1), "MCMC": draws(3000, 0.2, 2)}
    figure = corner(sets, truth=[0.1, 0.2, 5.0])
    check(figure, tmp_path / "c.png", 6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NPE", "corrected", "MCMC", "truth"]
    words = {axis.get_xlabel() for axis in figure.axes} | {axis.get_ylabel() for axis in figure.axes}
    assert {"$K_b$ [m / s]", r"$\gamma$ [m / s]", r"$\ln s$"} <= words
    low, high = figure.axes[-1].get_xlim()
    assert low < -3
    assert high > 5.0  # the truth is shown, though no draw is near it
    tallest = max(patch.get_xy()[:, 1].max() for patch in figure.axes[0].patches)
    assert figure.axes[0].get_ylim()[1] >= tallest  # the highest histogram fits, whichever was drawn last


def test_corner_of_weighted_and_of_constant_draws(tmp_path):
    weighted = draws()
    weighted = Samples(weighted.values, NAMES, UNITS, LABELS, weighted.values[:, 0].double())
    check(corner(weighted, draws()), tmp_path / "weighted.png", 6)
    constant = Samples(torch.cat([torch.randn(500, 1), torch.full((500, 1), 3.0)], 1), ("a", "b"))
    check(corner(constant), tmp_path / "constant.png", 3)


def test_truths_by_name():
    by_name = dict(zip(NAMES[::-1], [5.0, 0.2, 0.1], strict=True))
    named, listed = (corner(draws(), truth=truth) for truth in (by_name, [0.1, 0.2, 5.0]))
    for one, other in zip(named.axes, listed.axes, strict=True):
        assert len(one.lines) == len(other.lines)
        assert all(np.allclose(a.get_xydata(), b.get_xydata()) for a, b in zip(one.lines, other.lines, strict=True))
    some = corner(draws(), truth={NAMES[1]: 0.2})
    assert sum(len(axis.lines) for axis in some.axes) < sum(len(axis.lines) for axis in named.axes)
    with pytest.raises(sp.UsageError, match=f"truth: expected one of {', '.join(NAMES)}; got 'q'"):
        corner(draws(), truth={"q": 1.0})


def test_an_angle_is_drawn_on_its_circle():
    """A narrow one where the circle is cut: no panel goes around it, and contours hold what they say."""
    angle = (0.02 + 0.06 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))) % (2 * torch.pi)
    other = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    bounds = torch.tensor([[0.0, 2 * torch.pi], [-torch.inf, torch.inf]])
    samples = Samples(torch.stack([angle, other], 1), ("phi", "a"), bounds=bounds, periodic=(True, False))
    figure = corner(samples, truth={"phi": 6.25})
    low, high = figure.axes[0].get_xlim()
    assert high - low < 0.6
    assert low < 6.25 - 2 * torch.pi < high


@pytest.mark.parametrize("tail", [0.0, 0.004])
def test_contours_hold_what_they_say(tail):
    """Also where a thin tail makes the panels wide."""
    random = np.random.default_rng(1)
    values = random.normal(size=(40_000, 2))
    values[random.random(len(values)) < tail] *= 12
    figure = corner(Samples(torch.as_tensor(values), ("a", "b")))
    paths = [path for collection in figure.axes[2].collections for path in collection.get_paths() if len(path.vertices)]
    held = sorted(float(path.contains_points(values).mean()) for path in paths)
    assert any(abs(share - 0.68) < 0.02 for share in held), held
    assert any(abs(share - 0.95) < 0.02 for share in held), held


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (lambda: (draws(), draws(dims=2)), {}, "all of the same parameters"),
        (lambda: (Samples(torch.zeros(2, 5, 1), ("a",)),), {}, "draws of one observation"),
        (lambda: ({},), {}, "at least one set of draws"),
        (lambda: (torch.zeros(5, 1),), {}, r"expected Samples, got Tensor; sp\.Samples\(array, names\) makes them"),
        (lambda: ({"a": draws(), "b": [1.0]},), {}, "expected Samples, got list"),
        (lambda: (draws(),), {"truth": [1.0]}, r"truth: expected 3 values, got 1"),
        (lambda: (draws(),), {"names": ["a", "b"]}, r"names: expected 1, one for each set of draws, got 2"),
    ],
)
def test_wrong_corners(arguments, keywords, message):
    with pytest.raises(sp.UsageError, match=message):
        corner(*arguments(), **keywords)


def test_curve(tmp_path):
    grid = torch.linspace(0, 10, 50)
    curves = torch.sin(grid) + 0.1 * torch.randn(200, 1)
    at = torch.linspace(0, 10, 8)
    points = (at, torch.sin(at), torch.full((8,), 0.1))
    check(curve(grid, curves, points, x_label="t", title="v"), tmp_path / "plain.png", 1)
    figure = curve(grid, curves, (*points, torch.sin(at)), noise=0.2, y_label="v")
    check(figure, tmp_path / "residuals.png", 2)
    assert figure.axes[1].get_ylabel() == "residual"


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_calibration(dims, tmp_path):
    samples, truth = torch.randn(100, 64, dims), torch.randn(100, dims)
    ranks = sbc_from_samples(samples, truth, NAMES[:dims])
    check(calibration(ranks), tmp_path / "ranks.png", dims + 1)
    check(calibration(ranks, expected_coverage(samples, truth, NAMES[:dims])), tmp_path / "both.png", dims + 2)


def test_losses(tmp_path):
    figure = losses([3.0, 2.0, 1.5], [2.5, 2.0, 2.1], 1)
    check(figure, tmp_path / "l.png", 1)


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".PNG"])
def test_formats(ending, tmp_path):
    save_figure(losses([1.0, 0.5], [1.0, 0.7], 1), tmp_path / f"l{ending}")
    assert (tmp_path / f"l{ending}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("l.foo", sp.UsageError, "expected a figure that ends in .png, .pdf, .svg"),
        ("l", sp.UsageError, "expected a figure that ends in"),
        ("nowhere/l.png", sp.StoreError, "cannot be written: No such file"),
    ],
)
def test_wrong_paths(name, error, message, tmp_path):
    with pytest.raises(error, match=message):
        save_figure(losses([1.0], [1.0], 0), tmp_path / name)
