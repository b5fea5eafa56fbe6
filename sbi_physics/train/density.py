"""Fit a conditional density: a single model as it is, an ensemble of flows from a common beginning.

Training k flows from nothing costs k fits.  But the way to a good fit is long and much the same for all; where they
part is what makes a mixture better than its members.  So one flow goes most of the way at a high learning rate, and
then k copies of it go on, each with its own order of the events, while the learning rate falls to zero (as in snapshot
and fast geometric ensembles: Huang et al. 2017, arXiv:1704.00109; Garipov et al. 2018, arXiv:1802.10026).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.ensemble import FlowEnsemble
from sbi_physics.models.kernel import KernelDensity
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train
from sbi_physics.train.split import split_events

__all__ = ["train_density"]

# Of the epochs that each member sees.
_SHARED = 0.52
# Epochs without improvement after which it is time to part, or to stop.
_PATIENCE = 4
# The noise of small batches is for finding the way; near its end larger ones are as good, and cost less.  Where the
# flow has begun to overfit, the noise keeps it from going on.
_LARGER_BATCH = 2


def train_density(
    density: ConditionalDensity,
    data: Sequence[Tensor | DiskRows],
    *,
    weights: Tensor | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    validation: list[Tensor] | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Train a density in place.

    Args:
        density: a single model, or an ensemble of flows.  A kernel density estimate keeps the events that are not held
            out, at once and for good.  Of an ensemble each member sees `config.epochs` epochs, the
            first 52 % of them together, at a constant learning rate; then, with batches of twice the size if the fit
            was still improving, the rate falls as a cosine, whatever the schedule.
        data: encoded events ``(N, D)`` and, if conditional, scaled contexts ``(N, *context_shape)``.
        weights: ``(N,)``, as `train.loop.train` takes them; so for the rest.
        augment: of the events of a batch; a kernel density estimate, which sees no batches, goes without.
        validation: encoded events and scaled contexts to validate on; None holds a share of `data` out.
        config: settings.
        seed: of the split, the shuffles and the dropout.
        checkpoint: a file from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        What happened; for an ensemble the epochs of both parts one after the other.
    """
    config = config or TrainConfig()
    if isinstance(density, KernelDensity):
        return _kept(density, data, weights, validation, config, seed)
    settings: dict[str, Any] = {"gradient": density.add_gradient, "graphed": density.graphable}
    settings |= {"weights": weights, "augment": augment, "validation": validation, "seed": seed, "progress": progress}
    ensemble = density.flow if isinstance(density, FlowDensity) else None
    if not isinstance(ensemble, FlowEnsemble):
        settings |= {"config": config, "checkpoint": checkpoint, "description": description}
        return train(density, density.loss, data, **settings)
    beginning = Path(f"{checkpoint}.beginning") if checkpoint is not None else None
    epochs = min(max(1, round(_SHARED * config.epochs)), max(1, config.epochs - 1))
    patience = min(config.patience, _PATIENCE)
    common = replace(config, epochs=epochs, schedule="constant", patience=patience)
    ensemble.share_beginning()
    first = train(
        density,
        density.loss,
        data,
        config=common,
        checkpoint=beginning,
        keep_checkpoint=True,
        description=f"{description}, shared",
        **settings,
    )
    ensemble.part()
    left = None if config.max_seconds is None else max(config.max_seconds - first.seconds, 1e-3)
    apart = replace(
        config,
        epochs=max(1, config.epochs - epochs),
        batch_size=first.batch_size * (1 if first.stopped == "patience" else _LARGER_BATCH),
        patience=patience,
        schedule="cosine",
        max_seconds=left,
    )
    second = train(
        density,
        density.loss,
        data,
        config=apart,
        copies=ensemble.active,
        steps_before=len(first.train_loss) * (first.events // first.batch_size),
        checkpoint=checkpoint,
        description=f"{description}, {ensemble.active} flows",
        **settings,
    )
    if beginning is not None:
        beginning.unlink(missing_ok=True)
    return _joined(first, second)


def _kept(
    density: KernelDensity,
    data: Sequence[Tensor | DiskRows],
    weights: Tensor | None,
    validation: list[Tensor] | None,
    config: TrainConfig,
    seed: int,
) -> TrainingRecord:
    """Hand the events to a kernel density estimate, and validate it as what is trained."""
    started = time.monotonic()
    split = split_events(data, weights, config, seed, density.device, validation)
    # What it keeps has to be in memory.
    encoded, *contexts = (rows[:] for rows in split.train)
    density.fit_encoded(encoded, contexts[0] if contexts else None, split.train_weights).eval()
    with torch.no_grad():
        losses = [density.loss(*(rows[:] for rows in part)).double() for part in (split.train, split.validation)]
    shares = (split.train_weights, split.validation_weights)
    means = [float((each if w is None else each * w).mean()) for each, w in zip(losses, shares, strict=True)]
    return TrainingRecord(
        train_loss=means[:1],
        validation_loss=means[1:],
        best_epoch=0,
        seconds=time.monotonic() - started,
        stopped="epochs",
        events=len(split.train[0]),
        batch_size=len(split.train[0]),
    )


def _joined(first: TrainingRecord, second: TrainingRecord) -> TrainingRecord:
    return TrainingRecord(
        **{
            **asdict(second),
            "train_loss": first.train_loss + second.train_loss,
            "validation_loss": first.validation_loss + second.validation_loss,
            "best_epoch": len(first.validation_loss) + second.best_epoch,
            "seconds": first.seconds + second.seconds,
        }
    )
