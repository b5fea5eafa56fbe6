r"""`RestrictedBoltzmannMachine`: binary units v that are independent given binary hidden units h, and the reverse.

$$ p(v, h) = e^{a \cdot v + b \cdot h + v^T W h} / Z, \qquad
   F(v) = -a \cdot v - \textstyle\sum_j \ln \sum_{h_j} e^{h_j (b + W^T v)_j}, \qquad p(v) = e^{-F(v)} / Z, $$

with units of 0 and 1, or spins of -1 and 1 (Smolensky 1986; Hinton 2002, doi:10.1162/089976602760128018).  The
gradient of the log-likelihood is that of $E_p[F(v)] - E_{data}[F(v)]$; block Gibbs sampling, all hidden units and then
all visible ones, gives draws from p:

* contrastive divergence (CD-k) starts them at the data and goes k steps (Hinton 2002);
* persistent contrastive divergence goes on from where the last step ended (Tieleman 2008, doi:10.1145/1390156.1390290).

Z is a sum over the states of the smaller layer; for larger machines annealed importance sampling estimates it (Neal
2001, arXiv:physics/9803008; Salakhutdinov and Murray 2008, doi:10.1145/1390156.1390266).
"""

import itertools
import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.checks import finite, known_keys, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded

__all__ = ["UNITS", "LogPartition", "RestrictedBoltzmannMachine"]

UNITS = ("spin", "binary")
_MOST_SUMMED = 22
_STATES_AT_ONCE = 1 << 14
# Up to here validation sums over all states, for it does so once an epoch.
_QUICKLY_SUMMED = 16
_START = 0.05


class LogPartition(NamedTuple):
    """An estimate of ln Z.

    Attributes:
        value: in nats.
        error: its standard error; zero where all states were summed.
        effective_sample_size: of the weights of annealed importance sampling; infinite where all states were summed.
    """

    value: float
    error: float
    effective_sample_size: float


