"""Scrambled nets: uniform, even, unbiased, and with errors that repetitions tell."""

import math

import pytest
import torch
from scipy.stats import kstest

from sbi_physics.core.errors import UsageError
from sbi_physics.integration.nets import scrambled_nets


def test_each_net_has_one_point_in_every_interval_of_every_axis():
    nets = scrambled_nets(64, 7, 5, seed=1)
    assert nets.shape == (5, 64, 7)
    cells = (nets * 64).long().sort(dim=1).values
    assert torch.equal(cells, torch.arange(64).view(1, 64, 1).expand(5, 64, 7))


def test_pairs_of_axes_are_nets_too():
    """Sobol points are a (0, m, 2)-net in the first two dimensions: one point in each box of area 1/n."""
    net = scrambled_nets(256, 2, 1, seed=2)[0]
    for first in range(9):
        boxes = (net[:, 0] * 2**first).long() * 2 ** (8 - first) + (net[:, 1] * 2 ** (8 - first)).long()
        assert len(boxes.unique()) == 256


def test_each_point_is_uniform():
    points = scrambled_nets(16, 3, 500, seed=3)
    assert kstest(points[:, 5, 2].numpy(), "uniform").pvalue > 1e-3
    assert kstest(points[:, 0, 0].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "f", [lambda u: u.sum(-1), lambda u: torch.exp(u.sum(-1)), lambda u: (u.prod(-1) > 0.1).double()]
)
def test_the_scatter_of_repetitions_is_the_error(f):
    """Pulls of 200 estimates, by 16 repetitions each, are Student's t; a scrambling by matrices fails this."""
    values = f(scrambled_nets(64, 3, 200 * 16, seed=4)).mean(1).view(200, 16)
    truth = float(f(scrambled_nets(1 << 16, 3, 8, seed=5)).mean())
    pulls = (values.mean(1) - truth) / (values.std(1) / 4)
    assert abs(float(pulls.mean())) < 4 / math.sqrt(200)
    assert 0.8 < float(pulls.std()) / math.sqrt(15 / 13) < 1.25


def test_smooth_integrands_converge_faster_than_by_independent_points():
    errors = [float(torch.exp(scrambled_nets(n, 2, 64, seed=6).sum(-1)).mean(1).std()) for n in (64, 1024)]
    assert errors[1] < errors[0] / 16
    assert errors[1] < 0.1 * math.sqrt(1.0) / math.sqrt(1024)


def test_other_numbers_than_powers_of_two_are_refused():
    with pytest.raises(UsageError, match="power of two, got 100"):
        scrambled_nets(100, 2, 1, seed=1)


def test_same_seed_same_points():
    assert torch.equal(scrambled_nets(32, 4, 3, seed=9), scrambled_nets(32, 4, 3, seed=9))
    assert not torch.equal(scrambled_nets(32, 4, 3, seed=9), scrambled_nets(32, 4, 3, seed=10))
