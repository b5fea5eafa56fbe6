"""What the comparisons of generated events with real ones share: two checked sets of rows, on one scale."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, SupportError, UsageError

__all__ = [
    "checked_events",
    "checked_weights",
    "column",
    "effective_number",
    "observable_names",
    "shuffled",
    "standardise",
]


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


def checked_weights(weights: Any, n: int, name: str = "weights") -> Tensor:
    """One float64 weight for each event, ``(n,)`` on the CPU; ones where None, and negative ones may be among them.

    Raises:
        ShapeError: there is not one weight for each event.
        NonFiniteError: a weight is NaN or infinite.
        SupportError: their sum is not above zero.
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    found = column(weights, name)
    if len(found) != n:
        raise ShapeError(f"{name}: expected one for each of {n} events, got {len(found)}")
    if not float(found.sum()) > 0:
        raise SupportError(f"{name}: expected a sum above zero, got {float(found.sum()):.3g}")
    return found


def effective_number(weights: Tensor) -> float:
    """Unweighted events that would know a mean as well, ``(sum w)**2 / sum w**2``."""
    return float(weights.sum().square() / weights.square().sum())


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


def standardise(real: Tensor, *others: Tensor, weights: Tensor | None = None) -> tuple[Tensor, ...]:
    """All sets ``(*, D)`` in units of mean and standard deviation of the real one; one where that is not positive."""
    if weights is None:
        mean, deviation = real.mean(0), real.std(0)
    else:
        share = (weights / weights.sum()).to(real)
        mean = share @ real
        deviation = (share @ (real - mean).square()).clamp(min=0.0).sqrt()
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return tuple((events - mean) / scale for events in (real, *others))
