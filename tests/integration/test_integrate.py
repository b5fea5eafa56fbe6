"""Integrals with known values, integrands that misbehave, and the events of both."""

import math

import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.errors import (
    BudgetError,
    ConvergenceError,
    NonFiniteError,
    ShapeError,
    SimulationError,
    UsageError,
)
from sbi_physics.integration.channels import GridChannel, Mixture
from sbi_physics.integration.estimate import Iteration, combine
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.neural import train_flows
from sbi_physics.integration.unweight import maximum_weight
from sbi_physics.train.config import TrainConfig


def run(f, dims=None, **options):
    return sp.integrate(f, dims, **{"progress": False, "neural": False, **options})


def gauss(u, width=0.2, centre=0.5):
    return torch.exp(-(((u - centre) / width) ** 2).sum(-1)) / (width * math.sqrt(math.pi)) ** u.shape[-1]


def camel(u):
    return (gauss(u, centre=1 / 3) + gauss(u, centre=2 / 3)) / 2


def erf_cube(dims, *reaches):
    return (sum(math.erf(reach) for reach in reaches) / len(reaches)) ** dims


def pull(found, truth):
    return (found.value - truth) / found.error


@pytest.mark.parametrize(
    ("f", "dims", "truth", "most"),
    [
        (gauss, 4, erf_cube(4, 2.5), 200_000),
        (camel, 2, erf_cube(2, 5 / 3, 10 / 3), 50_000),
        (camel, 8, erf_cube(8, 5 / 3, 10 / 3), 300_000),
        (lambda u: (u - u * u).sum(-1), 54, 9.0, 20_000),
        (lambda u: u[:, 0] ** -0.5, 2, 2.0, 100_000),
        (lambda u: -u.sum(-1), 3, -1.5, 20_000),
        (lambda u: u[:, 0] - 0.3, 2, 0.2, 20_000),
        (lambda u: gauss(u, 0.01, 0.3), 5, 1.0, 500_000),
        (lambda u: ((u - 0.3).abs().amax(-1) < 0.05).double(), 3, 1e-3, 1_000_000),
    ],
    ids=["gauss", "camel", "camel 8", "polynomial", "edge", "negative", "signed", "narrow", "box"],
)
def test_known_values(f, dims, truth, most):
    found = run(f, dims, rel_error=1e-3, seed=1)
    assert found.trusted, found.verdict
    assert found.error <= 1e-3 * abs(found.value)
    assert abs(pull(found, truth)) < 3.5
    assert found.calls < most
    assert found.calls >= sum(each.calls for each in found.rounds)


def test_a_biased_value_fails_its_pull():
    found = run(lambda u: 1.01 * gauss(u), 2, rel_error=1e-3)
    assert abs(pull(found, erf_cube(2, 2.5))) > 5


def test_both_humps_in_sixteen_dimensions():
    found = run(camel, 16, rel_error=1e-3, seed=3)
    assert found.trusted, found.verdict
    assert abs(pull(found, erf_cube(16, 5 / 3, 10 / 3))) < 3.5
    assert found.calls < 3_000_000
    humps = (found.sample(2000, seed=1).points.mean(1) > 0.5).double().mean()
    assert 0.4 < float(humps) < 0.6


@pytest.mark.slow
def test_pulls_are_standard_normal():
    pulls = []
    for seed in range(20):
        pulls.append(pull(run(gauss, 3, rel_error=5e-4, seed=seed), erf_cube(3, 2.5)))
        pulls.append(pull(run(camel, 4, rel_error=1e-3, seed=seed), erf_cube(4, 5 / 3, 10 / 3)))
    pulls = torch.tensor(pulls)
    assert float(pulls.abs().max()) < 3.5
    assert 0.75 < float(pulls.std()) < 1.25
    assert abs(float(pulls.mean())) < 3 / math.sqrt(len(pulls))


@pytest.mark.parametrize(
    ("f", "options", "error", "words"),
    [
        (lambda u: torch.zeros(len(u)), {}, ConvergenceError, "it was zero at (\\d+) of \\1 points looked at"),
        (lambda u: ((u - 0.3).abs().amax(-1) < 1e-3).double(), {}, ConvergenceError, "smaller region"),
        (lambda u: torch.where(u[:, 0] > 0.9, torch.nan, 1.0), {}, NonFiniteError, "got nan at u = "),
        (lambda u: torch.where(u[:, 0] > 0.9, torch.inf, 1.0), {}, NonFiniteError, "got inf at u = "),
        (lambda u: 1 / 0, {}, SimulationError, "it raised ZeroDivisionError: division by zero"),
        (lambda u: 3.0, {}, ShapeError, r"expected values of shape \(4096,\)"),
        (lambda u: u, {}, ShapeError, "got \\(4096, 3\\)"),
        (gauss, {"calls": 100}, UsageError, "calls: expected at least 2,000, got 100"),
        (gauss, {"rel_error": -1.0}, UsageError, "rel_error: expected a positive number"),
        (gauss, {"channels": [3]}, UsageError, "channels: expected maps of 3 dimensions"),
        (gauss, {"non_finite": "skip"}, UsageError, "non_finite: expected 'raise' or 'zero'"),
    ],
)
def test_refusals(f, options, error, words):
    with pytest.raises(error, match=words):
        run(f, 3, **{"calls": 300_000, **options})


