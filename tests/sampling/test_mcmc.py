"""The reference sampler on a correlated Gaussian, chains that are too short, and budgets."""

import time

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy.stats import kstest, uniform, vonmises

from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.samples import Samples
from sbi_physics.sampling.mcmc import mcmc

MEAN = torch.tensor([1.0, -50.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 8.0], [8.0, 100.0]], dtype=torch.float64)
CORRELATED = td.MultivariateNormal(MEAN, COVARIANCE)
STATED = {"acceptance", "steps", "burn_in", "chains", "converged"}
STATED_OF_LONG_CHAINS = STATED | {"autocorrelation_time", "lengths", "r_hat", "effective_sample_size", "verdict"}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


START = MEAN + normal(200, 2) * COVARIANCE.diagonal().sqrt()


@pytest.fixture
def run():
    """Run quietly on the CPU."""

    def sample(log_prob=CORRELATED.log_prob, initial=START, steps=40, **more):
        return mcmc(log_prob, initial, steps=steps, device="cpu", progress=False, **more)

    return sample


@pytest.fixture(scope="module")
def long_chain():
    return mcmc(CORRELATED.log_prob, START, steps=3000, seed=1, device="cpu", progress=False)


class TestKnownGaussian:
    def test_moments(self, long_chain):
        """Within five standard errors, by the effective sample size that the chain states."""
        n = long_chain.diagnostics["effective_sample_size"]
        assert n > 1000
        values = long_chain.values
        pulls = (values.mean(0) - MEAN) / (COVARIANCE.diagonal() / n).sqrt()
        assert (pulls.abs() < 5).all()
        covariance = torch.cov(values.T)
        scale = COVARIANCE.diagonal().sqrt()
        # Of a correlation coefficient or a relative variance: sqrt(2 / n) at most.
        torch.testing.assert_close(
            covariance / scale / scale.unsqueeze(-1),
            COVARIANCE / scale / scale.unsqueeze(-1),
            rtol=0,
            atol=5 * (2 / n) ** 0.5,
        )

    def test_the_chain_says_that_it_converged(self, long_chain):
        numbers = long_chain.diagnostics
        assert set(numbers) == STATED_OF_LONG_CHAINS
        assert numbers["converged"]
        assert numbers["verdict"].startswith("converged: ")
        assert numbers["steps"] == 3000
        assert numbers["chains"] == 32
        assert numbers["r_hat"] < 1.05
        assert 0.5 < numbers["acceptance"] < 0.85
        kept = 3000 - numbers["burn_in"]
        assert long_chain.values.shape == (32 * kept, 2)
        assert long_chain.log_weights is None
        # The stretch move on a Gaussian in two dimensions forgets in some 25 steps.
        assert 10 < numbers["autocorrelation_time"] < 50
        assert numbers["burn_in"] >= max(300, 1.5 * numbers["autocorrelation_time"])
        assert numbers["lengths"] == pytest.approx(kept / numbers["autocorrelation_time"])
        assert numbers["effective_sample_size"] == pytest.approx(32 * numbers["lengths"], rel=0.5)

    def test_draws_are_ordered_walker_after_walker(self, long_chain):
        """A walker stays where it is as often as moves are refused; successive walkers never agree."""
        chains = long_chain.values.reshape(32, -1, 2)
        moved = (chains.diff(dim=1) != 0).any(-1).double().mean()
        assert float(moved) == pytest.approx(long_chain.diagnostics["acceptance"], abs=0.01)
        assert (chains[:-1, -1] != chains[1:, 0]).all()

    def test_scales_and_shifts_make_no_difference(self, run):
        """The moves are affine-invariant: the same walk, in other units."""
        factor = 2.0**20
        plain = run()
        scaled = run(lambda theta: CORRELATED.log_prob(theta / factor), START * factor)
        torch.testing.assert_close(scaled.values / factor, plain.values, rtol=1e-9, atol=1e-9)


