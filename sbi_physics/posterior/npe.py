r"""Neural posterior estimation: learn p(theta | x) itself from pairs drawn from the joint distribution.

Minimising $-E_{p(\theta,x)}[\ln q(\theta|x)]$ over a flexible conditional density q makes q the posterior
(Papamakarios and Murray 2016, arXiv:1605.06376; Greenberg et al. 2019, arXiv:1905.07488).  One training serves every
observation afterwards; the prior must be the one that theta was drawn from.
"""

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from nflows.flows.base import Flow
from torch import Tensor

from sbi_physics.core.checks import positive_integer, resolve_device
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.diagnostics.training_rows import FIRST_ROWS, first_rows
from sbi_physics.models.build import (
    CUSTOM,
    MODELS,
    Architecture,
    build_density,
    check_options,
    describe_embedding,
    known_models,
    training_settings,
)
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.discriminants import MOST_ENTRIES, Discriminants
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.embedding.residual import ResidualEncoder
from sbi_physics.models.flows.build import BOX
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.models.flows.zuko_flow import as_flow
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.scaling import scaled_rows
from sbi_physics.posterior.augmentation import (
    MOST_OBSERVABLES,
    held_out_score,
    learn_likelihood,
    synthetic_pairs,
    worth_trying,
)
from sbi_physics.posterior.circles import tell_cut_circles
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.simulated import SimulatedCloud
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.density import train_density
from sbi_physics.train.encoding import FLAT, check_embedding, choose_encoder
from sbi_physics.train.pairs import Failed, TrainingPairs, training_pairs
from sbi_physics.train.split import held_out_rows

__all__ = ["NPE"]

# Simulations held out that judge a fit for one observation, the nearest to it; and draws that such a fit is made of.
_NEAREST, _DRAWS = 40, 30_000
_ROWS_AT_ONCE = 1 << 16
# Nats by which real simulations may fit worse or better than synthetic ones.  A noise of D numbers, learned too
# wide by a share e, makes a difference of 2 D e and costs D e^2, here at most 0.02 nats.
_INDISTINGUISHABLE = 0.3
# Beyond so many simulations a network learns no noise by heart; nats that are worth the risk that it does.
_MOST_FOR_DISCRIMINANTS, _CLEARLY_BETTER = 100_000, 0.05

_Fitted: TypeAlias = tuple[ConditionalDensity, TrainingRecord]
"""A density, and how its training went."""


