"""Networks that do not know of circles say so, and those that do are silent."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.train.config import TrainConfig

ANGLE = sp.Parameters(
    [sp.Parameter("a", td.Normal(0.0, 1.0)), sp.Parameter("phi", td.Uniform(0.0, 6.28), periodic=True)]
)
LINE = sp.Parameters([sp.Parameter("a", td.Normal(0.0, 1.0)), sp.Parameter("phi", td.Uniform(0.0, 6.28))])
ONCE = {"config": TrainConfig(epochs=1), "device": "cpu"}
WAYS = {
    "npe": (lambda prior: sp.NPE(prior, augment=False, **ONCE), True),
    "npe, box": (lambda prior: sp.NPE(prior, "nsf-box", augment=False, **ONCE), False),
    "nle": (lambda prior: sp.NLE(prior, **ONCE), True),
    "nre": (lambda prior: sp.NRE(prior, **ONCE), True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prior", [ANGLE, LINE], ids=["angle", "line"])
def test_a_circle_that_is_cut_is_told(way, prior, caplog):
    make, told = WAYS[way]
    theta = prior.sample(60, seed=1)
    x = torch.stack([theta[:, 0], theta[:, 1].cos(), theta[:, 1].sin()], 1)
    make(prior).fit(theta, x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), progress=False)
    words = [text for text in caplog.messages if "the circle of phi (at 0) is cut" in text]
    assert len(words) == (told and prior is ANGLE)
    assert all("'nsf-box'" in text for text in words)


def test_variational_inference():
    def log_likelihood(theta, x):
        return 5 * torch.cos(theta[:, 1] - 6.1) - 0.5 * (theta[:, 0] - x[0]) ** 2

    found = sp.VI(ANGLE, log_likelihood, "nsf-box").fit(torch.zeros(1), steps=400, progress=False)
    angle = found.sample(4000, seed=1).values[:, 1]
    resultant = torch.exp(1j * angle).mean()
    assert abs(float(resultant.angle()) - (6.1 - 2 * math.pi)) < 0.1
