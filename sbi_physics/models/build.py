"""Build a conditional density from its description, the same way when it is trained and when it is read from a file.

Beside the flows (`models.flows.build`) there are:

=================  =========================================  =====================================================
name               what it is                                 strong at
=================  =========================================  =====================================================
``mixture``        a mixture of Gaussians                     exact and fast both ways; a few smooth modes
``flow-matching``  an ordinary differential equation, learned separated modes and sharp edges; draws cost some 100
                   along straight paths                       evaluations of a network, densities D times more
``score``          the same, learned at noise levels that     as above
                   bound the density
``made``           one number after the other, each a mixture many dimensions; evaluation in one pass, draws one
                   of Gaussians given those before            dimension at a time
``recurrent``      the same with a recurrent network          sequences, whose numbers follow one rule
``kernel``         a Gaussian kernel on every event, weighted no training; few dimensions and many events
                   by the distance of the contexts
=================  =========================================  =====================================================
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.autoregressive import AutoregressiveDensity
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.diffusion.density import OBJECTIVES, DiffusionDensity
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.flows.build import FLOWS, build_flow, flow_options
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.ensemble import FlowEnsemble
from sbi_physics.models.kernel import KernelDensity
from sbi_physics.models.mixture import MixtureDensity
from sbi_physics.models.scaling import Scaling

__all__ = [
    "CUSTOM",
    "MODELS",
    "Architecture",
    "build_density",
    "build_embedding",
    "check_options",
    "context_width",
    "describe_embedding",
    "known_models",
    "known_options",
    "training_settings",
]

CUSTOM = "custom"


@dataclass(frozen=True)
class _Model:
    """A model that is no flow.

    Attributes:
        make: called with event and context shape, and by name with what `build_density` hands on and the options.
        options: their names.
        training: settings of the training loop that differ from its defaults.
    """

    make: Callable[..., ConditionalDensity]
    options: tuple[str, ...]
    training: dict[str, Any]


_DIFFUSION: dict[str, Any] = {
    "options": ("hidden_features", "blocks", "steps", "sampling_steps"),
    "training": {"epochs": 150, "batch_size": 512, "learning_rate": 5e-3, "ema": 0.995, "patience": 50},
}
MODELS: dict[str, _Model] = {
    "mixture": _Model(MixtureDensity, ("components", "hidden_features", "blocks"), {}),
    **{name: _Model(partial(DiffusionDensity, objective=name), **_DIFFUSION) for name in OBJECTIVES},
    "made": _Model(
        partial(AutoregressiveDensity, network="made"), ("components", "kernel", "hidden_features", "blocks"), {}
    ),
    "recurrent": _Model(
        partial(AutoregressiveDensity, network="gru"),
        ("network", "components", "kernel", "hidden_features", "blocks"),
        {},
    ),
    "kernel": _Model(KernelDensity, ("bandwidth",), {}),
}


def known_models() -> tuple[str, ...]:
    """The names of all models."""
    return (*FLOWS, *MODELS)


def known_options(model: str) -> tuple[str, ...]:
    """The names of the options of a model."""
    return tuple(FLOWS[model][1]) if model in FLOWS else MODELS[model].options


def check_options(model: str, options: Mapping[str, Any]) -> None:
    """Raise `UsageError` where a model has no such option, or a flow cannot be made of its value."""
    if model in FLOWS:
        flow_options(model, options)
    else:
        known_keys(list(options), known_options(model), f"option of the model {model!r}")


def training_settings(model: str) -> dict[str, Any]:
    """The settings of the training loop in which a model differs from the defaults of the loop."""
    return dict(MODELS[model].training) if model in MODELS else {}


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a model again.

    Attributes:
        model: one of `known_models` or another kind of model, or ``"custom"`` for a flow that the user handed in.
        event_shape: ``(D,)``.
        context_shape: the shape of one context, or None.
        options: of the model.
        embedding: whether the user handed in an embedding network; of an `Encoder` its description.
        members: flows of the ensemble; 1 for a single flow.
        x_shape: the shape of one observation where it is not the context.
        success: whether a probability of success was learned beside it.
    """

    model: str
    event_shape: tuple[int, ...]
    context_shape: tuple[int, ...] | None
    options: dict[str, Any] = field(default_factory=dict)
    embedding: bool | dict[str, Any] = False
    members: int = 1
    x_shape: tuple[int, ...] | None = None
    success: bool = False

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return self.x_shape if self.x_shape is not None else self.context_shape or ()

    def to_dict(self) -> dict[str, Any]:
        """The architecture in types that JSON knows."""
        return {
            "model": self.model,
            "event_shape": list(self.event_shape),
            "context_shape": None if self.context_shape is None else list(self.context_shape),
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in self.options.items()},
            "embedding": self.embedding,
            "members": self.members,
            **({} if self.x_shape is None else {"x_shape": list(self.x_shape)}),
            **({"success": True} if self.success else {}),
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "Architecture":
        """Read what `to_dict` wrote."""
        context = description["context_shape"]
        return cls(
            str(description["model"]),
            tuple(int(size) for size in description["event_shape"]),
            None if context is None else tuple(int(size) for size in context),
            dict(description["options"]),
            _embedding(description["embedding"]),
            # Files from before there were ensembles do not say.
            int(description.get("members", 1)),
            None if "x_shape" not in description else tuple(int(size) for size in description["x_shape"]),
            bool(description.get("success", False)),
        )


