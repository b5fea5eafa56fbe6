"""`MassConditional`: the density p(x | m) of features at a mass, learned from weighted events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sbi_physics.anomaly.dequantise import Dequantise
from sbi_physics.anomaly.events import Events
from sbi_physics.anomaly.feature_map import PREPROCESSINGS, QuantileMap, data_bounds
from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.build import Architecture, build_density, known_models, training_settings
from sbi_physics.models.flows.build import BOX, FLOWS
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.train.config import RULES, TrainConfig
from sbi_physics.train.density import train_density

__all__ = ["DensitySettings", "MassConditional"]

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class DensitySettings:
    """How p(x | m) is learned.

    Attributes:
        model: a name of `models.build.known_models`.
        members: flows of an ensemble.
        preprocessing: ``"probit"`` or ``"quantile"``, see `feature_map`.
        bounds: ``(D, 2)`` of the features, with ``"probit"``; None takes those of the data.
        options: of the model.
        config: settings in which the training is to differ.
        device: where.
        engine: how flows are run.

    Raises:
        UsageError: there is no such model, preprocessing or setting.
    """

    model: str = "nsf"
    members: int = 1
    preprocessing: str = "probit"
    bounds: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    engine: str = "auto"

    def __post_init__(self) -> None:
        known_keys([self.model], known_models(), "model")
        known_keys([self.preprocessing], PREPROCESSINGS, "preprocessing")
        known_keys(list(self.config), list(RULES), "setting of the training")
        if self.members > 1 and self.model not in FLOWS:
            raise UsageError(f"ensemble: only flows have members, got model {self.model!r}")


class MassConditional:
    """p(x | m), and draws from it.

    Args:
        settings: how it is learned.
    """

    def __init__(self, settings: DensitySettings) -> None:
        self.settings = settings
        self.record: dict[str, Any] = {}

    def fit(self, events: Events, around: Tensor, *, seed: int, progress: bool, description: str) -> Self:
        """Learn from weighted events.

        Args:
            events: to learn from.
            around: features ``(n, D)`` that must be inside the bounds, such as those of all events.
            seed: of the initial weights, the validation split and the shuffles.
            progress: whether to show a progress bar.
            description: the words in front of the bar.

        Raises:
            ShapeError, SupportError: the bounds are not of these features, or a feature is outside.
        """
        how = self.settings
        self._dequantise = Dequantise().fit(around)
        original, around = around, self._dequantise.forward(around)
        events = events._replace(features=self._dequantise.forward(events.features))
        self._map = QuantileMap().fit(events.features) if how.preprocessing == "quantile" else None
        bounds = None
        if self._map is None:
            bounds = data_bounds(around)
            if how.bounds is not None:
                given, same = _checked_bounds(how.bounds, original), self._dequantise.unchanged
                bounds[same] = given[same].to(bounds)
        x, m = self._mapped(events.features)[0].float(), events.mass.float().unsqueeze(1)
        architecture = Architecture(how.model, (x.shape[1],), (1,), dict(how.options), members=how.members)
        with seeded(derive(seed, "weights")):
            self.density = build_density(architecture, bounds=bounds, engine=how.engine)
        self.density.fit_scaling(x, m)
        self.density.to(how.device)
        data = [self.density.encode(x.to(how.device))[0].detach(), self.density.context_scaling(m.to(how.device))]
        weights = None if bool((events.weights == 1).all()) else events.weights.float()
        record = train_density(
            self.density,
            data,
            weights=weights,
            config=TrainConfig(**{**training_settings(how.model), **how.config}),
            seed=seed,
            progress=progress,
            description=description,
        )
        self.density.eval()
        self.record = record.to_dict()
        return self

    @torch.no_grad()
    def log_prob(self, features: Tensor, mass: Tensor) -> Tensor:
        """Log-density of features ``(n, D)`` at masses ``(n,)``: float64 ``(n,)``, minus infinity out of bounds."""
        (x, ladj), where = self._events(features), self.settings.device
        parts = [
            self.density.log_prob(rows.float().to(where), m.float().unsqueeze(1).to(where))
            for rows, m in zip(x.split(_ROWS_AT_ONCE), mass.split(_ROWS_AT_ONCE), strict=True)
        ]
        return torch.cat(parts).double().cpu() + ladj

    @torch.no_grad()
    def sample(self, mass: Tensor, *, seed: int) -> Tensor:
        """Features ``(n, D)``, float64, one event at each mass ``(n,)``."""
        context = mass.float().unsqueeze(1).to(self.settings.device)
        return self._features(self.density.sample(1, context, seed=seed)[0])

    @torch.no_grad()
    def to_noise(self, features: Tensor, mass: Tensor) -> Tensor:
        """The noise ``(n, D)``, float64, from which a flow makes these features at these masses."""
        x, where = self._events(features)[0].float().to(self.settings.device), self.settings.device
        return self._flow().to_noise(x, mass.float().unsqueeze(1).to(where)).double().cpu()

    @torch.no_grad()
    def from_noise(self, noise: Tensor, mass: Tensor) -> Tensor:
        """The features ``(n, D)``, float64, that a flow makes of noise at these masses."""
        density, where = self._flow(), self.settings.device
        made = density.from_noise(noise.float().to(where), mass.float().unsqueeze(1).to(where))
        return self._features(made)

    def _flow(self) -> FlowDensity:
        if isinstance(self.density, FlowDensity) and self.settings.members == 1 and self.settings.model != BOX:
            return self.density
        known = [name for name in FLOWS if name != BOX]
        raise UsageError(f"model: expected a single flow, one of {known}, got {self.settings.model!r}")

    def _events(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self._mapped(self._dequantise.forward(features))

    def _mapped(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self._map is None:
            return features, features.new_zeros(len(features))
        return self._map.forward(features)

    def _features(self, made: Tensor) -> Tensor:
        x = made.double().cpu()
        return self._dequantise.inverse(x if self._map is None else self._map.inverse(x))


def _checked_bounds(bounds: Tensor, features: Tensor) -> Tensor:
    """The bounds ``(D, 2)``, if all features ``(n, D)`` are inside."""
    if tuple(bounds.shape) != (features.shape[1], 2):
        raise ShapeError(f"bounds: expected shape ({features.shape[1]}, 2), got {tuple(bounds.shape)}")
    outside = ~SupportBijection(bounds).within(features)
    if bool(outside.any()):
        row = features[outside][0].tolist()
        raise SupportError(f"features: expected all inside the bounds {bounds.tolist()}, got {row}")
    return bounds
