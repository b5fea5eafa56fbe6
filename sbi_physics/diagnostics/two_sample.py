"""The classifier two-sample test: how well can a classifier tell two sets of draws apart?

A classifier is trained to separate the two sets; its cross-validated accuracy is 1/2 where they come from one
distribution, and 1 where they do not overlap.  For densities p and q and the best possible classifier,

    C2ST = 1/2 + TV(p, q) / 2,    TV the total variation distance.

The recipe is that of sbibm (Lueckmann et al. 2021, arXiv:2101.04653, after Lopez-Paz & Oquab 2017, arXiv:1610.06545):
a network with two hidden layers of 10 x dim ReLU units trained with Adam, inputs standardised by the mean and standard
deviation of the reference, 5-fold cross-validation, so that its numbers can be compared with published ones.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.samples import Samples

__all__ = ["c2st"]


def c2st(reference: Any, samples: Any, *, seed: int = 1, folds: int = 5, workers: int = 1) -> float:
    """Cross-validated accuracy of a classifier between two equally large sets of draws: 0.5 is perfect agreement.

    Draws that are resampled with replacement hold copies, which the classifier recognises in the held-out fold; use
    distinct draws (``samples.resample(n, replace=False)``).

    Args:
        reference: ``(n, D)`` draws, tensor, array or `Samples`; they define the standardisation.
        samples: ``(n, D)`` draws.
        seed: of the network's start and of the folds, in [0, 2**32).
        folds: number of folds.
        workers: processes that train the folds; the result does not depend on it.

    Returns:
        Accuracy in [0, 1]; its statistical error for equal distributions is about ``0.5 / sqrt(2 n)``.

    Raises:
        ShapeError: the sets are not ``(n, D)`` of one size.
        NonFiniteError: a draw holds NaN or infinity.
        UsageError: `Samples` carry weights, or an argument is out of range.
    """
    first, second = _draws(reference, "reference"), _draws(samples, "samples")
    if first.shape != second.shape:
        raise ShapeError(
            f"c2st: expected equally many draws of equal dimension, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; use the first rows of the larger set"
        )
    if positive_integer(folds, "folds") < 2 or len(first) < folds:
        raise UsageError(f"folds: expected from 2 to {len(first)}, the number of draws, got {folds}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UsageError(f"seed: expected an integer in [0, 2**32), got {seed!r}")
    mean, deviation = first.mean(0), first.std(0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    rows = torch.cat([(first - mean) / deviation, (second - mean) / deviation]).numpy()
    labels = np.repeat([0.0, 1.0], len(first))
    return _accuracy(rows, labels, int(seed), folds, positive_integer(workers, "workers"))


def _accuracy(rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], seed: int, folds: int, workers: int) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    width = 10 * rows.shape[1]
    classifier = MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=10_000, solver="adam", random_state=seed
    )
    split = KFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(classifier, rows, labels, cv=split, scoring="accuracy", n_jobs=workers)
    return float(np.mean(scores))


def _draws(value: Any, name: str) -> Tensor:
    if isinstance(value, Samples):
        if value.log_weights is not None:
            raise UsageError(f"{name}: expected equally weighted draws; use .resample(n, replace=False) first")
        value = value.values
    tensor = as_tensor(value, name, dtype=None).cpu()
    if tensor.ndim != 2 or tensor.shape[0] < 2 or tensor.shape[1] < 1:
        raise ShapeError(f"{name}: expected shape (n, D) with at least two rows, got {tuple(tensor.shape)}")
    return finite(tensor, name)
