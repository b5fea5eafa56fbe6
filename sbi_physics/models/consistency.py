r"""`ConsistencyModel`: a generator that takes all noise off an event at once, and draws in one or a few steps.

A diffusion model (`models.diffusion`) carries noise to events along the solutions of a differential equation.  Each
solution ends in one event, and a consistency function f gives that end from any point of the way (Song et al. 2023,
arXiv:2303.01469),

$$ f(u_\phi, \phi | c) = u_0, \qquad f(u, \phi | c) = \cos\phi\,u - \sin\phi\,F(u, \phi | c), $$

with a network F whose form makes f the identity at $\phi = 0$ (Lu and Song 2024, arXiv:2410.11081) and which can begin
as the velocity of the diffusion model.  One step is f of pure noise, $\phi = \pi/2$.  In k steps the event is mixed
with fresh noise and taken to its end again, at ever smaller angles: what an earlier step got wrong is forgotten there.

F is learned by least squares from solutions of a trained diffusion model, the teacher (as by Luhman and Luhman 2021,
arXiv:2101.02388, for one step): in few dimensions whole solutions cost so little that f need not be taught by itself
from one point of the way to the next.  `train.consistency` does it.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.models.diffusion.network import VelocityNetwork
from sbi_physics.models.generator import ConditionalGenerator, rows_of

__all__ = ["ConsistencyModel"]

_ROWS_AT_ONCE = 1 << 16
_SCALINGS = ("event_scaling", "context_scaling")


class ConsistencyModel(ConditionalGenerator):
    """A generator that draws in one or a few evaluations of its network; satisfies `Generator`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        hidden_features: width of the network.
        blocks: its residual blocks.
        steps: evaluations of the network for an event.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        hidden_features: int = 128,
        blocks: int = 3,
        steps: int = 1,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        self.steps = positive_integer(steps, "steps")
        self._size: dict[str, Any] = {
            "hidden_features": hidden_features,
            "blocks": blocks,
            "context_features": context_features,
        }
        width = self.context_shape.numel() if context_features is None else context_features
        self.network = VelocityNetwork(
            event_shape[0], width if self.conditional else None, hidden_features=hidden_features, blocks=blocks
        )

    @property
    def angles(self) -> list[float]:
        """The angles of the steps, falling from pi/2."""
        return [0.5 * math.pi * (1 - i / self.steps) ** 2 for i in range(self.steps)]

    @property
    def noise_features(self) -> int:
        """How many normal numbers make an event."""
        return self.steps * self.event_shape[0]

    def new_teacher(self) -> DiffusionDensity:
        """An untrained diffusion model of the same encoded events, contexts and size, with the scalings of this one."""
        teacher = DiffusionDensity(
            tuple(self.event_shape),
            tuple(self.context_shape) if self.conditional else None,
            embedding=copy.deepcopy(self.embedding),
            **self._size,
        )
        for name in _SCALINGS:
            setattr(teacher, name, copy.deepcopy(getattr(self, name)))
        return teacher.to(self.device)

    def begin_as(self, teacher: DiffusionDensity) -> None:
        """Take over the scalings of a trained diffusion model; and its network, where it is of the same size.

        Args:
            teacher: of the same events and contexts.
        """
        for name in _SCALINGS:
            getattr(self, name).load_state_dict(getattr(teacher, name).state_dict())
        sizes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (self, teacher)]
        if sizes[0] == sizes[1]:
            self.load_state_dict(teacher.state_dict())

    def loss(self, encoded: Tensor, noisy: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The squared distance of the end of a solution from what is made of points on the way, their mean: ``(n,)``.

        Args:
            encoded: where the solutions end ``(n, D)``.
            noisy: where they are at `angles`, ``(n, steps, D)``.
            contexts: *scaled* contexts ``(n, *context_shape)``.
        """
        description = self.network.describe(self._embedded(contexts))
        angles = encoded.new_tensor(self.angles).split(1)
        ends = [self._end(points, angle, description) for points, angle in zip(noisy.unbind(1), angles, strict=True)]
        return torch.stack([(end - encoded).square().sum(-1) for end in ends]).mean(0)

    def _end(self, points: Tensor, angle: Tensor, description: Tensor | None) -> Tensor:
        """Where the solutions through points ``(n, D)`` at an angle ``(1,)`` end."""
        return angle.cos() * points - angle.sin() * self.network(points, angle, description)

    def generate(self, noise: Tensor, summary: Tensor | None = None) -> Tensor:
        """Encoded events ``(n, D)`` from standard normal noise ``(n, steps D)`` and summaries ``(n, C)``, or one row.

        Raises:
            ShapeError: the noise has another width.
        """
        if noise.shape[-1:] != (self.noise_features,):
            raise ShapeError(f"noise: expected shape (n, {self.noise_features}), got {tuple(noise.shape)}")
        description = self.network.describe(summary)
        first, *later = noise.chunk(self.steps, -1)
        angle, *angles = noise.new_tensor(self.angles).split(1)
        events = self._end(first, angle, description)
        for angle, fresh in zip(angles, later, strict=True):
            events = self._end(angle.cos() * events + angle.sin() * fresh, angle, description)
        return events

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            noise = torch.randn(
                part.stop - part.start, self.noise_features, device=self.device, dtype=self.event_scaling.mean.dtype
            )
            parts.append(self.generate(noise, rows_of(summary, part)))
        return torch.cat(parts)
