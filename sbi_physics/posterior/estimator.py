"""What the estimators of likelihoods share: the fit of a probability of success."""

import torch

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.data import TrainingPairs
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["fit_success"]


def fit_success(
    parameters: Parameters, pairs: TrainingPairs, *, device: torch.device, seed: int, progress: bool
) -> SuccessProbability | None:
    """The probability of success over theta, where simulations failed; None where none did."""
    if not pairs.failed:
        return None
    with seeded(derive(seed, "success weights")):
        model = SuccessProbability(parameters.bounds).fit_scaling(pairs.attempted)
    model.to(device)
    train(
        model,
        model.loss,
        [pairs.attempted, pairs.success.float()],
        config=TrainConfig(epochs=15),
        seed=derive(seed, "success"),
        progress=progress,
        description="training the probability of success",
    )
    return model
