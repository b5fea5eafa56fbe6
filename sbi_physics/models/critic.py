r"""`Critic`: the network that tells real events from generated ones, and what an adversarial model learns from it.

With weights w of the real events (x, c), generated events g of the same contexts, and a critic D there are two games:

* ``"wasserstein"``: the critic maximises $E_w[D(x, c) - D(g, c)]$, whose maximum over functions of slope one is the
  Wasserstein distance, and the generator minimises it (Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875).  The
  slope is held by the penalty $\lambda E(|\nabla D| - 1)^2$ between real and generated events (Gulrajani et al. 2017,
  arXiv:1704.00028) or by spectral normalisation.
* ``"minimax"``: D is the logit of an event being real; the critic minimises the cross-entropy, and the generator
  $-E \ln \sigma(D(g, c))$ (the non-saturating form; Goodfellow et al. 2014, arXiv:1406.2661).

Spectral normalisation divides each weight matrix by its largest singular value, found by power iteration, so that D has
slope one at most (Miyato et al. 2018, arXiv:1802.05957).  With negative weights the Wasserstein game keeps a bound, as
it is linear in D; the cross-entropy has none where few events carry them.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import UsageError

__all__ = ["GAMES", "Critic", "critic_loss", "generator_loss", "gradient_penalty", "penalty_for"]

GAMES = ("wasserstein", "minimax")
_SLOPE = 0.2
# The source takes 10 for images; for a few standardised features that is so stiff that little is learned.
_PENALTY = 0.3


class Critic(nn.Module):
    """A multilayer perceptron from events and summaries to one number.

    Args:
        features: width of the events.
        condition_features: width of the summaries of their contexts; None where there are none.
        hidden_features: width of the hidden layers.
        layers: how many hidden layers.
        spectral: whether to normalise the layers spectrally.
    """

    def __init__(
        self,
        features: int,
        condition_features: int | None = None,
        *,
        hidden_features: int = 128,
        layers: int = 3,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        width = positive_integer(hidden_features, "hidden_features")
        sizes = [features + (condition_features or 0), *[width] * positive_integer(layers, "layers"), 1]
        linear = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(spectral_norm(layer) if spectral else layer for layer in linear)

    def forward(self, events: Tensor, summary: Tensor | None = None) -> Tensor:
        """Scores ``(n,)`` of events ``(n, D)`` with summaries ``(n, C)``."""
        hidden = events if summary is None else torch.cat([events, summary], -1)
        for layer in self.layers[:-1]:
            hidden = F.leaky_relu(layer(hidden), _SLOPE)
        return self.layers[-1](hidden).squeeze(-1)


def penalty_for(loss: str, penalty: float | None, spectral: bool) -> float:
    """The weight of the gradient penalty: as given, or 0.3 in the Wasserstein game without spectral normalisation.

    Raises:
        UsageError: an unknown loss, a negative penalty, or nothing that bounds the slope of a Wasserstein critic.
    """
    known_keys([loss], GAMES, "loss")
    if penalty is None:
        return _PENALTY if loss == "wasserstein" and not spectral else 0.0
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty < float("inf"):
        raise UsageError(f"penalty: expected a finite number of at least 0, or None, got {penalty!r}")
    if loss == "wasserstein" and not penalty and not spectral:
        raise UsageError("penalty: expected a number above 0 where spectral is False: nothing else bounds the critic")
    return float(penalty)


def critic_loss(loss: str, real: Tensor, generated: Tensor, weights: Tensor, generated_weights: Tensor) -> Tensor:
    """What the critic minimises, a scalar, from scores ``(n,)`` and ``(m,)`` and their weights, which sum to one."""
    if loss == "wasserstein":
        return torch.dot(generated_weights, generated) - torch.dot(weights, real)
    return torch.dot(weights, F.softplus(-real)) + torch.dot(generated_weights, F.softplus(generated))


def generator_loss(loss: str, generated: Tensor, weights: Tensor) -> Tensor:
    """What the generator minimises, a scalar, from scores of generated events ``(m,)`` and their weights."""
    return torch.dot(weights, -generated if loss == "wasserstein" else F.softplus(-generated))


def gradient_penalty(
    critic: Callable[..., Tensor], real: Tensor, generated: Tensor, summary: Tensor | None = None
) -> Tensor:
    """Mean of ``(|gradient| - 1)^2`` at a random point between each real event and its generated one, a scalar.

    Args:
        critic: from events ``(n, D)``, and summaries if there are any, to scores ``(n,)``.
        real: ``(n, D)``.
        generated: ``(n, D)``.
        summary: ``(n, C)``, or None.
    """
    share = torch.rand(len(real), 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(generated.detach(), real.detach(), share).requires_grad_()
    scores = critic(between) if summary is None else critic(between, summary.detach())
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1).square().mean()
