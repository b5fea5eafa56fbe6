"""Streams and clusters are found with their shapes, and where there is none, none is found."""

import math

import pytest
import torch

from sbi_physics.surrogate.substructure import find_substructure

N = 4000
UNITS = torch.tensor([1.0, 25.0], dtype=torch.float64)
WIDTHS = torch.tensor([8.0, 8.0, 8.0, 100.0, 100.0, 100.0], dtype=torch.float64)
PLACE = torch.tensor([5.0, -4.0, 3.0, 60.0, 50.0, -40.0], dtype=torch.float64)
SHAPE = torch.tensor([0.3, 0.3, 0.3, 8.0, 8.0, 8.0], dtype=torch.float64)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def background(n, seed=0):
    return WIDTHS * normal(n, 6, seed=seed)


def log_background(w):
    return -0.5 * ((w / WIDTHS) ** 2).sum(-1) - float(WIDTHS.log().sum()) - 3 * math.log(2 * math.pi)


def found_in(w, share=1.0):
    return find_substructure(w, log_background(w) + math.log(share), UNITS)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_smooth_galaxy_has_none(seed):
    w = background(N, seed)
    found = found_in(w)
    assert len(found) == 0
    assert found.memberships.shape == (N, 1)
    assert bool((found.memberships == 1).all())
    assert found.log_densities(w).shape == (N, 0)


def test_a_cluster_is_one_gaussian_of_its_shape():
    w = torch.cat([background(N), PLACE + SHAPE * normal(150, 6, seed=3)])
    found = found_in(w)
    assert len(found) == 1
    assert found.memberships.shape == (N + 150, 2)
    assert float(found.memberships[N:, 1].mean()) > 0.95
    assert float(found.memberships[:N, 1].mean()) < 0.005
    # Means to their error and some background; spreads to theirs, and the prior draws them in a little.
    assert bool(((found.means[0] - PLACE).abs() < 5 * SHAPE / math.sqrt(150)).all())
    spreads = torch.sqrt(torch.diagonal(found.factors[0] @ found.factors[0].T))
    torch.testing.assert_close(spreads / SHAPE, torch.ones(6, dtype=torch.float64), rtol=0, atol=5 / math.sqrt(300))


def test_a_bent_stream_is_followed_by_several():
    angle = 1.8 * torch.rand(300, generator=torch.Generator().manual_seed(4)).double()
    zero = torch.zeros_like(angle)
    path = [15 * torch.cos(angle), 15 * torch.sin(angle), zero, -150 * torch.sin(angle), 150 * torch.cos(angle), zero]
    stream = torch.stack(path, 1) + SHAPE * normal(300, 6, seed=5)
    found = found_in(torch.cat([background(N), stream]))
    assert len(found) >= 3
    assert float(found.memberships[N:, 0].mean()) < 0.1
    assert float(found.memberships[:N, 0].mean()) > 0.99
    # One Gaussian would be as wide as the arc is deep.
    depth = 15 * (1 - math.cos(0.9))
    drawn = found.draw(torch.arange(len(found)).repeat_interleave(2000))
    radius = torch.hypot(drawn[:, 0], drawn[:, 1])
    assert float((radius - 15).abs().median()) < 0.2 * depth


def test_draws_have_the_density_that_it_says():
    w = torch.cat([background(N), PLACE + SHAPE * normal(150, 6, seed=6)])
    found = found_in(w)
    drawn = found.draw(torch.zeros(20_000, dtype=torch.int64))
    density = torch.distributions.MultivariateNormal(found.means[0], scale_tril=found.factors[0])
    torch.testing.assert_close(found.log_densities(drawn)[:, 0], density.log_prob(drawn))
    entropy = float(density.entropy())
    assert abs(float(density.log_prob(drawn).mean()) + entropy) < 5 * math.sqrt(3 / 20_000)


def test_units_do_not_matter():
    w = torch.cat([background(N), PLACE + SHAPE * normal(150, 6, seed=7)])
    scale = torch.tensor([1e3, 1.0], dtype=torch.float64).repeat_interleave(3)
    found = found_in(w)
    other = find_substructure(scale * w, log_background(w) - float(scale.log().sum()), scale[[0, 3]] * UNITS)
    torch.testing.assert_close(other.memberships, found.memberships, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.means, scale * found.means, rtol=1e-6, atol=1e-6)
