r"""`fit_spectrum`: the background under a resonance, from a falling function fitted beside it.

The spectrum outside the window is fitted by maximum likelihood, with the dijet functions integrated over each bin
(`falling.py`) and the number of parameters chosen by a test (`orders.py`).  The fit says how many events it expects in
the window, with the covariance that the fit leaves.  `SpectrumFit.posterior` samples the same likelihood by emcee, for
those who want the window's background without the normal approximation.

Goodness of fit is the deviance, whose distribution is a chi-square only where each bin expects many events.  Its mean
and variance follow from the Poisson distribution of each bin; the p-value is that of the gamma distribution which has
them, less one degree of freedom for each parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import gammaincc, gammaln, xlogy
from torch import Tensor

from sbi_physics.anomaly.binning import (
    Array,
    checked_counts,
    checked_edges,
    checked_window,
    events_per_weight,
    overlapping_bins,
)
from sbi_physics.anomaly.falling import BinnedFunction, FallingFunction, deviance, prior_information
from sbi_physics.anomaly.orders import OrderTest, checked_orders, fit_orders, usable_orders
from sbi_physics.core.checks import known_keys
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics.uniformity import checked_level
from sbi_physics.sampling.mcmc import mcmc

__all__ = ["Expectation", "SpectrumFit", "fit_spectrum", "fitted", "goodness"]

_WINDOW_NODES = 20
_SUMMED = 60.0


class Expectation(NamedTuple):
    """Expected counts in bins, with what the fit leaves uncertain.

    Attributes:
        counts: ``(B,)``.
        covariance: ``(B, B)``.
    """

    counts: Array
    covariance: Array

    @property
    def total(self) -> float:
        """Expected counts of all bins together."""
        return float(self.counts.sum())

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the total."""
        return float(np.sqrt(max(self.covariance.sum(), 0.0)))


