"""Build a generator by name: models that draw events given a context, whether or not they can evaluate them.

===============  ==========================================  =========================================================
name             what it is                                  strong at
===============  ==========================================  =========================================================
``vae``          a variational autoencoder (`models.vae`)    many dimensions that follow from a few; draws in one pass
``gan``          a network trained against a critic          the same, and sharp; may lose modes, which training
                 (`models.gan`)                              watches
``energy``       an energy that draws descend                constraints that are easy to check and hard to sample;
                 (`models.energy`)                           draws take hundreds of steps
``consistency``  what a diffusion model does, in one step    what diffusion models are strong at, where draws are to
                 or a few (`models.consistency`)             be cheap
===============  ==========================================  =========================================================

Densities, which draw too, are built by `models.build`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.models.build import context_width
from sbi_physics.models.consistency import ConsistencyModel
from sbi_physics.models.energy import EnergyModel
from sbi_physics.models.gan import GenerativeAdversarialNetwork
from sbi_physics.models.generator import ConditionalGenerator
from sbi_physics.models.vae.model import VariationalAutoencoder

__all__ = ["GENERATORS", "GeneratorKind", "build_generator"]


@dataclass(frozen=True)
class GeneratorKind:
    """A kind of generator.

    Attributes:
        make: called with event and context shape, and by name with context_features, bounds, embedding and the options.
        options: their names.
        training: settings in which its training differs from the defaults of the loop that trains it.
    """

    make: Callable[..., ConditionalGenerator]
    options: tuple[str, ...]
    training: dict[str, Any]


_VAE_OPTIONS = (
    "latent",
    "decoder",
    "noise",
    "latent_prior",
    "prior_transforms",
    "prior_features",
    "beta",
    "warmup_steps",
    "hidden_features",
    "blocks",
    "groups",
    "angles",
    "components",
)
_GAN_OPTIONS = (
    "loss",
    "noise_features",
    "hidden_features",
    "blocks",
    "spectral",
    "penalty",
    "groups",
    "angles",
    "components",
)
_ENERGY_OPTIONS = ("hidden_features", "blocks", "steps", "training_steps", "step_size", "adjusted", "regulariser")
_CONSISTENCY_OPTIONS = ("hidden_features", "blocks", "steps")
GENERATORS: dict[str, GeneratorKind] = {
    "vae": GeneratorKind(VariationalAutoencoder, _VAE_OPTIONS, {"epochs": 60}),
    "gan": GeneratorKind(GenerativeAdversarialNetwork, _GAN_OPTIONS, {}),
    "energy": GeneratorKind(EnergyModel, _ENERGY_OPTIONS, {}),
    "consistency": GeneratorKind(ConsistencyModel, _CONSISTENCY_OPTIONS, {}),
}


def build_generator(
    name: str,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None = None,
    *,
    bounds: Tensor | None = None,
    embedding: nn.Module | None = None,
    **options: Any,
) -> ConditionalGenerator:
    """Build an untrained generator.

    Args:
        name: a key of `GENERATORS`.
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        **options: of the model.

    Raises:
        UsageError: the name or an option is not known, or has a value that it does not take.
        ShapeError: the embedding network does not give ``(n, C)``.
    """
    known_keys([name], list(GENERATORS), "generator")
    kind = GENERATORS[name]
    known_keys(list(options), kind.options, f"option of the generator {name!r}")
    return kind.make(
        event_shape,
        context_shape,
        context_features=context_width(context_shape, embedding),
        bounds=bounds,
        embedding=embedding,
        **options,
    )
