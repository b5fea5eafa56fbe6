"""An energy model of a ring whose radius is the parameter, against its exact density and a flow.

Claim: with the defaults of `sp.Surrogate("energy")` the Kullback-Leibler divergence of the model from the truth is a
few hundredths of a nat, no more than that of the flow `nsf`, whose map of a disc has to be torn for a ring, and draws
cannot be told from exact ones.  Given theta, uniform in [1, 3], the radius is normal of width 0.2 about theta and the
angle uniform.  In two dimensions a sum over a grid normalises the energy.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

import sbi_physics as sp
from benchmarks.models.answer import Answer, Side, timed
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.energy import EnergyModel

__all__ = ["measure"]

WIDTH, PAIRS, DRAWS = 0.2, 4000, 2000
PRIOR = Parameters.from_prior(td.Independent(td.Uniform(torch.ones(1), torch.full((1,), 3.0)), 1))
RADII = (1.2, 1.6, 2.0, 2.4, 2.8)
EDGE, CELLS = 4.5, 300
MODELS = {"ours, energy": "energy", "ours, flow nsf": "nsf"}


def measure(seed: int) -> Answer:
    """Divergence from the truth at five radii, and C2ST of pairs of theta and a draw, for each model."""
    theta, x = _pairs(PAIRS, derive(seed, "train"))
    fixed, truth = _pairs(DRAWS, derive(seed, "truth"))
    reference = torch.cat([fixed, truth], -1)
    other = torch.cat(_pairs(DRAWS, derive(seed, "other")), -1)
    sides = [Side("exact: other true draws", [0.0, sp.diagnostics.c2st(reference, other)])]
    for name, model in MODELS.items():
        surrogate = sp.Surrogate(model, prior=PRIOR, device="cpu")
        _, seconds = timed(lambda s=surrogate: s.fit(theta, x, seed=seed, progress=False))
        divergence = sum(_divergence(surrogate, radius) for radius in RADII) / len(RADII)
        drawn = torch.cat([fixed, surrogate.sample(fixed, seed=derive(seed, "draws"))], -1)
        sides.append(Side(name, [divergence, sp.diagnostics.c2st(reference, drawn)], seconds))
    return Answer(
        f"energy-based model: a ring whose radius is the parameter, {PAIRS:,} pairs, defaults",
        ["divergence from the truth [nats]", f"C2ST of {DRAWS:,} draws to true ones"],
        sides,
    )


def _pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    with seeded(seed):
        theta, angle, noise = 1 + 2 * torch.rand(n, 1), 2 * math.pi * torch.rand(n), torch.randn(n)
    radius = theta[:, 0] + WIDTH * noise
    return theta, torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def _exact_log_prob(theta: float, x: Tensor) -> Tensor:
    """A negative radius, five widths away, is a point on the other side."""
    radius, law = torch.linalg.vector_norm(x, dim=-1), td.Normal(theta, WIDTH)
    return torch.logaddexp(law.log_prob(radius), law.log_prob(-radius)) - radius.log() - math.log(2 * math.pi)


@torch.no_grad()
def _divergence(surrogate: sp.Surrogate, theta: float) -> float:
    """KL(truth | model) in nats, both normalised on a grid."""
    size = 2 * EDGE / CELLS
    axis = -EDGE + size * (torch.arange(CELLS) + 0.5)
    x = torch.cartesian_prod(axis, axis)
    chain, given = surrogate.chain, torch.full((len(x), 1), theta)
    events, (model,) = chain.preprocessing.encode(given, x, seed=0), chain.stages
    if isinstance(model, EnergyModel):
        log_q = -model.energy(events[0], chain.preprocessing.context(given, []))
    else:
        log_q = chain.log_prob(given, events)
    log_p, log_q = _exact_log_prob(theta, x.double()).log_softmax(0), log_q.double().log_softmax(0)
    return float((log_p.exp() * (log_p - log_q)).sum())
