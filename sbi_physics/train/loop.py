"""One training loop for all models.

A model is trained by a function that gives the loss of each event; the loop does the rest: a validation split, batches
cut on the device by a shuffled index, per-event weights (negative ones too, as next-to-leading-order simulations have),
Muon or AdamW with a one-cycle or cosine schedule, an exponential moving average of the weights, gradient clipping,
early stopping with the best state restored, checkpoints from which a run resumes exactly, and a clear error for a loss
that is not finite.  The objective is sum(w * loss) / sum(w).
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, finite, same_length
from sbi_physics.core.errors import ShapeError, TrainingError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, seeded
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.state import TrainingState

__all__ = ["train"]

_VALIDATION_ROWS = 1 << 14


@dataclass(frozen=True)
class _Split:
    """The training and the validation events, on the device; weights have mean one."""

    train: list[Tensor]
    validation: list[Tensor]
    train_weights: Tensor | None
    validation_weights: Tensor | None


def train(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor],
    *,
    weights: Tensor | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Train `model` in place and leave it with the best weights found, in evaluation mode.

    Args:
        model: the module whose parameters are optimised, on the device where the work is to be done.
        loss: ``loss(*batch)`` with one tensor ``(n, ...)`` for each of `data` gives the loss of each event ``(n,)``.
        data: tensors with N rows each; they are moved to the device of the model.
        weights: ``(N,)`` weights of the events, with a positive sum.
        config: settings.
        seed: of the split, the shuffles and the dropout.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        progress: whether to show a progress bar.
        description: the words in front of the bar.

    Returns:
        The losses of each epoch, why it ended, and how long it took.

    Raises:
        TrainingError: the loss or its gradient is not finite.
        ShapeError: fewer than two events, tensors of unequal length, or a loss that is not one number for each event.
        UsageError: there is nothing to train, or nothing to train on; or the weights sum to no positive number.
        StoreError: the checkpoint is damaged, or belongs to another run.
    """
    config = config or TrainConfig()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("model: expected parameters to train, got none")
    split = _split(data, weights, config, seed, parameters[0].device)
    path = Path(checkpoint) if checkpoint is not None else None
    identity = _identity(model, split, config, seed) if path else {}
    state = TrainingState.begin(model, config)
    try:
        state.record.events = len(split.train[0])
        state.record.batch_size = config.batch_for(state.record.events)
        if path and path.exists():
            state.resume(path, identity)
        _run(state, loss, split, config, seed, path, identity, progress, description)
        model.load_state_dict(state.best)
    finally:
        state.release()
    model.eval()
    if path:
        path.unlink(missing_ok=True)
    return state.record


def _run(
    state: TrainingState,
    loss: Callable[..., Tensor],
    split: _Split,
    config: TrainConfig,
    seed: int,
    path: Path | None,
    identity: dict[str, Any],
    progress: bool,
    description: str,
) -> None:
    record, started, before = state.record, time.monotonic(), state.record.seconds
    saved = started
    with progress_bar(config.epochs, description, enabled=progress) as advance:
        advance(state.epoch)
        while not record.stopped:
            record.train_loss.append(_epoch(state, loss, split, config, derive(seed, "epoch", state.epoch)))
            record.validation_loss.append(_validate(state, loss, split, config))
            if record.validation_loss[-1] < record.best_validation_loss:
                record.best_epoch = state.epoch
                with _averaged(state, config):
                    state.keep_best()
            state.epoch += 1
            record.seconds = before + time.monotonic() - started
            record.stopped = _why_stop(state, config)
            advance(1, f"loss {record.train_loss[-1]:.4f}, validation {record.validation_loss[-1]:.4f}")
            if path and not record.stopped and time.monotonic() - saved >= config.checkpoint_seconds:
                state.save(path, identity)
                saved = time.monotonic()


def _why_stop(state: TrainingState, config: TrainConfig) -> str:
    record = state.record
    if state.epoch >= config.epochs:
        return "epochs"
    if state.epoch - 1 - record.best_epoch >= config.patience:
        return "patience"
    if config.max_seconds is not None and record.seconds >= config.max_seconds:
        return "seconds"
    return ""


