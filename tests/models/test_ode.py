"""The solver against equations whose solution is known: its order, its way back, and the divergence along the way."""

import math
from itertools import pairwise

import pytest
import torch

from sbi_physics.models.diffusion.ode import divergence_of, solve


def linear(matrix):
    return lambda angle: lambda points: points @ matrix.T


@pytest.fixture
def matrix():
    return torch.tensor([[0.3, -1.0, 0.0], [0.8, -0.5, 0.2], [0.0, 0.4, 0.6]], dtype=torch.float64)


@pytest.fixture
def points():
    return torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_linear_equation_and_the_order_of_the_solver(matrix, points):
    exact = points @ torch.linalg.matrix_exp(0.5 * math.pi * matrix).T
    errors = []
    for steps in (16, 32, 64):
        found, divergence = solve(linear(matrix), points, steps=steps, to_noise=True, divergences=True)
        errors.append(float((found - exact).abs().max()))
        torch.testing.assert_close(divergence, torch.full((20,), 0.5 * math.pi * 0.4, dtype=torch.float64))
    assert errors[1] < 1e-4
    # Fourth order: half the step, a sixteenth of the error.
    for coarse, fine in pairwise(errors):
        assert 12 < coarse / fine < 24


def test_there_and_back(matrix, points):
    there, integral = solve(linear(matrix), points, steps=40, to_noise=True, divergences=True)
    back, way_back = solve(linear(matrix), there, steps=40, to_noise=False, divergences=True)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-5)
    torch.testing.assert_close(way_back, -integral)
    without, nothing = solve(linear(matrix), points, steps=40, to_noise=True, divergences=False)
    assert torch.equal(without, there)
    assert not bool(nothing.any())


@pytest.mark.parametrize("width", [1.0, 0.1, 0.01])
def test_the_density_of_a_normal_event(width):
    """The velocity is known where events are N(0.5, width^2): what is left is the error of 32 steps."""

    def field_at(angle):
        cos, sin = math.cos(angle), math.sin(angle)
        slope = cos * sin * (1 - width**2) / (cos**2 * width**2 + sin**2)
        return lambda points: slope * (points - 0.5 * cos) - 0.5 * sin

    events = 0.5 + width * torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(-1)
    noise, divergence = solve(field_at, events, steps=32, to_noise=True, divergences=True)
    exact = (events[:, 0] - 0.5) / width
    torch.testing.assert_close(noise[:, 0], exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(divergence, torch.full_like(exact, -math.log(width)), rtol=0, atol=2e-3)
    few, _ = solve(field_at, events, steps=6, to_noise=True, divergences=False)
    assert width == 1.0 or float((few[:, 0] - exact).abs().max()) > 1e-3


@pytest.mark.parametrize("dims", [1, 3, 32])
def test_the_divergence_is_the_trace_of_the_jacobian(dims):
    generator = torch.Generator().manual_seed(dims)
    weight = torch.randn(dims, dims, dtype=torch.float64, generator=generator)
    points = torch.randn(5, dims, dtype=torch.float64, generator=generator)

    def field(x):
        return torch.sin(x @ weight) * x.square().sum(-1, keepdim=True)

    with torch.no_grad():
        velocity, divergence = divergence_of(field, points)
    assert not velocity.requires_grad
    assert not divergence.requires_grad
    assert torch.equal(velocity, field(points))
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda x: field(x[None])[0], row) for row in points])
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(-1))


def test_in_many_dimensions_the_divergence_is_estimated_without_bias():
    dims, repeats = 40, 200
    weight = torch.randn(dims, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = torch.zeros(2, dims, dtype=torch.float64)
    estimates = torch.stack([divergence_of(lambda x: x @ weight, points, seed=i)[1][0] for i in range(repeats)])
    symmetric = (weight + weight.T) / 2
    # Of one estimate from 16 vectors of signs: 2 |S|^2 without the diagonal, over 16.
    sigma = (2 * (symmetric.square().sum() - symmetric.diagonal().square().sum()) / 16) ** 0.5
    assert float((estimates.mean() - weight.trace()).abs()) < 4 * float(sigma) / repeats**0.5
    assert float(estimates.std()) == pytest.approx(float(sigma), rel=0.25)
    same = divergence_of(lambda x: x @ weight, points, seed=3)[1]
    assert torch.equal(same, estimates[3].expand(2))
    exact = divergence_of(lambda x: x * torch.arange(dims), points)[1]
    torch.testing.assert_close(exact, torch.full_like(exact, dims * (dims - 1) / 2))
