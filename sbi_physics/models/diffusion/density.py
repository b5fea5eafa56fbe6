r"""`DiffusionDensity`: flow matching and score-based diffusion, which differ in how they are trained.

An event z (standardised) and standard normal noise e meet at an angle, $u_\phi = \cos\phi\, z + \sin\phi\, e$, which
has unit variance at all of them.  A network f learns the mean velocity there by least squares,

$$ f(u, \phi | c) \approx E[\cos\phi\, e - \sin\phi\, z \,|\, u_\phi = u, c], $$

and $du/d\phi = f$ carries the normal distribution at $\phi = \pi/2$ to the density at $\phi = 0$ (Song et al. 2021,
arXiv:2011.13456; in angles: Salimans and Ho 2022, arXiv:2202.00512).  All Gaussian paths are this one up to a scale
and the choice of the time (Kingma and Gao 2023, arXiv:2303.00848).  What remains is which angles training looks at:

* ``"flow-matching"``: the straight path $z_t = (1-t)z + te$, so that $\tan\phi = t/(1-t)$, and the squared error of its
  velocity $e - z$ (Lipman et al. 2023, arXiv:2210.02747).  Times are denser near the events, as sharp posteriors need
  it (Wildberger et al. 2023, arXiv:2305.17161): t is uniform in its logarithm.
* ``"score"``: the noise level $\sin\phi$ is uniform in its logarithm, which weights the error of the score so that it
  bounds the log-density (Song et al. 2021, arXiv:2101.09258; for posteriors: Sharrock et al. 2022, arXiv:2210.04872).

In validation both have the same loss, that bound itself, in nats:

$$ -\ln q(z) \le \frac D2 \ln 2\pi e + \int d\ln\sin\phi\, \big( E|f - (\cos\phi\, e - \sin\phi\, z)|^2 - D \big). $$
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.diffusion.multistep import angles_of, follow
from sbi_physics.models.diffusion.network import SMALLEST_LEVEL, VelocityNetwork
from sbi_physics.models.diffusion.ode import Field, solve, solve_once
from sbi_physics.models.generator import rows_of
from sbi_physics.models.pushforward import PushforwardGenerator

__all__ = ["OBJECTIVES", "DiffusionDensity"]

OBJECTIVES = ("flow-matching", "score")
_ROWS_AT_ONCE = 1 << 13
# For each event of the validation.
_POINTS = 8
_TINY = 1e-12


class DiffusionDensity(ConditionalDensity, PushforwardGenerator):
    """A density at the end of a learned differential equation; satisfies `Density`.

    Log-densities carry no gradients.  They cost about D + 1 times as much as draws.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        objective: ``"flow-matching"`` or ``"score"``.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        hidden_features: width of the network.
        blocks: its residual blocks.
        steps: of the solver, four evaluations of the network each.
        sampling_steps: evaluations of the network for a draw without its density (`models.diffusion.multistep`); None
            draws with the solver that densities need, which takes 4 `steps`.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        objective: str = "flow-matching",
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        hidden_features: int = 128,
        blocks: int = 3,
        steps: int = 32,
        sampling_steps: int | None = None,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        known_keys([objective], OBJECTIVES, "objective")
        self.objective, self.steps = objective, positive_integer(steps, "steps")
        self.sampling_steps = None if sampling_steps is None else positive_integer(sampling_steps, "sampling_steps")
        width = self.context_shape.numel() if context_features is None else context_features
        self.network = VelocityNetwork(
            event_shape[0], width if self.conditional else None, hidden_features=hidden_features, blocks=blocks
        )

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """In training the squared error of the velocity at a random angle for each event: ``(n,)``.

        In evaluation the bound of minus the log-density in nats, at angles and with noise that are the same each time.
        """
        description = self.network.describe(self._embedded(contexts))
        return self._training_loss(encoded, description) if self.training else self._bound(encoded, description)

    def _training_loss(self, encoded: Tensor, description: Tensor | None) -> Tensor:
        n = len(encoded)
        # One in each of n equal strata: the mean over a batch varies less.
        quantiles = (torch.randperm(n, device=encoded.device) + torch.rand_like(encoded[:, 0])) / n
        level = _log_uniform(quantiles)
        if self.objective == "score":
            return self._squared_error(encoded, description, torch.asin(level), torch.randn_like(encoded))
        # The straight path at the time that is this share of noise, whose velocity is the other one, scaled.
        error = self._squared_error(encoded, description, torch.atan2(level, 1 - level), torch.randn_like(encoded))
        return error / (level**2 + (1 - level) ** 2)

    def _bound(self, encoded: Tensor, description: Tensor | None) -> Tensor:
        n, dims = encoded.shape
        # Points that fill the cube evenly, some for each event: the mean errs far less than with random ones.
        cube = SobolEngine(dims + 1, scramble=True, seed=0).draw(_POINTS * n, dtype=torch.float64)
        cube = cube.clamp(_TINY, 1 - _TINY).reshape(n, _POINTS, dims + 1).to(encoded.device)
        noise, angles = torch.special.ndtri(cube[..., 1:]), torch.asin(_log_uniform(cube[..., 0]))
        noise, angles = noise.to(encoded), angles.to(encoded)
        total = encoded.new_zeros(n)
        for i in range(_POINTS):
            total = total + self._squared_error(encoded, description, angles[:, i], noise[:, i]) - dims
        return 0.5 * dims * math.log(2 * math.pi * math.e) - math.log(SMALLEST_LEVEL) * total / _POINTS

    def _squared_error(self, encoded: Tensor, description: Tensor | None, angles: Tensor, noise: Tensor) -> Tensor:
        signal, level = angles.cos().unsqueeze(-1), angles.sin().unsqueeze(-1)
        velocity = self.network(signal * encoded + level * noise, angles, description)
        return (velocity - (signal * noise - level * encoded)).square().sum(-1)

    @torch.no_grad()
    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, max(len(encoded), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            noise, divergence = self._carry(encoded[part], rows_of(summary, part), to_noise=True, divergences=True)
            parts.append(_log_normal(noise) + divergence)
        return torch.cat(parts)

    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        noise = torch.randn(n, *self.event_shape, device=self.device, dtype=self.event_scaling.mean.dtype)
        events, log_probs = [], []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            if self.sampling_steps is not None and not densities:
                events.append(self.follow(noise[part], rows_of(summary, part), angles_of(self.sampling_steps))[-1])
                continue
            event, divergence = self._carry(noise[part], rows_of(summary, part), to_noise=False, divergences=densities)
            events.append(event)
            log_probs.append(_log_normal(noise[part]) - divergence)
        return torch.cat(events), torch.cat(log_probs) if densities else None

    @property
    def noise_features(self) -> int:
        """D."""
        return self.event_shape[0]

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        description = self.network.describe(summary)
        return solve_once(lambda angle, points: self.network(points, angle, description), noise, steps=self.steps)

    def summary(self, contexts: Tensor | None) -> Tensor | None:
        """Summaries ``(n, C)`` of *scaled* contexts, as `follow` takes them."""
        return self._embedded(contexts)

    def follow(self, noise: Tensor, summary: Tensor | None, angles: Sequence[float]) -> list[Tensor]:
        """Where the solutions that begin as noise ``(n, D)`` are at falling angles, see `multistep.follow`.

        Args:
            noise: standard normal, at the first angle, pi/2.
            summary: of the contexts, ``(n, C)``, one row for all, or None.
            angles: one evaluation of the network at each but the last; at the angle 0 are the encoded events.
        """
        return follow(self._field(noise, summary), noise, angles)

    def _carry(
        self, points: Tensor, summary: Tensor | None, *, to_noise: bool, divergences: bool
    ) -> tuple[Tensor, Tensor]:
        field_at = self._field(points, summary)
        return solve(field_at, points, steps=self.steps, to_noise=to_noise, divergences=divergences)

    def _field(self, points: Tensor, summary: Tensor | None) -> Callable[[float], Field]:
        description = self.network.describe(summary)

        def field_at(angle: float) -> Field:
            condition = self.network.condition(points.new_tensor([angle]), description)
            return lambda position: self.network.velocity(position, condition)

        return field_at


def _log_uniform(quantiles: Tensor) -> Tensor:
    """Levels of noise that are uniform in their logarithm, from the smallest to one."""
    return torch.exp(math.log(SMALLEST_LEVEL) * (1 - quantiles))


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * noise.square().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi)
