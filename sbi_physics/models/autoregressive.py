r"""`AutoregressiveDensity`: one number after the other, each a mixture whose parameters depend on those before it.

$$ q(z|c) = \prod_{i=1}^D \sum_k \pi_{ik}\, K\Big( \frac{z_i - m_{ik}}{s_{ik}} \Big) \frac{1}{s_{ik}}, \qquad
   (\pi_i, m_i, s_i) = f_i(z_1, \dots, z_{i-1}, c), $$

with Gaussian or logistic K, exact in one pass of the network.  Draws go number by number.  The network is either masked
so that output i sees the inputs before it alone (MADE: Germain et al. 2015, arXiv:1502.03509; with mixtures: Uria,
Murray and Larochelle 2013, arXiv:1306.0186), or a recurrent one that reads the numbers in turn, for sequences (Graves
2013, arXiv:1308.0850).  To the means comes what is linear in the numbers before and in the context, so that a Gaussian
need not be learned by a network.
"""

import warnings
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from nflows.transforms.made import MADE
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.flows.conditioner import Incremental, made
from sbi_physics.models.generator import rows_of
from sbi_physics.models.mixture import LARGEST_LOG_FACTOR
from sbi_physics.models.pushforward import PushforwardGenerator, uniform
from sbi_physics.models.repeat import repeat
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["KERNELS", "NETWORKS", "AutoregressiveDensity", "ScalarMixtures"]

KERNELS = ("gaussian", "logistic")
NETWORKS = ("made", "gru", "lstm")
_ROWS_AT_ONCE = 1 << 13
_HALF_LOG_2PI = 0.9189385332046727
_TINY = 1e-7


