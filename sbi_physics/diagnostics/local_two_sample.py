r"""The local classifier two-sample test (L-C2ST): is the posterior right for *this* observation?

A classifier is trained to tell pairs (theta, x) of the simulator from pairs (draw of the posterior at x, x).  Where the
posterior is right its answer is 1/2, so that at an observation x_o

$$ t(x_o) = E_{\theta \sim q(\theta|x_o)} [(d(\theta, x_o) - 1/2)^2] $$

is as small as chance makes it (Linhart et al. 2023, arXiv:2306.03580).  Chance is known: if the posterior is right,
truth and draw of each pair may change places, so t is computed again for classifiers trained after random exchanges.

``"kernel"`` is ridge regression of the label on random Fourier features (Rahimi & Recht 2007), a smooth classifier
whose retraining after each exchange is one product of matrices; ``"boosting"`` is gradient-boosted trees, slower by
orders of magnitude, which see sharper structure.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import BudgetError, ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.validity import Failed, ValidPairs, count_rows, select_valid
from sbi_physics.diagnostics.draws import posterior_draws
from sbi_physics.diagnostics.features import Features, observations
from sbi_physics.diagnostics.local_classifiers import CLASSIFIERS, Answer, Task, exchange_task
from sbi_physics.diagnostics.uniformity import checked_level, left_out, parameter_names

__all__ = ["LocalTest", "lc2st"]

Array = np.ndarray[Any, Any]
Classifier = Literal["kernel", "boosting"]

_EXCHANGES = {"kernel": 999, "boosting": 99}
_FEWEST_DRAWS = 10
_MOST_ASKED = 1 << 17


@dataclass(frozen=True)
class LocalTest:
    """The local two-sample test at B observations.

    Attributes:
        names: P names.
        statistic: t at each observation, ``(B,)``.
        null: t of the classifiers trained after exchanges, ``(K, B)``.
        p_values: ``(B,)``, corrected for the number of observations.
        shift: how far the true mean seems to lie above that of the posterior, in its deviations, ``(B, P)``; by
            `weights`, which understate what is large.
        shift_error: its standard deviation if the posterior is right, ``(B, P)``.
        stretch: how many times as wide as the posterior the truth seems to be, ``(B, P)``.
        stretch_error: the standard deviation of its logarithm if the posterior is right, ``(B, P)``.
        samples: posterior draws at the observations, ``(B, n, P)``.
        probability: the classifier's probability that a draw is a truth, ``(B, n)``; 1/2 where the posterior is right.
        level: the probability that a right posterior flunks, over all observations together.
        pairs: simulations that the classifier was trained on.
        failed: simulations that were left out.
    """

    names: tuple[str, ...]
    statistic: Tensor
    null: Tensor
    p_values: Tensor
    shift: Tensor
    shift_error: Tensor
    stretch: Tensor
    stretch_error: Tensor
    samples: Tensor
    probability: Tensor
    level: float
    pairs: int
    failed: int = 0

    @property
    def p_value_errors(self) -> Tensor:
        """Standard deviation of the p-values from the finite number of exchanges, ``(B,)``."""
        return torch.sqrt(self.p_values * (1 - self.p_values) / len(self.null)).clamp(min=1 / (1 + len(self.null)))

    @property
    def weights(self) -> Tensor:
        """Weights ``(B, n)`` that turn the draws into draws of the truth, to first order in probability - 1/2."""
        return torch.as_tensor(_weights(self.probability.numpy()))

    @property
    def passed(self) -> bool:
        """Whether the posterior is not significantly wrong at any of the observations."""
        return bool((self.p_values > self.level).all())

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One plain sentence for each observation."""
        return tuple(self._sentence(b) for b in range(len(self.statistic)))

    @property
    def verdict(self) -> str:
        """The sentences of the observations that flunk, or that all pass."""
        if self.passed:
            text = (
                f"no local deviation: smallest p-value {float(self.p_values.min()):.2g} over {self.pairs} simulations"
            )
        else:
            wrong = (self.p_values <= self.level).nonzero()[:, 0].tolist()
            text = "; ".join(self._sentence(b) for b in wrong)
        return text + left_out(self.failed)

    def _sentence(self, b: int) -> str:
        where = "at this observation" if len(self.statistic) == 1 else f"at observation {b}"
        p = f"p-value {float(self.p_values[b]):.2g}"
        if float(self.p_values[b]) > self.level:
            return f"no deviation {where}: {p}"
        shift = (self.shift[b] / self.shift_error[b]).abs()
        stretch = (torch.log(self.stretch[b]) / self.stretch_error[b]).abs()
        i = int(torch.maximum(shift, stretch).argmax())
        if float(shift[i]) > float(stretch[i]):
            side, size = ("above" if float(self.shift[b, i]) > 0 else "below"), abs(float(self.shift[b, i]))
            text = f"the truth seems to lie {side} the posterior by {size:.2g} of its deviations"
        else:
            text = f"the truth seems {float(self.stretch[b, i]):.2g} times as wide as the posterior"
        return f"wrong {where}: {p}; most in {self.names[i]}, where {text}"


