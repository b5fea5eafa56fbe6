"""Build learned likelihoods and ratios from their description, for training and from files alike."""

from typing import Any

from torch import Tensor, nn

from sbi_physics.core.parameters import Parameters
from sbi_physics.models.build import Architecture, build_density, build_embedding, context_width
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.scaling import ParameterScaling
from sbi_physics.models.trend import Trend

__all__ = ["RATIO", "RATIO_OPTIONS", "build_likelihood", "build_ratio"]

RATIO = "classifier"
RATIO_OPTIONS = ("candidates", "hidden_features", "blocks")


def build_likelihood(
    architecture: Architecture, parameters: Parameters, varies: Tensor, counts: Tensor, *, engine: str = "auto"
) -> LearnedLikelihood:
    """An untrained likelihood of the observables that vary, booleans ``(D,)``."""
    scaling = ParameterScaling(parameters.bounds)
    density = build_density(architecture, bounds=None, context_scaling=scaling, engine=engine)
    trend = Trend(parameters.bounds, int(varies.sum()))
    return LearnedLikelihood(density, trend, architecture.observed_shape, varies, counts)


def build_ratio(architecture: Architecture, parameters: Parameters, embedding: nn.Module | None) -> RatioEstimator:
    """An untrained ratio.

    Raises:
        ShapeError: the embedding network does not give ``(n, C)``.
    """
    shape, embedding = architecture.observed_shape, build_embedding(architecture, embedding)
    width = None if embedding is None else context_width(shape, embedding)
    options: dict[str, Any] = architecture.options
    return RatioEstimator(parameters.bounds, shape, embedding, width, **options)
