"""What tells a surrogate from its simulator: nothing where there is nothing, and what was planted where it was."""

import json
import math
import time

import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.diagnostics import response_and_resolution
from sbi_physics.surrogate.check import _energy_bins, check_surrogate
from sbi_physics.surrogate.surrogate_report import with_error
from sbi_physics.surrogate.timing import largest_batch, time_events

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


def check(surrogate, n=N, **options):
    theta = Cells().parameters.sample(n, seed=1)
    x = Cells()(theta, seed=2)
    how = {"features": features, "energy": energy, "classifier": FAST, "batches": (), "progress": False}
    return check_surrogate(surrogate, theta, x, **{**how, **options})


@pytest.fixture(scope="module")
def itself():
    return check(Cells(), simulator=Cells(), batches=(1, 100, 10_000))


def test_the_simulator_itself_passes_at_its_floor(itself):
    report = itself
    assert report.passed, report.verdicts
    assert report.events == N // 2
    assert abs(report.low_level.auc - 0.5) < 0.05
    assert report.verdict.startswith(
        "as good as the simulator at this sample size: 3000 generated events cannot be told"
    )
    assert report.failed == ()
    assert set(report.seconds) == {1, 100, 10_000}
    assert report.speed_up > 0


def test_two_percent_of_energy_are_noticed():
    report = check(Cells(scale=1.02))
    assert not report.passed
    assert "response" in report.failed
    assert "response" in report.verdict
    value, error = report.response.energy_scale
    assert value == pytest.approx(1.02, abs=4 * error)


def test_a_lost_mode_is_noticed():
    report = check(Cells(lost=True))
    assert not report.manifold.passed
    assert report.manifold.coverage < 0.7 * float(report.manifold.expected[3])
    assert report.high_level.auc > 0.7
    assert "modes" in report.verdict


def test_a_lost_dependence_is_noticed_by_the_correlations():
    """The first cells of other events: each cell alone is as it should be."""

    def shuffled(theta, *, seed):
        x = Cells()(theta, seed=seed)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**63))
        x[:, 0] = (x[:, 0] / theta[:, 0])[order] * theta[:, 0]
        return x

    report = check(
        shuffled, energy=None, features=lambda theta, x: {"first": x[:, 0] / theta[:, 0], "last": x[:, 2] / theta[:, 0]}
    )
    assert "correlations" in report.failed
    assert "histograms" not in report.failed
    assert set(report.correlations.worst[:2]) == {"first", "last"}
    assert "most first and last" in report.verdicts["correlations"]


def test_signed_weights_stand_for_another_density():
    """Early showers with weight 3/2, as many late ones with 1/2, then some with 1 and as many with -1 of each."""
    theta = Cells().parameters.sample(12_000, seed=1)
    x = Cells()(theta, seed=2)
    early = x[:, 0] > x[:, 2]
    minus = torch.rand(len(x), generator=torch.Generator().manual_seed(3)) < 0.1
    weights = torch.where(early, 1.5, 0.5) * torch.where(minus, -1.0, 1.0)

    class Tilted(Cells):
        def __call__(self, theta, *, seed):
            generator = torch.Generator().manual_seed(seed % 2**63)
            first = torch.rand(len(theta), 1, generator=generator) < 0.75
            return torch.where(first, Cells(lost=True)(theta, seed=seed), Cells(lost=False)(theta, seed=seed + 1))

    how = {
        "features": features,
        "energy": energy,
        "weights": weights,
        "classifier": FAST,
        "batches": (),
        "progress": False,
    }
    report = check_surrogate(Tilted(), theta, x, **how)
    assert report.passed, report.verdicts
    assert report.manifold is None
    assert report.left_out == {"modes": "neighbours of events have no weights"}
    assert "modes left out" in report.verdict
    twin = check_surrogate(Cells(), theta, x, **how)
    assert {"histograms", "high-level classifier"} <= set(twin.failed)
    with pytest.raises(sp.SupportError, match="half of the events, 6000, are by their weights worth"):
        check_surrogate(Cells(), theta, x, weights=torch.where(minus, -1.0, 0.15), progress=False)


