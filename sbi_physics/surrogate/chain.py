"""`ModelChain`: a preprocessing and one conditional generator for each of its stages, which together draw outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_physics.core.random import derive
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.generator import ConditionalGenerator
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
        return self.preprocessing.decode(theta, self.draw(theta, self.stages, seed=seed))

    @torch.no_grad()
    def draw(self, theta: Tensor, stages: Sequence[ConditionalGenerator], *, seed: int) -> list[Tensor]:
        """Events of the first stages, for each theta ``(n, P)`` on the device of the models."""
        events: list[Tensor] = []
        for number, model in enumerate(stages):
            context = self.preprocessing.context(theta, events)
            events.append(model.sample(1, context, seed=derive(seed, "stage", number))[0])
        return events

    @torch.no_grad()
    def log_prob(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """Log-density in nats of the events of all stages, given theta ``(n, P)``: ``(n,)``."""
        total = theta.new_zeros(len(theta), device=self.device)
        for number, model in enumerate(self.stages):
            if not isinstance(model, ConditionalDensity):
                raise TypeError(f"stage {number} has no density")
            context = self.preprocessing.context(theta.to(self.device), events[:number])
            total = total + model.log_prob(events[number], context)
        return total
