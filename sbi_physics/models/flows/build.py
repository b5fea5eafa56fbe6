"""Named flows: `nsf`, `maf`, `maf-spline` and `nsf-box`, each an ordinary `nflows.flows.Flow`.

==============  =====================================================================  ==================
name            layers                                                                 strong at
==============  =====================================================================  ==================
``nsf``         spline couplings mixed by LU linear maps                               fast both ways
``maf``         affine masked autoregressive layers in alternating order               fast evaluation
``maf-spline``  spline masked autoregressive layers in alternating order               sharp densities
``nsf-box``     spline couplings on [-1, 1]^D with a uniform base, nothing leaves it   angles
==============  =====================================================================  ==================

In `nsf-box` no linear map may mix the dimensions.  Its first layer moves each of them by the context alone; in the
pairs of layers after it the halves that move are told apart by one binary digit of the number of the dimension after
the other, so that after 2 ceil(log2 D) layers any two dimensions have seen one another (Gao, Isaacson and Krause 2020,
arXiv:2001.05486).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import CompositeTransform, Transform

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.models.flows.autoregressive import MaskedAffine, MaskedSpline
from sbi_physics.models.flows.box import BoxCoupling, UniformBox
from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.flows.spline import MIN_BIN

__all__ = ["BOX", "FLOWS", "build_flow", "flow_options"]

BOX = "nsf-box"

_SHARED: dict[str, Any] = {"transforms": 5, "hidden_features": 64, "blocks": 2}
_SPLINE: dict[str, Any] = {**_SHARED, "bins": 8, "tail_bound": 5.0}
_BOX: dict[str, Any] = {**_SHARED, "bins": 4, "circular": ()}


def _nsf(features: int, context: int | None, options: dict[str, Any]) -> list[Transform]:
    layers: list[Transform] = []
    for _ in range(options.pop("transforms")):
        if features > 1:
            layers += [Permutation(torch.arange(features).roll(features // 2)), LULinear(features)]
        layers.append(SplineCoupling(features, context, **options))
    return layers


def _maf(
    layer: Callable[..., Transform], features: int, context: int | None, options: dict[str, Any]
) -> list[Transform]:
    layers: list[Transform] = []
    for i in range(options.pop("transforms")):
        if i:
            layers.append(Permutation(torch.arange(features - 1, -1, -1)))
        layers.append(layer(features, context, **options))
    return layers


def _nsf_box(features: int, context: int | None, options: dict[str, Any]) -> list[Transform]:
    moved = _moved(features, options.pop("transforms"))
    return [BoxCoupling(features, context, moved=each, **options) for each in moved]


def _moved(features: int, transforms: int) -> list[list[int]]:
    """The dimensions that move in each layer."""
    everything = list(range(features))
    if features == 1:
        return [everything] * transforms
    digits = (features - 1).bit_length()
    halves = [[j for j in everything if j >> digit & 1 == value] for digit in range(digits) for value in (1, 0)]
    return [everything, *(halves[i % len(halves)] for i in range(transforms))]


FLOWS: dict[str, tuple[Callable[..., list[Transform]], dict[str, Any]]] = {
    "nsf": (_nsf, _SPLINE),
    "maf": (lambda *a: _maf(MaskedAffine, *a), _SHARED),
    "maf-spline": (lambda *a: _maf(MaskedSpline, *a), _SPLINE),
    "nsf-box": (_nsf_box, _BOX),
}


def flow_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a flow: those given, and the defaults of the others.

    Raises:
        UsageError: the name or an option is not known, or a value makes no flow.
    """
    known_keys([name], list(FLOWS), "model")
    defaults = FLOWS[name][1]
    known_keys(list(options), list(defaults), f"option of the flow {name!r}")
    merged = {**defaults, **options}
    for key in ("transforms", "hidden_features", "blocks", *(["bins"] if "bins" in merged else [])):
        positive_integer(merged[key], key)
    if "bins" in merged and merged["bins"] * MIN_BIN >= 1:
        raise UsageError(f"bins: expected fewer than {1 / MIN_BIN:g}, got {merged['bins']}")
    if "tail_bound" in merged and not 0 < merged["tail_bound"] < math.inf:
        raise UsageError(f"tail_bound: expected a finite number above 0, got {merged['tail_bound']!r}")
    return merged


def build_flow(name: str, features: int, context_features: int | None = None, **options: Any) -> Flow:
    """Build a flow by name.

    Args:
        name: a key of `FLOWS`.
        features: D.
        context_features: width of the context, or None for an unconditional flow.
        **options: transforms, hidden_features, blocks and, for splines, bins and tail_bound; for `nsf-box` bins and
            circular, the indices of the dimensions that are circles.

    Returns:
        A flow from data ``(n, D)`` to standard-normal noise; `nsf-box` from data in [-1, 1]^D to uniform noise.

    Raises:
        UsageError: the name or an option is not known.
    """
    merged = flow_options(name, options)
    make, _ = FLOWS[name]
    if "circular" in merged:
        _check_indices(merged["circular"], features)
    layers = make(positive_integer(features, "features"), context_features, merged)
    base = UniformBox(features) if name == BOX else StandardNormal([features])
    return Flow(CompositeTransform(layers), base)


def _check_indices(circular: Sequence[int], features: int) -> None:
    whole = isinstance(circular, list | tuple) and all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < features for i in circular
    )
    if not whole or len(set(circular)) < len(circular):
        raise UsageError(f"circular: expected distinct indices from 0 to {features - 1}, got {circular!r}")
