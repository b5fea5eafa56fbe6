r"""The smooth part of a galaxy as a conditional flow in cylindrical coordinates.

$$ p(x, v \,|\, c) = p_1(u \,|\, c)\; p_2(\phi \,|\, u, c)\, \left| \frac{\partial(u, \phi)}{\partial(x, v)} \right| $$

with the coordinates u and azimuth phi of `GalacticCoordinates` and the conditions c of a star, such as its age and
metallicity.  p_1 is a spline flow (Durkan et al. 2019, arXiv:1906.04032); p_2 is one on the circle (Rezende et al.
2020, arXiv:2002.02428), where held-out particles say that the galaxy is not symmetric about its axis: else it would
only learn noise, and the azimuth is uniform.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import known_keys
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.flows.build import FLOWS
from sbi_physics.surrogate.galactic_coordinates import GalacticCoordinates
from sbi_physics.train.config import RULES, TrainConfig, TrainingRecord
from sbi_physics.train.density import train_density
from sbi_physics.train.split import held_out_rows

__all__ = ["SmoothGalaxy"]

_ROWS_AT_ONCE = 1 << 16
_AZIMUTH: dict[str, Any] = {"circular": (0,), "transforms": 2, "hidden_features": 32, "bins": 6}
_AZIMUTH_TRAINING: dict[str, Any] = {"learning_rate": 3e-3, "patience": 5}
# Standard deviations by which held-out particles must prefer an azimuth that is not uniform.
_PREFERENCE = 3.0


class SmoothGalaxy:
    """p(x, v | c), trained on weighted particles.

    Args:
        model: name of a flow, see `models.flows.build`.
        members: flows of the ensemble.
        options: of the flow.
        config: settings of the training that differ from those of `TrainConfig`.
        device: where.
        engine: how flows are run.
    """

    def __init__(
        self,
        model: str,
        members: int,
        options: Mapping[str, Any],
        config: Mapping[str, Any],
        device: torch.device,
        engine: str,
    ) -> None:
        known_keys([model], list(FLOWS), "model")
        known_keys(list(config), list(RULES), "setting of the training")
        self.config = TrainConfig(**config)
        self._architecture = {"model": model, "members": members, "options": dict(options)}
        self._settings = dict(config)
        self.device, self._engine = device, engine
        self.records: dict[str, Any] = {}

    def fit(
        self, phase_space: Tensor, conditions: Tensor | None, weights: Tensor, *, seed: int, progress: bool
    ) -> "SmoothGalaxy":
        """Train on particles ``(n, 6)`` with conditions ``(n, C)`` and weights ``(n,)``."""
        self.coordinates = GalacticCoordinates(phase_space)
        events, azimuth, _ = self.coordinates.encode(phase_space)
        u, contexts = events.float(), _single(conditions)
        self._flow, record = self._train(
            self._architecture, u, contexts, weights, None, self.config, derive(seed, "shape"), progress
        )
        self.records = {"shape": record.to_dict()}
        self._azimuth: ConditionalDensity | None = None
        around = u if contexts is None else torch.cat([u, contexts], 1)
        flow, record = self._train(
            {"model": "nsf-box", "members": 1, "options": _AZIMUTH},
            azimuth.float(),
            around,
            weights,
            torch.tensor([[-math.pi, math.pi]]),
            TrainConfig(**{**_AZIMUTH_TRAINING, **{k: v for k, v in self._settings.items() if k == "max_seconds"}}),
            derive(seed, "azimuth"),
            progress,
        )
        gain, error = self._azimuth_gain(flow, azimuth.float(), around, weights, derive(seed, "azimuth"))
        if gain > _PREFERENCE * error:
            self._azimuth = flow
        self.records["azimuth"] = {**record.to_dict(), "gain": gain, "error": error, "kept": self._azimuth is not None}
        return self

    @property
    def symmetric(self) -> bool:
        """Whether the azimuth is uniform."""
        return self._azimuth is None

    @torch.no_grad()
    def log_prob(self, phase_space: Tensor, conditions: Tensor | None) -> Tensor:
        """Log-density in phase space at ``(n, 6)`` given conditions ``(n, C)`` or one row of them: float64 ``(n,)``."""
        parts = []
        for start in range(0, len(phase_space), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            events, azimuth, ladj = self.coordinates.encode(phase_space[rows])
            u = events.float().to(self.device)
            context = None if conditions is None else conditions[rows if len(conditions) > 1 else slice(None)]
            context = None if context is None else context.float().to(self.device)
            total = self._flow.log_prob(u, context).double().cpu() + ladj
            if self._azimuth is None:
                total = total - math.log(2 * math.pi)
            else:
                around = u if context is None else torch.cat([u, context.expand(len(u), -1)], 1)
                angle = azimuth.float().clamp(-math.pi, math.pi).to(self.device)
                total = total + self._azimuth.log_prob(angle, around).double().cpu()
            parts.append(total)
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, conditions: Tensor | None, n: int, *, seed: int) -> Tensor:
        """Draw n stars, one for each row of the conditions if there are any: float64 ``(n, 6)``."""
        parts = []
        for start in range(0, n, _ROWS_AT_ONCE):
            many = min(_ROWS_AT_ONCE, n - start)
            context = None if conditions is None else conditions[start : start + many].float().to(self.device)
            shape_seed, azimuth_seed = (derive(seed, word, start) for word in ("shape", "azimuth"))
            if context is None:
                u = self._flow.sample(many, seed=shape_seed)
            else:
                u = self._flow.sample(1, context, seed=shape_seed)[0]
            if self._azimuth is None:
                with seeded(azimuth_seed):
                    angle = math.pi * (2 * torch.rand(many, 1, dtype=torch.float64) - 1)
            else:
                around = u if context is None else torch.cat([u, context], 1)
                angle = self._azimuth.sample(1, around, seed=azimuth_seed)[0].double().cpu()
            parts.append(self.coordinates.decode(u.double().cpu(), angle))
        return torch.cat(parts) if parts else torch.zeros(0, 6, dtype=torch.float64)

    def _train(
        self,
        what: Mapping[str, Any],
        events: Tensor,
        contexts: Tensor | None,
        weights: Tensor,
        bounds: Tensor | None,
        config: TrainConfig,
        seed: int,
        progress: bool,
    ) -> tuple[ConditionalDensity, TrainingRecord]:
        shape = None if contexts is None else (contexts.shape[1],)
        architecture = Architecture(
            what["model"], (events.shape[1],), shape, dict(what["options"]), members=what["members"]
        )
        with seeded(derive(seed, "weights")):
            density = build_density(architecture, bounds=bounds, engine=self._engine)
        density.fit_scaling(events, contexts)
        density.to(self.device)
        data = [density.encode(events.to(self.device))[0].detach()]
        if contexts is not None:
            data.append(density.context_scaling(contexts.to(self.device)).detach())
        record = train_density(
            density, data, weights=weights, config=config, seed=seed, progress=progress, description="training the flow"
        )
        return density.eval(), record

    @torch.no_grad()
    def _azimuth_gain(
        self, flow: ConditionalDensity, azimuth: Tensor, around: Tensor, weights: Tensor, seed: int
    ) -> tuple[float, float]:
        """Mean log-density of held-out azimuths less that of uniform ones, and its error."""
        _, held_out = held_out_rows(len(azimuth), TrainConfig().validation_fraction, seed)
        gains = flow.log_prob(azimuth[held_out].to(self.device), around[held_out].to(self.device)).double().cpu()
        share = weights[held_out].double() / weights[held_out].double().sum()
        gains = gains + math.log(2 * math.pi)
        mean = float(share @ gains)
        return mean, float((share.square() @ (gains - mean).square()).sqrt())


def _single(conditions: Tensor | None) -> Tensor | None:
    return None if conditions is None else conditions.float()
