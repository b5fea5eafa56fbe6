"""Read a posterior from a file; `Posterior.save` writes it."""

import copy
from pathlib import Path
from typing import Any

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.checks import resolve_device
from sbi_physics.core.errors import SBIPhysicsError, StoreError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.models.build import CUSTOM, Architecture, build_density
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.build import RATIO, build_likelihood, build_ratio
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.likelihood import LikelihoodModel, LikelihoodPosterior
from sbi_physics.posterior.posterior import X_OBS, Posterior
from sbi_physics.posterior.simulated import SimulatedCloud

__all__ = ["KINDS", "posterior_from"]


KINDS = (DirectPosterior.KIND, LikelihoodPosterior.KIND)


def posterior_from(
    path: str | Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    device: str | torch.device,
    flow: Flow | None,
    embedding: nn.Module | None,
) -> Posterior:
    """A posterior of the parts of a file.

    Args:
        path: the file, for messages.
        header: its header, of one of `KINDS`.
        tensors: its tensors.
        device: where the model is to live.
        flow: a flow of the same structure, where the posterior was trained with one of the user's own.
        embedding: likewise an embedding network.

    Raises:
        StoreError: header and weights are damaged, or do not fit together.
        UsageError: a network of the user's own is needed and was not handed in.
    """
    try:
        parameters = Parameters.from_dict(header["parameters"])
        architecture = Architecture.from_dict(header["architecture"])
        provenance = dict(header["provenance"])
    except (SBIPhysicsError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: the header is damaged: {_reason(error)}") from error
    _check_networks(path, architecture, flow, embedding)
    x_obs = tensors.pop(X_OBS, None)
    direct = header["kind"] == DirectPosterior.KIND
    model: nn.Module
    try:
        simulated = SimulatedCloud.take(tensors)
        if direct:
            own = (copy.deepcopy(flow), copy.deepcopy(embedding))
            model = build_density(architecture, bounds=parameters.bounds, flow=own[0], embedding=own[1])
        else:
            model = _likelihood_model(architecture, parameters, tensors, copy.deepcopy(embedding))
        model.load_state_dict(tensors)
    except (SBIPhysicsError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if flow is not None or embedding is not None:
            raise UsageError(
                f"{path}: the flow or embedding handed in has another structure than the one trained: {_reason(error)}"
            ) from error
        raise StoreError(f"{path}: the header and the weights do not fit together: {_reason(error)}") from error
    model.to(resolve_device(device)).eval()
    kind = DirectPosterior if direct else LikelihoodPosterior
    return kind(parameters, model, architecture, provenance, x_obs, simulated)


def _likelihood_model(
    architecture: Architecture, parameters: Parameters, tensors: dict[str, Tensor], embedding: nn.Module | None
) -> LikelihoodModel:
    likelihood: LearnedLikelihood | RatioEstimator
    if architecture.model == RATIO:
        likelihood = build_ratio(architecture, parameters, embedding)
    else:
        varies, counts = (tensors[f"likelihood.{name}"] for name in ("varies", "counts"))
        likelihood = build_likelihood(architecture, parameters, varies, counts)
    return LikelihoodModel(likelihood, SuccessProbability(parameters.bounds) if architecture.success else None)


def _check_networks(path: str | Path, architecture: Architecture, flow: Any, embedding: Any) -> None:
    for name, needed, given in (
        ("flow", architecture.model == CUSTOM, flow is not None),
        ("embedding", architecture.embedding is True, embedding is not None),
    ):
        if needed and not given:
            raise UsageError(
                f"{path}: {name}: this posterior was trained with one of your own; hand in one of the same structure: "
                f"load(path, {name}=...)"
            )
        if given and not needed:
            raise UsageError(f"{path}: {name}: this posterior was trained without one of your own, expected None")


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{words[:300]}" if words else type(error).__name__
