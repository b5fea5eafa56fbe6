r"""Is a posterior calibrated?  Simulation-based calibration and expected coverage.

Draw theta from the prior and x from the simulator, and sample the posterior for that x.  If the posterior is right, the
truth is just one more draw from it.  So, over many such pairs, each of these is uniform on [0, 1]:

* the rank of the truth among L draws of one parameter, $u = (\#\{\theta_l < \theta\} + \xi) / (L + 1)$
  (Talts et al. 2018, arXiv:1804.06788);
* the credibility at which the central interval just takes in the truth, $|2u - 1|$;
* the credibility at which the highest-density region does: the share of draws with a density above that of the truth.

xi is uniform on [0, 1] and spreads the ranks evenly, which makes uniformity exact for any L.  Coverage at level c is
the share of pairs whose credibility is at most c (Hermans et al. 2022, arXiv:2110.06581).  Uniformity is tested by
Kolmogorov and Smirnov: of u, which sees a bias, and of $|2u - 1|$, which sees widths that are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.core.samples import Samples

__all__ = [
    "Calibration",
    "Coverage",
    "coverage",
    "expected_coverage",
    "highest_density_coverage",
    "sbc",
    "sbc_from_samples",
    "sbc_ranks",
]

_ONE_SIGMA = 0.6826894921370859
_LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class Calibration:
    """The result of simulation-based calibration over N pairs of theta and x, for P parameters.

    Attributes:
        names: P names.
        ranks: number of draws below the truth, ``(N, P)`` integers from 0 to `draws`.
        draws: posterior draws for each pair, L.
        bias_p_values: ``(P,)`` of uniform ranks.
        width_p_values: ``(P,)`` of uniform central credibilities.
        coverage_68: share of pairs whose central 68.3 % interval holds the truth, ``(P,)``.
        coverage_68_error: its binomial standard deviation, ``(P,)``.
        above_median: share of pairs whose truth lies above the posterior median, ``(P,)``.
        level: the probability that a calibrated posterior flunks, over all parameters together.
        kinds: for each parameter ``calibrated``, ``over-confident``, ``under-confident``, ``biased low`` or
            ``biased high`` (the posterior lies below or above the truth).
    """

    names: tuple[str, ...]
    ranks: Tensor
    draws: int
    bias_p_values: Tensor
    width_p_values: Tensor
    coverage_68: Tensor
    coverage_68_error: Tensor
    above_median: Tensor
    level: float
    kinds: tuple[str, ...]

    @property
    def p_values(self) -> Tensor:
        """Probability of ranks as far from uniform as these, for each parameter: ``(P,)``."""
        return (2 * torch.minimum(self.bias_p_values, self.width_p_values)).clamp(max=1.0)

    @property
    def passed(self) -> bool:
        """Whether no parameter is significantly miscalibrated."""
        return all(kind == "calibrated" for kind in self.kinds)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One plain sentence for each parameter."""
        return tuple(self._verdict(i) for i in range(len(self.names)))

    @property
    def verdict(self) -> str:
        """The sentences of the parameters that flunk, or that all pass."""
        if self.passed:
            return f"calibrated: smallest p-value {float(self.p_values.min()):.2g} over {len(self.ranks)} simulations"
        return "; ".join(v for v, kind in zip(self.verdicts, self.kinds, strict=True) if kind != "calibrated")

    def _verdict(self, i: int) -> str:
        kind, error = self.kinds[i], 100 * float(self.coverage_68_error[i])
        text = f"68 % intervals cover {100 * float(self.coverage_68[i]):.0f} ± {error:.0f} %"
        if kind.startswith("biased"):
            share, n = float(self.above_median[i]), len(self.ranks)
            error = 100 * float(_binomial_error(torch.tensor(share), n))
            text = f"the truth is above the median in {100 * share:.0f} ± {error:.0f} % of cases"
        return f"{kind} in {self.names[i]}: {text}"


