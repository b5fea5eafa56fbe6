r"""`RatioClassifier`: by how much data outnumber a background template at a point, from classifiers.

A classifier between data and template, both of the same total weight, has its optimum at the odds

$$ R(x) = \frac{p_\text{data}(x)}{p_\text{template}(x)} = 1 + s\left(\frac{p_S(x)}{p_B(x)} - 1\right), $$

with a share s of signal among the data: the larger R, the more signal-like, whatever the signal is (classification
without labels: Metodiev, Nachman and Thaler 2017, arXiv:1708.02949).  The signal is rare, so what a classifier
remembers of single events would swamp it: the events are cut into folds, and each is scored by models that have not
seen it.  The mean of many classifiers, each with a validation split of its own, is far better than one; boosted trees
are fast, and not disturbed by features that say nothing (Finke et al. 2023, arXiv:2309.13111).

Two numbers, slope and offset of the log-odds, calibrate the ratio on the events out of fold.

For counting there is a second score.  Of two folds that score each other, a common fluctuation raises the counts of
both: without signal the number that passes has up to twice the variance of a Poisson number.  So events are *selected*
by models of the folds before theirs, and those of the first fold not at all.  Given what came before, the count of each
fold is then a Poisson number.  The selection score is minus the logarithm of the share of the template that is as
signal-like, by the same models: a cut keeps the same share of background in each fold.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from sbi_physics.anomaly.classifiers import (
    Sample,
    balanced,
    classifier_options,
    log_odds,
    positive,
    train_classifier,
)
from sbi_physics.anomaly.events import checked_features, checked_weights
from sbi_physics.core.checks import positive_integer, resolve_device
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import check_seed, derive, seeded

__all__ = ["RatioClassifier", "background_rank", "drawn_folds"]

_FEWEST = 2
_CALIBRATION_STEPS = 25
_STEPS_END = 1e-10


class RatioClassifier:
    """An ensemble of classifiers between data and template, cross-fitted.

    Args:
        kind: ``"trees"`` for gradient boosting, ``"networks"`` for multilayer perceptrons.
        folds: parts of the events; the models that score one part are trained on the others.
        members: models for each part.
        device: where networks are trained.
        options: settings of the trees (those of scikit-learn's HistGradientBoostingClassifier), or ``hidden_features``
            and ``blocks`` of the networks.

    Attributes:
        data_scores: calibrated log-ratios of the data of `fit`, each by models that have not seen it, float64 ``(n,)``.
        template_scores: likewise of the template ``(m,)``.
        data_selection: selection scores of the data ``(n,)``, minus infinity in the first fold.
        template_selection: likewise of the template ``(m,)``.
        slope: of the calibration; below 1 the classifiers were too sure.
        offset: of the calibration.

    Raises:
        UsageError: an argument has a value that it does not take.
    """

    data_scores: Tensor
    template_scores: Tensor
    data_selection: Tensor
    template_selection: Tensor

    def __init__(
        self,
        kind: str = "trees",
        *,
        folds: int = 5,
        members: int = 5,
        device: str | torch.device = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.options = kind, classifier_options(kind, options)
        self.folds, self.members = positive_integer(folds, "folds"), positive_integer(members, "members")
        if folds < _FEWEST:
            raise UsageError(f"folds: expected at least {_FEWEST}, got {folds}")
        self.device = resolve_device(device)
        self.slope, self.offset = 1.0, 0.0
        self._models: list[list[Any]] = []
        self._earlier: list[tuple[list[Any], Sample]] = []

    def fit(
        self,
        data: Any,
        template: Any,
        *,
        data_weights: Any = None,
        template_weights: Any = None,
        selection: bool = False,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Train between data and template; returns itself.

        Args:
            data: events ``(n, D)``.
            template: events ``(m, D)`` of the background.
            data_weights: ``(n,)``, negative ones among them; ones where None.
            template_weights: ``(m,)`` likewise.
            selection: whether there are to be selection scores, which takes half as long again.
            seed: of folds, splits and models.
            progress: whether to show a progress bar.

        Raises:
            ShapeError: the shapes do not fit, or there are fewer events than folds.
            NonFiniteError: a number is NaN or infinite.
            UsageError: weights have no positive sum.
        """
        check_seed(seed)
        real = _checked_sample(data, data_weights, "data")
        self._columns = real.x.shape[1]
        background = _checked_sample(template, template_weights, "template", self._columns)
        samples = [positive(one, derive(seed, "weights", k)) for k, one in enumerate((real, background))]
        folds = [self._folds(len(one.x), derive(seed, "folds", k)) for k, one in enumerate(samples)]
        passes = self.folds + (self.folds - 1 if selection else 0)
        with progress_bar(passes * self.members, "training classifiers", enabled=progress) as advance:
            self._cross_fit(samples, folds, seed, advance)
            if selection:
                self._select(samples, folds, seed, advance)
        return self

    def __call__(self, x: Any) -> Tensor:
        """Calibrated log-ratios ``(n,)`` of events ``(n, D)`` that `fit` has not seen, by all models.

        Raises:
            UsageError: it is not trained.
            ShapeError, NonFiniteError: the events have another shape, or are not finite.
        """
        events = self._checked(x)
        return self.offset + self.slope * log_odds([model for models in self._models for model in models], events)

    def as_data(self, x: Any, *, seed: int = 0) -> Tensor:
        """Log-ratios ``(n,)`` of unseen events ``(n, D)``, each by the models of one fold only, as those of the data.

        The mean of all models is better than that of a fold, and so it is another number.

        Args:
            x: the events.
            seed: of the choice of the fold of each event.

        Raises:
            UsageError: it is not trained.
            ShapeError, NonFiniteError: the events have another shape, or are not finite.
        """
        events, fold = self._checked(x), drawn_folds(len(x), self.folds, seed)
        score = torch.empty(len(events), dtype=torch.float64)
        for k, models in enumerate(self._models):
            score[fold == k] = self.offset + self.slope * log_odds(models, events[fold == k])
        return score

    def select(self, x: Any, *, seed: int = 0) -> Tensor:
        """Selection scores ``(n,)`` of unseen events ``(n, D)``; as many as of the data are not scored.

        Args:
            x: the events.
            seed: of the choice of the fold of each event.

        Raises:
            UsageError: it is not trained, or without selection scores.
            ShapeError, NonFiniteError: the events have another shape, or are not finite.
        """
        events, fold = self._checked(x), drawn_folds(len(x), self.folds, seed)
        if not self._earlier:
            raise UsageError("select: expected a classifier trained with selection=True")
        score = torch.full((len(events),), -torch.inf, dtype=torch.float64)
        for k, (models, template) in enumerate(self._earlier, start=1):
            score[fold == k] = background_rank(log_odds(models, events[fold == k]), template.x[:, 0], template.weights)
        return score

    def _cross_fit(self, samples: list[Sample], folds: list[Tensor], seed: int, advance: Callable[..., None]) -> None:
        """Train the models of each fold on the others, and calibrate what they say of it."""
        scores = [torch.empty(len(one.x), dtype=torch.float64) for one in samples]
        self._models = []
        for fold in range(self.folds):
            parts = [one.rows(where != fold) for one, where in zip(samples, folds, strict=True)]
            models = self._ensemble(parts[0], parts[1], derive(seed, "models", fold), advance)
            self._models.append(models)
            for score, one, where in zip(scores, samples, folds, strict=True):
                score[where == fold] = log_odds(models, one.x[where == fold])
        self.slope, self.offset = _calibration(scores[0], scores[1], samples[0], samples[1])
        self.data_scores, self.template_scores = (self.offset + self.slope * score for score in scores)

    def _select(self, samples: list[Sample], folds: list[Tensor], seed: int, advance: Callable[..., None]) -> None:
        """Train models of the data in earlier folds; of the template in all others, which tells nothing of the data."""
        selection = [torch.full((len(one.x),), -torch.inf, dtype=torch.float64) for one in samples]
        self._earlier = []
        for fold in range(1, self.folds):
            parts = [samples[0].rows(folds[0] < fold), samples[1].rows(folds[1] != fold)]
            models = self._ensemble(parts[0], parts[1], derive(seed, "earlier", fold), advance)
            here = samples[1].rows(folds[1] == fold)
            reference = Sample(log_odds(models, here.x).unsqueeze(1), here.weights)
            self._earlier.append((models, reference))
            for score, one, where in zip(selection, samples, folds, strict=True):
                values = log_odds(models, one.x[where == fold])
                score[where == fold] = background_rank(values, reference.x[:, 0], reference.weights)
        self.data_selection, self.template_selection = selection

    def _ensemble(self, data: Sample, template: Sample, seed: int, advance: Callable[..., None]) -> list[Any]:
        models = []
        for member in range(self.members):
            start = derive(seed, member)
            models.append(train_classifier(self.kind, data, template, self.options, device=self.device, seed=start))
            advance(1)
        return models

    def _checked(self, x: Any) -> Tensor:
        if not self._models:
            raise UsageError("classifier: it is not trained; call fit(data, template) first")
        return checked_features(x, "x", columns=self._columns)

    def _folds(self, n: int, seed: int) -> Tensor:
        if n < self.folds:
            raise ShapeError(f"events: expected at least one for each of {self.folds} folds, got {n}")
        with seeded(seed):
            return torch.randperm(n) % self.folds


def drawn_folds(n: int, folds: int, seed: int) -> Tensor:
    """A fold ``(n,)`` for each of n events, at random."""
    with seeded(seed):
        return torch.randint(folds, (n,))


def background_rank(scores: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """Minus the logarithm of the share of a background that is as signal-like: ``(n,)``.

    Args:
        scores: ``(n,)``, larger where more signal-like.
        reference: scores of the background ``(m,)``.
        weights: of the background ``(m,)``, none negative.
    """
    order = reference.argsort()
    above = torch.cat([weights[order].flip(0).cumsum(0).flip(0), weights.new_zeros(1)])
    # One event more, so that the share is never zero.
    one, place = weights.mean(), torch.searchsorted(reference[order], scores.contiguous())
    return -torch.log((above[place] + one) / (above[0] + one))


def _checked_sample(x: Any, weights: Any, name: str, columns: int | None = None) -> Sample:
    """Events and weights as float64 tensors."""
    events = checked_features(x, name, columns=columns)
    return Sample(events, checked_weights(weights, len(events), f"{name} weights"))


def _calibration(data: Tensor, template: Tensor, of_data: Sample, of_template: Sample) -> tuple[float, float]:
    """Slope and offset of the log-odds with the least cross-entropy; the slope is positive, so that ranks stay."""
    columns = Sample(data[:, None], of_data.weights), Sample(template[:, None], of_template.weights)
    x, label, weights = balanced(*columns)
    design = torch.cat([x, torch.ones_like(x)], 1)
    found = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(_CALIBRATION_STEPS):
        p = torch.sigmoid(design @ found)
        gradient = design.T @ (weights * (p - label))
        hessian = (design * (weights * p * (1 - p)).unsqueeze(1)).T @ design
        hessian += 1e-9 * hessian.trace() * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.lstsq(hessian, gradient).solution
        found = found - step
        if float(step.abs().max()) < _STEPS_END:
            break
    if not (bool(torch.isfinite(found).all()) and float(found[0]) > 0):
        # Scores that say nothing at all: they stay as they are.
        return 1.0, 0.0
    return float(found[0]), float(found[1])
