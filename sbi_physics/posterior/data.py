"""What `fit` is trained on: tensors or arrays, a `Simulations` object, or the path of a simulation file.

Simulations that failed, or gave NaN, are never dropped in silence: where failing depends on theta, those that are left
are no draws from the prior any more.  For a posterior network that is no harm, since p(theta | x) of data that exist is
what it learns from them; a likelihood or a ratio must be multiplied by the probability p(success | theta).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, known_keys, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError, SimulationError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.store.simulations import Simulations

__all__ = ["Failed", "TrainingPairs", "training_pairs"]

Failed = Literal["refuse", "correct"]

_MINIMUM_PAIRS = 10


@dataclass(frozen=True)
class TrainingPairs:
    """Checked pairs of a training.

    Attributes:
        theta: of the simulations that succeeded, ``(N, P)`` float32, inside the prior.
        x: ``(N, *x_shape)`` float32, finite.
        attempted: theta of all simulations, ``(M, P)``.
        success: which of those succeeded, boolean ``(M,)``.
    """

    theta: Tensor
    x: Tensor
    attempted: Tensor
    success: Tensor

    @property
    def failed(self) -> int:
        """How many simulations failed."""
        return len(self.success) - len(self.theta)

    def weights(self, weights: Any) -> Tensor | None:
        """Weights of all simulations ``(M,)``, or of those that succeeded ``(N,)``, as those of the pairs ``(N,)``."""
        if weights is None:
            return None
        values = finite(as_tensor(weights, "weights"), "weights")
        return values[self.success] if self.failed and values.shape == self.success.shape else values


def training_pairs(
    parameters: Parameters, theta_or_store: Any, x: Any = None, *, failed: Failed = "refuse"
) -> TrainingPairs:
    """Check what `fit` is given.

    Args:
        parameters: names and prior of theta.
        theta_or_store: theta ``(M, P)``, a `Simulations` object or the path of its file.
        x: ``(M, *x_shape)`` with theta, None with a store.
        failed: what to do where simulations failed or gave NaN: ``"refuse"`` raises an error, ``"correct"`` trains on
            the others, and accounts for it.

    Raises:
        UsageError: x is missing, or handed in beside a store.
        SimulationError: simulations of a store failed, and `failed` is ``"refuse"``.
        NonFiniteError: likewise for arrays; or theta is not finite.
        ShapeError, SupportError, StoreError: see the message.
    """
    known_keys([failed], ["refuse", "correct"], "failed")
    where = ""
    if isinstance(theta_or_store, str | Path):
        theta_or_store = Simulations.open(theta_or_store)
    if isinstance(theta_or_store, Simulations):
        store = theta_or_store
        where = f"{store.path}: " if store.path is not None else ""
        if x is not None:
            raise UsageError("x: expected None beside a simulation store, which holds x itself")
        if store.parameters.names != parameters.names:
            raise UsageError(
                f"{where}the simulations are of the parameters {', '.join(store.parameters.names)}; "
                f"expected {', '.join(parameters.names)}"
            )
        theta, x, success = store.theta, store.x, store.ok
        if failed == "refuse" and not bool(success.all()):
            raise SimulationError(f"{where}{_refusal(success)}")
    else:
        if x is None:
            raise UsageError("x: expected the observables of each theta, got None")
        theta, success = theta_or_store, None
    if isinstance(x, dict):
        raise UsageError(f"{where}x: expected one array, got several named ones ({', '.join(x)}); pass one of them")
    label = f"{where}theta"
    theta = batch_of(finite(as_tensor(theta, label), label), (len(parameters),), label)
    values = as_tensor(x, "x")
    if values.ndim == 1:
        values = values.unsqueeze(1)
    if values.ndim < 2:
        raise ShapeError(f"x: expected shape (N, ...), got {tuple(values.shape)}")
    same_length(theta=theta, x=values)
    if success is None:
        success = torch.isfinite(values.flatten(1)).all(1)
        if failed == "refuse" and not bool(success.all()):
            raise NonFiniteError(f"x: {_refusal(success)}")
    good = int(success.sum())
    if good < _MINIMUM_PAIRS:
        what = "simulations" if good == len(success) else "simulations that succeeded"
        raise ShapeError(f"{label}: expected at least {_MINIMUM_PAIRS} {what}, got {good} of {len(success)}")
    parameters.check_within(theta, label)
    return TrainingPairs(theta[success], values[success].to(torch.float32), theta, success)


def _refusal(success: Tensor) -> str:
    bad = int((~success).sum())
    first = int(torch.nonzero(~success)[0, 0])
    return (
        f"{bad} of {len(success)} simulations failed or are not finite (first in row {first}); leaving them out "
        "changes what is learned where failing depends on theta: repair them, or say failed='correct' to train on the "
        "others with a learned probability of success"
    )
