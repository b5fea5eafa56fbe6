"""What the estimators share: the checks of their arguments, and the fit of a probability of success."""

from typing import Any

import torch
from torch import nn

from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.data import TrainingPairs
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["check_embedding", "fit_success"]


def check_embedding(embedding: Any) -> nn.Module | None:
    """Return an embedding network, or None."""
    if embedding is not None and not isinstance(embedding, nn.Module):
        raise UsageError(f"embedding: expected a torch module, got {type(embedding).__name__}")
    return embedding


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
