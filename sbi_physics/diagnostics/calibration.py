r"""Is a posterior calibrated?  Simulation-based calibration.

Draw theta from the prior and x from the simulator, and sample the posterior for that x.  If the posterior is right, the
truth is just one more draw from it.  So, over many such pairs, the rank of the truth among L draws of one parameter,
$u = (\#\{\theta_l < \theta\} + \xi) / (L + 1)$, is uniform on [0, 1] (Talts et al. 2018, arXiv:1804.06788).

xi is uniform on [0, 1] and spreads the ranks evenly, which makes uniformity exact for any L.  Uniformity is tested by
Kolmogorov and Smirnov: of u, which sees a bias, and of $|2u - 1|$, the credibility at which the central interval just
takes in the truth, which sees widths that are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.random import derive, seeded
from sbi_physics.core.validity import Failed
from sbi_physics.diagnostics.draws import posterior_draws
from sbi_physics.diagnostics.uniformity import (
    ONE_SIGMA,
    binomial_error,
    checked_level,
    checked_pairs,
    kolmogorov_smirnov,
    left_out,
    parameter_names,
    spread_ranks,
)

__all__ = ["Calibration", "sbc", "sbc_from_samples", "sbc_ranks"]

# A p-value below which what passes is not called calibrated without a word.
_BORDERLINE = 0.01


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
        failed: simulations that were left out.
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
    failed: int = 0

    def __repr__(self) -> str:
        return f"Calibration({self.verdict})"

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
            text = f"calibrated: smallest p-value {float(self.p_values.min()):.2g} over {len(self.ranks)} simulations"
        else:
            text = "; ".join(v for v, kind in zip(self.verdicts, self.kinds, strict=True) if kind != "calibrated")
        return text + left_out(self.failed)

    def _verdict(self, i: int) -> str:
        kind, error = self.kinds[i], 100 * float(self.coverage_68_error[i])
        text = f"68 % intervals cover {100 * float(self.coverage_68[i]):.0f} ± {error:.0f} %"
        if kind.startswith("biased"):
            share, n = float(self.above_median[i]), len(self.ranks)
            error = 100 * float(binomial_error(torch.tensor(share), n))
            text = f"the truth is above the median in {100 * share:.0f} ± {error:.0f} % of cases"
        if self._borderline(i):
            kind, text = "borderline", f"{text}, p-value {float(self.p_values[i]):.2g}: too likely to be ruled out"
        return f"{kind} in {self.names[i]}: {text}"

    def _borderline(self, i: int) -> bool:
        return self.kinds[i] == "calibrated" and float(self.p_values[i]) < _BORDERLINE

    @property
    def borderline(self) -> tuple[str, ...]:
        """The sentences of parameters that pass although chance alone would seldom do as badly."""
        return tuple(self._verdict(i) for i in range(len(self.names)) if self._borderline(i))


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
    draws, truth = checked_pairs(samples, theta)
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
    draws, truth = checked_pairs(samples, theta)
    labels = parameter_names(names, truth.shape[1])
    ranks = sbc_ranks(draws, truth, seed=derive(seed, "ties"))
    uniform = spread_ranks(ranks, draws.shape[1], derive(seed, "spread"))
    central = (2 * uniform - 1).abs()
    bias, bias_p = kolmogorov_smirnov(uniform)
    width, width_p = kolmogorov_smirnov(central)
    covered = (central <= ONE_SIGMA).double().mean(0)
    above = (uniform > 0.5).double().mean(0)
    # Twice over P: the smaller of two p-values for each parameter.
    off = torch.minimum(bias_p, width_p) < checked_level(level) / (2 * len(labels))
    biased = bias >= width
    kinds = [
        "calibrated"
        if not off[i]
        else ("biased low" if above[i] > 0.5 else "biased high")
        if biased[i]
        else ("over-confident" if float(central[:, i].mean()) > 0.5 else "under-confident")
        for i in range(len(labels))
    ]
    error = binomial_error(covered, len(truth))
    return Calibration(labels, ranks, draws.shape[1], bias_p, width_p, covered, error, above, level, tuple(kinds))


def sbc(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    seed: int = 0,
    level: float = 0.01,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> Calibration:
    """Simulation-based calibration of a posterior on simulated pairs that it was not trained on.

    Args:
        posterior: has ``sample(n, x_obs, seed=...)`` that gives draws ``(B, n, P)`` for B observations.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)`` simulated from theta, or a dictionary of such.
        draws: posterior draws for each pair, L.
        seed: of the draws and of the random part of the ranks.
        level: the probability that a calibrated posterior flunks, over all parameters together.
        chunk: observations that are sampled together; None takes as many as make a million numbers.
        failed: ``"refuse"`` raises where a simulation failed (NaN or infinity in x), ``"drop"`` leaves it out, which
            does not change what is tested.
        missing: whether NaN marks missing entries of x that the posterior can handle.
        progress: whether to show a bar.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: theta or a draw is NaN or infinite, or a simulation failed and is to be refused.
    """
    checked_level(level)
    made = posterior_draws(
        posterior, theta, x, draws=draws, seed=seed, chunk=chunk, failed=failed, missing=missing, progress=progress
    )
    return replace(sbc_from_samples(made.samples, made.theta, made.names, level=level, seed=seed), failed=made.failed)
