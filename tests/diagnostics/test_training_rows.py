"""A check with the training set itself is told; one with fresh simulations, or other rows of that file, is not."""

import logging

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.random import seeded
from sbi_physics.diagnostics.training_rows import FIRST_ROWS, first_rows, holds_first_rows
from sbi_physics.train.config import TrainConfig

LOGGER = "sbi_physics.diagnostics.training_rows"
PRIOR = sp.Parameters([sp.Parameter("a", torch.distributions.Uniform(-1.0, 1.0))])


def simulated(seed, n=300):
    with seeded(seed):
        theta = PRIOR.sample(n, seed=seed)
        return theta, theta + 0.3 * torch.randn(n, 2)


def told(caplog, check):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        check()
    return [record for record in caplog.records if record.name == LOGGER]


def fitted(estimator):
    options = {"blocks": 1, "hidden_features": 4}
    return estimator(PRIOR, config=TrainConfig(epochs=1), device="cpu", **options).fit(*simulated(0), progress=False)


def test_a_posterior(caplog, tmp_path):
    fitted(sp.NPE).save(tmp_path / "a.safetensors")
    loaded = sp.load(tmp_path / "a.safetensors", device="cpu")
    theta, x = simulated(0)
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(0))

    def check(theta, x):
        sp.diagnostics.calibrate(loaded, theta, x, draws=5, highest_density=False)

    assert len(told(caplog, lambda: check(theta[:40], x[:40]))) == 1
    assert len(told(caplog, lambda: check(theta[order].numpy(), x[order].numpy()))) == 1
    assert not told(caplog, lambda: check(theta[40:80], x[40:80]))
    assert not told(caplog, lambda: check(*simulated(1, 40)))


@pytest.mark.parametrize("estimator", [sp.NLE, sp.NRE])
def test_likelihoods_and_ratios_remember_as_well(estimator):
    provenance = fitted(estimator).provenance
    assert holds_first_rows(provenance, *simulated(0))
    assert not holds_first_rows(provenance, *simulated(1))


def test_a_surrogate(caplog):
    surrogate = sp.Surrogate("mixture", prior=PRIOR, device="cpu", config={"epochs": 1}).fit(
        *simulated(0, 1000), progress=False
    )
    options = {"batches": (), "classifier": {"epochs": 1}, "progress": False}
    assert len(told(caplog, lambda: surrogate.check(*simulated(0, 1000), **options))) == 1
    assert not told(caplog, lambda: surrogate.check(*simulated(1, 1000), **options))


def test_what_cannot_be_told_is_not():
    theta, x = simulated(0)
    assert holds_first_rows({FIRST_ROWS: first_rows(theta, x)}, theta, x)
    assert not holds_first_rows({}, theta, x)  # files of before there was such a thing
    assert not holds_first_rows({FIRST_ROWS: first_rows(theta, x)}, theta, {"x": x})
    # The same theta with other noise are fresh simulations.
    assert not holds_first_rows({FIRST_ROWS: first_rows(theta, x)}, theta, x + 1)
