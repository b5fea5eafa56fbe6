r"""Upper limits beside pyhf, direct sums and integrals, and Markov chains.

Our ``"asymptotic"`` limits and those of pyhf are the same formulae (arXiv:1007.1727), and are to agree.  Our
``"marginal"`` ones are judged by what they claim: without an uncertainty the ratio of two Poisson sums, solved
directly; with a gamma-distributed background the same ratio averaged over it by quadrature.  That ratio is the tail of
the posterior of the signal under a flat prior, as for each b

$$ \int_s^\infty P(n \mid s' + b)\, ds' = P(N \le n \mid s + b), $$

and so the Bayesian limit by emcee is to be the same number.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import emcee
import numpy as np
import pyhf
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import gamma, poisson

from sbi_physics.anomaly.limits import upper_limit
from sbi_physics.core.random import derive, numpy_generator

__all__ = ["limits"]

ALPHA = 0.05
# Background, its uncertainty, and observed counts.
EXPERIMENTS = ((3.0, 1.0, (0, 1, 3, 5, 8)), (50.0, 7.0, (35, 50, 65)))
CHAINS, WALKERS, STEPS, BURN_IN = 8, 32, 1500, 300
_BANDS = (0.022750131948179195, 0.15865525393145707, 0.5, 0.8413447460685429, 0.9772498680518208)


def limits(seed: int) -> dict[str, Any]:
    """Observed and expected limits of all experiments, and what they took."""
    rows = []
    for background, uncertainty, counts in EXPERIMENTS:
        for n in counts:
            rows.append(_compared(n, background, uncertainty, seed))
    return {"level": 1 - ALPHA, "rows": rows}


def _compared(n: int, background: float, uncertainty: float, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"n": n, "background": background, "uncertainty": uncertainty}
    ours: dict[str, Any] = {}
    for name, spread, method in (
        ("known", 0.0, "marginal"),
        ("marginal", uncertainty, "marginal"),
        ("asymptotic", uncertainty, "asymptotic"),
    ):
        found, seconds = _timed(lambda at=spread, how=method: upper_limit(n, background, at, method=how))
        ours[name] = {"observed": float(found.observed), "expected": found.expected.tolist(), "seconds": seconds}
    row["ours"] = ours
    row["exact"] = {
        "known": {"observed": _exact(n, background, 0.0), "expected": _exact_bands(background, 0.0)},
        "marginal": {"observed": _exact(n, background, uncertainty), "expected": _exact_bands(background, uncertainty)},
    }
    (observed, expected), seconds = _timed(lambda: _pyhf(n, background, uncertainty))
    row["pyhf"] = {"observed": observed, "expected": expected, "seconds": seconds}
    (value, error), seconds = _timed(lambda: _emcee(n, background, uncertainty, seed))
    row["emcee"] = {"observed": value, "error": error, "seconds": seconds}
    return row


def _exact(n: int, background: float, uncertainty: float) -> float:
    """The signal at which the ratio of probabilities of at most n events is ALPHA."""
    at_most = _at_most(background, uncertainty)
    alone = at_most(n, 0.0)
    return float(brentq(lambda s: at_most(n, s) / alone - ALPHA, 0.0, 20 + 10 * (n + background), xtol=1e-10))


def _exact_bands(background: float, uncertainty: float) -> list[float]:
    at_most = _at_most(background, uncertainty)
    found = []
    for probability in _BANDS:
        n = 0
        while at_most(n, 0.0) < probability:
            n += 1
        found.append(_exact(n, background, uncertainty))
    return found


def _at_most(background: float, uncertainty: float) -> Callable[[int, float], float]:
    """Probability of at most n events beside a signal, by a sum or by a sum under an integral over the background."""
    if uncertainty == 0:
        return lambda n, s: float(poisson.cdf(n, background + s))
    density = gamma((background / uncertainty) ** 2 + 1, scale=uncertainty**2 / background)
    ends = density.ppf([1e-13, 0.5, 1 - 1e-13])

    def averaged(n: int, s: float) -> float:
        parts = [
            quad(lambda b: density.pdf(b) * poisson.cdf(n, b + s), *between, epsabs=1e-13, epsrel=1e-11)[0]
            for between in (ends[:2], ends[1:])
        ]
        return float(sum(parts))

    return averaged


def _pyhf(n: int, background: float, uncertainty: float) -> tuple[float, list[float]]:
    # The signal strength of pyhf's simple models is bounded by 10.
    unit = 3 + 2 * background**0.5
    with warnings.catch_warnings():
        # What pyhf imports warns of its own future.
        warnings.simplefilter("ignore")
        model = pyhf.simplemodels.uncorrelated_background([unit], [background], [uncertainty])
        data = [n, *model.config.auxdata]
        observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(data, model, 0.001, 9.5, rtol=1e-5)
    return unit * float(observed), [unit * float(value) for value in expected]


def _emcee(n: int, background: float, uncertainty: float, seed: int) -> tuple[float, float]:
    """The quantile of the signal's posterior, flat above zero, with its error from some chains."""
    m, tau = (background / uncertainty) ** 2, background / uncertainty**2

    def log_prob(place: NDArray[np.float64]) -> NDArray[np.float64]:
        s, b = place.T
        inside = (s >= 0) & (b > 0)
        total, kept = np.where(inside, s + b, 1.0), np.where(inside, b, 1.0)
        return np.where(inside, n * np.log(total) - total + m * np.log(kept) - tau * kept, -np.inf)

    found = []
    for chain in range(CHAINS):
        random = numpy_generator(derive(seed, "emcee", n, chain))
        start = np.stack([random.exponential(1 + n**0.5, WALKERS), background * random.uniform(0.7, 1.3, WALKERS)], -1)
        sampler = emcee.EnsembleSampler(WALKERS, 2, log_prob, vectorize=True)
        sampler._random.seed(derive(seed, "moves", n, chain) % 2**32)
        sampler.run_mcmc(start, STEPS + BURN_IN)
        found.append(np.quantile(sampler.get_chain(discard=BURN_IN, flat=True)[:, 0], 1 - ALPHA))
    return float(np.mean(found)), float(np.std(found, ddof=1) / CHAINS**0.5)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    found = work()
    return found, time.process_time() - began
