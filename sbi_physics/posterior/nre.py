r"""Neural ratio estimation: learn p(x | theta) / p(x) by telling pairs of the joint distribution from shuffled ones.

Classification needs no density of x and takes any embedding of it, so that images, sequences and sets are as easy as
numbers; see `models.ratio` for the loss and its sources.
"""

import time
from typing import Any

import torch

from sbi_physics.core.checks import known_keys, positive_integer, resolve_device
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.build import Architecture, describe_embedding
from sbi_physics.models.scaling import scaled_rows
from sbi_physics.posterior.build import RATIO, RATIO_OPTIONS, build_ratio
from sbi_physics.posterior.circles import tell_cut_circles
from sbi_physics.posterior.estimator import likelihood_posterior
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.encoding import check_embedding, choose_encoder
from sbi_physics.train.loop import train
from sbi_physics.train.pairs import Failed, training_pairs

__all__ = ["NRE"]


class NRE:
    """Neural ratio estimation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        model: ``"classifier"``, the only one.
        embedding: what summarises observations, trained jointly: the name of an encoder (``"gru"``, ``"deep-set"``,
            ...; `models.embedding`), an `Encoder`, a dictionary of those for named observations, or any module from
            ``(n, *x_shape)`` to ``(n, C)``; None takes ``"residual"``, and ``"flat"`` is without any.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        balance: weight of the penalty that keeps badly trained ratios conservative; 0 for none, 100 in the source.
        config: settings of the training loop.
        **options: candidates, hidden_features, blocks (`models.ratio`).
    """

    def __init__(
        self,
        prior: Any,
        model: str = RATIO,
        embedding: Any = None,
        device: str | torch.device = "auto",
        *,
        balance: float = 0.0,
        config: TrainConfig | None = None,
        **options: Any,
    ) -> None:
        self.parameters = Parameters.from_prior(prior)
        known_keys([model], [RATIO], "model")
        known_keys(list(options), list(RATIO_OPTIONS), "option of NRE")
        for name, value in options.items():
            positive_integer(value, name)
        if not balance >= 0:
            raise UsageError(f"balance: expected a number of at least 0, got {balance!r}")
        self.embedding = check_embedding(embedding)
        self.options = {**options, **({"balance": float(balance)} if balance else {})}
        self.device = resolve_device(device)
        self.config = config or TrainConfig(epochs=40)

    def fit(
        self,
        theta_or_store: Any,
        x: Any = None,
        *,
        weights: Any = None,
        failed: Failed = "refuse",
        seed: int = 0,
        checkpoint: str | None = None,
        progress: bool = True,
    ) -> LikelihoodPosterior:
        """Train on pairs (theta, x); the arguments are those of `NLE.fit`.

        Weights apply to the pairs; the theta of the shuffled ones count equally, which is right where the mean weight
        does not depend on theta.
        """
        began = time.monotonic()
        tell_cut_circles(self.parameters, None, boxes=False)
        with seeded(derive(check_seed(seed), "encoder")):
            embedding = choose_encoder(self.embedding, theta_or_store, x)
        pairs = training_pairs(
            self.parameters, theta_or_store, x, failed=failed, encoder=embedding, memory=self.config.memory
        )
        architecture = Architecture(
            RATIO,
            (len(self.parameters),),
            tuple(pairs.x.shape[1:]),
            self.options,
            describe_embedding(embedding),
            success=pairs.failed > 0,
        )
        with seeded(derive(seed, "weights")):
            ratio = build_ratio(architecture, self.parameters, embedding)
        ratio.fit_scaling(pairs.theta, pairs.x)
        ratio.to(self.device)
        record = train(
            ratio,
            ratio.loss,
            [
                ratio.theta_scaling(pairs.theta.to(self.device)).detach(),
                scaled_rows(ratio.x_scaling, pairs.x, self.device),
            ],
            weights=pairs.weights(weights),
            config=self.config,
            seed=derive(seed, "train"),
            checkpoint=checkpoint,
            progress=progress,
            description="training the ratio",
        )
        return likelihood_posterior(
            self.parameters,
            pairs,
            ratio,
            architecture,
            record,
            began=began,
            validation={"validation_loss": record.best_validation_loss},
            device=self.device,
            seed=seed,
            progress=progress,
        )
