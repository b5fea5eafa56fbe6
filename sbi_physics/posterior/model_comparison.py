r"""Which model made the data?  Bayes factors of simulators whose likelihood is not known, by classification.

A classifier that tells simulations of M models from each other, each with parameters from its prior, learns

$$ p(m|x) = \frac{\pi_m\,p(x|m)}{\sum_k \pi_k\,p(x|k)}, $$

evidences included (Radev et al. 2021, arXiv:2004.10629; Jeffrey and Wandelt 2024, arXiv:2305.11241).  Several are
trained from different beginnings: their mean is the answer, and their spread says how far it is known.  How many
simulations there are of each model does not matter, since their numbers are divided out.

It answers for data as the models make them.  Far from all simulations any answer may come out: check the data first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys, positive_integer, resolve_device
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.core.validity import valid_rows
from sbi_physics.diagnostics.probabilities import Reliability, reliability
from sbi_physics.models.build import context_width, describe_embedding
from sbi_physics.models.classifier import ModelClassifier
from sbi_physics.posterior.evidence import model_prior, odds, strength
from sbi_physics.posterior.observation import read_observation
from sbi_physics.store.layout import Status
from sbi_physics.store.models import write_model
from sbi_physics.store.simulations import Simulations
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.encoding import FLAT, EncoderChoice, accepts_missing, check_embedding, choose_encoder
from sbi_physics.train.loop import train
from sbi_physics.train.pairs import Failed, observables

__all__ = ["ModelComparison", "ModelPosterior"]

_LEAST = 50
_ROWS_AT_ONCE = 1 << 15


class ModelComparison:
    """Probabilities of models given data, by an ensemble of classifiers.

    Args:
        names: of the models, in the order of their simulations; model_0, ... where None.
        prior: probabilities of the models before the data, by name or in their order; equal where None.
        embedding: what summarises observations, trained jointly: the name of an encoder (``"gru"``, ``"deep-set"``,
            ...; `models.embedding`), an `Encoder`, a dictionary of those for named observations, or any module from
            ``(n, *x_shape)`` to ``(n, C)``; None, or ``"flat"``, is without any.
        members: classifiers, at least two.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        config: settings of the training loop.
        hidden_features: width of the classifiers.
        blocks: their residual blocks.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        *,
        prior: Mapping[str, float] | Sequence[float] | None = None,
        embedding: Any = None,
        members: int = 4,
        device: str | torch.device = "auto",
        config: TrainConfig | None = None,
        hidden_features: int = 64,
        blocks: int = 2,
    ) -> None:
        self.names = None if names is None else tuple(names)
        self.prior, self.embedding = prior, check_embedding(FLAT if embedding is None else embedding)
        if positive_integer(members, "members") < 2:
            raise UsageError("members: expected at least 2 classifiers, whose spread is the error, got 1")
        self.members = members
        self.device = resolve_device(device)
        self.config = config or TrainConfig(epochs=20)
        self.hidden_features = positive_integer(hidden_features, "hidden_features")
        self.blocks = positive_integer(blocks, "blocks")

    def fit(
        self,
        simulations: Mapping[str, Any] | Sequence[Any],
        *,
        failed: Failed = "refuse",
        seed: int = 0,
        progress: bool = True,
    ) -> "ModelPosterior":
        """Train on simulations of each model, with parameters from the prior of that model.

        Args:
            simulations: for each model x ``(n, *x_shape)`` or a dictionary of such, a `Simulations` object or the path
                of its file; by name, or in the order of the names.  The shape of x is the same for all.
            failed: what to do where simulations failed: ``"refuse"``, or ``"correct"`` to train on the others and give
                each model the share that succeeded as a factor: data that were measured did not fail.
            seed: of the initial weights, the validation splits and the shuffles.
            progress: whether to show progress bars.

        Raises:
            UsageError: there are fewer than two models, or names that do not fit.
            ShapeError: x has not the same shape for all models, or there are too few simulations of one.
            NonFiniteError: simulations failed, and `failed` is ``"refuse"``.
            TrainingError: the loss is not finite.
        """
        names, sets = _ordered(simulations, self.names)
        prior = model_prior(self.prior, names)
        with seeded(derive(check_seed(seed), "encoder")):
            encoder = _encoder(self.embedding, sets[0])
        rows, attempted = _observations(names, sets, failed, encoder)
        x = torch.cat(rows)
        label = torch.cat([torch.full((len(one),), m) for m, one in enumerate(rows)])
        shape = tuple(x.shape[1:])
        classifiers, records = [], []
        for i in range(self.members):
            with seeded(derive(seed, "weights", i)):
                encoder = _encoder(self.embedding, sets[0])
                one = ModelClassifier(
                    shape,
                    len(names),
                    encoder,
                    context_width(shape, encoder),
                    hidden_features=self.hidden_features,
                    blocks=self.blocks,
                )
            one.scaling.fit(x)
            one.to(self.device)
            record = train(
                one,
                one.loss,
                [one.scaling(x.to(self.device)).detach(), label],
                config=self.config,
                seed=derive(seed, "train", i),
                progress=progress,
                description=f"training classifier {i + 1} of {self.members}",
            )
            classifiers.append(one)
            records.append(record.to_dict())
        provenance = {"simulations": attempted.tolist(), "seed": seed, "training": records}
        return ModelPosterior(names, prior, nn.ModuleList(classifiers), shape, attempted, provenance)