def test_dimensions_must_be_known():
    with pytest.raises(UsageError, match="expected the number of dimensions"):
        run(gauss)
    with pytest.raises(UsageError, match="expected a function"):
        run(3, 2)


@pytest.mark.parametrize(
    ("f", "dims", "words"),
    [
        (lambda u: torch.where(u[:, 0] > 0.9, torch.nan, 1.0), 3, "values were not finite and count as zero"),
        (lambda u: (1 - u[:, 0]) ** -0.9, 2, "upper face"),
        (lambda u: u[:, 0] ** -0.95, 2, "not trusted"),
        (lambda u: 1 / u[:, 0], 2, "not trusted"),
    ],
    ids=["nan", "upper edge", "hardly integrable", "infinite"],
)
def test_what_cannot_be_trusted_says_so(f, dims, words):
    found = run(f, dims, rel_error=1e-3, calls=400_000, non_finite="zero")
    assert not found.trusted
    assert words in found.verdict


def test_a_budget_that_ends_too_early_says_so():
    found = run(camel, 4, rel_error=1e-6, calls=30_000)
    assert found.calls <= 30_000
    assert "was asked for: the budget of calls or seconds ended" in found.verdict
    assert abs(pull(found, erf_cube(4, 5 / 3, 10 / 3))) < 4
    assert run(camel, 4, calls=30_000).trusted


def test_a_needle_that_is_met_late_reopens_the_search():
    """One point in 2e4 falls on the peak, which is half of the integral."""

    def f(u):
        return 1 + ((u - 0.3).abs().amax(-1) < 0.5 * 0.06).double() / 0.06**3

    found = run(f, 3, rel_error=2e-3, seed=5)
    assert not found.trusted or abs(pull(found, 2.0)) < 3.5


def test_numpy_functions_and_integrands_that_know_their_dimensions():
    class Numpy:
        dims = 3

        def __call__(self, u):
            return np.exp(-np.square(np.asarray(u)).sum(axis=1))

    found = run(Numpy())
    assert abs(pull(found, (math.sqrt(math.pi) / 2 * math.erf(1)) ** 3)) < 3.5


def test_same_seed_same_bytes():
    first, again, other = (run(camel, 3, seed=seed) for seed in (4, 4, 5))
    assert (first.value, first.error, first.calls) == (again.value, again.error, again.calls)
    assert first.value != other.value
    assert torch.equal(first.unweight(50).points, again.unweight(50).points)


def test_a_channel_that_is_known_is_used():
    """A Breit-Wigner peak in u_0, flattened by its channel."""
    mass, width = 0.4, 1e-4
    low, high = math.atan(-mass / width), math.atan((1 - mass) / width)

    class Peak:
        dims = 2

        def to_x(self, v):
            x = v.clone()
            x[:, 0] = mass + width * torch.tan(low + v[:, 0] * (high - low))
            return x, self._log_density(x)

        def to_v(self, x):
            v = x.clone()
            v[:, 0] = (torch.atan((x[:, 0] - mass) / width) - low) / (high - low)
            return v, self._log_density(x)

        def _log_density(self, x):
            return -torch.log(width * (1 + ((x[:, 0] - mass) / width) ** 2) * (high - low))

    def f(u):
        return (1 + u[:, 1]) / (1 + ((u[:, 0] - mass) / width) ** 2)

    exact = 1.5 * width * (high - low)
    with_channel = run(f, 2, rel_error=1e-4, channels=[Peak()])
    assert abs(pull(with_channel, exact)) < 3.5
    assert with_channel.calls < run(f, 2, rel_error=1e-4).calls


def test_events_follow_the_integrand():
    found = run(lambda u: 2 * u[:, 0] * (1 + u[:, 1]), 2, seed=2)
    events = found.unweight(20_000, seed=3)
    assert events.points.shape == (20_000, 2)
    assert events.efficiency > 0.9
    assert events.overweight_share < 5e-3
    weights, x = events.weights, events.points[:, 0]
    # E x_0 = 2/3, E x_0^2 = 1/2.
    assert float((weights * x).sum() / weights.sum()) == pytest.approx(2 / 3, abs=5 * 0.24 / 141)
    weighted = found.sample(20_000, seed=4)
    assert float(weighted.weights.mean()) == pytest.approx(1.5, abs=5 * float(weighted.weights.std()) / 141 + 1e-9)
    bootstrap = found.unweight(500, strategy="bootstrap")
    assert bootstrap.largest_weight >= events.largest_weight * 0.8


