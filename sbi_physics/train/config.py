"""The settings of the training loop, and what it reports."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sbi_physics.core.errors import UsageError

__all__ = ["TrainConfig", "TrainingRecord"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data at most.
        batch_size: events in each step; None chooses from the number of events.
        learning_rate: peak of the schedule.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
        schedule: ``"one-cycle"`` (Smith and Topin 2018, arXiv:1708.07120), ``"cosine"`` or ``"constant"``.
        warmup: share of the steps in which one-cycle rises.
        ema: decay of the exponential moving average of the weights for each step; 0 for none.  The average is what is
            validated and kept.
        clip_norm: largest norm of the gradient.
        validation_fraction: share of the events held out.
        patience: epochs without a better validation loss after which training stops.
        max_seconds: wall-clock budget; the best state so far is kept.
        checkpoint_seconds: time between checkpoints, where a path is given for them.
    """

    epochs: int = 40
    batch_size: int | None = None
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.1
    ema: float = 0.99
    clip_norm: float = 5.0
    validation_fraction: float = 0.1
    patience: int = 20
    max_seconds: float | None = None
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1, or None"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "schedule": (self.schedule in ("one-cycle", "cosine", "constant"), "'one-cycle', 'cosine' or 'constant'"),
            "warmup": (0 < self.warmup < 1, "between 0 and 1"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "validation_fraction": (0 < self.validation_fraction < 1, "between 0 and 1"),
            "patience": (self.patience >= 1, "at least 1"),
            "max_seconds": (self.max_seconds is None or self.max_seconds > 0, "above 0, or None"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UsageError(f"{name}: expected {wanted}, got {getattr(self, name)!r}")

    def batch_for(self, events: int) -> int:
        """The batch size for a number of training events: as set, or about 1 % of them within 64 ... 1024."""
        chosen = self.batch_size if self.batch_size is not None else 2 ** round_log2(events / 35, 6, 10)
        return min(chosen, events)


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
