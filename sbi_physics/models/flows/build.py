"""Named flows: `nsf`, `maf` and `maf-spline`, each an ordinary `nflows.flows.Flow`.

=============  =====================================================================  ==================
name           layers                                                                 strong at
=============  =====================================================================  ==================
``nsf``        spline couplings mixed by LU linear maps                               fast both ways
``maf``        affine masked autoregressive layers in alternating order               fast evaluation
``maf-spline`` spline masked autoregressive layers in alternating order               sharp densities
=============  =====================================================================  ==================
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import CompositeTransform, Transform

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.models.flows.autoregressive import MaskedAffine, MaskedSpline
from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.flows.spline import MIN_BIN

__all__ = ["FLOWS", "build_flow"]

_SHARED: dict[str, Any] = {"transforms": 5, "hidden_features": 64, "blocks": 2}
_SPLINE: dict[str, Any] = {**_SHARED, "bins": 8, "tail_bound": 5.0}


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


FLOWS: dict[str, tuple[Callable[..., list[Transform]], dict[str, Any]]] = {
    "nsf": (_nsf, _SPLINE),
    "maf": (lambda *a: _maf(MaskedAffine, *a), _SHARED),
    "maf-spline": (lambda *a: _maf(MaskedSpline, *a), _SPLINE),
}


def build_flow(name: str, features: int, context_features: int | None = None, **options: Any) -> Flow:
    """Build a flow by name.

    Args:
        name: a key of `FLOWS`.
        features: D.
        context_features: width of the context, or None for an unconditional flow.
        **options: transforms, hidden_features, blocks and, for splines, bins and tail_bound.

    Returns:
        A flow from data ``(n, D)`` to standard-normal noise.

    Raises:
        UsageError: the name or an option is not known.
    """
    known_keys([name], list(FLOWS), "model")
    make, defaults = FLOWS[name]
    known_keys(list(options), list(defaults), f"option of the flow {name!r}")
    merged = {**defaults, **options}
    for key in ("transforms", "hidden_features", "blocks", *(["bins"] if "bins" in merged else [])):
        positive_integer(merged[key], key)
    if "bins" in merged and merged["bins"] * MIN_BIN >= 1:
        raise UsageError(f"bins: expected fewer than {1 / MIN_BIN:g}, got {merged['bins']}")
    if "tail_bound" in merged and not 0 < merged["tail_bound"] < math.inf:
        raise UsageError(f"tail_bound: expected a finite number above 0, got {merged['tail_bound']!r}")
    layers = make(positive_integer(features, "features"), context_features, merged)
    return Flow(CompositeTransform(layers), StandardNormal([features]))
