"""A limit on what torch may allocate, for building models that a file describes.

A few digits in the header of a file can ask for a network of terabytes, or of a billion layers.  In `allocating_most`
every new tensor counts towards a budget, before anything is written to it, and the first beyond it is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbi_physics.core.errors import BudgetError

__all__ = ["allocating_most"]

_LEAST_BYTES = 1 << 15
"""What an operation counts at least, so that a loop of small ones ends, too."""


class _Counter(TorchDispatchMode):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it makes: beforehand where it makes a tensor of nothing."""
        kwargs = kwargs or {}
        if any(argument.name == "device" for argument in func._schema.arguments):
            self._count(func(*args, **{**kwargs, "device": "meta", "pin_memory": False}), ())
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        self._count(result, (args, kwargs))
        return result

    def _count(self, made: Any, given: Any) -> None:
        known = {one.untyped_storage().data_ptr() for one in tree_leaves(given) if isinstance(one, Tensor)}
        storages = [one.untyped_storage() for one in tree_leaves(made) if isinstance(one, Tensor)]
        new = sum(one.nbytes() for one in storages if not known or one.data_ptr() not in known)
        self._left -= max(new, _LEAST_BYTES)
        if self._left < 0:
            raise BudgetError("more memory is asked for than a model of this file can need")


@contextmanager
def allocating_most(limit: int) -> Iterator[None]:
    """Let torch allocate `limit` bytes in this block, counting what is freed again.

    Raises:
        BudgetError: more is asked for.
    """
    with _Counter(limit):
        yield
