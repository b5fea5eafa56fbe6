"""The likelihood of a pulsar timing array against a dense reference, and the symmetries that it must have."""

import pytest
import torch

from simulators.pulsar_timing import PulsarTimingArray, pulsar_timing_small
from simulators.synthetic_array import synthetic_array


def four(**settings):
    """Four pulsars, the third of which has half the span, so that its Fourier modes are nearly dependent."""
    return PulsarTimingArray(synthetic_array(4, seed=3, epochs=22), **({"red_modes": 12} | settings))


ARRAYS = {
    "small": pulsar_timing_small,
    "half_span": four,
    "more_waves": lambda: four(gw_modes=12),
    "uncorrelated": lambda: four(correlated=False),
    "fewer_times_than_modes": lambda: PulsarTimingArray(synthetic_array(2, seed=4, epochs=8, bands=2), red_modes=25),
    "one": lambda: PulsarTimingArray(
        synthetic_array(3, seed=3, epochs=40)[2:], red_modes=20, gwb=False, span=12.5, log10_A_rn=(-20, -12)
    ),
    "one_with_waves": lambda: PulsarTimingArray(synthetic_array(1, seed=3, epochs=40), red_modes=20),
}


def over_the_prior(simulator, n=4):
    """Draws from the prior and its corners: loudest and quietest, shallow and steep."""
    bounds = simulator.parameters.bounds
    lower, upper = bounds[:, 0], bounds[:, 1]
    generator = torch.Generator().manual_seed(1)
    corners = torch.where(torch.rand(n, len(bounds), generator=generator) < 0.5, lower, upper)
    shallow = torch.stack([upper[0::2], lower[1::2]], 1).flatten()
    background = torch.cat([upper[:2], lower[2:]])
    return torch.cat(
        [simulator.parameters.sample(n, seed=2).double(), corners, torch.stack([lower, upper, shallow, background])]
    )


def with_gaps(x):
    """Epochs missing here and there, and in one row a whole pulsar."""
    x = x.clone()
    x[1, 0, ::5] = torch.nan
    x[2, :, 3:9] = torch.nan
    if x.shape[1] > 1:
        x[3, -1] = torch.nan
    return x


@pytest.mark.parametrize("name", ARRAYS)
def test_agrees_with_a_dense_covariance(name, dense_timing):
    simulator = ARRAYS[name]()
    theta = over_the_prior(simulator, 2)
    x = with_gaps(simulator(theta, seed=1))
    exact = [dense_timing.dense_log_likelihood(simulator, t, y) for t, y in zip(theta, x, strict=True)]
    exact = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), exact, rtol=1e-8, atol=1e-8)


def test_every_theta_with_every_sky_whatever_is_missing():
    simulator = four()
    theta = over_the_prior(simulator)[:5]
    x = with_gaps(simulator(theta, seed=1))
    grid = simulator.log_likelihood(theta.unsqueeze(1), x)
    rows = torch.stack([torch.stack([simulator.log_likelihood(t, y) for y in x]) for t in theta])
    torch.testing.assert_close(grid, rows, rtol=1e-11, atol=1e-11)
    paired = simulator.log_likelihood(theta.expand(2, 5, -1), x)
    torch.testing.assert_close(paired, rows.diagonal().expand(2, 5), rtol=1e-11, atol=1e-11)
    assert simulator.log_likelihood(theta.reshape(5, 1, -1), x[:1]).shape == (5, 1)
    torch.testing.assert_close(simulator.given(x[2])(theta), rows[:, 2], rtol=1e-11, atol=1e-11)


def test_pieces_of_a_large_batch_are_the_whole(monkeypatch):
    simulator = four()
    theta = simulator.parameters.sample(40, seed=4).double().requires_grad_()
    x = simulator(theta.detach(), seed=5)
    whole = simulator.log_likelihood(theta, x)
    (slope,) = torch.autograd.grad(whole.sum(), theta)
    monkeypatch.setattr("simulators.timing_likelihood._ELEMENTS_IN_MEMORY", 7 * 4 * 24 * 24)
    again = simulator.log_likelihood(theta, x)
    (again_slope,) = torch.autograd.grad(again.sum(), theta)
    torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again_slope, slope, rtol=1e-9, atol=1e-9)


