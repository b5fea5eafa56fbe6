r"""`ResonantSearch`: is there a resonance in the data, of whatever kind?

A resonance is a peak in one variable, the mass m.  Beside it, in the control region, there is background alone: what is
learned there says how background looks in the signal region (`template`), a classifier finds where the data there
outnumber it (`classify`), and a cut on its score makes a small signal large.  What is expected after the cut is known
in two ways: a falling function fitted to the masses beside the region, after the same cut (`spectrum`), and the
template itself, corrected by how much the cut misjudges the control region (`search_result`).  Labels are never needed.

    search = ResonantSearch((3.3, 3.7)).fit(features, mass, seed=0)
    result = search.search()
    print(result)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sbi_physics.anomaly.classify import RatioClassifier
from sbi_physics.anomaly.closure import Closure, check_template
from sbi_physics.anomaly.conditional import DensitySettings
from sbi_physics.anomaly.events import Events, SignalRegion, checked_events, split_regions
from sbi_physics.anomaly.mass import MassModel
from sbi_physics.anomaly.search_result import SearchResult, Selections, evaluate_search
from sbi_physics.anomaly.template import BackgroundTemplate, TemplateInputs, build_template
from sbi_physics.core.checks import as_tensor, positive_integer, resolve_device
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import check_seed, derive
from sbi_physics.models.flows.engines import check_engine

__all__ = ["EFFICIENCIES", "ResonantSearch"]

EFFICIENCIES = (0.2, 0.1, 0.05, 0.01)


class _Trained(NamedTuple):
    """What `ResonantSearch.fit` found."""

    signal: Events
    control: Events
    template: BackgroundTemplate
    classifier: RatioClassifier | None
    mass: MassModel
    scores: Tensor
    control_scores: Tensor
    selections: Selections
    inside: Tensor


class ResonantSearch:
    """A search for a resonance inside a region of mass, with the background learned from the data beside it.

    Args:
        signal_region: lowest and highest mass.
        method: how the background is known, see `template`.
        model: of the density p(x | m), see `models.build`; the methods ``latent`` and ``morphing`` need a flow.
        preprocessing: of the features, ``"probit"`` by their bounds or ``"quantile"``, see `feature_map`.
        bounds: ``(D, 2)`` of the features; None takes those of the data.
        ensemble: flows of the density.
        oversampling: background events drawn for each event of the signal region.
        mass_model: ``"fit"`` or ``"kernels"``, see `mass`.
        classifier: ``"trees"`` or ``"networks"``, see `classify`.
        folds: parts of the events; no event is scored by a model that was trained on it.
        members: classifiers for each part.
        sqrt_s: energy of the collision in the unit of mass, the end of the dijet function; None takes that of the LHC
            in TeV or GeV where all masses are below it.
        config: settings of the training of the density that differ from those of `train.config.TrainConfig`.
        classifier_options: of the classifiers.
        names: of the features, for messages; their numbers where there are none.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        engine: how flows are run, see `models.flows.engines`.
        **options: of the model of the density.

    Raises:
        UsageError: an argument has a value that it does not take.
    """

    def __init__(
        self,
        signal_region: Sequence[float],
        *,
        method: str = "interpolation",
        model: str = "nsf",
        preprocessing: str = "probit",
        bounds: Any = None,
        ensemble: int = 1,
        oversampling: float = 4.0,
        mass_model: str = "fit",
        classifier: str = "trees",
        folds: int = 5,
        members: int = 5,
        sqrt_s: float | None = None,
        config: Mapping[str, Any] | None = None,
        classifier_options: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
        device: str | torch.device = "auto",
        engine: str = "auto",
        **options: Any,
    ) -> None:
        try:
            low, high = signal_region
        except (TypeError, ValueError) as error:
            raise UsageError(f"signal_region: expected two masses (low, high), got {signal_region!r}") from error
        self.region = SignalRegion(low, high)
        build_template(method)
        if not oversampling > 0:
            raise UsageError(f"oversampling: expected a number above 0, got {oversampling!r}")
        self.names = tuple(names)
        self.method, self.oversampling = method, float(oversampling)
        self.mass_model, self.sqrt_s = mass_model, sqrt_s
        MassModel(mass_model, self.region, sqrt_s)
        where = resolve_device(device)
        self._density = DensitySettings(
            model,
            positive_integer(ensemble, "ensemble"),
            preprocessing,
            None if bounds is None else as_tensor(bounds, "bounds", dtype=torch.float64),
            dict(options),
            dict(config or {}),
            where,
            check_engine(engine),
        )
        self._classifier: dict[str, Any] = {
            "kind": classifier,
            "folds": folds,
            "members": members,
            "device": where,
            "options": dict(classifier_options or {}),
        }
        RatioClassifier(**self._classifier)
        self._trained: _Trained | None = None

    def fit(
        self,
        features: Any,
        mass: Any,
        *,
        weights: Any = None,
        simulation: tuple[Any, ...] | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Learn the background and, in the signal region, where the data outnumber it; returns itself.

        Args:
            features: ``(n, D)``, of events in the signal region and on both sides of it; the mass is not among them.
            mass: ``(n,)``.
            weights: ``(n,)``, negative ones among them.
            simulation: features ``(k, D)``, masses ``(k,)`` and, if any, weights ``(k,)`` of simulated background, for
                the method ``reweighting``.
            seed: of everything random.
            progress: whether to show progress bars.

        Raises:
            ShapeError, NonFiniteError: shapes do not fit, or a number is NaN or infinite.
            SupportError: the region lies outside the data, the control region is empty on one side, or a feature is
                constant.
            UsageError: weights have no positive sum, or the method needs what is not there.
            TrainingError: the loss is not finite.
        """
        check_seed(seed)
        events = checked_events(features, mass, weights)
        signal, control = split_regions(events, self.region, self.names)
        simulated = None
        if simulation is not None:
            if len(simulation) not in (2, 3):
                raise ShapeError(
                    f"simulation: expected features, masses, perhaps weights; got {len(simulation)} arrays"
                )
            x, m, w = simulation if len(simulation) == 3 else (*simulation, None)
            simulated = checked_events(x, m, w, name="simulation ", columns=events.features.shape[1])
        mass_model = MassModel(self.mass_model, self.region, self.sqrt_s).fit(control, signal)
        given = TemplateInputs(
            signal,
            control,
            simulated,
            mass_model,
            self.region,
            self._density,
            RatioClassifier(**self._classifier),
            int(self._classifier["folds"]),
        )
        template = build_template(self.method).fit(given, seed=derive(seed, "template"), progress=progress)
        inside = self.region.holds(events.mass)
        self._trained = self._scored(signal, control, template, mass_model, inside, seed, progress)
        return self

    @property
    def template(self) -> BackgroundTemplate:
        """The background that was learned."""
        return self._fitted().template

    @property
    def signal_events(self) -> Events:
        """The events of the signal region."""
        return self._fitted().signal

    @property
    def data_scores(self) -> Tensor:
        """Log-ratios of data to background ``(n,)`` of the events of `fit`, in their order, float64.

        Each is by models that have not been trained on the event.
        """
        found = self._fitted()
        scores = torch.empty(len(found.inside), dtype=torch.float64)
        scores[found.inside], scores[~found.inside] = found.scores, found.control_scores
        return scores

    def sample_background(self, n: int, *, seed: int = 0) -> Events:
        """Draw n background events of the signal region: features, masses and weights.

        The methods ``sidebands`` and ``reweighting`` have as many as there are at most.

        Raises:
            UsageError: nothing is fitted, or n is not positive.
        """
        return self.template.sample(positive_integer(n, "n"), seed=check_seed(seed))

    def log_background(self, features: Any, mass: Any) -> Tensor:
        """Log-density of background with features ``(n, D)`` at masses ``(n,)``, float64 ``(n,)``.

        Raises:
            UsageError: nothing is fitted, or the method learns no density.
            ShapeError, NonFiniteError: the shapes do not fit, or a number is NaN or infinite.
        """
        found = self._fitted()
        events = checked_events(features, mass, None, columns=found.signal.features.shape[1])
        return found.template.log_prob(events.features, events.mass)

    def score(self, features: Any, mass: Any) -> Tensor:
        """Log-ratios of data to background ``(n,)`` of other events, float64: the larger, the more signal-like.

        Raises:
            UsageError: nothing is fitted.
            ShapeError, NonFiniteError: the shapes do not fit, or a number is NaN or infinite.
        """
        found = self._fitted()
        events = checked_events(features, mass, None, columns=found.signal.features.shape[1])
        return self._log_ratio(found.template, found.classifier, events)

    @property
    def data_selection(self) -> Tensor:
        """Scores ``(n,)`` of the events of `fit`, float64, on which `search` cuts: by models of earlier folds alone."""
        found = self._fitted()
        scores = torch.empty(len(found.inside), dtype=torch.float64)
        scores[found.inside], scores[~found.inside] = found.selections.signal, found.selections.control
        return scores

    def score_as_data(self, features: Any, mass: Any, *, seed: int = 0) -> Tensor:
        """Log-ratios ``(n,)`` of other events, each by the models of one fold, to be compared with `data_scores`.

        Args:
            features: ``(n, D)``.
            mass: ``(n,)``.
            seed: of the choice of the folds.

        Raises:
            UsageError: nothing is fitted.
            ShapeError, NonFiniteError: the shapes do not fit, or a number is NaN or infinite.
        """
        found = self._fitted()
        events = checked_events(features, mass, None, columns=found.signal.features.shape[1])
        return self._as_data(found.template, found.classifier, events, check_seed(seed))[0]

    def search(
        self, *, efficiencies: Sequence[float] = EFFICIENCIES, toys: int = 20_000, seed: int = 0
    ) -> SearchResult:
        """Cut at several efficiencies, count, and say how improbable the counts are without a resonance.

        Args:
            efficiencies: shares of the background that the cuts keep.
            toys: pseudo-experiments for the global p-value over the cuts.
            seed: of those.

        Raises:
            UsageError: nothing is fitted, or an efficiency is not in (0, 1].
        """
        found = self._fitted()
        return evaluate_search(
            found.signal,
            found.control,
            found.selections,
            found.mass,
            efficiencies=efficiencies,
            toys=positive_integer(toys, "toys"),
            seed=check_seed(seed),
        )

    def closure(self, *, seed: int = 0, progress: bool = True) -> Closure:
        """Compare p(x | m), learned anew without bands next to the signal region, with the events in those.

        Args:
            seed: of the fit, the draws and the classifiers.
            progress: whether to show progress bars.

        Raises:
            UsageError: nothing is fitted.
            SupportError: there are too few events in the bands, or beyond them.
        """
        return check_template(
            self._fitted().control, self.region, self._density, seed=check_seed(seed), progress=progress
        )

    def __repr__(self) -> str:
        state = "not fitted" if self._trained is None else f"{len(self._trained.inside)} events"
        return f"ResonantSearch({self.region.low:g} to {self.region.high:g}, {self.method}, {state})"

    def _scored(
        self,
        signal: Events,
        control: Events,
        template: BackgroundTemplate,
        mass: MassModel,
        inside: Tensor,
        seed: int,
        progress: bool,
    ) -> _Trained:
        wanted = max(1, round(self.oversampling * len(signal.mass)))
        background = template.sample(wanted, seed=derive(seed, "background"))
        classifier = None
        if template.CLASSIFIES:
            classifier = RatioClassifier(**self._classifier)
            seen, weights = template.sample_coordinates(wanted, seed=derive(seed, "background"))
            classifier.fit(
                template.coordinates(signal.features, signal.mass),
                seen,
                data_weights=signal.weights,
                template_weights=weights,
                selection=True,
                seed=derive(seed, "classifier"),
                progress=progress,
            )
            background = background._replace(weights=weights)
            scores, selection = classifier.data_scores, classifier.data_selection
            template_scores, template_selection = classifier.template_scores, classifier.template_selection
        else:
            scores, selection = template.data_scores(signal)
            template_scores, template_selection = template.scores(background, seed=derive(seed, "template"))
        if template.IS_CONTROL:
            control_scores, control_selection = template_scores, template_selection
        else:
            control_scores, control_selection = self._as_data(template, classifier, control, derive(seed, "control"))
        made, beside = template.sample_at(control.mass, seed=derive(seed, "beside")), None
        if made is not None:
            beside = self._as_data(template, classifier, made, derive(seed, "made beside"))[1], made.weights
        return _Trained(
            signal,
            control,
            template,
            classifier,
            mass,
            scores,
            control_scores,
            Selections(selection, control_selection, template_selection, background.weights, beside),
            inside,
        )

    def _as_data(
        self, template: BackgroundTemplate, classifier: RatioClassifier | None, events: Events, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Scores and selection scores of unseen events, comparable with those of the signal region's own."""
        if classifier is None:
            return template.scores(events, seed=seed)
        seen = template.coordinates(events.features, events.mass)
        return classifier.as_data(seen, seed=seed), classifier.select(seen, seed=seed)

    def _log_ratio(self, template: BackgroundTemplate, classifier: RatioClassifier | None, events: Events) -> Tensor:
        if classifier is None:
            return template.log_ratio(events)
        return classifier(template.coordinates(events.features, events.mass))

    def _fitted(self) -> _Trained:
        if self._trained is None:
            raise UsageError("search: nothing is fitted; call fit(features, mass) first")
        return self._trained
