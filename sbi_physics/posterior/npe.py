r"""Neural posterior estimation: learn p(theta | x) itself from pairs drawn from the joint distribution.

Minimising $-E_{p(\theta,x)}[\ln q(\theta|x)]$ over a flexible conditional density q makes q the posterior
(Papamakarios and Murray 2016, arXiv:1605.06376; Greenberg et al. 2019, arXiv:1905.07488).  One training serves every
observation afterwards; the prior must be the one that theta was drawn from.
"""

import copy
import math
import time
from dataclasses import replace
from typing import Any

import torch
from nflows.flows.base import Flow
from torch import nn

from sbi_physics.core.checks import positive_integer, resolve_device
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.build import (
    CUSTOM,
    MODELS,
    Architecture,
    build_density,
    known_models,
    training_settings,
)
from sbi_physics.models.flows.build import BOX
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.posterior.data import training_pairs
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.density import train_density

__all__ = ["NPE"]


class NPE:
    """Neural posterior estimation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        model: a flow, ``"nsf"``, ``"maf"``, ``"maf-spline"`` or ``"nsf-box"`` (where all bounds are finite); another
            model, ``"mixture"``, ``"flow-matching"`` or ``"score"`` (`models.build`); or an `nflows.flows.Flow` over P
            features whose context is what the embedding gives; `fit` trains a copy of it.
        embedding: a module from observations ``(n, *x_shape)`` to summaries ``(n, C)``, trained jointly; None flattens.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        ensemble: k flows whose mixture is the posterior: a better fit where data are few, and
            wider where the flows disagree (`train.density`).
        config: settings of the training loop; None for its defaults, or those of the model where it has its own.
        engine: how flows are run: ``"auto"``, ``"compiled"``, ``"fused"`` or ``"eager"`` (`models.flows.engines`).
        **options: of the named flow (`models.flows.build`): transforms, hidden_features, blocks, bins, tail_bound; of
            ``"mixture"``: components, hidden_features, blocks; of the others: hidden_features, blocks, steps.
            The circular dimensions of ``"nsf-box"`` are the periodic parameters, unless stated.
    """

    def __init__(
        self,
        prior: Any,
        model: str | Flow = "nsf",
        embedding: nn.Module | None = None,
        device: str | torch.device = "auto",
        *,
        ensemble: int = 1,
        config: TrainConfig | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        self.parameters = Parameters.from_prior(prior)
        if not isinstance(model, Flow) and model not in known_models():
            raise UsageError(f"model: expected one of {', '.join(known_models())} or an nflows Flow, got {model!r}")
        if isinstance(model, Flow) and options:
            raise UsageError(f"options: a flow of your own takes none, got {', '.join(options)}")
        if embedding is not None and not isinstance(embedding, nn.Module):
            raise UsageError(f"embedding: expected a torch module, got {type(embedding).__name__}")
        if model == BOX:
            options = _box_options(self.parameters, options)
        self.model, self.embedding, self.options = model, embedding, options
        if isinstance(model, Flow) and ensemble != 1:
            raise UsageError("ensemble: copies of a flow of your own would start equal and stay so; name a flow")
        self.ensemble = positive_integer(ensemble, "ensemble")
        if model in MODELS and ensemble != 1:
            raise UsageError(f"ensemble: only flows come in ensembles, got {ensemble} of the model {model!r}")
        self.device = resolve_device(device)
        self.config = config or TrainConfig(**(training_settings(model) if isinstance(model, str) else {}))
        self.engine = check_engine(engine)

    def fit(
        self,
        theta_or_store: Any,
        x: Any = None,
        *,
        weights: Any = None,
        seed: int = 0,
        checkpoint: str | None = None,
        progress: bool = True,
    ) -> Posterior:
        """Train on pairs (theta, x).

        Args:
            theta_or_store: theta ``(N, P)`` drawn from the prior, a `Simulations` object or the path of its file.
            x: ``(N, *x_shape)`` simulated at each theta; None with a store.
            weights: ``(N,)`` weights of the pairs; negative ones are allowed.
            seed: of the initial weights, the validation split and the shuffles.
            checkpoint: a file from which an interrupted training goes on exactly.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, SupportError, StoreError, UsageError: the data do not fit; see the message.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        theta, values = training_pairs(self.parameters, theta_or_store, x)
        # Copies: what was trained before with these networks stays as it is.
        flow = copy.deepcopy(self.model) if isinstance(self.model, Flow) else None
        embedding = copy.deepcopy(self.embedding)
        architecture = Architecture(
            CUSTOM if flow is not None else str(self.model),
            (len(self.parameters),),
            tuple(values.shape[1:]),
            self.options,
            embedding is not None,
            self.ensemble,
        )
        with seeded(derive(check_seed(seed), "weights")):
            density = build_density(
                architecture, bounds=self.parameters.bounds, flow=flow, embedding=embedding, engine=self.engine
            ).fit_scaling(theta, values)
        density.to(self.device)
        encoded, ladj = density.encode(theta.to(self.device))
        record = train_density(
            density,
            [encoded.detach(), density.context_scaling(values.to(self.device)).detach()],
            weights=weights,
            config=self.config,
            seed=derive(seed, "train"),
            checkpoint=checkpoint,
            progress=progress,
            description="training the posterior",
        )
        provenance = {
            "simulations": len(theta),
            "seed": seed,
            "training": replace(record, seconds=time.monotonic() - began).to_dict(),
            # In nats per event in the units of theta, up to the share of events held out.
            "validation_log_prob": float(ladj.double().mean()) - record.best_validation_loss,
        }
        return Posterior(self.parameters, density, architecture, provenance)


def _box_options(parameters: Parameters, options: dict[str, Any]) -> dict[str, Any]:
    for name, row in zip(parameters.names, parameters.bounds.tolist(), strict=True):
        if not all(map(math.isfinite, row)):
            raise UsageError(f"model {BOX!r}: expected finite bounds of each parameter, got {row} for {name}")
    return {"circular": [i for i, periodic in enumerate(parameters.periodic) if periodic], **options}
