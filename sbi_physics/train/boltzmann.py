"""Train a restricted Boltzmann machine: the one loop, whose loss has the gradient of contrastive divergence."""

from pathlib import Path

from torch import Tensor

from sbi_physics.core.checks import batch_of
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.boltzmann import RestrictedBoltzmannMachine
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train

__all__ = ["BOLTZMANN_SETTINGS", "train_boltzmann"]

# Persistent chains follow a machine that changes slowly; the average takes out what noise they leave.
BOLTZMANN_SETTINGS = TrainConfig(
    epochs=60, optimizer="adamw", learning_rate=1e-2, weight_decay=0.0, schedule="cosine", ema=0.995, patience=60
)


def train_boltzmann(
    model: RestrictedBoltzmannMachine,
    v: Tensor,
    *,
    chains: int = 1024,
    weights: Tensor | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Train a machine in place and leave it with the best weights found, in evaluation mode.

    Args:
        model: on the device where the work is to be done.
        v: visible states ``(N, V)``.
        chains: how many persistent ones, if the machine has any.
        weights: ``(N,)`` weights of the states, with a positive sum; negative ones may be among them.
        config: settings; None for `BOLTZMANN_SETTINGS`.
        seed: of the split, the shuffles and the chains.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        What happened.  The training loss is the difference of free energies; the validation loss minus the
        log-probability, or for large machines the log-pseudo-likelihood.

    Raises:
        UsageError: a state is none of the units of the machine.
        TrainingError, ShapeError, StoreError: as of `train.loop.train`.
    """
    batch_of(v, model.event_shape, "v")
    low = -1 if model.units == "spin" else 0
    wrong = (v != low) & (v != 1)
    if bool(wrong.any()):
        raise UsageError(f"v: expected units of {low} and 1, got {float(v[wrong][0]):g}")
    with seeded(derive(seed, "chains"), model.device):
        if model.persistent:
            model.start_chains(chains)
    try:
        return train(
            model,
            model.loss,
            [v.to(model.weight.dtype)],
            weights=weights,
            config=config or BOLTZMANN_SETTINGS,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            description=description,
        )
    finally:
        model.end_chains()