def test_a_function_is_enough_and_a_number_that_never_varies_is_found():
    """No parameters, no features, no energy; one of the three numbers is stuck in what is generated."""

    def stuck(theta, *, seed):
        x = Cells()(theta, seed=seed)
        x[:, 1] = 1.0
        return x

    report = check(stuck, n=1000, features=None, energy=None)
    assert not report.passed
    assert report.separation.names == ("x[0]", "x[1]", "x[2]")
    assert report.separation.names[report.worst_features[0]] == "x[1]"
    assert report.response is None
    assert report.speed_up is None
    one = check(stuck, n=1000, features=lambda theta, x: {"sum": x.sum(1)}, energy=lambda theta, x: x.sum(1) - 1e4)
    assert one.correlations is None
    assert one.response is None
    assert "mean response above zero" in one.verdicts["response"]
    assert "expected 2 to 500 features, got 1" in one.verdicts["correlations"]
    with pytest.raises(sp.NonFiniteError, match="feature share"):
        check(stuck, n=1000, features=lambda theta, x: {"share": x[:, 0] / (x[:, 1] - 1)})


def test_energies_of_a_grid_have_a_bin_each_if_there_are_enough():
    few = np.repeat([1.0, 2.0, 4.0], 300)
    assert response_bins(few) == [300, 300, 300]
    # What is too rare joins the next bin, or the one before at the end.
    assert response_bins(np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [3, 300, 5, 400, 4])) == [303, 409]
    assert sum(response_bins(np.repeat([1.0, 2.0], [3, 900]))) == 903
    assert response_bins(np.full(500, 3.0)) == [500]
    smooth = response_bins(np.random.default_rng(0).uniform(1, 100, 2000))
    assert len(smooth) == 10
    assert min(smooth) >= 199
    assert len(response_bins(np.random.default_rng(0).uniform(1, 100, 450))) == 4


def response_bins(energy):
    """Events in each bin."""
    seen = energy * np.random.default_rng(1).normal(1, 0.1, (2, len(energy)))
    return response_and_resolution(energy, *seen, _energy_bins(energy, len(energy))).count.tolist()


@pytest.mark.slow
def test_a_perfect_surrogate_seldom_flunks():
    """Of 40 at the level 5 %, two are expected at most; seven have a probability below 1 %."""
    fast = {"hidden_features": 8, "epochs": 1}
    reports = []
    for seed in range(40):
        theta = Cells().parameters.sample(1000, seed=3 * seed)
        x = Cells()(theta, seed=3 * seed + 1)
        how = {"features": features, "energy": energy, "classifier": fast, "batches": (), "progress": False}
        reports.append(check_surrogate(Cells(), theta, x, level=0.05, seed=seed, **how))
    assert sum(not report.passed for report in reports) < 7, [report.failed for report in reports]


def test_numbers_for_people_and_for_programs(itself):
    report = itself
    table = report.to_dict()
    assert table["passed"] is report.passed
    assert table["low_level"]["auc"] == report.low_level.auc
    assert set(table["separation"]) == {"response", "first share", "last share"}
    rows = report.rows()
    assert all(len(row) == 3 for row in rows)
    assert sum(row[0].startswith("separation power") for row in rows) == 3
    assert len(report.rows(features=1)) == len(rows) - 4
    json.dumps(table)
    assert "ComparedEvents" not in repr(report)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (1.02013, 0.00112, "1.0201 ± 0.0011"),
        (123.4, 12.0, "123 ± 12"),
        (0.5, math.nan, "0.5"),
        (2.5e-7, 1.25e-8, "(2.50 ± 0.12)e-7"),
        (0.0, 0.0, "0"),
    ],
)
def test_numbers_have_two_digits_of_their_error(value, error, words):
    assert with_error(value, error) == words


def test_times_have_errors_and_budgets():
    theta = torch.ones(10, 1)
    found = time_events(lambda rows, seed: time.sleep(0.002 * len(rows)), theta, 5)
    assert found.seconds >= 0.002
    assert found.error >= 0
    slow = largest_batch(lambda rows, seed: time.sleep(0.03 * len(rows)), theta, (1, 2, 1000))
    assert slow.batch == 2


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
