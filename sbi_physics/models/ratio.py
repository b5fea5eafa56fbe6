r"""`RatioEstimator`: the likelihood-to-evidence ratio r(theta, x) = p(x | theta) / p(x), learned by classification.

Given x, which of K candidates was its theta, or none of them?  With $h = \ln r$ the probabilities are

$$ q(k) = \frac{e^{h_k}}{K + \sum_j e^{h_j}}, \qquad q(\mathrm{none}) = \frac{K}{K + \sum_j e^{h_j}}, $$

and the cross-entropy over both cases has its minimum at the ratio itself, without an unknown factor that depends on x
(NRE-C with gamma = 1: Miller, Weniger and Forre 2022, arXiv:2210.06170; K = 1 is the binary classification of Hermans,
Begy and Louppe 2020, arXiv:1903.04057).  The candidates that did not make x are the theta of other events of the batch:
each event comes once with K - 1 of them beside its own, and once with K of them.

The balance condition $E_{joint}\,\sigma(h) + E_{marginal}\,\sigma(h) = 1$ holds for the ratio; a penalty on it makes
posteriors of badly trained ratios wide rather than narrow (Delaunoy et al. 2022, arXiv:2208.13624).
"""

import math

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import ShapeError
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.likelihood import repetitions
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import ParameterScaling

__all__ = ["RatioEstimator"]

_ROWS_AT_ONCE = 1 << 15


class RatioEstimator(nn.Module):
    """A classifier that knows pairs (theta, x) of the joint distribution from shuffled ones.

    Args:
        bounds: ``(P, 2)`` of the parameters.
        x_shape: the shape of one observation.
        embedding: a module from observations ``(n, *x_shape)`` to features ``(n, C)``; None flattens.
        width: C.
        candidates: K.
        balance: weight of the penalty on the balance condition; 0 for none, 100 in the source.
        hidden_features: width of the classifier.
        blocks: its residual blocks.
    """

    def __init__(
        self,
        bounds: Tensor,
        x_shape: tuple[int, ...],
        embedding: nn.Module | None = None,
        width: int | None = None,
        *,
        candidates: int = 10,
        balance: float = 0.0,
        hidden_features: int = 96,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.x_shape, self.candidates, self.balance = torch.Size(x_shape), candidates, balance
        self.theta_scaling = ParameterScaling(bounds)
        self.x_scaling = context_scaling_for(self.x_shape, embedding)
        self.embedding = embedding if embedding is not None else nn.Flatten()
        features = self.x_shape.numel() if width is None else width
        self.classifier = ResidualNetwork(len(bounds) + features, 1, hidden_features=hidden_features, blocks=blocks)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.theta_scaling.origin.device

    def fit_scaling(self, theta: Tensor, x: Tensor) -> "RatioEstimator":
        """Learn the scalings from theta ``(n, P)`` and x ``(n, *x_shape)``."""
        self.theta_scaling.fit(theta)
        self.x_scaling.fit(x)
        return self

    def loss(self, theta: Tensor, x: Tensor) -> Tensor:
        """What training minimises, for each event ``(n,)``, of *scaled* theta ``(n, P)`` and x ``(n, *x_shape)``."""
        summary = self.embedding(x)
        k = min(self.candidates, len(theta) - 1)
        # Row i meets its own theta and those of the events before it; batches are shuffled already.
        each = torch.stack([theta.roll(shift, 0) for shift in range(k + 1)])
        logits = self._ratio(each, summary.expand(k + 1, *summary.shape))
        none = logits.new_full((1, len(theta)), math.log(k))
        joint = torch.logsumexp(torch.cat([logits[:k], none]), 0) - logits[0]
        marginal = torch.logsumexp(torch.cat([logits[1:], none]), 0) - none[0]
        loss = joint + marginal
        if not self.balance:
            return loss
        off = torch.sigmoid(logits[0]).mean() + torch.sigmoid(logits[1:]).mean() - 1
        return loss + self.balance * off.square()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Ln r of theta ``(n, P)`` and observations x ``(m, *x_shape)``: ``(n,)``.

        Where n is a multiple of m, the observations come again and again; each is summarised once.  As a function of
        theta ln r is the log-likelihood up to a constant.

        Raises:
            ShapeError, NonFiniteError: the arrays do not fit one another, or hold NaN or infinity.
        """
        if tuple(x.shape[1:]) != tuple(self.x_shape):
            raise ShapeError(f"x: expected shape (n, {', '.join(map(str, self.x_shape))}), got {tuple(x.shape)}")
        if not (isinstance(self.embedding, Encoder) and self.embedding.accepts_missing):
            finite(x, "x")
        summary = self.embedding(self.x_scaling(x))
        scaled = self.theta_scaling(finite(theta, "theta"))
        rows = summary.repeat(repetitions(theta, x), 1)
        parts = zip(scaled.split(_ROWS_AT_ONCE), rows.split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([self._ratio(*part) for part in parts])

    def _ratio(self, theta: Tensor, summary: Tensor) -> Tensor:
        return self.classifier(torch.cat([theta, summary], -1)).squeeze(-1)
