r"""Numbers that are exactly zero or above a threshold: what a decoder says about them.

A hurdle model (Cragg 1971, doi:10.2307/1909582) has one law for whether a number is zero, and another for how large it
is if not.  Here a number stays zero if a Poisson variable of the rate $\lambda$ does, and its size, in the space of the
events, follows a mixture of K normal distributions; a draw below the threshold t is reflected there:

$$ P(0) = e^{-\lambda}, \qquad p(y) = (1 - e^{-\lambda}) \sum_k w_k \, \mathcal{N}(y; m_k, s_k^2) + \text{reflection},
   \quad y > t. $$

Training leaves the reflection out, which makes the density a little too small, and so a bound of it.

Numbers of one *group*, such as the voxels of one ring of a calorimeter, share these parameters.  Where they stand at
angles $\phi$, the logarithm of the rate and the position may also depend on $\cos\phi$ and $\sin\phi$, group by group:
a shower beside the axis.  Everything else about the numbers of a group must come from the latent numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.embedding.layers import linear
from sbi_physics.models.native.hurdle import HurdleTables, draw_hurdles
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import Standardise
from sbi_physics.store.row_parts import Rows, row_parts

__all__ = ["HurdleNetwork", "Hurdles", "check_groups"]

ALWAYS = -1
"""The group of a number that is never zero; each of these has parameters of its own."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# The logarithms of a rate and of a standard deviation, the latter in units in which the numbers have one.
_RATES = (-12.0, 5.0)
_SPREADS = (-6.0, 2.0)
_FIRST_SPREAD = -0.7
_BELOW = 0.5
_SMALLEST = 1e-7


class Block(NamedTuple):
    """Groups of one size: which of the D numbers are theirs, in rows of groups, and where these groups stand."""

    columns: Tensor
    size: int
    first: int
    groups: int


