"""Confidence sets of a measurement with unknown noise, whose p-values are known."""

import math

import pytest
import torch
import torch.distributions as td
from scipy.stats import chi2

import sbi_physics as sp
from sbi_physics.posterior.confidence import ConfidenceSets
from sbi_physics.posterior.statistics import posterior_statistic
from sbi_physics.store.models import read_model, write_model
from sbi_physics.train.config import TrainConfig

PARAMETERS = sp.Parameters(
    [sp.Parameter("mu", td.Uniform(-3.0, 3.0), unit="m"), sp.Parameter("sigma", td.Uniform(0.5, 2.0))]
)
QUICK = TrainConfig(epochs=10)


def simulate(theta, seed, factor=1.0):
    noise = torch.randn(len(theta), 1, generator=torch.Generator().manual_seed(seed))
    return theta[:, :1] + factor * theta[:, 1:] * noise


def statistic(theta, x):
    """Knows nothing of sigma."""
    return (x - theta[:, :1]).square().sum(-1)


def exact(theta, x):
    return torch.as_tensor(chi2.sf(((x[:, 0] - theta[:, 0]) / theta[:, 1]).double() ** 2, 1))


@pytest.fixture(scope="module")
def sets():
    theta = PARAMETERS.sample(30_000, seed=1)
    fit = ConfidenceSets(statistic, PARAMETERS, config=QUICK).fit
    return fit(theta, simulate(theta, 2), seed=3, progress=False)


def test_p_values(sets):
    theta = PARAMETERS.sample(3000, seed=4)
    x = simulate(theta, 5)
    found = sets.p_value(theta, x)
    off = (found - exact(theta, x)).abs()
    assert off.mean() < 0.01
    assert off.quantile(0.99) < 0.04
    # In the corners of the parameter space there is less to learn from.
    assert off.max() < 0.12
    # Not to know that the noise depends on theta would be far off.
    assert (torch.as_tensor(chi2.sf(statistic(theta, x).double(), 1)) - exact(theta, x)).abs().max() > 0.2
    assert sets.p_value(theta[0], x[0]).shape == ()
    torch.testing.assert_close(sets.p_value(theta[:5], x[0]), sets.p_value(theta[:5], x[:1].expand(5, 1)))
    assert torch.equal(sets.contains(theta, x, 0.9), found > 1 - 0.9)


def test_critical_values(sets):
    theta = torch.tensor([[0.0, 0.6], [1.0, 1.0], [-2.0, 1.8]])
    expected = torch.as_tensor(chi2.ppf(0.9, 1) * theta[:, 1].double().numpy() ** 2)
    torch.testing.assert_close(sets.critical_value(theta, 0.9), expected, rtol=0.06, atol=0)


def test_a_region(sets):
    """With sigma at most 2 the set of mu at 68.27 % is x +- 2, cut at the bound."""
    region = sets.region(torch.tensor([0.4]), math.erf(1 / math.sqrt(2)), seed=1)
    assert region.intervals[0].tolist() == pytest.approx([-1.6, 2.4], abs=0.15)
    assert region.intervals[1].tolist() == pytest.approx([0.5, 2.0], abs=0.02)
    assert (region.p_values > 1 - region.level).all()
    inside = (region.points["mu"] - 0.4).abs() < region.points["sigma"]
    assert inside.double().mean() > 0.97
    alone = region.select("mu")
    assert alone.points.names == ("mu",)
    torch.testing.assert_close(alone.intervals, region.intervals[:1])
    assert alone.verdict.startswith("68% confidence: mu in [-1.")
    assert "] m (" in alone.verdict
    grid = torch.tensor([[0.4, 1.0], [2.9, 0.6]])
    on_grid = sets.region(torch.tensor([0.4]), 0.9, grid=grid)
    assert on_grid.points.values.tolist() == grid[:1].tolist()
    assert on_grid.tried == 2


def test_an_empty_region(sets):
    region = sets.region(torch.tensor([30.0]), 0.9, n=500)
    assert region.verdict == "the 90% confidence set is empty at 2500 points: no theta agrees with x"
    assert region.intervals.isnan().all()


def test_a_parameter_of_interest(sets):
    """The largest p-value over sigma is that of the largest sigma."""
    at = torch.linspace(-2.5, 2.5, 6)
    found = sets.interest_p_value(at, torch.tensor([0.3]), "mu", n=64)
    worst = exact(torch.stack([at, torch.full_like(at, 2.0)], 1), torch.full((6, 1), 0.3))
    assert (found - worst).abs().max() < 0.04
    both = torch.tensor([[0.0, 1.0]])
    one = sets.interest_p_value(both, torch.tensor([0.3]), ["mu", "sigma"])
    torch.testing.assert_close(one, sets.p_value(both, torch.tensor([0.3])))


def test_coverage_over_the_parameter_space(sets):
    theta = PARAMETERS.sample(4000, seed=6)
    result = sets.coverage(theta, simulate(theta, 7), level=1e-3)
    assert result.passed, result.verdict
    assert result.names == ("mu", "sigma")
    # Simulations with more noise than those of the fit: the sets are too small.
    wrong = sets.coverage(theta, simulate(theta, 7, factor=1.3), level=1e-3)
    assert not wrong.passed
    assert wrong.verdict.startswith("does not cover everywhere")


