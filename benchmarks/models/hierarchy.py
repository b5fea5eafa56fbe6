"""A variational autoencoder of several latent levels, against one level of the same total size and the exact density.

Claim: where the data are clusters of clusters, 16 Gaussians in four groups on a plane in six dimensions, three levels
of two latent numbers have a higher bound on held-out rows than one level of six, whose prior is one Gaussian, and two
levels lie between.  The exact answer is the mean log-density of the mixture; all stay half a nat or more below it.  The
peer, a mixture of Gaussians of scikit-learn of the number of components that does best on rows held out of the
training, knows the family and is ahead of them.
"""

import torch
import torch.distributions as td
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks.models.answer import Answer, Side, timed
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.vae.model import VariationalAutoencoder
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["measure"]

DIMS, GROUPS, ROWS, HELD_OUT, POINTS = 6, 4, 4000, 2000, 100
LEVELS = ((6,), (4, 2), (2, 2, 2))
COMPONENTS = (4, 8, 16, 32)
# As `sp.Surrogate("vae")` trains.
CONFIG = TrainConfig(epochs=60)


def measure(seed: int) -> Answer:
    """Bound and importance-weighted estimate of the mean log-density of held-out rows, for each choice of levels."""
    law = _clusters(derive(seed, "law"))
    with seeded(derive(seed, "rows")):
        rows, new = law.sample((ROWS,)), law.sample((HELD_OUT,))
    exact = float(law.log_prob(new).mean())
    sides = [Side("exact: the density itself", [exact, exact])]
    for latent in LEVELS:
        model, seconds = timed(lambda latent=latent: _fitted(rows, latent, seed))
        estimate = float(model.importance_log_prob(new, n=POINTS, seed=seed).mean())
        name = f"ours, {len(latent)} level{'s'[: len(latent) > 1]} of {', '.join(map(str, latent))}"
        sides.append(Side(name, [_bound(model, new), estimate], seconds))
    peer, seconds = timed(lambda: _mixture(rows, seed))
    found = float(peer.score(new.numpy()))
    sides.append(Side(f"scikit-learn, mixture of {peer.n_components} Gaussians", [found, found], seconds))
    return Answer(
        f"variational autoencoders: clusters of clusters in {DIMS} dimensions, {ROWS:,} rows",
        ["bound on the log-density of a held-out row [nats]", f"estimate from {POINTS} latent points [nats]"],
        sides,
    )


def _clusters(seed: int) -> td.MixtureSameFamily:
    """Four groups of four clusters on a plane, thicker along it than across."""
    with seeded(seed):
        groups, within = 3 * torch.randn(GROUPS, 1, 2), 0.85 * torch.randn(GROUPS, 4, 2)
        plane = torch.randn(DIMS, 2)
    covariance = 0.15**2 * plane @ plane.T + 0.2**2 * torch.eye(DIMS)
    centres = (groups + within).reshape(-1, 2) @ plane.T
    parts = td.MultivariateNormal(centres, covariance.expand(len(centres), DIMS, DIMS))
    return td.MixtureSameFamily(td.Categorical(torch.ones(len(centres))), parts)


def _fitted(rows: Tensor, latent: tuple[int, ...], seed: int) -> VariationalAutoencoder:
    with seeded(derive(seed, "weights")):
        model = VariationalAutoencoder((DIMS,), latent=latent).fit_scaling(rows)
    train(model, model.loss, [model.encode(rows)[0]], config=CONFIG, seed=seed, progress=False)
    return model.eval()


@torch.no_grad()
def _bound(model: VariationalAutoencoder, new: Tensor) -> float:
    encoded, ladj = model.encode(new)
    return float((ladj - model.loss(encoded)).mean())


def _mixture(rows: Tensor, seed: int) -> GaussianMixture:
    split = round(0.9 * len(rows))
    fits = [GaussianMixture(k, random_state=seed % 2**32).fit(rows[:split].numpy()) for k in COMPONENTS]
    return max(fits, key=lambda fit: fit.score(rows[split:].numpy()))
