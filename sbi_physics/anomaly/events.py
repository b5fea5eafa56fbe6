"""The events of a resonance search, checked once: features, mass, weights, and the region where a signal may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite
from sbi_physics.core.errors import ShapeError, SupportError, UsageError

__all__ = ["Events", "SignalRegion", "checked_events", "checked_features", "checked_weights", "split_regions"]

_FEWEST = 50


@dataclass(frozen=True)
class SignalRegion:
    """Masses low < m <= high; all others are the control region.

    Attributes:
        low: in the unit of the masses.
        high: likewise.

    Raises:
        UsageError: low is not below high, or one is not finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        try:
            low, high = float(self.low), float(self.high)
        except (TypeError, ValueError) as error:
            raise UsageError(f"signal_region: expected two masses, got {(self.low, self.high)}") from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"signal_region: expected low < high, got {(self.low, self.high)}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def holds(self, mass: Tensor) -> Tensor:
        """Whether each mass ``(n,)`` is inside."""
        return (mass > self.low) & (mass <= self.high)


class Events(NamedTuple):
    """Events in float64 on the CPU.

    Attributes:
        features: ``(n, D)``.
        mass: ``(n,)``.
        weights: ``(n,)``, negative ones among them; ones where none were given.
    """

    features: Tensor
    mass: Tensor
    weights: Tensor

    def rows(self, keep: Tensor) -> "Events":
        """Some of the events."""
        return Events(self.features[keep], self.mass[keep], self.weights[keep])


def checked_features(features: Any, name: str = "features", *, columns: int | None = None) -> Tensor:
    """Features as float64 ``(n, D)``; one column may come as ``(n,)``.

    Raises:
        ShapeError: they have another shape.
        NonFiniteError: a feature is NaN or infinite.
    """
    x = as_tensor(features, name, dtype=torch.float64).cpu()
    x = x.unsqueeze(1) if x.ndim == 1 else x
    if x.ndim != 2 or not x.shape[1]:
        raise ShapeError(f"{name}: expected shape (n, features), got {tuple(x.shape)}")
    if columns is not None and x.shape[1] != columns:
        raise ShapeError(f"{name}: expected {columns} features, got {x.shape[1]}")
    return finite(x, name)


def checked_events(
    features: Any, mass: Any, weights: Any, *, name: str = "", columns: int | None = None, minimum: int = 0
) -> Events:
    """Features, masses and weights that belong together.

    Args:
        features: ``(n, D)``.
        mass: ``(n,)`` or ``(n, 1)``.
        weights: ``(n,)``, or None.
        name: of the events, in front of those of the arrays.
        columns: D, where it is known.
        minimum: number of events.

    Raises:
        ShapeError: shapes do not fit, or there are too few events.
        NonFiniteError: a number is NaN or infinite.
        UsageError: the weights have no positive sum.
    """
    x = checked_features(features, f"{name}features", columns=columns)
    m = as_tensor(mass, f"{name}mass", dtype=torch.float64).cpu()
    m = m.squeeze(1) if m.ndim == 2 and m.shape[1] == 1 else m
    m = finite(batch_of(m, (), f"{name}mass", minimum=0), f"{name}mass")
    if len(m) != len(x):
        raise ShapeError(f"{name}mass: expected {len(x)}, one for each event, got {len(m)}")
    if len(x) < minimum:
        raise ShapeError(f"{name}events: expected at least {minimum}, got {len(x)}")
    return Events(x, m, checked_weights(weights, len(x), f"{name}weights"))


def checked_weights(weights: Any, n: int, name: str = "weights") -> Tensor:
    """Weights of n events, float64 ``(n,)``; ones where None.

    Raises:
        ShapeError: they are not n.
        NonFiniteError: one is NaN or infinite.
        UsageError: they have no positive sum.
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    w = as_tensor(weights, name, dtype=torch.float64).cpu()
    w = finite(batch_of(w, (), name, minimum=0), name)
    if len(w) != n:
        raise ShapeError(f"{name}: expected shape ({n},), got ({len(w)},)")
    if n and not float(w.sum()) > 0:
        raise UsageError(f"{name}: expected a positive sum, got {float(w.sum()):g}")
    return w


def split_regions(events: Events, region: SignalRegion, names: Sequence[str] = ()) -> tuple[Events, Events]:
    """The events in the signal region, and those of the control region, which must be on both sides of it.

    Args:
        events: all of them.
        region: where a signal may be.
        names: of the features, for messages.

    Raises:
        SupportError: the region is outside the masses, the control region lacks a side, or a feature is constant.
        UsageError: the weights of a region have no positive sum.
    """
    inside = region.holds(events.mass)
    low, high = float(events.mass.min()), float(events.mass.max())
    where = f"signal_region: ({region.low:g}, {region.high:g}]"
    if int(inside.sum()) < _FEWEST:
        raise SupportError(
            f"{where} holds {int(inside.sum())} events, expected at least {_FEWEST}; masses go from {low:g} to {high:g}"
        )
    below, above = (events.mass <= region.low), (events.mass > region.high)
    for side, rows in {"below": below, "above": above}.items():
        if int(rows.sum()) < _FEWEST:
            raise SupportError(
                f"control region: expected at least {_FEWEST} events {side} {where[15:]}, got {int(rows.sum())}; "
                f"masses go from {low:g} to {high:g}"
            )
    control = events.rows(~inside)
    constant = (control.features.amax(0) == control.features.amin(0)).nonzero()[:, 0].tolist()
    if constant:
        value = float(control.features[0, constant[0]])
        name = names[constant[0]] if constant[0] < len(names) else f"column {constant[0]}"
        raise SupportError(
            f"features: {name} is {value:g} throughout the control region, from which nothing can be learned; leave it "
            "out of the features (a column that marks signal is a label)"
        )
    signal = events.rows(inside)
    for name, part in {"signal": signal, "control": control}.items():
        total = float(part.weights.sum())
        if not total > 0:
            raise UsageError(f"weights: expected a positive sum in the {name} region, got {total:g}")
    return signal, control