class NPE:
    """Neural posterior estimation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        model: a flow, ``"nsf"``, ``"maf"``, ``"maf-spline"`` or ``"nsf-box"``; another model, ``"mixture"``,
            ``"made"``, ``"recurrent"``, ``"flow-matching"``, ``"score"`` or ``"kernel"`` (`models.build`); or an
            `nflows.flows.Flow` or `zuko.flows.Flow` over P features whose context is what the embedding gives; `fit`
            trains a copy of it.
        embedding: what summarises observations, trained jointly: the name of an encoder (``"gru"``, ``"deep-set"``,
            ...; `models.embedding`), an `Encoder`, a dictionary of those for named observations, or any module from
            ``(n, *x_shape)`` to ``(n, C)``; ``"flat"`` is without any.  None takes ``"residual"`` for flows; of up to
            100,000 observations of 21 to 1,024 numbers ``"discriminant"`` (`models.discriminants`), too, where there is
            no `max_seconds`, and keeps it unless simulations held out are fitted clearly better without.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        ensemble: k flows whose mixture is the posterior: a better fit where data are few, and
            wider where the flows disagree (`train.density`).
        config: settings of the training loop; None for its defaults, or those of the model where it has its own.
        engine: how flows are run: ``"auto"``, ``"compiled"``, ``"fused"`` or ``"eager"`` (`models.flows.engines`).
        augment: whether to train on draws of a learned likelihood, too, where that makes the fit to simulations held
            out better (`posterior.augmentation`); ``"auto"`` tries it with up to 20,000 simulations of up to 20
            observables that are plain numbers.
        **options: of the named flow (`models.flows.build`): transforms, hidden_features, blocks, bins, tail_bound; of
            ``"mixture"``, ``"made"`` and ``"recurrent"``: components, hidden_features, blocks; of ``"kernel"``:
            bandwidth; of the others: hidden_features, blocks, steps.
            The circular dimensions of ``"nsf-box"`` are the periodic parameters, unless stated.
    """

    def __init__(
        self,
        prior: Any,
        model: Any = "nsf",
        embedding: Any = None,
        device: str | torch.device = "auto",
        *,
        ensemble: int = 1,
        config: TrainConfig | None = None,
        engine: str = "auto",
        augment: bool | Literal["auto"] = "auto",
        **options: Any,
    ) -> None:
        if augment not in (True, False, "auto"):
            raise UsageError(f"augment: expected True, False or 'auto', got {augment!r}")
        self.augment = augment
        self.parameters, model = Parameters.from_prior(prior), as_flow(model)
        if not isinstance(model, Flow) and model not in known_models():
            raise UsageError(
                f"model: expected one of {', '.join(known_models())} or a Flow of nflows or zuko, got {model!r}"
            )
        if isinstance(model, Flow):
            if options:
                raise UsageError(f"options: a flow of your own takes none, got {', '.join(options)}")
        else:
            check_options(model, options)
        if model == BOX:
            options = _box_options(self.parameters, options)
        if embedding is None and (isinstance(model, Flow) or model in MODELS):
            # A flow of the user's own has a context as wide as its maker decided; models that are no flows have
            # residual blocks for the context themselves.
            embedding = FLAT
        self.model, self.embedding, self.options = model, check_embedding(embedding), options
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
        failed: Failed = "refuse",
        seed: int = 0,
        checkpoint: str | None = None,
        progress: bool = True,
    ) -> DirectPosterior:
        """Train on pairs (theta, x).

        Args:
            theta_or_store: theta ``(N, P)`` drawn from the prior, a `Simulations` object or the path of its file.
            x: ``(N, *x_shape)`` simulated at each theta; None with a store.
            weights: ``(N,)`` weights of the pairs; negative ones are allowed.
            failed: what to do where simulations failed: ``"refuse"``, or ``"correct"`` to train on the others: data
                that were measured did not fail, and p(theta | x) of such is what those teach.
            seed: of the initial weights, the validation split and the shuffles.
            checkpoint: a file from which an interrupted training goes on exactly.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, SupportError, SimulationError, StoreError, UsageError: the data do not fit.
            TrainingError: the loss is not finite.
        """
        return self._fit(
            theta_or_store,
            x,
            weights=weights,
            failed=failed,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )

    def _fit(
        self,
        theta_or_store: Any,
        x: Any,
        *,
        x_obs: Tensor | None = None,
        weights: Any = None,
        failed: Failed,
        seed: int,
        checkpoint: str | None = None,
        progress: bool,
    ) -> DirectPosterior:
        """As `fit`; x_obs ``(1, *x_shape)`` is the one observation that the fit is for, None where it is for all."""
        began = time.monotonic()
        tell_cut_circles(self.parameters, self.model, boxes=True)
        with seeded(derive(check_seed(seed), "encoder")):
            embedding = choose_encoder(self.embedding, theta_or_store, x)
        pairs = training_pairs(
            self.parameters, theta_or_store, x, failed=failed, encoder=embedding, memory=self.config.memory
        )
        fit, mass = _Fit(self, pairs, embedding, x_obs, seed, progress), pairs.weights(weights)
        plain_numbers = isinstance(embedding, ResidualEncoder)
        if self.embedding is None and plain_numbers and self._is_wide(pairs):
            fit, density, record = fit.narrowest(mass, checkpoint)
            augmented = False
        else:
            density, record, augmented = fit.best(self._augments(pairs, weights, plain_numbers), mass, checkpoint)
        _, ladj = _encode(density, pairs.theta.to(self.device))
        provenance = {
            "simulations": len(pairs.success),
            "failed": pairs.failed,
            "augmented": augmented,
            "discriminants": getattr(density.context_scaling, "found", torch.zeros(())).item() or None,
            "seed": seed,
            FIRST_ROWS: first_rows(pairs.theta, pairs.x),
            "training": replace(record, seconds=time.monotonic() - began).to_dict(),
            # In nats per event in the units of theta, up to the share of events held out.
            "validation_log_prob": float(ladj.double().mean()) - record.best_validation_loss,
        }
        simulated = SimulatedCloud.fit(pairs.x, seed=derive(seed, "simulated"))
        return DirectPosterior(self.parameters, density, fit.architecture, provenance, simulated=simulated)

    def _is_wide(self, pairs: TrainingPairs) -> bool:
        """Whether observations are so long, and simulations so few, that a network may learn their noise by heart."""
        if self.augment is True or self.config.max_seconds is not None or isinstance(pairs.x, DiskRows):
            return False
        varies, _ = LearnedLikelihood.kinds(pairs.x)
        few = len(pairs.x) <= _MOST_FOR_DISCRIMINANTS
        return few and int(varies.sum()) > MOST_OBSERVABLES and varies.numel() <= MOST_ENTRIES

    def _augments(self, pairs: TrainingPairs, weights: Any, plain_numbers: bool) -> bool:
        """Whether to try a fit with draws of a learned likelihood."""
        # Synthetic simulations have no weights, and none of them fails.
        streamed = isinstance(pairs.x, DiskRows)
        possible = weights is None and not pairs.failed and not streamed
        if self.augment is True and not possible:
            raise UsageError("augment: expected simulations in memory, without weights and without failures")
        wanted = plain_numbers and self.config.max_seconds is None and not streamed and worth_trying(pairs.x)
        return possible and (wanted if self.augment == "auto" else bool(self.augment))


