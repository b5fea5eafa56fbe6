"""What tells a surrogate from its simulator: nothing where there is nothing, and what was planted where it was."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.surrogate.check import check_surrogate

N = 6000
FAST = {"hidden_features": 32, "epochs": 8}


class Cells:
    """A little calorimeter of three cells that share an energy with noise."""

    name = "cells"
    x_shape = (3,)

    def __init__(self, scale=1.0, lost=None):
        self.parameters = sp.Parameters([sp.Parameter("energy", LogUniform(1.0, 100.0), "GeV")])
        self.scale, self.lost = scale, lost

    def __call__(self, theta, *, seed):
        generator = torch.Generator().manual_seed(seed % 2**63)
        noise = torch.randn(len(theta), 3, generator=generator)
        early = torch.rand(len(theta), generator=generator) < 0.5
        if self.lost is not None:
            early = torch.full_like(early, self.lost)
        shares = torch.where(early[:, None], torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.7]))
        total = self.scale * theta * (1 + 0.05 * noise[:, :1])
        shares = (shares * (1 + 0.1 * noise)).clamp(min=1e-3)
        return total * shares / shares.sum(1, keepdim=True)


def features(theta, x):
    total = x.sum(1)
    return {"response": total / theta[:, 0], "first share": x[:, 0] / total, "last share": x[:, 2] / total}


def energy(theta, x):
    return x.sum(1)


def check(surrogate, n=N):
    theta = surrogate.parameters.sample(n, seed=1)
    x = Cells()(theta, seed=2)
    return check_surrogate(
        surrogate, theta, x, features=features, energy=energy, simulator=Cells(), classifier=FAST, progress=False
    )


def test_the_simulator_itself_passes_at_its_floor():
    report = check(Cells())
    assert report.passed, report.verdicts
    assert report.events == N // 2
    assert abs(report.low_level.auc - 0.5) < 0.05
    assert "cannot be told" in report.verdict
    assert set(report.seconds) == {1, 100, 10_000}
    assert report.speed_up > 0


def test_two_percent_of_energy_are_noticed():
    report = check(Cells(scale=1.02))
    assert not report.passed
    assert not report.response.passed(0.0, 0.0)
    assert "response" in report.verdict


def test_a_lost_mode_is_noticed():
    report = check(Cells(lost=True))
    assert not report.manifold.passed
    assert report.manifold.coverage < 0.7 * float(report.manifold.expected[3])
    assert report.high_level.auc > 0.7
    assert "modes" in report.verdict


def test_numbers_for_people_and_for_programs():
    report = check(Cells())
    table = report.to_dict()
    assert table["passed"] is report.passed
    assert table["low_level"]["auc"] == report.low_level.auc
    assert set(table["separation"]) == {"response", "first share", "last share"}
    rows = report.rows()
    assert all(len(row) == 3 for row in rows)


def test_a_surrogate_checks_itself():
    theta = Cells().parameters.sample(3000, seed=1)
    crude = sp.Surrogate("mixture", prior=Cells().parameters, config={"epochs": 2})
    crude.fit(theta, Cells()(theta, seed=2), progress=False)
    fresh = Cells().parameters.sample(2000, seed=3)
    report = crude.check(fresh, Cells()(fresh, seed=4), classifier=FAST, progress=False)
    assert not report.passed
    assert set(report.to_dict()["separation"]) == {"x[0]", "x[1]", "x[2]"}


def test_too_few_events_and_other_outputs_are_refused():
    theta = Cells().parameters.sample(100, seed=1)
    with pytest.raises(sp.ShapeError, match="at least 800 events, got 100"):
        check_surrogate(Cells(), theta, Cells()(theta, seed=2), progress=False)
    theta = Cells().parameters.sample(1000, seed=1)
    with pytest.raises(sp.ShapeError, match=r"other outputs than these of shape \(2,\)"):
        check_surrogate(Cells(), theta, Cells()(theta, seed=2)[:, :2], progress=False)
