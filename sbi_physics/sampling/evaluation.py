"""A likelihood that is counted, checked and paid for: what a sampler in the unbounded space evaluates."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.errors import BudgetError
from sbi_physics.core.parameters import Parameters
from sbi_physics.sampling.ensemble import Cloud
from sbi_physics.sampling.target import checked_log_density

__all__ = ["BatchedLogLikelihood", "Evaluation"]

BatchedLogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""``(theta (k, m, P), observations (k,))`` to ``(k, m)``: row i of theta goes with the observation of that number."""

_ROWS_AT_FIRST, _ROWS_AT_ONCE = 1 << 8, 1 << 16


class Evaluation:
    """Evaluate likelihood and prior at places in the unbounded space, within a budget.

    Args:
        log_likelihood: of each observation at its own rows.
        parameters: the prior.
        max_calls: most rows.
        max_seconds: wall-clock budget from now on, looked at between blocks of rows, each as large as all before it.

    Attributes:
        calls: rows so far.
        began: when it was made, in the time of `time.monotonic`.
    """

    def __init__(
        self,
        log_likelihood: BatchedLogLikelihood,
        parameters: Parameters,
        max_calls: int | None,
        max_seconds: float | None,
    ) -> None:
        self.began = time.monotonic()
        self.calls = 0
        self._log_likelihood, self._parameters = log_likelihood, parameters
        self._most = math.inf if max_calls is None else max_calls
        self._deadline = math.inf if max_seconds is None else self.began + max_seconds

    def __call__(self, z: Tensor, observations: Tensor) -> Cloud:
        """The densities at z ``(k, m, P)`` for k of the observations.

        Raises:
            BudgetError: the budget ends before all rows are done.
            ShapeError, NonFiniteError: the likelihood gives no log-densities.
        """
        k, m, _ = z.shape
        if self.calls + k * m > self._most:
            raise BudgetError("the budget of calls ended")
        theta, ladj = self._parameters.bijection.to_support(z)
        log_prior = self._parameters.log_prob(theta) + ladj
        blocks = []
        done = 0
        with torch.no_grad():
            while done < m:
                if time.monotonic() > self._deadline:
                    raise BudgetError("the budget of seconds ended")
                # How long a row takes is not known: blocks that double overrun the budget by its own length at most.
                width = max(1, min(_ROWS_AT_ONCE, max(_ROWS_AT_FIRST, self.calls)) // k)
                rows = theta[:, done : done + width]
                value = self._log_likelihood(rows, observations)
                blocks.append(checked_log_density(value, rows, "log_likelihood", observations).double())
                self.calls += rows.shape[0] * rows.shape[1]
                done += width
        return Cloud(z, torch.cat(blocks, 1), log_prior)
