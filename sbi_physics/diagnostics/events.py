"""What the comparisons of generated events with real ones share: two checked sets of rows, on one scale."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["checked_events", "column", "observable_names", "shuffled", "standardise"]


def checked_events(real: Any, generated: Any, *, minimum: int = 2) -> tuple[Tensor, Tensor]:
    """Real and generated events as finite float64 rows ``(n, D)`` and ``(m, D)``, each event flattened.

    Raises:
        ShapeError: the events differ in shape, or there are fewer than `minimum` of them.
        NonFiniteError: a number is NaN or infinite.
    """
    first, second = (
        as_tensor(events, name, dtype=torch.float64) for events, name in ((real, "real"), (generated, "generated"))
    )
    if not first.ndim or not second.ndim or first.shape[1:] != second.shape[1:] or not first[:1].numel():
        raise ShapeError(
            f"expected real (n, *event) and generated (m, *event), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    fewest = min(len(first), len(second))
    if fewest < minimum:
        raise ShapeError(f"expected at least {minimum} real and generated events, got {len(first)} and {len(second)}")
    first, second = finite(first, "real"), finite(second, "generated")
    return first.reshape(len(first), -1), second.reshape(len(second), -1).to(first.device)


def column(values: Any, name: str) -> Tensor:
    """One finite float64 number for each event, ``(n,)`` on the CPU, from ``(n,)`` or ``(n, 1)``.

    Raises:
        ShapeError: there is not one number for each event.
        NonFiniteError: a number is NaN or infinite.
    """
    tensor = as_tensor(values, name, dtype=torch.float64).cpu()
    if tensor.ndim not in (1, 2) or not len(tensor) or tensor.numel() != len(tensor):
        raise ShapeError(f"{name}: expected shape (n,) or (n, 1), got {tuple(tensor.shape)}")
    return finite(tensor, name).reshape(-1)


def observable_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names given, or observable 0, ... where None; raises `UsageError` unless there are `count`."""
    labels = tuple(names) if names is not None else tuple(f"observable {i}" for i in range(count))
    if len(labels) != count:
        raise UsageError(f"names: expected {count}, one for each observable, got {len(labels)}")
    return labels


def shuffled(events: Tensor, seed: int) -> Tensor:
    """The rows in random order."""
    generator = torch.Generator().manual_seed(seed)
    return events[torch.randperm(len(events), generator=generator).to(events.device)]


def standardise(real: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All sets ``(*, D)`` in units of mean and standard deviation of the real one; one where that is zero."""
    mean, deviation = real.mean(0), real.std(0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return tuple((events - mean) / scale for events in (real, *others))