def build_density(
    architecture: Architecture,
    *,
    bounds: Tensor | None,
    flow: Flow | None = None,
    embedding: nn.Module | None = None,
    context_scaling: Scaling | None = None,
    engine: str = "auto",
) -> ConditionalDensity:
    """Build an untrained density.

    Args:
        architecture: its description.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        flow: the user's own flow, where the architecture says so.
        embedding: the user's own embedding network, where the architecture says so.
        context_scaling: what contexts go through first, see `ConditionalDensity`.
        engine: how the flow is run.

    Raises:
        UsageError: a network that the architecture needs was not handed in, or the architecture asks for what there is
            not: an unknown model or option, or an ensemble of something else than flows.
        ShapeError: the embedding network does not give ``(n, C)``.
    """
    embedding = build_embedding(architecture, embedding)
    if architecture.model == CUSTOM and flow is None:
        raise UsageError("flow: this model was trained with a flow of your own; hand in one of the same structure")
    if architecture.model in MODELS:
        return _build_other(architecture, bounds, embedding)
    whole: Flow | FlowEnsemble
    if flow is None:
        known_keys([architecture.model], known_models(), "model")
        width = context_width(architecture.context_shape, embedding)
        members = [
            build_flow(architecture.model, architecture.event_shape[0], width, **architecture.options)
            for _ in range(architecture.members)
        ]
        whole = FlowEnsemble(members) if len(members) > 1 else members[0]
    else:
        whole = flow
    event_shape, context_shape = architecture.event_shape, architecture.context_shape
    return FlowDensity(
        whole,
        event_shape,
        context_shape,
        bounds=bounds,
        embedding=embedding,
        context_scaling=context_scaling,
        engine=engine,
    )


def build_embedding(architecture: Architecture, embedding: nn.Module | None) -> nn.Module | None:
    """The embedding network of a model: as handed in, or an encoder built from its description.

    Raises:
        UsageError: the user's own is needed and was not handed in.
    """
    if embedding is None and isinstance(architecture.embedding, dict):
        return build_encoder(architecture.embedding, architecture.context_shape)
    if architecture.embedding and embedding is None:
        raise UsageError("embedding: this model was trained with an embedding network of your own; hand it in again")
    return embedding


def describe_embedding(embedding: nn.Module | None) -> bool | dict[str, Any]:
    """What an `Architecture` keeps of an embedding network."""
    return embedding.describe() if isinstance(embedding, Encoder) else embedding is not None


def _embedding(description: Any) -> bool | dict[str, Any]:
    return dict(description) if isinstance(description, dict) else bool(description)


def _build_other(architecture: Architecture, bounds: Tensor | None, embedding: nn.Module | None) -> ConditionalDensity:
    """Build a model that is no flow."""
    name, model = architecture.model, MODELS[architecture.model]
    if architecture.members != 1:
        raise UsageError(f"ensemble: only flows come in ensembles, got {architecture.members} of the model {name!r}")
    check_options(name, architecture.options)
    return model.make(
        architecture.event_shape,
        architecture.context_shape,
        context_features=context_width(architecture.context_shape, embedding),
        bounds=bounds,
        embedding=embedding,
        **architecture.options,
    )


def context_width(context_shape: tuple[int, ...] | None, embedding: nn.Module | None) -> int | None:
    """The width of what a model gets of a context: of its summary, or of the context itself."""
    if context_shape is None:
        return None
    if embedding is None:
        return int(torch.Size(context_shape).numel())
    training = embedding.training
    embedding.eval()
    with torch.no_grad():
        summary = embedding(torch.zeros(2, *context_shape))
    embedding.train(training)
    if summary.ndim != 2 or len(summary) != 2:
        raise ShapeError(f"embedding: expected summaries of shape (2, C) for 2 contexts, got {tuple(summary.shape)}")
    return int(summary.shape[1])