class RestrictedBoltzmannMachine(nn.Module):
    """A restricted Boltzmann machine; satisfies `Generator`.

    Args:
        visible: V, how many visible units.
        hidden: H, how many hidden units.
        units: ``"spin"`` for -1 and 1, ``"binary"`` for 0 and 1; of both layers.
        steps: k, of Gibbs sampling for each step of training.
        persistent: whether chains go on from step to step.
        biases: whether there are any; spins without biases have the same probability when all are flipped, as magnets
            without a field have.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    chains: Tensor

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        units: str = "spin",
        steps: int = 5,
        persistent: bool = True,
        biases: bool = True,
    ) -> None:
        super().__init__()
        known_keys([units], UNITS, "units")
        self.visible, self.hidden = positive_integer(visible, "visible"), positive_integer(hidden, "hidden")
        self.units, self.steps, self.persistent = units, positive_integer(steps, "steps"), persistent
        self.event_shape, self.context_shape = torch.Size([self.visible]), torch.Size()
        self.weight = nn.Parameter(_START * torch.randn(self.visible, self.hidden))
        self.visible_bias = nn.Parameter(torch.zeros(self.visible), requires_grad=biases)
        self.hidden_bias = nn.Parameter(torch.zeros(self.hidden), requires_grad=biases)
        # While training: the states of the persistent chains.
        self.register_buffer("chains", torch.empty(0, self.visible))

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.weight.device

    def free_energy(self, v: Tensor) -> Tensor:
        """F ``(*,)`` in nats of visible states ``(*, V)``.

        Raises:
            ShapeError: the states have another width.
        """
        if v.shape[-1:] != self.event_shape:
            raise ShapeError(f"v: expected shape (*, {self.visible}), got {tuple(v.shape)}")
        return -(v @ self.visible_bias) - self._log_sum(v @ self.weight + self.hidden_bias).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, *, steps: int = 1000, seed: int | None = None) -> Tensor:
        """Draw n visible states ``(n, V)`` by that many steps of Gibbs sampling from random states.

        Raises:
            ShapeError: there is a context.
        """
        if context is not None:
            raise ShapeError("context: this model is unconditional, expected None")
        positive_integer(steps, "steps")
        with seeded(seed, self.device):
            v = self._random(positive_integer(n, "n"))
            return self._gibbs(v, steps)

    @torch.no_grad()
    def start_chains(self, count: int) -> Self:
        """Begin persistent chains at random states, on the current random stream."""
        self.chains = self._random(positive_integer(count, "count"))
        return self

    def end_chains(self) -> Self:
        """Forget the persistent chains."""
        self.chains = self.chains[:0].clone()
        return self

    def loss(self, v: Tensor) -> Tensor:
        """In training a number for each event ``(n,)`` whose mean has the gradient of contrastive divergence.

        In evaluation minus the log-probability in nats, or the pseudo-likelihood of larger machines.
        """
        if not self.training:
            return self._validation_loss(v)
        with torch.no_grad():
            if self.persistent and not len(self.chains):
                raise UsageError("chains: expected start_chains before training with persistent chains")
            drawn = self._gibbs(self.chains if self.persistent else v, self.steps)
            if self.persistent:
                self.chains = drawn
        if self.persistent:
            return self.free_energy(v) - self.free_energy(drawn).mean()
        return self.free_energy(v) - self.free_energy(drawn)

    @torch.no_grad()
    def log_partition(self) -> LogPartition:
        """Ln Z by a sum over all states of the smaller layer, in double precision.

        Raises:
            UsageError: both layers have more than 22 units; `annealed_log_partition` estimates.
        """
        if min(self.visible, self.hidden) > _MOST_SUMMED:
            raise UsageError(
                f"log_partition: expected a layer of at most {_MOST_SUMMED} units, got {self.visible} and "
                f"{self.hidden}; use annealed_log_partition"
            )
        weight, near, far = self._double()
        if self.hidden < self.visible:
            weight, near, far = weight.T, far, near
        total = torch.full((), -torch.inf, dtype=torch.float64, device=self.device)
        for start in range(0, 2 ** len(near), _STATES_AT_ONCE):
            number = torch.arange(start, min(start + _STATES_AT_ONCE, 2 ** len(near)), device=self.device)
            states = self._units((number.unsqueeze(-1) >> torch.arange(len(near), device=self.device)) % 2 == 1)
            log_weights = states @ near + self._log_sum(states @ weight + far).sum(-1)
            total = torch.logaddexp(total, log_weights.logsumexp(0))
        return LogPartition(float(total), 0.0, math.inf)

    @torch.no_grad()
    def annealed_log_partition(self, *, chains: int = 256, temperatures: int = 1000, seed: int = 0) -> LogPartition:
        """Ln Z by annealed importance sampling from the machine without weights and biases.

        Args:
            chains: how many independent ones.
            temperatures: steps on the way, each with one of Gibbs sampling.
            seed: of the chains.
        """
        if positive_integer(chains, "chains") < 2:
            raise UsageError(f"chains: expected at least 2, got {chains}")
        weight, visible_bias, hidden_bias = self._double()
        betas = torch.linspace(0, 1, positive_integer(temperatures, "temperatures") + 1, dtype=torch.float64).tolist()

        def log_weight(v: Tensor, beta: float) -> Tensor:
            return beta * (v @ visible_bias) + self._log_sum(beta * (v @ weight + hidden_bias)).sum(-1)

        with seeded(seed, self.device):
            v = self._random(chains).to(torch.float64)
            total = torch.zeros(chains, dtype=torch.float64, device=self.device)
            for before, beta in itertools.pairwise(betas):
                total += log_weight(v, beta) - log_weight(v, before)
                h = self._draw(beta * (v @ weight + hidden_bias))
                v = self._draw(beta * (h @ weight.T + visible_bias))
        shares = total.softmax(0)
        size = float(1 / shares.square().sum())
        # The error of the mean of the weights, relative to it.
        error = float((shares * chains).std() / chains**0.5)
        value = float(total.logsumexp(0)) - math.log(chains) + (self.visible + self.hidden) * math.log(2)
        return LogPartition(value, error, size)

    def _validation_loss(self, v: Tensor) -> Tensor:
        if min(self.visible, self.hidden) <= _QUICKLY_SUMMED:
            return self.free_energy(v) + self.log_partition().value
        finite(v, "v")
        energy, total = self.free_energy(v), torch.zeros_like(v[:, 0])
        for i in range(self.visible):
            flipped = v.clone()
            flipped[:, i] = -v[:, i] if self.units == "spin" else 1 - v[:, i]
            total = total + F.softplus(energy - self.free_energy(flipped))
        return total

    def _gibbs(self, v: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            h = self._draw(v @ self.weight + self.hidden_bias)
            v = self._draw(h @ self.weight.T + self.visible_bias)
        return v

    def _draw(self, field: Tensor) -> Tensor:
        """Units that see a field, each on its own."""
        odds = 2 * field if self.units == "spin" else field
        return self._units(torch.rand_like(odds) < torch.sigmoid(odds)).to(field)

    def _random(self, n: int) -> Tensor:
        return self._units(torch.rand(n, self.visible, device=self.device) < 0.5).to(self.weight)

    def _units(self, up: Tensor) -> Tensor:
        return 2 * up.double() - 1 if self.units == "spin" else up.double()

    def _log_sum(self, field: Tensor) -> Tensor:
        """Ln of the sum over the two states of a unit in a field."""
        if self.units == "binary":
            return F.softplus(field)
        return field.abs() + F.softplus(-2 * field.abs())

    def _double(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        return f"visible={self.visible}, hidden={self.hidden}, units={self.units}"