@dataclass(frozen=True)
class _Fit:
    """The trainings of one fit, on the same simulations with the same ones held out."""

    npe: NPE
    pairs: TrainingPairs
    embedding: Any
    x_obs: Tensor | None
    seed: int
    progress: bool

    @property
    def architecture(self) -> Architecture:
        npe = self.npe
        return Architecture(
            CUSTOM if isinstance(npe.model, Flow) else npe.model,
            (len(npe.parameters),),
            tuple(self.pairs.x.shape[1:]),
            npe.options,
            describe_embedding(self.embedding),
            npe.ensemble,
        )

    def best(
        self, augment: bool, weights: Tensor | None, checkpoint: str | None
    ) -> tuple[ConditionalDensity, TrainingRecord, bool]:
        """The better of the two trainings, and whether that is the augmented one.

        Where the learned likelihood cannot be told from the simulator, the simulations alone cannot teach more.
        """
        if not augment:
            return *self.plain(weights, checkpoint), False
        if self.x_obs is not None:
            return self.for_one(self.x_obs)
        density, record, excess = self.augmented(checkpoint)
        if abs(excess) < _INDISTINGUISHABLE:
            return density, record, True
        other, its = self.plain(weights, checkpoint)
        # Both have the same scaling and hold out the same simulations.
        better = record.best_validation_loss < its.best_validation_loss
        return (density, record, True) if better else (other, its, False)

    def narrowest(
        self, weights: Tensor | None, checkpoint: str | None
    ) -> "tuple[_Fit, ConditionalDensity, TrainingRecord]":
        """The fit to the discriminants of the observations, or to all of their numbers where that is clearly better."""
        shape = tuple(self.pairs.x.shape[1:])
        with seeded(derive(self.seed, "encoder")):
            narrow = replace(self, embedding=build_encoder("discriminant", shape))
        density, record = narrow.plain(weights, None if checkpoint is None else f"{checkpoint}.discriminant")
        other, its = self.plain(weights, checkpoint)
        # Both have the same scaling of theta and hold out the same simulations.
        if record.best_validation_loss < its.best_validation_loss + _CLEARLY_BETTER:
            return narrow, density, record
        return self, other, its

    def plain(self, weights: Tensor | None, checkpoint: str | None) -> _Fitted:
        """Train on the simulations."""
        density = self._density()
        data = self._encoded(density, self.pairs.theta, self.pairs.x)
        options: dict[str, Any] = {"checkpoint": checkpoint, "config": self.npe.config}
        return density, self._train(density, data, "", weights=weights, **options)

    def for_one(self, x_obs: Tensor) -> tuple[ConditionalDensity, TrainingRecord, bool]:
        """Train on the simulations, or on draws of the posterior that their learned likelihood gives x_obs.

        The simulations held out that are nearest to the observation decide.
        """
        density, record = self.plain(None, None)
        npe, theta, x = self.npe, self.pairs.theta, self.pairs.x
        rows, held_out = self._split()
        scaling = density.context_scaling
        away = scaling(x[held_out].to(npe.device)) - scaling(x_obs.to(npe.device))
        near = held_out[away.flatten(1).square().sum(1).cpu().topk(min(_NEAREST, len(held_out)), largest=False).indices]
        learned = learn_likelihood(
            npe.parameters,
            theta[rows],
            x[rows],
            **self._likelihood_settings(),
        )
        with torch.no_grad():
            score = float(density.log_prob(theta[near].to(npe.device), x[near].to(npe.device)).double().mean())
        if held_out_score(learned, theta[near], x[near], seed=derive(self.seed, "score")) <= score:
            return density, record, False
        draws = learned.sample(_DRAWS, x_obs, seed=derive(self.seed, "draws")).values.float().cpu()
        density = self._density(draws)
        data = self._encoded(density, draws, x_obs.expand(len(draws), *x_obs.shape[1:]))
        return density, self._train(density, data, ", refined", config=npe.config), True

    def augmented(self, checkpoint: str | None) -> tuple[ConditionalDensity, TrainingRecord, float]:
        """Train on the simulations and on draws of their learned likelihood.

        The third result is by how much real simulations that were held out fit worse than synthetic ones, in nats.
        """
        density, theta, x, npe = self._density(), self.pairs.theta, self.pairs.x, self.npe
        rows, held_out = self._split()
        synthetic = synthetic_pairs(
            npe.parameters,
            theta[rows],
            x[rows],
            **self._likelihood_settings(),
        )
        check = len(held_out)
        more_theta, more_x = synthetic.theta[check:], synthetic.x[check:]
        data = self._encoded(density, torch.cat([theta[rows], more_theta]), torch.cat([x[rows], more_x]))
        real = self._encoded(density, theta[held_out], x[held_out])
        path = None if checkpoint is None else f"{checkpoint}.augmented"
        record = self._train(density, data, ", augmented", validation=real, checkpoint=path, config=synthetic.config)
        drawn = self._encoded(density, synthetic.theta[:check], synthetic.x[:check])
        with torch.no_grad():
            excess = float(density.loss(*real).double().mean() - density.loss(*drawn).double().mean())
        return density, record, excess

    def _likelihood_settings(self) -> dict[str, Any]:
        npe = self.npe
        seed = derive(self.seed, "augment")
        return {"config": npe.config, "device": npe.device, "seed": seed, "progress": self.progress}

    def _split(self) -> tuple[Tensor, Tensor]:
        """Simulations to train on, and held out."""
        return held_out_rows(len(self.pairs.theta), self.npe.config.validation_fraction, derive(self.seed, "train"))

    def _density(self, theta: Tensor | None = None) -> ConditionalDensity:
        """An untrained density, scaled to the simulations, or to other theta."""
        npe, embedding = self.npe, copy.deepcopy(self.embedding)
        # Copies: what was trained before with these networks stays as it is.
        flow = copy.deepcopy(npe.model) if isinstance(npe.model, Flow) else None
        with seeded(derive(self.seed, "weights")):
            density = build_density(
                self.architecture, bounds=npe.parameters.bounds, flow=flow, embedding=embedding, engine=npe.engine
            )
            x, scaling = self.pairs.x, density.context_scaling
            at = self.pairs.theta if theta is None else theta
            if isinstance(scaling, Discriminants):
                density.fit_scaling(at)
                self._discriminate(scaling)
            else:
                density.fit_scaling(at, x)
        return density.to(npe.device)

    def _discriminate(self, scaling: Discriminants) -> None:
        """Fit discriminants to what is not held out, which they would flatter."""
        theta, x = self.pairs.theta, self.pairs.x
        if isinstance(x, DiskRows):
            scaling.fit_given(x, theta)
        else:
            rows, _ = self._split()
            scaling.fit_given(x[rows], theta[rows])

    def _encoded(self, density: ConditionalDensity, theta: Tensor, x: Tensor | DiskRows) -> list[Any]:
        encoded, _ = _encode(density, theta.to(self.npe.device))
        return [encoded, scaled_rows(density.context_scaling, x, self.npe.device)]

    def _train(self, density: ConditionalDensity, data: list[Tensor], kind: str, **options: Any) -> TrainingRecord:
        options |= {"seed": derive(self.seed, "train"), "progress": self.progress}
        return train_density(density, data, description=f"training the posterior{kind}", **options)


def _encode(density: ConditionalDensity, theta: Tensor) -> tuple[Tensor, Tensor]:
    """As `density.encode`, a part after the other: what is in between is several times as large as theta."""
    parts = [density.encode(part) for part in theta.split(_ROWS_AT_ONCE)]
    return torch.cat([encoded.detach() for encoded, _ in parts]), torch.cat([ladj.detach() for _, ladj in parts])


def _box_options(parameters: Parameters, options: dict[str, Any]) -> dict[str, Any]:
    for i in options.get("circular", ()):
        if i < len(parameters) and not all(map(math.isfinite, row := parameters.bounds[i].tolist())):
            raise UsageError(f"circular: a circle needs finite bounds, got {row} for {parameters.names[i]}")
    return {"circular": [i for i, periodic in enumerate(parameters.periodic) if periodic], **options}
