"""What is far from the simulations is told once and in words; what is one more of them is not."""

import logging
import re

import pytest
import torch

import sbi_physics as sp
from sbi_physics.models.embedding.packing import Packing
from sbi_physics.posterior.simulated import SimulatedCloud
from sbi_physics.store.models import read_model, write_model
from simulators.bernoulli_glm import BernoulliGLM
from simulators.gaussian_linear import GaussianLinear
from simulators.lotka_volterra import LotkaVolterra
from simulators.oscillator import DampedOscillator
from simulators.radial_velocity import k2_24
from simulators.sir import SIR
from simulators.slcp import SLCP
from simulators.two_moons import TwoMoons

SIMULATORS = (GaussianLinear, LotkaVolterra, DampedOscillator, k2_24, SIR, SLCP, TwoMoons)
LOGGER = "sbi_physics.posterior.simulated"


def simulations(simulator, n, seed):
    return simulator(simulator.parameters.sample(n, seed=seed), seed=seed + 1)


def correlated(n, seed=0):
    """Two observables of correlation 0.995, and one of its own."""
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return torch.stack([noise[:, 0], noise[:, 0] + 0.1 * noise[:, 1], 5 + 3 * noise[:, 2]], 1)


def told(caplog, cloud, x, packing=None):
    """The warnings that an observation gives."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        cloud.warn(x, packing)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("make", SIMULATORS)
def test_one_more_simulation_is_hardly_ever_far(make):
    """Beyond the farthest of 2,000 is 1 in 1,000 by two measures, without the margin; 2 of 2,000 and three sigma."""
    simulator = make()
    cloud = SimulatedCloud.fit(simulations(simulator, 4000, 1), seed=0)
    assert int(cloud.far(simulations(simulator, 2000, 3)).sum()) <= 6


@pytest.mark.parametrize("make", [BernoulliGLM, GaussianLinear, TwoMoons, k2_24])
def test_ten_standard_deviations_in_one_observable_are_far(make):
    simulator = make()
    x = simulations(simulator, 2000, 1)
    cloud = SimulatedCloud.fit(x, seed=0)
    rows = simulations(simulator, 50, 3)
    columns = torch.arange(50) % rows.shape[1]
    rows[torch.arange(50), columns] += 10 * x.std(0)[columns]
    assert int(cloud.far(rows).sum()) >= 40


def test_a_combination_that_no_simulation_has_is_far(caplog):
    cloud = SimulatedCloud.fit(correlated(2000), seed=0)
    assert not told(caplog, cloud, torch.tensor([[1.5, 1.4, 5.0]]))
    (message,) = told(caplog, cloud, torch.tensor([[1.5, -1.5, 5.0]]))
    assert message.startswith("x_obs: farther from the simulations than any of them: ")
    assert "x[1]" in message or "x[0]" in message
    assert "x[2]" not in message
    assert "sp.diagnostics.misspecification" in message


def test_the_message_says_how_far_and_comes_once(caplog):
    cloud = SimulatedCloud.fit(correlated(2000), seed=0)
    x = torch.tensor([[0.0, 0.0, 95.0]])
    (message,) = told(caplog, cloud, x)
    # 90 from the mean of 5, in standard deviations of 3.
    assert re.search(r"at a distance of (29|30|31)\S* where the farthest of 1,000 is at \d", message) or re.search(
        r"x\[2\] is \+(29|30|31)\S* standard deviations from what .* none of 1,000 is beyond \d", message
    )
    assert not told(caplog, cloud, x)
    assert told(caplog, cloud, x + 1)


def test_of_many_observations_the_far_ones_are_named(caplog):
    cloud = SimulatedCloud.fit(correlated(2000), seed=0)
    x = correlated(50, seed=1)
    assert not told(caplog, cloud, x)
    x[[3, 7, 11, 30]] += 100.0
    (message,) = told(caplog, cloud, x)
    assert "4 of 50 observations, number 3 (" in message
    assert "1 more" in message
    assert not told(caplog, cloud, x[3:4].expand(100, -1))
    (message,) = told(caplog, cloud, x[3:4].expand(100, -1) + 1)
    assert "observations" not in message.partition(". The posterior")[0]


def test_what_never_varies_must_not_differ(caplog):
    x = torch.cat([correlated(500), torch.full((500, 1), 2.0)], 1)
    cloud = SimulatedCloud.fit(x, seed=0)
    assert not told(caplog, cloud, x[:1])
    assert "x[3] differs from what all simulations have in common" in told(caplog, cloud, x[:1] + 1)[0]


def test_missing_entries_say_nothing_and_the_others_do(caplog):
    simulator = DampedOscillator()
    cloud = SimulatedCloud.fit(simulations(simulator, 2000, 1), seed=0)
    x = simulations(simulator, 1, 3)
    x[0, 10:20] = torch.nan
    assert not told(caplog, cloud, x)
    x[0, 30] = torch.tensor([7.5, 40.0])
    assert "x[30, 1]" in told(caplog, cloud, x)[0]


def test_named_observations_are_named(caplog):
    packing = Packing({"spectrum": (2,), "count": (1,)})
    cloud = SimulatedCloud.fit(correlated(500), seed=0)
    assert "count" in told(caplog, cloud, torch.tensor([[0.0, 0.0, 95.0]]), packing)[0]


def test_many_observables_are_taken_without_their_correlations(caplog):
    x = torch.randn(300, 2000, generator=torch.Generator().manual_seed(1))
    cloud = SimulatedCloud.fit(x, seed=0)
    assert sum(tensor.numel() for tensor in cloud.tensors().values()) < 10_000
    fresh = torch.randn(100, 2000, generator=torch.Generator().manual_seed(2))
    assert not bool(cloud.far(fresh).any())
    fresh[0, 1234] = 15.0
    assert "x[1234]" in told(caplog, cloud, fresh[:1])[0]


def test_with_few_simulations_nothing_is_said():
    assert SimulatedCloud.fit(correlated(99), seed=0) is None
    assert SimulatedCloud.fit(correlated(100), seed=0) is not None


def test_it_travels_with_the_file(crude, uniform_pairs, tmp_path, caplog):
    crude.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st")
    x = torch.tensor([50.0, 0.0])
    for posterior in (crude, loaded):
        caplog.clear()
        posterior.sample(3, x)
        posterior.log_prob(torch.zeros(2), x)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    rows = uniform_pairs[1][:20].double().numpy()
    assert (crude.simulated.measures(rows) == loaded.simulated.measures(rows)).all()


def test_files_from_before_have_none(crude, tmp_path, caplog):
    header, tensors = read_model(_saved(crude, tmp_path))
    del header["schema"]
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("simulated.")}
    assert len(old) < len(tensors)
    write_model(tmp_path / "old.st", old, header)
    loaded = sp.load(tmp_path / "old.st")
    assert loaded.simulated is None
    assert loaded.sample(3, torch.tensor([50.0, 0.0])).values.shape == (3, 2)
    assert not caplog.records


def _saved(posterior, folder):
    posterior.save(folder / "p.st")
    return folder / "p.st"
