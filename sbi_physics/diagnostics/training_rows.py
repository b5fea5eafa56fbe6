"""Were simulations that are to check a model among those that it learned from?  Such a check flatters the model.

A model keeps checksums of the first rows of its training set; data that hold most of those rows are, or contain, what
it was trained on.
"""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor

__all__ = ["FIRST_ROWS", "first_rows", "holds_first_rows", "warn_if_trained_on"]

FIRST_ROWS = "first_rows"
"""The key of the checksums in the provenance of a model."""

_KEPT = 16
_AT_ONCE = 1 << 12
_log = logging.getLogger(__name__)


def first_rows(theta: Tensor, x: Any) -> list[str]:
    """Checksums of the first rows of a training set: theta ``(N, P)`` and x ``(N, ...)``, or rows on the disk."""
    return _checksums(theta[:_KEPT], x[: min(_KEPT, len(theta))])


def holds_first_rows(provenance: Mapping[str, Any], theta: Any, x: Any) -> bool:
    """Whether most of the rows that a model remembers are among theta ``(N, P)`` and x ``(N, ...)``.

    False where it remembers none, and where x are several named arrays.
    """
    kept = provenance.get(FIRST_ROWS)
    if not kept or isinstance(x, Mapping) or len(theta) != len(x):
        return False
    return 2 * len(set(kept).intersection(_checksums(theta, x))) > len(set(kept))


def warn_if_trained_on(model: Any, theta: Any, x: Any) -> None:
    """Say where a model with a provenance is about to be checked with what it was trained on."""
    provenance = getattr(model, "provenance", None)
    if isinstance(provenance, Mapping) and holds_first_rows(provenance, theta, x):
        _log.warning(
            "these simulations are among those that the model was trained on: the check flatters it; "
            "use fresh ones, simulated with another seed"
        )


def _checksums(theta: Any, x: Any) -> list[str]:
    found: list[str] = []
    for start in range(0, len(theta), _AT_ONCE):
        parts = [as_tensor(values[start : start + _AT_ONCE], "rows") for values in (theta, x)]
        rows = torch.cat([part.detach().cpu().float().reshape(len(part), -1) for part in parts], 1).numpy()
        found += [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]
    return found
