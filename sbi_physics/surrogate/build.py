"""Build the chain of a surrogate from its description, for training and from files alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sbi_physics.core.checks import known_keys
from sbi_physics.models.build import MODELS, Architecture, build_density, known_models
from sbi_physics.models.build_generators import GENERATORS, build_generator
from sbi_physics.models.flows.build import FLOWS
from sbi_physics.models.generator import ConditionalGenerator
from sbi_physics.surrogate.preprocessing import Plain, Preprocessing
from sbi_physics.surrogate.showers import Showers

__all__ = ["ALIASES", "SurrogateArchitecture", "build_model", "build_preprocessing", "model_name"]

# What a kind of model is called by those who do not mind which.
ALIASES = {"flow": "nsf", "diffusion": "flow-matching", "autoregressive": "made"}
_EARLY = "nsf"


@dataclass(frozen=True)
class SurrogateArchitecture:
    """What is needed to build a surrogate again.

    Attributes:
        model: the name of the model of the last stage; those before it are spline flows.
        x_shape: the shape of one output.
        contexts: P.
        preprocessing: `Preprocessing.describe`.
        options: of the model.
        members: flows of an ensemble.
        widths: numbers of an event and of its context, for each stage.
    """

    model: str
    x_shape: tuple[int, ...]
    contexts: int
    preprocessing: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    members: int = 1
    widths: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The architecture in types that JSON knows."""
        return {
            "model": self.model,
            "x_shape": list(self.x_shape),
            "contexts": self.contexts,
            "preprocessing": self.preprocessing,
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in self.options.items()},
            "members": self.members,
            "widths": [list(pair) for pair in self.widths],
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "SurrogateArchitecture":
        """Read what `to_dict` wrote."""
        return cls(
            str(description["model"]),
            tuple(int(size) for size in description["x_shape"]),
            int(description["contexts"]),
            dict(description["preprocessing"]),
            dict(description["options"]),
            int(description["members"]),
            tuple((int(event), int(context)) for event, context in description["widths"]),
        )


def model_name(name: str) -> str:
    """The model that a name or an alias stands for.

    Raises:
        UsageError: there is no such model.
    """
    known_keys([name], [*ALIASES, *known_models(), *GENERATORS], "model")
    return ALIASES.get(name, name)


def build_preprocessing(description: dict[str, Any], x_shape: Sequence[int], contexts: int) -> Preprocessing:
    """An untrained preprocessing of `Preprocessing.describe`."""
    known_keys([description["kind"]], [Plain.KIND, Showers.KIND], "preprocessing")
    if description["kind"] == Showers.KIND:
        return Showers.from_description(description)
    return Plain(x_shape, contexts, permutations=description.get("permutations", ()))


def build_model(
    architecture: SurrogateArchitecture, stage: int, *, engine: str = "auto", bounds: Tensor | None = None
) -> ConditionalGenerator:
    """The untrained model of a stage."""
    event, context = architecture.widths[stage]
    last = stage == len(architecture.widths) - 1
    name = architecture.model if last else _EARLY
    options = architecture.options if last else {}
    if name in GENERATORS:
        return build_generator(name, (event,), (context,), bounds=bounds, **options)
    # Contexts go through residual blocks, where the model does not bring its own.
    embedding: dict[str, Any] | bool = {"kind": "residual"} if name in FLOWS else False
    members = architecture.members if last and name not in MODELS else 1
    described = Architecture(name, (event,), (context,), options, embedding, members)
    return build_density(described, bounds=bounds, engine=engine)
