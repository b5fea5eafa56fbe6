"""Train an energy-based model: the one loop, with the gradient of contrastive divergence and chains beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.energy import EnergyModel
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train

__all__ = ["ENERGY_SETTINGS", "train_energy"]

# The target of the gradient moves with the chains: small steps of one size, and an average over many of them.
ENERGY_SETTINGS = TrainConfig(
    epochs=60, optimizer="adamw", learning_rate=2e-3, weight_decay=0.0, schedule="cosine", ema=0.995
)


def train_energy(
    model: EnergyModel,
    data: Sequence[Tensor],
    *,
    chains: int = 4096,
    weights: Tensor | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Train a model in place and leave it with the best weights found, in evaluation mode.

    Args:
        model: on the device where the work is to be done.
        data: encoded events ``(N, D)`` and, if conditional, scaled contexts ``(N, *context_shape)``.
        chains: in the replay buffer.
        weights: ``(N,)`` weights of the events, with a positive sum; negative ones may be among them.
        augment: of the events of a batch, as `train.loop.train` takes it.
        config: settings; None for `ENERGY_SETTINGS`.
        seed: of the split, the shuffles and the chains.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        What happened.  The training loss is the difference of energies, the validation loss that of score matching.

    Raises:
        UsageError: the model is conditional and there are no contexts, or the other way round.
        TrainingError, ShapeError, StoreError: as of `train.loop.train`.
    """
    if len(data) != 1 + model.conditional:
        wanted = "encoded events and scaled contexts" if model.conditional else "encoded events alone"
        raise UsageError(f"data: expected {wanted}, got {len(data)} tensors")
    each = None
    if weights is not None:
        each = as_tensor(weights, "weights")
        each = (each / each.mean()).to(model.device)
    encoded, contexts = data[0].to(model.device), data[1].to(model.device) if model.conditional else None
    with torch.no_grad(), seeded(derive(seed, "chains"), model.device):
        model.start_chains(chains, encoded, contexts, each)
    try:
        return train(
            model,
            model.loss,
            data,
            gradient=model.add_gradient,
            weights=weights,
            augment=augment,
            config=config or ENERGY_SETTINGS,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            description=description,
        )
    finally:
        model.end_chains()
