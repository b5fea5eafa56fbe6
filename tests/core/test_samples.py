"""Draws, their weights, and the libraries they go to."""

import math

import numpy as np
import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.samples import Cost, Samples

LEVELS = [0.0, 0.05, 0.16, 0.5, 0.84, 0.999, 1.0]


def draws(n=400, weights=False, batch=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if batch is None else (batch, n)
    values = torch.randn(*shape, 2, generator=generator)
    log_weights = 2 * torch.randn(*shape, generator=generator) - 300 if weights else None
    return Samples(values, ("a", "b"), ("m / s", ""), log_weights=log_weights)


def test_equal_weights_give_the_quantiles_of_numpy():
    samples = draws()
    expected = np.quantile(samples.to_numpy().astype(float), LEVELS, axis=0, method="hazen")
    torch.testing.assert_close(samples.quantile(LEVELS), torch.as_tensor(expected))
    assert samples.quantile(0.5).shape == (2,)
    torch.testing.assert_close(samples.quantile(0.5), torch.as_tensor(expected[3]))
    torch.testing.assert_close(samples.quantile(1), samples.values.double().amax(0))


def test_weighted_quantiles_by_brute_force():
    samples = draws(50, weights=True)
    weights = torch.softmax(samples.log_weights.double(), 0).numpy()
    for i, name in enumerate(samples.names):
        order = np.argsort(samples[name].numpy())
        position = np.cumsum(weights[order]) - weights[order] / 2
        expected = np.interp(LEVELS, position, samples[name].double().numpy()[order])
        np.testing.assert_allclose(samples.quantile(LEVELS)[:, i].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_rows_without_weight_do_not_count():
    samples = draws(30)
    keep = torch.arange(30) % 3 == 0
    log_weights = torch.where(keep, 0.0, -math.inf)
    masked = Samples(samples.values, samples.names, log_weights=log_weights)
    few = Samples(samples.values[keep], samples.names)
    torch.testing.assert_close(masked.quantile([0.2, 0.5, 0.8]), few.quantile([0.2, 0.5, 0.8]))
    assert float(masked.effective_sample_size) == pytest.approx(10)


def test_quantiles_of_a_normal():
    n = 40_000
    samples = draws(n)
    for q, z in ((0.5, 0.0), (0.15865, -1.0), (0.97725, 2.0)):
        sigma = math.sqrt(q * (1 - q) / n) / math.exp(td.Normal(0.0, 1.0).log_prob(torch.tensor(z)))
        assert float((samples.quantile(q) - z).abs().max()) < 4 * sigma


def test_quantile_of_one_draw():
    assert Samples(torch.tensor([[3.0]]), ("a",)).quantile([0.1, 0.9]).tolist() == [[3.0], [3.0]]


@pytest.mark.parametrize("weights", [False, True])
def test_separate_observations_are_treated_alone(weights):
    samples = draws(60, weights=weights, batch=3)
    assert len(samples) == 60
    assert samples["b"].shape == (3, 60)
    assert samples.effective_sample_size.shape == (3,)
    assert samples.quantile(0.5).shape == (3, 2)
    assert samples.quantile([0.1, 0.2]).shape == (3, 2, 2)
    assert samples.resample(7, seed=1).values.shape == (3, 7, 2)
    for b in range(3):
        one = samples.observation(b)
        torch.testing.assert_close(samples.quantile(LEVELS)[b], one.quantile(LEVELS))
        torch.testing.assert_close(samples.weights[b], one.weights)
        torch.testing.assert_close(samples.effective_sample_size[b], one.effective_sample_size)
    rows = samples.resample(20, seed=2).values
    for b in range(3):
        assert all(bool((samples.values[b] == row).all(-1).any()) for row in rows[b])


def test_weights_sum_to_one_and_ignore_a_constant():
    samples = draws(weights=True)
    moved = Samples(samples.values, samples.names, log_weights=samples.log_weights.double() + 1000)
    assert samples.weights.dtype == torch.float64
    assert float(samples.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(moved.weights, samples.weights)
    torch.testing.assert_close(draws(4).weights, torch.full((4,), 0.25, dtype=torch.float64))


def test_effective_sample_size():
    assert float(draws(123).effective_sample_size) == pytest.approx(123)
    log_weights = torch.tensor([0.0, 0.0, -math.inf, -math.inf])
    assert float(Samples(torch.zeros(4, 1), ("a",), log_weights=log_weights).effective_sample_size) == pytest.approx(2)
    weights = torch.tensor([1.0, 2.0, 3.0])
    samples = Samples(torch.zeros(3, 1), ("a",), log_weights=weights.log())
    assert float(samples.effective_sample_size) == pytest.approx(36 / 14)


def test_resampling_follows_the_weights():
    values = torch.arange(4.0).unsqueeze(-1)
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    samples = Samples(values, ("a",), log_weights=probabilities.log())
    n = 20_000
    rows = samples.resample(n, seed=3)
    assert rows.log_weights is None
    share = torch.bincount(rows["a"].long(), minlength=4) / n
    sigma = torch.sqrt(probabilities * (1 - probabilities) / n)
    assert float(((share - probabilities) / sigma).abs().max()) < 4


def test_resampling_without_replacement_gives_distinct_rows():
    samples = draws(200, weights=True)
    rows = samples.resample(100, seed=1, replace=False)
    assert len(torch.unique(rows.values, dim=0)) == 100
    everything = draws(50).resample(50, replace=False)
    assert sorted(everything["a"].tolist()) == sorted(draws(50)["a"].tolist())
    # The first row drawn has the probabilities of the weights; with replacement each has.
    values = torch.arange(3.0).unsqueeze(-1)
    log_weights = torch.tensor([0.7, 0.2, 0.1]).log()
    first = [
        Samples(values, ("a",), log_weights=log_weights).resample(1, seed=seed, replace=False)["a"].item()
        for seed in range(2000)
    ]
    assert np.mean(np.array(first) == 0) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 2000))


def test_resampling_has_seeds_and_limits():
    samples = draws(weights=True)
    assert torch.equal(samples.resample(9, seed=1).values, samples.resample(9, seed=1).values)
    assert not torch.equal(samples.resample(9, seed=1).values, samples.resample(9, seed=2).values)
    dead = Samples(torch.zeros(4, 1), ("a",), log_weights=torch.tensor([0.0, 0.0, -math.inf, -math.inf]))
    with pytest.raises(UsageError, match="at most 2 distinct rows, got 3"):
        dead.resample(3, replace=False)
    with pytest.raises(UsageError, match="n: expected an integer"):
        samples.resample(0)


def test_to_qtable_has_units():
    from astropy import units

    table = draws(20, weights=True).to_qtable()
    assert table.colnames == ["a", "b", "log_weight"]
    assert table["a"].unit == units.m / units.s
    assert table["a"].to(units.km / units.s).value[0] == pytest.approx(draws(20)["a"][0].item() / 1000)
    assert not hasattr(table["b"], "unit") or table["b"].unit is None
    np.testing.assert_array_equal(table["b"], draws(20, weights=True)["b"].numpy())
    assert draws(20).to_qtable().colnames == ["a", "b"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_to_arviz():
    pytest.importorskip("arviz")
    samples = draws(20)
    data = samples.to_arviz()
    assert set(data.posterior.data_vars) == {"a", "b"}
    assert data.posterior["a"].shape == (1, 20)
    np.testing.assert_array_equal(data.posterior["a"].values[0], samples["a"].numpy())
    chains = Samples(samples.values, samples.names, diagnostics={"chains": 4}).to_arviz()
    assert chains.posterior["a"].shape == (4, 5)
    np.testing.assert_array_equal(chains.posterior["a"].values.ravel(), samples["a"].numpy())
    weighted = draws(20, weights=True)
    equal = weighted.to_arviz().posterior["a"].values[0]
    assert equal.shape == (20,)
    assert set(equal.tolist()) <= set(weighted["a"].tolist())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resampled_chains_are_no_chains():
    """Rows drawn at random from chains are in no order: R-hat between groups of them would mean nothing."""
    pytest.importorskip("arviz")
    chains = Samples(draws(20).values, ("a", "b"), diagnostics={"chains": 4, "acceptance": 0.5})
    mixed = chains.resample(8)
    assert mixed.diagnostics == {"acceptance": 0.5}
    assert mixed.to_arviz().posterior["a"].shape == (1, 8)


def test_columns_names_and_cost():
    parameters = Parameters([Parameter("K", td.Normal(0.0, 1.0), unit="m / s", label="$K$")])
    samples = Samples.of(torch.zeros(5, 1), parameters, cost=Cost(1.5, 2, 3), diagnostics={"efficiency": 0.5})
    assert (samples.names, samples.units, samples.labels) == (("K",), ("m / s",), ("$K$",))
    assert len(samples) == 5
    assert samples["K"].shape == (5,)
    assert samples.resample(2).cost == Cost(1.5, 2, 3)
    assert samples.to_numpy().shape == (5, 1)
    bare = Samples(torch.zeros(5, 2), ["a", "b"])
    assert (bare.units, bare.labels) == (("", ""), ("a", "b"))


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match=r"values: expected \(n, 2\) or \(B, n, 2\), got \(4, 3\)"):
        Samples(torch.zeros(4, 3), ("a", "b"))
    with pytest.raises(ShapeError, match="values: expected"):
        Samples(torch.zeros(2), ("a", "b"))
    with pytest.raises(ShapeError, match=r"log_weights: expected \(4,\), got \(3,\)"):
        Samples(torch.zeros(4, 2), ("a", "b"), log_weights=torch.zeros(3))
    with pytest.raises(UsageError, match="expected one of a, b; got 'c'"):
        draws()["c"]
    for level in (-0.1, 1.1, [0.5, 2.0], math.nan):
        with pytest.raises(UsageError, match=r"q: expected probabilities in \[0, 1\]"):
            draws().quantile(level)
    with pytest.raises(ShapeError, match="single observation"):
        draws().observation(0)
    for convert in (draws(batch=2).to_qtable, draws(batch=2).to_arviz):
        with pytest.raises(ShapeError, match="samples of one observation"):
            _ignoring_imports(convert)


def _ignoring_imports(call):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def test_marginals_by_name():
    samples = draws(weights=True, batch=3)
    one = samples.select("b")
    assert (one.names, one.units, one.labels) == (("b",), ("",), ("b",))
    assert torch.equal(one.values[..., 0], samples["b"])
    torch.testing.assert_close(one.quantile(0.3), samples.quantile(0.3)[:, 1:])
    both = samples.select(["b", "a"])
    assert both.units == ("", "m / s")
    assert torch.equal(both["a"], samples["a"])
    for names, message in (("z", "expected one of a, b; got 'z'"), ([], "one or more"), (["a", "a"], "different")):
        with pytest.raises(UsageError, match=message):
            samples.select(names)


def test_arrays_become_tensors():
    values = np.arange(6.0).reshape(3, 2)
    samples = Samples(values, ("a", "b"))
    assert torch.equal(samples.values, torch.from_numpy(values))
    parameters = Parameters([Parameter("a", td.Normal(0.0, 1.0), unit="m"), Parameter("b", td.Normal(0.0, 1.0))])
    assert Samples.of(values, parameters).units == ("m", "")
    with pytest.raises(UsageError, match=r"expected names, got Parameters; write Samples\.of"):
        Samples(values, parameters)
    with pytest.raises(UsageError, match="values: expected an array of numbers, got str"):
        Samples("abc", ("a", "b"))


def angles(degrees, weights=None):
    bounds = torch.tensor([[0.0, 180.0], [-torch.inf, torch.inf]])
    values = torch.stack([torch.as_tensor(degrees) % 180, torch.as_tensor(degrees)], -1)
    return Samples(values, ("psi", "b"), ("deg", ""), log_weights=weights, bounds=bounds, periodic=(True, False))


@pytest.mark.parametrize("centre", [0.0, 1.0, 45.0, 90.0, 179.0])
def test_quantiles_of_an_angle_are_those_about_it_wherever_the_cut(centre):
    draws = centre + 4 * torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, middle, high = angles(draws).quantile([0.16, 0.5, 0.84])[:, 0].tolist()
    # On the turn on which their middle lies within the bounds.
    turns = round((middle - centre) / 180) * 180
    expected = torch.quantile(draws, torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)) + turns
    torch.testing.assert_close(torch.tensor([low, middle, high]).double(), expected, atol=0.02, rtol=0)
    assert high - low < 10
    # Without the flag the interval holds all but the posterior.
    plain = Samples(angles(draws).values, ("psi", "b")).quantile([0.16, 0.84])[:, 0]
    assert (float(plain[1] - plain[0]) > 100) == (centre in (0.0, 1.0, 179.0))


