"""What the estimators of likelihoods share: the probability of success, and the posterior made of what was learned."""

import time
from dataclasses import replace

import torch

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from sbi_physics.diagnostics.training_rows import FIRST_ROWS, first_rows
from sbi_physics.models.build import Architecture
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.likelihood import LikelihoodModel, LikelihoodPosterior
from sbi_physics.posterior.simulated import SimulatedCloud
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import TrainingRecord, train
from sbi_physics.train.pairs import TrainingPairs

__all__ = ["likelihood_posterior"]


def likelihood_posterior(
    parameters: Parameters,
    pairs: TrainingPairs,
    learned: LearnedLikelihood | RatioEstimator,
    architecture: Architecture,
    record: TrainingRecord,
    *,
    began: float,
    validation: dict[str, float],
    device: torch.device,
    seed: int,
    progress: bool,
) -> LikelihoodPosterior:
    """The posterior that a learned likelihood or ratio gives, with a probability of success where simulations failed.

    Args:
        parameters: the prior.
        pairs: what was learned from.
        learned: the likelihood or ratio.
        architecture: how to build ``learned`` again.
        record: of its training.
        began: `time.monotonic` at the start of the fit.
        validation: the score of the simulations held out, by its name.
        device: where ``learned`` is.
        seed: of the fit.
        progress: whether to show a progress bar.
    """
    success = _fit_success(parameters, pairs, device=device, seed=seed, progress=progress)
    provenance = {
        "simulations": len(pairs.success),
        "failed": pairs.failed,
        "seed": seed,
        "training": replace(record, seconds=time.monotonic() - began).to_dict(),
        FIRST_ROWS: first_rows(pairs.theta, pairs.x),
        **validation,
    }
    simulated = SimulatedCloud.fit(pairs.x, seed=derive(seed, "simulated"))
    return LikelihoodPosterior(
        parameters, LikelihoodModel(learned, success), architecture, provenance, simulated=simulated
    )


def _fit_success(
    parameters: Parameters, pairs: TrainingPairs, *, device: torch.device, seed: int, progress: bool
) -> SuccessProbability | None:
    """The probability of success over theta, where simulations failed; None where none did."""
    if not pairs.failed:
        return None
    with seeded(derive(seed, "success weights")):
        model = SuccessProbability(parameters.bounds).fit_scaling(pairs.attempted)
    model.to(device)
    train(
        model,
        model.loss,
        [pairs.attempted, pairs.success.float()],
        config=TrainConfig(epochs=15),
        seed=derive(seed, "success"),
        progress=progress,
        description="training the probability of success",
    )
    return model
