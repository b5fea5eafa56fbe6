"""Masked autoregressive layers (Papamakarios et al. 2017, arXiv:1705.07057): dimension i moves given 1 ... i-1.

The conditioner is nflows' MADE.  Evaluating a density is one pass; drawing goes dimension by dimension, with the work
of one pass (`Incremental`).
"""

import torch
from nflows.transforms.base import Transform
from nflows.transforms.made import MADE
from torch import Tensor, nn

from sbi_physics.models.flows.conditioner import Incremental, made
from sbi_physics.models.flows.spline import rational_quadratic_spline, spline_parameters
from sbi_physics.models.repeat import repeat

__all__ = ["MaskedAffine", "MaskedSpline"]

_LOG_SCALE_BOUND = 7.0


class _MaskedLayer(Transform):
    """What the layers share: the conditioner and the order of the passes."""

    def __init__(
        self,
        features: int,
        context_features: int | None,
        *,
        parameters: int,
        hidden_features: int,
        blocks: int,
    ) -> None:
        super().__init__()
        self.features, self.parameters_each = features, parameters
        self.conditioner = MADE(
            features=features,
            hidden_features=max(hidden_features, features),
            context_features=context_features,
            num_blocks=blocks,
            use_residual_blocks=False,
            output_multiplier=parameters,
            activation=nn.functional.silu,
        )
        nn.init.zeros_(self.conditioner.final_layer.weight)
        nn.init.zeros_(self.conditioner.final_layer.bias)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: ``(n, D)`` and contexts ``(n, C)`` or ``(1, C)`` give ``(n, D)`` and the log-determinant."""
        outputs, log_derivative = self._elementwise(inputs, self._choose(inputs, context), inverse=False)
        return outputs, log_derivative.sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction: pass i makes dimension i final."""
        if torch.compiler.is_compiling():
            return self._repeated_inverse(inputs, context)
        if not torch.is_grad_enabled():
            return self._incremental_inverse(inputs, context)
        outputs = torch.zeros_like(inputs)
        log_derivative = torch.zeros_like(inputs)
        for _ in range(self.features):
            outputs, log_derivative = self._elementwise(inputs, self._choose(outputs, context), inverse=True)
        return outputs, log_derivative.sum(1)

    def _repeated_inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        def step(outputs: Tensor, _: Tensor) -> Tensor:
            return self._elementwise(inputs, self._choose(outputs, context), inverse=True)[0]

        outputs = repeat(step, torch.zeros_like(inputs), torch.arange(self.features, device=inputs.device))
        log_derivative = self._elementwise(inputs, self._choose(outputs, context), inverse=True)[1]
        return outputs, log_derivative.sum(1)

    def _incremental_inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        network = Incremental(self.conditioner, context, len(inputs))
        outputs, log_derivative = [], torch.zeros_like(inputs[:, 0])
        for i in range(self.features):
            value, change = self._elementwise(inputs[:, i], network.parameters(i), inverse=True)
            network.know(i, value)
            outputs.append(value)
            log_derivative = log_derivative + change
        return torch.stack(outputs, dim=1), log_derivative

    def _choose(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return made(self.conditioner, inputs, context).to(inputs).view(*inputs.shape, self.parameters_each)

    def _elementwise(self, inputs: Tensor, parameters: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class MaskedAffine(_MaskedLayer):
    """An affine masked autoregressive layer: ``y = (x - shift) * exp(log_scale)``.

    Args:
        features: D.
        context_features: width of the context, or None.
        hidden_features: width of MADE.
        blocks: hidden layers of MADE after the first.
    """

    def __init__(self, features: int, context_features: int | None, *, hidden_features: int, blocks: int) -> None:
        super().__init__(features, context_features, parameters=2, hidden_features=hidden_features, blocks=blocks)

    def _elementwise(self, inputs: Tensor, parameters: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.unbind(-1)
        log_scale = _LOG_SCALE_BOUND * torch.tanh(raw / _LOG_SCALE_BOUND)
        if inverse:
            return inputs * torch.exp(-log_scale) + shift, -log_scale
        return (inputs - shift) * torch.exp(log_scale), log_scale


class MaskedSpline(_MaskedLayer):
    """A masked autoregressive layer of rational-quadratic splines.

    Args:
        features: D.
        context_features: width of the context, or None.
        hidden_features: width of MADE.
        blocks: hidden layers of MADE after the first.
        bins: bins of each spline.
        tail_bound: the splines act on [-tail_bound, tail_bound].
    """

    def __init__(
        self,
        features: int,
        context_features: int | None,
        *,
        hidden_features: int,
        blocks: int,
        bins: int,
        tail_bound: float,
    ) -> None:
        super().__init__(
            features,
            context_features,
            parameters=spline_parameters(bins),
            hidden_features=hidden_features,
            blocks=blocks,
        )
        self.bins, self.tail_bound = bins, tail_bound

    def _elementwise(self, inputs: Tensor, parameters: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(
            inputs, parameters, bins=self.bins, tail_bound=self.tail_bound, inverse=inverse
        )
