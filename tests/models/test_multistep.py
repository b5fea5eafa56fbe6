"""Few steps from noise to events: exact where they can be, of the promised order, and never beside a density."""

import math
from itertools import pairwise

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.models.diffusion.multistep import angles_of, follow
from sbi_physics.models.diffusion.ode import solve

MEAN, WIDTH = 0.5, 0.3


class Normal(torch.nn.Module):
    """The velocity for events N(mean, width^2), instead of a network; counts its evaluations."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.width, self.evaluations = width, 0
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def describe(self, summary):
        return None

    def condition(self, angles, description):
        return angles.unsqueeze(-1)

    def velocity(self, events, angles):
        self.evaluations += 1
        cos, sin = angles.cos(), angles.sin()
        slope = cos * sin * (1 - self.width**2) / (cos**2 * self.width**2 + sin**2)
        return slope * (events - MEAN * cos) - MEAN * sin


def density_of(width=WIDTH, **options):
    density = DiffusionDensity((2,), **options).double()
    density.network = Normal(width)
    return density.eval()


def field_of(width):
    network = Normal(width).double()
    return lambda angle: lambda points: network.velocity(points, torch.tensor([[angle]], dtype=torch.float64))


@pytest.fixture
def noise():
    return torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
def test_the_angles_fall_from_noise_to_events(steps):
    angles = angles_of(steps)
    assert len(angles) == steps + 1
    assert (angles[0], angles[-1]) == (0.5 * math.pi, 0.0)
    assert all(after < before for before, after in pairwise(angles))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_event_is_reached_exactly_in_any_number_of_steps(steps, noise):
    """Without width the event that is foreseen never changes: the integrals alone are at work."""
    places = follow(field_of(0.0), noise, angles_of(steps))
    assert len(places) == steps
    for angle, place in zip(angles_of(steps)[1:], places, strict=True):
        torch.testing.assert_close(place, math.sin(angle) * noise + math.cos(angle) * MEAN, rtol=0, atol=1e-12)


def test_what_is_foreseen_may_be_a_polynomial(noise):
    """From the third step on the event foreseen is followed exactly where it is a parabola in the cosine."""

    def parabola(signal):
        return 1 - 2 * signal + 3 * signal**2

    def field_at(angle):
        return lambda points: (math.cos(angle) * points - parabola(math.cos(angle))) / math.sin(angle)

    angles = [1.2, 1.0, 0.8, 0.5, 0.3]
    places = [noise, *follow(field_at, noise, angles)]
    fine = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for i in (2, 3):
        phi = angles[i + 1] + (angles[i] - angles[i + 1]) * fine
        integral = torch.trapezoid(parabola(phi.cos()) / phi.sin() ** 2, phi)
        exact = math.sin(angles[i + 1]) * (places[i] / math.sin(angles[i]) + integral)
        torch.testing.assert_close(places[i + 1], exact, rtol=0, atol=1e-7)


def test_the_error_falls_as_the_order_says(noise):
    exact = MEAN + WIDTH * noise
    errors = [float((follow(field_of(WIDTH), noise, angles_of(k))[-1] - exact).abs().max()) for k in (8, 16, 32, 64)]
    assert errors[-1] < 1e-3
    # Better than second order, no better than third.
    for coarse, fine in pairwise(errors[1:]):
        assert 4 < coarse / fine < 10


@pytest.mark.parametrize("width", [0.03, 0.1, 0.3])
def test_eight_evaluations_reach_further_than_those_of_the_runge_kutta_solver(width, noise):
    exact = MEAN + width * noise
    few = follow(field_of(width), noise, angles_of(8))[-1]
    runge_kutta, _ = solve(field_of(width), noise, steps=2, to_noise=False, divergences=False)
    assert float((few - exact).abs().max()) < float((runge_kutta - exact).abs().max())


def test_draws_cost_as_many_evaluations_as_are_asked_for():
    density = density_of(sampling_steps=16)
    draws = density.sample(20_000, seed=1)
    assert density.network.evaluations == 3 * 16
    assert float((draws.mean(0) - MEAN).abs().max()) < 5 * WIDTH / 20_000**0.5 + 0.005
    assert float((draws.std(0) / WIDTH - 1).abs().max()) < 5 / 40_000**0.5 + 0.02


def test_densities_do_not_know_of_the_few_steps():
    few, many = density_of(sampling_steps=2), density_of()
    events = MEAN + WIDTH * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(few.log_prob(events), many.log_prob(events))
    for one, other in zip(few.sample_and_log_prob(9, seed=3), many.sample_and_log_prob(9, seed=3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(few.sample(9, seed=3), many.sample(9, seed=3))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_wrong_numbers_of_steps_are_named(steps):
    with pytest.raises(UsageError, match="sampling_steps: expected an integer of at least 1"):
        DiffusionDensity((2,), sampling_steps=steps)
