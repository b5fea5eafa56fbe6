"""The loop in which a generator and a critic learn from each other, whatever the two are.

After every `critic_steps` steps of the critic there is one of the generator, each side with its own learning rate; an
exponential moving average of the weights is what is validated and kept.  A loss says little about a generator, so
after each epoch generated events are compared with held-out ones (`diagnostics.fidelity`): the kernel distance chooses
the weights, coverage and spread tell a collapse.  Data may come as several populations, which need not be paired.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import TrainingError, UsageError
from sbi_physics.core.progress import Advance, progress_bar
from sbi_physics.core.random import derive, seeded
from sbi_physics.train.adversarial_config import AdversarialConfig, AdversarialRecord
from sbi_physics.train.flat import FlatParameters
from sbi_physics.train.optimizer import make_optimizers
from sbi_physics.train.split import Split, identity_of, read_ahead
from sbi_physics.train.state import TrainingState

__all__ = ["Batch", "Fidelity", "Game", "play"]

_log = logging.getLogger(__name__)
# Far below what a healthy generator reaches, 0.97 and 1.
_LEAST_COVERAGE = 0.5
_LEAST_SPREAD = 0.25


class Batch(NamedTuple):
    """Some events of one population: their weights ``(n,)``, of mean one over all events, and their tensors."""

    weights: Tensor
    tensors: list[Tensor]


class Fidelity(NamedTuple):
    """How near generated events are to held-out ones, see `diagnostics.fidelity`."""

    distance: float
    coverage: float
    spread: float


@dataclass(frozen=True)
class Game:
    """Two sides and what each of them minimises.

    Attributes:
        model: all that is trained, and whatever else belongs to it.
        generator: what the first side learns.
        critic: what the second side learns.
        generator_loss: from one batch of each population to a scalar.
        critic_loss: likewise.
        assess: how near generated events are to those held out, of the weights that the model has now.
    """

    model: nn.Module
    generator: nn.Module
    critic: nn.Module
    generator_loss: Callable[[list[Batch]], Tensor]
    critic_loss: Callable[[list[Batch]], Tensor]
    assess: Callable[[], Fidelity]


class _Side:
    """The parameters of one side and their optimisers."""

    def __init__(self, module: nn.Module, rate: float, config: AdversarialConfig) -> None:
        self.rate, self.clip_norm = rate, config.clip_norm
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.trained:
            raise UsageError("model: expected parameters to train on both sides, got none on one")
        self.parameters = FlatParameters.of(module)
        self.optimizers = [o for flat in self.parameters for o in make_optimizers("adamw", flat, rate, 0.0)]
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["betas"] = (config.first_moment, config.second_moment)

    def step(self, loss: Tensor, factor: float) -> Tensor:
        """Move against the gradient of a loss; the loss, not finite where the gradient is not."""
        for flat in self.parameters:
            flat.gradients.zero_()
        # Not the gradient of the other side.
        loss.backward(inputs=self.trained)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(f.gradients) for f in self.parameters]))
        for flat in self.parameters:
            flat.gradients.mul_((self.clip_norm / (norm + 1e-12)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(self.rate * factor)
                else:
                    group["lr"] = self.rate * factor
            optimizer.step()
        return loss.detach() + 0 * norm


@dataclass(frozen=True)
class _Run:
    """What stays the same during a run."""

    game: Game
    sides: tuple[_Side, _Side]
    state: TrainingState[AdversarialRecord]
    splits: list[Split]
    config: AdversarialConfig
    seed: int


def play(
    game: Game,
    splits: list[Split],
    config: AdversarialConfig,
    *,
    seed: int,
    checkpoint: str | Path | None,
    progress: bool,
    description: str,
) -> AdversarialRecord:
    """Train both sides in place; the model is left with the best weights found, in evaluation mode.

    Raises:
        UsageError: one of the sides has nothing to train.
        TrainingError: a loss, its gradient or the distance is not finite.
        StoreError: the checkpoint is damaged, or belongs to another run.
    """
    path = Path(checkpoint) if checkpoint is not None else None
    identity: dict[str, Any] = {}
    for i, split in enumerate(splits if path else []):
        identity |= {f"{i}: {key}" if i else key: v for key, v in identity_of(game.model, split, config, seed).items()}
    sides = (_Side(game.generator, config.generator_rate, config), _Side(game.critic, config.critic_rate, config))
    parameters = [flat for side in sides for flat in side.parameters]
    optimizers = [optimizer for side in sides for optimizer in side.optimizers]
    average = [flat.values.clone() for flat in parameters]
    state = TrainingState(game.model, parameters, optimizers, average, AdversarialRecord())
    try:
        state.record.events = max(len(split.train[0]) for split in splits)
        state.record.batch_size = config.batch_for(state.record.events)
        if path and path.exists():
            state.resume(path, identity)
        run = _Run(game, sides, state, splits, config, seed)
        with progress_bar(config.epochs, description, enabled=progress) as advance:
            _epochs(run, advance, (lambda: state.save(path, identity)) if path else None)
        game.model.load_state_dict(state.best)
    finally:
        state.release()
    game.model.eval()
    _judge(state.record)
    if path:
        path.unlink(missing_ok=True)
    return state.record


def _epochs(run: _Run, advance: Advance, save: Callable[[], None] | None) -> None:
    """Go on from the state until it is time to stop."""
    state, record, config = run.state, run.state.record, run.config
    started, before = time.monotonic(), record.seconds
    saved = started
    advance(state.epoch)
    while not record.stopped:
        _epoch(run)
        _assess(run)
        state.epoch += 1
        record.seconds = before + time.monotonic() - started
        record.stopped = _why_stop(state, config)
        note = f"distance {record.distance[-1]:.4f}, coverage {record.coverage[-1]:.2f}"
        advance(1, f"{note}, spread {record.spread[-1]:.2f}")
        if save and not record.stopped and time.monotonic() - saved >= config.checkpoint_seconds:
            save()
            saved = time.monotonic()


def _why_stop(state: TrainingState[AdversarialRecord], config: AdversarialConfig) -> str:
    record = state.record
    if state.epoch >= config.epochs:
        return "epochs"
    if state.epoch - 1 - record.best_epoch >= config.patience:
        return "patience"
    if config.max_seconds is not None and record.seconds >= config.max_seconds:
        return "seconds"
    return ""


def _epoch(run: _Run) -> None:
    """One pass over the largest population, in fresh orders."""
    state, config, (generator, critic) = run.state, run.config, run.sides
    steps = max(1, state.record.events // state.record.batch_size)
    device = run.splits[0].train[0].device
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    moves = 0
    state.model.train()
    with seeded(derive(run.seed, "epoch", state.epoch), device):
        orders = [_order(len(split.train[0]), steps, state.record.batch_size, device) for split in run.splits]
        coming = [read_ahead(split.train, order) for split, order in zip(run.splits, orders, strict=True)]
        for rows in zip(*coming, strict=True):
            batches = [_batch(split, mine) for split, mine in zip(run.splits, rows, strict=True)]
            factor = config.rate_factor(state.step / (config.epochs * steps))
            totals[0] += critic.step(run.game.critic_loss(batches), factor)
            state.step += 1
            if state.step % config.critic_steps == 0:
                totals[1] += generator.step(run.game.generator_loss(batches), factor)
                moves += 1
                done = state.step // config.critic_steps
                # The first steps are far from the end point: a bias-corrected decay forgets them.
                decay = min(config.ema, (1 + done) / (10 + done)) if config.ema else 0.0
                state.update_average(torch.tensor(decay, dtype=torch.float64, device=device))
    means = (totals / torch.tensor([steps, max(moves, 1)], device=device)).tolist()
    if not all(map(math.isfinite, means)):
        raise TrainingError(
            f"the losses of critic and generator became {means[0]} and {means[1]} in epoch {state.epoch}; look for "
            f"extreme or constant values in the data, or lower the learning rates (now {config.critic_rate:g} and "
            f"{config.generator_rate:g})"
        )
    state.record.critic_loss.append(means[0])
    state.record.generator_loss.append(means[1])


def _order(events: int, steps: int, batch: int, device: torch.device) -> Tensor:
    """Rows ``(steps, batch)`` of a population, shuffled anew each time that all of it has been seen."""
    rounds = math.ceil(steps * batch / events)
    rows = torch.cat([torch.randperm(events, device=device) for _ in range(rounds)])
    return rows[: steps * batch].view(steps, batch)


def _batch(split: Split, rows: Tensor) -> Batch:
    tensors = [tensor[rows] for tensor in split.train]
    if split.train_weights is None:
        return Batch(torch.ones(len(rows), dtype=tensors[0].dtype, device=rows.device), tensors)
    return Batch(split.train_weights[rows].to(tensors[0].dtype), tensors)


@torch.no_grad()
def _assess(run: _Run) -> None:
    """Compare events of the averaged weights with those held out, the same noise every time, and keep the best."""
    state, record, device = run.state, run.state.record, run.splits[0].train[0].device
    state.model.eval()
    state.swap_average()
    try:
        with seeded(derive(run.seed, "assess"), device):
            found = run.game.assess()
        if not math.isfinite(found.distance):
            raise TrainingError(f"generated events are not finite after epoch {state.epoch}; lower the learning rates")
        for values, value in zip((record.distance, record.coverage, record.spread), found, strict=True):
            values.append(value)
        if found.distance < record.best_distance:
            record.best_epoch = state.epoch
            state.keep_best()
    finally:
        state.swap_average()


def _judge(record: AdversarialRecord) -> None:
    """Say in the record, and in a warning, whether the weights that were kept have collapsed."""
    coverage, spread = record.coverage[record.best_epoch], record.spread[record.best_epoch]
    record.collapsed = not (coverage >= _LEAST_COVERAGE and spread >= _LEAST_SPREAD)
    if record.collapsed:
        record.warning = (
            f"the generator has collapsed: {coverage:.0%} of the held-out events have a generated one nearby (about "
            f"97% where all is well), and its events vary {spread:.2f} times as much as real ones; its draws stand "
            "for a part of the distribution only. Try more steps of the critic, lower learning rates or another seed"
        )
        _log.warning(record.warning)
