r"""The two-dimensional Ising model: spins on an L x L torus at a temperature T, with an exact likelihood.

With coupling and Boltzmann's constant one, spins $s_i = \pm 1$ and each pair of neighbours counted once,

$$ E(s) = -\sum_{\langle ij \rangle} s_i s_j, \qquad p(s|T) = e^{-E(s)/T} / Z_L(1/T). $$

Kaufman 1949 (doi:10.1103/PhysRev.76.1232) found Z of the finite torus: with K = 1/T,
$\cosh\gamma_l = \cosh 2K \coth 2K - \cos(\pi l/L)$ for l > 0, and $\gamma_0 = 2K + \ln\tanh K$,

$$ Z = \tfrac12 (2\sinh 2K)^{L^2/2} \Big[ \prod_r 2\cosh\tfrac{L\gamma_{2r+1}}2 + \prod_r 2\sinh\tfrac{L\gamma_{2r+1}}2
     + \prod_r 2\cosh\tfrac{L\gamma_{2r}}2 + \prod_r 2\sinh\tfrac{L\gamma_{2r}}2 \Big], \quad r = 0 \ldots L-1. $$

Samples come from a Markov chain (Metropolis et al. 1953, doi:10.1063/1.1699114; or the heat bath) that updates one
colour of a checkerboard at a time: no two neighbours have one colour, so those spins move together.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded

__all__ = [
    "CRITICAL_TEMPERATURE",
    "IsingModel",
    "enumerate_states",
    "exact_energy",
    "exact_log_partition",
    "spin_energy",
    "spin_magnetisation",
]

CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))
ALGORITHMS = ("metropolis", "heat-bath")
_COLDEST, _HOTTEST = 1.0, 4.0
# Of the square of the side: a few times the relaxation time at the critical temperature.
_SWEEPS = 4
_MOST_ENUMERATED = 20


class IsingModel:
    """One parameter, the temperature; L*L observables, the spins; satisfies `TractableSimulator`.

    All chains start from an ordered lattice of random sign, where there are no long-lived stripes.

    Args:
        side: L, an even number.
        sweeps: updates of each spin; None for 4 L^2.
        algorithm: ``"metropolis"`` or ``"heat-bath"``.

    Raises:
        UsageError: an odd side, or an unknown algorithm.
    """

    name = "ising"

    def __init__(self, side: int = 16, *, sweeps: int | None = None, algorithm: str = "metropolis") -> None:
        self.side = positive_integer(side, "side")
        if self.side % 2:
            raise UsageError(f"side: expected an even number, as a checkerboard on a torus needs, got {side}")
        known_keys([algorithm], ALGORITHMS, "algorithm")
        self.sweeps = _SWEEPS * self.side**2 if sweeps is None else positive_integer(sweeps, "sweeps")
        self.algorithm = algorithm
        self.parameters = Parameters([Parameter("temperature", td.Uniform(_COLDEST, _HOTTEST), label="$T$")])
        self.x_shape = torch.Size([self.side**2])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: temperatures theta ``(n, 1)`` give spins x ``(n, L*L)`` of plus and minus one, float32."""
        self.parameters.check_width(theta)
        shape = (len(theta), self.side, self.side)
        inverse = 1 / theta.detach().to(torch.float32).unsqueeze(-1)
        index = torch.arange(self.side, device=theta.device)
        colour = (index.unsqueeze(0) + index.unsqueeze(1)) % 2
        with seeded(seed, theta.device):
            spins = _signs(torch.rand((len(theta), 1, 1), device=theta.device) < 0.5).expand(shape)
            for _ in range(self.sweeps):
                for parity in (0, 1):
                    spins = torch.where(colour == parity, self._updated(spins, inverse), spins)
        return spins.reshape(len(theta), -1).contiguous()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-probability in nats, float64: theta ``(*, 1)`` broadcast with spins x ``(*, L*L)`` gives ``(*,)``.

        Minus infinity where x holds anything but plus and minus one.
        """
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1:] != self.x_shape:
            raise ShapeError(f"x: expected shape (*, {self.side**2}), got {tuple(x.shape)}")
        inverse = 1 / theta.to(torch.float64).squeeze(-1)
        spins = x.to(theta.device, torch.float64)
        value = -inverse * self.side**2 * spin_energy(spins) - exact_log_partition(self.side, inverse)
        return torch.where((spins.abs() == 1).all(-1), value, -torch.inf)

    def _updated(self, spins: Tensor, inverse: Tensor) -> Tensor:
        """All spins ``(n, L, L)`` updated, each as if its neighbours stayed."""
        field = sum(spins.roll(shift, axis) for shift in (1, -1) for axis in (1, 2))
        share = torch.rand(spins.shape, device=spins.device)
        if self.algorithm == "heat-bath":
            return _signs(share < torch.sigmoid(2 * inverse * field))
        return torch.where(share < torch.exp(-2 * inverse * field * spins), -spins, spins)


def spin_energy(spins: Tensor) -> Tensor:
    """Energy per spin ``(*,)``, in units of the coupling, of flat square lattices ``(*, L*L)``."""
    lattice = _square(spins)
    bonds = lattice * (lattice.roll(1, -1) + lattice.roll(1, -2))
    return -bonds.mean((-2, -1))


def spin_magnetisation(spins: Tensor) -> Tensor:
    """Magnetisation per spin ``(*,)``, of either sign, of flat square lattices ``(*, L*L)``."""
    return spins.mean(-1)


def exact_log_partition(side: int, inverse_temperature: Tensor) -> Tensor:
    """Ln Z of the L x L torus by Kaufman's formula, differentiable.

    Args:
        side: L.
        inverse_temperature: K ``(*,)``, in units of the inverse coupling; computed in float64.

    Returns:
        ln Z ``(*,)``.

    Raises:
        SupportError: an inverse temperature is not positive.
    """
    k = inverse_temperature.to(torch.float64)
    if k.device.type != "meta" and not bool((k > 0).all()):
        raise SupportError("inverse_temperature: expected positive numbers")
    order = torch.arange(1, 2 * side, dtype=torch.float64, device=k.device)
    ordinate = torch.cosh(2 * k) / torch.tanh(2 * k)
    gamma = torch.acosh(ordinate.unsqueeze(-1) - torch.cos(math.pi * order / side))
    half = 0.5 * side * torch.cat([(2 * k + torch.log(torch.tanh(k))).unsqueeze(-1), gamma], -1)
    even, odd = half[..., 0::2], half[..., 1::2]
    # Each hyperbolic sine is its cosine times a tangent: no logarithm of gamma_0, which changes sign at T_c.
    cosh_even, cosh_odd = (_log_two_cosh(part).sum(-1) for part in (even, odd))
    ratio = torch.exp(cosh_even - cosh_odd)
    total = 1 + torch.tanh(odd).prod(-1) + ratio * (1 + torch.tanh(even).prod(-1))
    log_two_sinh = 2 * k + torch.log1p(-torch.exp(-4 * k))
    return 0.5 * side**2 * log_two_sinh - math.log(2) + cosh_odd + torch.log(total)


def exact_energy(side: int, temperature: Tensor) -> Tensor:
    """Mean energy per spin of the L x L torus, float64 ``(*,)``, the derivative of Kaufman's ln Z.

    Args:
        side: L.
        temperature: T ``(*,)``.
    """
    with torch.enable_grad():
        k = (1 / temperature.detach().to(torch.float64)).requires_grad_()
        (slope,) = torch.autograd.grad(exact_log_partition(side, k).sum(), k)
    return -slope / side**2


def enumerate_states(side: int) -> Tensor:
    """All 2^(L*L) states of a small lattice, float64 ``(2**(L*L), L*L)``.

    Raises:
        UsageError: the lattice has more than 20 spins.
    """
    spins = positive_integer(side, "side") ** 2
    if spins > _MOST_ENUMERATED:
        raise UsageError(f"side: expected at most {math.isqrt(_MOST_ENUMERATED)} to enumerate all states, got {side}")
    number = torch.arange(2**spins).unsqueeze(-1)
    return _signs((number >> torch.arange(spins)) % 2 == 1).to(torch.float64)


def _square(spins: Tensor) -> Tensor:
    side = math.isqrt(spins.shape[-1]) if spins.ndim else 0
    if side < 1 or side**2 != spins.shape[-1]:
        raise ShapeError(f"spins: expected shape (*, L*L) of a square lattice, got {tuple(spins.shape)}")
    return spins.unflatten(-1, (side, side))


def _signs(up: Tensor) -> Tensor:
    return 2.0 * up.to(torch.float32) - 1.0


def _log_two_cosh(value: Tensor) -> Tensor:
    return value.abs() + torch.log1p(torch.exp(-2 * value.abs()))
