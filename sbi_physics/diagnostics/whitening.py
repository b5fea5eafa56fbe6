"""Whitened coordinates: many small sets of draws, each in units of its own mean and covariance."""

from typing import Any

import numpy as np

__all__ = ["whiten", "whitening"]

Array = np.ndarray[Any, Any]


def whitening(members: Array) -> tuple[Array, Array]:
    """Cholesky factors ``(n, P, P)`` of the covariances of n sets ``(n, L, P)``, and their means ``(n, 1, P)``.

    With few members the correlations are drawn towards zero, which keeps the covariance invertible; a parameter that
    does not vary gets the deviation one.
    """
    mean = members.mean(1, keepdims=True)
    centred = members - mean
    deviation = centred.std(1)
    deviation = np.where(deviation > 0, deviation, 1.0)
    scaled = centred / deviation[:, None]
    count, dims = members.shape[1:]
    correlation = np.einsum("nlp,nlq->npq", scaled, scaled) / count / (1 + (dims / count) ** 2)
    correlation[:, np.arange(dims), np.arange(dims)] = 1.0
    return np.linalg.cholesky(correlation) * deviation[:, :, None], mean


def whiten(values: Array, factor: Array, mean: Array) -> Array:
    """Values ``(n, m, P)`` of n sets in the whitened coordinates of their set; n may be one for all."""
    centred = np.broadcast_to(values - mean, (len(mean), *values.shape[1:]))
    return np.linalg.solve(factor, centred.transpose(0, 2, 1)).transpose(0, 2, 1)
