"""Features that many events share: there and back, and templates that data cannot be told from."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import sbi_physics as sp
from sbi_physics.anomaly.conditional import DensitySettings, MassConditional
from sbi_physics.anomaly.dequantise import Dequantise
from sbi_physics.anomaly.events import Events

RANDOM = np.random.default_rng(3)
N = 6000
REAL = RANDOM.normal(size=N)
COLUMNS = {
    "multiplicity": RANDOM.poisson(2.0, N).astype(float),
    "tag": (RANDOM.random(N) < 0.02).astype(float),
    "a default": np.where(RANDOM.random(N) < 0.3, -99.0, RANDOM.exponential(size=N)),
    "zero inside": np.where(RANDOM.random(N) < 0.1, 0.0, REAL),
    "few values": RANDOM.choice([-1.5, 0.0, 7.0], N),
    "real": REAL,
    "rounded": np.round(REAL, 3),
}


def features(*names):
    return torch.as_tensor(np.stack([COLUMNS[name] for name in names], 1))


@pytest.mark.parametrize("name", COLUMNS)
def test_there_and_back(name):
    x = features(name, "real")
    maps = Dequantise().fit(x)
    made = maps.forward(x)
    torch.testing.assert_close(maps.inverse(made), x)
    assert (0 in maps.unchanged) == (name in ("real", "rounded"))
    assert 1 in maps.unchanged
    if name not in ("real", "rounded"):
        assert len(made[:, 0].unique()) == N
    # Whatever else is looked at beside it.
    some = torch.randperm(N)[:100]
    assert torch.equal(maps.forward(x[some]), made[some])
    # Whatever a density makes, its values are of the column.
    anything = torch.linspace(float(made[:, 0].min()) - 3, float(made[:, 0].max()) + 3, 999, dtype=torch.float64)
    back = maps.inverse(torch.stack([anything, anything], 1))[:, 0]
    if name in ("multiplicity", "tag", "few values"):
        assert set(back.tolist()) <= set(COLUMNS[name].tolist())
    assert bool((back.diff() >= 0).all())


def test_the_noise_is_uniform_and_of_its_own_in_each_column():
    x = features("multiplicity", "tag", "real")
    made = Dequantise().fit(x).forward(x)
    first, second = ((made[:, i] % 1).numpy() for i in (0, 1))
    assert kstest(first, "uniform").pvalue > 1e-3
    assert kstest(second, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / N**0.5
    assert abs(np.corrcoef(first, REAL)[0, 1]) < 4 / N**0.5


@pytest.mark.parametrize("names", [("multiplicity", "real"), ("a default", "zero inside")])
def test_a_template_has_the_values_of_the_data(names, monkeypatch):
    mass = torch.as_tensor(RANDOM.uniform(2.0, 5.0, N))
    events = Events(features(*names), mass, torch.ones(N, dtype=torch.float64))

    def told():
        small = {"transforms": 3, "hidden_features": 32, "blocks": 1}
        settings = DensitySettings(options=small, config={"epochs": 15})
        density = MassConditional(settings).fit(events, events.features, seed=1, progress=False, description="")
        template = density.sample(mass, seed=2)
        return sp.diagnostics.classifier_auc(events.features, template, kind="trees", seed=0).auc

    assert told() < 0.53
    monkeypatch.setattr("sbi_physics.anomaly.dequantise._SHARE", 2.0)
    assert told() > 0.6
