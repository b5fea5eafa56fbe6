"""More simulations for a posterior network, from a likelihood that was learned from those there are.

The noise of a simulator is often simpler than the posterior that follows from it: from the same few thousand
simulations a network learns p(x | theta) better than p(theta | x).  Draws of the learned likelihood at fresh theta are
then worth having beside the real simulations when the posterior network is trained (the two networks of SNPLA: Wiqvist,
Frellsen and Picchini 2021, arXiv:2102.06522).  Where the likelihood is hard to learn such draws do harm; real
simulations that neither network has seen decide.

Where one observation alone matters, draws near it are worth most.  To choose draws by their x leaves p(theta | x) as it
is, so that many can be made and only the nearest be kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.posterior.nle import NLE
from sbi_physics.train.config import TrainConfig

__all__ = ["Distance", "Proposal", "Synthetic", "nearest", "synthetic_pairs", "worth_trying"]

Proposal = Callable[[int, int], Tensor]
"""Called with a number and a seed: draws ``(n, P)`` of what theta of the simulations were drawn from."""

Distance = Callable[[Tensor], Tensor]
"""Of observations ``(n, *x_shape)`` from the one that matters: ``(n,)``."""

_MOST_OBSERVABLES = 20
_MOST_SIMULATIONS = 20_000
_DRAWS_EACH = 5
_COPIES = 20
_SHARE_OF_EPOCHS = 0.6


@dataclass(frozen=True)
class Synthetic:
    """Synthetic simulations, and how to train on them together with the real ones.

    Attributes:
        theta: ``(M, P)``.
        x: ``(M, *x_shape)``.
        config: settings of the training.
    """

    theta: Tensor
    x: Tensor
    config: TrainConfig


def worth_trying(x: Tensor) -> bool:
    """Whether the observables ``(N, *x_shape)`` are few enough, and the simulations not too many, to learn a density.

    With tens of thousands of simulations the posterior network needs no help.
    """
    varies, _ = LearnedLikelihood.kinds(x)
    return 0 < int(varies.sum()) <= _MOST_OBSERVABLES and len(x) <= _MOST_SIMULATIONS


def synthetic_pairs(
    parameters: Parameters,
    theta: Tensor,
    x: Tensor,
    proposal: Proposal | None,
    distance: Distance | None = None,
    *,
    config: TrainConfig,
    device: torch.device,
    seed: int,
    progress: bool,
) -> Synthetic:
    """Learn the likelihood of pairs and draw from it, five draws for each pair.

    Args:
        parameters: the prior.
        theta: ``(N, P)``.
        x: ``(N, *x_shape)``.
        proposal: what theta was drawn from; None for the prior.
        distance: of x from the one observation that matters; then twenty times as many are drawn, and the nearest kept.
        config: settings of the training of a posterior on real simulations.
        device: where to train.
        seed: of the training and the draws.
        progress: whether to show a progress bar.
    """
    # The trend is known from the start, and the rest is learned in fewer epochs than a posterior.
    shorter = TrainConfig(**{**config.__dict__, "epochs": math.ceil(_SHARE_OF_EPOCHS * config.epochs)})
    nle = NLE(parameters, device=device, config=shorter)
    fitted = nle.fit(theta, x, seed=derive(seed, "likelihood"), progress=progress)
    likelihood = cast(LearnedLikelihood, fitted.likelihood)
    n = _DRAWS_EACH * len(theta)
    points = (
        parameters.sample(n, seed=derive(seed, "theta")) if proposal is None else proposal(n, derive(seed, "theta"))
    )
    if distance is not None:
        points = points.repeat(_COPIES, 1)
    drawn = likelihood.sample(1, points.to(device), seed=derive(seed, "x"))[0].cpu()
    good = torch.isfinite(drawn.flatten(1)).all(1)
    points, drawn = points[good].cpu(), drawn[good]
    if distance is not None:
        rows = nearest(distance(drawn), min(n, len(drawn)))
        points, drawn = points[rows], drawn[rows]
    # The epochs of one fit are about twice those steps: many more events are seen, and each a few times.
    epochs = max(1, math.ceil(2.4 * config.epochs / (_DRAWS_EACH + 1)))
    settings = {**config.__dict__, "epochs": epochs}
    return Synthetic(points, drawn, TrainConfig(**settings))


def nearest(distances: Tensor, n: int) -> Tensor:
    """The numbers of the n smallest distances, in their order."""
    return distances.topk(n, largest=False).indices.sort().values
