"""Draws handed to other libraries, which must find in them what was put in.

Tested elsewhere: ArviZ and columns with units in memory (``core/test_samples.py``), pictures by corner
(``report/test_figures.py``).
"""

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from astropy import units
from astropy.table import QTable

import sbi_physics as sp
from sbi_physics.core.errors import ShapeError
from sbi_physics.store.samples import read_samples, write_samples

PARAMETERS = sp.Parameters(
    [
        sp.Parameter("K", td.HalfNormal(2.0), unit="m / s", label="$K_b$"),
        sp.Parameter("e", td.Uniform(0.0, 1.0)),
        sp.Parameter("trend", td.Normal(0.0, 1.0), unit="m / (s d)"),
    ]
)
N = 20_000


def prior_draws(n=N, **more):
    return sp.Samples.of(PARAMETERS.sample(n, seed=1), PARAMETERS, **more)


class TestGetDist:
    def test_names_labels_and_ranges(self):
        chains = prior_draws().to_getdist()
        assert chains.getParamNames().list() == ["K", "e", "trend"]
        assert chains.getParamNames().labels()[1] == "e"
        assert "K_b" in chains.getParamNames().labels()[0]
        assert r"\mathrm{m" in chains.getParamNames().labels()[0]
        assert "$" not in "".join(chains.getParamNames().labels())
        assert (chains.ranges.getLower("K"), chains.ranges.getUpper("K")) == (0.0, None)
        assert (chains.ranges.getLower("e"), chains.ranges.getUpper("e")) == (0.0, 1.0)
        assert (chains.ranges.getLower("trend"), chains.ranges.getUpper("trend")) == (None, None)

    def test_densities_reach_the_bounds(self):
        """Of a uniform density, a kernel that knew of no bound would show half at the edge."""
        density = prior_draws().to_getdist().get1DDensity("e")
        assert density.Prob([0.002, 0.5, 0.998]) == pytest.approx(np.ones(3), abs=0.15)
        ignorant = sp.Samples(prior_draws().values, PARAMETERS.names).to_getdist().get1DDensity("e")
        assert ignorant.Prob([0.002])[0] < 0.75

    def test_weights_count(self):
        """Prior draws weighted by a likelihood: moments as by our own weights, and as known."""
        draws = prior_draws()
        log_weights = -0.5 * ((draws["trend"].double() - 1.0) / 0.5) ** 2
        weighted = prior_draws(log_weights=log_weights)
        chains = weighted.to_getdist()
        ours = (weighted.weights.unsqueeze(-1) * weighted.values).sum(0)
        np.testing.assert_allclose(chains.getMeans(), ours.numpy(), rtol=1e-6)
        # The product of N(0, 1) and N(1, 0.5) is N(0.8, 0.2).
        error = math.sqrt(0.2 / float(weighted.effective_sample_size))
        assert chains.getMeans()[2] == pytest.approx(0.8, abs=4 * error)
        assert chains.getEffectiveSamples() == pytest.approx(float(weighted.effective_sample_size), rel=0.01)

    def test_rows_without_weight_are_left_out(self):
        log_weights = torch.where(torch.arange(100) < 40, 0.0, -math.inf)
        assert prior_draws(100, log_weights=log_weights).to_getdist().numrows == 40

    def test_chains_stay_apart(self):
        chains = prior_draws(400, diagnostics={"chains": 4}).to_getdist()
        np.testing.assert_allclose(chains.samples, prior_draws(400).to_numpy())
        assert chains.chain_offsets.tolist() == [0, 100, 200, 300, 400]
        assert chains.getGelmanRubin() < 0.2

    def test_bounds_go_along(self, tmp_path):
        draws = prior_draws(50)
        for kept in (draws.resample(10), draws.select(["K", "e", "trend"])):
            assert torch.equal(kept.bounds, PARAMETERS.bounds)
        assert draws.select(["trend", "e"]).bounds.tolist() == [[-math.inf, math.inf], [0.0, 1.0]]
        write_samples(tmp_path / "s.h5", {"prior": draws, "bare": sp.Samples(draws.values, PARAMETERS.names)})
        read = read_samples(tmp_path / "s.h5")
        assert torch.equal(read["prior"].bounds, PARAMETERS.bounds)
        assert read["bare"].bounds is None

    def test_what_does_not_fit_is_named(self):
        with pytest.raises(ShapeError, match="to_getdist: expected the samples of one observation"):
            sp.Samples(torch.zeros(2, 5, 1), ("a",)).to_getdist()
        with pytest.raises(ShapeError, match=r"bounds: expected \(1, 2\), got \(2, 2\)"):
            sp.Samples(torch.zeros(5, 1), ("a",), bounds=torch.zeros(2, 2))


@pytest.mark.parametrize("ending", ["fits", "ecsv"])
def test_tables_keep_units_and_values_in_files(tmp_path, ending):
    draws = prior_draws(30, log_weights=torch.linspace(-1, 0, 30, dtype=torch.float64))
    path = tmp_path / f"draws.{ending}"
    draws.to_qtable().write(path)
    table = QTable.read(path)
    assert table.colnames == ["K", "e", "trend", "log_weight"]
    assert table["K"].unit == units.m / units.s
    assert table["trend"].unit == units.m / units.s / units.day
    assert getattr(table["e"], "unit", None) in (None, units.dimensionless_unscaled)
    assert table["trend"].to(units.km / units.s / units.year).value[0] == pytest.approx(
        float(draws["trend"][0]) * 365.25 / 1000, rel=1e-6
    )
    for i, name in enumerate(draws.names):
        np.testing.assert_array_equal(units.Quantity(table[name]).value, draws.to_numpy()[:, i])
    np.testing.assert_array_equal(table["log_weight"], draws.log_weights.numpy())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arviz_summarises_a_markov_chain():
    """What comes out of `sp.mcmc` is understood: chains, their R-hat, and the posterior that is known."""
    arviz = pytest.importorskip("arviz")
    target = td.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    start = target.sample((32,))
    chain = sp.mcmc(lambda z: target.log_prob(z).sum(-1), start, steps=600, seed=1, progress=False)
    summary = arviz.summary(chain.to_arviz(), round_to="none")
    error = summary["sd"] / np.sqrt(summary["ess_bulk"])
    assert bool((abs(summary["mean"] - [1.0, -2.0]) < 5 * error).all())
    assert summary["r_hat"].max() < 1.1
