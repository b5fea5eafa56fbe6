"""Evaluate the conditioners of nflows, `ResidualNet` and `MADE`, without doing anything twice.

The networks are nflows' own; only their evaluation is here, equal to their `forward` up to rounding, and the start of
the couplings' one, `coupling_net`, which returns zero.

- The context may have fewer rows than the inputs and broadcasts against them: for many draws at one observation it is
  projected once.
- `Incremental` follows a `MADE` dimension by dimension.  A hidden unit of degree d depends on the first d dimensions
  alone, so when dimension d becomes known only the units of degree d are new: D steps cost one pass, not D.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from nflows.nn.nets.resnet import ResidualNet
from nflows.transforms.made import MADE, MaskedLinear
from torch import Tensor

__all__ = ["Incremental", "coupling_net", "made", "residual_net"]


def coupling_net(
    features: int, outputs: int, context_features: int | None, hidden_features: int, blocks: int
) -> ResidualNet:
    """A residual network from inputs ``(*, features)`` and a context to ``(*, outputs)``, zero at the start."""
    net = ResidualNet(
        in_features=features,
        out_features=outputs,
        hidden_features=hidden_features,
        context_features=context_features,
        num_blocks=blocks,
        activation=F.silu,
    )
    torch.nn.init.zeros_(net.final_layer.weight)
    torch.nn.init.zeros_(net.final_layer.bias)
    return net


def residual_net(net: ResidualNet, inputs: Tensor, context: Tensor | None) -> Tensor:
    """The outputs ``(n, O)`` of a residual network for inputs ``(n, I)``; contexts ``(n, C)``, ``(1, C)`` or None."""
    first, width = net.initial_layer, inputs.shape[-1]
    if context is None:
        hidden = first(inputs)
    else:
        # In place where autograd allows it: on a CPU the pages of a new tensor cost as much as the arithmetic.
        hidden = F.linear(inputs, first.weight[:, :width])
        hidden = hidden.add_(F.linear(context, first.weight[:, width:], first.bias))
    for block in net.blocks:
        change = block.activation(block.linear_layers[0](block.activation(hidden)))
        change = block.linear_layers[1](block.dropout(change))
        if context is None:
            hidden = hidden + change
        else:
            hidden = torch.addcmul(hidden, change, block.context_layer(context).sigmoid_())
    return net.final_layer(hidden)


def made(net: MADE, inputs: Tensor, context: Tensor | None) -> Tensor:
    """The outputs ``(*, O)`` of a MADE for inputs ``(*, D)`` and a context ``(*, C)`` that broadcasts."""
    hidden = net.initial_layer(inputs)
    if context is not None:
        hidden = hidden + net.activation(net.context_layer(context))
    hidden = net.activation(hidden)
    for block in net.blocks:
        hidden = block.activation(block.linear(hidden))
    return net.final_layer(hidden)


class _Layer(NamedTuple):
    """A masked linear layer with its units in order of their degree; units come first, then rows."""

    weight: Tensor
    bias: Tensor

    def of(self, new: slice, seen: Tensor) -> Tensor:
        """The units `new` ``(k, n)``, which depend on as many inputs as `seen` ``(i, n)`` has."""
        return torch.addmm(self.bias[new].unsqueeze(-1), self.weight[new, : len(seen)], seen)


class Incremental:
    """A MADE while its inputs become known one after the other; without gradients.

    Args:
        net: the network, of feed-forward blocks without batch normalisation or dropout.
        context: ``(n, C)``, ``(1, C)`` or None.
        rows: n.
    """

    def __init__(self, net: MADE, context: Tensor | None, rows: int) -> None:
        features, degrees = net.initial_layer.in_features, net.initial_layer.degrees
        order = torch.argsort(degrees, stable=True)
        # ends[d] counts the units of degree up to d.
        self._ends: list[int] = torch.bincount(degrees, minlength=features + 1).cumsum(0).tolist()
        self._activation = net.activation
        hidden = [_in_order(block.linear, order, order) for block in net.blocks]
        self._layers = [_in_order(net.initial_layer, order, None), *hidden]
        self._last = _Layer(net.final_layer.weight[:, order], net.final_layer.bias)
        self._multiplier = net.final_layer.out_features // features
        self._start = None if context is None else net.activation(net.context_layer(context)).T[order]
        like = self._last.weight
        self._inputs = like.new_empty(features, rows)
        self._active = [like.new_empty(len(degrees), rows) for _ in self._layers]
        self._update(0)

    def parameters(self, dimension: int) -> Tensor:
        """What the network says of `dimension` (from 0), which depends on those before it: ``(n, O / D)``."""
        mine = slice(dimension * self._multiplier, (dimension + 1) * self._multiplier)
        return self._last.of(mine, self._active[-1][: self._ends[dimension]]).T

    def know(self, dimension: int, values: Tensor) -> None:
        """Take the values ``(n,)`` of `dimension`; the dimensions come in order."""
        self._inputs[dimension] = values
        self._update(dimension + 1)

    def _update(self, degree: int) -> None:
        """Compute the hidden units of this degree, which see the first `degree` dimensions."""
        begin, end = (self._ends[degree - 1] if degree else 0), self._ends[degree]
        if begin == end:
            return
        new, seen = slice(begin, end), self._inputs[:degree]
        for i, (layer, active) in enumerate(zip(self._layers, self._active, strict=True)):
            hidden = layer.of(new, seen)
            if i == 0 and self._start is not None:
                hidden += self._start[new]
            active[new] = self._activation(hidden)
            seen = active[:end]


def _in_order(layer: MaskedLinear, rows: Tensor, columns: Tensor | None) -> _Layer:
    weight = (layer.weight * layer.mask)[rows]
    return _Layer(weight if columns is None else weight[:, columns], layer.bias[rows])