@dataclass(frozen=True, eq=False)
class SpectrumFit:
    """A falling function fitted to a spectrum of B bins.

    Attributes:
        edges: ``(B + 1,)``, in the unit of mass.
        counts: ``(B,)``.
        scale: events that a count is worth, ``(B,)``: 1 without weights.
        window: left out of the fit, or None.
        used: which bins the fit used, ``(B,)``.
        order: number of parameters k.
        order_p_values: by number of parameters, the probability that all which longer functions improve is chance.
        coefficients: of the function's own combinations, ``(k,)``.
        coefficient_covariance: ``(k, k)``.
        function: turns them into a density.
        deviance: of the bins that the fit used.
        chi2: Pearson's, of those bins: the sum of their squared pulls.
        ndf: number of those bins, less the parameters.
        p_value: that the deviance is this large or larger by chance.
        converged: whether the fit reached its maximum.
    """

    edges: Array
    counts: Array
    scale: Array
    window: tuple[float, float] | None
    used: Any
    order: int
    order_p_values: dict[int, float]
    coefficients: Array
    coefficient_covariance: Array
    function: FallingFunction
    deviance: float
    chi2: float
    ndf: int
    p_value: float
    converged: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters: ln_p0, p1, ..."""
        return ("ln_p0", *(f"p{i}" for i in range(1, self.order)))

    @property
    def parameters(self) -> Array:
        """Parameters ``(k,)``: ln p_0, with p_0 in events per unit of mass, and p_1, ..."""
        return self.function.parameters(self.coefficients)

    @property
    def covariance(self) -> Array:
        """Covariance ``(k, k)`` of the parameters."""
        mixing = self.function.mixing[: self.order, : self.order]
        result: Array = mixing @ self.coefficient_covariance @ mixing.T
        return result

    @property
    def expected(self) -> Array:
        """Expected counts in all bins, ``(B,)``."""
        return self.predict(self.edges).counts

    @property
    def background(self) -> Expectation:
        """What is expected in the window, a single bin; in the whole spectrum where the fit had none."""
        return self.predict(self.window if self.window is not None else self.edges[[0, -1]])

    @property
    def observed(self) -> float:
        """Counts in the bins that the fit left out; in all of them where it left out none."""
        return float(self.counts.sum() if self.window is None else self.counts[~self.used].sum())

    @property
    def pulls(self) -> Array:
        """Counts minus expectation, in the Poisson standard deviations of the expectation, ``(B,)``."""
        expected = self.expected
        result: Array = (self.counts - expected) / np.sqrt(np.maximum(expected, 1e-300) / self.scale)
        return result

    def predict(self, edges: Any) -> Expectation:
        """Expected counts in any bins between 0 and sqrt_s.

        Args:
            edges: ``(B' + 1,)`` increasing edges in the unit of mass.

        Raises:
            UsageError, SupportError, NonFiniteError: they do not increase, or are no masses below sqrt_s.
        """
        binned = self._binned(checked_edges(edges, self.function.sqrt_s))
        counts, slope = binned.integrals(self.coefficients[None])
        slope = slope[..., 0]
        return Expectation(counts[:, 0], slope @ self.coefficient_covariance @ slope.T)

    def posterior(
        self,
        *,
        steps: int = 2000,
        walkers: int | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> Samples:
        """Sample the parameters and the background in the window by emcee.

        The prior is flat in ln p_0, p_1, ... but for the weak one of the fit, 30 e-folds over the spectrum wide.

        Args:
            steps: of each walker.
            walkers: their number; None takes what `sampling.mcmc` takes.
            seed: of the starting points and the moves.
            max_seconds: wall-clock budget.
            progress: whether to show a progress bar.

        Returns:
            Draws of the k parameters and of ``background``: the expected counts in the window, or in the whole
            spectrum where the fit had no window.

        Raises:
            BudgetError: the budget allows fewer than two steps.
        """
        binned = self._binned(self.edges).of(self.used, self.order)
        counts, scale = self.counts[self.used], self.scale[self.used]

        def log_prob(coefficients: Tensor) -> Tensor:
            at = coefficients.numpy()
            expected, _ = binned.integrals(at)
            expected = np.maximum(expected.T, 1e-300)
            loss = (scale * (expected - counts - xlogy(counts, expected / np.maximum(counts, 1e-9)))).sum(1)
            return torch.as_tensor(-loss - 0.5 * at**2 @ prior_information(self.order))

        wanted = max(4 * self.order + 4, 64) if walkers is None else 2 * walkers
        random = numpy_generator(derive(seed, "spectrum"))
        start = random.multivariate_normal(self.coefficients, self.coefficient_covariance, size=wanted)
        chain = mcmc(
            log_prob,
            start,
            steps=steps,
            walkers=walkers,
            seed=seed,
            device="cpu",
            max_seconds=max_seconds,
            progress=progress,
        )
        drawn = chain.values.numpy()
        window = self._binned(self.edges[[0, -1]] if self.window is None else np.array(self.window))
        background = window.integrals(drawn)[0].sum(0)
        values = np.column_stack([self.function.parameters(drawn), background])
        return Samples(
            torch.as_tensor(values), (*self.names, "background"), cost=chain.cost, diagnostics=chain.diagnostics
        )

    def __str__(self) -> str:
        window = f"without {self.window[0]:g} to {self.window[1]:g}, " if self.window is not None else ""
        return (
            f"{self.order} parameters, {window}chi2 / ndf = {self.chi2:.1f} / {self.ndf}, "
            f"p-value of the deviance {self.p_value:.2g}" + ("" if self.converged else "; the fit did not converge")
        )

    def _binned(self, edges: Array) -> BinnedFunction:
        # A bin as wide as a window or the whole spectrum needs more than a few nodes.
        nodes = _WINDOW_NODES if len(edges) == 2 else 6
        binned = self.function.binned(edges, nodes)
        return BinnedFunction(binned.values[..., : self.order], binned.weights)


def fit_spectrum(
    edges: Any,
    counts: Any,
    *,
    window: tuple[float, float] | None = None,
    variances: Any = None,
    orders: Sequence[int] = (3, 4, 5),
    level: float = 0.05,
    test: Literal["likelihood-ratio", "F"] = "likelihood-ratio",
    sqrt_s: float = 13.0,
) -> SpectrumFit:
    """Fit a dijet function to a spectrum, but for the bins that share mass with the window.

    Args:
        edges: ``(B + 1,)`` increasing edges, in the unit of `sqrt_s`.
        counts: ``(B,)`` events, or sums of weights.
        window: lower and upper mass of what is left out, or None.
        variances: ``(B,)`` sums of squared weights, where events carry weights.
        orders: numbers of parameters to choose from, 2 to 5; those that leave no bin over are passed by.
        level: the probability of taking a longer function than is needed.
        test: by which the number of parameters is chosen.
        sqrt_s: energy of the collision: 13 where masses are in TeV, 13000 where they are in GeV.

    Raises:
        ShapeError, NonFiniteError: counts are not one for each bin, or are NaN.
        SupportError: masses are not between 0 and `sqrt_s`.
        UsageError: the spectrum is empty, a count is negative, the window lies outside, or too few bins have events.
    """
    bounds = checked_edges(edges, sqrt_s)
    values, spread = checked_counts(counts, len(bounds) - 1, variances)
    checked_level(level)
    known_keys([test], ["likelihood-ratio", "F"], "test")
    used = np.ones(len(values), dtype=bool) if window is None else ~overlapping_bins(bounds, window)
    usable = usable_orders(values[used], checked_orders(orders), "" if window is None else "outside the window")
    scale = events_per_weight(values, spread)
    function = FallingFunction.orthonormal(bounds, values, usable[-1], sqrt_s)
    return fitted(
        bounds, values, scale, used, function, usable, level, test, None if window is None else checked_window(window)
    )


def fitted(
    edges: Array,
    counts: Array,
    scale: Array,
    used: Any,
    function: FallingFunction,
    orders: Sequence[int],
    level: float,
    test: OrderTest,
    window: tuple[float, float] | None,
) -> SpectrumFit:
    """`fit_spectrum` of what has been checked."""
    found = fit_orders(
        function.binned(edges).of(used, orders[-1]), counts[None, used], scale[used], orders, level=level, test=test
    )
    order, fit = orders[int(found.chosen[0])], found.fits[int(found.chosen[0])]
    expected = function.binned(edges).of(used, order).integrals(fit.coefficients)[0][:, 0]
    pearson = float((scale[used] * (counts[used] - expected) ** 2 / np.maximum(expected, 1e-300)).sum())
    return SpectrumFit(
        edges,
        counts,
        scale,
        window,
        used,
        order,
        dict(zip(orders, found.p_values[0].tolist(), strict=True)),
        fit.coefficients[0],
        fit.covariance[0],
        function,
        float(fit.deviance[0]),
        pearson,
        int(used.sum()) - order,
        goodness(float(fit.deviance[0]), scale[used] * expected, order),
        bool(fit.converged[0]),
    )


def goodness(value: float, expected: Array, parameters: int) -> float:
    """Probability of a deviance of at least `value`, for expected events ``(B,)`` fitted with so many parameters."""
    mean, variance = _deviance_moments(expected)
    middle = max(float(mean.sum()) - parameters, 0.1)
    spread = max(float(variance.sum()) - 2 * parameters, 0.1)
    return float(gammaincc(middle**2 / spread, value * middle / spread))


def _deviance_moments(expected: Array) -> tuple[Array, Array]:
    """Mean and variance ``(B,)`` of the deviance of a Poisson number about its expectation."""
    rate = np.maximum(expected, 1e-12)
    # The first terms of the expansion in 1 / rate are good to a part in a thousand where the sum ends.
    mean, variance = 1 + 1 / (6 * rate), 2 + 2 / (3 * rate)
    few = rate < _SUMMED
    number = np.arange(int(_SUMMED + 12 * np.sqrt(_SUMMED)) + 20, dtype=np.float64)
    small = rate[few, None]
    share = np.exp(xlogy(number, small) - small - gammaln(number + 1))
    each = deviance(number[None], small, np.ones(1))
    mean[few] = (share * each).sum(1)
    variance[few] = (share * each**2).sum(1) - mean[few] ** 2
    return mean, variance
