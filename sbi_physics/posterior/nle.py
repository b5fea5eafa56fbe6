r"""Neural likelihood estimation: learn p(x | theta) from the pairs, and sample prior times likelihood.

The network is a conditional density of the observables (Papamakarios, Sterratt and Murray 2019, arXiv:1805.07226).
It does not depend on the prior, so that another may be used afterwards, and independent observations of one theta
multiply.
"""

import time
from typing import Any

import torch

from sbi_physics.core.checks import positive_integer, resolve_device
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.build import Architecture, check_options
from sbi_physics.models.flows.build import BOX, FLOWS
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.posterior.build import build_likelihood
from sbi_physics.posterior.circles import tell_cut_circles
from sbi_physics.posterior.estimator import likelihood_posterior
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.density import train_density
from sbi_physics.train.encoding import DEFAULT_ENCODER
from sbi_physics.train.pairs import Failed, training_pairs

__all__ = ["NLE"]


class NLE:
    """Neural likelihood estimation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        model: ``"nsf"``, ``"maf"`` or ``"maf-spline"``: a density of the observables ``x``, flattened.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        ensemble: k flows whose mixture is the likelihood.
        config: settings of the training loop.
        engine: how flows are run, see `models.flows.engines`.
        **options: of the named flow, see `models.flows.build`.
    """

    def __init__(
        self,
        prior: Any,
        model: str = "nsf",
        embedding: None = None,
        device: str | torch.device = "auto",
        *,
        ensemble: int = 1,
        config: TrainConfig | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        self.parameters = Parameters.from_prior(prior)
        names = [name for name in FLOWS if name != BOX]
        if model not in names:
            raise UsageError(f"model: expected one of {', '.join(names)}, got {model!r}")
        if embedding is not None:
            raise UsageError(
                "embedding: a likelihood is a density of x itself and needs no network that summarises it; hand in "
                "summaries as x, or use NPE or NRE"
            )
        check_options(model, options)
        self.model, self.options = model, options
        self.ensemble = positive_integer(ensemble, "ensemble")
        self.device = resolve_device(device)
        self.config = config or TrainConfig()
        self.engine = check_engine(engine)

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
        """Train on pairs (theta, x).

        Args:
            theta_or_store: theta ``(N, P)``, a `Simulations` object or the path of its file.  Where x holds k
                independent points, train on the single ones (theta repeated k times) and observe with ``iid=True``.
            x: ``(N, *x_shape)`` simulated at each theta; None with a store.
            weights: ``(N,)`` weights of the pairs; negative ones are allowed.
            failed: what to do where simulations failed: ``"refuse"``, or ``"correct"`` to learn the likelihood from
                the others and multiply it by a learned probability of success.
            seed: of the initial weights, the validation split and the shuffles.
            checkpoint: a file from which an interrupted training goes on exactly.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, SupportError, SimulationError, StoreError, UsageError: the data do not fit.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        tell_cut_circles(self.parameters, self.model, boxes=False)
        pairs = training_pairs(self.parameters, theta_or_store, x, failed=failed, memory=self.config.memory)
        varies, counts = LearnedLikelihood.kinds(pairs.x)
        if not bool(varies.any()):
            raise UsageError("x: all observables are the same in all simulations: they say nothing about theta")
        architecture = Architecture(
            self.model,
            (int(varies.sum()),),
            (len(self.parameters),),
            self.options,
            # What the transforms need of theta is much the same, too.
            {"kind": DEFAULT_ENCODER},
            members=self.ensemble,
            x_shape=tuple(pairs.x.shape[1:]),
            success=pairs.failed > 0,
        )
        with seeded(derive(check_seed(seed), "weights")):
            likelihood = build_likelihood(architecture, self.parameters, varies, counts, engine=self.engine)
        events = likelihood.blurred(pairs.x, seed=derive(seed, "blur"))
        trend = likelihood.trend.fit(pairs.theta, events)
        residuals = events.map(lambda part, theta: part - trend(theta), events.shape[1:], pairs.theta)
        density = likelihood.density.fit_scaling(residuals, pairs.theta)
        # In memory, or on the disk; the trend has to stay where the parts are until they are made.
        encoded = residuals.map(density.event_scaling, events.shape[1:]).stored(self.device)
        likelihood.to(self.device)
        record = train_density(
            density,
            [encoded, density.context_scaling(pairs.theta.to(self.device)).detach()],
            weights=pairs.weights(weights),
            config=self.config,
            seed=derive(seed, "train"),
            checkpoint=checkpoint,
            progress=progress,
            description="training the likelihood",
        )
        # In nats per event in the units of x, up to the share of events held out.
        score = float(density.event_scaling.ladj.double()) - record.best_validation_loss
        return likelihood_posterior(
            self.parameters,
            pairs,
            likelihood,
            architecture,
            record,
            began=began,
            validation={"validation_log_prob": score},
            device=self.device,
            seed=seed,
            progress=progress,
        )
