r"""Spline flows on the unit cube, on top of the grids of a mixture: one flow, conditional on the channel.

A point of channel c is $x = g_c(T(u \mid c))$ with the grid $g_c$ and the flow T, which begins near the identity: what
the grids have learned is where the flow starts (Gao, Isaacson and Krause 2020, arXiv:2001.05486; Heimel et al. 2023,
arXiv:2212.06172).  With the density $q = \sum_c \alpha_c q_c$ of flows and shares, both trainable, and points that
were drawn from p and evaluated once, each loss is a mean over the same stored points (buffered training):

====================  ===========================================================================================
``kl``                $-\frac{|f|}{p} \ln q$, the forward Kullback-Leibler divergence; finds all that the points found
``variance``          $\frac{f^2}{p\,q}$, the variance of the weights, for the last refinements
``stratified``        $\left(\sum_c \sqrt{\alpha_c \langle f^2/(p\,q)\rangle_c}\right)^2$, the same where each channel
                      gives a fixed number of points (Heimel et al. 2024, arXiv:2311.01548)
``tail``              $\frac{f^2}{p\,q} \left(\frac{f}{q}\right)^5$, of which the logarithm is the Rényi divergence of
                      order 7; as the order grows it becomes the largest weight, which unweighting divides by
====================  ===========================================================================================
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.integration.channels import GridChannel, Map, Mixture
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

__all__ = ["FlowMap", "Loss", "train_flows"]

Loss = Literal["kl", "variance", "stratified", "tail"]

_SIZE = {"hidden_features": 64, "blocks": 1, "bins": 10}
_LARGEST = 12.0
_TAIL_POWER = 6


@dataclass(frozen=True)
class FlowMap:
    """A grid after a flow that knows its channel.

    Attributes:
        grid: the outer map, of the channel.
        flow: on [-1, 1]^D with uniform noise, conditional on the channel.
        label: of the channel, ``(1, C)``.
    """

    grid: GridChannel
    flow: Flow
    label: Tensor

    @property
    def dims(self) -> int:
        """D."""
        return self.grid.dims

    @torch.no_grad()
    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the cube ``(n, D)`` from uniform ones, and the log-density there ``(n,)``."""
        z, log_flow = engines.from_noise(self.flow, (2 * v - 1).float(), self.label)
        x, log_grid = self.grid.to_x(((z.double() + 1) / 2).clamp(0, 1))
        return x, log_flow.double() + self.dims * math.log(2) + log_grid

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""
        z, log_grid = self.grid.to_v(x)
        log_flow = engines.log_prob(self.flow, (2 * z - 1).float(), self.label)
        return log_flow.double() + self.dims * math.log(2) + log_grid


class _Channels(nn.Module):
    """The flow and the shares of all channels, the last of which is uniform and stays as it is."""

    labels: Tensor

    def __init__(self, mixture: Mixture, flow: Flow | None, seed: int) -> None:
        super().__init__()
        self.grids = [_grid_of(each) for each in mixture.maps[:-1]]
        count, dims = len(self.grids), mixture.dims
        with seeded(derive(seed, "flow")):
            layers = max(4, 2 * math.ceil(math.log2(dims)))
            self.flow: Flow = flow or build_flow("nsf-box", dims, count, transforms=layers, **_SIZE)
        self.uniform = float(mixture.shares[-1])
        self.logits = nn.Parameter(mixture.shares[:-1].log().float())
        self.register_buffer("labels", torch.eye(count))

    def log_shares(self) -> Tensor:
        return torch.log_softmax(self.logits, 0) + math.log1p(-self.uniform)

    def log_joint(self, z: Tensor, log_grid: Tensor) -> Tensor:
        """Log of share times density, ``(n, C + 1)``, at the places z ``(n, C, D)`` of points behind the grids."""
        n, count, dims = z.shape
        labels = self.labels.repeat(n, 1)
        flows = engines.log_prob(self.flow, z.flatten(0, 1), labels).view(n, count) + dims * math.log(2)
        flat = torch.full((n, 1), math.log(self.uniform), device=z.device)
        return torch.cat([self.log_shares() + flows + log_grid, flat], 1)

    def mixture(self, flat: ProductGrid) -> Mixture:
        maps = tuple(FlowMap(grid, self.flow, self.labels[c : c + 1]) for c, grid in enumerate(self.grids))
        shares = torch.cat([self.log_shares().detach().exp().double(), torch.tensor([self.uniform]).double()])
        return Mixture((*maps, flat), shares / shares.sum())


def _grid_of(channel: Map) -> GridChannel:
    if isinstance(channel, FlowMap):
        return channel.grid
    if isinstance(channel, GridChannel):
        return channel
    raise UsageError(f"train_flows: expected grids or flows on them, got {type(channel).__name__}")


def train_flows(
    mixture: Mixture,
    points: Tensor,
    values: Tensor,
    log_p: Tensor,
    *,
    worth: Tensor | None = None,
    loss: Loss = "kl",
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Mixture:
    """Train flows on top of the grids of a mixture, or train those it has further.

    Args:
        mixture: product grids, or flows on them, and last the uniform density.
        points: where the integrand was evaluated, ``(n, D)``.
        values: |f| there, ``(n,)``, of which those that are zero teach nothing.
        log_p: log-density that the points were drawn from, ``(n,)``.
        worth: factor of each point, ``(n,)``, for points of several proposals; None weights them alike.
        loss: what is made small.
        config: settings of the training.
        seed: of the weights and the batches.
        progress: whether to show a progress bar.
    """
    known = next((each.flow for each in mixture.maps if isinstance(each, FlowMap)), None)
    model = _Channels(mixture, known, seed)
    keep = values > 0
    points, log_f, log_p = points[keep], values[keep].log(), log_p[keep]
    places = [grid.to_v(points) for grid in model.grids]
    z = torch.stack([2 * v - 1 for v, _ in places], 1).float()
    log_grid = torch.stack([log_density for _, log_density in places], 1).float()
    log_weight = log_f - log_p + (0.0 if worth is None else worth[keep].log())
    weights = torch.exp(log_weight - log_weight.logsumexp(0) + math.log(len(log_weight))).float()
    scale = float((weights.double() * (log_f - log_p)).sum() / weights.sum())
    relative = (log_f - scale).float()

    def per_event(z: Tensor, log_grid: Tensor, relative: Tensor, weight: Tensor) -> Tensor:
        joint = model.log_joint(z, log_grid)
        log_q = joint.logsumexp(1)
        if loss == "kl":
            return -log_q
        ratio = torch.exp((relative - log_q).clamp(max=_LARGEST))
        if loss == "variance":
            return ratio
        if loss == "tail":
            return ratio**_TAIL_POWER
        shares = torch.exp(joint.detach() - joint.detach().logsumexp(1, keepdim=True))
        moments = (shares * (weight * ratio).unsqueeze(1)).mean(0)
        return moments.clamp(min=1e-12).sqrt().sum().square().expand(len(z))

    settings = config or TrainConfig(epochs=40, patience=6)
    train(
        model, per_event, [z, log_grid, relative, weights], weights=weights, config=settings, seed=seed,
        progress=progress, description="flows",
    )  # fmt: skip
    model.flow.eval()
    return model.mixture(ProductGrid.uniform(mixture.dims))
