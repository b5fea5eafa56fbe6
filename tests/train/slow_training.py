"""A training run that tests kill: ``python slow_training.py CHECKPOINT``."""

import sys
import time

import torch
from torch import nn

from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train


def fit(checkpoint, pause=0.0):
    """The model and the record of a run of 60 steps with a pause before each."""
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
        )

    def loss(x):
        time.sleep(pause)
        return (model(x)[:, 0] - x[:, 0] * x[:, 1]) ** 2

    config = TrainConfig(epochs=20, batch_size=30, checkpoint_seconds=0.0, learning_rate=0.02)
    return model, train(model, loss, [x], config=config, seed=2, checkpoint=checkpoint, progress=False)


if __name__ == "__main__":
    fit(sys.argv[1], pause=0.02)
