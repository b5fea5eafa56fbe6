"""Profiles of likelihoods whose maxima are known in closed form, of several maxima, and of learned likelihoods."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.posterior.profile import profile_likelihood
from sbi_physics.train.config import TrainConfig

ONE_SIGMA = 0.6826894921370859
MEAN = torch.tensor([0.7, -0.4, 1.2, 0.3], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.5, 0, 0], [-0.3, 0.4, 0.7, 0], [0.2, -0.6, 0.3, 0.4]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
# Bounded on both sides, on one, and not at all.
PARAMETERS = Parameters(
    [
        Parameter("a", td.Normal(0.0, 3.0), unit="m / s", label="$a$"),
        Parameter("b", td.Uniform(-8.0, 6.0)),
        Parameter("c", td.Normal(0.0, 2.0)),
        Parameter("d", td.Uniform(-9.0, 9.0), unit="s"),
    ]
)


def gaussian(theta):
    """A likelihood of four correlated parameters, the covariance of whose profiles is a block of the whole one."""
    away = theta - MEAN
    return -0.5 * ((away @ torch.linalg.inv(COVARIANCE)) * away).sum(-1) + 3.0


def test_the_profile_of_a_gaussian_is_a_parabola():
    profile = profile_likelihood(gaussian, PARAMETERS, "b", points=15, seed=1)
    variance = float(COVARIANCE[1, 1])
    away = profile.points[:, 0] - MEAN[1]
    torch.testing.assert_close(profile.log_likelihood, -0.5 * away**2 / variance, rtol=0, atol=1e-4)
    slope = COVARIANCE[:, 1] / variance
    torch.testing.assert_close(profile.theta, MEAN + away.unsqueeze(1) * slope, rtol=0, atol=0.02)
    torch.testing.assert_close(profile.estimate, MEAN, rtol=0, atol=0.01)
    assert profile.maximum == pytest.approx(3.0, abs=1e-5)
    low, high = profile.interval(ONE_SIGMA)[0].tolist()
    assert (low, high) == pytest.approx((-0.4 - variance**0.5, -0.4 + variance**0.5), abs=5e-3)
    assert profile.converged
    assert profile.points[0] < MEAN[1] - 3 * variance**0.5
    assert profile.points[-1] > MEAN[1] + 3 * variance**0.5
    # A slice at the best nuisance values is not the profile: it is much narrower, and must fail.
    fixed = MEAN.expand(15, -1).clone()
    fixed[:, 1] = profile.points[:, 0]
    assert ((gaussian(fixed) - 3.0) < profile.log_likelihood - 1.0).sum() > 8


def test_two_parameters_of_interest():
    profile = profile_likelihood(gaussian, PARAMETERS, ["d", "a"], points=13, starts=4, steps=40)
    chosen = [3, 0]
    block = COVARIANCE[chosen][:, chosen]
    away = profile.points - MEAN[chosen]
    exact = -0.5 * ((away @ torch.linalg.inv(block)) * away).sum(-1)
    torch.testing.assert_close(profile.log_likelihood, exact, rtol=0, atol=1e-3)
    assert profile.shape == (13, 13)
    # chi2 of two degrees of freedom: level 0.9 at a fall of -ln 0.1.
    assert profile.threshold(0.9) == pytest.approx(-math.log(0.1))
    half = (2 * -math.log(0.1) * block.diagonal()).sqrt()
    expected = torch.stack([MEAN[chosen] - half, MEAN[chosen] + half], 1)
    torch.testing.assert_close(profile.interval(0.9), expected, rtol=0, atol=0.02)
    assert torch.equal(profile.contains(0.9), profile.log_likelihood >= math.log(0.1))


def test_all_parameters_of_interest():
    parameters = Parameters([Parameter("k", td.Uniform(0.0, 9.0))])
    profile = profile_likelihood(lambda t: -0.5 * (t[:, 0] - 2) ** 2 / 0.09, parameters, "k", points=[1.7, 2.0, 2.6])
    torch.testing.assert_close(profile.log_likelihood, torch.tensor([-0.5, 0.0, -2.0]).double(), atol=1e-5, rtol=0)
    assert profile.shape == (3,)


def test_a_second_maximum_in_the_nuisance_parameter():
    """Far apart and narrow: which of two valleys is deeper changes at psi = 1; both must be followed."""

    def two(theta):
        psi, nuisance = theta.unbind(-1)
        first = -0.5 * psi**2 - 0.5 * ((nuisance - 4) / 0.1) ** 2
        second = -0.5 * (psi - 2) ** 2 - 0.5 * ((nuisance + 4) / 0.1) ** 2
        return torch.maximum(first, second)

    parameters = Parameters([Parameter("psi", td.Uniform(-9.0, 9.0)), Parameter("nuisance", td.Uniform(-6.0, 6.0))])
    profile = profile_likelihood(two, parameters, "psi", points=31, ranges={"psi": (-2.0, 4.0)}, seed=2)
    psi = profile.points[:, 0]
    exact = -0.5 * torch.minimum(psi.abs(), (psi - 2).abs()) ** 2
    torch.testing.assert_close(profile.log_likelihood, exact, rtol=0, atol=1e-3)
    assert profile.interval(ONE_SIGMA)[0].tolist() == pytest.approx([-1.0, 3.0], abs=0.02)
    # One start alone must miss it: that of the best nuisance value over all.
    side = profile.theta[:, 1].sign()
    assert (side[psi < 0.9] > 0).all()
    assert (side[psi > 1.1] < 0).all()


def test_bounds():
    """A maximum on the bound of a nuisance parameter, and an interval that ends on one of the parameter itself."""

    def leaning(theta):
        rate, other = theta.unbind(-1)
        return -rate / 2 - 0.5 * (other - rate - 1) ** 2

    parameters = Parameters([Parameter("rate", td.Exponential(1.0)), Parameter("other", td.Uniform(-1.0, 0.5))])
    profile = profile_likelihood(leaning, parameters, "rate", points=25)
    rate = profile.points[:, 0]
    torch.testing.assert_close(profile.log_likelihood, -rate / 2 - 0.5 * (rate + 0.5) ** 2 + 0.125, rtol=0, atol=2e-3)
    low, high = profile.interval(ONE_SIGMA)[0].tolist()
    assert low == 0.0
    # r / 2 + (r + 1 / 2)**2 / 2 - 1 / 8 = 1 / 2, where r**2 + 2 r = 1
    assert high == pytest.approx(math.sqrt(2) - 1, abs=0.01)
    flat = profile_likelihood(lambda t: 0 * t.sum(-1), parameters, "rate", points=5, ranges={"rate": (1.0, 2.0)})
    assert flat.interval()[0].tolist() == [0.0, math.inf]  # the bounds, where the points do not reach the ends


def turned(centre, precision):
    """A likelihood of an angle of half a turn that goes along with a nuisance parameter."""
    return lambda t: precision * (torch.cos(math.pi / 90 * (t[:, 0] - centre) - 0.2 * t[:, 1]) - 1) - 2.0 * t[:, 1] ** 2


AXIS = Parameters(
    [Parameter("phi", td.Uniform(0.0, 180.0), unit="deg", periodic=True), Parameter("a", td.Normal(0.0, 3.0))]
)


@pytest.mark.parametrize("centre", [0.3, 90.0, 179.9])
@pytest.mark.parametrize("interest", ["phi", ["phi", "a"]])
def test_an_angle_is_the_same_everywhere_on_its_circle(centre, interest):
    """Its cut is no place of its own: the intervals are those of the middle, moved."""
    here, middle = (profile_likelihood(turned(c, 30.0), AXIS, interest, points=15, starts=4) for c in (centre, 90.0))
    torch.testing.assert_close(here.interval()[0] - centre, middle.interval()[0] - 90.0, rtol=0, atol=0.02)
    torch.testing.assert_close(here.interval()[1:], middle.interval()[1:], rtol=0, atol=0.02)
    assert here.converged
    assert AXIS.within(here.theta).all()
    assert float(here.best[0]) == pytest.approx(centre, abs=0.01)
    # The same angle that is not said to be one ends at its bounds.
    flat = Parameters([Parameter("phi", td.Uniform(0.0, 180.0)), Parameter("a", td.Normal(0.0, 3.0))])
    cut = profile_likelihood(turned(centre, 30.0), flat, interest, points=15, starts=4).interval()[0]
    assert (torch.allclose(cut, here.interval()[0], atol=0.3)) == (centre == 90.0)


def test_a_nuisance_angle_at_its_cut():
    """Its best value is on either side of the cut, in turn: the climb goes over it."""
    profiles = [profile_likelihood(turned(c, 30.0), AXIS, "a", points=15, starts=1, steps=20) for c in (0.0, 90.0)]
    torch.testing.assert_close(profiles[0].log_likelihood, profiles[1].log_likelihood, rtol=0, atol=1e-4)


def sharp(theta):
    return -0.5 * ((theta[:, 0] - 1.446) / 0.004) ** 2


NARROW = Parameters([Parameter("omega", td.Uniform(1.2, 1.7))])


@pytest.mark.parametrize(
    "points",
    [
        {"points": [1.44, 1.445]},
        {"ranges": {"omega": (1.43, 1.445)}},
        {"ranges": {"omega": (1.45, 1.47)}},
        {"ranges": {"omega": (1.447, 1.7)}},
    ],
)
def test_points_that_end_within_the_set_are_told(points):
    profile = profile_likelihood(sharp, NARROW, "omega", **points)
    assert profile.ends_inside() == ("omega",)
    assert "the points end within the set of omega: its ends beyond them are not known" in profile.verdict


def test_a_range_may_be_the_bounds():
    """As they are written, of which single precision makes other numbers."""
    profile = profile_likelihood(sharp, NARROW, "omega", ranges={"omega": (1.2, 1.7)}, points=501)
    assert profile.ends_inside() == ()
    assert profile.interval(ONE_SIGMA)[0].tolist() == pytest.approx([1.442, 1.45], abs=2e-4)
    # A set that ends at a bound of the prior is known.
    flat = profile_likelihood(lambda theta: 0.1 * theta[:, 0], NARROW, "omega", points=9)
    assert flat.ends_inside() == ()
    for start, told in ((0.1, ("phi",)), (-20.0, ())):
        angle = profile_likelihood(turned(0.0, 30.0), AXIS, "phi", points=15, ranges={"phi": (start, 20.0)})
        assert angle.ends_inside() == told


def test_sets_in_pieces():
    def two(t):
        narrow = 40.0
        return torch.logaddexp(turned(2.0, narrow)(t), turned(95.0, narrow)(t) - 0.2)

    profile = profile_likelihood(two, AXIS, "phi", points=91)
    (first, second), (low, high) = profile.pieces()[0], profile.interval()[0].tolist()
    assert first.mean() == pytest.approx(2.0, abs=0.3)
    assert second.mean() == pytest.approx(95.0, abs=0.3)
    assert (low, high) == (float(first[0]), float(second[1]))
    assert "] or [" in profile.verdict
    everywhere = profile_likelihood(turned(2.0, 0.1), AXIS, "phi", points=9)
    assert everywhere.interval()[0].tolist() == [0.0, 180.0]


def test_the_prior_can_be_added():
    """The profile of a Gaussian posterior: precision 1 / 9 of the prior of a joins that of the likelihood."""
    whole = Parameters.from_prior(td.MultivariateNormal(torch.zeros(4), 4.0 * torch.eye(4)), names=list("abcd"))
    precision = torch.linalg.inv(COVARIANCE) + 0.25 * torch.eye(4, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ torch.linalg.inv(COVARIANCE) @ MEAN
    profile = profile_likelihood(gaussian, whole, "a", prior=True, points=9)
    torch.testing.assert_close(profile.estimate, mean, rtol=0, atol=0.01)
    away = profile.points[:, 0] - mean[0]
    torch.testing.assert_close(profile.log_likelihood, -0.5 * away**2 / covariance[0, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("estimator", [sp.NLE, sp.NRE])
def test_learned_likelihoods(estimator, gaussian, gaussian_pairs):
    """Learned from 4,000 simulations, the profile of theta_0 is -(theta_0 - x_0)**2 / 0.2 to about a tenth of a nat."""
    theta, x = gaussian_pairs
    posterior = estimator(gaussian.parameters, config=TrainConfig(epochs=8)).fit(theta, x, seed=5, progress=False)
    x_obs = torch.tensor([0.2, -0.3])
    profile = profile_likelihood(
        lambda t: posterior.log_likelihood(t, x_obs),
        posterior.parameters,
        "theta_0",
        points=7,
        ranges={"theta_0": (-0.3, 0.6)},
        starts=3,
        steps=30,
    )
    exact = -((profile.points[:, 0] - 0.2) ** 2) / 0.2
    assert (profile.log_likelihood - exact).abs().max() < 0.4
    # What is learned at a fixed nuisance value far from the best is no profile.
    held = torch.stack([profile.points[:, 0].float(), torch.full((7,), 0.3)], 1)
    sliced = (posterior.log_likelihood(held, x_obs).detach() - profile.maximum).double()
    assert (sliced - exact).abs().max() > 1.0


def test_seeds_cost_and_words():
    results = [profile_likelihood(gaussian, PARAMETERS, "a", points=5, starts=2, steps=10, seed=s) for s in (3, 3)]
    assert torch.equal(results[0].log_likelihood, results[1].log_likelihood)
    assert torch.equal(results[0].theta, results[1].theta)
    state = torch.random.get_rng_state()
    calls = []
    profile = profile_likelihood(
        lambda t: calls.append(len(t)) or gaussian(t), PARAMETERS, "a", points=5, starts=2, steps=10
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert profile.cost.likelihood_calls == sum(calls)
    assert "a = 0.7" in profile.verdict
    assert "m / s; 3 nuisance parameters maximised at each of 5 points; converged" in profile.verdict


def test_budgets():
    with pytest.raises(sp.BudgetError, match=r"the budget allows no point \(max_calls=0"):
        profile_likelihood(gaussian, PARAMETERS, "a", max_calls=0)
    cut = profile_likelihood(gaussian, PARAMETERS, "a", max_calls=3000)
    assert cut.stopped == "budget"
    assert not cut.converged
    assert "the budget ended" in cut.verdict
    assert cut.cost.likelihood_calls < 3000 + 64 * 41 + 1000 * 8


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"interest": "z"}, sp.UsageError, "parameter: expected one of a, b, c, d; got 'z'"),
        ({"interest": ["a", "a"]}, sp.UsageError, "one or two different parameters"),
        ({"interest": ["a", "b", "c"]}, sp.UsageError, "one or two different parameters"),
        ({"points": 2}, sp.UsageError, "points: expected at least 3"),
        ({"points": [[0.0, 1.0]]}, sp.ShapeError, "points: expected shape"),
        ({"points": [0.0, float("nan")]}, sp.NonFiniteError, "points"),
        ({"interest": "b", "points": [0.0, 7.0]}, sp.SupportError, r"points: expected b in \[-8, 6\], got 7 in row 1"),
        ({"ranges": {"b": (0, 1)}}, sp.UsageError, "ranges: expected one of a; got 'b'"),
        ({"ranges": {"a": (1, 0)}}, sp.UsageError, "expected lower < upper for a"),
        ({"starts": 0}, sp.UsageError, "starts"),
        ({"seed": -1}, sp.UsageError, "seed"),
        ({"log_likelihood": lambda t: t}, sp.ShapeError, r"log_likelihood: expected a tensor of shape \(1024,\)"),
        ({"log_likelihood": lambda t: 0.0}, sp.ShapeError, "got float"),
        ({"log_likelihood": lambda t: t.detach().sum(-1)}, sp.UsageError, "differentiable"),
        ({"log_likelihood": lambda t: t.sum(-1) * math.nan}, sp.NonFiniteError, "finite value somewhere"),
    ],
)
def test_wrong_arguments(keywords, error, message):
    call = {"log_likelihood": gaussian, "parameters": PARAMETERS, "interest": "a", **keywords}
    with pytest.raises(error, match=message) as caught:
        profile_likelihood(call.pop("log_likelihood"), call.pop("parameters"), call.pop("interest"), **call)
    assert "\n" not in str(caught.value)
