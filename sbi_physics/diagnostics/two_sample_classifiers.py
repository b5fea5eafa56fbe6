"""Classifiers for the two-sample test: how they see events, and how they are trained within a budget.

Each is trained on one part of the events and stopped where a second part, the validation part, says that it was best;
what it is worth is judged on a third one, by `classifier_auc`.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, seeded

__all__ = ["Budget", "Fitted", "InputScale", "Labelled", "NetworkShape", "fit_network", "fit_trees"]

_LEARNING_RATE = 2e-4
_BATCH = 1000
_ROWS_AT_ONCE = 1 << 14
_TREES_AT_ONCE = 10
_PATIENCE = 10
_FURTHEST = 1e6


class Labelled(NamedTuple):
    """Rows ``(n, F)`` of float32, their labels ``(n,)``, one for real and zero for generated events, and weights.

    Those of either kind have a sum above zero; negative ones may be among them.
    """

    rows: Tensor
    labels: Tensor
    weights: Tensor


class Budget(NamedTuple):
    """Passes over the events, or rounds of trees, and the time after which training stops (as of `time.monotonic`)."""

    epochs: int
    deadline: float
    progress: bool

    @property
    def spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.deadline


class NetworkShape(NamedTuple):
    """Hidden layers, how wide each is, and the share of their outputs that is dropped in training."""

    hidden_features: int
    hidden_layers: int
    dropout: float


class Fitted(NamedTuple):
    """A classifier: `score` gives log-odds of being real ``(n,)``, float64 on the CPU, of rows ``(n, F)``.

    `epochs` were made, of which `best_epoch` was kept; `out_of_time` says that the time ended training.
    """

    score: Callable[[Tensor], Tensor]
    epochs: int
    best_epoch: int
    out_of_time: bool


class InputScale:
    """Standardises rows as those it is made from; with `logarithm`, columns without negative numbers in logarithms.

    What is zero becomes the logarithm of a hundredth of the median of what is not, so that a point mass at zero stays
    near the rest.
    """

    def __init__(self, rows: Tensor, *, logarithm: bool) -> None:
        self.offset = torch.full_like(rows[0], torch.nan)
        if logarithm:
            positive = torch.where(rows > 0, rows, torch.nan)
            usual = 0.01 * positive.nanmedian(0).values
            self.offset = torch.where((rows >= 0).all(0), usual, self.offset)
        seen = self._transformed(rows)
        self.mean, deviation = seen.mean(0), seen.std(0)
        self.deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows ``(n, F)`` as float32, none so far out that a network would overflow."""
        return ((self._transformed(rows) - self.mean) / self.deviation).clamp(-_FURTHEST, _FURTHEST).float()

    def _transformed(self, rows: Tensor) -> Tensor:
        inside = rows.clamp(min=0.0) + self.offset
        return torch.where(torch.isnan(self.offset), rows, inside.log())


def fit_network(
    train: Labelled, validation: Labelled, shape: NetworkShape, budget: Budget, seed: int, device: torch.device
) -> Fitted:
    """A network of leaky ReLU layers, trained with Adam on the binary cross-entropy; most accurate epoch on validation.

    Events of the two kinds count equally, however many there are of each.
    """
    train = Labelled(*(part.to(device) for part in train))
    validation = Labelled(*(part.to(device) for part in validation))
    with seeded(derive(seed, "start"), device):
        network = _network(train.rows.shape[1], shape).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    best, kept, best_epoch, epoch, late = -1.0, copy.deepcopy(network.state_dict()), 0, 0, False
    with progress_bar(budget.epochs, "classifier", enabled=budget.progress) as advance:
        for epoch in range(1, budget.epochs + 1):
            with seeded(derive(seed, "epoch", epoch), device):
                _pass(network, optimiser, train, budget)
            accuracy = _accuracy(_scores(network, validation.rows), validation)
            if accuracy > best:
                best, kept, best_epoch = accuracy, copy.deepcopy(network.state_dict()), epoch
            advance(1, f"accuracy {accuracy:.3f}")
            late = budget.spent
            # Negative weights may make it larger than one.
            if accuracy == 1.0 or late:
                break
    network.load_state_dict(kept)
    return Fitted(lambda rows: _scores(network, rows.to(device)).cpu(), epoch, best_epoch, late)


