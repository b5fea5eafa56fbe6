"""Read a surrogate from a file; `Surrogate.save` writes it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import resolve_device
from sbi_physics.core.errors import SBIPhysicsError, StoreError
from sbi_physics.core.parameters import Parameters
from sbi_physics.surrogate.build import SurrogateArchitecture, build_model, build_preprocessing
from sbi_physics.surrogate.chain import ModelChain
from sbi_physics.surrogate.surrogate import Surrogate

__all__ = ["surrogate_from"]


def surrogate_from(
    path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor], *, device: str | torch.device
) -> Surrogate:
    """A surrogate of the parts of a file.

    Raises:
        StoreError: header and weights do not fit together, or are damaged.
    """
    try:
        parameters = Parameters.from_dict(header["parameters"])
        architecture = SurrogateArchitecture.from_dict(header["architecture"])
        provenance = dict(header["provenance"])
        preprocessing = build_preprocessing(architecture.preprocessing, architecture.x_shape, architecture.contexts)
        models = [build_model(architecture, stage) for stage in range(len(architecture.widths))]
        chain = ModelChain(preprocessing, models)
        chain.load_state_dict(tensors)
    except (SBIPhysicsError, KeyError, TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise StoreError(f"{path}: the header or the weights are damaged: {words}") from error
    return Surrogate.of(parameters, architecture, chain.to(resolve_device(device)).eval(), provenance)
