r"""`RatioClassifier`: by how much data outnumber a background template at a point, from classifiers.

A classifier between data and template, both of the same total weight, has its optimum at the odds

$$ R(x) = \frac{p_\text{data}(x)}{p_\text{template}(x)} = 1 + s\left(\frac{p_S(x)}{p_B(x)} - 1\right), $$

with a share s of signal among the data: the larger R, the more signal-like, whatever the signal is (classification
without labels: Metodiev, Nachman and Thaler 2017, arXiv:1708.02949).  The signal is rare, so what a classifier
remembers of single events would swamp it: the events are cut into folds, and each is scored by models that have not
seen it.  The mean of many classifiers, each with a validation split of its own, is far better than one; boosted trees
are fast, and not disturbed by features that say nothing (Finke et al. 2023, arXiv:2309.13111).

Two numbers, slope and offset of the log-odds, calibrate the ratio on the events out of fold.  Trees take no negative
weights: they are replaced by their mean at x, a regression (neural resampling: Nachman and Thaler 2020,
arXiv:2007.11586), which leaves the optimum where it was.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.anomaly.events import checked_features, checked_weights
from sbi_physics.core.checks import known_keys, positive_integer, resolve_device
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import Standardise
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["CLASSIFIERS", "RatioClassifier"]

CLASSIFIERS = ("trees", "networks")
_TREES: dict[str, Any] = {
    "learning_rate": 0.1,
    "max_iter": 200,
    "max_leaf_nodes": 31,
    "n_iter_no_change": 10,
    "validation_fraction": 0.3,
}
_NETWORK: dict[str, Any] = {"hidden_features": 64, "blocks": 2}
_TRAINING = TrainConfig(epochs=15, batch_size=512, learning_rate=3e-3, validation_fraction=0.3)
_FEWEST = 2
_CALIBRATION_STEPS = 25


class Sample(NamedTuple):
    """Events ``(n, D)`` and their weights ``(n,)``, float64."""

    x: Tensor
    weights: Tensor

    def rows(self, keep: Tensor) -> "Sample":
        """Some of the events."""
        return Sample(self.x[keep], self.weights[keep])


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
        slope: of the calibration; below 1 the classifiers were too sure.
        offset: of the calibration.

    Raises:
        UsageError: an argument has a value that it does not take.
    """

    data_scores: Tensor
    template_scores: Tensor

    def __init__(
        self,
        kind: str = "trees",
        *,
        folds: int = 5,
        members: int = 10,
        device: str | torch.device = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        known_keys([kind], CLASSIFIERS, "classifier")
        self.kind, self.folds = kind, positive_integer(folds, "folds")
        if folds < _FEWEST:
            raise UsageError(f"folds: expected at least {_FEWEST}, got {folds}")
        self.members, self.device = positive_integer(members, "members"), resolve_device(device)
        defaults = _TREES if kind == "trees" else _NETWORK
        if kind == "networks":
            known_keys(list(options or {}), list(defaults), "option of the networks")
        self.options = {**defaults, **(options or {})}
        self.slope, self.offset = 1.0, 0.0
        self._models: list[list[Any]] = []

    def fit(
        self,
        data: Any,
        template: Any,
        *,
        data_weights: Any = None,
        template_weights: Any = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Train between data and template; returns itself.

        Args:
            data: events ``(n, D)``.
            template: events ``(m, D)`` of the background.
            data_weights: ``(n,)``, negative ones among them; ones where None.
            template_weights: ``(m,)`` likewise.
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
        samples = [_positive(one, derive(seed, "weights", k)) for k, one in enumerate((real, background))]
        folds = [self._folds(len(one.x), derive(seed, "folds", k)) for k, one in enumerate(samples)]
        scores = [torch.empty(len(one.x), dtype=torch.float64) for one in samples]
        self._models = []
        with progress_bar(self.folds * self.members, "training classifiers", enabled=progress) as advance:
            for fold in range(self.folds):
                parts = [one.rows(where != fold) for one, where in zip(samples, folds, strict=True)]
                models = []
                for member in range(self.members):
                    models.append(self._trained(*_balanced(*parts), derive(seed, "model", fold, member)))
                    advance(1)
                self._models.append(models)
                for score, one, where in zip(scores, samples, folds, strict=True):
                    score[where == fold] = self._log_odds(models, one.x[where == fold])
        self.slope, self.offset = _calibration(scores[0], scores[1], samples[0], samples[1])
        self.data_scores, self.template_scores = (self.offset + self.slope * score for score in scores)
        return self

    def __call__(self, x: Any) -> Tensor:
        """Calibrated log-ratios ``(n,)`` of events ``(n, D)`` that `fit` has not seen, by all models.

        Raises:
            UsageError: it is not trained.
            ShapeError, NonFiniteError: the events have another shape, or are not finite.
        """
        events = self._checked(x)
        every = [model for models in self._models for model in models]
        return self.offset + self.slope * self._log_odds(every, events)

    def as_data(self, x: Any, *, seed: int = 0) -> Tensor:
        """Log-ratios ``(n,)`` of unseen events ``(n, D)``, each by the models of one fold only.

        The mean of all models is better than that of a fold, and so it is another number: events that are to be
        selected beside the data of `fit`, with one cut, must be scored as those are.

        Args:
            x: the events.
            seed: of the choice of the fold of each event.

        Raises:
            UsageError: it is not trained.
            ShapeError, NonFiniteError: the events have another shape, or are not finite.
        """
        events = self._checked(x)
        with seeded(seed):
            fold = torch.randint(self.folds, (len(events),))
        score = torch.empty(len(events), dtype=torch.float64)
        for k, models in enumerate(self._models):
            score[fold == k] = self._log_odds(models, events[fold == k])
        return self.offset + self.slope * score

    def _checked(self, x: Any) -> Tensor:
        if not self._models:
            raise UsageError("classifier: it is not trained; call fit(data, template) first")
        return checked_features(x, "x", columns=self._columns)

    def _folds(self, n: int, seed: int) -> Tensor:
        if n < self.folds:
            raise ShapeError(f"events: expected at least one for each of {self.folds} folds, got {n}")
        with seeded(seed):
            return torch.randperm(n) % self.folds

    def _trained(self, x: Tensor, label: Tensor, weights: Tensor, seed: int) -> Any:
        if self.kind == "trees":
            return _boosted(x, label, weights, self.options, seed)
        return _network(x, label, weights, self.options, self.device, seed)

    def _log_odds(self, models: list[Any], x: Tensor) -> Tensor:
        """Log-odds of the mean probability of some models: ``(n,)``."""
        if not len(x):
            return x.new_zeros(0)
        probability = torch.stack([_probability(model, x) for model in models]).mean(0)
        return torch.logit(probability, eps=1e-12)


class _Network(nn.Module):
    """A classifier with its scaling; the second output is the log-odds of data."""

    def __init__(self, features: int, hidden_features: int, blocks: int) -> None:
        super().__init__()
        self.scaling = Standardise((features,))
        self.network = ResidualNetwork(features, 1, hidden_features=hidden_features, blocks=blocks)

    def loss(self, scaled: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy ``(n,)``."""
        return F.binary_cross_entropy_with_logits(self.network(scaled)[:, 0], label, reduction="none")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Probability ``(n,)`` of data."""
        return torch.sigmoid(self.network(self.scaling(x))[:, 0])


def _checked_sample(x: Any, weights: Any, name: str, columns: int | None = None) -> Sample:
    """Events and weights as float64 tensors."""
    events = checked_features(x, name, columns=columns)
    return Sample(events, checked_weights(weights, len(events), f"{name} weights"))


def _positive(sample: Sample, seed: int) -> Sample:
    """The same density with weights that are not negative: those of a regression on the events, where some are."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    if not bool((sample.weights < 0).any()):
        return sample
    regression = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=50, random_state=seed % 2**32)
    regression.fit(sample.x.numpy(), sample.weights.numpy())
    mean = torch.from_numpy(regression.predict(sample.x.numpy())).clamp(min=0.0)
    return Sample(sample.x, mean * (sample.weights.sum() / mean.sum()))


def _balanced(data: Sample, template: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Events, labels and weights of both, the weights of either with the sum of half of the events."""
    half = (len(data.x) + len(template.x)) / 2
    for name, part in {"data": data, "template": template}.items():
        if not float(part.weights.sum()) > 0:
            raise UsageError(f"{name} weights: expected a positive sum in each fold, got {float(part.weights.sum()):g}")
    weights = [part.weights * (half / part.weights.sum()) for part in (data, template)]
    label = torch.cat([torch.ones(len(data.x)), torch.zeros(len(template.x))])
    return torch.cat([data.x, template.x]), label, torch.cat(weights)


def _boosted(x: Tensor, label: Tensor, weights: Tensor, options: Mapping[str, Any], seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(**options, early_stopping=True, random_state=seed % 2**32)
    return model.fit(x.numpy(), label.numpy(), sample_weight=weights.numpy())


def _network(
    x: Tensor, label: Tensor, weights: Tensor, options: Mapping[str, Any], device: torch.device, seed: int
) -> Any:
    with seeded(derive(seed, "start")):
        model = _Network(x.shape[1], **options)
    events = x.float()
    model.scaling.fit(events)
    model.to(device)
    data = [model.scaling(events.to(device)), label.to(device)]
    train(model, model.loss, data, weights=weights.float(), config=_TRAINING, seed=seed, progress=False)
    return model.eval()


def _probability(model: Any, x: Tensor) -> Tensor:
    if isinstance(model, _Network):
        where = next(model.parameters()).device
        return torch.cat([model(part.float().to(where)).double().cpu() for part in x.split(1 << 16)])
    return torch.from_numpy(np.asarray(model.predict_proba(x.numpy())[:, 1], dtype=np.float64))


def _calibration(data: Tensor, template: Tensor, of_data: Sample, of_template: Sample) -> tuple[float, float]:
    """Slope and offset of the log-odds with the least cross-entropy; the slope is positive, so that ranks stay."""
    x, label, weights = _balanced(
        Sample(data[:, None], of_data.weights), Sample(template[:, None], of_template.weights)
    )
    design = torch.cat([x, torch.ones_like(x)], 1)
    found = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(_CALIBRATION_STEPS):
        p = torch.sigmoid(design @ found)
        gradient = design.T @ (weights * (p - label))
        hessian = (design * (weights * p * (1 - p)).unsqueeze(1)).T @ design
        hessian += 1e-9 * hessian.trace() * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.lstsq(
            hessian + 1e-9 * hessian.trace() * torch.eye(2, dtype=torch.float64), gradient
        ).solution
        found = found - step
        if float(step.abs().max()) < 1e-10:
            break
    if not (bool(torch.isfinite(found).all()) and float(found[0]) > 0):
        # Scores that say nothing at all: they stay as they are.
        return 1.0, 0.0
    return float(found[0]), float(found[1])