@dataclass(frozen=True, repr=False)
class ModelPosterior:
    """Probabilities of M models given data.

    Attributes:
        names: of the models.
        prior: their probabilities before the data, ``(M,)``.
        classifiers: the ensemble.
        x_shape: the shape of one observation.
        attempted: simulations of each model, failed ones included, ``(M,)``.
        provenance: what it was trained on and how training went.
    """

    names: tuple[str, ...]
    prior: Tensor
    classifiers: nn.ModuleList
    x_shape: tuple[int, ...]
    attempted: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    KIND: ClassVar[str] = "models"

    def __repr__(self) -> str:
        return f"ModelPosterior({', '.join(self.names)}: {len(self.classifiers)} classifiers of x {self.x_shape})"

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file; `sp.load` reads it back (``embedding=`` where that was one of your own).

        Raises:
            StoreError: the file cannot be written.
        """
        one = cast(ModelClassifier, self.classifiers[0])
        tensors = {f"classifiers.{name}": tensor for name, tensor in self.classifiers.state_dict().items()}
        header = {
            "kind": self.KIND,
            "names": list(self.names),
            "x_shape": list(self.x_shape),
            "members": len(self.classifiers),
            "embedding": describe_embedding(None if isinstance(one.embedding, nn.Flatten) else one.embedding),
            "options": one.options,
            "provenance": self.provenance,
        }
        write_model(path, {**tensors, "prior": self.prior, "attempted": self.attempted}, header)

    def probability(self, x_obs: Any) -> Tensor:
        """Probabilities of the models: ``(M,)`` for one observation, ``(B, M)`` for B, float64.

        Args:
            x_obs: ``x_shape``, or ``(B, *x_shape)``.

        Raises:
            ShapeError, NonFiniteError: x_obs has another shape, or holds NaN or infinity.
        """
        evidence, batched = self._evidence(x_obs)
        result = torch.softmax(evidence.mean(0) + self.prior.log(), -1)
        return result if batched else result[0]

    def log_bayes_factor(self, x_obs: Any, a: str, b: str) -> tuple[Tensor, Tensor]:
        """Ln B of model a over model b in nats, and how far the classifiers spread (their standard deviation).

        Args:
            x_obs: ``x_shape``, or ``(B, *x_shape)``.
            a: a name.
            b: a name.

        Returns:
            Both ``()`` for one observation, ``(B,)`` for B; float64.
        """
        i, j = self._index(a), self._index(b)
        evidence, batched = self._evidence(x_obs)
        each = evidence[..., i] - evidence[..., j]
        spread = each.std(0) if len(each) > 1 else torch.full_like(each[0], torch.nan)
        return (each.mean(0), spread) if batched else (each.mean(0)[0], spread[0])

    def verdict(self, x_obs: Any) -> str:
        """One plain sentence on one observation: which model is favoured over the next best, and by how much."""
        probability = self.probability(x_obs)
        if probability.ndim != 1:
            raise ShapeError(f"x_obs: expected one observation of shape {self.x_shape}, got {len(probability)}")
        order = (probability / self.prior).argsort(descending=True)[:2].tolist()
        best, second = (self.names[i] for i in order)
        value, error = (float(number) for number in self.log_bayes_factor(x_obs, best, second))
        if value < 2 * error:
            return f"not resolved: the classifiers disagree, ln B = {value:.1f} +- {error:.1f} nats"
        return (
            f"{strength(value)}: {best} is favoured, ln B = {value:.1f} +- {error:.1f} nats against {second}, "
            f"Bayes factor {odds(value)}; probability {float(probability[order[0]]):.3g} with the given prior"
        )

    def check(
        self,
        simulations: Mapping[str, Any] | Sequence[Any],
        *,
        bins: int = 10,
        level: float = 0.01,
        seed: int = 0,
        failed: Failed = "refuse",
    ) -> Reliability:
        """Check the probabilities on simulations that are new to the classifiers.

        The prior of the check is the shares of the models among these simulations: the Bayes factors are what is
        checked, and they do not depend on it.

        Args:
            simulations: of each model, as `ModelComparison.fit` takes them.
            bins: of the reliability curve.
            level: the probability that right probabilities flunk.
            seed: of the bootstrap.
            failed: as in `ModelComparison.fit`.
        """
        _, sets = _ordered(simulations, self.names)
        rows, attempted = _observations(self.names, sets, failed, self._encoder)
        x = torch.cat(rows)
        if tuple(x.shape[1:]) != self.x_shape:
            raise ShapeError(f"simulations: expected x of shape {self.x_shape}, got {tuple(x.shape[1:])}")
        evidence, _ = self._evidence(x)
        probability = torch.softmax(evidence.mean(0) + attempted.double().log(), -1)
        label = torch.cat([torch.full((len(one),), m) for m, one in enumerate(rows)])
        return reliability(probability, label, self.names, bins=bins, level=level, seed=seed)

    @torch.no_grad()
    def _evidence(self, x_obs: Any) -> tuple[Tensor, bool]:
        """Log-evidences up to a constant of each observation, ``(k, B, M)``, and whether there is an axis B."""
        device = next(self.classifiers.parameters()).device
        observation = read_observation(x_obs, self.x_shape, iid=False, device=device, encoder=self._encoder)
        parts = observation.x.split(_ROWS_AT_ONCE)
        logits = [torch.cat([one(part) for part in parts]) for one in self.classifiers]
        # Numbers of simulations were part of what the classifiers learned; those that failed count as made by nobody.
        log_prob = torch.log_softmax(torch.stack(logits).double().cpu(), -1)
        return log_prob - self.attempted.double().log(), observation.batched

    @property
    def _encoder(self) -> EncoderChoice:
        return self.classifiers[0].embedding  # type: ignore[return-value]

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise UsageError(f"model: expected one of {', '.join(self.names)}; got {name!r}")
        return self.names.index(name)


def _ordered(
    simulations: Mapping[str, Any] | Sequence[Any], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[Any]]:
    """The names of the models, and the simulations of each in that order; files are opened."""
    if isinstance(simulations, Mapping):
        names = names or tuple(simulations)
        if set(names) != set(simulations):
            raise UsageError(f"simulations: expected those of {', '.join(names)}, got {', '.join(simulations)}")
        sets = [simulations[name] for name in names]
    else:
        sets = list(simulations)
        names = names or tuple(f"model_{i}" for i in range(len(sets)))
    if len(sets) < 2 or len(names) != len(sets) or len(set(names)) < len(names):
        raise UsageError(
            f"simulations: expected those of two or more models with different names, got {len(sets)} for "
            f"{', '.join(names) or 'none'}"
        )
    return names, [Simulations.open(one) if isinstance(one, str | Path) else one for one in sets]


def _encoder(embedding: Any, one: Any) -> EncoderChoice:
    """An untrained encoder for observations like those of one model."""
    stored = isinstance(one, Simulations)
    return choose_encoder(embedding, one if stored else None, None if stored else one)


def _observations(
    names: Sequence[str], sets: Sequence[Any], failed: Failed, encoder: EncoderChoice
) -> tuple[list[Tensor], Tensor]:
    """X of the simulations of each model that succeeded, and how many were attempted of each ``(M,)``."""
    known_keys([failed], ["refuse", "correct"], "failed")
    rows: list[Tensor] = []
    attempted = []
    for name, one in zip(names, sets, strict=True):
        x = observables(one.x if isinstance(one, Simulations) else one, encoder, f"{name}: ")
        if rows and x.shape[1:] != rows[0].shape[1:]:
            wanted = f"(n, {', '.join(map(str, rows[0].shape[1:]))})"
            raise ShapeError(f"{name}: expected x of shape {wanted}, as of {names[0]}, got {tuple(x.shape)}")
        good = valid_rows(x, missing=accepts_missing(encoder))
        if isinstance(one, Simulations):
            good &= one.ok | (one.status == int(Status.NONFINITE))
        if failed == "refuse" and not bool(good.all()):
            raise NonFiniteError(
                f"{name}: {int((~good).sum())} of {len(good)} simulations failed or are not finite; leaving them out "
                "favours the models that fail: repair them, or say failed='correct' to count the share that succeeds"
            )
        if int(good.sum()) < _LEAST:
            raise ShapeError(f"{name}: expected at least {_LEAST} simulations that succeeded, got {int(good.sum())}")
        rows.append(x[good].to(torch.float32))
        attempted.append(len(x))
    return rows, torch.tensor(attempted)
