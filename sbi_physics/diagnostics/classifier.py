r"""The two-sample classifier: how well can a network tell generated events from real ones?

The area under its receiver operating characteristic, AUC, is the probability that it ranks a real event above a
generated one: 1/2 where the events have one distribution, 1 where they do not overlap.  The recipe is that of Krause &
Shih 2021 (arXiv:2106.05285) and the CaloChallenge (arXiv:2410.21611): a network with two hidden layers of 512 (on a
GPU 2048) leaky ReLU units, Adam with learning rate 2e-4, batches of 1000; 60 % of the events train it, 20 % choose the
most accurate epoch, and the last 20 %, which it has not seen, give the AUC.  The error is that of DeLong et al. 1988
(doi:10.2307/2531595) for the finite number of these events.

With its scores made probabilities d, the cross-entropy bounds the Jensen-Shannon divergence from below, in bits

$$ J \geq 1 + \tfrac12 E_\text{real} [\log_2 d] + \tfrac12 E_\text{generated} [\log_2 (1 - d)]. $$

There the scores are calibrated by two numbers, slope and offset, fitted on the validation events.  An AUC near 1/2
says that *this* classifier found nothing: give it events enough, and trees a try beside the network.

Weights of events go into the loss, the accuracy and the AUC, $\sum_{ij} w_i v_j [s_i > s_j] / \sum_{ij} w_i v_j$; the
network takes negative ones (as Nachman & Thaler 2020, arXiv:2007.11586), with which the AUC may leave [0, 1] by chance.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, known_keys, positive_integer, resolve_device
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import check_seed, derive
from sbi_physics.diagnostics.events import checked_events, checked_weights, effective_number
from sbi_physics.diagnostics.scores import Scored, area_under_curve
from sbi_physics.diagnostics.two_sample_classifiers import (
    Budget,
    Fitted,
    InputScale,
    Labelled,
    NetworkShape,
    fit_network,
    fit_trees,
)
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["ClassifierTest", "classifier_auc"]

Kind = Literal["network", "trees"]
Scaling = Literal["standard", "logarithm"]

_FEWEST = 50
_FEWEST_EFFECTIVE = 10
_WIDTH = {"cuda": 2048, "cpu": 512}


@dataclass(frozen=True)
class ClassifierTest:
    """What a classifier found that was trained to tell generated events from real ones.

    Attributes:
        kind: ``"network"`` or ``"trees"``.
        auc: area under the curve on test events; 1/2 is best.
        error: its standard deviation for the finite number of test events, the classifier as it is.
        expected_error: the standard deviation where events have one distribution.
        accuracy: the share of test events that are told rightly, each kind counting half.
        accuracy_error: its standard deviation.
        jensen_shannon: lower bound of the divergence in bits; by chance it may be below zero.
        jensen_shannon_error: its standard deviation.
        epochs: that were made; of trees, rounds of ten.
        best_epoch: the one that was kept.
        features: numbers that the classifier sees of each event.
        training_events: of both kinds together.
        real_scores: log-odds of being real of real test events, ``(n,)``.
        generated_scores: those of generated ones, ``(m,)``.
        real_weights: of the real test events, ``(n,)``; ones where none were given.
        generated_weights: likewise ``(m,)``.
        out_of_time: whether training ended because the seconds were used up.
        level: the probability that equal distributions flunk.
    """

    kind: Kind
    auc: float
    error: float
    expected_error: float
    accuracy: float
    accuracy_error: float
    jensen_shannon: float
    jensen_shannon_error: float
    epochs: int
    best_epoch: int
    features: int
    training_events: int
    real_scores: Tensor
    generated_scores: Tensor
    real_weights: Tensor
    generated_weights: Tensor
    out_of_time: bool
    level: float

    @property
    def p_value(self) -> float:
        """That the AUC for events of one distribution is at least as large."""
        return 0.5 * math.erfc((self.auc - 0.5) / self.expected_error / math.sqrt(2))

    @property
    def passed(self) -> bool:
        """Whether the classifier tells generated events from real ones no better than by chance."""
        return self.p_value > self.level

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        who = "a network" if self.kind == "network" else "boosted trees"
        did = "cannot tell generated events from real ones" if self.passed else "tells generated events from real ones"
        text = (
            f"{who} {did}: AUC {self.auc:.3f} ± {self.error:.2g}, where 0.5 is chance (p-value {self.p_value:.2g}, "
            f"{self.training_events} training events)"
        )
        return text + ("; training ran out of time" if self.out_of_time else "")


def classifier_auc(
    real: Any,
    generated: Any,
    *,
    contexts: Any = None,
    generated_contexts: Any = None,
    weights: Any = None,
    generated_weights: Any = None,
    kind: Kind = "network",
    scaling: Scaling = "standard",
    hidden_features: int | None = None,
    hidden_layers: int = 2,
    dropout: float = 0.0,
    epochs: int = 50,
    max_seconds: float | None = None,
    level: float = 0.01,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> ClassifierTest:
    """Train a classifier between real and generated events, and say how well it does on events it has not seen.

    Args:
        real: ``(n, *event)``, pixels or high-level features.
        generated: ``(m, *event)``; best as many as real ones.
        contexts: of the real events, ``(n, *context)``, which the classifier sees beside the event, such as the true
            energy; None shows none.
        generated_contexts: ``(m, *context)``; where not given, generated events have the contexts of the real ones, row
            by row, and two events with one context are both in the same of the three parts.
        weights: of the real events ``(n,)``, ones where None; for a network negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        kind: ``"network"``, or ``"trees"`` for gradient-boosted ones, on the CPU.
        scaling: ``"standard"`` for mean zero and deviation one, ``"logarithm"`` to do so with the logarithms of all
            columns without negative numbers, such as energies.
        hidden_features: width of the hidden layers; by default 2048 on a GPU and 512 on a CPU.
        hidden_layers: their number.
        dropout: share of the outputs of hidden layers that is dropped in training.
        epochs: passes over the training events, or rounds of ten trees.
        max_seconds: after which training ends with the best epoch so far.
        level: the probability that equal distributions flunk.
        seed: of the parts, of the network's start and of the batches.
        device: where the network is trained.
        progress: whether a bar is shown.

    Raises:
        ShapeError: the shapes do not fit, or there are fewer than 50 events of either kind.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights are those of fewer than 10 events in one of the three parts, of either kind.
        UsageError: an argument is out of range.
    """
    known_keys([kind], ["network", "trees"], "kind")
    known_keys([scaling], ["standard", "logarithm"], "scaling")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds: expected a number above zero, got {max_seconds!r}")
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout: expected a share in [0, 1), got {dropout!r}")
    check_seed(seed)
    checked_level(level)
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    where = resolve_device(device)
    width = _WIDTH[where.type] if hidden_features is None else positive_integer(hidden_features, "hidden_features")
    shape = NetworkShape(width, positive_integer(hidden_layers, "hidden_layers"), dropout)
    budget = Budget(positive_integer(epochs, "epochs"), deadline, progress)
    sets = _checked_sets((real, generated), (contexts, generated_contexts), (weights, generated_weights))
    if kind == "trees" and any(bool((one.weights < 0).any()) for one in sets):
        raise UsageError("weights: trees take no negative ones; use a network")
    parts = _parts(sets, contexts is not None and generated_contexts is None, scaling == "logarithm", seed)
    if kind == "network":
        fitted = fit_network(parts.train, parts.validation, shape, budget, seed, where)
    else:
        fitted = fit_trees(parts.train, parts.validation, budget, seed)
    return _judged(kind, fitted, parts, level)


class _Set(NamedTuple):
    """Events beside their contexts ``(n, F)``, and their weights ``(n,)``."""

    rows: Tensor
    weights: Tensor


class _Parts(NamedTuple):
    train: Labelled
    validation: Labelled
    test: Labelled


def _checked_sets(events: tuple[Any, Any], contexts: tuple[Any, Any], weights: tuple[Any, Any]) -> list[_Set]:
    """Real and generated events."""
    first, second = (rows.cpu() for rows in checked_events(*events, minimum=_FEWEST))
    given, others = contexts
    if given is None and others is not None:
        raise UsageError("generated_contexts: expected contexts of the real events too, got None")
    if given is not None:
        first = torch.cat([first, _context(given, len(first), "contexts")], 1)
        name = "contexts" if others is None else "generated_contexts"
        second = torch.cat([second, _context(given if others is None else others, len(second), name)], 1)
    if first.shape[1] != second.shape[1]:
        raise ShapeError("expected real and generated contexts of equal shape")
    return [
        _Set(rows, checked_weights(some, len(rows), name))
        for rows, some, name in zip((first, second), weights, ("weights", "generated_weights"), strict=True)
    ]


def _parts(sets: list[_Set], paired: bool, logarithm: bool, seed: int) -> _Parts:
    """Events in three parts, scaled as the training part."""
    # Events of one context in different parts would teach the classifier the wrong answer about the other.
    orders = [_order(len(one.rows), derive(seed, "order", 0 if paired else i)) for i, one in enumerate(sets)]
    split = [_split(one, order) for one, order in zip(sets, orders, strict=True)]
    for part in (one for kind in split for one in kind):
        if not (float(part.weights.sum()) > 0 and effective_number(part.weights) >= _FEWEST_EFFECTIVE):
            raise SupportError(
                f"weights: {len(part.rows)} events are worth fewer than {_FEWEST_EFFECTIVE}, too few for a classifier"
            )
    scale = InputScale(torch.cat([split[0][0].rows, split[1][0].rows]), logarithm=logarithm)
    return _Parts(*(_labelled(scale, one, other) for one, other in zip(*split, strict=True)))


def _context(contexts: Any, n: int, name: str) -> Tensor:
    tensor = finite(as_tensor(contexts, name, dtype=torch.float64).cpu(), name)
    if not tensor.ndim or len(tensor) != n:
        raise ShapeError(f"{name}: expected one for each of {n} events, got {tuple(tensor.shape)}")
    return tensor.reshape(n, -1)


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _split(events: _Set, order: Tensor) -> list[_Set]:
    train, validation = int(0.6 * len(order)), int(0.2 * len(order))
    places = order.tensor_split((train, train + validation))
    return [_Set(events.rows[some], events.weights[some]) for some in places]


def _labelled(scale: InputScale, real: _Set, generated: _Set) -> Labelled:
    labels = torch.cat([torch.ones(len(real.rows)), torch.zeros(len(generated.rows))])
    weights = torch.cat([real.weights, generated.weights]).float()
    return Labelled(torch.cat([scale(real.rows), scale(generated.rows)]), labels, weights)


def _judged(kind: Kind, fitted: Fitted, parts: _Parts, level: float) -> ClassifierTest:
    score, is_real = fitted.score(parts.test.rows), parts.test.labels > 0.5
    real, generated = (Scored(score[some], parts.test.weights[some].double()) for some in (is_real, ~is_real))
    auc, error, expected_error = area_under_curve(real, generated)
    right = [one.mean_of((one.score > 0) == wanted) for one, wanted in ((real, True), (generated, False))]
    accuracy_error = 0.5 * math.hypot(*(_binomial(p, one) for p, one in zip(right, (real, generated), strict=True)))
    divergence, divergence_error = _divergence(real, generated, fitted.score(parts.validation.rows), parts.validation)
    return ClassifierTest(
        kind=kind,
        auc=auc,
        error=error,
        expected_error=expected_error,
        accuracy=0.5 * sum(right),
        accuracy_error=accuracy_error,
        jensen_shannon=divergence,
        jensen_shannon_error=divergence_error,
        epochs=fitted.epochs,
        best_epoch=fitted.best_epoch,
        features=parts.test.rows.shape[1],
        training_events=len(parts.train.rows),
        real_scores=real.score,
        generated_scores=generated.score,
        real_weights=real.weights,
        generated_weights=generated.weights,
        out_of_time=fitted.out_of_time,
        level=level,
    )


def _binomial(share: float, events: Scored) -> float:
    n = effective_number(events.weights)
    smoothed = (min(max(share, 0.0), 1.0) * n + 1) / (n + 2)
    return math.sqrt(smoothed * (1 - smoothed) / n)


def _divergence(real: Scored, generated: Scored, validation: Tensor, labelled: Labelled) -> tuple[float, float]:
    """Lower bound of the Jensen-Shannon divergence in bits, from calibrated scores, and its error."""
    from sklearn.linear_model import LogisticRegression

    usual = float(validation.std()) or 1.0
    # The bound holds for any slope and offset: those of the positive weights are good enough.
    weights = labelled.weights.cpu().clamp(min=0.0).double().numpy()
    calibration = LogisticRegression(class_weight="balanced").fit(
        (validation / usual).unsqueeze(1).numpy(), labelled.labels.cpu().numpy(), sample_weight=weights
    )
    slope, offset = float(calibration.coef_[0, 0]) / usual, float(calibration.intercept_[0])
    value: float = 0.0
    errors: list[float] = []
    for one, sign in ((real, 1), (generated, -1)):
        terms = 1 + torch.nn.functional.logsigmoid(sign * (slope * one.score + offset)) / math.log(2)
        mean = one.mean_of(terms)
        value += 0.5 * mean
        errors.append(one.error_of(terms, mean))
    return value, 0.5 * math.hypot(*errors)
