"""`repeat`: the same step many times, which an exported model holds once, as a loop."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["repeat"]


def repeat(step: Callable[[Tensor, Tensor], Tensor], state: Tensor, numbers: Tensor) -> Tensor:
    """The state after all steps.

    Args:
        step: from a state ``(n, D)`` and one of the numbers to the next state.
        state: the first one.
        numbers: ``(steps, *)``, one row for each step.
    """
    if torch.compiler.is_compiling():
        return _scan(step, state, numbers)
    for number in numbers:
        state = step(state, number)
    return state


def _scan(step: Callable[[Tensor, Tensor], Tensor], state: Tensor, numbers: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    # A scan wants something to collect from each step.
    return scan(lambda before, number: (step(before, number), number.new_zeros(1)), state, numbers)[0]
