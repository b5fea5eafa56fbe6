"""Train a consistency model: solutions of a diffusion model are its data, and where those end is what it learns.

The solutions are followed by the few-step solver (`models.diffusion.multistep`) in so many steps that its error is far
below that of a model of one step.  Where there is no teacher, one is trained first, on events.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.build import training_settings
from sbi_physics.models.consistency import ConsistencyModel
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.models.diffusion.multistep import PRECISE, angles_of
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train

__all__ = ["CONSISTENCY_SETTINGS", "distill_consistency", "train_consistency"]

CONSISTENCY_SETTINGS = TrainConfig(epochs=60, batch_size=512, learning_rate=5e-3, ema=0.995)
_FEWEST_SOLUTIONS = 1 << 15
_ROWS_AT_ONCE = 1 << 13


def distill_consistency(
    model: ConsistencyModel,
    teacher: DiffusionDensity,
    n: int,
    contexts: Tensor | None = None,
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Teach a model in place where the solutions of a diffusion model end.

    Args:
        model: gets the scalings of the teacher; and begins as the teacher, where their networks are of one size.
        teacher: trained, of the same events and contexts, on the same device.
        n: how many solutions to follow.
        contexts: *scaled* contexts ``(N, *context_shape)``, which solutions take in turn; None for none.
        config: settings; None for `CONSISTENCY_SETTINGS`.  The seconds are those of training, without following.
        seed: of the noise, the split and the shuffles.
        checkpoint: a file from which an interrupted run goes on exactly.
        progress: whether to show progress bars.
        description: the words in front of the bar.

    Returns:
        What happened; losses are squared distances in units of the standardised events.

    Raises:
        UsageError: n is no positive integer, or there are contexts and the model takes none, or the other way round.
        TrainingError, ShapeError, StoreError: as of `train.loop.train`.
    """
    positive_integer(n, "n")
    if (contexts is not None) != model.conditional:
        wanted = "scaled contexts" if model.conditional else "no contexts"
        raise UsageError(f"contexts: this model takes {wanted}, got {'none' if contexts is None else 'some'}")
    model.begin_as(teacher)
    chosen = (
        None if contexts is None else contexts.to(model.device)[torch.arange(n, device=model.device) % len(contexts)]
    )
    with (
        seeded(derive(seed, "noise"), model.device),
        progress_bar(n, "drawing from the teacher", enabled=progress) as bar,
    ):
        data = []
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, n - start)
            data.append(
                _solutions(model.angles, teacher, rows, None if chosen is None else chosen[start : start + rows])
            )
            bar(rows)
    columns = [torch.cat(parts) for parts in zip(*data, strict=True)]
    return train(
        model,
        model.loss,
        columns if chosen is None else [*columns, chosen],
        config=config or CONSISTENCY_SETTINGS,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        description=description,
    )


def train_consistency(
    model: ConsistencyModel,
    data: Sequence[Tensor],
    *,
    weights: Tensor | None = None,
    config: TrainConfig | None = None,
    teacher_config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> tuple[TrainingRecord, TrainingRecord]:
    """Train a model in place on events: a diffusion model of the same size first, which then teaches it.

    Args:
        model: with fitted scalings, on the device where the work is to be done.
        data: encoded events ``(N, D)`` and, if conditional, scaled contexts ``(N, *context_shape)``.
        weights: ``(N,)`` weights of the events, with a positive sum; negative ones may be among them.
        config: settings of the second part; None for `CONSISTENCY_SETTINGS`.
        teacher_config: settings of the first; None for those that suit a diffusion model.
        seed: of all that is random.
        checkpoint: a file from which an interrupted run goes on exactly; the first part has one beside it.
        progress: whether to show progress bars.
        description: the words in front of the bar.

    Returns:
        What happened in the first and in the second part.

    Raises:
        UsageError, TrainingError, ShapeError, StoreError: as of `train.loop.train`.
    """
    if len(data) != 1 + model.conditional:
        wanted = "encoded events and scaled contexts" if model.conditional else "encoded events alone"
        raise UsageError(f"data: expected {wanted}, got {len(data)} tensors")
    beginning = None if checkpoint is None else Path(f"{checkpoint}.teacher")
    with seeded(derive(seed, "teacher")):
        teacher = model.new_teacher()
    first = train(
        teacher,
        teacher.loss,
        data,
        weights=weights,
        config=teacher_config or replace(TrainConfig(), **training_settings("flow-matching")),
        seed=seed,
        checkpoint=beginning,
        keep_checkpoint=True,
        progress=progress,
        description=f"{description}, teacher",
    )
    second = distill_consistency(
        model,
        teacher,
        max(_FEWEST_SOLUTIONS, len(data[0])),
        data[1] if model.conditional else None,
        config=config,
        seed=derive(seed, "student"),
        checkpoint=checkpoint,
        progress=progress,
        description=f"{description}, student",
    )
    if beginning is not None:
        beginning.unlink(missing_ok=True)
    return first, second


@torch.no_grad()
def _solutions(
    angles: Sequence[float], teacher: DiffusionDensity, n: int, contexts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The ends ``(n, D)`` of n solutions, and where they are at the angles ``(n, k, D)``."""
    grid = sorted({*angles_of(PRECISE), *angles}, reverse=True)
    noise = torch.randn(n, *teacher.event_shape, device=teacher.device, dtype=teacher.event_scaling.mean.dtype)
    places = [noise, *teacher.follow(noise, teacher.summary(contexts), grid)]
    return places[-1], torch.stack([places[grid.index(angle)] for angle in angles], 1)