def lc2st(
    posterior: Any,
    theta: Any,
    x: Any,
    x_obs: Any,
    *,
    n: int = 1000,
    draws: int = 128,
    classifier: Classifier = "kernel",
    exchanges: int | None = None,
    features: Features | None = None,
    level: float = 0.01,
    seed: int = 0,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    max_seconds: float | None = None,
    progress: bool = False,
) -> LocalTest:
    """Test a posterior at one or several observations, with simulated pairs that it was not trained on.

    The p-values are exact if the posterior is right everywhere.  A classifier also generalises from neighbouring x: an
    observation whose own posterior is right may flunk where those around it are wrong.

    Args:
        posterior: has ``sample(n, x_obs, seed=...)`` that gives draws ``(B, n, P)`` for B observations.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)`` simulated from theta, or a dictionary of such.
        x_obs: one observation, or B of them.
        n: posterior draws at each observation.
        draws: posterior draws for each pair; one is compared with the truth, the others set the units.
        classifier: ``"kernel"`` or ``"boosting"``.
        exchanges: K classifiers trained after exchanges; 999 or, for ``"boosting"``, 99 where None.
        features: a function from x to ``(N, F)`` numbers that the classifier sees of it.
        level: the probability that a right posterior flunks, over all observations together.
        seed: of everything random.
        chunk: observations that are sampled together.
        failed: what to do with failed simulations, see `sbc`.
        missing: whether NaN marks missing entries of x that the posterior can handle.
        max_seconds: budget for training; fewer classifiers are trained when it ends.
        progress: whether to show bars.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: a simulation failed and is to be refused.
        UsageError: an argument is out of range.
        BudgetError: the budget allows too few classifiers for a p-value at `level`.
    """
    known_keys([classifier], list(_EXCHANGES), "classifier")
    if positive_integer(n, "n") < _FEWEST_DRAWS:
        raise UsageError(f"n: expected at least {_FEWEST_DRAWS} draws at each observation, got {n}")
    wanted = positive_integer(_EXCHANGES[classifier] if exchanges is None else exchanges, "exchanges")
    if positive_integer(draws, "draws") < 4:
        raise UsageError(f"draws: expected at least 4, to set the units, got {draws}")
    if 1 / (1 + wanted) > checked_level(level):
        raise UsageError(f"exchanges: expected at least {math.ceil(1 / level) - 1} for level {level:g}, got {wanted}")
    pairs = select_valid(theta, x, failed=failed, missing=missing)
    observed = observations(x_obs, pairs.x)
    if count_rows(observed) * n > _MOST_ASKED:
        raise UsageError(
            f"x_obs: expected at most {_MOST_ASKED // n} observations with {n} draws each, got {count_rows(observed)}; "
            "test them in parts"
        )
    if len(pairs.theta) < 10:
        raise ShapeError(f"theta: expected at least 10 pairs, got {len(pairs.theta)}")
    options: dict[str, Any] = {"chunk": chunk, "missing": missing, "progress": progress}
    made = posterior_draws(posterior, *pairs[:2], draws=draws, seed=derive(seed, "pairs"), **options)
    # Truths are not known at the observations: any number will do for them.
    unknown = pairs.theta[:1].expand(count_rows(observed), -1)
    there = posterior_draws(posterior, unknown, observed, draws=n, seed=derive(seed, "observations"), **options)
    task = exchange_task(made, pairs.x, there.samples, observed, features)
    answer = CLASSIFIERS[classifier](task, derive(seed, classifier))
    answers = _exchanged(answer, task, wanted, level, max_seconds, seed, progress)
    return _result(*answers, task, made.names, level, pairs)


