"""The settings of the training loop, and what it reports."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from sbi_physics.core.errors import UsageError

__all__ = ["RULES", "TrainConfig", "TrainingRecord", "check_settings", "round_log2"]

_OPTIMIZERS = ("muon", "adamw")
_PRECISIONS = ("32-true", "bf16-mixed")
_SCHEDULES = ("one-cycle", "cosine", "constant")


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _real(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Real) and not isinstance(value, bool) and good(value)


# What each setting takes: whether a value is good, and what was expected in words.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (_whole, "an integer of at least 1"),
    "batch_size": (lambda v: v is None or _whole(v), "an integer of at least 1, or None"),
    "optimizer": (lambda v: v in _OPTIMIZERS, "'muon' or 'adamw'"),
    "learning_rate": (_real(lambda v: 0 < v < math.inf), "a finite number above 0"),
    "weight_decay": (_real(lambda v: 0 <= v < math.inf), "a finite number of at least 0"),
    "schedule": (lambda v: v in _SCHEDULES, "'one-cycle', 'cosine' or 'constant'"),
    "warmup": (_real(lambda v: 0 < v < 1), "a number between 0 and 1"),
    "ema": (_real(lambda v: 0 <= v < 1), "a number in [0, 1)"),
    "precision": (lambda v: v in _PRECISIONS, "'32-true' or 'bf16-mixed'"),
    "clip_norm": (_real(lambda v: 0 < v < math.inf), "a finite number above 0"),
    "validation_fraction": (_real(lambda v: 0 < v < 1), "a number between 0 and 1"),
    "patience": (_whole, "an integer of at least 1"),
    "max_seconds": (lambda v: v is None or _real(lambda v: v > 0)(v), "a number above 0, or None"),
    "checkpoint_seconds": (_real(lambda v: v >= 0), "a number of at least 0"),
    "memory": (lambda v: v is None or _whole(v), "an integer of at least 1, or None"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data at most.
        batch_size: events in each step; None chooses from the number of events.
        optimizer: ``"muon"`` (`sbi_physics.train.optimizer`) or ``"adamw"`` (Loshchilov and Hutter 2019,
            arXiv:1711.05101), for which a learning rate of half the default is a good start.
        learning_rate: peak of the schedule.
        weight_decay: decoupled, of both optimisers.
        schedule: ``"one-cycle"`` (Smith and Topin 2018, arXiv:1708.07120), ``"cosine"`` or ``"constant"``.
        warmup: share of the steps in which one-cycle rises.
        ema: decay of the exponential moving average of the weights for each step; 0 for none.  The average is what is
            validated and kept.
        precision: ``"32-true"``, or ``"bf16-mixed"`` for matrix products of the networks in bfloat16; the transforms of
            the data and the weights stay in single precision.
        clip_norm: largest norm of the gradient.
        validation_fraction: share of the events held out.
        patience: epochs without a better validation loss after which training stops.
        max_seconds: wall-clock budget; the best state so far is kept.
        checkpoint_seconds: time between checkpoints, where a path is given for them; 0 makes one after each epoch.
        memory: bytes that the observables of a file of simulations may take in memory; larger ones are streamed from
            the disk by estimators that can (`sbi_physics.train.pairs`).  None for an eighth of the machine's memory.

    Raises:
        UsageError: a setting has a value that it does not take.
    """

    epochs: int = 25
    batch_size: int | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.1
    ema: float = 0.99
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    clip_norm: float = 5.0
    validation_fraction: float = 0.1
    patience: int = 20
    max_seconds: float | None = None
    checkpoint_seconds: float = 30.0
    memory: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, RULES)

    def batch_for(self, events: int) -> int:
        """The batch size for a number of training events: as set, or about 1 % of them within 64 ... 1024."""
        chosen = self.batch_size if self.batch_size is not None else 2 ** round_log2(events / 70, 6, 10)
        return min(chosen, events)


def check_settings(config: Any, rules: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    """Check the settings that there are rules for, and make plain numbers of them.

    Raises:
        UsageError: a setting has a value that it does not take.
    """
    for name, (good, wanted) in rules.items():
        value = getattr(config, name)
        if not good(value):
            raise UsageError(f"{name}: expected {wanted}, got {value!r}")
        # Plain numbers: those of numpy do not go into the JSON of a checkpoint.
        if isinstance(value, Real):
            object.__setattr__(config, name, int(value) if isinstance(value, Integral) else float(value))


def round_log2(value: float, low: int, high: int) -> int:
    """The exponent of the power of two at or below `value`, within low ... high."""
    return max(low, min(high, int(max(value, 1)).bit_length() - 1))


@dataclass
class TrainingRecord:
    """What a training run did.

    Attributes:
        train_loss: mean loss of each epoch, weights included.
        validation_loss: loss of the averaged weights on the held-out events after each epoch.
        best_epoch: the epoch (from 0) whose state was kept.
        seconds: wall-clock time.
        stopped: why it ended: ``"epochs"``, ``"patience"`` or ``"seconds"``.
        events: events trained on.
        batch_size: events in each step.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    stopped: str = ""
    events: int = 0
    batch_size: int = 0

    @property
    def best_validation_loss(self) -> float:
        """The validation loss of the state that was kept."""
        return self.validation_loss[self.best_epoch] if self.best_epoch >= 0 else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """The record in types that JSON knows."""
        return asdict(self)