@dataclass(frozen=True)
class Coverage:
    """Expected coverage of credible regions over N pairs, for K kinds of regions (parameters, or one joint region).

    Attributes:
        names: K names: of parameters, or ``joint``.
        levels: M credibility levels, ``(M,)``.
        coverage: share of pairs whose region of that level holds the truth, ``(M, K)``.
        error: binomial standard deviation of the coverage, ``(M, K)``.
        credibility: level at which the region just takes in the truth, ``(N, K)``; uniform where calibrated.
        p_values: of uniform credibilities, ``(K,)``.
        level: the probability that a calibrated posterior flunks, over all K together.
    """

    names: tuple[str, ...]
    levels: Tensor
    coverage: Tensor
    error: Tensor
    credibility: Tensor
    p_values: Tensor
    level: float

    @property
    def passed(self) -> bool:
        """Whether no coverage is significantly off."""
        return bool((self.p_values >= self.level / len(self.names)).all())

    @property
    def verdict(self) -> str:
        """One plain sentence: which regions are over- or under-confident, or that none is."""
        if self.passed:
            n = len(self.credibility)
            return f"calibrated: smallest p-value {float(self.p_values.min()):.2g} over {n} simulations"
        inside = (self.credibility <= _ONE_SIGMA).double().mean(0)
        mean = self.credibility.mean(0)
        sentences = []
        for i in (self.p_values < self.level / len(self.names)).nonzero()[:, 0].tolist():
            kind = "over-confident" if float(mean[i]) > 0.5 else "under-confident"
            error = 100 * float(_binomial_error(inside[i], len(self.credibility)))
            text = f"68 % regions cover {100 * float(inside[i]):.0f} ± {error:.0f} %"
            sentences.append(f"{kind} in {self.names[i]}: {text}")
        return "; ".join(sentences)


def sbc_ranks(samples: Any, theta: Any, *, seed: int = 0) -> Tensor:
    """Rank of the truth among the draws of each parameter.

    Args:
        samples: ``(N, L, P)`` posterior draws, L for each pair.
        theta: ``(N, P)`` true parameters.
        seed: ties are broken at random.

    Returns:
        int64 ``(N, P)`` from 0 to L.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a number is NaN or infinite.
    """
    draws, truth = _pairs(samples, theta)
    below = (draws < truth.unsqueeze(1)).sum(1)
    ties = (draws == truth.unsqueeze(1)).sum(1)
    with seeded(seed):
        share = torch.rand(truth.shape, dtype=torch.float64)
    return below + (share * (ties + 1)).floor().long()


def sbc_from_samples(
    samples: Any, theta: Any, names: Sequence[str] | None = None, *, level: float = 0.01, seed: int = 0
) -> Calibration:
    """Simulation-based calibration of posterior draws.

    Args:
        samples: ``(N, L, P)`` posterior draws, L for each pair.
        theta: ``(N, P)`` true parameters.
        names: P names; theta_0, ... where None.
        level: the probability that a calibrated posterior flunks, over all parameters together.
        seed: of the random part of the ranks.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: a number is NaN or infinite.
    """
    draws, truth = _pairs(samples, theta)
    labels = _labels(names, truth.shape[1])
    ranks = sbc_ranks(draws, truth, seed=derive(seed, "ties"))
    uniform = _spread(ranks, draws.shape[1], derive(seed, "spread"))
    central = (2 * uniform - 1).abs()
    bias, bias_p = _ks(uniform)
    width, width_p = _ks(central)
    covered = (central <= _ONE_SIGMA).double().mean(0)
    above = (uniform > 0.5).double().mean(0)
    # Twice over P: the smaller of two p-values for each parameter.
    off = torch.minimum(bias_p, width_p) < _checked_level(level) / (2 * len(labels))
    biased = bias >= width
    kinds = [
        "calibrated"
        if not off[i]
        else ("biased low" if above[i] > 0.5 else "biased high")
        if biased[i]
        else ("over-confident" if float(central[:, i].mean()) > 0.5 else "under-confident")
        for i in range(len(labels))
    ]
    error = _binomial_error(covered, len(truth))
    return Calibration(labels, ranks, draws.shape[1], bias_p, width_p, covered, error, above, level, tuple(kinds))


