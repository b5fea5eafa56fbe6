"""One training loop for all models.

A model is trained by a function that gives the loss of each event; the loop does the rest: a validation split, batches
cut on the device by a shuffled index, per-event weights (negative ones too, as next-to-leading-order simulations have),
Muon or AdamW with a one-cycle or cosine schedule, an exponential moving average of the weights, gradient clipping,
early stopping with the best state restored, checkpoints from which a run resumes exactly, and a clear error for a loss
that is not finite.  The objective is sum(w * loss) / sum(w).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, TrainingError, UsageError
from sbi_physics.core.progress import Advance, progress_bar
from sbi_physics.core.random import derive, seeded
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.parallel import Processes
from sbi_physics.train.split import Split, identity_of, read_ahead, split_events
from sbi_physics.train.state import TrainingState
from sbi_physics.train.step import Step

__all__ = ["train"]

_VALIDATION_ROWS = 1 << 14


@dataclass(frozen=True)
class _Run:
    """What stays the same during a run."""

    state: TrainingState[TrainingRecord]
    loss: Callable[..., Tensor]
    step: Step
    split: Split
    config: TrainConfig
    processes: Processes
    seed: int
    copies: int
    steps_before: int


def train(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor | DiskRows],
    *,
    gradient: Callable[..., Tensor] | None = None,
    graphed: bool = False,
    copies: int = 1,
    steps_before: int = 0,
    weights: Tensor | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    validation: Sequence[Tensor] | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    progress: bool = True,
    description: str = "training",
) -> TrainingRecord:
    """Train `model` in place and leave it with the best weights found, in evaluation mode.

    Args:
        model: the module whose parameters are optimised, on the device where the work is to be done.
        loss: ``loss(*batch)`` with one tensor ``(n, ...)`` for each of `data` gives the loss of each event ``(n,)``.
        data: tensors with N rows each, which are moved to the device of the model, or rows that stay on the disk.
        gradient: ``gradient(weights, *batch)`` adds the gradient of ``sum(weights * loss)`` to the `grad` of the
            parameters and returns the losses ``(n,)``: a faster way than automatic differentiation of `loss`, if any.
        graphed: whether to replay the step as a CUDA graph, on a device that can.
        copies: how many times an epoch shows each event, in independent orders side by side: a batch is then that many
            batches one after the other (an ensemble gives one to each member).
        steps_before: steps of an earlier training that the model comes from; the running average of the weights goes
            on from there, where that of a new model soon forgets how it began.
        weights: ``(N,)`` weights of the events, with a positive sum.
        augment: ``augment(batch)`` gives events ``(n, ...)`` in place of those of a training batch, the first tensor,
            on the current random stream: the same events in another position, say.
        validation: tensors like `data` to validate on; None holds a share of `data` out.
        config: settings.
        seed: of the split, the shuffles and the dropout.
        checkpoint: a file that is written as training goes and from which an interrupted run goes on exactly.
        keep_checkpoint: whether to leave the file behind at the end; training from it is then done at once.
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
    device = parameters[0].device
    split = split_events(data, weights, config, seed, device, validation)
    path = Path(checkpoint) if checkpoint is not None else None
    on_disk = any(isinstance(tensor, DiskRows) for tensor in split.train)
    identity = {**identity_of(model, split, config, seed), "copies": copies} if path else {}
    processes = Processes.found(device)
    state = TrainingState.begin(model, config)
    try:
        state.record.events = len(split.train[0])
        state.record.batch_size = config.batch_for(state.record.events)
        if path and path.exists():
            state.resume(path, identity)
        gradient = _augmented(gradient or _differentiate(loss), augment)
        step = Step(state, gradient, split, config, processes, copies=copies, graphed=graphed and not on_disk)
        run = _Run(state, loss, step, split, config, processes, seed, copies, steps_before)
        first = processes.rank == 0
        with progress_bar(config.epochs, description, enabled=progress and first) as advance:
            _epochs(run, advance, (lambda: state.save(path, identity)) if path and first else None)
        if path and first and keep_checkpoint:
            state.save(path, identity)
        model.load_state_dict(state.best)
    finally:
        state.release()
    model.eval()
    processes.wait()
    if path and first and not keep_checkpoint:
        path.unlink(missing_ok=True)
    return state.record


