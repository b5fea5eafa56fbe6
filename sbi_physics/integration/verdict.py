"""Whether an integral can be trusted: what its rounds say of themselves, in words."""

import math
from collections.abc import Sequence

import torch
from scipy.stats import chi2 as chi2_distribution
from torch import Tensor

from sbi_physics.diagnostics.weights import pareto_k
from sbi_physics.integration.channels import GridChannel, Mixture
from sbi_physics.integration.estimate import Combination
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.neural import FlowMap

__all__ = ["edge_mass", "objections", "sentence", "weight_tail"]

_LEAST_P = 1e-4
_MOST_PARETO_K = 0.7
_STEADY = 0.99
_MOST_OF_ONE = 0.05
_LEAST_ESS = 100.0
# A thousand times what lies as near to an upper face by volume: bounded functions have no more there.
_LEAST_EDGE = 1e-9
_FACES = (("a lower", 1e-140), ("an upper", 1 - 2.0**-40))


def objections(
    combination: Combination,
    weights: Tensor,
    mixture: Mixture,
    *,
    wanted: float | None,
    replaced: int = 0,
    calls: int = 0,
) -> list[str]:
    """Reasons not to trust an integral; an empty list where there are none.

    Args:
        combination: value, error and chi2.
        weights: what the points of the rounds that count add to the value, ``(n,)``.
        mixture: of the last round.
        wanted: absolute error that was asked for; None for none.
        replaced: values that were not finite, and count as zero.
        calls: evaluations in all.
    """
    found = []
    effective, shape = weight_tail(weights)
    if wanted is not None and combination.error > wanted:
        found.append(
            f"the error is {combination.error:.2g} and {wanted:.2g} was asked for: the budget of calls or seconds ended"
        )
    p_value = float(chi2_distribution.sf(combination.chi2, combination.degrees)) if combination.degrees else 1.0
    if p_value < _LEAST_P:
        found.append(
            f"the rounds do not agree: chi2 {combination.chi2:.1f} for {combination.degrees} degrees of freedom"
        )
    if effective < _LEAST_ESS:
        found.append(f"only {effective:.0f} points count, by the effective sample size; {_LEAST_ESS:g} are needed")
    steady = effective > _STEADY * len(weights)
    if shape > _MOST_PARETO_K and not steady:
        found.append(f"the weights have a heavy tail: Pareto k = {shape:.2f}, at most {_MOST_PARETO_K:g} is acceptable")
    largest = float(weights.abs().max() / weights.abs().sum())
    if largest > _MOST_OF_ONE:
        found.append(f"a single point makes {largest:.0%} of the value")
    relative = max(combination.error / abs(combination.value), _LEAST_EDGE) if combination.value else math.inf
    for (face, place), edge in zip(_FACES, edge_mass(mixture), strict=True):
        if edge > relative:
            found.append(
                f"{edge:.1g} of it lies within {min(place, 1 - place):.0e} of {face} face of the cube, where numbers "
                "are too coarse: it is infinite, or its singularity should be put at 0"
            )
    if replaced:
        found.append(f"{replaced} of {calls} values were not finite and count as zero")
    return found


def weight_tail(weights: Tensor) -> tuple[float, float]:
    """The effective number of weights ``(n,)``, and the Pareto k of their sizes; minus infinity where there is none."""
    sizes = weights.abs()
    sizes = sizes[sizes > 0]
    if len(sizes) < 2:
        return float(len(sizes)), -math.inf
    effective = float(sizes.sum()) ** 2 / float(sizes.square().sum())
    return effective, float(pareto_k(sizes.log()))


def edge_mass(mixture: Mixture) -> tuple[float, ...]:
    """The largest probabilities that a grid gives to what lies next to a lower and to an upper face."""
    return tuple(max((_beyond(each, place) for each in mixture.maps), default=0.0) for _, place in _FACES)


def _beyond(channel: object, place: float) -> float:
    inner = channel.grid if isinstance(channel, FlowMap) else channel
    grid = inner.grid if isinstance(inner, GridChannel) and inner.channel is None else inner
    if not isinstance(grid, ProductGrid):
        return 0.0
    below = grid.to_v(torch.full((1, grid.dims), place, dtype=torch.float64))[0]
    return float((below if place < 0.5 else 1 - below).max())


def sentence(reasons: Sequence[str]) -> str:
    """The verdict in words."""
    return "trusted" if not reasons else "not trusted: " + "; ".join(reasons)
