"""Expectation maximisation: it climbs, finds what is there, agrees with scikit-learn, and survives degenerate data."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.models.expectation_maximisation import fit_mixture

N = 4000
MEANS = torch.tensor([[0.0, 0.0], [4.0, 1.0], [-2.0, 5.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])
ROOTS = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.3, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-0.8, 0.2]]])


def draw(n, seed):
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(SHARES, n, True, generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    return MEANS[component] + torch.einsum("nij,nj->ni", ROOTS[component], noise)


@pytest.fixture(scope="module")
def events():
    return draw(N, 0)


@pytest.fixture(scope="module")
def fitted(events):
    return fit_mixture(events, 3, seed=1)


@torch.no_grad()
def components(fit):
    """Shares, means and covariances in the units of the events, in order of the first mean."""
    parts, scaling = fit.density._given(None), fit.density.event_scaling
    order = parts.means[0, :, 0].argsort()
    precision = parts.factors[0].mT @ parts.factors[0]
    covariance = torch.linalg.inv(precision) * scaling.scale * scaling.scale.unsqueeze(-1)
    return parts.logits[0].softmax(-1)[order], scaling.inverse(parts.means[0])[order], covariance[order]


def test_a_known_mixture_is_found(fitted):
    assert fitted.converged
    shares, means, covariances = components(fitted)
    order = MEANS[:, 0].argsort()
    counts = N * SHARES[order]
    exact = (ROOTS @ ROOTS.mT)[order]
    sigma = exact.diagonal(dim1=-2, dim2=-1).sqrt()
    # Well separated: what is left is the statistics of each component.
    assert ((shares - SHARES[order]).abs() < 5 * (SHARES[order] * (1 - SHARES[order]) / N).sqrt()).all()
    assert ((means - MEANS[order]).abs() < 5 * sigma / counts.sqrt().unsqueeze(-1)).all()
    error = 5 * (2 / counts).sqrt()[:, None, None] * sigma.unsqueeze(-1) * sigma.unsqueeze(-2)
    assert ((covariances - exact).abs() < error).all()


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_iteration_goes_down(count, weighted, events):
    weights = torch.rand(N, generator=torch.Generator().manual_seed(2)) ** 3 if weighted else None
    fit = fit_mixture(events, count, weights=weights, iterations=60, tolerance=0.0)
    gains = np.diff(fit.objective)
    assert gains.min() > -1e-11
    assert len(gains) <= 60 + 10
    # It is the objective of what comes out, up to the penalty and single precision.
    with torch.no_grad():
        log_prob = fit.density.log_prob(events)
        mass = torch.ones(N) if weights is None else weights
        mean = float((mass * log_prob).sum() / mass.sum() - fit.density.event_scaling.ladj)
    assert fit.objective[-1] == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_good_as_scikit_learn(count, events):
    fresh = draw(N, 7)
    fit = fit_mixture(events, count, seed=3)
    reference = GaussianMixture(count, n_init=3, tol=1e-5, max_iter=300, random_state=0).fit(events.numpy())
    with torch.no_grad():
        found = [float(fit.density.log_prob(rows).double().mean()) for rows in (events, fresh)]
    # Other starts may end in another optimum: those of too many components differ by some 0.001.
    assert found[0] == pytest.approx(reference.score(events.numpy()), abs=1e-5 if count < 4 else 5e-3)
    assert found[1] == pytest.approx(reference.score(fresh.numpy()), abs=1e-4 if count < 4 else 5e-3)


def test_whole_weights_are_repeated_events(events):
    some = events[:600]
    times = torch.arange(600) % 3
    repeated = fit_mixture(some.repeat_interleave(times, 0), 3, seed=1, tolerance=1e-9)
    weighted = fit_mixture(some, 3, weights=times, seed=1, tolerance=1e-9)
    for one, other in zip(components(repeated), components(weighted), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    unweighted = fit_mixture(some, 3, seed=1, tolerance=1e-9)
    assert float((components(unweighted)[1] - components(weighted)[1]).abs().max()) > 0.01


def test_weights_of_zero_are_as_good_as_absent(events):
    weights = torch.ones(N)
    weights[events[:, 0] > 2] = 0.0
    shares, means, _ = components(fit_mixture(events, 2, weights=weights, seed=1))
    assert shares == pytest.approx(torch.tensor([2 / 7, 5 / 7]), abs=0.03)
    assert means[:, 0] == pytest.approx(torch.tensor([-2.0, 0.0]), abs=0.2)


def test_a_mixture_on_a_bounded_support_stays_inside():
    generator = torch.Generator().manual_seed(0)
    events = torch.rand(3000, 1, generator=generator).sqrt()
    fit = fit_mixture(events, 4, bounds=torch.tensor([[0.0, 1.0]]))
    draws = fit.density.sample(3000, seed=1)
    assert bool(((draws > 0) & (draws < 1)).all())
    assert float(draws.mean()) == pytest.approx(2 / 3, abs=5 * (2 / 18 / 3000) ** 0.5)
    edges = torch.linspace(0, 1, 4001)
    with torch.no_grad():
        density = fit.density.log_prob(((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)).exp()
    assert float(density.mean()) == pytest.approx(1.0, abs=0.02)


def test_same_seed_same_bytes_and_the_global_stream_is_untouched(events):
    state = torch.random.get_rng_state()
    first, second = (fit_mixture(events[:300], 4, seed=5).density.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "degenerate",
    [torch.zeros(50, 2), torch.cat([torch.zeros(40, 2), torch.eye(2)]), torch.arange(50.0).unsqueeze(-1).expand(50, 2)],
    ids=["one point", "three points", "a line"],
)
def test_degenerate_events_have_a_finite_density(degenerate):
    fit = fit_mixture(degenerate, 4)
    assert bool(torch.isfinite(fit.density.log_prob(degenerate)).all())
    assert np.diff(fit.objective).min() > -1e-9
    assert bool(torch.isfinite(fit.density.sample(10, seed=0)).all())


def test_a_budget_of_iterations(events):
    fit = fit_mixture(events, 6, iterations=2, tolerance=0.0)
    assert not fit.converged
    assert len(fit.objective) <= 1 + 10 + 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": [1.0, -0.5] * 10}, UsageError, "weights: expected none below 0, got -0.5 in row 1; .* gradients"),
        ({"weights": [1.0] * 3}, ShapeError, r"weights: expected shape \(20,\), got \(3,\)"),
        ({"weights": [torch.nan] * 20}, NonFiniteError, "weights: expected finite"),
        ({"weights": [0.0] * 19 + [1.0]}, UsageError, "at most one for each event, got 2 for 1 events of positive"),
        ({"components": 21}, UsageError, "at most one for each event, got 21 for 20 events"),
        ({"components": 0}, UsageError, "components: expected an integer of at least 1, got 0"),
        ({"iterations": 0}, UsageError, "iterations: expected an integer of at least 1"),
        ({"tolerance": -1.0}, UsageError, "tolerance: expected a number of at least 0, got -1.0"),
        ({"events": torch.zeros(20)}, ShapeError, r"events: expected shape \(N, D\), got \(20,\)"),
        ({"events": torch.full((20, 1), torch.inf)}, NonFiniteError, "events: expected finite"),
        ({"bounds": torch.tensor([[0.0, 10.0]])}, SupportError, r"inside the bounds, got \[11.0\] in row 11"),
    ],
)
def test_wrong_input(changes, error, message):
    arguments = {"events": torch.arange(20.0).unsqueeze(-1), "components": 2, **changes}
    with pytest.raises(error, match=message):
        fit_mixture(arguments.pop("events"), arguments.pop("components"), **arguments)
