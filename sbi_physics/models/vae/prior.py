"""What the latent numbers of a variational autoencoder are distributed as, before an event is seen.

``"normal"`` is the standard normal distribution.  ``"flow"`` is a normalizing flow that depends on the context and is
trained with the rest, so that no region of latent space is left from which the decoder never learned to draw (Chen et
al. 2017, arXiv:1611.02731).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.ensemble import from_noise, log_prob
from sbi_physics.models.native.rows import runs_natively
from sbi_physics.models.vae.gaussian import DiagonalGaussian

__all__ = ["PRIORS", "FlowPrior", "LatentPrior", "NormalPrior", "build_prior"]

PRIORS = ("normal", "flow")
_FLOW = "nsf"


class LatentPrior(nn.Module, ABC):
    """A distribution of latent points given a summary ``(n, C)``, ``(1, C)`` or None."""

    @abstractmethod
    def log_prob(self, points: Tensor, summary: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of points ``(n, K)``."""

    @abstractmethod
    def from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        """The points ``(n, K)`` that standard normal noise ``(n, K)`` stands for."""

    @abstractmethod
    def divergence(self, posterior: DiagonalGaussian, points: Tensor, summary: Tensor | None) -> Tensor:
        """Divergence ``(n,)`` of the posterior from this prior, exact or from one point of the posterior each."""


class NormalPrior(LatentPrior):
    """The standard normal distribution, whatever the context."""

    def log_prob(self, points: Tensor, summary: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of points ``(n, K)``."""
        return _standard(points).log_prob(points)

    def from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        """The noise itself."""
        return noise

    def divergence(self, posterior: DiagonalGaussian, points: Tensor, summary: Tensor | None) -> Tensor:
        """The exact divergence ``(n,)``."""
        return posterior.divergence(_standard(points))


class FlowPrior(LatentPrior):
    """A normalizing flow; it starts as the standard normal distribution.

    Args:
        features: K.
        context_features: width of the summary; None for a prior without a context.
        transforms: layers of the flow.
        hidden_features: width of its networks.
        blocks: their residual blocks.
    """

    def __init__(
        self, features: int, context_features: int | None, *, transforms: int, hidden_features: int, blocks: int
    ) -> None:
        super().__init__()
        options = {"transforms": transforms, "hidden_features": hidden_features, "blocks": blocks}
        self.flow = build_flow(_FLOW, features, context_features, **options)

    def log_prob(self, points: Tensor, summary: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of points ``(n, K)``."""
        return log_prob(self.flow, points, summary, engine="eager")

    def from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        """Points ``(n, K)`` through the inverse flow."""
        native = runs_natively(noise) and (summary is None or runs_natively(summary))
        return from_noise(self.flow, noise, summary, engine="auto" if native else "eager")[0]

    def divergence(self, posterior: DiagonalGaussian, points: Tensor, summary: Tensor | None) -> Tensor:
        """An unbiased estimate ``(n,)`` from one point of the posterior for each event."""
        return posterior.log_prob(points) - self.log_prob(points, summary)


def build_prior(
    name: str, features: int, context_features: int | None, *, transforms: int, hidden_features: int, blocks: int
) -> LatentPrior:
    """The prior of this name; the sizes are those of the flow.

    Raises:
        UsageError: there is no such prior.
    """
    known_keys([name], PRIORS, "prior")
    if name == "normal":
        return NormalPrior()
    return FlowPrior(features, context_features, transforms=transforms, hidden_features=hidden_features, blocks=blocks)


def _standard(points: Tensor) -> DiagonalGaussian:
    zero = torch.zeros_like(points)
    return DiagonalGaussian(zero, zero)
