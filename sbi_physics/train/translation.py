"""Train the translation between two unpaired samples, of a fast and of a full simulation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.fidelity import kernel_distance, neighbour_coverage
from sbi_physics.models.cycle_gan import CycleGAN
from sbi_physics.train.adversarial import held_out, with_contexts
from sbi_physics.train.adversarial_config import AdversarialConfig, AdversarialRecord
from sbi_physics.train.adversarial_loop import Batch, Fidelity, Game, play
from sbi_physics.train.split import split_events

__all__ = ["train_translation"]


def train_translation(
    model: CycleGAN,
    fast: Sequence[Tensor],
    full: Sequence[Tensor],
    *,
    fast_weights: Tensor | None = None,
    full_weights: Tensor | None = None,
    config: AdversarialConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> AdversarialRecord:
    """Train both translators in place and leave them with the best weights found, in evaluation mode.

    Where the model is conditional, the contexts of both samples are to come from one distribution.

    Args:
        model: on the device where the work is to be done.
        fast: encoded events ``(N, D)`` and, if conditional, scaled contexts ``(N, *context_shape)``.
        full: likewise ``(M, D)`` and ``(M, *context_shape)``; no row belongs to any of the others.
        fast_weights: ``(N,)`` weights of the events, with a positive sum; negative ones may be among them.
        full_weights: likewise ``(M,)``.
        config: settings.
        seed: of the splits and the shuffles.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        What happened; distance, coverage and spread are the worse of the two directions.

    Raises:
        TrainingError: a loss is not finite.
        ShapeError: fewer than 32 events of a sample are held out, or tensors are of unequal length.
        UsageError: the weights of the training or of the held-out events sum to no positive number.
        StoreError: the checkpoint is damaged, or belongs to another run.
    """
    config = config or AdversarialConfig()
    for name, data in (("fast", fast), ("full", full)):
        if len(data) != 1 + model.conditional:
            wanted = "encoded events and scaled contexts" if model.conditional else "encoded events alone"
            raise UsageError(f"{name}: expected {wanted}, got {len(data)} tensors")
    splits = [
        split_events(fast, fast_weights, config, derive(seed, "fast"), model.device),
        split_events(full, full_weights, config, derive(seed, "full"), model.device),
    ]
    kept = [held_out(split, config.validation_rows) for split in splits]
    game = Game(
        model,
        model.generator_part,
        model.critic_part,
        lambda batches: model.generator_loss(*_arguments(batches)),
        lambda batches: model.critic_loss(*_arguments(batches)),
        lambda: _fidelity(model, kept),
    )
    return play(game, splits, config, seed=seed, checkpoint=checkpoint, progress=progress, description=description)


def _arguments(batches: list[Batch]) -> list[Tensor]:
    (fast_weights, fast), (full_weights, full) = batches
    return [fast_weights, fast[0], full_weights, full[0], *fast[1:], *full[1:]]


def _fidelity(model: CycleGAN, kept: list[tuple[list[Tensor], Tensor | None]]) -> Fidelity:
    each = []
    for back in (False, True):
        (source, source_weights), (target, weights) = reversed(kept) if back else kept
        made = model.translated(*source, back=back)
        contexts = (source[1], target[1]) if model.conditional else (None, None)
        real, generated = with_contexts(target[0], contexts[1]), with_contexts(made, contexts[0])
        spread = _deviation(made, source_weights) / _deviation(target[0], weights).clamp(min=1e-12)
        each.append(
            Fidelity(
                kernel_distance(real, generated, weights, source_weights),
                neighbour_coverage(real, generated, weights=weights),
                float(spread.min()),
            )
        )
    distances, coverages, spreads = zip(*each, strict=True)
    return Fidelity(max(distances), min(coverages), min(spreads))


def _deviation(events: Tensor, weights: Tensor | None) -> Tensor:
    """Standard deviation of each feature ``(D,)``."""
    share = torch.ones(len(events), device=events.device) if weights is None else weights
    share = (share.double() / share.double().sum()).unsqueeze(-1)
    mean = (share * events).sum(0)
    return (share * (events - mean).square()).sum(0).clamp(min=0.0).sqrt()
