"""Train a generative adversarial network, and watch that it does not collapse."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics.fidelity import kernel_distance, neighbour_coverage, spread_ratio
from sbi_physics.models.gan import GenerativeAdversarialNetwork
from sbi_physics.train.adversarial_config import AdversarialConfig, AdversarialRecord
from sbi_physics.train.adversarial_loop import Batch, Fidelity, Game, play
from sbi_physics.train.split import Split, split_events

__all__ = ["held_out", "train_adversarial", "with_contexts"]

_DRAWS = 8
_MOST_COMPARED = 1600
_FEWEST_HELD_OUT = 32


def train_adversarial(
    model: GenerativeAdversarialNetwork,
    data: Sequence[Tensor],
    *,
    weights: Tensor | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    config: AdversarialConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> AdversarialRecord:
    """Train a network in place and leave it with the best weights found, in evaluation mode.

    Args:
        model: on the device where the work is to be done.
        data: encoded events ``(N, D)`` and, if conditional, scaled contexts ``(N, *context_shape)``.
        weights: ``(N,)`` weights of the events, with a positive sum; negative ones may be among them.
        augment: of the events of a batch, as `train.loop.train` takes it.
        config: settings.
        seed: of the split, the shuffles and the noise.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        What happened; it says whether the generator has collapsed, as does a warning in the log.

    Raises:
        TrainingError: a loss is not finite.
        ShapeError: fewer than 32 events are held out, or tensors are of unequal length.
        UsageError: the weights of the training or of the held-out events sum to no positive number.
        StoreError: the checkpoint is damaged, or belongs to another run.
    """
    config = config or AdversarialConfig()
    if len(data) != 1 + model.conditional:
        wanted = "encoded events and scaled contexts" if model.conditional else "encoded events alone"
        raise UsageError(f"data: expected {wanted}, got {len(data)} tensors")
    split = split_events(data, weights, config, seed, model.device)
    tensors, held_out_weights = held_out(split, config.validation_rows)

    def shown(batch: Batch) -> list[Tensor]:
        events, *contexts = batch.tensors
        return batch.tensors if augment is None else [augment(events), *contexts]

    game = Game(
        model,
        model.generator_part,
        model.critic_part,
        lambda batches: model.generator_loss(batches[0].weights, *shown(batches[0])),
        lambda batches: model.critic_loss(batches[0].weights, *shown(batches[0])),
        lambda: _fidelity(model, tensors, held_out_weights),
    )
    return play(game, [split], config, seed=seed, checkpoint=checkpoint, progress=progress, description=description)


def held_out(split: Split, rows: int) -> tuple[list[Tensor], Tensor | None]:
    """Some held-out events and their weights.

    Raises:
        ShapeError: there are fewer than 32.
        UsageError: their weights have no positive sum.
    """
    tensors = [tensor[:rows] for tensor in split.validation]
    if len(tensors[0]) < _FEWEST_HELD_OUT:
        raise ShapeError(f"data: expected at least {_FEWEST_HELD_OUT} events to hold out, got {len(tensors[0])}")
    weights = None if split.validation_weights is None else split.validation_weights[:rows]
    if weights is not None and not float(weights.sum()) > 0:
        raise UsageError(f"weights: expected a positive sum of the held-out ones, got {float(weights.sum()):g}")
    return tensors, weights


def with_contexts(encoded: Tensor, contexts: Tensor | None) -> Tensor:
    """Events and contexts side by side, ``(n, D + C)``; all contexts together count no more than the events."""
    if contexts is None:
        return encoded
    flat = torch.nan_to_num(contexts.flatten(1)).to(encoded.dtype)
    return torch.cat([encoded, flat * min(1.0, math.sqrt(encoded.shape[1] / flat.shape[1]))], -1)


def _fidelity(model: GenerativeAdversarialNetwork, tensors: list[Tensor], weights: Tensor | None) -> Fidelity:
    encoded, contexts = model.seen(tensors[0]), tensors[1] if model.conditional else None
    draws = torch.stack([model.imitate(encoded, contexts) for _ in range(_DRAWS)])
    real, generated = with_contexts(encoded, contexts), with_contexts(draws[0], contexts)
    # More generated events than real ones: their noise would hide which of two epochs is the better one.
    several = [with_contexts(draw, contexts) for draw in draws[: max(1, _MOST_COMPARED // len(real))]]
    # An event that is generated for the context of a real one is near to it for that alone: two halves share none.
    half = len(real) // 2 if model.conditional else len(real)
    other = generated[half:] if model.conditional else generated
    generated_weights = weights.repeat(len(several)) if weights is not None and model.conditional else None
    return Fidelity(
        kernel_distance(real, torch.cat(several), weights, generated_weights),
        neighbour_coverage(real[:half], other, weights=None if weights is None else weights[:half]),
        float(spread_ratio(encoded, draws, weights).min()),
    )
