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
from collections.abc import Iterator
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
_PAIRS_AT_ONCE = 1 << 22


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
        for rows in phase_space.split(max(1, _PAIRS_AT_ONCE // (8 * (1 + len(self))))):
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
    fitted = _Fit(events, log_b, events[torch.cat([found.unsqueeze(-1), near[found]], 1)])
    fitted.run()
    factors = torch.linalg.cholesky(fitted.covariances) * scale.unsqueeze(-1)
    return Substructure(fitted.means * scale, factors, fitted.memberships())


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
    """

    def __init__(self, events: Tensor, log_background: Tensor, groups: Tensor) -> None:
        self._log_background, self._moments = log_background, _second_order(events)
        kinds, size, _ = groups.shape
        self.means = groups.mean(1)
        offsets = groups - self.means.unsqueeze(1)
        raw = torch.einsum("kni,knj->kij", offsets, offsets) / size
        self._narrowest = torch.quantile(_axis_variances(raw)[..., 0], _NARROWEST, dim=0)
        self.covariances = self._shrunk(raw, torch.full((kinds,), float(size)).to(raw))
        first = min(_FIRST_SHARE * size / len(events), _MOST_AT_FIRST / kinds)
        self._shares = torch.full((kinds,), first).to(raw)

    def run(self) -> None:
        """Iterate until nothing is gained and no Gaussian vanishes."""
        before, sparse = -math.inf, False
        for _ in range(_ITERATIONS):
            sums, value = self._expect()
            weak = torch.nonzero(sums[:, 0] <= _PENALTY)[:, 0]
            if not len(weak) and sparse and abs(value - before) < _TOLERANCE:
                return
            before = value
            kept = torch.ones(len(sums), dtype=torch.bool)
            if len(weak):
                # The others take over, if not all vanish at once.
                kept[weak[sums[weak, 0].argsort()[: 1 if sparse else max(1, len(weak) // _VANISHING)]]] = False
            # Gaussians that share the same particles would all vanish of the penalty: it counts once they are few.
            sparse = sparse or not len(weak)
            self._maximise(sums[kept], _PENALTY if sparse else 0.0)
            if not len(self.means):
                return

    def memberships(self) -> Tensor:
        """The probability of each particle to be of the background and of each Gaussian, ``(n, K + 1)``."""
        return torch.cat([torch.softmax(log_joint, 1) for _, log_joint in self._log_joint()])

    def _expect(self) -> tuple[Tensor, float]:
        """Sums of the moments of the particles of each Gaussian ``(K, 28)``, and the mean log-density."""
        sums, total = self._moments.new_zeros(len(self.means), self._moments.shape[1]), 0.0
        for moments, log_joint in self._log_joint():
            log_density = log_joint.logsumexp(1, keepdim=True)
            sums += torch.exp(log_joint[:, 1:] - log_density).T @ moments
            total += float(log_density.sum())
        return sums, total / len(self._moments)

    def _maximise(self, sums: Tensor, penalty: float) -> None:
        held = sums[:, 0].clamp(min=_LEAST_HELD)
        penalised = (held - penalty).clamp(min=_LEAST_HELD)
        self._shares = penalised / (penalised.sum() + len(self._moments) - held.sum())
        self.means = sums[:, 1 : 1 + _DIMS] / held.unsqueeze(-1)
        rows, columns = torch.tril_indices(_DIMS, _DIMS)
        square = sums.new_zeros(len(sums), _DIMS, _DIMS)
        square[:, rows, columns] = square[:, columns, rows] = sums[:, 1 + _DIMS :] / held.unsqueeze(-1)
        self.covariances = self._shrunk(square - torch.einsum("ki,kj->kij", self.means, self.means), held)

    def _shrunk(self, covariances: Tensor, held: Tensor) -> Tensor:
        """Covariances ``(K, 6, 6)`` drawn towards spheres as wide as their narrowest axes."""
        variances = torch.maximum(_axis_variances(covariances)[..., 0], self._narrowest)
        sphere = torch.diag_embed(variances.repeat_interleave(3, -1))
        weight = (_PRIOR_PARTICLES / (held + _PRIOR_PARTICLES))[:, None, None]
        return (1 - weight) * covariances + weight * sphere

    def _log_joint(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Block by block, moments ``(m, 28)`` and the log-density of each with the background and each Gaussian."""
        factors = torch.linalg.cholesky(self.covariances)
        precisions = torch.cholesky_inverse(factors)
        pulls = torch.einsum("kij,kj->ki", precisions, self.means)
        log_norms = -factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * _DIMS * math.log(2 * math.pi)
        constants = log_norms - 0.5 * (pulls * self.means).sum(-1) + torch.log(self._shares)
        rows, columns = torch.tril_indices(_DIMS, _DIMS)
        squares = torch.where(rows == columns, 0.5, 1.0) * precisions[:, rows, columns]
        forms = torch.cat([constants.unsqueeze(-1), pulls, -squares], 1).T
        log_rest = torch.log(1 - self._shares.sum())
        block = max(1, _PAIRS_AT_ONCE // (1 + len(self.means)))
        for moments, log_b in zip(self._moments.split(block), self._log_background.split(block), strict=True):
            yield moments, torch.cat([(log_b + log_rest).unsqueeze(-1), moments @ forms], 1)


def _second_order(events: Tensor) -> Tensor:
    """One, the events and their products ``(n, 28)``."""
    rows, columns = torch.tril_indices(_DIMS, _DIMS)
    return torch.cat([torch.ones_like(events[:, :1]), events, events[:, rows] * events[:, columns]], 1)


def _axis_variances(covariances: Tensor) -> Tensor:
    """Variances along the axes of the position and of the velocity, ascending: ``(K, 2, 3)``."""
    blocks = torch.stack([covariances[:, :3, :3], covariances[:, 3:, 3:]], 1)
    return torch.linalg.eigvalsh(blocks)
