r"""How near generated events are to real ones, in three numbers that cost little enough to watch while training.

* `kernel_distance`: the squared maximum mean discrepancy $\mathrm{MMD}^2 = |E_p\,\phi - E_q\,\phi|^2$ (Gretton et al.
  2012, JMLR 13, 723; arXiv:0805.2368), here with a sum of Gaussian kernels about the median distance of real events.
* `neighbour_coverage`: the share of real events with a generated one among their k nearest neighbours (Naeem et al.
  2020, arXiv:2002.09797).  For generated events from the same distribution about $1 - 2^{-k}$ is expected.
* `spread_ratio`: given one context, how far generated events are from their mean, over how far the real one is from it.
  One for draws of the right width, zero for a generator that gives the same event each time.  As the spread-skill ratio
  it is known from ensembles of weather forecasts (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).
"""

import torch
from torch import Tensor

from sbi_physics.core.checks import batch_of, positive_integer
from sbi_physics.core.errors import ShapeError

__all__ = ["kernel_distance", "neighbour_coverage", "spread_ratio"]


def kernel_distance(
    real: Tensor, generated: Tensor, weights: Tensor | None = None, generated_weights: Tensor | None = None
) -> float:
    """Squared maximum mean discrepancy between two sets of events; at least zero, and zero for equal sets.

    For independent sets of n and m equally weighted events from one distribution it is about ``2 (1/n + 1/m)``.

    Args:
        real: ``(n, D)``; they set the width of the kernels.
        generated: ``(m, D)``.
        weights: of the real events ``(n,)``, with a positive sum; negative ones may be among them.
        generated_weights: likewise ``(m,)``.

    Raises:
        ShapeError: the shapes do not fit.
    """
    _same_width(real, generated)
    squares = [torch.cdist(a, b).square() for a, b in ((real, real), (real, generated), (generated, generated))]
    apart = ~torch.eye(len(real), dtype=torch.bool, device=real.device)
    scale = squares[0][apart].median().clamp(min=torch.finfo(real.dtype).tiny)
    within, between, other = (_kernel(square / scale) for square in squares)
    v, w = _normalised(weights, real).to(real), _normalised(generated_weights, generated).to(real)
    return float((v @ within @ v - 2 * v @ between @ w + w @ other @ w).clamp(min=0.0))


def neighbour_coverage(real: Tensor, generated: Tensor, *, neighbours: int = 5, weights: Tensor | None = None) -> float:
    """The share of real events that have a generated event nearer than their k-th nearest real neighbour.

    Args:
        real: ``(n, D)``, n above k.
        generated: ``(m, D)``.
        neighbours: k.
        weights: of the real events ``(n,)``; negative ones count as zero.

    Raises:
        ShapeError: the shapes do not fit, or there are too few real events.
    """
    _same_width(real, generated)
    batch_of(real, real.shape[1:], "real", minimum=positive_integer(neighbours, "neighbours") + 1)
    # The nearest of all is the event itself.
    radius = torch.cdist(real, real).kthvalue(neighbours + 1, dim=1).values
    covered = (torch.cdist(real, generated).min(dim=1).values <= radius).double()
    share = torch.ones_like(covered) if weights is None else weights.double().clamp(min=0.0)
    return float((share * covered).sum() / share.sum())


def spread_ratio(real: Tensor, draws: Tensor, weights: Tensor | None = None) -> Tensor:
    """Width of generated events over that of real ones about the generated mean: ``(D,)``.

    Args:
        real: ``(n, D)``.
        draws: ``(K, n, D)``, K generated events with the context of each real one, K of at least 2.
        weights: of the real events ``(n,)``, with a positive sum.

    Raises:
        ShapeError: the shapes do not fit.
    """
    if draws.ndim != 3 or len(draws) < 2 or draws.shape[1:] != real.shape:
        raise ShapeError(f"draws: expected shape (K, {', '.join(map(str, real.shape))}), got {tuple(draws.shape)}")
    draws, count = draws.double(), len(draws)
    share = _normalised(weights, real).unsqueeze(-1)
    spread = (share * draws.var(0)).sum(0)
    error = (share * (real.double() - draws.mean(0)).square()).sum(0) / (1 + 1 / count)
    tiny = torch.finfo(torch.float64).tiny
    return (spread.clamp(min=0.0) / error.clamp(min=tiny)).sqrt()


def _kernel(squares: Tensor) -> Tensor:
    """Four Gaussians of squared distances in units of the median: a few scales, none of which has to be right.

    Their variances are 4, 1, 1/4 and 1/16, each of them the fourth power of the one before.
    """
    power = torch.exp(-squares / 8)
    total = power.clone()
    for _ in range(3):
        power = power.square().square()
        total += power
    return total


def _normalised(weights: Tensor | None, events: Tensor) -> Tensor:
    if weights is None:
        return torch.full((len(events),), 1 / len(events), dtype=torch.float64, device=events.device)
    return weights.double() / weights.double().sum()


def _same_width(real: Tensor, generated: Tensor) -> None:
    for name, events in (("real", real), ("generated", generated)):
        if events.ndim != 2 or len(events) < 2 or events.shape[1:] != real.shape[1:]:
            raise ShapeError(
                f"{name}: expected shape (n, {', '.join(map(str, real.shape[1:]))}), got {tuple(events.shape)}"
            )