def _epochs(run: _Run, advance: Advance, save: Callable[[], None] | None) -> None:
    """Go on from the state until it is time to stop."""
    state, record, config = run.state, run.state.record, run.config
    started, before = time.monotonic(), record.seconds
    saved = started
    advance(state.epoch)
    while not record.stopped:
        record.train_loss.append(_epoch(run))
        record.validation_loss.append(_validate(run))
        if record.validation_loss[-1] < record.best_validation_loss:
            record.best_epoch = state.epoch
            with _averaged(state, config):
                state.keep_best()
        state.epoch += 1
        record.seconds = run.processes.agree(before + time.monotonic() - started)
        record.stopped = _why_stop(state, config)
        advance(1, f"loss {record.train_loss[-1]:.4f}, validation {record.validation_loss[-1]:.4f}")
        if save and not record.stopped and time.monotonic() - saved >= config.checkpoint_seconds:
            save()
            saved = time.monotonic()


def _why_stop(state: TrainingState[TrainingRecord], config: TrainConfig) -> str:
    record = state.record
    if state.epoch >= config.epochs:
        return "epochs"
    if state.epoch - 1 - record.best_epoch >= config.patience:
        return "patience"
    if config.max_seconds is not None and record.seconds >= config.max_seconds:
        return "seconds"
    return ""


def _epoch(run: _Run) -> float:
    """One pass over the training events in a fresh order; the mean loss."""
    state, config, device = run.state, run.config, run.split.train[0].device
    events, batch = state.record.events, state.record.batch_size
    steps = max(1, events // batch)
    total = torch.zeros((), device=device, dtype=torch.float64)
    state.model.train()
    with seeded(derive(run.seed, "epoch", state.epoch), device):
        # The remainder of a shuffled epoch is dropped: steps of equal size, and every event comes up in the long run.
        orders = [torch.randperm(events, device=device)[: steps * batch].view(steps, batch) for _ in range(run.copies)]
        for rows in read_ahead(run.split.train, torch.cat(orders, dim=1)):
            # The first steps are far from the end point: a bias-corrected decay forgets them.
            done = run.steps_before + state.step
            decay = min(config.ema, (2 + done) / (11 + done))
            total += run.step(rows, _learning_rate(config, state.step / (config.epochs * steps)), decay)
            state.step += 1
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss or its gradient became {mean} in epoch {state.epoch}; look for extreme or constant values in "
            f"the data, or lower the learning rate (now {config.learning_rate:g})"
        )
    return mean


def _differentiate(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(weights: Tensor, *batch: Tensor) -> Tensor:
        each = _each(loss, list(batch))
        (each * weights).sum().backward()
        return each.detach()

    return gradient


def _augmented(gradient: Callable[..., Tensor], augment: Callable[[Tensor], Tensor] | None) -> Callable[..., Tensor]:
    """A gradient on events that are given anew each time."""
    if augment is None:
        return gradient
    return lambda weights, events, *others: gradient(weights, augment(events), *others)


def _each(loss: Callable[..., Tensor], batch: list[Tensor]) -> Tensor:
    """The loss of each event of a batch; a column or a mean would broadcast against the weights and lose them."""
    each = loss(*batch)
    if each.shape != batch[0].shape[:1]:
        raise ShapeError(f"loss: expected shape ({len(batch[0])},), one number for each event, got {tuple(each.shape)}")
    return each


def _learning_rate(config: TrainConfig, share: float) -> float:
    """The schedule as a function of the share of all steps that is done."""
    if config.schedule == "constant":
        return config.learning_rate
    rise = config.warmup if config.schedule == "one-cycle" else 0.0
    if share < rise:
        factor = 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * share / rise))
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))
    return config.learning_rate * max(factor, 1e-4)


@contextmanager
def _averaged(state: TrainingState[TrainingRecord], config: TrainConfig) -> Iterator[None]:
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
def _validate(run: _Run) -> float:
    """The mean loss of the averaged weights on the validation events."""
    state, split = run.state, run.split
    state.model.eval()
    total = torch.zeros((), device=split.train[0].device, dtype=torch.float64)
    with _averaged(state, run.config):
        for rows in torch.arange(len(split.validation[0]), device=total.device).split(_VALIDATION_ROWS):
            mine = run.processes.share(rows)
            if len(mine):
                each = _each(run.loss, [tensor[mine] for tensor in split.validation]).double()
                total += (each if split.validation_weights is None else each * split.validation_weights[mine]).sum()
    mean = float(run.processes.sum(total)) / len(split.validation[0])
    if not math.isfinite(mean):
        raise TrainingError(
            f"the validation loss is {mean} after epoch {state.epoch}; look for extreme values in the data"
        )
    return mean