class HurdleNetwork(nn.Module):
    """A network from latent numbers and a condition to `Hurdles`.

    Args:
        inputs: width of the latent numbers.
        groups: the group of each of the D numbers; -1 for one that is never zero.
        condition_features: width of the condition; None for a network without one.
        angles: of each of the D numbers in radians; None where there are none.
        components: K.
        hidden_features: width of the hidden layers.
        blocks: number of residual blocks.

    Raises:
        ShapeError: there are not as many angles as numbers.
        UsageError: a group is not an integer of at least -1.
    """

    edges: Tensor
    scales: Tensor
    order: Tensor
    back: Tensor
    group_of: Tensor
    always: Tensor
    waves: Tensor

    def __init__(
        self,
        inputs: int,
        groups: Sequence[int],
        condition_features: int | None,
        *,
        angles: Sequence[float] | None = None,
        components: int = 3,
        hidden_features: int,
        blocks: int,
    ) -> None:
        super().__init__()
        if not groups or any(not isinstance(group, int) or group < ALWAYS for group in groups):
            raise UsageError(f"groups: expected integers of at least {ALWAYS}, got {list(groups)[:5]!r}")
        if angles is not None and len(angles) != len(groups):
            raise ShapeError(f"angles: expected {len(groups)}, one for each number, got {len(angles)}")
        self.components = positive_integer(components, "components")
        self.blocks = _blocks(groups)
        order = torch.cat([block.columns for block in self.blocks])
        self.count = sum(block.groups for block in self.blocks)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        group_of = torch.cat([torch.arange(b.first, b.first + b.groups).repeat_interleave(b.size) for b in self.blocks])
        self.register_buffer("group_of", group_of, persistent=False)
        self.register_buffer("always", torch.tensor([group == ALWAYS for group in groups]), persistent=False)
        waves = torch.zeros(0, len(groups))
        if angles is not None:
            turn = torch.tensor(angles, dtype=torch.float64)
            waves = torch.stack([turn.cos(), turn.sin()]).float()
        self.register_buffer("waves", waves[:, order], persistent=False)
        self.register_buffer("edges", torch.zeros(self.count))
        self.register_buffer("scales", torch.ones(self.count))
        outputs = (1 + 3 * self.components + 2 * len(waves)) * self.count
        self.direct = linear(inputs, outputs, gain=0.1)
        self.shift = None if condition_features is None else linear(condition_features, outputs, gain=0.0)
        self.network = ResidualNetwork(
            inputs, outputs, hidden_features=hidden_features, blocks=blocks, condition_features=condition_features
        )

    def fit(self, events: Rows) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(D,)`` of events ``(n, D)`` above zero, those of a group taken together.

        Also begins with the rates and the positions of the data.
        """
        parts = row_parts(events)
        group = self.group_of[self.back]

        def total(of: Callable[[Tensor], Tensor]) -> Tensor:
            """The sum over what is seen of each group, of some function of the values."""
            result = torch.zeros(self.count, dtype=torch.float64)
            for part in parts:
                values = part.to(self.always.device, torch.float64)
                seen = (values > 0) | self.always
                columns = torch.where(seen, of(values), 0.0).sum(0)
                result += columns.new_zeros(self.count).index_add(0, group, columns).cpu()
            return result.to(group.device)

        number = total(torch.ones_like).clamp(min=1)
        mean = total(lambda values: values) / number
        deviation = (total(lambda values: (values - mean[group]).square()) / number).sqrt()
        share = number / (len(parts) * group.bincount(minlength=self.count))
        rates = torch.log(-torch.log1p(-share.clamp(1e-4, 1 - 1e-4)))
        deviation = torch.where(deviation > 1e-3, deviation, 1.0)
        self.scales.copy_(deviation)
        self.edges.copy_(-mean / deviation)
        bias = self.network.last.bias.data.view(-1, self.count)
        bias.zero_()
        bias[0] = rates
        k = self.components
        bias[1 + k : 1 + 2 * k] = torch.linspace(-1, 1, k + 2)[1:-1].unsqueeze(1)
        bias[1 + 2 * k : 1 + 3 * k] = _FIRST_SPREAD
        return mean[group].float(), deviation[group].float()

    def fit_into(self, scaling: Standardise, events: Rows) -> None:
        """As `fit`; mean and standard deviation become those of the scaling of the events."""
        mean, scale = self.fit(events)
        scaling.mean.copy_(mean)
        scaling.scale.copy_(scale)

    def seen(self, encoded: Tensor) -> Tensor:
        """Encoded events ``(n, D)`` with one number wherever there is a zero."""
        edges = self.edges[self.group_of[self.back]]
        return torch.where((encoded < edges) & ~self.always, edges - _BELOW, encoded)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> "Hurdles":
        """What follows from latent numbers ``(n, inputs)``; the condition has n rows, or one row for all."""
        return Hurdles(self, self._raw(inputs, condition))

    def draw(
        self, inputs: Tensor, condition: Tensor | None, noise: Tensor, *, temperature: float | None = None
    ) -> Tensor:
        """As ``self(inputs, condition).draw(noise)``, in one pass where there is native code for it.

        Args:
            inputs: latent numbers ``(n, inputs)``.
            condition: n rows, or one row for all.
            noise: ``(n, 2 D)``, see `Hurdles.draw`.
            temperature: see `Hurdles.draw`.
        """
        raw = self._raw(inputs, condition)
        drawn = None
        if temperature is None:
            tables = HurdleTables(self.edges, self.scales, self.waves, self.group_of, self.order, self.always)
            drawn = draw_hurdles(raw, noise, tables, self.components)
        return Hurdles(self, raw).draw(noise, temperature=temperature) if drawn is None else drawn

    def _raw(self, inputs: Tensor, condition: Tensor | None) -> Tensor:
        raw = _add_linear(self.network(inputs, condition), self.direct, inputs)
        if self.shift is not None and condition is not None:
            raw = _add_linear(raw, self.shift, condition)
        return raw.unflatten(-1, (-1, self.count))

    def _split(self, ordered: Tensor) -> list[Tensor]:
        """Columns ``(n, D)`` in the order of the groups as blocks ``(n, groups, size)``."""
        parts = ordered.split([block.groups * block.size for block in self.blocks], 1)
        return [part.unflatten(1, (b.groups, b.size)) for part, b in zip(parts, self.blocks, strict=True)]


class Hurdles:
    """Independent hurdle models of D numbers.

    Args:
        network: which made them, and knows the groups.
        raw: what it gave, ``(n, 1 + 3 K + 2 W, groups)`` with W waves: logarithms of the rates, weights, positions and
            logarithms of the standard deviations of the components, and the waves of rates and of positions.
    """

    def __init__(self, network: HurdleNetwork, raw: Tensor) -> None:
        k = network.components
        self._network = network
        sizes = [1, k, k, k, len(network.waves), len(network.waves)]
        rates, weights, self.positions, spreads, self._tilts, self._shifts = raw.split(sizes, 1)
        self.log_rates = rates[:, 0].clamp(*_RATES)
        self.log_weights = F.log_softmax(weights, 1)
        self.log_sds = spreads.clamp(*_SPREADS)

    @property
    def mean(self) -> Tensor:
        """The position of the weightiest component ``(n, D)``, or below the threshold where zero is more likely."""
        net = self._network
        best = self.log_weights.argmax(1, keepdim=True)
        chosen = self.positions.gather(1, best).squeeze(1)
        likely = self.log_rates > math.log(math.log(2))
        values = torch.where(likely, chosen.maximum(net.edges), net.edges - _BELOW)
        values = values.index_select(1, net.group_of) + self._wave(self._shifts)
        return values.index_select(1, net.back)

    def log_prob(self, encoded: Tensor) -> Tensor:
        """Log-probability of what is zero, and log-density of what is not, together ``(n,)``."""
        net = self._network
        ordered = encoded.index_select(1, net.order)
        zero = (ordered < net.edges[net.group_of]) & ~net.always[net.order]
        inverse = (-self.log_sds).exp()
        centre = self.positions * inverse
        constant = self.log_weights - self.log_sds - _HALF_LOG_2PI
        shifted = ordered - self._wave(self._shifts) if len(net.waves) else ordered
        parts = []
        for block, values in zip(net.blocks, net._split(shifted), strict=True):
            place = slice(block.first, block.first + block.groups)
            one = _Mixture.apply(values, inverse[..., place], centre[..., place], constant[..., place])
            parts.append(one.flatten(1))
        above = torch.cat(parts, 1)
        rates = self._rates()
        hit = torch.where(net.always[net.order], 0.0, torch.log(-torch.expm1(-rates)))
        return torch.where(zero, -rates, above + hit).sum(1)

    def draw(self, noise: Tensor, *, temperature: float | None = None) -> Tensor:
        """The numbers ``(n, D)`` that standard normal noise ``(n, 2 D)`` stands for.

        Zeros are below the threshold by less the nearer they were to being none: the first one to become a number, were
        all rates to grow by the same factor, is the largest.

        Args:
            noise: as above.
            temperature: None, or that of the sigmoid whose derivative stands for that of the step between zero and a
                number (Bengio, Leonard and Courville 2013, arXiv:1308.3432); zeros are then all at one place, as in
                `HurdleNetwork.seen`.
        """
        net = self._network
        which, size = noise.chunk(2, -1)
        share = torch.special.ndtr(which).clamp(min=_SMALLEST, max=1 - _SMALLEST)
        rates = self._rates()
        # The time until the first of the Poisson events; the rest of the share chooses among the components.
        wait = -share.log() / rates
        none = (-rates).exp()
        rest = (share - none) / (1 - none).clamp(min=_SMALLEST)
        bounds = self.log_weights.exp().cumsum(1)
        position, spread = self.positions[:, 0], self.log_sds.exp()
        place, width = position.index_select(1, net.group_of), spread[:, 0].index_select(1, net.group_of)
        for k in range(1, net.components):
            later = rest > bounds[:, k - 1].index_select(1, net.group_of)
            place = torch.where(later, self.positions[:, k].index_select(1, net.group_of), place)
            width = torch.where(later, spread[:, k].index_select(1, net.group_of), width)
        edges = net.edges[net.group_of]
        value = torch.addcmul(place, width, size)
        if len(net.waves):
            value = value + self._wave(self._shifts)
        always = net.always[net.order]
        folded = torch.where(always, value, edges + (value - edges).abs())
        if temperature is not None:
            soft = torch.sigmoid(-wait.log() / temperature)
            open_ = torch.where(always, 1.0, (wait <= 1).to(soft.dtype) + soft - soft.detach())
            floor = torch.where(always, 0.0, edges - _BELOW)
            return (floor + (folded - floor) * open_).index_select(1, net.back)
        below = edges - (1 - 1 / wait) / net.scales[net.group_of]
        values = torch.where((wait > 1) & ~always, below, folded)
        return values.index_select(1, net.back)

    def _rates(self) -> Tensor:
        """Rates of the numbers ``(n, D)`` in the order of the groups."""
        net = self._network
        rates = self.log_rates.index_select(1, net.group_of)
        if len(net.waves):
            rates = (rates + self._wave(self._tilts)).clamp(*_RATES)
        return rates.exp()

    def _wave(self, amplitudes: Tensor) -> Tensor:
        """What amplitudes ``(n, W, groups)`` add at the angles: ``(n, D)`` in the order of the groups."""
        net = self._network
        total = amplitudes.new_zeros(())
        for wave, amplitude in zip(net.waves, amplitudes.unbind(1), strict=True):
            total = total + amplitude.index_select(1, net.group_of) * wave
        return total


class _Mixture(torch.autograd.Function):
    """ln sum_k exp(c_k - (y a_k - b_k)^2 / 2) of values y ``(n, G, S)`` with a, b and c ``(n, K, G)``.

    By hand, since autograd would keep and pass through ten arrays of the size ``(n, K, G, S)`` instead of two.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        white = (y.unsqueeze(1) * a.unsqueeze(-1)).sub_(b.unsqueeze(-1))
        terms = torch.addcmul(c.unsqueeze(-1), white, white, value=-0.5)
        top = terms.amax(1, keepdim=True)
        terms.sub_(top).exp_()
        total = terms.sum(1, keepdim=True)
        terms.div_(total)
        ctx.save_for_backward(y, a, white, terms)
        return (top + total.log()).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        y, a, white, shares = ctx.saved_tensors
        each = shares * gradients[0].unsqueeze(1)
        steep = each * white
        to_y = -(steep * a.unsqueeze(-1)).sum(1) if ctx.needs_input_grad[0] else None
        to_a = torch.einsum("nkgs,ngs->nkg", steep, y).neg_()
        return to_y, to_a, steep.sum(-1), each.sum(-1)


