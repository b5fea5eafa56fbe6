r"""Would more simulations help?  The held-out log-density of a posterior over the size of its training set.

The mean of $\ln q(\theta|x)$ over pairs that were not trained on lies below its best possible value by the mean
Kullback-Leibler divergence of q from the exact posterior.  Over the number of simulations n it grows as

$$ L(n) = L_\infty - c\,n^{-a} $$

in many learning problems (Hestness et al. 2017, arXiv:1712.00409), which tells what twice the simulations would gain:
$c\,N^{-a}(1 - 2^{-a})$.  Errors come from resampling the held-out pairs and the repeats together.  Where the curve does
not rise significantly, or has too few points, the gain is taken from the straight line in ln n through the last two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, positive_integer
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.validity import Failed, ValidPairs, select_rows, select_valid
from sbi_physics.diagnostics.uniformity import left_out

__all__ = ["LearningCurve", "learning_curve"]

Array = np.ndarray[Any, Any]

_EXPONENTS = np.linspace(0.1, 2.0, 39)
_RESAMPLES = 500
_FEWEST_HELD_OUT = 10
_FEWEST_SIZES = 4
_LAW_ERROR = 0.05


@dataclass(frozen=True)
class LearningCurve:
    """Held-out log-density over the number of training simulations.

    Attributes:
        sizes: S numbers of simulations, increasing, ``(S,)``.
        log_prob: mean held-out log-density in nats, ``(S,)``.
        error: its standard deviation, over pairs and repeats, ``(S,)``.
        repeated: the mean of each fit, ``(S, R)``.
        rise: how much lower the log-density is than at the largest size, in nats, ``(S,)``.
        rise_error: its standard deviation; smaller than that of the values, since the pairs are the same, ``(S,)``.
        gain: log-density that twice the simulations are expected to gain, in nats.
        gain_error: its standard deviation.
        exponent: a of the power law; None where a straight line was used.
        exponent_error: its standard deviation, or None.
        limit: the log-density that the power law tends to, or None.
        tolerance: the gain in nats that is worth twice the simulations.
        failed: simulations that were left out.
    """

    sizes: Tensor
    log_prob: Tensor
    error: Tensor
    repeated: Tensor
    rise: Tensor
    rise_error: Tensor
    gain: float
    gain_error: float
    exponent: float | None
    exponent_error: float | None
    limit: float | None
    tolerance: float
    failed: int = 0

    @property
    def passed(self) -> bool:
        """Whether more simulations are not clearly worth it."""
        return self.gain - 2 * self.gain_error <= self.tolerance

    @property
    def verdict(self) -> str:
        """One plain sentence that says whether more simulations would help."""
        gain = f"doubling the {int(self.sizes[-1])} simulations gains {self.gain:.2g} ± {self.gain_error:.1g} nats"
        if not self.passed:
            text = f"more simulations help: {gain}"
        elif self.gain + 2 * self.gain_error <= self.tolerance:
            text = f"enough simulations: {gain}"
        else:
            text = f"undecided whether more simulations help: {gain}; take more held-out pairs or repeats"
        return text + left_out(self.failed)

    def power_law(self, n: Any) -> Tensor | None:
        """The fitted log-density at numbers of simulations `n`, or None where no power law was fitted."""
        if self.exponent is None or self.limit is None:
            return None
        at = as_tensor(n, "n", dtype=torch.float64) / float(self.sizes[-1])
        last = self.gain / (1 - 2**-self.exponent)
        return self.limit - last * at**-self.exponent


def learning_curve(
    fit: Callable[[Tensor, Any, int], Any],
    theta: Any,
    x: Any,
    *,
    sizes: Sequence[int] | None = None,
    held_out: int | None = None,
    repeats: int = 3,
    tolerance: float = 0.05,
    seed: int = 0,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> LearningCurve:
    """Fit posteriors to parts of a set of simulations, and extrapolate what more of them would gain.

    Args:
        fit: ``fit(theta, x, seed)`` gives a posterior with ``log_prob(theta, x)`` of rows, ``(m,)``.
        theta: ``(N, P)``.
        x: ``(N, *x_shape)``, or a dictionary of such.
        sizes: numbers of simulations to train on, at least two; 1/8, 1/4, 1/2 and all of what is not held out where
            None.
        held_out: pairs to evaluate on; a tenth, from 10 to 5,000, where None.
        repeats: fits for each size, R, each on another random part and from another seed.
        tolerance: the gain in nats that is worth twice the simulations.
        seed: of the parts and the fits.
        failed: what to do with failed simulations, ``"refuse"`` or ``"drop"``.
        missing: whether NaN marks missing entries of x that the posterior can handle.
        progress: whether to show a bar.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a simulation failed and is to be refused, or a held-out log-density is not finite.
        UsageError: an argument is out of range.
    """
    pairs = select_valid(theta, x, failed=failed, missing=missing)
    n, runs = len(pairs.theta), positive_integer(repeats, "repeats")
    test = min(max(n // 10, _FEWEST_HELD_OUT), 5000) if held_out is None else positive_integer(held_out, "held_out")
    steps = _sizes(sizes, n - test)
    if test < _FEWEST_HELD_OUT:
        raise UsageError(f"held_out: expected at least {_FEWEST_HELD_OUT} pairs, got {test}")
    if not tolerance > 0:
        raise UsageError(f"tolerance: expected a number of nats above zero, got {tolerance!r}")
    order = numpy_generator(derive(seed, "held-out")).permutation(n)
    at = _part(pairs, order[:test])
    found = np.empty((len(steps), runs, test))
    with progress_bar(len(steps) * runs, "learning curve", enabled=progress) as advance:
        for r in range(runs):
            pool = numpy_generator(derive(seed, "part", r)).permutation(order[test:])
            for s, size in enumerate(steps):
                posterior = fit(*_part(pairs, pool[:size])[:2], derive(seed, "fit", s, r))
                found[s, r] = _held_out_log_prob(posterior, at, size)
                advance(1, f"{size} simulations: {found[s, r].mean():.3g}")
    return _curve(np.asarray(steps), found, tolerance, derive(seed, "resample"), pairs.failed)


def _sizes(sizes: Sequence[int] | None, most: int) -> list[int]:
    steps = (
        [most // 8, most // 4, most // 2, most]
        if sizes is None
        else [positive_integer(size, "sizes") for size in sizes]
    )
    if len(steps) < 2 or sorted(set(steps)) != steps or steps[0] < 1 or steps[-1] > most:
        raise UsageError(
            f"sizes: expected two or more increasing numbers, {most} (the rest is held out) at most, got {steps}"
        )
    return steps


def _part(pairs: ValidPairs, index: Array) -> ValidPairs:
    rows = torch.as_tensor(index)
    return ValidPairs(pairs.theta[rows.to(pairs.theta.device)], select_rows(pairs.x, rows), 0)


@torch.no_grad()
def _held_out_log_prob(posterior: Any, at: ValidPairs, size: int) -> Array:
    values = as_tensor(posterior.log_prob(at.theta, at.x), "posterior log_prob", dtype=torch.float64).cpu()
    if tuple(values.shape) != (len(at.theta),):
        raise ShapeError(f"posterior log_prob: expected shape ({len(at.theta)},), got {tuple(values.shape)}")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NonFiniteError(
            f"posterior log_prob: not finite for {bad} of {len(values)} held-out pairs, after training on {size}"
        )
    return values.numpy()


def _curve(sizes: Array, found: Array, tolerance: float, seed: int, failed: int) -> LearningCurve:
    """Summarise held-out log-densities ``(S, R, H)``."""
    count, runs, test = found.shape
    random = numpy_generator(seed)
    curves = np.empty((_RESAMPLES, count))
    for b in range(_RESAMPLES):
        # Fits differ between repeats, and the pairs are common to all of them.
        weight = np.bincount(random.integers(0, test, test), minlength=test) / test
        means = found @ weight
        centre = means.mean(1, keepdims=True)
        wider = centre + (means - centre) * _small_sample_factor(runs)
        curves[b] = np.take_along_axis(wider, random.integers(0, runs, (count, runs)), 1).mean(1)
    mean, error = found.mean((1, 2)), curves.std(0, ddof=1)
    rise, rise_error = mean[-1] - mean, (curves[:, -1:] - curves).std(0, ddof=1)
    fitted = count >= _FEWEST_SIZES and bool(rise[0] > 3 * rise_error[0])
    # Far below the limit the power law need not hold: a small share of the rise is allowed for.
    covariance = np.cov(curves, rowvar=False) + np.diag((_LAW_ERROR * rise) ** 2 + 1e-6)
    law, laws = (_power_law(sizes, values, covariance) for values in (mean[None], curves))
    gains = laws.gain if fitted else _line_gain(sizes, curves)
    gain = float(law.gain[0]) if fitted else float(_line_gain(sizes, mean[None])[0])
    return LearningCurve(
        torch.as_tensor(sizes),
        torch.as_tensor(mean),
        torch.as_tensor(error),
        torch.as_tensor(found.mean(2)),
        torch.as_tensor(rise),
        torch.as_tensor(rise_error),
        gain,
        float(gains.std(ddof=1)),
        float(law.exponent[0]) if fitted else None,
        float(laws.exponent.std(ddof=1)) if fitted else None,
        float(law.limit[0]) if fitted else None,
        tolerance,
        failed,
    )


def _small_sample_factor(runs: int) -> float:
    """How much too small the scatter of resampled repeats is on average: 1 / c4 of Student's distribution, and more."""
    if runs < 2:
        return 1.0
    c4 = math.sqrt(2 / (runs - 1)) * math.exp(math.lgamma(runs / 2) - math.lgamma((runs - 1) / 2))
    return math.sqrt(runs / (runs - 1)) / c4


