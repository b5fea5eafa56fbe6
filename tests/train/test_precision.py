"""Large numbers that differ little lose what they say in single precision: that is told."""

import logging

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.train.pairs import training_pairs

PRIOR = sp.Parameters([sp.Parameter("t0", td.Uniform(0.0, 1.0))])


@pytest.mark.parametrize(
    ("offset", "scale", "told"),
    [(2459000.0, 1.0, True), (0.0, 1.0, False), (2459000.0, 1e4, False), (2e9, 1e3, True)],
)
def test_dates(offset, scale, told, caplog):
    theta = PRIOR.sample(500, seed=0).double()
    x = offset + scale * theta * torch.tensor([1.0, 0.5])
    with caplog.at_level(logging.WARNING, logger="sbi_physics.train.pairs"):
        training_pairs(PRIOR, theta, x)
    assert [("x: number 0" in record.getMessage()) for record in caplog.records] == [True] * told


def test_counts_are_exact(caplog):
    x = torch.poisson(torch.full((500, 2), 4e6), generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING, logger="sbi_physics.train.pairs"):
        training_pairs(PRIOR, PRIOR.sample(500, seed=0), x)
    assert not caplog.records