def test_gradient_with_missing_data():
    simulator = four(red_modes=6, gw_modes=3)
    theta = simulator.parameters.sample(4, seed=5).double()
    x = with_gaps(simulator(theta, seed=6))
    assert torch.autograd.gradcheck(
        lambda t: simulator.log_likelihood(t, x), theta.requires_grad_(), eps=1e-6, atol=1e-4, rtol=1e-5
    )


def test_order_of_pulsars_does_not_matter():
    simulator = four()
    theta = over_the_prior(simulator)
    x = with_gaps(simulator(theta, seed=1))
    order = [2, 0, 3, 1]
    turned = simulator.with_pulsars([simulator.pulsars[i] for i in order])
    columns = [0, 1] + [2 + 2 * i + j for i in order for j in (0, 1)]
    torch.testing.assert_close(
        turned.log_likelihood(theta[:, columns], x[:, order]), simulator.log_likelihood(theta, x), rtol=1e-10, atol=1e-9
    )


def test_without_correlations_pulsars_are_independent():
    together = four(correlated=False)
    theta = over_the_prior(together)
    x = together(theta, seed=1)
    total = 0.0
    for i, pulsar in enumerate(together.pulsars):
        # The phase of the Fourier modes starts at the first time of each array, which a stationary process forgets.
        alone = together.with_pulsars([pulsar])
        total = total + alone.log_likelihood(theta[:, [0, 1, 2 + 2 * i, 3 + 2 * i]], x[:, i : i + 1])
    torch.testing.assert_close(together.log_likelihood(theta, x), total, rtol=1e-9, atol=1e-7)
    correlated = four().log_likelihood(theta, x)
    assert not torch.allclose(correlated[7:], total[7:], rtol=1e-4)


def test_absent_pulsar_is_an_array_without_it():
    simulator = four()
    theta = over_the_prior(simulator)
    x = simulator(theta, seed=1)
    x[:, 1] = torch.nan
    rest = [0, 2, 3]
    fewer = simulator.with_pulsars([simulator.pulsars[i] for i in rest])
    columns = [0, 1, 2, 3, 6, 7, 8, 9]
    torch.testing.assert_close(
        simulator.log_likelihood(theta, x), fewer.log_likelihood(theta[:, columns], x[:, rest]), rtol=1e-9, atol=1e-7
    )


def test_timing_model_added_to_the_residuals_changes_nothing():
    simulator = pulsar_timing_small()
    theta = simulator.parameters.sample(6, seed=2).double()
    x = simulator(theta, seed=3).double()
    shifted = x.clone()
    for p, pulsar in enumerate(simulator.pulsars):
        shifted[:, p] += pulsar.matrix @ torch.linspace(-5, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(
        simulator.log_likelihood(theta, shifted), simulator.log_likelihood(theta, x), rtol=1e-9, atol=1e-9
    )
    off = x + torch.cos(simulator.pulsars[0].toas / 50.0)
    assert not torch.allclose(simulator.log_likelihood(theta, off), simulator.log_likelihood(theta, x), rtol=1e-3)


def test_truth_is_the_maximum_on_average():
    """E[ln p(x | truth) - ln p(x | other)] is a Kullback-Leibler divergence: positive, here by five standard errors."""
    simulator = pulsar_timing_small()
    truth = torch.tensor([-13.6, 4.33, -14.0, 3.0, -16.0, 2.0, -13.5, 2.5], dtype=torch.float64)
    x = simulator(truth.expand(1600, -1), seed=7)
    step = torch.eye(8, dtype=torch.float64)[[0, 1, 2, 6]]
    others = torch.cat([truth + 0.7 * step, truth - 0.7 * step])
    gain = simulator.log_likelihood(truth, x) - simulator.log_likelihood(others.unsqueeze(1), x)
    assert bool((gain.mean(1) > 5 * gain.std(1) / 40).all())
