r"""Streams, satellites and clusters in phase space: local Gaussians on top of a smooth background.

A flow that describes a whole galaxy smears out what holds a hundredth of its stars in a millionth of its phase space.
Given the density b of the smooth background, substructure is where the particles are far denser, and is described by
Gaussians with full covariances that follow it piece by piece,

$$ q(w) = \pi_0\, b(w) + \sum_{k=1}^{K} \pi_k\, \mathcal{N}(w; m_k, C_k). $$

**Start.**  The density at each particle is estimated from its k nearest others, in the one of five metrics (ratios of
a length to a velocity) in which it comes out largest.  From the densest contrast to the background downward, particles
whose contrast is large enough found a Gaussian of their neighbours, which found none themselves.

**Fit.**  Expectation maximisation with the message-length penalty of Figueiredo & Jain 2002 (doi:10.1109/34.990138),

$$ \pi_k \propto \max\Big(0, \sum_j r_{jk} - \tfrac{V}{2}\Big), $$

where r are the memberships and V counts the numbers that a Gaussian has: one that fewer than V / 2 particles need
vanishes, so chance clumps of the background do not last.  Covariances are drawn towards a sphere in position and one
in velocity, as by an inverse Wishart prior worth a few particles.
"""

import math
from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["Substructure", "find_substructure"]

