"""What `fit` is trained on: tensors or arrays, a `Simulations` object, or the path of a simulation file."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.store.simulations import Simulations

__all__ = ["training_pairs"]

_MINIMUM_PAIRS = 10


def training_pairs(parameters: Parameters, theta_or_store: Any, x: Any = None) -> tuple[Tensor, Tensor]:
    """Checked training pairs: theta ``(N, P)`` inside the prior and x ``(N, *x_shape)``, both finite float32.

    Raises:
        UsageError: x is missing, or handed in beside a store.
        ShapeError, NonFiniteError, SupportError, StoreError: see the message.
    """
    if isinstance(theta_or_store, str | Path):
        theta_or_store = Simulations.open(theta_or_store)
    where = ""
    if isinstance(theta_or_store, Simulations):
        where = f"{theta_or_store.path}: " if theta_or_store.path is not None else ""
        if x is not None:
            raise UsageError("x: expected None beside a simulation store, which holds x itself")
        if theta_or_store.parameters.names != parameters.names:
            raise UsageError(
                f"{where}the simulations are of the parameters {', '.join(theta_or_store.parameters.names)}; "
                f"expected {', '.join(parameters.names)}"
            )
        theta_or_store, x = theta_or_store.training_set()
    if x is None:
        raise UsageError("x: expected the observables of each theta, got None")
    if isinstance(x, dict):
        raise UsageError(f"{where}x: expected one array, got several named ones ({', '.join(x)}); pass one of them")
    label = f"{where}theta"
    theta = batch_of(finite(as_tensor(theta_or_store, label), label), (len(parameters),), label)
    values = as_tensor(x, "x")
    if values.ndim == 1:
        values = values.unsqueeze(1)
    if values.ndim < 2:
        raise ShapeError(f"x: expected shape (N, ...), got {tuple(values.shape)}")
    same_length(theta=theta, x=values)
    if len(theta) < _MINIMUM_PAIRS:
        raise ShapeError(f"{label}: expected at least {_MINIMUM_PAIRS} simulations, got {len(theta)}")
    finite(values, "x", "drop or repair the failed simulations, knowing that dropping them changes the prior")
    return parameters.check_within(theta, label), values.to(torch.float32)