def test_a_proposal_for_events_keeps_more_of_its_points():
    """Two rectangles, which no product of grids follows; the same evaluations teach both proposals."""
    asked = []

    def rectangles(u):
        asked.append(len(u))
        first, second = (u[:, 0] < 0.3) & (u[:, 1] < 0.6), (u[:, 0] > 0.7) & (u[:, 1] > 0.8)
        return 1.0 + 20 * first.double() + 10 * second.double()

    found = run(rectangles, 2, calls=60_000, seed=4)
    spent = sum(asked)
    tuned = found.for_events()
    assert sum(asked) == spent
    assert tuned.value == found.value
    assert tuned.for_events() is tuned
    before, after = (
        float(weighted.weights.mean()) / maximum_weight(weighted.weights)
        for weighted in (found.sample(9000), tuned.sample(9000))
    )
    assert after > max(0.7, 1.2 * before)
    events = tuned.unweight(10_000, seed=1)
    inside = (events.points[:, 0] < 0.3) & (events.points[:, 1] < 0.6)
    # 21 times 0.18 of 1 + 20 0.18 + 10 0.06 in all.
    chance = 3.78 / 5.2
    assert float((events.weights * inside).sum() / events.weights.sum()) == pytest.approx(chance, abs=0.02)


def test_flows_with_small_largest_weights():
    """The tail of the weights is what the last training is about: the twin trained on the mean log keeps fewer."""
    random = torch.Generator().manual_seed(3)
    x = torch.rand((8_000, 2), generator=random, dtype=torch.float64)
    values = torch.exp(-((x[:, 0] - x[:, 1]) ** 2) / 0.02) + 0.02
    start = Mixture((GridChannel(ProductGrid.uniform(2)), ProductGrid.uniform(2)), torch.tensor([0.95, 0.05]).double())
    config = TrainConfig(epochs=8, max_seconds=30)
    first = train_flows(start, x, values, torch.zeros(len(x)).double(), config=config, seed=1)

    def kept(mixture):
        points, log_q = mixture.independent(50_000, 7)
        weights = (torch.exp(-((points[:, 0] - points[:, 1]) ** 2) / 0.02) + 0.02) * torch.exp(-log_q)
        return float(weights.mean()) / maximum_weight(weights)

    again = [
        kept(train_flows(first, x, values, torch.zeros(len(x)).double(), loss=loss, config=config, seed=2))
        for loss in ("kl", "tail")
    ]
    assert again[1] > 1.1 * again[0]


def test_events_of_a_signed_integrand_have_signs():
    found = run(lambda u: u[:, 0] - 0.3, 1, seed=2)
    events = found.unweight(5000, seed=1)
    assert set(events.weights.sign().tolist()) == {-1.0, 1.0}
    # The integral of |f| is (0.09 + 0.49)/2, of f 0.2.
    assert float(events.weights.mean()) == pytest.approx(0.2 / 0.29, abs=5 / math.sqrt(5000))


def test_events_have_a_budget():
    found = run(gauss, 3)
    with pytest.raises(BudgetError, match="of 5000 events"):
        found.unweight(5000, max_calls=1000)


def test_weights_by_inverse_variance_are_biased_and_ours_are_not():
    """Rounds of few heavy-tailed numbers: low rounds believe themselves precise."""
    random = torch.Generator().manual_seed(1)
    ours, inverse = [], []
    for _ in range(4000):
        draws = torch.exp(1.5 * torch.randn(6, 30, generator=random, dtype=torch.float64) - 1.5**2 / 2)
        values, errors = draws.mean(1), draws.std(1) / math.sqrt(30)
        rounds = [Iteration(float(v), float(e), 30, 30**1.5, 30) for v, e in zip(values, errors, strict=True)]
        ours.append(combine(rounds).value)
        inverse.append(float((values / errors**2).sum() / (1 / errors**2).sum()))
    ours, inverse = torch.tensor(ours), torch.tensor(inverse)
    assert abs(float(ours.mean()) - 1) < 4 * float(ours.std()) / math.sqrt(4000)
    assert float(inverse.mean()) < 1 - 20 * float(inverse.std()) / math.sqrt(4000)


def test_the_table_of_rounds_is_printed():
    text = str(run(gauss, 2))
    assert "round" in text
    assert "chi2" in text
    assert text.endswith("trusted")


def test_the_history_counts_every_call():
    found = sp.integrate(lambda u: torch.exp(-((u - 0.3) ** 2).sum(1) / 0.01), 4, calls=20_000, seed=1, progress=False)
    counted = [int(line.split()[1 if line.split()[0] == "search" else 2]) for line in found.history.splitlines()[1:]]
    assert sum(counted) == found.calls
    assert "search" in found.history
    assert str(found).startswith(found.history)
    assert str(found).endswith(found.verdict)


@pytest.mark.parametrize("cut", [0.5, 0.25])
def test_a_step_is_not_taken_for_a_singularity(cut):
    found = sp.integrate(lambda u: (u[:, 0] > cut).double(), 2, calls=50_000, progress=False)
    assert found.trusted, found.verdict
    assert found.value == pytest.approx(1 - cut, abs=5 * found.error + 1e-9)
