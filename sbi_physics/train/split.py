"""The events of a training run: cut into training and validation, on the device, known again by a checkpoint."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, finite, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.train.adversarial_config import AdversarialConfig
from sbi_physics.train.config import TrainConfig

_ROWS_AT_ONCE = 1 << 14

__all__ = ["Split", "held_out_rows", "identity_of", "read_ahead", "split_events"]


@dataclass(frozen=True)
class Split:
    """The training and the validation events, on the device or read to it; weights have mean one."""

    train: list[Any]
    validation: list[Any]
    train_weights: Tensor | None
    validation_weights: Tensor | None


def held_out_rows(events: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows to train on and those held out, in random order."""
    held_out = min(max(1, round(events * share)), events - 1)
    with seeded(derive(seed, "split")):
        order = torch.randperm(events)
    return order[held_out:], order[:held_out]


def split_events(
    data: Sequence[Tensor | DiskRows],
    weights: Tensor | None,
    config: TrainConfig | AdversarialConfig,
    seed: int,
    device: torch.device,
    validation: Sequence[Tensor] | None = None,
) -> Split:
    """Hold a share of the events out for validation, unless others are there for it.

    Raises:
        UsageError: there is nothing to train on, the weights of a part have no positive sum, or there are weights and
            no split to be made.
        ShapeError: fewer than two events, or tensors of unequal length.
    """
    if not data:
        raise UsageError("data: expected at least one tensor, got none")
    same_length(**{f"tensor {i}": tensor for i, tensor in enumerate(data)})
    events = len(data[0])
    if events < 2:
        raise ShapeError(f"data: expected at least 2 events, got {events}")
    if validation is not None:
        if weights is not None:
            raise UsageError("weights: expected None beside validation events of their own")
        same_length(**{f"validation tensor {i}": tensor for i, tensor in enumerate(validation)})
        return Split([t.to(device) for t in data], [t.to(device) for t in validation], None, None)
    rows, validation_rows = held_out_rows(events, config.validation_fraction, seed)
    on_device = [tensor.to(device) for tensor in data]
    parts = [[_taken(t, r) for t in on_device] for r in (rows, validation_rows)]
    if weights is None:
        return Split(parts[0], parts[1], None, None)
    weights = finite(as_tensor(weights, "weights"), "weights").to(device)
    if weights.shape != (events,):
        raise ShapeError(f"weights: expected shape ({events},), got {tuple(weights.shape)}")
    scaled = [weights[rows.to(device)], weights[validation_rows.to(device)]]
    for part in scaled:
        if not float(part.sum()) > 0:
            raise UsageError(f"weights: expected a positive sum, got {float(part.sum()):g}; too many negative weights")
    return Split(parts[0], parts[1], *(w / w.mean() for w in scaled))


def _taken(tensor: Tensor | DiskRows, rows: Tensor) -> Any:
    return tensor.subset(rows) if isinstance(tensor, DiskRows) else tensor[rows.to(tensor.device)]


def read_ahead(data: Sequence[Tensor | DiskRows], order: Tensor) -> Iterator[Tensor]:
    """The rows of each step, whose events are read while those before them are trained on."""
    with ExitStack() as stack:
        for rows in data:
            if isinstance(rows, DiskRows):
                stack.enter_context(rows.expect(order))
        yield from order


def identity_of(model: nn.Module, split: Split, config: TrainConfig | AdversarialConfig, seed: int) -> dict[str, Any]:
    """What must agree for a checkpoint to be taken up: settings, seed, shapes, the data themselves and the weights."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("max_seconds", "checkpoint_seconds", "memory")}
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
        for part in tensor.chunks(_ROWS_AT_ONCE) if isinstance(tensor, DiskRows) else [tensor]:
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
