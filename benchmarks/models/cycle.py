"""A cycle-consistent GAN between two unpaired samples, against the monotone map that connects them.

Claim: with its default networks the translation is nearer to the true map than the linear map that matches mean and
covariance, and nearer than optimal transport between 2,000 events of each sample.  The fast events are pairs of
exponential numbers; the full ones are T(x) = x + W^T a tanh(b (W x - 1/2)) / 2 + c of others, the gradient of a convex
function and therefore the map of least squared change (Brenier 1991, doi:10.1002/cpa.3160440402).  The errors are root
mean squares over new events, over the root mean square of the change that T makes.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.models.answer import Answer, Side, timed
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.cycle_gan import CycleGAN
from sbi_physics.train.adversarial_config import AdversarialConfig
from sbi_physics.train.translation import train_translation

__all__ = ["measure"]

EVENTS, NEW, ASSIGNED, NEIGHBOURS = 5000, 2000, 2000, 5
DIRECTIONS = torch.tensor([[1.0, 0.5], [-0.6, 1.0]])
STRENGTHS, SHIFT = torch.tensor([1.0, 0.6]), torch.tensor([0.3, -0.5])
STEEPNESS = 2.0
CONFIG = AdversarialConfig(epochs=30)


def measure(seed: int) -> Answer:
    """Errors of the maps forth and back, for each way to find them."""
    fast, full = _fast(EVENTS, derive(seed, "fast")), _true_map(_fast(EVENTS, derive(seed, "full")))
    new = _fast(NEW, derive(seed, "new"))
    target = _true_map(new)
    change = _root_mean_square(target - new)

    def side(name: str, there: Tensor, back: Tensor, seconds: float | None = None) -> Side:
        errors = [_root_mean_square(there - target) / change, _root_mean_square(back - new) / change]
        return Side(name, [*errors], seconds)

    model, seconds = timed(lambda: _trained(fast, full, seed))
    sides = [
        side("exact: the map itself", target, new),
        side("ours, cycle-consistent GAN", model.translate(new), model.translate_back(target), seconds),
    ]
    moved, seconds = timed(lambda: (_linear(fast, full, new), _linear(full, fast, target)))
    sides.append(side("linear, of mean and covariance", *moved, seconds))
    moved, seconds = timed(lambda: _transport(fast, full, new, target))
    sides.append(side(f"SciPy, optimal transport of {ASSIGNED:,} events", *moved, seconds))
    return Answer(
        f"cycle-consistent GAN: two samples of {EVENTS:,} events that a monotone map connects, no pairs",
        ["error of the map over the change it makes", "error of the map back"],
        sides,
    )


def _fast(n: int, seed: int) -> Tensor:
    with seeded(seed):
        return -torch.log1p(-torch.rand(n, 2))


def _true_map(x: Tensor) -> Tensor:
    return x + 0.5 * (STRENGTHS * torch.tanh(STEEPNESS * (x @ DIRECTIONS.T - 0.5))) @ DIRECTIONS + SHIFT


def _root_mean_square(difference: Tensor) -> float:
    return float(difference.square().sum(-1).mean().sqrt())


def _trained(fast: Tensor, full: Tensor, seed: int) -> CycleGAN:
    with seeded(derive(seed, "weights")):
        model = CycleGAN((2,)).fit_scaling(fast, full)
    encoded = [model.encode(fast)], [model.encode(full)]
    train_translation(model, *encoded, config=CONFIG, seed=seed, progress=False)
    return model


def _linear(source: Tensor, target: Tensor, x: Tensor) -> Tensor:
    """The optimal map between Gaussians of the moments of the samples (Dowson and Landau 1982)."""
    root = _power(torch.cov(source.T), 0.5)
    inverse = _power(torch.cov(source.T), -0.5)
    matrix = inverse @ _power(root @ torch.cov(target.T) @ root, 0.5) @ inverse
    return (x - source.mean(0)) @ matrix + target.mean(0)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def _transport(fast: Tensor, full: Tensor, new: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Pair the events of both samples at least squared cost; a new one moves as its neighbours do, on average."""
    fast, full = fast[:ASSIGNED], full[:ASSIGNED]
    _, partner = linear_sum_assignment(torch.cdist(fast.double(), full.double()).square().numpy())
    full = full[torch.as_tensor(partner)]
    shift = full - fast
    there = new + shift[torch.cdist(new, fast).topk(NEIGHBOURS, largest=False).indices].mean(1)
    back = target - shift[torch.cdist(target, full).topk(NEIGHBOURS, largest=False).indices].mean(1)
    return there, back
