r"""Background templates: what the events of the signal region would be, were there no signal.

All but the last learn from the control region, the masses beside the signal region:

==================  ==================================================================================================
``interpolation``   draws of p(x | m) at the masses of the signal region (CATHODE: Hallin et al. 2021, arXiv:2109.00546)
``latent``          the same, compared in the noise of the flow: there the background is normal at all masses, so that
                    a cut does not sculpt the spectrum (LaCATHODE: Hallin et al. 2022, arXiv:2210.14924)
``densities``       no draws: the ratio of two densities, one of the signal region (ANODE: Nachman and Shih 2020,
                    arXiv:2001.04990)
``morphing``        events of the control region, moved to masses of the signal region along the flow (FETA, CURTAINs:
                    Golling et al. 2023, arXiv:2212.11285; Raine et al. 2023, arXiv:2203.09470)
``sidebands``       events of the control region as they are (CWoLa: Collins, Howe and Nachman 2018, arXiv:1805.02664):
                    right only where features do not depend on the mass
``reweighting``     simulated events, with weights learned in the control region (SALAD: Andreassen, Nachman and Shih
                    2020, arXiv:2001.05001)
==================  ==================================================================================================
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sbi_physics.anomaly.classify import RatioClassifier, background_rank, drawn_folds
from sbi_physics.anomaly.conditional import DensitySettings, MassConditional
from sbi_physics.anomaly.events import Events, SignalRegion
from sbi_physics.anomaly.mass import MassModel
from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import SupportError, UsageError
from sbi_physics.core.random import derive, seeded

__all__ = ["METHODS", "BackgroundTemplate", "TemplateInputs", "build_template"]

_LARGEST_LOG_WEIGHT = 5.0
_LARGEST = 20.0


@dataclass(frozen=True)
class TemplateInputs:
    """What templates are made of.

    Attributes:
        signal: events of the signal region.
        control: those of the control region.
        simulation: simulated background at all masses, or None.
        mass: the fitted masses of the background in the signal region.
        region: the signal region.
        density: how p(x | m) is learned.
        classifier: an untrained classifier for the reweighting.
        folds: by which events of the signal region are scored by densities that have not seen them.
    """

    signal: Events
    control: Events
    simulation: Events | None
    mass: MassModel
    region: SignalRegion
    density: DensitySettings
    classifier: RatioClassifier
    folds: int


class BackgroundTemplate(ABC):
    """A way to know the background of the signal region.

    Attributes:
        NAME: by which users call it.
        CLASSIFIES: whether scores come from a classifier between data and template.
        IS_CONTROL: whether the template is the control region itself, event by event.
    """

    NAME: ClassVar[str]
    CLASSIFIES: ClassVar[bool] = True
    IS_CONTROL: ClassVar[bool] = False

    @abstractmethod
    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        """Learn the background; returns itself."""

    @abstractmethod
    def sample(self, n: int, *, seed: int) -> Events:
        """About n background events of the signal region."""

    def sample_at(self, mass: Tensor, *, seed: int) -> Events | None:
        """One background event at each mass ``(n,)`` of the control region; None where the method has no own there."""
        return None

    def log_ratio(self, events: Events) -> Tensor:
        """Log-ratio of data to background ``(n,)``, where there is no classifier for it."""
        raise UsageError(f"log_ratio: the method {self.NAME!r} has a classifier for it")

    def data_scores(self, signal: Events) -> tuple[Tensor, Tensor]:
        """As `RatioClassifier.data_scores` and ``data_selection``, where there is no classifier for it."""
        raise UsageError(f"data_scores: the method {self.NAME!r} has a classifier for them")

    def scores(self, events: Events, *, seed: int) -> tuple[Tensor, Tensor]:
        """As `RatioClassifier.as_data` and ``select``, where there is no classifier for it."""
        raise UsageError(f"scores: the method {self.NAME!r} has a classifier for them")

    def log_prob(self, features: Tensor, mass: Tensor) -> Tensor:
        """Log-density of background features ``(n, D)`` at masses ``(n,)``, float64."""
        raise UsageError(f"log_background: the method {self.NAME!r} learns no density")

    def coordinates(self, features: Tensor, mass: Tensor) -> Tensor:
        """What a classifier sees of events: ``(n, K)``."""
        return features

    def sample_coordinates(self, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """What a classifier sees of about n background events, with their weights."""
        events = self.sample(n, seed=seed)
        return self.coordinates(events.features, events.mass), events.weights


class _Interpolation(BackgroundTemplate):
    """Draws of p(x | m)."""

    NAME = "interpolation"

    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        self._mass = given.mass
        around = torch.cat([given.control.features, given.signal.features])
        self.density = MassConditional(given.density)
        self.density.fit(given.control, around, seed=seed, progress=progress, description="learning the background")
        return self

    def sample(self, n: int, *, seed: int) -> Events:
        mass = self._mass.sample(n, seed=derive(seed, "mass"))
        return Events(self.density.sample(mass, seed=derive(seed, "features")), mass, torch.ones_like(mass))

    def sample_at(self, mass: Tensor, *, seed: int) -> Events | None:
        return Events(self.density.sample(mass, seed=seed), mass, torch.ones_like(mass))

    def log_prob(self, features: Tensor, mass: Tensor) -> Tensor:
        return self.density.log_prob(features, mass)


class _Latent(_Interpolation):
    """Draws of p(x | m), compared in the noise of the flow."""

    NAME = "latent"

    def coordinates(self, features: Tensor, mass: Tensor) -> Tensor:
        return self.density.to_noise(features, mass)

    def sample_coordinates(self, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
        # The draws are normal by construction: there is no need to go through the flow and back.
        with seeded(derive(seed, "noise")):
            noise = torch.randn(n, self.density.density.event_shape[0], dtype=torch.float64)
        return noise, torch.ones(n, dtype=torch.float64)


class _Morphing(_Interpolation):
    """Events of the control region, moved along the flow."""

    NAME = "morphing"

    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        super().fit(given, seed=seed, progress=progress)
        self._control = given.control
        self._noise = self.density.to_noise(given.control.features, given.control.mass)
        return self

    def sample(self, n: int, *, seed: int) -> Events:
        many = len(self._noise)
        with seeded(derive(seed, "order")):
            # All events once before any comes again.
            rows = torch.cat([torch.randperm(many) for _ in range(-(-n // many))])[:n]
        mass = self._mass.sample(n, seed=derive(seed, "mass"))
        return Events(self.density.from_noise(self._noise[rows], mass), mass, self._control.weights[rows])


class _Densities(_Interpolation):
    """The ratio of a density of the signal region to that of the control region."""

    NAME = "densities"
    CLASSIFIES = False

    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        super().fit(given, seed=seed, progress=progress)
        around = torch.cat([given.control.features, given.signal.features])
        with seeded(derive(seed, "folds")):
            self._folds = torch.randperm(len(given.signal.features)) % given.folds

        def learned(rows: Tensor, name: str, fold: int) -> MassConditional:
            return MassConditional(given.density).fit(
                given.signal.rows(rows),
                around,
                seed=derive(seed, name, fold),
                progress=progress,
                description=f"learning the signal region, part {fold + 1} of {given.folds}",
            )

        self._others = [learned(self._folds != fold, "others", fold) for fold in range(given.folds)]
        self._earlier = [learned(self._folds < fold, "earlier", fold) for fold in range(1, given.folds)]
        background = self.sample(len(given.signal.mass), seed=derive(seed, "reference"))
        self._reference = [self._ratio(density, background) for density in self._earlier]
        return self

    def log_ratio(self, events: Events) -> Tensor:
        each = torch.stack([density.log_prob(events.features, events.mass) for density in self._others])
        return _comparable(each.logsumexp(0) - math.log(len(each)), self.log_prob(events.features, events.mass))

    def data_scores(self, signal: Events) -> tuple[Tensor, Tensor]:
        return self._by_fold(signal, self._folds)

    def scores(self, events: Events, *, seed: int) -> tuple[Tensor, Tensor]:
        return self._by_fold(events, drawn_folds(len(events.mass), len(self._others), seed))

    def _by_fold(self, events: Events, fold: Tensor) -> tuple[Tensor, Tensor]:
        score = torch.empty(len(fold), dtype=torch.float64)
        selection = torch.full_like(score, -torch.inf)
        for k, density in enumerate(self._others):
            score[fold == k] = self._ratio(density, events.rows(fold == k))
        for k, (density, reference) in enumerate(zip(self._earlier, self._reference, strict=True), start=1):
            ratio = self._ratio(density, events.rows(fold == k))
            selection[fold == k] = background_rank(ratio, reference, torch.ones_like(reference))
        return score, selection

    def _ratio(self, density: MassConditional, events: Events) -> Tensor:
        return _comparable(density.log_prob(events.features, events.mass), self.log_prob(events.features, events.mass))


class _Sidebands(BackgroundTemplate):
    """Events of the control region as they are."""

    NAME = "sidebands"
    IS_CONTROL = True

    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        self._control, self._mass = given.control, given.mass
        return self

    def sample(self, n: int, *, seed: int) -> Events:
        # All of them in their order, whatever n: there are no others.
        return self._control._replace(mass=self._mass.sample(len(self._control.mass), seed=derive(seed, "mass")))


class _Reweighting(BackgroundTemplate):
    """Simulated events with weights learned beside the signal region, as a function of features and mass."""

    NAME = "reweighting"

    def fit(self, given: TemplateInputs, *, seed: int, progress: bool) -> "BackgroundTemplate":
        if given.simulation is None:
            raise UsageError("simulation: the method 'reweighting' needs simulated background events, got None")
        inside = given.region.holds(given.simulation.mass)
        if not bool(inside.any()) or bool(inside.all()):
            raise SupportError("simulation: expected events in the signal region and in the control region")
        beside, self._simulated = given.simulation.rows(~inside), given.simulation.rows(inside)
        classifier = given.classifier.fit(
            _with_mass(given.control),
            _with_mass(beside),
            data_weights=given.control.weights,
            template_weights=beside.weights,
            seed=seed,
            progress=progress,
        )
        ratio = classifier(_with_mass(self._simulated)).clamp(-_LARGEST_LOG_WEIGHT, _LARGEST_LOG_WEIGHT).exp()
        self._simulated = self._simulated._replace(weights=self._simulated.weights * ratio)
        return self

    def sample(self, n: int, *, seed: int) -> Events:
        many = len(self._simulated.mass)
        with seeded(derive(seed, "order")):
            return self._simulated.rows(torch.randperm(many)[: min(n, many)])


METHODS: dict[str, type[BackgroundTemplate]] = {
    kind.NAME: kind for kind in (_Interpolation, _Latent, _Densities, _Morphing, _Sidebands, _Reweighting)
}


def build_template(name: str) -> BackgroundTemplate:
    """An untrained template by the name of its method.

    Raises:
        UsageError: there is no such method.
    """
    known_keys([name], list(METHODS), "method")
    return METHODS[name]()


def _comparable(log_data: Tensor, log_background: Tensor) -> Tensor:
    """Log-ratios, bounded; zero out of the bounds of both."""
    return torch.nan_to_num(log_data - log_background, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


def _with_mass(events: Events) -> Tensor:
    return torch.cat([events.features, events.mass.unsqueeze(1)], 1)
