r"""Classifiers for the local two-sample test: what they see of theta and x, and how they are trained again and again.

Theta is seen in whitened coordinates, in units of mean and covariance of further posterior draws at the same x: that is
invertible for each x, and shows at once what differs.  Of x up to ten numbers are seen.  More of them are summarised by
the means and the logarithms of the deviations of the draws, and by a linear prediction of theta, which shows a
posterior that ignores what x tells.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.random import numpy_generator
from sbi_physics.core.validity import Rows
from sbi_physics.diagnostics.draws import PosteriorDraws
from sbi_physics.diagnostics.features import Features, feature_rows
from sbi_physics.diagnostics.whitening import whiten, whitening

__all__ = ["CLASSIFIERS", "Answer", "Task", "exchange_task"]

Array = np.ndarray[Any, Any]

_MOST_FEATURES = 10
_FOURIER_FEATURES = 400
_RIDGE = 0.1


class Task(NamedTuple):
    """What a classifier is trained on and asked, rows of whitened theta beside the context.

    Attributes:
        truths: ``(N, F)``.
        drawn: ``(N, F)`` posterior draws at the same x.
        asked: ``(B, n, F)`` posterior draws at the observations.
        samples: ``(B, n, P)``, the same in their own units.
    """

    truths: Array
    drawn: Array
    asked: Array
    samples: Array


Answer = Callable[[Array], Array]
"""Trains with truth and draw exchanged where the sign ``(N,)`` is -1: probabilities of a truth, ``(B, n)``."""


def exchange_task(made: PosteriorDraws, x: Rows, there: Tensor, observed: Rows, features: Features | None) -> Task:
    """What a classifier is trained on and asked.

    Args:
        made: posterior draws for the pairs; the first is compared with the truth, the others set the units.
        x: of the pairs, ``(N, *x_shape)``.
        there: posterior draws at the observations, ``(B, n, P)``.
        observed: ``(B, *x_shape)``.
        features: a function from x to numbers, or None.
    """
    truths, drawn = _whitened_pairs(made.theta, made.samples)
    context, asked = _contexts(x, observed, made, there, features)
    return Task(
        np.concatenate([truths, context], 1),
        np.concatenate([drawn, context], 1),
        _at_observations(there, asked),
        there.double().numpy(),
    )


def _whitened_pairs(theta: Tensor, samples: Tensor) -> tuple[Array, Array]:
    """Truths and first draws ``(N, P)`` in units of the other draws, which treats the two alike."""
    factor, mean = whitening(samples[:, 1:].double().numpy())
    both = torch.stack([theta.double().cpu(), samples[:, 0].double()], 1).numpy()
    white = whiten(both, factor, mean)
    return white[:, 0], white[:, 1]


def _at_observations(samples: Tensor, context: Array) -> Array:
    values = samples.double().numpy()
    white = whiten(values, *whitening(values))
    return np.concatenate([white, np.broadcast_to(context[:, None], (*white.shape[:2], context.shape[1]))], 2)


def _contexts(
    x: Rows, observed: Rows, made: PosteriorDraws, there: Tensor, features: Features | None
) -> tuple[Array, Array]:
    """What is seen of the x of the pairs ``(N, F)`` and of the observations ``(B, F)``, standardised."""
    rows, asked = feature_rows(x, features).numpy(), feature_rows(observed, features).numpy()
    scale = _Scale(rows)
    rows, asked = scale(rows), scale(asked)
    if features is not None or rows.shape[1] <= _MOST_FEATURES:
        return rows, asked
    # The middle of truth and draw, so that the prediction does not know which is which.
    middle = 0.5 * (made.theta.double().cpu() + made.samples[:, 0].double()).numpy()
    predicted = _linear_prediction(rows, middle, asked)
    rows, asked = (
        np.concatenate([values.mean(1), np.log(values.std(1) + 1e-300), linear], 1)
        for values, linear in zip(
            (made.samples[:, 1:].double().numpy(), there.double().numpy()), predicted, strict=True
        )
    )
    scale = _Scale(rows)
    return scale(rows), scale(asked)


def _linear_prediction(rows: Array, target: Array, asked: Array) -> tuple[Array, Array]:
    from sklearn.linear_model import RidgeCV

    deviation = target.std(0)
    fitted = RidgeCV(alphas=len(rows) * np.logspace(-4, 2, 13)).fit(
        rows, target / np.where(deviation > 0, deviation, 1.0)
    )
    first, second = (fitted.predict(part).reshape(len(part), -1) for part in (rows, asked))
    return first, second


class _Scale:
    """Standardises contexts as those of the pairs; what is missing becomes the mean."""

    def __init__(self, rows: Array) -> None:
        there = ~np.isnan(rows)
        count = np.maximum(there.sum(0), 1)
        filled = np.where(there, rows, 0.0)
        self.mean = filled.sum(0) / count
        deviation = np.sqrt((np.square(filled - self.mean) * there).sum(0) / count)
        self.deviation = np.where(deviation > 0, deviation, 1.0)

    def __call__(self, rows: Array) -> Array:
        return np.nan_to_num((rows - self.mean) / self.deviation, nan=0.0)


def _kernel(task: Task, seed: int) -> Answer:
    """Ridge regression of the label, plus and minus 1/2, on random Fourier features."""
    random = numpy_generator(seed)
    dims = task.truths.shape[1]
    frequency = random.standard_normal((dims, _FOURIER_FEATURES)) / math.sqrt(dims)
    phase = random.uniform(0, 2 * math.pi, _FOURIER_FEATURES)
    truths, drawn, asked = (np.cos(rows @ frequency + phase) for rows in task[:3])
    centre = 0.5 * (truths.mean(0) + drawn.mean(0))
    truths, drawn, asked = truths - centre, drawn - centre, asked - centre
    gram = truths.T @ truths + drawn.T @ drawn
    ridge = _RIDGE * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), 0.5 * (truths - drawn).T)
    return lambda signs: np.clip(0.5 + asked @ (solved @ signs), 0.01, 0.99)


def _boosting(task: Task, seed: int) -> Answer:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = np.concatenate([task.truths, task.drawn])
    asked = task.asked.reshape(-1, task.asked.shape[-1])

    def answer(signs: Array) -> Array:
        labels = np.concatenate([signs > 0, signs < 0]).astype(int)
        trees = HistGradientBoostingClassifier(
            max_iter=30, max_leaf_nodes=8, max_bins=32, early_stopping=False, random_state=seed % 2**32
        )
        probability = trees.fit(rows, labels).predict_proba(asked)[:, 1]
        return np.clip(probability, 0.01, 0.99).reshape(task.asked.shape[:2])

    return answer


CLASSIFIERS: dict[str, Callable[[Task, int], Answer]] = {"kernel": _kernel, "boosting": _boosting}
