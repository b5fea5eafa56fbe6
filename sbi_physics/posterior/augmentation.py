"""More simulations for a posterior network, from a likelihood that was learned from those there are.

The noise of a simulator is often simpler than the posterior that follows from it: from the same few thousand
simulations a network learns p(x | theta) better than p(theta | x).  Draws of the learned likelihood at fresh theta are
then worth having beside the real simulations when the posterior network is trained (the two networks of SNPLA: Wiqvist,
Frellsen and Picchini 2021, arXiv:2102.06522).  Where the likelihood is hard to learn such draws do harm; real
simulations that neither network has seen decide.

Where one observation alone matters, the learned likelihood gives its posterior at once, and draws of that are all that
a network needs to see.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.trend import Trend
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.posterior.nle import NLE
from sbi_physics.train.config import TrainConfig

__all__ = ["MOST_OBSERVABLES", "Synthetic", "held_out_score", "learn_likelihood", "synthetic_pairs", "worth_trying"]

MOST_OBSERVABLES = 20
_MOST_SIMULATIONS = 20_000
_DRAWS_EACH = 5
# Of the epochs of a posterior: for its likelihood, and for the posterior itself over that many more events, where the
# likelihood is more than a trend with noise on it, and where it is not.
_LIKELIHOOD_EPOCHS = (0.6, 0.3)
_POSTERIOR_EPOCHS = (0.4, 0.24)
_PARTICLES = 200


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
    return 0 < int(varies.sum()) <= MOST_OBSERVABLES and len(x) <= _MOST_SIMULATIONS


def synthetic_pairs(
    parameters: Parameters,
    theta: Tensor,
    x: Tensor,
    *,
    config: TrainConfig,
    device: torch.device,
    seed: int,
    progress: bool,
) -> Synthetic:
    """Learn the likelihood of pairs and draw from it, five draws for each pair.

    Args:
        parameters: the prior.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)``.
        config: settings of the training of a posterior on real simulations.
        device: where to train.
        seed: of the training and the draws.
        progress: whether to show a progress bar.
    """
    fitted = learn_likelihood(
        parameters, theta, x, config=config, device=device, seed=derive(seed, "likelihood"), progress=progress
    )
    likelihood = cast(LearnedLikelihood, fitted.likelihood)
    n = _DRAWS_EACH * len(theta)
    points = parameters.sample(n, seed=derive(seed, "theta"))
    drawn = likelihood.sample(1, points.to(device), seed=derive(seed, "x"))[0].cpu()
    good = torch.isfinite(drawn.flatten(1)).all(1)
    simple = _is_simple(parameters, theta, x)
    return Synthetic(points[good].cpu(), drawn[good], _shortened(config, _POSTERIOR_EPOCHS[simple]))


def learn_likelihood(
    parameters: Parameters,
    theta: Tensor,
    x: Tensor,
    *,
    config: TrainConfig,
    device: torch.device,
    seed: int,
    progress: bool,
) -> LikelihoodPosterior:
    """Fit NLE to pairs; the arguments are those of `synthetic_pairs`."""
    shorter = _shortened(config, _LIKELIHOOD_EPOCHS[_is_simple(parameters, theta, x)])
    return NLE(parameters, device=device, config=shorter).fit(theta, x, seed=seed, progress=progress)


def _is_simple(parameters: Parameters, theta: Tensor, x: Tensor) -> bool:
    """Whether theta does no more than move x along a linear trend: little is left to learn."""
    varies, _ = LearnedLikelihood.kinds(x)
    events = x.flatten(1)[:, varies]
    return Trend(parameters.bounds, events.shape[-1]).fit(theta, events).is_all(theta, events)


def _shortened(config: TrainConfig, share: float) -> TrainConfig:
    return replace(config, epochs=math.ceil(share * config.epochs))


@torch.no_grad()
def held_out_score(learned: LikelihoodPosterior, theta: Tensor, x: Tensor, *, seed: int) -> float:
    """Mean log-density in nats of theta ``(m, P)`` given x ``(m, *x_shape)``, by prior, likelihood and evidence."""
    samples = learned.with_sampler(particles=_particles(theta)).sample(_PARTICLES, x, seed=seed)
    log_evidence = torch.tensor(samples.diagnostics["log_evidence"], dtype=torch.float64)
    return float((learned.log_prob(theta, x).double().cpu() - log_evidence).mean())


def _particles(theta: Tensor) -> int:
    return max(_PARTICLES, 20 * theta.shape[-1])
