"""How an observation is read: one, several of one theta, or a batch of separate ones (see `Posterior.sample`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.validity import valid_rows
from sbi_physics.train.encoding import EncoderChoice, accepts_missing, packing_of

__all__ = ["Observation", "read_observation"]

_REPAIR = (
    "fill in missing data as was done in the simulations, or train on simulations that miss data as well with an "
    "encoder that takes NaN for missing (embedding='gru', 'deep-set', ...)"
)


@dataclass(frozen=True)
class Observation:
    """Observations ``(k, *x_shape)``.

    Attributes:
        x: the observations.
        batched: whether each is one of its own, and the result has an axis for them; else all are of one theta.
    """

    x: Tensor
    batched: bool


def read_observation(
    x_obs: Any,
    x_shape: tuple[int, ...],
    *,
    iid: bool,
    device: torch.device,
    joined: bool = False,
    encoder: EncoderChoice = None,
) -> Observation:
    """Check x_obs: ``x_shape`` or ``(1, *x_shape)`` is one observation, ``(k, *x_shape)`` is k.

    Args:
        x_obs: as the user hands it in.
        x_shape: the shape of one observation.
        iid: whether several are independent observations of one theta.
        device: where the result is to live.
        joined: whether such can be joined, as likelihoods can.
        encoder: what the observations go through: it packs named ones, and may take NaN for missing entries.

    Raises:
        ShapeError: another shape, or several iid observations, which a posterior network of fixed input cannot join.
        NonFiniteError: NaN or infinity.
        UsageError: there is none.
    """
    shape = tuple(x_shape)
    if x_obs is None:
        raise UsageError(f"x_obs: expected an observation of shape {shape}, got None")
    packing = packing_of(encoder)
    if packing is not None and isinstance(x_obs, Mapping):
        x_obs = packing.pack(x_obs)
    x = as_tensor(x_obs, "x_obs")
    if shape == (1,) and x.ndim < 2:  # single numbers need no axis of their own, as in training
        x = x.reshape(-1, 1)
    if tuple(x.shape) == shape:
        x = x.unsqueeze(0)
    elif not (x.ndim == len(shape) + 1 and tuple(x.shape[1:]) == shape and len(x)):
        several = ", ".join(map(str, shape))
        columns = x.ndim == len(shape) + 1 and tuple(x.shape[:-1]) == shape
        hint = f"; give the one of its {x.shape[-1]} columns that simulations are like" if columns else ""
        raise ShapeError(
            f"x_obs: expected shape {shape} as in training, or (m, {several}) for m observations, got "
            f"{tuple(x.shape)}{hint}"
        )
    if not (accepts_missing(encoder) and bool(valid_rows(x, missing=True).all())):
        finite(x, "x_obs", _REPAIR)
    if iid and len(x) > 1 and not joined:
        raise ShapeError(
            f"x_obs: {len(x)} independent observations of one theta cannot be joined by a posterior network trained on "
            "single ones; train on sets of that size, or learn the likelihood (NLE, NRE)"
        )
    return Observation(x.to(device), batched=len(x) > 1 and not iid)