def fit_trees(train: Labelled, validation: Labelled, budget: Budget, seed: int) -> Fitted:
    """Gradient-boosted trees, ten a round; the round with the smallest validation loss.

    Training ends ten rounds after the best one.  The weights must not be negative.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, labels = train.rows.cpu().numpy(), train.labels.cpu().numpy()
    equal = bool((train.weights == 1).all())
    weights = None if equal else train.weights.cpu().numpy()
    # Unlike weights of events, a shift of the log-odds costs nothing when trees look for their cuts.
    share = float((train.weights * train.labels).sum() / train.weights.sum())
    prior = math.log(share / (1 - share))
    trees = HistGradientBoostingClassifier(
        max_iter=0, early_stopping=False, warm_start=True, random_state=derive(seed, "trees") % 2**32
    )
    best, best_epoch, epoch, late = math.inf, 0, 0, False
    with progress_bar(budget.epochs, "classifier", enabled=budget.progress) as advance:
        for epoch in range(1, budget.epochs + 1):
            trees.set_params(max_iter=epoch * _TREES_AT_ONCE)
            trees.fit(rows, labels, sample_weight=weights)
            score = _log_odds(trees.predict_proba(validation.rows.cpu().numpy())[:, 1]) - prior
            loss = _loss(score, validation)
            if loss < best:
                best, best_epoch = loss, epoch
            advance(1, f"loss {loss:.3f}")
            late = budget.spent
            if epoch - best_epoch >= _PATIENCE or late:
                break

    def scores(asked: Tensor) -> Tensor:
        stages = trees.staged_predict_proba(asked.cpu().numpy())
        kept = next(stage for i, stage in enumerate(stages, start=1) if i == best_epoch * _TREES_AT_ONCE)
        return _log_odds(kept[:, 1]) - prior

    return Fitted(scores, epoch, best_epoch, late)


def _network(features: int, shape: NetworkShape) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for _ in range(shape.hidden_layers):
        layers += [torch.nn.Linear(features, shape.hidden_features), torch.nn.LeakyReLU(0.01)]
        layers += [torch.nn.Dropout(shape.dropout)] if shape.dropout else []
        features = shape.hidden_features
    return torch.nn.Sequential(*layers, torch.nn.Linear(features, 1))


def _pass(network: torch.nn.Module, optimiser: torch.optim.Optimizer, train: Labelled, budget: Budget) -> None:
    """One pass over the events in batches, cut short where the time is over."""
    network.train()
    weights = _weights(train)
    for chosen in torch.randperm(len(train.rows), device=train.rows.device).split(_BATCH):
        score = network(train.rows[chosen]).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, train.labels[chosen], weights[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if budget.spent:
            return


def _scores(network: torch.nn.Module, rows: Tensor) -> Tensor:
    network.train(False)
    with torch.no_grad():
        return torch.cat([network(part).squeeze(1) for part in rows.split(_ROWS_AT_ONCE)]).double()


def _weights(events: Labelled) -> Tensor:
    """The weights, so that the two kinds count equally, one on average."""
    share = (events.weights * events.labels).sum() / events.weights.sum()
    equal = torch.where(events.labels > 0.5, 0.5 / share, 0.5 / (1 - share))
    return events.weights * equal * (len(events.weights) / events.weights.sum())


def _accuracy(score: Tensor, events: Labelled) -> float:
    right, weights = ((score > 0) == (events.labels > 0.5)).double(), _weights(events).double()
    return float((weights * right).sum() / weights.sum())


def _loss(score: Tensor, events: Labelled) -> float:
    labels, weights = events.labels.double().cpu(), _weights(events).double().cpu()
    return float(torch.nn.functional.binary_cross_entropy_with_logits(score, labels, weights))


def _log_odds(probability: np.ndarray[Any, Any]) -> Tensor:
    return torch.logit(torch.as_tensor(probability, dtype=torch.float64), eps=1e-9)
