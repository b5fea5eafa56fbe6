import pytest
import torch
from torch import nn

from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train


class Location(nn.Module):
    """The mean of a Gaussian of unit width; remembers what its loss was shown."""

    def __init__(self, dims=1):
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(dims, dtype=torch.float64))
        self.seen = []

    def loss(self, x):
        self.seen.append((self.training, x, self.mu.detach().clone()))
        return 0.5 * ((x - self.mu) ** 2).sum(-1)

    def rows(self, training):
        """All rows shown, while training or while validating."""
        return torch.cat([x for mode, x, _ in self.seen if mode == training])


class Network(nn.Module):
    """A regression with all that an exact resume must carry: buffers, dropout, a frozen weight and both optimisers."""

    def __init__(self, seed=0, hidden=16):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(2, hidden),
                nn.BatchNorm1d(hidden),
                nn.Tanh(),
                nn.Dropout(0.2),
                nn.Linear(hidden, hidden),
                nn.Tanh(),
                nn.Linear(hidden, 1),
            )
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def loss(self, x, y):
        return (self.layers(x).squeeze(-1) * self.frozen - y) ** 2


@pytest.fixture
def location():
    return Location


@pytest.fixture
def network():
    return Network


@pytest.fixture
def pairs():
    """Rows and noisy targets for a `Network`."""
    x, noise = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(5))
    return [x, x[:, 0] ** 2 + 0.1 * noise[:, 0]]


@pytest.fixture
def fit():
    """Train a model of one's own, quietly; the settings of `TrainConfig` may be given one by one."""

    def run(model, data, weights=None, *, seed=0, checkpoint=None, **settings):
        data = data if isinstance(data, list) else [data]
        config = TrainConfig(**settings)
        return train(
            model, model.loss, data, weights=weights, config=config, seed=seed, checkpoint=checkpoint, progress=False
        )

    return run
