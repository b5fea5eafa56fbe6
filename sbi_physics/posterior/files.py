"""Read posteriors, confidence sets and probabilities of models from files, which their ``save`` wrote."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.checks import resolve_device
from sbi_physics.core.errors import SBIPhysicsError, StoreError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.models.build import CUSTOM, Architecture, build_density, context_width
from sbi_physics.models.classifier import ModelClassifier
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.scalar import ScalarDistribution
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.build import RATIO, build_likelihood, build_ratio
from sbi_physics.posterior.confidence import NeymanConstruction
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.likelihood import LikelihoodModel, LikelihoodPosterior
from sbi_physics.posterior.model_comparison import ModelPosterior
from sbi_physics.posterior.posterior import X_OBS, Posterior
from sbi_physics.posterior.simulated import SimulatedCloud
from sbi_physics.posterior.statistics import NaturalStatistic, Statistic

__all__ = ["KINDS", "confidence_from", "models_from", "posterior_from"]

_DAMAGE = (SBIPhysicsError, KeyError, TypeError, ValueError, RuntimeError)
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
    except _DAMAGE as error:
        if flow is not None or embedding is not None:
            raise UsageError(
                f"{path}: the flow or embedding handed in has another structure than the one trained: {_reason(error)}"
            ) from error
        raise StoreError(f"{path}: the header and the weights do not fit together: {_reason(error)}") from error
    model.to(resolve_device(device)).eval()
    kind = DirectPosterior if direct else LikelihoodPosterior
    return kind(parameters, model, architecture, provenance, x_obs, simulated)


def confidence_from(
    path: str | Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    device: str | torch.device,
    flow: Flow | None,
    embedding: nn.Module | None,
    statistic: Callable[[Tensor, Tensor], Tensor] | None,
) -> NeymanConstruction:
    """Confidence sets of the parts of a file; the last argument is a statistic of the user's own, if it was one.

    Raises:
        StoreError: header and weights are damaged, or do not fit together.
        UsageError: a statistic or a network of the user's own is needed and was not handed in, or the other way round.
    """
    inner = header.get("posterior")
    if (inner is None) != (statistic is not None):
        need = "expected the function that it was built with" if inner is None else "it is in the file, expected None"
        raise UsageError(f"{path}: statistic: {need}")
    chosen: Statistic
    if statistic is not None:
        chosen = statistic
    elif isinstance(inner, dict):
        own = _below("posterior.", tensors)
        chosen = NaturalStatistic(posterior_from(path, inner, own, device=device, flow=flow, embedding=embedding))
    else:
        raise StoreError(f"{path}: the header is damaged: posterior: expected a table, got {inner!r}")
    try:
        parameters = Parameters.from_dict(header["parameters"])
        model = ScalarDistribution(parameters.bounds, int(header["size"]))
        model.load_state_dict(_below("model.", tensors))
        shape, seconds = tuple(int(n) for n in header["x_shape"]), float(header["seconds"])
        provenance = dict(header["provenance"])
    except _DAMAGE as error:
        raise StoreError(f"{path}: the header and the weights do not fit together: {_reason(error)}") from error
    return NeymanConstruction(chosen, parameters, model.to(resolve_device(device)).eval(), shape, seconds, provenance)


def models_from(
    path: str | Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    device: str | torch.device,
    embedding: nn.Module | None,
) -> ModelPosterior:
    """Probabilities of models of the parts of a file.

    Raises:
        StoreError: header and weights are damaged, or do not fit together.
        UsageError: an embedding network of the user's own is needed and was not handed in, or the other way round.
    """
    description = header.get("embedding")
    if (description is True) != (embedding is not None):
        need = "hand in one of the structure that it was trained with" if description is True else "expected None"
        raise UsageError(f"{path}: embedding: {need}")
    try:
        names, shape = tuple(map(str, header["names"])), tuple(int(n) for n in header["x_shape"])
        classifiers = []
        for _ in range(int(header["members"])):
            encoder = build_encoder(description, shape) if isinstance(description, dict) else copy.deepcopy(embedding)
            width = context_width(shape, encoder)
            classifiers.append(ModelClassifier(shape, len(names), encoder, width, **header["options"]))
        ensemble = nn.ModuleList(classifiers)
        ensemble.load_state_dict(_below("classifiers.", tensors))
        prior, attempted, provenance = tensors["prior"], tensors["attempted"], dict(header["provenance"])
    except _DAMAGE as error:
        raise StoreError(f"{path}: the header and the weights do not fit together: {_reason(error)}") from error
    return ModelPosterior(names, prior, ensemble.to(resolve_device(device)).eval(), shape, attempted, provenance)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