def check_groups(groups: Sequence[int], dims: int, bounds: Tensor | None) -> None:
    """Check the groups of D numbers of an event.

    Raises:
        UsageError: there are not D of them, or the events have bounds.
    """
    if len(groups) != dims:
        raise UsageError(f"groups: expected {dims}, one for each number of an event, got {len(groups)}")
    if bounds is not None:
        raise UsageError("bounds: expected None for numbers with a hurdle; zeros are what is below zero")


def _add_linear(total: Tensor, layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Add what a layer gives to a total, which is lost: memory for each summand costs as much as the sum."""
    if inputs.shape[0] != total.shape[0]:
        return total.add_(layer(inputs))
    return total.add_(layer.bias).addmm_(inputs, layer.weight.t())


def _blocks(groups: Sequence[int]) -> list[Block]:
    """The groups in blocks of equal sizes."""
    members: dict[Any, list[int]] = {}
    for column, group in enumerate(groups):
        members.setdefault(group if group != ALWAYS else ("alone", column), []).append(column)
    sizes = sorted({len(columns) for columns in members.values()}, reverse=True)
    blocks, first = [], 0
    for size in sizes:
        rows = [columns for columns in members.values() if len(columns) == size]
        blocks.append(Block(torch.tensor(rows).flatten(), size, first, len(rows)))
        first += len(rows)
    return blocks