def test_weights_and_batches_of_angles():
    draws = torch.cat([torch.full((500,), 2.0), torch.full((500,), 178.0), torch.full((10,), 90.0)])
    weights = torch.where(draws == 90, -50.0, 0.0)
    weights[draws == 178] += math.log(3.0)
    assert angles(draws, weights).quantile(0.5)[0].item() in (178.0, -2.0)
    batch = torch.stack([angles(draws).values, angles(draws + 40).values])
    both = Samples(batch, ("psi", "b"), bounds=angles(draws).bounds, periodic=(True, False))
    assert torch.equal(both.quantile([0.2, 0.8])[1], both.observation(1).quantile([0.2, 0.8]))
    chosen = both.observation(0).select(["b", "psi"])
    assert chosen.periodic == (False, True)
    assert chosen.resample(50, seed=0).periodic == (False, True)


def test_angles_come_back_from_a_file(tmp_path):
    sp.save(angles(torch.linspace(170.0, 190.0, 50)), tmp_path / "d.h5")
    again = sp.load(tmp_path / "d.h5")
    assert again.periodic == (True, False)
    assert math.sin(math.radians(2 * float(again.quantile(0.5)[0]))) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ShapeError, match="periodic: expected 2 flags, and bounds, got 1"):
        Samples(torch.zeros(3, 2), ("a", "b"), periodic=(True,))
