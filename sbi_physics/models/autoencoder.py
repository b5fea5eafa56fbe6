r"""`Autoencoder`: events through a narrow or restrained code and back, as a measure of how usual an event is.

An encoder gives a code $h = e(x, c)$, a decoder $\hat x = d(h, c)$, and training minimises the mean squared error of
standardised events plus a penalty $\lambda\,\Omega$ that keeps the code from simply copying the event:

==================  ===============================================================================================
``"l1"``            $\Omega = \sum_j |h_j|$, a sparse code
``"kl"``            $\Omega = \sum_j KL(\rho | \bar h_j)$ for units between zero and one, whose mean activity over a
                    batch shall be $\rho$ (Ng 2011, Stanford CS294A lecture notes)
``"contractive"``   $\Omega = \sum_{ij} (\partial h_j / \partial x_i)^2$, a code that changes little with the event
                    (Rifai, Vincent, Muller, Glorot and Bengio 2011, ICML); exact, or from random probes v with
                    $E|v^T J|^2 = |J|^2$ (Hutchinson 1989)
==================  ===============================================================================================

A denoising autoencoder sees events with Gaussian noise and is asked for those without (Vincent et al. 2008,
doi:10.1145/1390156.1390294).  Noise and a penalty may go together.  A code can also
be made small by its scale alone, which the decoder would undo; where the penalty depends on the scale, the columns of
the decoder's first matrix therefore have unit length, as in sparse coding (Olshausen and Field 1996).
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.checks import batch_of, finite, known_keys, not_negative, positive_integer, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.layers import perceptron
from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.scaling import Standardise

__all__ = ["PENALTIES", "Autoencoder"]

PENALTIES = ("l1", "kl", "contractive")
_ROWS_AT_ONCE = 1 << 14
_SEED_OF_EVALUATION = 0
_SMALLEST_ACTIVITY = 1e-6


class Autoencoder(nn.Module):
    """An autoencoder of D numbers, with or without a context.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context, which encoder and decoder see; None for none.
        code: width K of the code.
        layers: hidden layers of the encoder and of the decoder; 0 for linear ones.
        hidden_features: their width.
        penalty: ``"l1"``, ``"kl"``, ``"contractive"``, or None.
        strength: lambda.
        activity: rho in (0, 1), for the penalty ``"kl"``.
        probes: random probes for the penalty ``"contractive"``; None takes the exact Jacobian, for K times the cost of
            one.
        noise: standard deviation of the noise on standardised events in training.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        code: int = 4,
        layers: int = 2,
        hidden_features: int = 64,
        penalty: str | None = None,
        strength: float = 1e-2,
        activity: float = 0.05,
        probes: int | None = None,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if penalty is not None:
            known_keys([penalty], PENALTIES, "penalty")
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise UsageError(f"layers: expected an integer of at least 0, got {layers!r}")
        if not 0 < activity < 1:
            raise UsageError(f"activity: expected a number between 0 and 1, got {activity!r}")
        self.event_shape = torch.Size(event_shape)
        self.conditional, self.context_shape = context_shape is not None, torch.Size(context_shape or ())
        self.penalty, self.activity = penalty, activity
        self.probes = None if probes is None else positive_integer(probes, "probes")
        self.strength, self.noise = not_negative(strength, "strength"), not_negative(noise, "noise")
        self.event_scaling = Standardise(self.event_shape)
        self.context_scaling = context_scaling_for(self.context_shape, None)
        dims, units = event_shape[0], positive_integer(code, "code")
        self.units = units
        width, hidden = (
            (self.context_shape.numel() if self.conditional else 0),
            positive_integer(hidden_features, "hidden_features"),
        )
        self.encoder = perceptron(dims + width, hidden, units, layers)
        self.decoder = perceptron(units + width, hidden, dims, layers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.event_scaling.mean.device

    def fit_scaling(self, events: Tensor, contexts: Tensor | None = None) -> Self:
        """Learn the scalings from events ``(n, D)`` and contexts ``(n, *context_shape)``."""
        self.event_scaling.fit(events)
        if contexts is not None:
            self.context_scaling.fit(contexts)
        return self

    def encode(self, events: Tensor) -> Tensor:
        """Standardised events ``(n, D)``."""
        return self.event_scaling(events)

    def code(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The code ``(n, K)`` of standardised events given *scaled* contexts; in (0, 1) for the penalty ``"kl"``."""
        raw = self.encoder(_beside(encoded, contexts))
        return torch.sigmoid(raw) if self.penalty == "kl" else raw

    def decode(self, code: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Standardised events ``(n, D)`` for codes ``(n, K)`` and *scaled* contexts."""
        _, *others = self.decoder
        weight: Tensor = self.decoder.get_parameter("0.weight")
        if self.penalty in ("l1", "contractive"):
            columns, rest = weight.tensor_split([self.units], dim=1)
            weight = torch.cat([F.normalize(columns, dim=0), rest], dim=1)
        hidden = F.linear(_beside(code, contexts), weight, self.decoder.get_parameter("0.bias"))
        for layer in others:
            hidden = layer(hidden)
        return hidden

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Mean squared error over the D numbers plus the penalty: ``(n,)``.

        In evaluation noise and probes are the same each time.

        Args:
            encoded: standardised events, of `encode`.
            contexts: *scaled* contexts, ``context_scaling(x)``.
        """
        with seeded(None if self.training else _SEED_OF_EVALUATION, encoded.device):
            seen = encoded + self.noise * torch.randn_like(encoded) if self.noise else encoded
            if self.penalty == "contractive":
                code, penalty = self._contraction(seen, contexts)
            else:
                code = self.code(seen, contexts)
                penalty = self._sparsity(code)
        return _mean_square(self.decode(code, contexts) - encoded) + self.strength * penalty

    @torch.no_grad()
    def reconstruction_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean squared error ``(n,)`` of the D standardised numbers of events without noise.

        Args:
            x: ``(n, D)``.
            context: ``(n, *context_shape)``, or None for a model without.

        Raises:
            ShapeError: the shapes do not fit.
            NonFiniteError: x or the context holds NaN or infinity.
        """
        rows = self.encode(finite(batch_of(x, self.event_shape, "x", minimum=0), "x").to(self.device))
        contexts = self._checked(context)
        if contexts is not None:
            same_length(x=rows, context=contexts)
        parts = []
        for start in range(0, max(len(rows), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            given = None if contexts is None else contexts[part]
            parts.append(_mean_square(self.decode(self.code(rows[part], given), given) - rows[part]))
        return torch.cat(parts)

    def _checked(self, context: Tensor | None) -> Tensor | None:
        """Scaled contexts, if there are to be any."""
        if not self.conditional:
            if context is not None:
                raise ShapeError("context: this model is unconditional, expected None")
            return None
        if context is None:
            raise ShapeError(f"context: expected shape (n, {', '.join(map(str, self.context_shape))}), got None")
        rows = batch_of(context, self.context_shape, "context", minimum=0)
        return self.context_scaling(finite(rows, "context").to(self.device))

    def _sparsity(self, code: Tensor) -> Tensor:
        if self.penalty == "l1":
            return code.abs().sum(-1)
        if self.penalty != "kl":
            return torch.zeros_like(code[:, 0])
        # A property of the whole batch, of which each event carries an equal part.
        mean = code.mean(0).clamp(_SMALLEST_ACTIVITY, 1 - _SMALLEST_ACTIVITY)
        rho = self.activity
        divergence = rho * (math.log(rho) - mean.log()) + (1 - rho) * (math.log1p(-rho) - torch.log1p(-mean))
        return divergence.sum().expand(len(code))

    def _contraction(self, encoded: Tensor, contexts: Tensor | None) -> tuple[Tensor, Tensor]:
        """The code and the squared Frobenius norm of its Jacobian, with gradients where they are wanted."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = encoded.detach().requires_grad_()
            code = self.code(inputs, contexts)
            total = torch.zeros_like(encoded[:, 0])
            for direction in self._directions(code):
                (row,) = torch.autograd.grad(code, inputs, direction, create_graph=wanted, retain_graph=True)
                total = total + row.square().sum(-1)
        return (code, total) if wanted else (code.detach(), total.detach())

    def _directions(self, code: Tensor) -> list[Tensor]:
        """What the code is differentiated along, ``(n, K)`` each, such that the squares sum to the norm."""
        if self.probes is None:
            identity = torch.eye(code.shape[1], device=code.device, dtype=code.dtype)
            return [unit.expand(code.shape) for unit in identity]
        return [torch.randn_like(code) / self.probes**0.5 for _ in range(self.probes)]

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        return f"event_shape={tuple(self.event_shape)}, context_shape={tuple(self.context_shape)}"


def _beside(rows: Tensor, contexts: Tensor | None) -> Tensor:
    return rows if contexts is None else torch.cat([rows, contexts.flatten(1)], -1)


def _mean_square(rows: Tensor) -> Tensor:
    return rows.square().mean(-1)