class ScalarMixtures(NamedTuple):
    """Mixtures of one number each.

    Attributes:
        logits: of the weights, ``(*, K)``.
        centres: ``(*, K)``.
        log_scales: ``(*, K)``.
        kernel: ``"gaussian"`` or ``"logistic"``.
    """

    logits: Tensor
    centres: Tensor
    log_scales: Tensor
    kernel: str

    def log_prob(self, values: Tensor) -> Tensor:
        """Log-density ``(*,)`` of values ``(*,)``."""
        white = (values.unsqueeze(-1) - self.centres) * (-self.log_scales).exp()
        if self.kernel == "gaussian":
            each = -0.5 * white.square() - _HALF_LOG_2PI
        else:
            each = F.logsigmoid(white) + F.logsigmoid(-white)
        return (self.logits.log_softmax(-1) + each - self.log_scales).logsumexp(-1)

    def draw(self) -> Tensor:
        """One value ``(*,)`` of each, on the current random stream."""
        share = torch.rand_like(self.logits[..., :1])
        noise = torch.randn_like(share) if self.kernel == "gaussian" else torch.rand_like(share)
        return self._at(share, noise)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The values ``(*,)`` that standard normal noise ``(*, 2)`` stands for."""
        share, other = noise.split(1, -1)
        return self._at(uniform(share), other if self.kernel == "gaussian" else uniform(other))

    def _at(self, share: Tensor, noise: Tensor) -> Tensor:
        """The values of shares ``(*, 1)`` of the components, and of normal or uniform noise ``(*, 1)``."""
        # Of the weights up to the last but one: whatever their rounding, the component is one of the K.
        chosen = (share > self.logits.softmax(-1).cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
        centre, scale = self.centres.gather(-1, chosen), self.log_scales.gather(-1, chosen).exp()
        if self.kernel != "gaussian":
            noise = torch.logit(noise, eps=_TINY)
        return (centre + scale * noise).squeeze(-1)


class AutoregressiveDensity(ConditionalDensity, PushforwardGenerator):
    """An autoregressive density of mixtures; satisfies `Density`.

    Draws carry no gradients.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        network: ``"made"``, ``"gru"`` or ``"lstm"``.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        components: K.
        kernel: ``"gaussian"`` or ``"logistic"``, whose tails are exponential.
        hidden_features: width of the network.
        blocks: its hidden layers after the first; of a recurrent one its layers.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        network: str = "made",
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        components: int = 8,
        kernel: str = "gaussian",
        hidden_features: int = 64,
        blocks: int = 2,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        known_keys([network], NETWORKS, "network")
        known_keys([kernel], KERNELS, "kernel")
        dims, count = event_shape[0], positive_integer(components, "components")
        hidden, layers = positive_integer(hidden_features, "hidden_features"), positive_integer(blocks, "blocks")
        self.kernel, width = kernel, None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        # Centres that differ, or the components would stay equal for ever.
        centres = torch.special.ndtri((torch.arange(count) + 0.5) / count)
        self.base = nn.Parameter(torch.stack([torch.zeros(count), centres, torch.zeros(count)]).repeat(dims, 1, 1))
        self.linear = nn.Parameter(torch.zeros(dims, dims))
        self.context_linear = None if width is None else nn.Linear(width, dims, bias=False)
        if self.context_linear is not None:
            nn.init.zeros_(self.context_linear.weight)
        self.network: _Network
        if network == "made":
            self.network = _Masked(dims, width, 3 * count, hidden, layers)
        else:
            self.network = _Recurrent(network, dims, width, 3 * count, hidden, layers)

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the log-density of encoded events in their own space: ``(n,)``."""
        return -self._given(encoded, self._embedded(contexts)).log_prob(encoded).sum(-1)

    def _given(self, events: Tensor, summary: Tensor | None) -> ScalarMixtures:
        """The mixture of each number of the events ``(n, D)``, given those before it."""
        shift = events @ self.linear.tril(-1).T
        if self.context_linear is not None:
            shift = shift + self.context_linear(summary)
        return self._mixtures(self.network(events, summary), self.base, shift)

    def _mixtures(self, raw: Tensor, base: Tensor, shift: Tensor) -> ScalarMixtures:
        """What outputs ``(*, 3 K)`` of the network stand for; base ``(*, 3, K)`` and shift ``(*,)`` broadcast."""
        logits, centres, scales = (raw.unflatten(-1, base.shape[-2:]) + base).unbind(-2)
        log_scales = LARGEST_LOG_FACTOR * torch.tanh(scales / LARGEST_LOG_FACTOR)
        return ScalarMixtures(logits, centres + shift.unsqueeze(-1), log_scales, self.kernel)

    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, max(len(encoded), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            rows = encoded[part]
            parts.append(self._given(rows, rows_of(summary, part)).log_prob(rows).sum(-1))
        return torch.cat(parts)

    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            raise UsageError("rsample: draws of an autoregressive density carry no gradients; use a flow")
        events, log_probs = [], []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            rows, log_prob = self._draw_rows(part.stop - part.start, rows_of(summary, part))
            events.append(rows)
            log_probs.append(log_prob)
        return torch.cat(events), torch.cat(log_probs) if densities else None

    @property
    def noise_features(self) -> int:
        """Two for each number: the first says the component."""
        return 2 * self.event_shape[0]

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        each = noise.unflatten(-1, (-1, 2))
        # Pass i makes number i final.
        numbers, nothing = torch.arange(self.event_shape[0], device=noise.device), torch.zeros_like(each[..., 0])
        return repeat(lambda events, _: self._given(events, summary).from_noise(each), nothing, numbers)

    def _draw_rows(self, n: int, summary: Tensor | None) -> tuple[Tensor, Tensor]:
        events, log_prob = self.base.new_zeros(n, *self.event_shape), self.base.new_zeros(n)
        steps, linear = self.network.steps(n, summary), self.linear.tril(-1)
        context = 0.0 if self.context_linear is None else self.context_linear(summary)
        for i in range(self.event_shape[0]):
            shift = events @ linear[i] + (context if isinstance(context, float) else context[:, i])
            mixture = self._mixtures(steps.parameters(i), self.base[i], shift)
            value = mixture.draw()
            events[:, i] = value
            log_prob += mixture.log_prob(value)
            steps.know(i, value)
        return events, log_prob


class _Steps(ABC):
    """A network while its inputs become known one after the other."""

    @abstractmethod
    def parameters(self, dimension: int) -> Tensor:
        """What the network says of a dimension ``(n, P)``, given those before it."""

    @abstractmethod
    def know(self, dimension: int, values: Tensor) -> None:
        """Take the values ``(n,)`` of a dimension; the dimensions come in order."""


class _Network(nn.Module, ABC):
    """A network from events ``(n, D)`` to P numbers for each dimension, which depend on those before it alone."""

    @abstractmethod
    def steps(self, rows: int, summary: Tensor | None) -> _Steps:
        """The network for events of which nothing is known yet."""

    @abstractmethod
    def forward(self, events: Tensor, summary: Tensor | None) -> Tensor:
        """Outputs ``(n, D, P)``; the summary has n rows, or one row for all."""


class _Masked(_Network):
    def __init__(self, dims: int, context: int | None, outputs: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.made = MADE(
            features=dims,
            hidden_features=max(hidden, dims),
            context_features=context,
            num_blocks=blocks,
            use_residual_blocks=False,
            output_multiplier=outputs,
            activation=F.silu,
        )
        nn.init.zeros_(self.made.final_layer.weight)
        nn.init.zeros_(self.made.final_layer.bias)
        # No hidden unit of a MADE may reach its first output, and so none brings the context there.
        self.beginning = None
        if context is not None:
            self.beginning = ResidualNetwork(context, outputs, hidden_features=hidden, blocks=blocks)

    def forward(self, events: Tensor, summary: Tensor | None) -> Tensor:
        outputs = made(self.made, events, summary).unflatten(-1, (events.shape[1], -1))
        if self.beginning is None:
            return outputs
        return torch.cat([outputs[:, :1] + self.beginning(summary).unsqueeze(1), outputs[:, 1:]], 1)

    def steps(self, rows: int, summary: Tensor | None) -> _Steps:
        return _MaskedSteps(self, rows, summary)


class _MaskedSteps(_Steps):
    def __init__(self, network: _Masked, rows: int, summary: Tensor | None) -> None:
        self._hidden = Incremental(network.made, summary, rows)
        self._beginning = None if network.beginning is None else network.beginning(summary)

    def parameters(self, dimension: int) -> Tensor:
        outputs = self._hidden.parameters(dimension)
        return outputs if dimension or self._beginning is None else outputs + self._beginning

    def know(self, dimension: int, values: Tensor) -> None:
        self._hidden.know(dimension, values)


class _Recurrent(_Network):
    def __init__(self, cell: str, dims: int, context: int | None, outputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        inputs = 2 + (context or 0)
        stack = nn.GRU if cell == "gru" else nn.LSTM
        self.stack: nn.RNNBase = stack(inputs, hidden, layers, batch_first=True)
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.dims = dims

    def forward(self, events: Tensor, summary: Tensor | None) -> Tensor:
        before = F.pad(events[:, :-1], (1, 0))
        return self.last(self.read(before, 0, summary, None)[0])

    def read(self, before: Tensor, first: int, summary: Tensor | None, state: "_State") -> "tuple[Tensor, _State]":
        """Hidden states ``(n, T, hidden)`` at T dimensions from `first` on, given the number before each ``(n, T)``."""
        n, length = before.shape
        place = torch.arange(first, first + length, device=before.device, dtype=before.dtype)
        place = 2 * place / max(self.dims - 1, 1) - 1
        inputs = torch.stack([before, place.expand(n, length)], -1)
        if summary is not None:
            inputs = torch.cat([inputs, summary.unsqueeze(1).expand(n, length, -1)], -1)
        with warnings.catch_warnings():
            # Training lays all weights of a model side by side, not in the order that cuDNN would like best.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
            return self.stack(inputs, state)

    def steps(self, rows: int, summary: Tensor | None) -> _Steps:
        return _RecurrentSteps(self, rows, summary)


class _RecurrentSteps(_Steps):
    def __init__(self, network: _Recurrent, rows: int, summary: Tensor | None) -> None:
        self._network, self._summary = network, summary
        self._state: _State = None
        self._before = network.last.weight.new_zeros(rows, 1)

    def parameters(self, dimension: int) -> Tensor:
        hidden, self._state = self._network.read(self._before, dimension, self._summary, self._state)
        return self._network.last(hidden[:, 0])

    def know(self, dimension: int, values: Tensor) -> None:
        self._before = values.unsqueeze(-1)


_State = Tensor | tuple[Tensor, Tensor] | None