def test_a_statistic_that_is_infinite_where_theta_is_impossible():
    theta = PARAMETERS.sample(2000, seed=1)
    x = simulate(theta, 2)

    def cut(theta, x):
        value = statistic(theta, x)
        return torch.where(value > 4, torch.inf, value)

    sets = ConfidenceSets(cut, PARAMETERS, config=TrainConfig(epochs=1)).fit(theta, x, progress=False)
    assert torch.isfinite(sets.p_value(theta, x)).all()


def test_same_seed_same_bytes():
    theta = PARAMETERS.sample(1000, seed=1)
    x, state = simulate(theta, 2), torch.random.get_rng_state()
    estimator = ConfidenceSets(statistic, PARAMETERS, config=TrainConfig(epochs=1))
    first, second, other = (estimator.fit(theta, x, seed=s, progress=False).p_value(theta, x) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (3.0, sp.UsageError, "statistic: expected a posterior"),
        (lambda t, x: t, sp.ShapeError, r"statistic: expected shape \(100,\), got \(100, 2\)"),
        (lambda t, x: 1.0, sp.ShapeError, "got float"),
        (lambda t, x: t[:, 0] * math.nan, sp.NonFiniteError, "expected numbers or plus infinity, got nan at theta"),
        (lambda t, x: 0 * t[:, 0], sp.UsageError, "expected one that varies"),
    ],
)
def test_wrong_statistics(wrong, error, message):
    theta = PARAMETERS.sample(100, seed=1)
    with pytest.raises(error, match=message):
        ConfidenceSets(wrong, PARAMETERS).fit(theta, simulate(theta, 2), progress=False)


def test_wrong_arguments(sets):
    x = torch.tensor([0.4])
    with pytest.raises(sp.SupportError, match="mu"):
        sets.p_value(torch.tensor([[4.0, 1.0]]), x)
    with pytest.raises(sp.ShapeError, match="x_obs"):
        sets.p_value(torch.tensor([[1.0, 1.0]]), torch.zeros(2))
    with pytest.raises(sp.ShapeError, match="equally many rows"):
        sets.p_value(torch.ones(3, 2), torch.zeros(2, 1))
    with pytest.raises(sp.UsageError, match="level: expected a probability"):
        sets.contains(torch.ones(1, 2), x, 68)
    with pytest.raises(sp.UsageError, match="expected one of mu, sigma; got 'tau'"):
        sets.interest_p_value(torch.zeros(2), x, "tau")


def test_a_posterior_brings_its_own_statistic_and_parameters(crude, uniform_pairs):
    theta, x = uniform_pairs
    given = ConfidenceSets(crude, config=QUICK).fit(theta, x, seed=3, progress=False)
    own = ConfidenceSets(posterior_statistic(crude), crude.parameters, config=QUICK)
    own = own.fit(theta, x, seed=3, progress=False)
    assert torch.equal(given.p_value(theta[:5], x[:5]), own.p_value(theta[:5], x[:5]))


def damaged(path, out, **changes):
    header, tensors = read_model(path)
    header = {**header, **{key: value for key, value in changes.items() if key in header}}
    write_model(out, {name: tensor for name, tensor in tensors.items() if name not in changes}, header)
    return out


def test_a_file_with_a_statistic_of_ones_own(sets, tmp_path):
    path = tmp_path / "sets.safetensors"
    sp.save(sets, path)
    again = sp.load(path, statistic=statistic, device="cpu")
    theta = PARAMETERS.sample(50, seed=6)
    x = simulate(theta, 7)
    assert torch.equal(again.p_value(theta, x), sets.p_value(theta, x))
    assert again.region(x[0], seed=1).verdict == sets.region(x[0], seed=1).verdict
    with pytest.raises(sp.UsageError, match="statistic: expected the function that it was built with"):
        sp.load(path)
    for wrong in ({"size": 3}, {"x_shape": None}, {"parameters": {}}, {"model.ranked": None}, {"posterior": 3}):
        with pytest.raises((sp.StoreError, sp.UsageError)) as caught:
            sp.load(damaged(path, tmp_path / "damaged.safetensors", **wrong), statistic=statistic)
        assert str(caught.value).startswith(str(tmp_path / "damaged.safetensors"))


@pytest.mark.parametrize("kind", ["npe", "nre"])
def test_a_file_with_the_posterior_whose_statistic_it_is(kind, tmp_path):
    theta = PARAMETERS.sample(400, seed=1)
    x = simulate(theta, 2)
    estimator = sp.NPE(PARAMETERS, config=TrainConfig(epochs=1), augment=False, transforms=1)
    estimator = estimator if kind == "npe" else sp.NRE(PARAMETERS, config=TrainConfig(epochs=1))
    posterior = estimator.fit(theta, x, progress=False)
    sets = ConfidenceSets(posterior, config=TrainConfig(epochs=1)).fit(theta, x, progress=False)
    path = tmp_path / "sets.safetensors"
    sets.save(path)
    again = sp.load(path, device="cpu")
    assert torch.equal(again.p_value(theta[:20], x[:20]), sets.p_value(theta[:20], x[:20]))
    with pytest.raises(sp.UsageError, match="statistic: it is in the file, expected None"):
        sp.load(path, statistic=statistic)
    with pytest.raises(sp.StoreError, match="posterior: expected a table, got 3"):
        sp.load(damaged(path, tmp_path / "damaged.safetensors", posterior=3))
    with pytest.raises(sp.StoreError, match="the header is damaged"):
        sp.load(damaged(path, tmp_path / "damaged.safetensors", posterior={"kind": "posterior"}))
