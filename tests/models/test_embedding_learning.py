"""That encoders learn: the frequency of an oscillator from irregular samples, a quarter of them missing."""

import pytest
import torch
from torch import nn

from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.build import build_encoder
from simulators.oscillator import DampedOscillator

SIMULATOR = DampedOscillator(epochs=20, duration=4.0, noise=0.2, missing_fraction=0.25)
N, STEPS, ROWS = 4000, 150, 128


def unexplained(kind, options, shuffled=False):
    """The root mean square error of the frequency on new data, over its spread under the prior."""
    theta = SIMULATOR.parameters.sample(N, seed=1)
    x, omega = SIMULATOR(theta, seed=2), (theta[:, :1] - 3.0) / 4.0 * 12**0.5
    if shuffled:
        omega = omega[torch.randperm(N, generator=torch.Generator().manual_seed(3))]
    with seeded(4):
        encoder = build_encoder(kind, tuple(SIMULATOR.x_shape), **options)
        network = nn.Sequential(encoder, nn.Linear(encoder.features, 1))
        scaled = encoder.scaling().fit(x)(x)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(STEPS):
            rows = torch.randint(N - 1000, (ROWS,))
            optimizer.zero_grad()
            (network(scaled[rows]) - omega[rows]).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        return float((network(scaled[-1000:]) - omega[-1000:]).square().mean().sqrt())


CASES = {
    "gru": ("gru", {"times": 0, "hidden": 32}),
    "peephole lstm": ("lstm", {"times": 0, "hidden": 32, "peephole": True}),
    "transformer": ("transformer", {"times": 0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_frequency_is_learned(case):
    assert unexplained(*CASES[case]) < 0.5


@pytest.mark.slow
def test_from_shuffled_pairs_nothing_is_learned():
    assert unexplained(*CASES["gru"], shuffled=True) > 0.95