def _epoch(state: TrainingState, loss: Callable[..., Tensor], split: _Split, config: TrainConfig, seed: int) -> float:
    """One pass over the training events in a fresh order; the mean loss."""
    model, device = state.model, split.train[0].device
    events, batch = state.record.events, state.record.batch_size
    steps = max(1, events // batch)
    total = torch.zeros((), device=device, dtype=torch.float64)
    model.train()
    with seeded(seed, device):
        # The remainder of a shuffled epoch is dropped: steps of equal size, and every event comes up in the long run.
        order = torch.randperm(events, device=device)[: steps * batch].view(steps, batch)
        for rows in order:
            each = _each(loss, [tensor[rows] for tensor in split.train])
            value = each.mean() if split.train_weights is None else (each * split.train_weights[rows]).mean()
            _set_learning_rate(state.optimizers, config, state.step / (config.epochs * steps))
            state.zero_gradients()
            value.backward()
            norm = state.clip_gradients(config.clip_norm)
            # A gradient that is not finite becomes a loss that is not finite, seen once an epoch without waiting here.
            total += value.detach() + 0 * norm
            for optimizer in state.optimizers:
                optimizer.step()
            state.step += 1
            if config.ema:
                state.update_average(config.ema)
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss or its gradient became {mean} in epoch {state.epoch}; look for extreme or constant values in "
            f"the data, or lower the learning rate (now {config.learning_rate:g})"
        )
    return mean


def _each(loss: Callable[..., Tensor], batch: list[Tensor]) -> Tensor:
    """The loss of each event of a batch; a column or a mean would broadcast against the weights and lose them."""
    each = loss(*batch)
    if each.shape != batch[0].shape[:1]:
        raise ShapeError(f"loss: expected shape ({len(batch[0])},), one number for each event, got {tuple(each.shape)}")
    return each


def _set_learning_rate(optimizers: list[torch.optim.Optimizer], config: TrainConfig, share: float) -> None:
    """The schedule as a function of the share of all steps that is done."""
    if config.schedule == "constant":
        return
    rise = config.warmup if config.schedule == "one-cycle" else 0.0
    if share < rise:
        factor = 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * share / rise))
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = config.learning_rate * max(factor, 1e-4)


@contextmanager
def _averaged(state: TrainingState, config: TrainConfig) -> Iterator[None]:
    """Give the model its averaged weights for a while."""
    if not config.ema:
        yield
        return
    state.swap_average()
    try:
        yield
    finally:
        state.swap_average()


@torch.no_grad()
def _validate(state: TrainingState, loss: Callable[..., Tensor], split: _Split, config: TrainConfig) -> float:
    state.model.eval()
    with _averaged(state, config):
        parts = []
        for start in range(0, len(split.validation[0]), _VALIDATION_ROWS):
            rows = slice(start, start + _VALIDATION_ROWS)
            each = _each(loss, [tensor[rows] for tensor in split.validation])
            parts.append(each if split.validation_weights is None else each * split.validation_weights[rows])
        mean = float(torch.cat(parts).double().mean())
    if not math.isfinite(mean):
        raise TrainingError(
            f"the validation loss is {mean} after epoch {state.epoch}; look for extreme values in the data"
        )
    return mean


def _split(
    data: Sequence[Tensor], weights: Tensor | None, config: TrainConfig, seed: int, device: torch.device
) -> _Split:
    if not data:
        raise UsageError("data: expected at least one tensor, got none")
    same_length(**{f"tensor {i}": tensor for i, tensor in enumerate(data)})
    events = len(data[0])
    if events < 2:
        raise ShapeError(f"data: expected at least 2 events, got {events}")
    held_out = min(max(1, round(events * config.validation_fraction)), events - 1)
    with seeded(derive(seed, "split")):
        order = torch.randperm(events)
    rows, validation_rows = order[held_out:], order[:held_out]
    on_device = [tensor.to(device) for tensor in data]
    parts = [[t[r.to(device)] for t in on_device] for r in (rows, validation_rows)]
    if weights is None:
        return _Split(parts[0], parts[1], None, None)
    weights = finite(as_tensor(weights, "weights"), "weights").to(device)
    if weights.shape != (events,):
        raise ShapeError(f"weights: expected shape ({events},), got {tuple(weights.shape)}")
    scaled = [weights[rows.to(device)], weights[validation_rows.to(device)]]
    for part in scaled:
        if not float(part.sum()) > 0:
            raise UsageError(f"weights: expected a positive sum, got {float(part.sum()):g}; too many negative weights")
    return _Split(parts[0], parts[1], *(w / w.mean() for w in scaled))


def _identity(model: nn.Module, split: _Split, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What must agree for a checkpoint to be taken up: settings, seed, shapes, the data themselves and the weights."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("max_seconds", "checkpoint_seconds")}
    shapes = {f"shape of {name}": list(value.shape) for name, value in model.state_dict().items()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [w for w in (split.train_weights, split.validation_weights) if w is not None]
    return {
        **settings,
        "seed": seed,
        "data": _digest([*split.train, *split.validation]),
        "weights": _digest(weights),
        **shapes,
        "trained": trained,
    }


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
