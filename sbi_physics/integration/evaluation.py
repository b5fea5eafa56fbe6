"""`Evaluations`: an integrand of a user, called in blocks, with its calls counted and its values checked."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, SimulationError, UsageError

__all__ = ["Evaluations", "NonFinite"]

NonFinite = Literal["raise", "zero"]

_ROWS_AT_ONCE = 1 << 16
_LOWEST, _HIGHEST = 1e-150, 1 - 2.0**-53
"""Points stay off the faces of the cube, where integrands may be singular."""


class Evaluations:
    """An integrand that counts its calls.

    Args:
        function: takes points ``(n, D)`` in the open unit cube, a float64 tensor or, where it cannot use one, a NumPy
            array, and gives ``(n,)``.
        dims: D; None asks the function for its `dims`.
        max_calls: the most points at which it is evaluated.
        non_finite: what NaN and infinities are: ``"raise"`` refuses them, ``"zero"`` counts them as zero and says how
            many there were.

    Attributes:
        calls: points evaluated so far.
        replaced: how many of them were not finite, and count as zero.
        non_finite: as given.

    Raises:
        UsageError: it is not callable, or its number of dimensions is unknown.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        dims: int | None = None,
        *,
        max_calls: int | None = None,
        non_finite: NonFinite = "raise",
    ) -> None:
        if not callable(function):
            raise UsageError(f"integrand: expected a function of points (n, dims), got {type(function).__name__}")
        own = getattr(function, "dims", None)
        if dims is None and own is None:
            raise UsageError("dims: expected the number of dimensions, since the integrand has no attribute `dims`")
        if dims is not None and own is not None and dims != own:
            raise UsageError(f"dims: expected {own}, the integrand's own number of dimensions, got {dims}")
        if non_finite not in ("raise", "zero"):
            raise UsageError(f"non_finite: expected 'raise' or 'zero', got {non_finite!r}")
        self.dims = positive_integer(own if dims is None else dims, "dims")
        self.max_calls = None if max_calls is None else positive_integer(max_calls, "calls")
        self.calls = self.replaced = 0
        self.non_finite: NonFinite = non_finite
        self._function = function
        self._takes_tensors: bool | None = None

    def __call__(self, points: Tensor) -> Tensor:
        """The integrand at points ``(n, D)`` float64: finite, ``(n,)`` float64.

        Raises:
            BudgetError: the budget of calls ends before the last of them.
            ShapeError: the integrand gives something other than one number for each point.
            NonFiniteError: it gives NaN or infinity.
            SimulationError: it raises.
        """
        if self.max_calls is not None and self.calls + len(points) > self.max_calls:
            raise BudgetError(f"integrand: the budget of {self.max_calls} calls ended after {self.calls}")
        points = points.clamp(_LOWEST, _HIGHEST)
        parts = [self._block(points[i : i + _ROWS_AT_ONCE]) for i in range(0, len(points), _ROWS_AT_ONCE)]
        return torch.cat(parts) if parts else points.new_zeros(0)

    def left(self) -> float:
        """How many more calls the budget allows; infinity without one."""
        return float("inf") if self.max_calls is None else self.max_calls - self.calls

    def _block(self, points: Tensor) -> Tensor:
        value = self._values(points)
        if value.shape != (len(points),):
            raise ShapeError(
                f"integrand: expected values of shape ({len(points)},) for points {tuple(points.shape)}, "
                f"got {tuple(value.shape)}; a function of one point can be mapped over them by torch.vmap"
            )
        self.calls += len(points)
        bad = ~torch.isfinite(value)
        if not bool(bad.any()):
            return value
        if self.non_finite == "raise":
            first = int(torch.nonzero(bad)[0])
            raise NonFiniteError(
                f"integrand: expected finite numbers, got {float(value[first])} at u = {points[first].tolist()} (and "
                f"{int(bad.sum()) - 1} more of {len(points)} points); non_finite='zero' (--non-finite-as-zero) "
                "counts them so"
            )
        self.replaced += int(bad.sum())
        return torch.where(bad, 0.0, value)

    def _values(self, points: Tensor) -> Tensor:
        if self._takes_tensors is None:
            return self._first(points)
        return self._called(points if self._takes_tensors else points.numpy())

    def _first(self, points: Tensor) -> Tensor:
        """Find out which kind of array the function takes."""
        try:
            value, self._takes_tensors = self._called(points), True
        except SimulationError:
            value, self._takes_tensors = self._called(points.numpy()), False
        return value

    def _called(self, points: Any) -> Tensor:
        try:
            with torch.no_grad():
                value = self._function(points)
            return torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).double()
        except Exception as error:
            raise SimulationError(
                f"integrand: it raised {type(error).__name__}: {error}; it was called with points "
                f"{tuple(points.shape)}, one in each row"
            ) from error
