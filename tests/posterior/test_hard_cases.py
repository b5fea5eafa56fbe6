"""What can be wrong with an analysis ends at once, with a message that says what to do.

An observation that is impossible under the prior, a simulator that fails for half of the parameter space, an
observation far outside the training simulations, and one with NaN: for NPE, NLE and NRE.
"""

import logging

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.sampling.smc import tempered_smc
from sbi_physics.train.config import TrainConfig

pytestmark = pytest.mark.timeout(120, func_only=True)

TINY = {"hidden_features": 8, "blocks": 1, "config": TrainConfig(epochs=1)}
FLOW = {**TINY, "transforms": 1, "engine": "eager"}
ESTIMATORS = {
    "npe": lambda prior: sp.NPE(prior, augment=False, **FLOW),
    "nle": lambda prior: sp.NLE(prior, **FLOW),
    "nre": lambda prior: sp.NRE(prior, **TINY),
}


class Steps:
    """Two rulers that are off by at most a tenth: x is uniform about theta; some theta have no x."""

    name = "steps"
    x_shape = (2,)

    def __init__(self, fails_below=-1.0):
        self.fails_below = fails_below
        self.parameters = sp.Parameters([sp.Parameter("a", td.Uniform(0.0, 1.0), "m")])

    def __call__(self, theta, *, seed):
        noise = torch.rand(len(theta), 2, generator=torch.Generator().manual_seed(seed))
        return torch.where(theta < self.fails_below, torch.nan, theta + 0.2 * noise - 0.1)

    def log_likelihood(self, theta, x):
        inside = ((x - theta).abs() <= 0.1).all(-1)
        return torch.where(inside, 3.2, -torch.inf).double()


IMPOSSIBLE = torch.tensor([1.6, 1.6])


@pytest.fixture(scope="module")
def prior():
    return Steps().parameters


@pytest.fixture(scope="module", params=list(ESTIMATORS))
def posterior(request, prior):
    pairs = sp.simulate(Steps(), 400, seed=1, workers=1, progress=False).training_set()
    return ESTIMATORS[request.param](prior).fit(*pairs, progress=False)


@pytest.fixture
def warnings_of(caplog):
    """The warnings of the package while an action runs."""

    def run(action):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sbi_physics"):
            action()
        return [record.getMessage() for record in caplog.records]

    return run


@pytest.mark.parametrize(
    ("posterior", "method"), [*((name, "importance") for name in ESTIMATORS), ("npe", "mcmc")], indirect=["posterior"]
)
def test_an_impossible_observation_cannot_be_corrected_to(method, posterior):
    with pytest.raises(sp.ConvergenceError, match=r"impossible under the prior.*check units, and that the prior holds"):
        posterior.correct(Steps().log_likelihood, IMPOSSIBLE, 500, method)


def test_an_impossible_observation_has_no_samples(prior):
    def likelihood(theta):
        return Steps().log_likelihood(theta, IMPOSSIBLE)

    with pytest.raises(sp.ConvergenceError, match=r"impossible under the prior.*check units, and that the prior holds"):
        tempered_smc(likelihood, prior, 100)
    with pytest.raises(sp.ConvergenceError, match="impossible under it; check units, and that the prior holds"):
        sp.VI(prior, Steps().log_likelihood).fit(IMPOSSIBLE, progress=False)
    with pytest.raises(sp.SupportError, match="32 of 32 starting points have zero density"):
        sp.mcmc(likelihood, prior.sample(100, seed=1), steps=10, progress=False)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_simulator_that_fails_for_half_of_the_parameters_is_told_and_can_be_corrected_for(name, prior):
    store = sp.simulate(Steps(fails_below=0.5), 400, seed=1, workers=1, progress=False)
    failed = int((store.theta < 0.5).sum())
    estimator = ESTIMATORS[name](prior)
    with pytest.raises(sp.SimulationError, match=rf"{failed} of 400 simulations failed.*say failed='correct'"):
        estimator.fit(store, progress=False)
    fitted = estimator.fit(store, failed="correct", progress=False)
    assert fitted.provenance["failed"] == failed
    assert bool(prior.within(fitted.sample(50, torch.tensor([0.8, 0.8])).values).all())


def correct(posterior, x):
    """Up to where the budget turns out too small: what is wrong with x is known by then."""
    with pytest.raises(sp.BudgetError):
        posterior.correct(lambda theta, x: torch.zeros(len(theta)), x, 500, "mcmc", max_calls=10)


def sample(posterior, x):
    return (posterior.with_sampler(particles=40) if hasattr(posterior, "with_sampler") else posterior).sample(20, x)


USES = {
    "sample": sample,
    "log_prob": lambda posterior, x: posterior.log_prob(torch.tensor([0.5]), x),
    "log_likelihood": lambda posterior, x: posterior.log_likelihood(torch.tensor([[0.5]]), x),
    "correct": correct,
}


# A posterior network has no likelihood.
POSSIBLE = [(name, use) for name in ESTIMATORS for use in USES if (name, use) != ("npe", "log_likelihood")]


@pytest.mark.parametrize(("posterior", "use"), POSSIBLE, indirect=["posterior"])
def test_a_far_observation_is_told_once(use, posterior, warnings_of):
    # No two uses share an observation: each is told once.
    x = torch.tensor([9.0, 9.0 + list(USES).index(use)])
    (message,) = warnings_of(lambda: USES[use](posterior, x))
    assert message.startswith("x_obs: farther from the simulations than any of them: ")
    assert "check the units and the order of the observables" in message
    assert "sp.diagnostics.misspecification" in message
    assert not warnings_of(lambda: USES[use](posterior, x))
    assert not warnings_of(lambda: USES[use](posterior, torch.tensor([0.5, 0.52])))


def test_a_long_analysis_of_a_far_observation_is_told_once(prior, warnings_of):
    estimator = sp.TSNPE(prior, "mixture", config=TrainConfig(epochs=1))
    options = {"simulations": 400, "rounds": 2, "workers": 1, "progress": False}
    assert len(warnings_of(lambda: estimator.fit(Steps(), torch.tensor([9.0, 9.0]), **options))) == 1


@pytest.mark.parametrize("use", ["sample", "log_prob", "correct"])
def test_an_observation_with_nan_is_refused(use, posterior):
    with pytest.raises(sp.NonFiniteError, match=r"x_obs: expected finite numbers, got 1 NaN.*fill in missing data"):
        USES[use](posterior, torch.tensor([0.5, torch.nan]))
