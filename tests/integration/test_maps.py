"""Laws of the maps of the unit cube: bijections whose density is the Jacobian, which fit what they are shown."""

import math

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.integration.cells import CellMap
from sbi_physics.integration.channels import GridChannel, Mixture
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.modes import cover, joined, refit
from sbi_physics.integration.nets import scrambled_nets
from sbi_physics.integration.neural import FlowMap, train_flows
from sbi_physics.train.config import TrainConfig

DIMS, N = 2, 4096
QUICK = TrainConfig(epochs=8)


class Squared:
    """x = v^2 in each dimension."""

    dims = DIMS

    def to_x(self, v):
        return v.square(), -torch.log(2 * v).sum(1)

    def to_v(self, x):
        return x.sqrt(), -torch.log(2 * x.sqrt()).sum(1)


def uniform(n=N, seed=0):
    return scrambled_nets(n, DIMS, 1, seed)[0]


def ridge(x):
    return torch.exp(-(((x[:, 0] - x[:, 1]) / 0.1) ** 2)) + 0.01


def peak(x):
    return torch.exp(-((x - 0.3) ** 2).sum(1) / 0.02)


@pytest.fixture(scope="module")
def maps():
    x, many = uniform(), uniform(1 << 14)
    grid = ProductGrid.uniform(DIMS).fitted(x, peak(x))
    some = uniform(8192)
    flat = torch.zeros(len(some), dtype=torch.float64)
    flows = train_flows(cover(some, ridge(some), clusters=(1,)), some, ridge(some), flat, config=QUICK, seed=1)
    return {
        "grid": grid,
        "grid after a channel": GridChannel(ProductGrid.uniform(DIMS), Squared()).fitted(x, peak(x)),
        "cells": CellMap.fitted(many, ridge(many), torch.ones(len(many), dtype=torch.float64)),
        "flow": flows.maps[0],
        "mixture": flows,
    }


@pytest.fixture(params=["grid", "grid after a channel", "cells", "flow"])
def each(request, maps):
    return maps[request.param]


def test_the_density_of_points_is_that_which_they_were_made_with(each):
    x, log_q = each.to_x(uniform(seed=3))
    assert bool(((x >= 0) & (x <= 1)).all())
    exact = not isinstance(each, FlowMap)
    torch.testing.assert_close(each.log_prob(x), log_q, atol=1e-9 if exact else 2e-3, rtol=0)


def test_densities_integrate_to_one(each):
    density = torch.exp(each.log_prob(uniform(1 << 16, seed=4)))
    assert float(density.mean()) == pytest.approx(1, abs=5 * float(density.std()) / 256 * 0.2)


def test_points_follow_the_density(each):
    """The mean of g/q over points of q is that of g over uniform ones."""
    x, log_q = each.to_x(uniform(1 << 14, seed=5))
    found = (1 + x[:, 0] * x[:, 1]) * torch.exp(-log_q)
    assert float(found.mean()) == pytest.approx(1.25, abs=5 * float(found.std()) / 128)


@pytest.mark.parametrize("name", ["grid", "grid after a channel", "cells"])
def test_inverses(maps, name):
    v = uniform(seed=6)
    x, log_q = maps[name].to_x(v)
    back, log_again = maps[name].to_v(x)
    torch.testing.assert_close(back, v, atol=1e-9, rtol=0)
    torch.testing.assert_close(log_again, log_q, atol=1e-9, rtol=0)


def test_a_grid_fits_a_product_and_cells_and_flows_fit_a_ridge(maps):
    for name, target, least in (("grid", peak, 0.98), ("cells", ridge, 0.7), ("flow", ridge, 0.8)):
        x, log_q = maps[name].to_x(uniform(seed=7))
        weights = target(x) * torch.exp(-log_q)
        assert float(weights.sum() ** 2 / weights.square().sum()) / N > least
    x, log_q = ProductGrid.uniform(DIMS).fitted(uniform(), ridge(uniform())).to_x(uniform(seed=7))
    weights = ridge(x) * torch.exp(-log_q)
    assert float(weights.sum() ** 2 / weights.square().sum()) / N < 0.5