class TestUnconverged:
    def test_a_short_chain_says_so(self, run):
        samples = run(steps=200)
        assert set(samples.diagnostics) == STATED_OF_LONG_CHAINS
        assert samples.diagnostics["converged"] is False
        assert samples.diagnostics["lengths"] < 50
        assert samples.diagnostics["verdict"].startswith("not converged: ")
        assert "expected more than 50; run longer" in samples.diagnostics["verdict"]

    @pytest.mark.parametrize("steps", [2, 5, 7])
    def test_a_chain_too_short_to_say_is_not_converged(self, steps, run):
        samples = run(steps=steps)
        assert set(samples.diagnostics) == STATED
        assert not samples.diagnostics["converged"]
        assert len(samples) == 32 * (steps - samples.diagnostics["burn_in"]) > 0

    def test_walkers_in_separate_modes_are_not_converged(self, run):
        def log_prob(theta):
            return torch.logaddexp(-0.5 * ((theta - 500) ** 2).sum(-1), -0.5 * ((theta + 500) ** 2).sum(-1))

        start = torch.cat([normal(20, 2) + 500, normal(20, 2, seed=1) - 500])
        samples = run(log_prob, start, steps=600)
        assert not samples.diagnostics["converged"]
        assert samples.diagnostics["verdict"].startswith("not converged: ")


class TestBudgets:
    @pytest.mark.parametrize(("max_calls", "steps"), [(96, 2), (127, 2), (128, 3), (1000, 30), (10**6, 40)])
    def test_of_calls(self, max_calls, steps, run, counted):
        target = counted(CORRELATED.log_prob)
        samples = run(target, max_calls=max_calls)
        assert samples.diagnostics["steps"] == steps
        assert samples.cost.likelihood_calls == target.rows == 32 * (steps + 1) <= max_calls

    @pytest.mark.parametrize("max_calls", [-1, 0, 31, 32, 64, 95])
    def test_of_too_few_calls(self, max_calls, run, counted):
        target = counted(CORRELATED.log_prob)
        with pytest.raises(BudgetError, match=rf"allows only [01] steps, expected at least 2 \(max_calls={max_calls}"):
            run(target, max_calls=max_calls)
        assert target.rows == 0

    def test_a_budget_of_calls_cuts_the_chain_and_changes_nothing_else(self, run):
        assert torch.equal(run(steps=40, max_calls=32 * 31).values, run(steps=30).values)

    def test_of_seconds_with_a_slow_likelihood(self, run, counted):
        target = counted(CORRELATED.log_prob, seconds_per_call=0.01)
        began = time.monotonic()
        samples = run(target, steps=10**5, max_seconds=0.4)
        assert time.monotonic() - began < 4
        assert 2 <= samples.diagnostics["steps"] <= 25
        assert samples.cost.likelihood_calls == target.rows
        assert samples.cost.seconds >= 0.4

    def test_of_too_few_seconds(self, run, counted):
        slow = counted(CORRELATED.log_prob, seconds_per_call=0.1)
        with pytest.raises(BudgetError, match=r"allows only 1 steps.*max_seconds=0\.05"):
            run(slow, max_seconds=0.05)


class TestStart:
    def test_samples_and_arrays_do_as_well(self, run):
        samples = Samples(START, ("a", "b"))
        assert torch.equal(run(initial=samples).values, run(initial=START.numpy()).values)

    def test_parameters_name_the_result(self, run):
        parameters = Parameters(
            [Parameter("K", td.Normal(0.0, 9.0), "m / s", "$K$"), Parameter("e", td.Normal(0, 99.0))]
        )
        samples = run(parameters=parameters)
        assert samples.names == ("K", "e")
        assert samples.units == ("m / s", "")
        assert samples.labels == ("$K$", "e")
        assert run().names == ("theta_0", "theta_1")

    @pytest.mark.parametrize(("walkers", "used"), [(None, 32), (6, 6), (7, 8), (40, 40)])
    def test_walkers(self, walkers, used, run):
        assert run(walkers=walkers).diagnostics["chains"] == used

    @pytest.mark.parametrize(
        ("initial", "more", "error", "message"),
        [
            (START[:, 0], {}, ShapeError, r"initial: expected shape \(m, P\), got \(200,\)"),
            (START[:31], {}, UsageError, "initial: expected at least 32 distinct starting points.*got 31"),
            (START[:1].expand(200, 2), {}, UsageError, "expected at least 32 distinct starting points.*got 1"),
            (torch.full((40, 2), torch.nan), {}, NonFiniteError, "initial: expected finite numbers"),
            ("here", {}, UsageError, "initial: expected an array of numbers"),
            (START, {"walkers": 4}, UsageError, r"walkers: expected at least 2 P \+ 2 = 6, got 4"),
            (START, {"walkers": 0}, UsageError, "walkers: expected an integer of at least 1"),
            (START, {"steps": 0}, UsageError, "steps: expected an integer of at least 1"),
            (START[:, :1] * torch.ones(2), {}, UsageError, "initial: expected starting points that span all 2 dim"),
            (START * torch.tensor([1.0, 0.0]), {}, UsageError, "initial: expected starting points that span all 2"),
        ],
    )
    def test_wrong_starts(self, initial, more, error, message, run, counted):
        target = counted(CORRELATED.log_prob)
        with pytest.raises(error, match=message) as caught:
            run(target, initial, **more)
        assert "\n" not in str(caught.value)
        assert target.rows == 0

    @pytest.mark.parametrize("value", [-torch.inf, torch.nan])
    def test_starting_points_without_density_are_counted(self, value, run):
        def log_prob(theta):
            return torch.where(theta[:, 0] > 1, CORRELATED.log_prob(theta), value)

        with pytest.raises(SupportError, match=r"initial: \d+ of 32 starting points have zero density"):
            run(log_prob)

    def test_not_a_number_never_moves_a_walker(self, run):
        def log_prob(theta):
            return torch.where(theta[:, 0] > 0, -theta.sum(-1), torch.nan)

        assert (run(log_prob, normal(100, 1).exp(), steps=100).values > 0).all()


