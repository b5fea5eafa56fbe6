"""The settings of adversarial training, and what it reports."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sbi_physics.core.errors import UsageError
from sbi_physics.train.config import RULES, check_settings, round_log2

__all__ = ["AdversarialConfig", "AdversarialRecord"]

_SCHEDULES = ("cosine", "constant")
_SHARED = ("epochs", "batch_size", "ema", "clip_norm", "validation_fraction", "patience", "max_seconds")
_RULES = {
    **{name: RULES[name] for name in (*_SHARED, "checkpoint_seconds", "memory")},
    "generator_rate": RULES["learning_rate"],
    "critic_rate": RULES["learning_rate"],
    "critic_steps": RULES["epochs"],
    "first_moment": RULES["ema"],
    "second_moment": RULES["ema"],
    "schedule": (lambda value: value in _SCHEDULES, "'cosine' or 'constant'"),
    "validation_rows": RULES["epochs"],
}
_FEWEST_VALIDATION_ROWS = 32


@dataclass(frozen=True)
class AdversarialConfig:
    """How to train a generator against a critic.

    The two learn on time scales of their own (Heusel et al. 2017, arXiv:1706.08500).

    Attributes:
        epochs: passes over the training data at most, counted in steps of the critic.
        batch_size: events in each step; None chooses from the number of events.
        generator_rate: learning rate of the generator.
        critic_rate: learning rate of the critic.
        critic_steps: steps of the critic for each one of the generator.
        first_moment: decay of the first moment of Adam (Kingma and Ba 2015, arXiv:1412.6980).
        second_moment: that of the second.
        schedule: ``"cosine"``, which falls to zero over all epochs, or ``"constant"``.
        ema: decay of the moving average of the weights for each step of the generator; 0 for none.  The average is
            what is validated and kept.
        clip_norm: largest norm of the gradient of either side.
        validation_fraction: share of the events held out.
        validation_rows: held-out events looked at after each epoch, at most, and at least 32.
        patience: epochs without a better distance after which training stops.
        max_seconds: wall-clock budget; the best state so far is kept.
        checkpoint_seconds: time between checkpoints, where a path is given for them; 0 makes one after each epoch.
        memory: bytes that the observables of a file may take in memory, as of `TrainConfig`.

    Raises:
        UsageError: a setting has a value that it does not take.
    """

    epochs: int = 100
    batch_size: int | None = None
    generator_rate: float = 2e-3
    critic_rate: float = 2e-3
    critic_steps: int = 5
    first_moment: float = 0.0
    second_moment: float = 0.9
    schedule: Literal["cosine", "constant"] = "cosine"
    ema: float = 0.99
    clip_norm: float = 100.0
    validation_fraction: float = 0.1
    validation_rows: int = 1000
    patience: int = 50
    max_seconds: float | None = None
    checkpoint_seconds: float = 30.0
    memory: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, _RULES)
        if self.validation_rows < _FEWEST_VALIDATION_ROWS:
            raise UsageError(
                f"validation_rows: expected an integer of at least {_FEWEST_VALIDATION_ROWS}, got "
                f"{self.validation_rows!r}"
            )

    def batch_for(self, events: int) -> int:
        """The batch size for a number of training events: as set, or about 1 % of them within 64 ... 1024."""
        chosen = self.batch_size if self.batch_size is not None else 2 ** round_log2(events / 70, 6, 10)
        return min(chosen, events)

    def rate_factor(self, share: float) -> float:
        """What both learning rates are multiplied by when this share of all steps is done."""
        return 1.0 if self.schedule == "constant" else max(0.5 * (1 + math.cos(math.pi * share)), 1e-4)


@dataclass
class AdversarialRecord:
    """What an adversarial training run did; lists have one entry for each epoch.

    Attributes:
        critic_loss: mean loss of the critic.
        generator_loss: mean loss of the generator.
        distance: kernel distance between held-out and generated events (`diagnostics.fidelity`).
        coverage: share of held-out events with a generated one nearby; about 0.97 is expected.
        spread: smallest ratio of the width of generated events to that of real ones, over the features; one is right.
        best_epoch: the epoch (from 0) whose state was kept, that of the smallest distance.
        seconds: wall-clock time.
        stopped: why it ended: ``"epochs"``, ``"patience"`` or ``"seconds"``.
        events: events trained on.
        batch_size: events in each step.
        collapsed: whether the state that was kept has lost modes or width.
        warning: the same in words; empty where all is well.
    """

    critic_loss: list[float] = field(default_factory=list)
    generator_loss: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    stopped: str = ""
    events: int = 0
    batch_size: int = 0
    collapsed: bool = False
    warning: str = ""

    @property
    def best_distance(self) -> float:
        """The kernel distance of the state that was kept."""
        return self.distance[self.best_epoch] if self.best_epoch >= 0 else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """The record in types that JSON knows."""
        return asdict(self)
