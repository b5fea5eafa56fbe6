"""The likelihood of an array written down directly: dense covariances in long double, timing models by projection.

Nothing here is shared with the fast likelihood but the pulsars, the Fourier basis and the power law.
"""

from itertools import pairwise

import numpy as np
import torch

from simulators.hellings_downs import hellings_downs_matrix
from simulators.red_noise import fourier_basis, power_law_variance


def cholesky(a):
    a = a.copy()
    for j in range(len(a)):
        a[j, j] = np.sqrt(a[j, j])
        a[j + 1 :, j] /= a[j, j]
        a[j + 1 :, j + 1 :] -= np.outer(a[j + 1 :, j], a[j + 1 :, j])
    return np.tril(a)


def forward(lower, b):
    y = b.copy()
    for i in range(len(lower)):
        y[i] = (y[i] - lower[i, :i] @ y[:i]) / lower[i, i]
    return y


def complement(matrix):
    """An orthonormal basis of what is orthogonal to the columns of a matrix (the matrix G of van Haasteren & Levin)."""
    norm = np.linalg.norm(matrix, axis=0)
    columns = matrix[:, norm > 0] / norm[norm > 0]
    q, values, _ = np.linalg.svd(columns)
    rank = int((values > 1e-12 * values[0]).sum())
    basis = []
    for v in [*columns.T.astype(np.longdouble), *q[:, rank:].T.astype(np.longdouble)]:
        length = np.sqrt(v @ v)
        for _ in range(3):
            for u in basis:
                v = v - u * (u @ v)
        if np.sqrt(v @ v) > 1e-11 * length:
            basis.append(v / np.sqrt(v @ v))
    return np.stack(basis[rank:], 1)


def covariance(simulator, theta):
    """Covariance of all residuals before the timing model is taken out, microseconds squared, long double."""
    pulsars, modes = simulator.pulsars, simulator.red_modes
    edges = np.concatenate([[0], np.cumsum([len(p) for p in pulsars])])
    place = [slice(a, b) for a, b in pairwise(edges)]
    days, start = simulator.span * 365.25, min(float(p.toas.min()) for p in pulsars)
    basis = [fourier_basis(p.toas, modes, days, start).numpy().astype(np.longdouble) for p in pulsars]
    total = np.zeros((edges[-1], edges[-1]), dtype=np.longdouble)
    first = 2 if simulator.gwb else 0
    for a, pulsar in enumerate(pulsars):
        phi = power_law_variance(theta[first + 2 * a], theta[first + 2 * a + 1], modes, days).numpy().repeat(2)
        total[place[a], place[a]] += pulsar.white_covariance.dense().numpy() + (basis[a] * phi) @ basis[a].T
    if simulator.gwb:
        correlation = torch.eye(len(pulsars), dtype=torch.float64)
        if simulator.correlated:
            correlation = hellings_downs_matrix(torch.stack([p.position for p in pulsars]))
        phi = power_law_variance(theta[0], theta[1], simulator.gw_modes, days).numpy().repeat(2)
        low = [f[:, : len(phi)] for f in basis]
        for a in range(len(pulsars)):
            for b in range(len(pulsars)):
                total[place[a], place[b]] += float(correlation[a, b]) * (low[a] * phi) @ low[b].T
    return total, place


def dense_log_likelihood(simulator, theta, x):
    total, place = covariance(simulator, theta)
    projected, columns = [], []
    for a, pulsar in enumerate(simulator.pulsars):
        residuals = x[a, : len(pulsar)].numpy().astype(np.longdouble)
        there = ~np.isnan(residuals)
        if not there.any():
            continue
        basis = complement(pulsar.matrix.numpy()[there])
        wide = np.zeros((len(total), basis.shape[1]), dtype=np.longdouble)
        wide[np.arange(len(total))[place[a]][there]] = basis
        columns.append(wide)
        projected.append(basis.T @ residuals[there])
    g, y = np.concatenate(columns, 1), np.concatenate(projected)
    lower = cholesky(g.T @ total @ g)
    whitened = forward(lower, y)
    return float(
        -0.5 * (whitened @ whitened + len(y) * np.log(2 * np.longdouble(np.pi))) - np.log(np.diag(lower)).sum()
    )