_DIMS = 6
_METRICS = (0.25, 0.5, 1.0, 2.0, 4.0)
_LOG_UNIT_BALL = math.log(math.pi**3 / 6)
_CONTRAST = 2.0
_MOST_SEEDS = 500
_PRIOR_PARTICLES = 4.0
_PENALTY = 13.5
_FIRST_SHARE = 0.5
_MOST_AT_FIRST = 0.2
_ITERATIONS = 400
_LEAST_HELD = 1e-3
_TOLERANCE = 1e-6
_VANISHING = 8
_NARROWEST = 0.2
_ROWS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Substructure:
    """Gaussians in phase space.

    Attributes:
        means: m ``(K, 6)``.
        factors: Cholesky factors of the covariances, lower triangular ``(K, 6, 6)``.
        memberships: of each particle, the probability that it is of the background (first) and of each Gaussian,
            ``(n, K + 1)``.
    """

    means: Tensor
    factors: Tensor
    memberships: Tensor

    def __len__(self) -> int:
        return len(self.means)

    def log_densities(self, phase_space: Tensor) -> Tensor:
        """Log-density of each Gaussian at ``(n, 6)``: ``(n, K)``."""
        log_norms = -self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * _DIMS * math.log(2 * math.pi)
        inverse = torch.linalg.inv(self.factors)
        parts = []
        for rows in phase_space.split(_ROWS_AT_ONCE // max(1, len(self) // 8)):
            white = torch.einsum("kij,nkj->nki", inverse, rows.unsqueeze(1) - self.means)
            parts.append(log_norms - 0.5 * white.square().sum(-1))
        return torch.cat(parts)

    def draw(self, index: Tensor) -> Tensor:
        """Draw one star of each of the Gaussians ``(m,)`` on the current random stream: ``(m, 6)``."""
        noise = torch.randn(len(index), _DIMS, dtype=self.means.dtype)
        return self.means[index] + torch.einsum("nij,nj->ni", self.factors[index], noise)


def find_substructure(
    phase_space: Tensor, log_background: Tensor, units: Tensor, *, neighbours: int = 16
) -> Substructure:
    """Find what is denser than the background.

    Args:
        phase_space: positions and velocities of the particles, float64 ``(n, 6)``.
        log_background: log-density of the background at each, normalised over phase space, ``(n,)``.
        units: a length and a velocity that go together, as the typical smoothing lengths, ``(2,)``.
        neighbours: k.

    Returns:
        The Gaussians, in the unit of the particles; there may be none.
    """
    scale = units.double().repeat_interleave(3)
    events, log_b = phase_space / scale, log_background + float(scale.log().sum())
    k = min(neighbours, len(events) - 1)
    log_density, near = _densities(events, k)
    found = _seeds(log_density - log_b, near)
    if not len(found):
        nothing = events.new_zeros(0, _DIMS)
        return Substructure(nothing, nothing.new_zeros(0, _DIMS, _DIMS), torch.ones_like(log_b).unsqueeze(-1))
    groups = torch.cat([found.unsqueeze(-1), near[found]], 1)
    # Where there is no contrast at all the background has everything, which most particles are spared to work out.
    dense = log_density > log_b
    dense[groups.flatten()] = True
    fitted = _Fit(events[dense], log_b[dense], events[groups], others=int((~dense).sum()))
    fitted.run()
    memberships = events.new_zeros(len(events), len(fitted.means) + 1)
    memberships[:, 0] = 1.0
    memberships[dense] = fitted.memberships
    factors = torch.linalg.cholesky(fitted.covariances) * scale.unsqueeze(-1)
    return Substructure(fitted.means * scale, factors, memberships)


def _densities(events: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-density of events ``(n, 6)`` from their k nearest others, and who these are ``(n, k)``."""
    n = len(events)
    best = torch.full((n,), -torch.inf, dtype=events.dtype)
    near = torch.zeros(n, k, dtype=torch.int64)
    for ratio in _METRICS:
        stretched = events.clone()
        stretched[:, 3:] /= ratio
        distances, others = cKDTree(stretched.numpy()).query(stretched.numpy(), k=k + 1)
        reach = torch.from_numpy(distances[:, -1]).clamp(min=1e-300)
        found = math.log(k / n) - _LOG_UNIT_BALL - _DIMS * reach.log() - 3 * math.log(ratio)
        better = found > best
        best[better], near[better] = found[better], torch.from_numpy(others[:, 1:])[better]
    return best, near


def _seeds(contrast: Tensor, near: Tensor) -> Tensor:
    """The particles of high contrast, the highest first, none of which is a neighbour of one before it, ``(K,)``."""
    taken = torch.zeros(len(contrast), dtype=torch.bool)
    seeds: list[int] = []
    for i in contrast.argsort(descending=True).tolist():
        if float(contrast[i]) < _CONTRAST or len(seeds) == _MOST_SEEDS:
            break
        if not taken[i]:
            seeds.append(i)
            taken[near[i]] = True
    return torch.tensor(seeds, dtype=torch.int64)


class _Fit:
    """Expectation maximisation of Gaussians on a background that stays as it is.

    Args:
        events: ``(n, 6)``.
        log_background: ``(n,)``.
        groups: the particles that found the Gaussians, ``(K, k + 1, 6)``.
        others: the number of further particles, all of the background.
    """

    def __init__(self, events: Tensor, log_background: Tensor, groups: Tensor, others: int) -> None:
        self._log_background, self._others, self._sparse = log_background, others, False
        self._moments = _second_order(events)
        self.means = groups.mean(1)
        offsets = groups - self.means.unsqueeze(1)
        raw = torch.einsum("kni,knj->kij", offsets, offsets) / groups.shape[1]
        spreads = _axis_variances(raw)
        self._narrowest = torch.quantile(spreads[..., 0], _NARROWEST, dim=0)
        self.covariances = self._shrunk(raw, torch.full((len(groups),), float(groups.shape[1])).to(raw))
        first = _FIRST_SHARE * groups.shape[1] / (len(events) + others)
        self._shares = torch.full((len(groups),), min(first, _MOST_AT_FIRST / len(groups))).to(raw)
        self.memberships, self._value = self._expect()

    def run(self) -> None:
        """Iterate until nothing is gained and no Gaussian vanishes."""
        for _ in range(_ITERATIONS):
            before, kinds, sparse = self._value, len(self.means), self._sparse
            self._drop()
            self._maximise()
            self.memberships, self._value = self._expect()
            settled = sparse and len(self.means) == kinds and abs(self._value - before) < _TOLERANCE
            if settled or not len(self.means):
                return

    def _expect(self) -> tuple[Tensor, float]:
        """Memberships ``(n, K + 1)``, and the mean log-density."""
        log_shares = torch.log(torch.cat([1 - self._shares.sum(0, keepdim=True), self._shares]))
        log_joint = torch.cat([self._log_background.unsqueeze(-1), self._log_densities()], 1) + log_shares
        log_density = log_joint.logsumexp(-1)
        total = log_density.sum() + self._others * log_shares[0]
        return torch.exp(log_joint - log_density.unsqueeze(-1)), float(total) / (len(log_joint) + self._others)

    def _drop(self) -> None:
        """Let the weakest of the Gaussians vanish that hold too little, some at a time: the others take over."""
        held = self.memberships[:, 1:].sum(0)
        weak = torch.nonzero(held <= _PENALTY)[:, 0]
        if not len(weak):
            self._sparse = True
            return
        gone = weak[held[weak].argsort()[: 1 if self._sparse else max(1, len(weak) // _VANISHING)]]
        kept = torch.ones(len(held), dtype=torch.bool)
        kept[gone] = False
        self.means, self.covariances, self._shares = self.means[kept], self.covariances[kept], self._shares[kept]
        self.memberships, self._value = self._expect()

    def _maximise(self) -> None:
        held = self.memberships[:, 1:].sum(0)
        # Where Gaussians share the same particles, all together would vanish: the penalty counts once they are few.
        penalised = held - _PENALTY if self._sparse else held
        penalised = penalised.clamp(min=_LEAST_HELD)
        self._shares = penalised / (penalised.sum() + self.memberships[:, 0].sum() + self._others)
        sums = self.memberships[:, 1:].T @ self._moments
        held = held.clamp(min=_LEAST_HELD)
        self.means = sums[:, 1 : 1 + _DIMS] / held.unsqueeze(-1)
        rows, columns = torch.tril_indices(_DIMS, _DIMS)
        square = sums.new_zeros(len(sums), _DIMS, _DIMS)
        square[:, rows, columns] = square[:, columns, rows] = sums[:, 1 + _DIMS :] / held.unsqueeze(-1)
        raw = square - torch.einsum("ki,kj->kij", self.means, self.means)
        self.covariances = self._shrunk(raw, held)

    def _shrunk(self, covariances: Tensor, held: Tensor) -> Tensor:
        """Covariances ``(K, 6, 6)`` drawn towards spheres as wide as their narrowest axes."""
        variances = torch.maximum(_axis_variances(covariances)[..., 0], self._narrowest)
        sphere = torch.diag_embed(variances.repeat_interleave(3, -1))
        weight = (_PRIOR_PARTICLES / (held + _PRIOR_PARTICLES))[:, None, None]
        return (1 - weight) * covariances + weight * sphere

    def _log_densities(self) -> Tensor:
        """Of each Gaussian at each event ``(n, K)``, as products with the events' moments."""
        factors = torch.linalg.cholesky(self.covariances)
        precisions = torch.cholesky_inverse(factors)
        pulls = torch.einsum("kij,kj->ki", precisions, self.means)
        log_norms = -factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * _DIMS * math.log(2 * math.pi)
        constants = log_norms - 0.5 * (pulls * self.means).sum(-1)
        rows, columns = torch.tril_indices(_DIMS, _DIMS)
        squares = torch.where(rows == columns, 0.5, 1.0) * precisions[:, rows, columns]
        return self._moments @ torch.cat([constants.unsqueeze(-1), pulls, -squares], 1).T


def _second_order(events: Tensor) -> Tensor:
    """One, the events and their products ``(n, 28)``."""
    rows, columns = torch.tril_indices(_DIMS, _DIMS)
    return torch.cat([torch.ones_like(events[:, :1]), events, events[:, rows] * events[:, columns]], 1)


def _axis_variances(covariances: Tensor) -> Tensor:
    """Variances along the axes of the position and of the velocity, ascending: ``(K, 2, 3)``."""
    blocks = torch.stack([covariances[:, :3, :3], covariances[:, 3:, 3:]], 1)
    return torch.linalg.eigvalsh(blocks)
