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
=================  =========================================  =====================================================
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.diffusion.density import OBJECTIVES, DiffusionDensity
from sbi_physics.models.flows.build import FLOWS, build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.ensemble import FlowEnsemble
from sbi_physics.models.mixture import MixtureDensity

__all__ = ["CUSTOM", "MODELS", "Architecture", "build_density", "known_models", "training_settings"]

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
    "options": ("hidden_features", "blocks", "steps"),
    "training": {"epochs": 150, "batch_size": 512, "learning_rate": 5e-3, "ema": 0.995, "patience": 50},
}
MODELS: dict[str, _Model] = {
    "mixture": _Model(MixtureDensity, ("components", "hidden_features", "blocks"), {}),
    **{name: _Model(partial(DiffusionDensity, objective=name), **_DIFFUSION) for name in OBJECTIVES},
}


def known_models() -> tuple[str, ...]:
    """The names of all models."""
    return (*FLOWS, *MODELS)


def training_settings(model: str) -> dict[str, Any]:
    """The settings of the training loop in which a model differs from the defaults of the loop."""
    return dict(MODELS[model].training) if model in MODELS else {}


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a density again.

    Attributes:
        model: one of `known_models`, or ``"custom"`` for a flow that the user handed in.
        event_shape: ``(D,)``.
        context_shape: the shape of one context, or None.
        options: of the model.
        embedding: whether the user handed in an embedding network.
        members: flows of the ensemble; 1 for a single flow.
    """

    model: str
    event_shape: tuple[int, ...]
    context_shape: tuple[int, ...] | None
    options: dict[str, Any] = field(default_factory=dict)
    embedding: bool = False
    members: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The architecture in types that JSON knows."""
        return {
            "model": self.model,
            "event_shape": list(self.event_shape),
            "context_shape": None if self.context_shape is None else list(self.context_shape),
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in self.options.items()},
            "embedding": self.embedding,
            "members": self.members,
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
            bool(description["embedding"]),
            # Files from before there were ensembles do not say.
            int(description.get("members", 1)),
        )


def build_density(
    architecture: Architecture,
    *,
    bounds: Tensor,
    flow: Flow | None = None,
    embedding: nn.Module | None = None,
    engine: str = "auto",
) -> ConditionalDensity:
    """Build an untrained density.

    Args:
        architecture: its description.
        bounds: ``(D, 2)`` support of the event.
        flow: the user's own flow, where the architecture says so.
        embedding: the user's own embedding network, where the architecture says so.
        engine: how the flow is run.

    Raises:
        UsageError: a network that the architecture needs was not handed in, or the architecture asks for what there is
            not: an unknown model or option, or an ensemble of something else than flows.
        ShapeError: the embedding network does not give ``(n, C)``.
    """
    if architecture.embedding and embedding is None:
        raise UsageError("embedding: this model was trained with an embedding network of your own; hand it in again")
    if architecture.model == CUSTOM and flow is None:
        raise UsageError("flow: this model was trained with a flow of your own; hand in one of the same structure")
    if architecture.model in MODELS:
        return _build_other(architecture, bounds, embedding)
    whole: Flow | FlowEnsemble
    if flow is None:
        known_keys([architecture.model], known_models(), "model")
        width = _context_width(architecture.context_shape, embedding)
        members = [
            build_flow(architecture.model, architecture.event_shape[0], width, **architecture.options)
            for _ in range(architecture.members)
        ]
        whole = FlowEnsemble(members) if len(members) > 1 else members[0]
    else:
        whole = flow
    event_shape, context_shape = architecture.event_shape, architecture.context_shape
    return FlowDensity(whole, event_shape, context_shape, bounds=bounds, embedding=embedding, engine=engine)


def _build_other(architecture: Architecture, bounds: Tensor, embedding: nn.Module | None) -> ConditionalDensity:
    """Build a model that is no flow."""
    name, model = architecture.model, MODELS[architecture.model]
    if architecture.members != 1:
        raise UsageError(f"ensemble: only flows come in ensembles, got {architecture.members} of the model {name!r}")
    known_keys(list(architecture.options), model.options, f"option of the model {name!r}")
    return model.make(
        architecture.event_shape,
        architecture.context_shape,
        context_features=_context_width(architecture.context_shape, embedding),
        bounds=bounds,
        embedding=embedding,
        **architecture.options,
    )


def _context_width(context_shape: tuple[int, ...] | None, embedding: nn.Module | None) -> int | None:
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
