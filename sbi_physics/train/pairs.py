"""What `fit` is trained on: tensors or arrays, a `Simulations` object, or the path of a simulation file.

Simulations that failed, or gave NaN, are never dropped in silence: where failing depends on theta, those that are left
are no draws from the prior any more.  For a posterior network that is no harm, since p(theta | x) of data that exist is
what it learns from them; a likelihood or a ratio must be multiplied by the probability p(success | theta).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, known_keys, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError, SimulationError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.resources import physical_memory
from sbi_physics.core.validity import valid_rows
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.store.layout import Status
from sbi_physics.store.simulations import Simulations
from sbi_physics.train.encoding import EncoderChoice, accepts_missing, packing_of

__all__ = ["Failed", "TrainingPairs", "observables", "training_pairs"]

Failed = Literal["refuse", "correct"]

_MINIMUM_PAIRS = 10
_SHARE_IN_MEMORY = 8
_READ_BYTES = 1 << 23
_LOOKED_AT = 10_000
# A step of single precision, in standard deviations.
_COARSEST = 0.02
_log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True)
class TrainingPairs:
    """Checked pairs of a training.

    Attributes:
        theta: of the simulations that succeeded, ``(N, P)`` float32, inside the prior.
        x: ``(N, *x_shape)`` float32, finite: a tensor, or `DiskRows` where it is streamed.
        attempted: theta of all simulations, ``(M, P)``.
        success: which of those succeeded, boolean ``(M,)``.
    """

    theta: Tensor
    x: Any
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
    parameters: Parameters,
    theta_or_store: Any,
    x: Any = None,
    *,
    failed: Failed = "refuse",
    encoder: EncoderChoice = None,
    memory: int | None = -1,
) -> TrainingPairs:
    """Check what `fit` is given.

    Args:
        parameters: names and prior of theta.
        theta_or_store: theta ``(M, P)``, a `Simulations` object or the path of its file.
        x: ``(M, *x_shape)`` with theta, or a dictionary of such; None with a store.
        failed: what to do where simulations failed or gave NaN: ``"refuse"`` raises an error, ``"correct"`` trains on
            the others, and accounts for it.
        encoder: what the observations go through; it says how named ones are packed, and whether NaN marks entries
            that are missing rather than simulations that failed.
        memory: bytes that x of a file may take in memory, see `TrainConfig`; -1 for no limit, where the estimator
            cannot stream.

    Raises:
        UsageError: x is missing, or handed in beside a store.
        SimulationError: simulations of a store failed, and `failed` is ``"refuse"``.
        NonFiniteError: likewise for arrays; or theta is not finite.
        ShapeError, SupportError, StoreError: see the message.
    """
    known_keys([failed], ["refuse", "correct"], "failed")
    where, gave = "", None
    if isinstance(theta_or_store, str | Path):
        theta_or_store = Simulations.open(theta_or_store)
    stored = isinstance(theta_or_store, Simulations)
    if stored and x is None and memory != -1 and _stays_on_disk(theta_or_store, memory):
        return _streamed(parameters, theta_or_store, failed, encoder)
    if stored:
        where = f"{theta_or_store.path}: " if theta_or_store.path is not None else ""
        theta_or_store, x, gave = _of_store(theta_or_store, parameters, x, where)
    if x is None:
        raise UsageError("x: expected the observables of each theta, got None")
    label = f"{where}theta"
    theta = batch_of(finite(as_tensor(theta_or_store, label), label), (len(parameters),), label)
    values = observables(x, encoder, where)
    same_length(theta=theta, x=values)
    success = valid_rows(values, missing=accepts_missing(encoder))
    success = success if gave is None else success & gave
    if failed == "refuse" and not bool(success.all()):
        raise (SimulationError if stored else NonFiniteError)(f"{where or 'x: '}{_refusal(success)}")
    good = int(success.sum())
    if good < _MINIMUM_PAIRS:
        what = "simulations" if good == len(success) else "simulations that succeeded"
        raise ShapeError(f"{label}: expected at least {_MINIMUM_PAIRS} {what}, got {good} of {len(success)}")
    parameters.check_within(theta, label)
    for name, rows in ((label, theta), (f"{where}x", values)):
        _tell_coarse(name, rows)
    if good < len(success):
        # Not where all succeeded: x may be most of what fits in memory.
        theta, values, attempted = theta[success], values[success], theta
        return TrainingPairs(theta, values.to(torch.float32), attempted, success)
    return TrainingPairs(theta, values.to(torch.float32), theta, success)


def _tell_coarse(name: str, rows: Tensor) -> None:
    """Warn of columns that single precision leaves few values of: large numbers that differ little."""
    some = rows[:_LOOKED_AT].double().flatten(1)
    some = some[torch.isfinite(some).all(1)]
    if len(some) < 2:
        return
    largest = some.abs().amax(0)
    step = torch.from_numpy(np.spacing(largest.numpy().astype(np.float32)).astype(np.float64))
    fractions = (some != some.round()).any(0) | (step >= 1)
    coarse = (step > _COARSEST * some.std(0)) & fractions & (some != some[0]).any(0)
    if bool(coarse.any()):
        i = int(torch.nonzero(coarse)[0, 0])
        mean, spread = float(some[:, i].mean()), float(some[:, i].std())
        text = (
            f"{name}: number {i} of a row is about {mean:.6g} in steps of {float(step[i]):.2g}, the spread is "
            f"{spread:.2g}: numbers are kept in single precision; subtract a constant first"
        )
        # A fit looks at its pairs more than once.
        if text not in _told:
            _told.add(text)
            _log.warning(text)


def _limit(memory: int | None) -> int:
    return physical_memory() // _SHARE_IN_MEMORY if memory is None else memory


def _stays_on_disk(store: Simulations, memory: int | None) -> bool:
    """Whether x is too large for memory."""
    return store.streamed_bytes > _limit(memory)


def _streamed(parameters: Parameters, store: Simulations, failed: Failed, encoder: EncoderChoice) -> TrainingPairs:
    """As `training_pairs`, with x in a scratch file of the rows that succeeded, read once through."""
    where = f"{store.path}: " if store.path is not None else ""
    _check_names(store, parameters, where)
    numbers = sum(torch.Size(shape).numel() for shape in store.header.shapes.values())
    size = max(1, _READ_BYTES // (4 * numbers))
    # Made beforehand: what is small and stays, between blocks that go, would keep their memory from being returned.
    attempted = torch.empty(len(store), len(parameters))
    success = torch.empty(len(store), dtype=torch.bool)

    def good_rows() -> Iterator[Tensor]:
        for start in range(0, len(store), size):
            part = slice(start, min(start + size, len(store)))
            rows = store.read(part)
            read = {name: torch.from_numpy(array) for name, array in rows.x.items()}
            values = observables(read if store.header.named else read["x"], encoder, where)
            gave = torch.from_numpy(np.isin(rows.status, (Status.OK, Status.NONFINITE)))
            attempted[part] = torch.from_numpy(rows.theta)
            good = success[part] = valid_rows(values, missing=accepts_missing(encoder)) & gave
            if not bool(good.all()):
                if failed == "refuse":
                    raise SimulationError(f"{where}{_refusal(good, start)}")
                values = values[good]
            yield values

    blocks = good_rows()
    first = next(blocks)
    x = DiskRows.write(chain([first], blocks), first.shape[1:])
    finite(attempted, f"{where}theta")
    if len(x) < _MINIMUM_PAIRS:
        raise ShapeError(f"{where}theta: expected at least {_MINIMUM_PAIRS} simulations, got {len(x)}")
    parameters.check_within(attempted, f"{where}theta")
    return TrainingPairs(attempted if len(x) == len(store) else attempted[success], x, attempted, success)


def _check_names(store: Simulations, parameters: Parameters, where: str) -> None:
    if store.parameters.names != parameters.names:
        raise UsageError(
            f"{where}the simulations are of the parameters {', '.join(store.parameters.names)}; "
            f"expected {', '.join(parameters.names)}"
        )


def _of_store(store: Simulations, parameters: Parameters, x: Any, where: str) -> tuple[Tensor, Any, Tensor]:
    """Theta, x, and whether each row gave any outputs."""
    if x is not None:
        raise UsageError("x: expected None beside a simulation store, which holds x itself")
    _check_names(store, parameters, where)
    read = store.unkept()
    return read.theta, read.x, read.ok | (read.status == int(Status.NONFINITE))


def observables(x: Any, encoder: EncoderChoice, where: str) -> Tensor:
    """Observables as one tensor ``(M, *x_shape)``: an array, or named ones packed as the encoder says.

    Raises:
        UsageError: there are names where one array is expected, or the other way round.
        ShapeError: x has no axis of simulations.
    """
    packing = packing_of(encoder)
    if isinstance(x, Mapping):
        if packing is None:
            raise UsageError(
                f"{where}x: expected one array, got several named ones ({', '.join(map(str, x))}); take one of them "
                "(x[name], or store.output(name)), or say embedding={name: encoder, ...} where a posterior learns all"
            )
        return packing.pack(x).to(torch.float32)
    if packing is not None:
        raise UsageError(f"{where}x: expected a dictionary of {', '.join(packing.names)}, as the embedding has names")
    values = as_tensor(x, "x")
    values = values.unsqueeze(1) if values.ndim == 1 else values
    if values.ndim < 2:
        raise ShapeError(f"x: expected shape (N, ...), got {tuple(values.shape)}")
    return values


def _refusal(success: Tensor, start: int = 0) -> str:
    bad = int((~success).sum())
    first = start + int(torch.nonzero(~success)[0, 0])
    return (
        f"{bad} of {len(success)} simulations failed or are not finite (first in row {first}); leaving them out "
        "changes what is learned where failing depends on theta: repair them, or say failed='correct' to train on the "
        "others with a learned probability of success"
    )