class _Law(NamedTuple):
    """Power laws fitted to B curves: what doubling gains, exponents and limits, ``(B,)`` each."""

    gain: Array
    exponent: Array
    limit: Array


def _power_law(sizes: Array, curves: Array, covariance: Array) -> _Law:
    """Least squares for curves ``(B, S)``: linear in limit and amplitude, for each exponent of a grid."""
    precision = np.linalg.inv(covariance)
    weight = precision.sum(1) / precision.sum()
    shapes = (sizes / sizes[-1]) ** -_EXPONENTS[:, None]
    shape_mean, mean = shapes @ weight, curves @ weight
    centred, offset = shapes - shape_mean[:, None], curves - mean[:, None]
    size = np.einsum("es,st,et->e", centred, precision, centred)
    amplitude = np.maximum(-offset @ precision @ centred.T / size, 0.0)
    left = offset[:, None] + amplitude[..., None] * centred
    best = np.einsum("bes,st,bet->be", left, precision, left).argmin(1)
    amplitude = np.take_along_axis(amplitude, best[:, None], 1)[:, 0]
    exponent = _EXPONENTS[best]
    return _Law(amplitude * (1 - 2**-exponent), exponent, mean + amplitude * shape_mean[best])


def _line_gain(sizes: Array, curves: Array) -> Array:
    """What doubling gains ``(B,)``, by the straight line in the logarithm through the last two sizes."""
    return (curves[:, -1] - curves[:, -2]) / np.log2(sizes[-1] / sizes[-2])
