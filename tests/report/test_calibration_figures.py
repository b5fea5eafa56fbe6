import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from sbi_physics.diagnostics import calibrate, expected_coverage, sbc_from_samples, tarp_from_samples
from sbi_physics.report.calibration_figures import calibration, random_points
from sbi_physics.report.figures import save_figure


class Normal:
    """The prior, which is calibrated."""

    def __init__(self, dims, width=1.0):
        self.dims, self.width = dims, width

    def sample(self, n, x_obs, *, seed):
        return self.width * torch.randn(len(x_obs), n, self.dims, generator=torch.Generator().manual_seed(seed % 2**31))

    def log_prob(self, theta, x_obs):
        return torch.distributions.Normal(0.0, self.width).log_prob(theta).sum(-1)


def report(dims, width=1.0):
    theta = torch.randn(100, dims, generator=torch.Generator().manual_seed(1))
    return calibrate(Normal(dims, width), theta, theta, draws=30)


def visible(figure):
    return [axis for axis in figure.axes if axis.axison]


def titles(figure):
    return [axis.get_title() for axis in visible(figure)]


@pytest.mark.parametrize("dims", [1, 9])
def test_a_panel_for_each_parameter_and_each_joint_check(dims, tmp_path):
    figure = calibration(report(dims))
    assert isinstance(figure, Figure)
    assert titles(figure) == [f"theta_{i}: calibrated" for i in range(dims)] + [
        "distribution of ranks",
        "expected coverage",
        "random points: calibrated",
    ]
    save_figure(figure, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert plt.get_fignums() == []


def test_parts_alone():
    whole = report(2)
    assert titles(calibration(whole.sbc))[-1] == "distribution of ranks"
    assert titles(calibration(whole.sbc, whole.coverage))[-1] == "expected coverage"
    assert titles(calibration(whole.sbc, tarp=whole.tarp))[-1] == "random points: calibrated"
    legend = visible(calibration(whole.sbc, joint=whole.highest_density))[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["highest density"]


def test_the_curve_of_a_wrong_posterior_leaves_the_band_and_is_named_among_many():
    generator = torch.Generator().manual_seed(0)
    samples, theta = torch.randn(200, 50, 8, generator=generator), torch.randn(200, 8, generator=generator)
    theta[:, 5] += 1
    result = sbc_from_samples(samples, theta)
    figure = calibration(result, expected_coverage(samples, theta))
    panel = visible(figure)[8]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["99.88 % if calibrated", "theta_5"]
    band = panel.collections[0].get_paths()[0].vertices
    curve = next(line for line in panel.lines if line.get_label() == "theta_5").get_ydata()
    assert curve.min() < band[:, 1].min()


def test_few_draws_still_give_level_histograms():
    """Ranks among three draws are spread over 20 bars."""
    theta = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    samples = torch.randn(2000, 3, 1, generator=torch.Generator().manual_seed(2))
    _band, *bars = visible(calibration(sbc_from_samples(samples, theta)))[0].patches
    heights = [bar.get_height() for bar in bars]
    assert len(heights) == 20
    assert min(heights) > 100 - 5 * 10


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_random_points(width, tmp_path):
    theta = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    samples = Normal(2, width).sample(50, theta, seed=1)
    result = tarp_from_samples(samples, theta, ("K_b", "gamma"))
    figure = random_points(result)
    assert titles(figure) == [f"random points: {result.kind}", "bias"]
    assert figure.get_suptitle().replace("\n", " ") == result.verdict
    assert [label.get_text() for label in visible(figure)[1].get_yticklabels()] == ["K_b", "gamma"]
    save_figure(figure, tmp_path / "t.pdf")
