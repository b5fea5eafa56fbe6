"""The weights of a flow in the order of the kernels: zero-padded slabs, made anew for each call in a few operations.

Where each weight goes is found once, by packing the numbers 1, 2, ... of the parameters instead of their values;
a call then gathers ``values[places]``, where the padding has the place 0 of a leading zero.  Nothing has to notice
that weights changed, and gradients come back through ordinary operations.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from nflows.flows.base import Flow
from nflows.transforms.base import Transform
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation, lu_factors

__all__ = ["Packed", "Packing", "Sizes"]

# Matrix products want 16 in each direction, and a group of dimensions this many columns.
_LEAST = 16
_GROUP_COLUMNS = 32


class Sizes(NamedTuple):
    """The sizes of a flow and of its tiles; the names are those of the kernels, in lower case."""

    features: int
    kept: int
    offset: int
    width: int
    group: int
    hidden: int
    blocks: int
    bins: int
    padded_bins: int
    layers: int
    tail: float

    @property
    def groups(self) -> int:
        """How many groups the moved dimensions make."""
        return -(-(self.features - self.kept) // self.group)

    @classmethod
    def of(cls, coupling: SplineCoupling, features: int, layers: int) -> "Sizes":
        """The sizes of a flow of so many layers like `coupling`."""
        net, kept = coupling.conditioner, coupling.kept
        padded_bins = _power_of_two(coupling.bins, 8)
        group = min(_power_of_two(features - kept, 2), max(2, _GROUP_COLUMNS // padded_bins))
        offset = -(-kept // group) * group
        return cls(
            features=features,
            kept=kept,
            offset=offset,
            width=_power_of_two(offset + -(-(features - kept) // group) * group, _LEAST),
            group=group,
            hidden=_power_of_two(net.hidden_features, _LEAST),
            blocks=len(net.blocks),
            bins=coupling.bins,
            padded_bins=padded_bins,
            layers=layers,
            tail=float(coupling.tail_bound),
        )


class Packed(NamedTuple):
    """What a kernel reads besides rows; L layers, S = 1 + blocks."""

    weights: Tensor  # (L, weights of a layer)
    mixes: Tensor  # (L, width + 1, width): matrix and bias of the linear maps
    ladj: Tensor  # () log-determinant of all linear maps together
    context_weight: Tensor | None  # (L S hidden, C)
    context_bias: Tensor  # (L S hidden,)


class Packing:
    """Packs the weights of one flow.

    Args:
        flow: a flow of equal spline couplings, with linear maps between them where D > 1.
    """

    def __init__(self, flow: Flow) -> None:
        # Not the flow itself: packings are kept as long as their flow lives.
        self._transform: Transform = flow._transform
        transforms = list(flow._transform._transforms)
        couplings = [t for t in transforms if isinstance(t, SplineCoupling)]
        self._linear = [t for t in transforms if isinstance(t, LULinear)]
        self._permutations = [t for t in transforms if isinstance(t, Permutation)]
        features = self._linear[0].features if self._linear else 1
        self.sizes = Sizes.of(couplings[0], features, len(couplings))
        start, numbers = 1, {}
        for parameter in self._transform.parameters():
            numbers[parameter] = torch.arange(start, start + parameter.numel()).view(parameter.shape)
            start += parameter.numel()
        places = {
            "weights": torch.stack([_kernel_weights(c, numbers, self.sizes) for c in couplings]),
            "context_bias": torch.cat([_context_bias(c, numbers, self.sizes) for c in couplings]),
        }
        self.conditional = couplings[0].conditioner.context_features is not None
        if self.conditional:
            places["context_weight"] = torch.cat([_context_weight(c, numbers, self.sizes) for c in couplings])
        for name in ("lower", "upper", "diagonal", "bias") if self._linear else ():
            places[name] = torch.stack([numbers[getattr(layer, name)] for layer in self._linear])
        self._shapes = {name: part.shape for name, part in places.items()}
        self._places = torch.cat([part.flatten() for part in places.values()])
        # Where each parameter went; those that no kernel reads, to a place beyond the last.
        self._origins = torch.full((start,), len(self._places))
        self._origins[self._places] = torch.arange(len(self._places))
        self._origins[0] = len(self._places)

    @property
    def layer_weights(self) -> int:
        """How many numbers the kernels read for one layer."""
        return self._shapes["weights"][1]

    def pack(self, *, inverse: bool) -> Packed:
        """The present weights, for one direction; differentiable."""
        parameters = list(self._transform.parameters())
        device = parameters[0].device
        if self._places.device != device:
            self._places, self._origins = self._places.to(device), self._origins.to(device)
        values = torch.cat([parameters[0].new_zeros(1), *(p.flatten() for p in parameters)])
        gathered = _Gather.apply(values, self._places, self._origins)
        parts = gathered.split([shape.numel() for shape in self._shapes.values()])
        found = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        if self._linear:
            mixes, ladj = self._mixes(found["lower"], found["upper"], found["diagonal"], found["bias"], inverse)
        else:
            mixes, ladj = values[:1], values[0]
        return Packed(found["weights"], mixes, ladj, found.get("context_weight"), found["context_bias"])

    def _mixes(
        self, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Permutation and linear map of each layer as one matrix ``(L, width + 1, width)`` for rows from the left."""
        sizes = self.sizes
        lower, upper, ladj = lu_factors(lower, upper, diagonal)
        exact = lower.double(), upper.double()
        order = torch.stack([t.inverse_order for t in self._permutations])
        if inverse:
            identity = torch.eye(sizes.features, dtype=torch.float64, device=lower.device).expand_as(lower)
            half = torch.linalg.solve_triangular(exact[0], identity, upper=False, unitriangular=True)
            matrix = torch.linalg.solve_triangular(exact[1], half, upper=True)
            matrix = matrix.gather(1, order.unsqueeze(2).expand_as(matrix))
            bias, ladj = -(matrix @ bias.double().unsqueeze(2)).squeeze(2), -ladj
        else:
            matrix = (exact[0] @ exact[1]).gather(2, order.unsqueeze(1).expand_as(lower))
        feature = torch.arange(sizes.features, device=matrix.device)
        column = torch.where(feature < sizes.kept, feature, feature - sizes.kept + sizes.offset)
        mixes = lower.new_zeros(sizes.layers, sizes.width + 1, sizes.width)
        mixes[:, column.unsqueeze(1), column] = matrix.mT.to(lower)
        mixes[:, sizes.width, column] = bias.to(lower)
        return mixes, ladj.sum()