def test_a_grid_follows_a_singularity_at_zero():
    grid = ProductGrid.uniform(1)
    for seed in range(6):
        x, log_q = grid.to_x(scrambled_nets(4096, 1, 1, seed)[0])
        weights = x[:, 0].clamp(min=1e-150) ** -0.8 * torch.exp(-log_q)
        grid = grid.fitted(x, weights)
    x, log_q = grid.to_x(scrambled_nets(4096, 1, 1, 99)[0])
    weights = x[:, 0] ** -0.8 * torch.exp(-log_q)
    assert float(weights.mean()) == pytest.approx(5, rel=0.02)


def test_mixtures_draw_fixed_numbers_with_the_right_factors(maps):
    mixture = maps["mixture"]
    draws = mixture.draw(4096, 8, seed=1)
    torch.testing.assert_close(mixture.log_prob(draws.points), draws.log_q, atol=2e-3, rtol=0)
    for repetition in range(8):
        mine = draws.repetition == repetition
        assert float(draws.factor[mine].sum()) == pytest.approx(1)
        for c, share in enumerate(mixture.shares.tolist()):
            assert float(draws.factor[mine & (draws.channel == c)].sum()) == pytest.approx(share)
    total = draws.factor * ridge(draws.points) * torch.exp(-draws.log_q)
    exact = 0.01 + float(ridge(uniform(1 << 16, seed=8)).sub(0.01).mean())
    assert float(total.sum()) / 8 == pytest.approx(exact, rel=0.01)
    points, log_q = mixture.independent(20_000, seed=2)
    weights = ridge(points) * torch.exp(-log_q)
    assert float(weights.mean()) == pytest.approx(exact, abs=5 * float(weights.std()) / 141)


def test_two_far_peaks_are_two_channels_and_a_third_can_join():
    def two(x):
        return sum(torch.exp(-((x - c) ** 2).sum(1) / 0.002) for c in (0.2, 0.8))

    x = uniform(1 << 14)
    found = cover(x, two(x), seed=1)
    assert len(found) == 3
    assert found.shares[:2].tolist() == pytest.approx([0.49, 0.49], abs=0.03)
    again = refit(found, x, two(x))
    joined_by = joined(again, 0.5 + 0.01 * (uniform(1024) - 0.5), 0.2)
    assert len(joined_by) == 4
    assert float(joined_by.shares.sum()) == pytest.approx(1)
    near = torch.tensor([[0.5, 0.5]]).double()
    assert float(joined_by.log_prob(near)) > float(again.log_prob(near)) + math.log(100)


@pytest.mark.parametrize("loss", ["variance", "stratified"])
def test_the_losses_of_weights_improve_a_fit(loss):
    x = uniform()
    values, flat = ridge(x), torch.zeros(N).double()
    begun = train_flows(cover(x, values, clusters=(2,)), x, values, flat, config=TrainConfig(epochs=3), seed=2)
    further = train_flows(begun, x, values, flat, loss=loss, config=TrainConfig(epochs=6), seed=3)

    def variance(mixture):
        fresh = uniform(seed=11)
        return float((ridge(fresh).square() * torch.exp(-mixture.log_prob(fresh))).mean())

    before = float((values.square() * torch.exp(-begun.log_prob(x))).mean())
    assert variance(further) < 1.02 * before


def test_flows_go_on_grids_alone():
    cells = CellMap.fitted(uniform(), ridge(uniform()), torch.ones(N, dtype=torch.float64))
    mixture = Mixture((cells, ProductGrid.uniform(DIMS)), torch.tensor([0.9, 0.1], dtype=torch.float64))
    with pytest.raises(UsageError, match="expected grids"):
        train_flows(mixture, uniform(), ridge(uniform()), torch.zeros(N).double())