class _Reading(NamedTuple):
    """What a classifier says of the posterior: t ``(B,)``, shift and logarithm of the stretch ``(B, P)``."""

    statistic: Array
    shift: Array
    log_stretch: Array


def _read(probability: Array, samples: Array) -> _Reading:
    weights = _weights(probability)
    weights = (weights / np.maximum(weights.sum(1, keepdims=True), 1e-12))[:, None]
    mean, deviation = samples.mean(1), samples.std(1)
    deviation = np.where(deviation > 0, deviation, 1.0)
    standard = (samples - mean[:, None]) / deviation[:, None]
    shift = (weights @ standard)[:, 0]
    square = (weights @ np.square(standard))[:, 0] - shift**2
    return _Reading(np.square(probability - 0.5).mean(1), shift, 0.5 * np.log(np.maximum(square, 1e-12)))


def _exchanged(
    answer: Answer, task: Task, wanted: int, level: float, max_seconds: float | None, seed: int, progress: bool
) -> tuple[Array, list[_Reading]]:
    """The classifier's answers ``(B, n)``; what they say, and what those say that were trained after exchanges."""
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    n = len(task.truths)
    with progress_bar(wanted, "classifiers", enabled=progress) as advance:
        probability = answer(np.ones(n))
        readings = [_read(probability, task.samples)]
        for k in range(wanted):
            if time.monotonic() > deadline:
                break
            signs = 2.0 * numpy_generator(derive(seed, "exchange", k)).integers(0, 2, n) - 1
            readings.append(_read(answer(signs), task.samples))
            advance()
    if 1 / len(readings) > level:
        raise BudgetError(
            f"lc2st: {len(readings) - 1} exchanges in {max_seconds:g} seconds, expected at least "
            f"{math.ceil(1 / level) - 1} for level {level:g}"
        )
    return probability, readings


def _weights(probability: Array) -> Array:
    # The odds p / (1 - p), the density of the truth over that of the posterior, are 1 + 4 (p - 1/2) + ...; in full they
    # would let a few draws count for all others.
    return np.clip(4 * probability - 1, 0.0, 3.0)


def _result(
    probability: Array,
    readings: list[_Reading],
    task: Task,
    names: Sequence[str] | None,
    level: float,
    pairs: ValidPairs,
) -> LocalTest:
    statistic, shift, log_stretch = (np.stack(values) for values in zip(*readings, strict=True))
    null = statistic[1:]
    # The largest of the standardised statistics corrects for the number of observations (Westfall & Young 1993).
    standard = (statistic - null.mean(0)) / np.maximum(null.std(0), 1e-300)
    largest = standard[1:].max(1)
    p_values = (1 + (largest[:, None] >= standard[0]).sum(0)) / (1 + len(null))
    errors = (np.maximum(values[1:].std(0), 1e-300) for values in (shift, log_stretch))
    shift_error, stretch_error = (torch.as_tensor(error) for error in errors)
    return LocalTest(
        parameter_names(names, task.samples.shape[2]),
        torch.as_tensor(statistic[0]),
        torch.as_tensor(null),
        torch.as_tensor(p_values),
        torch.as_tensor(shift[0]),
        shift_error,
        torch.as_tensor(np.exp(log_stretch[0])),
        stretch_error,
        torch.as_tensor(task.samples),
        torch.as_tensor(probability),
        level,
        len(pairs.theta),
        pairs.failed,
    )