def expected_coverage(
    samples: Any,
    theta: Any,
    names: Sequence[str] | None = None,
    *,
    levels: Sequence[float] = _LEVELS,
    level: float = 0.01,
    seed: int = 0,
) -> Coverage:
    """Expected coverage of the central interval of each parameter.

    Args:
        samples: ``(N, L, P)`` posterior draws, L for each pair.
        theta: ``(N, P)`` true parameters.
        names: P names; theta_0, ... where None.
        levels: credibility levels in (0, 1).
        level: the probability that a calibrated posterior flunks, over all parameters together.
        seed: of the random part of the ranks.
    """
    draws, truth = _pairs(samples, theta)
    ranks = sbc_ranks(draws, truth, seed=derive(seed, "ties"))
    central = (2 * _spread(ranks, draws.shape[1], derive(seed, "spread")) - 1).abs()
    return _coverage(central, _labels(names, truth.shape[1]), levels, level)


def highest_density_coverage(
    log_prob_samples: Any,
    log_prob_theta: Any,
    *,
    levels: Sequence[float] = _LEVELS,
    level: float = 0.01,
    seed: int = 0,
) -> Coverage:
    """Expected coverage of the joint region of highest posterior density.

    Args:
        log_prob_samples: ``(N, L)`` posterior log-densities of L draws for each pair.
        log_prob_theta: ``(N,)`` posterior log-densities of the true parameters; minus infinity outside its support.
        levels: credibility levels in (0, 1).
        level: the probability that a calibrated posterior flunks.
        seed: of the random part of the ranks.
    """
    drawn = as_tensor(log_prob_samples, "log_prob_samples", dtype=torch.float64).cpu()
    truth = as_tensor(log_prob_theta, "log_prob_theta", dtype=torch.float64).cpu()
    outside = torch.full_like(truth, -1e300)
    truth = torch.where(truth == -torch.inf, outside, truth)
    if drawn.ndim != 2:
        raise ShapeError(f"log_prob_samples: expected shape (N, L), got {tuple(drawn.shape)}")
    ranks = sbc_ranks(-drawn.unsqueeze(-1), -truth.unsqueeze(-1), seed=derive(seed, "ties"))
    credibility = _spread(ranks, drawn.shape[1], derive(seed, "spread"))
    return _coverage(credibility, ("joint",), levels, level)


def sbc(
    posterior: Any, theta: Any, x: Any, *, draws: int = 256, seed: int = 0, level: float = 0.01, chunk: int = 64
) -> Calibration:
    """Simulation-based calibration of a posterior on simulated pairs that it was not trained on.

    Args:
        posterior: has ``sample(n, x_obs, seed=...)`` that gives draws ``(B, n, P)`` for B observations.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)`` simulated from theta.
        draws: posterior draws for each pair, L.
        seed: of the draws and of the random part of the ranks.
        level: the probability that a calibrated posterior flunks, over all parameters together.
        chunk: observations that are sampled together.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: theta, x or a draw is NaN or infinite; leave failed simulations out.
    """
    truth, samples, names = _sampled(posterior, theta, x, draws, seed, chunk)
    return sbc_from_samples(samples, truth, names, level=level, seed=seed)


def coverage(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    levels: Sequence[float] = _LEVELS,
    seed: int = 0,
    level: float = 0.01,
    chunk: int = 64,
) -> Coverage:
    """Expected coverage of the central intervals of a posterior, as `sbc` with the arguments of `expected_coverage`."""
    truth, samples, names = _sampled(posterior, theta, x, draws, seed, chunk)
    return expected_coverage(samples, truth, names, levels=levels, level=level, seed=seed)


