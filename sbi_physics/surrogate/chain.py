"""`ModelChain`: a preprocessing and one conditional generator for each of its stages, which together draw outputs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.generator import ConditionalGenerator
from sbi_physics.models.pushforward import PushforwardGenerator
from sbi_physics.surrogate.preprocessing import Preprocessing

__all__ = ["ModelChain"]


class ModelChain(nn.Module):
    """p(x | theta) as a chain of generators.

    Args:
        preprocessing: between outputs and the events of the stages.
        models: one for each stage.
    """

    def __init__(self, preprocessing: Preprocessing, models: Sequence[ConditionalGenerator]) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.models = nn.ModuleList(models)

    @property
    def device(self) -> torch.device:
        """Where the models live."""
        return self.stages[0].device

    @property
    def stages(self) -> list[ConditionalGenerator]:
        """The models in the order in which they draw."""
        return [model for model in self.models if isinstance(model, ConditionalGenerator)]

    @property
    def has_density(self) -> bool:
        """Whether all models can evaluate what they draw."""
        return all(isinstance(model, ConditionalDensity) for model in self.models)

    @torch.no_grad()
    def sample(self, theta: Tensor, *, seed: int) -> Tensor:
        """Draw one output for each theta ``(n, P)``: ``(n, *x_shape)`` float32."""
        theta = theta.to(self.device)
        x = self.preprocessing.outputs(theta, self.draw(theta, self.stages, seed=seed))
        symmetry = self.preprocessing.symmetry
        if symmetry is None:
            return x
        with seeded(derive(seed, "symmetry"), x.device):
            return symmetry.draw(x.flatten(1)).reshape(x.shape)

    @torch.no_grad()
    def draw(self, theta: Tensor, stages: Sequence[ConditionalGenerator], *, seed: int) -> list[Tensor]:
        """Events of the first stages, for each theta ``(n, P)`` on the device of the models."""
        events: list[Tensor] = []
        for number, model in enumerate(stages):
            context = self.preprocessing.context(theta, events)
            events.append(model.sample(1, context, seed=derive(seed, "stage", number))[0])
        return events

    @property
    def noise_features(self) -> tuple[int, ...]:
        """How many standard normal numbers each stage draws an event from.

        Raises:
            UsageError: there is a model that draws in another way.
        """
        return tuple(model.noise_features for model in self._pushforwards())

    @torch.no_grad()
    def from_noise(self, theta: Tensor, noise: Tensor) -> Tensor:
        """The outputs ``(n, *x_shape)`` that standard normal noise ``(n, K)`` stands for; the stages one after another.

        Args:
            theta: ``(n, P)`` float32.
            noise: ``(n, K)`` float32, with K the sum of `noise_features`.

        Raises:
            ShapeError: the noise does not fit.
            UsageError: there is a model that draws in another way.
        """
        events: list[Tensor] = []
        widths = self.noise_features
        if noise.shape != (theta.shape[0], sum(widths)):
            raise ShapeError(f"noise: expected shape {(theta.shape[0], sum(widths))}, got {tuple(noise.shape)}")
        for model, part in zip(self._pushforwards(), noise.split(widths, -1), strict=True):
            events.append(model.from_noise(part, self.preprocessing.context(theta, events)))
        return self.preprocessing.decode(theta, events)

    def _pushforwards(self) -> list[PushforwardGenerator]:
        models = [model for model in self.stages if isinstance(model, PushforwardGenerator)]
        for other in self.stages:
            if not isinstance(other, PushforwardGenerator):
                raise UsageError(
                    f"noise: {type(other).__name__} does not draw from a fixed number of normal numbers; "
                    "all models but 'energy' and 'kernel' do"
                )
        return models

    @torch.no_grad()
    def log_prob(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """Log-density in nats of the events of all stages, given theta ``(n, P)``: ``(n,)``.

        Where there is a symmetry, that of the mean over its elements.
        """
        symmetry = self.preprocessing.symmetry
        if symmetry is None:
            return self._log_prob(theta, events)
        stages = self.preprocessing.stage_symmetries
        total = theta.new_full((len(theta),), -torch.inf, device=self.device)
        for element in range(len(symmetry)):
            moved = [e if s is None else s.moved(element, e) for s, e in zip(stages, events, strict=True)]
            total = torch.logaddexp(total, self._log_prob(theta, moved))
        return total - math.log(len(symmetry))

    def _log_prob(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        total = theta.new_zeros(len(theta), device=self.device)
        for number, model in enumerate(self.stages):
            if not isinstance(model, ConditionalDensity):
                raise TypeError(f"stage {number} has no density")
            context = self.preprocessing.context(theta.to(self.device), events[:number])
            total = total + model.log_prob(events[number], context)
        return total
