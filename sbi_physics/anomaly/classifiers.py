"""Single classifiers between data and background: boosted trees and networks, on weighted events."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import Standardise
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["CLASSIFIERS", "Sample", "balanced", "classifier_options", "log_odds", "positive", "train_classifier"]

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
_CERTAIN = 1e-12


class Sample(NamedTuple):
    """Events ``(n, D)`` and their weights ``(n,)``, float64."""

    x: Tensor
    weights: Tensor

    def rows(self, keep: Tensor) -> "Sample":
        """Some of the events."""
        return Sample(self.x[keep], self.weights[keep])


def classifier_options(kind: str, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a kind of classifier, with those that were chosen.

    Raises:
        UsageError: there is no such kind, or a network has no such option.
    """
    known_keys([kind], CLASSIFIERS, "classifier")
    if kind == "networks":
        known_keys(list(chosen or {}), list(_NETWORK), "option of the networks")
    return {**(_TREES if kind == "trees" else _NETWORK), **(chosen or {})}


def train_classifier(
    kind: str, data: Sample, template: Sample, options: Mapping[str, Any], *, device: torch.device, seed: int
) -> Any:
    """A classifier that gives `log_odds` of data; both kinds of events have the same total weight."""
    x, label, weights = balanced(data, template)
    if kind == "trees":
        return _boosted(x, label, weights, options, seed)
    return _network(x, label, weights, options, device, seed)


def log_odds(models: list[Any], x: Tensor) -> Tensor:
    """Log-odds of the mean probability of some classifiers, for events ``(n, D)``: float64 ``(n,)``."""
    if not len(x):
        return x.new_zeros(0)
    return torch.logit(torch.stack([_probability(model, x) for model in models]).mean(0), eps=_CERTAIN)


def positive(sample: Sample, seed: int) -> Sample:
    """The same density with weights that are not negative: those of a regression on the events, where some are."""
    if not bool((sample.weights < 0).any()):
        return sample
    from sklearn.ensemble import HistGradientBoostingRegressor

    regression = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=50, random_state=seed % 2**32)
    regression.fit(sample.x.numpy(), sample.weights.numpy())
    mean = torch.from_numpy(regression.predict(sample.x.numpy())).clamp(min=0.0)
    return Sample(sample.x, mean * (sample.weights.sum() / mean.sum()))


def balanced(data: Sample, template: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Events, labels and weights of both, the weights of either with the sum of half of the events."""
    half = (len(data.x) + len(template.x)) / 2
    for name, part in {"data": data, "template": template}.items():
        if not float(part.weights.sum()) > 0:
            raise UsageError(f"{name} weights: expected a positive sum in each fold, got {float(part.weights.sum()):g}")
    weights = [part.weights * (half / part.weights.sum()) for part in (data, template)]
    label = torch.cat([torch.ones(len(data.x)), torch.zeros(len(template.x))])
    return torch.cat([data.x, template.x]), label, torch.cat(weights)


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
