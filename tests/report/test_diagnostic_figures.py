import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.diagnostics import lc2st, learning_curve, misspecification, predictive_check
from sbi_physics.report.diagnostic_figures import learning, local_test, predictive, reach
from sbi_physics.report.figures import save_figure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(figure, path, verdict):
    save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle().replace("\n", " ") == verdict
    assert plt.get_fignums() == []
    return [axis for axis in figure.axes if axis.axison]


@pytest.mark.parametrize("dims", [1, 4])
def test_local_test(dims, tmp_path):
    class Prior:
        def sample(self, n, x_obs, *, seed):
            return 0.5 * normal(len(x_obs), n, dims, seed=seed % 2**31)

    theta = normal(200, dims)
    result = lc2st(Prior(), theta, theta, torch.zeros(2, dims), n=50, draws=8, exchanges=99)
    axes = check(local_test(result, 1), tmp_path / "l.png", result.verdicts[1])
    assert [axis.get_xlabel() for axis in axes] == ["classifier statistic t", *[f"theta_{i}" for i in range(dims)]]
    with pytest.raises(sp.UsageError, match="observation: expected a number from 0 to 1, got 2"):
        local_test(result, 2)


@pytest.mark.parametrize("entries", [1, 5, 200])
def test_predictive(entries, tmp_path):
    def simulator(theta, seed):
        return theta + normal(len(theta), entries, seed=seed % 2**31)

    x_obs = normal(entries, seed=3)
    x_obs[0] = 8.0
    result = predictive_check(torch.zeros(400, 1), simulator, x_obs, n=400)
    left, right = check(predictive(result), tmp_path / "p.png", result.verdict)
    assert left.texts[0].get_text() == result.names[0]
    assert right.get_xlabel() == "Mahalanobis distance"


def test_predictive_with_missing_and_constant_entries(tmp_path):
    def simulator(theta, seed):
        return torch.cat([normal(len(theta), 3, seed=seed % 2**31), torch.ones(len(theta), 1)], 1)

    result = predictive_check(torch.zeros(400, 1), simulator, torch.tensor([0.0, torch.nan, 1.0, 2.0]), n=400)
    check(predictive(result), tmp_path / "p.png", result.verdict)
    result = predictive_check(torch.zeros(400, 1), lambda t, seed: torch.ones(400, 2), torch.tensor([2.0, 3.0]), n=400)
    check(predictive(result), tmp_path / "q.png", result.verdict)


@pytest.mark.parametrize("x_obs", [torch.zeros(3), torch.full((3,), 50.0), normal(7, 3, seed=1)])
def test_reach(x_obs, tmp_path):
    result = misspecification(normal(1000, 3), x_obs)
    axes = check(reach(result), tmp_path / "r.png", result.verdict)
    assert len(axes) == 3
    assert len(axes[0].get_legend().get_texts()) == 1 + min(5, len(result.p_values))


def test_reach_of_what_is_impossible(tmp_path):
    result = misspecification(torch.ones(1000, 2), torch.tensor([1.0, 2.0]))
    assert math.isinf(float(result.distance))
    axes = check(reach(result), tmp_path / "r.png", result.verdict)
    low, high = axes[0].get_xlim()
    assert low < axes[0].lines[0].get_xdata()[0] <= high


@pytest.mark.parametrize("steep", [True, False])
def test_learning(steep, tmp_path):
    class Fitted:
        def __init__(self, n):
            self.value = -100.0 / n if steep else 0.0

        def log_prob(self, theta, x):
            return theta[:, 0] + self.value

    theta = normal(1000, 1)
    result = learning_curve(lambda theta, x, seed: Fitted(len(theta)), theta, theta)
    (axis,) = check(learning(result), tmp_path / "l.png", result.verdict)
    entries = [text.get_text() for text in axis.get_legend().get_texts()]
    assert ("its limit" in entries) == steep
    assert np.isclose(axis.get_lines()[0].get_xdata()[-1], 900)