def test_nothing_is_printed(run, capfd):
    """Not even when the density raises: an error says all that there is to say."""

    def log_prob(theta):
        if not torch.isin(theta, START).all():
            raise ZeroDivisionError("of my own")
        return CORRELATED.log_prob(theta)

    run()
    with pytest.raises(ZeroDivisionError, match="of my own"):
        run(log_prob)
    assert capfd.readouterr() == ("", "")


def test_a_density_in_numpy():
    def log_prob(theta):
        return -0.5 * (np.asarray(theta) ** 2).sum(1)

    samples = mcmc(log_prob, torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), steps=100, progress=False)
    assert samples.values.shape[1] == 2


CIRCLE = Parameters([Parameter("phi", td.Uniform(0.0, 2 * np.pi), periodic=True), Parameter("a", td.Normal(0.0, 3.0))])


@pytest.mark.parametrize(("mean", "concentration"), [(0.1, 4.0), (6.2, 60.0), (3.0, 0.3), (1.0, 0.0)])
def test_walkers_go_round_a_circle(mean, concentration, run):
    """An angle that depends on another parameter: phi - a / 2 is of von Mises, wherever the circle is cut."""

    def log_prob(theta):
        assert CIRCLE.within(theta).all()
        return concentration * torch.cos(theta[:, 0] - mean - 0.5 * theta[:, 1]) - 0.5 * theta[:, 1] ** 2

    initial = CIRCLE.sample(200, seed=1)
    initial[:100, 0] += 2 * np.pi
    samples = run(log_prob, initial, steps=5000, parameters=CIRCLE, seed=3)
    assert samples.diagnostics["converged"], samples.diagnostics["verdict"]
    every = int(2 * samples.diagnostics["autocorrelation_time"])
    walks = samples.values.view(samples.diagnostics["chains"], -1, 2)[:, ::every].reshape(-1, 2).numpy()
    away = np.remainder(walks[:, 0] - 0.5 * walks[:, 1] - mean + np.pi, 2 * np.pi) - np.pi
    exact = vonmises(concentration) if concentration else uniform(-np.pi, 2 * np.pi)
    assert kstest(away, exact.cdf).pvalue > 1e-3
    assert kstest(walks[:, 1], "norm").pvalue > 1e-3


def test_walkers_do_not_go_round_an_interval(run):
    """The same density cut open: the walkers on either side do not meet."""
    flat = Parameters([Parameter("phi", td.Uniform(0.0, 2 * np.pi)), Parameter("a", td.Normal(0.0, 3.0))])

    def log_prob(theta):
        value = 4 * torch.cos(theta[:, 0] - 0.1 - 0.5 * theta[:, 1]) - 0.5 * theta[:, 1] ** 2
        return torch.where(flat.within(theta), value, -torch.inf)

    assert not run(log_prob, CIRCLE.sample(200, seed=1), steps=5000, parameters=flat, seed=3).diagnostics["converged"]