class _Gather(torch.autograd.Function):
    """``values[places]``, of which each value but the first is read once at most: the gradient is gathered too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, origins: Tensor) -> Tensor:
        ctx.save_for_backward(origins)
        return values[places]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (origins,) = ctx.saved_tensors
        return F.pad(gradient, (0, 1))[origins], None, None


def _kernel_weights(coupling: SplineCoupling, numbers: dict[Tensor, Tensor], sizes: Sizes) -> Tensor:
    """The weights of one layer in the order of `run_flow`."""
    net, hidden = coupling.conditioner, sizes.hidden
    first = numbers[net.initial_layer.weight].T[: sizes.kept]
    parts = [_padded(first, sizes.width, hidden)]
    for block in net.blocks:
        for layer in block.linear_layers:
            parts += [_padded(numbers[layer.weight].T, hidden, hidden), _padded(numbers[layer.bias], hidden)]
    kinds = [sizes.bins, sizes.bins, sizes.bins - 1]
    moved, columns = sizes.features - sizes.kept, sizes.group * sizes.padded_bins
    groups = sizes.groups
    final, slabs = net.final_layer, []
    for whole, last in ((numbers[final.weight], hidden), (numbers[final.bias].unsqueeze(1), 1)):
        for kind in whole.view(moved, sum(kinds), -1).split(kinds, dim=1):
            padded = _padded(kind, groups * sizes.group, sizes.padded_bins, last)
            slabs.append(padded.view(groups, columns, last).mT.flatten(1))
    # Each matrix with its bias behind it.
    parts += [torch.cat([slab for pair in zip(slabs[:3], slabs[3:], strict=True) for slab in pair], dim=1)]
    return torch.cat([part.flatten() for part in parts])


def _context_weight(coupling: SplineCoupling, numbers: dict[Tensor, Tensor], sizes: Sizes) -> Tensor:
    net = coupling.conditioner
    layers = [numbers[net.initial_layer.weight][:, max(sizes.kept, 1) :]]
    layers += [numbers[block.context_layer.weight] for block in net.blocks]
    return torch.cat([_padded(layer, sizes.hidden, layer.shape[1]) for layer in layers])


def _context_bias(coupling: SplineCoupling, numbers: dict[Tensor, Tensor], sizes: Sizes) -> Tensor:
    net = coupling.conditioner
    layers = [numbers[net.initial_layer.bias]]
    if net.context_features is None:
        layers += [layers[0].new_zeros(sizes.hidden)] * sizes.blocks
    else:
        layers += [numbers[block.context_layer.bias] for block in net.blocks]
    return torch.cat([_padded(layer, sizes.hidden) for layer in layers])


def _padded(tensor: Tensor, *shape: int) -> Tensor:
    """The tensor with zeros behind it along each axis, to the shape."""
    missing = [size - old for old, size in zip(tensor.shape, shape, strict=True)]
    return F.pad(tensor, [n for more in reversed(missing) for n in (0, more)])


def _power_of_two(n: int, least: int) -> int:
    """The smallest power of two that is at least n and `least`, itself one."""
    return max(least, 1 << (n - 1).bit_length())