def _sampled(
    posterior: Any, theta: Any, x: Any, draws: int, seed: int, chunk: int
) -> tuple[Tensor, Tensor, Sequence[str] | None]:
    truth = finite(as_tensor(theta, "theta", dtype=None), "theta")
    data = finite(as_tensor(x, "x", dtype=None), "x", "leave failed simulations out of the check")
    same_length(theta=truth, x=data)
    positive_integer(draws, "draws")
    parts: list[Tensor] = []
    names = None
    for i, start in enumerate(range(0, len(data), positive_integer(chunk, "chunk"))):
        block = data[start : start + chunk]
        result = posterior.sample(draws, block, seed=derive(seed, "block", i))
        if isinstance(result, Samples):
            names, result = result.names, result.values
        values = as_tensor(result, "posterior draws", dtype=None).cpu()
        if values.shape[:-1] == (draws,) and len(block) == 1:  # one observation comes without their axis
            values = values.unsqueeze(0)
        parts.append(batch_of(values, (draws, truth.shape[-1]), "posterior draws", minimum=len(block)))
    return truth, torch.cat(parts), names


def _pairs(samples: Any, theta: Any) -> tuple[Tensor, Tensor]:
    draws = as_tensor(samples, "samples", dtype=torch.float64).cpu()
    truth = as_tensor(theta, "theta", dtype=torch.float64).cpu()
    if draws.ndim != 3 or truth.ndim != 2 or (len(draws), draws.shape[2]) != tuple(truth.shape) or not draws.shape[1]:
        raise ShapeError(
            f"expected samples (N, L, P) and theta (N, P), got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    if len(truth) < 10:
        raise ShapeError(f"theta: expected at least 10 pairs to judge calibration, got {len(truth)}")
    return finite(draws, "samples"), finite(truth, "theta")


def _labels(names: Sequence[str] | None, dims: int) -> tuple[str, ...]:
    labels = tuple(names) if names is not None else tuple(f"theta_{i}" for i in range(dims))
    if len(labels) != dims:
        raise UsageError(f"names: expected {dims}, one for each parameter, got {len(labels)}")
    return labels


def _spread(ranks: Tensor, draws: int, seed: int) -> Tensor:
    with seeded(seed):
        return (ranks + torch.rand(ranks.shape, dtype=torch.float64)) / (draws + 1)


def _ks(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Statistic and p-value ``(K,)`` of the test of Kolmogorov and Smirnov, for columns ``(N, K)`` in [0, 1]."""
    from scipy.stats import kstest

    results = [kstest(column.numpy(), "uniform") for column in uniform.unbind(-1)]
    return tuple(torch.tensor([float(getattr(r, a)) for r in results]).double() for a in ("statistic", "pvalue"))  # type: ignore[return-value]


def _binomial_error(share: Tensor, n: int) -> Tensor:
    """Standard deviation of a share of n, from (k + 1) / (n + 2), so that it is not zero at 0 and 1."""
    smoothed = (share * n + 1) / (n + 2)
    return torch.sqrt(smoothed * (1 - smoothed) / n)


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability in (0, 1), got {level!r}")
    return level


def _coverage(credibility: Tensor, names: tuple[str, ...], levels: Sequence[float], level: float) -> Coverage:
    at = torch.as_tensor(np.asarray(levels, dtype=np.float64)).reshape(-1)
    if len(at) == 0 or not bool(((at > 0) & (at < 1)).all()):
        raise UsageError(f"levels: expected credibilities in (0, 1), got {list(levels)}")
    share = (credibility.unsqueeze(0) <= at[:, None, None]).double().mean(1)
    error = _binomial_error(share, len(credibility))
    return Coverage(names, at, share, error, credibility, _ks(credibility)[1], _checked_level(level))
