"""Everything that one epoch hands to the next, and how it goes to disk and back for an exact resume.

The order of the events and the dropout masks of epoch e come from a stream derived from the seed and e, so no state
of a random generator needs storing: weights, averages, optimiser moments, counters and the best state are all.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import StoreError
from sbi_physics.store.models import read_model, write_model
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.flat import FlatParameters
from sbi_physics.train.optimizer import make_optimizers

__all__ = ["TrainingState"]

_KIND = "checkpoint"
Record = TypeVar("Record", bound=Any)


@dataclass
class TrainingState(Generic[Record]):
    """The state of a training run between two epochs; its record is a dataclass of types that JSON knows."""

    model: nn.Module
    parameters: list[FlatParameters]
    optimizers: list[torch.optim.Optimizer]
    average: list[Tensor]
    record: Record
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0

    @staticmethod
    def begin(model: nn.Module, config: TrainConfig) -> "TrainingState[TrainingRecord]":
        """The state before the first epoch; until `release` the parameters of the model are views."""
        parameters = FlatParameters.of(model)
        optimizers = [
            optimizer
            for flat in parameters
            for optimizer in make_optimizers(config.optimizer, flat, config.learning_rate, config.weight_decay)
        ]
        average = [flat.values.clone() for flat in parameters]
        return TrainingState(model, parameters, optimizers, average, TrainingRecord())

    def release(self) -> None:
        """Give the parameters of the model their own memory back."""
        for flat in self.parameters:
            flat.release()

    def zero_gradients(self) -> None:
        """Forget the gradients of the last step."""
        for flat in self.parameters:
            flat.gradients.zero_()

    def clip_gradients(self, largest: float) -> Tensor:
        """Scale the gradients down to a norm of at most `largest`; returns the norm before."""
        norms = [torch.linalg.vector_norm(flat.gradients) for flat in self.parameters]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
        for flat in self.parameters:
            flat.gradients.mul_((largest / (norm + 1e-6)).clamp(max=1.0).to(flat.gradients))
        return norm

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next step."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def update_average(self, decay: Tensor) -> None:
        """Move the averaged weights towards the present ones; `decay` is a scalar."""
        for average, flat in zip(self.average, self.parameters, strict=True):
            average.lerp_(flat.values, (1 - decay).to(average))

    def swap_average(self) -> None:
        """Exchange the weights of the model with their average (done before and after validating)."""
        for average, flat in zip(self.average, self.parameters, strict=True):
            kept = flat.values.clone()
            flat.values.copy_(average)
            average.copy_(kept)

    def keep_best(self) -> None:
        """Remember the weights that the model has now."""
        self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors |= {f"average/{i}": v for i, v in enumerate(self.average)}
        for i, optimizer in enumerate(self.optimizers):
            moments = optimizer.state_dict()["state"]
            tensors |= {f"optimizer/{i}/{j}/{k}": torch.as_tensor(v) for j, s in moments.items() for k, v in s.items()}
        header = {
            "kind": _KIND,
            "identity": identity,
            "epoch": self.epoch,
            "step": self.step,
            "record": asdict(self.record),
        }
        write_model(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, header)

    def resume(self, path: Path, identity: dict[str, Any]) -> None:
        """Take over the state of a checkpoint.

        Raises:
            StoreError: the file is damaged, or belongs to another model, other data or other settings.
        """
        header, tensors = read_model(path)
        if header.get("kind") != _KIND:
            raise StoreError(f"{path}: expected a checkpoint, got a file of kind {header.get('kind')!r}")
        try:
            stored = header["identity"]
            for key in [*identity, *stored]:
                if key not in stored or key not in identity or stored[key] != identity[key]:
                    raise StoreError(
                        f"{path}: this checkpoint belongs to another run: {key} was {stored.get(key)!r}, "
                        f"now {identity.get(key)!r}; remove it to start anew"
                    )
            self._take(header, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            detail = " ".join(str(error).split())
            raise StoreError(f"{path}: a damaged checkpoint ({detail}); remove it to start anew") from error

    def _take(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.model.load_state_dict(_under(tensors, "model/"))
        self.best = _under(tensors, "best/")
        for i, average in enumerate(self.average):
            average.copy_(tensors[f"average/{i}"])
        for i, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(tensors, f"optimizer/{i}/").items():
                index, key = name.split("/", 1)
                moments.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.epoch, self.step = header["epoch"], header["step"]
        self.record = type(self.record)(**header["record"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
