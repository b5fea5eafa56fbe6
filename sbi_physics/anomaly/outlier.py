r"""Events that are unlike the others, wherever they are: a search without a resonance, and without a signal in mind.

A model of what is usual gives each event a score, the higher the less usual:

======================  ===========================================================================================
any density             $-\ln q(x)$ in nats, of a flow, a mixture, a kernel density estimate (`models.build`)
``"vae"``               minus the importance-weighted bound of $\ln q(x)$ (Burda, Grosse and Salakhutdinov 2016,
                        arXiv:1509.00519)
``"autoencoder"``       the mean squared error of the standardised event after a narrow code (Heimel et al. 2019,
                        arXiv:1808.08979; Farina, Nakai and Shih 2020, arXiv:1808.08992); sparse, contractive or
                        denoising by its options (`models.autoencoder`)
======================  ===========================================================================================

    detector = OutlierDetector("autoencoder", code=2, noise=0.1).fit(features)
    detector.p_values(others)

What is rare depends on the coordinates: see `anomaly.coordinates`.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sbi_physics.anomaly.events import checked_weights
from sbi_physics.core.checks import as_tensor, batch_of, finite, known_keys, resolve_device
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.autoencoder import Autoencoder
from sbi_physics.models.build import Architecture, build_density, known_models, training_settings
from sbi_physics.models.build_generators import GENERATORS, build_generator
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.vae.model import VariationalAutoencoder
from sbi_physics.store.models import write_model
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.density import train_density
from sbi_physics.train.loop import train
from sbi_physics.train.split import held_out_rows

__all__ = ["AUTOENCODER", "VAE", "OutlierDetector"]

AUTOENCODER, VAE = "autoencoder", "vae"

_Model: TypeAlias = ConditionalDensity | Autoencoder | VariationalAutoencoder

_FEWEST_EVENTS = 20
_HELD_OUT = 0.2
_ROWS_AT_ONCE = 1 << 14
_AUTOENCODER_TRAINING: dict[str, Any] = {"epochs": 60}
_AUTOENCODER_OPTIONS = (
    "code",
    "layers",
    "hidden_features",
    "penalty",
    "strength",
    "activity",
    "probes",
    "noise",
)
_LATENT_POINTS = 64
_SEED_OF_SCORES = 0


class OutlierDetector:
    """What is usual, learned from events; a score of how unusual others are.

    Args:
        model: ``"autoencoder"``, ``"vae"``, or the name of any density: ``"nsf"``, ``"maf"``, ``"kernel"``, ... (see
            `models.build` and `models.flows.build`).
        bounds: ``(D, 2)`` support of the features, infinite where there is none; None for the whole real space.  Not
            for autoencoders.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        config: settings of the training in which it is to differ from what suits the model, of
            `train.config.TrainConfig`.
        **options: of the model; where nothing is said, the code of an autoencoder has half as many numbers as there
            are features, and a VAE as many latent numbers as features, at most 8.

    Raises:
        UsageError: there is no such model or setting.
    """

    KIND = "outliers"

    def __init__(
        self,
        model: str = "nsf",
        *,
        bounds: Any = None,
        device: str | torch.device = "auto",
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        known_keys([model], (AUTOENCODER, VAE, *known_models()), "model")
        if bounds is not None and model == AUTOENCODER:
            raise UsageError("bounds: an autoencoder knows no support; transform the features instead")
        self.model, self.options = model, options
        self.bounds = None if bounds is None else as_tensor(bounds, "bounds", dtype=torch.float64)
        self.device = resolve_device(device)
        known_keys(list(config or {}), [field.name for field in fields(TrainConfig)], "setting of the training")
        self._config = replace(TrainConfig(**_training(model)), **(config or {}))
        self._trained: tuple[_Model, TrainingRecord] | None = None
        self._reference, self._reference_mass = torch.zeros(0), torch.zeros(0)

    def fit(self, features: Any, *, weights: Any = None, seed: int = 0, progress: bool = True) -> "OutlierDetector":
        """Learn what is usual; returns itself.

        One event in five is held out, and is what `p_values` compares with.

        Args:
            features: ``(N, D)``, N of at least 20.
            weights: ``(N,)`` weights of the events; negative ones are allowed, but not for ``"kernel"``.
            seed: of the initial weights, the splits, the shuffles and the noise.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, UsageError: features or weights do not fit, or a feature is the same everywhere.
            SupportError: a feature is outside its bounds.
            TrainingError: the loss is not finite.
        """
        check_seed(seed)
        rows = _features(features, None)
        mass = checked_weights(weights, len(rows))
        kept, held_out = held_out_rows(len(rows), _HELD_OUT, derive(seed, "held out"))
        if not float(mass[held_out].sum()) > 0:
            raise UsageError("weights: expected a positive sum of those held out; too many negative weights")
        with seeded(derive(seed, "weights")):
            model = self._build(rows.shape[1])
        events = rows[kept]
        _inside(model, rows)
        model.fit_scaling(events)
        model.to(self.device)
        with torch.no_grad():
            encoded = _encoded(model, events.to(self.device))
        settings: dict[str, Any] = {"config": self._config, "seed": derive(seed, "train"), "progress": progress}
        settings |= {
            "weights": None if weights is None else mass[kept].float(),
            "description": "learning what is usual",
        }
        if isinstance(model, ConditionalDensity):
            record = train_density(model, [encoded], **settings)
        else:
            record = train(model, model.loss, [encoded], **settings)
        with torch.no_grad():
            reference, order = _scores(model.eval(), rows[held_out].to(self.device)).sort()
        self._trained, self._reference, self._reference_mass = (model, record), reference, mass[held_out][order]
        return self

    @property
    def record(self) -> TrainingRecord:
        """How the training went.

        Raises:
            UsageError: it has not been trained.
        """
        return self._fitted()[1]

    @torch.no_grad()
    def score(self, features: Any) -> Tensor:
        """How unusual each event ``(n, D)`` is: float64 ``(n,)``; infinite outside the bounds.

        Raises:
            UsageError: it has not been trained.
            ShapeError, NonFiniteError: the features do not fit.
        """
        model = self._fitted()[0]
        return _scores(model, _features(features, model.event_shape[0]).to(self.device))

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file; `sp.load` reads it back.

        Raises:
            UsageError: it has not been trained.
            StoreError: the file cannot be written.
        """
        model, record = self._fitted()
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {"reference": self._reference, "reference_mass": self._reference_mass}
        if self.bounds is not None:
            tensors["bounds"] = self.bounds
        header = {
            "kind": self.KIND,
            "model": self.model,
            "features": model.event_shape[0],
            "options": self.options,
            "record": record.to_dict(),
        }
        write_model(path, tensors, header)

    @classmethod
    def from_parts(
        cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str | torch.device = "auto"
    ) -> "OutlierDetector":
        """A detector of what `save` wrote.

        Raises:
            SBIPhysicsError, KeyError, TypeError, RuntimeError: the parts do not fit together.
        """
        self = cls(header["model"], bounds=tensors.get("bounds"), device=device, **header["options"])
        model = self._build(int(header["features"]))
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        self._trained = model.to(self.device).eval(), TrainingRecord(**header["record"])
        self._reference, self._reference_mass = tensors["reference"], tensors["reference_mass"]
        return self

    def p_values(self, features: Any) -> Tensor:
        r"""The probability that an event of background is as unusual as each of these ``(n, D)``: float64 ``(n,)``.

        With M events held out, of which k have a score at least as high, $(k + 1) / (M + 1)$: never zero.  With weights
        the share of their sum stands for k / M, and M is the effective number of events.
        """
        score = self.score(features)
        mass = self._reference_mass
        above = torch.cat([mass.flip(0).cumsum(0).flip(0), mass.new_zeros(1)])
        share = (above / mass.sum()).clamp(0, 1)[torch.searchsorted(self._reference, score)]
        effective = float(mass.sum() ** 2 / mass.square().sum())
        return (effective * share + 1) / (effective + 1)

    def _build(self, dims: int) -> _Model:
        bounds = self.bounds
        if bounds is not None and tuple(bounds.shape) != (dims, 2):
            raise ShapeError(f"bounds: expected shape ({dims}, 2), got {tuple(bounds.shape)}")
        if self.model == AUTOENCODER:
            known_keys(list(self.options), _AUTOENCODER_OPTIONS, "option of an autoencoder")
            return Autoencoder((dims,), **{"code": max(1, dims // 2), **self.options})
        if self.model == VAE:
            options = {"latent": min(dims, 8), **self.options}
            made = build_generator(VAE, (dims,), bounds=bounds, **options)
            if not isinstance(made, VariationalAutoencoder):
                raise UsageError(f"model: expected a variational autoencoder, got {type(made).__name__}")
            return made
        return build_density(Architecture(self.model, (dims,), None, self.options), bounds=bounds)

    def _fitted(self) -> tuple[_Model, TrainingRecord]:
        if self._trained is None:
            raise UsageError("fit: this detector has learned nothing yet; call fit first")
        return self._trained


def _training(model: str) -> dict[str, Any]:
    """Settings in which the training of a model differs from the defaults."""
    if model == AUTOENCODER:
        return _AUTOENCODER_TRAINING
    return GENERATORS[model].training if model in GENERATORS else training_settings(model)


def _encoded(model: _Model, events: Tensor) -> Tensor:
    encoded = model.encode(events)
    return encoded if isinstance(encoded, Tensor) else encoded[0]


def _scores(model: _Model, rows: Tensor) -> Tensor:
    """Scores ``(n,)`` of events on the device of the model, float64 on the CPU, a part after the other."""
    return torch.cat([_score(model, part).double().cpu() for part in rows.split(_ROWS_AT_ONCE)])


def _score(model: _Model, rows: Tensor) -> Tensor:
    if isinstance(model, Autoencoder):
        return model.reconstruction_error(rows)
    if isinstance(model, VariationalAutoencoder):
        return -model.importance_log_prob(rows, n=_LATENT_POINTS, seed=_SEED_OF_SCORES)
    return -model.log_prob(rows)


def _inside(model: _Model, rows: Tensor) -> None:
    """Refuse features outside the support."""
    if isinstance(model, Autoencoder):
        return
    outside = ~model.bijection.within(rows)
    if bool(outside.any()):
        first = int(torch.nonzero(outside)[0, 0])
        raise SupportError(f"features: expected all inside the bounds, got {rows[first].tolist()} in row {first}")


def _features(features: Any, dims: int | None) -> Tensor:
    """Features ``(n, D)`` in single precision, fit to be learned where `dims` is None."""
    rows = as_tensor(features, "features").cpu()
    if dims is not None:
        return finite(batch_of(rows, (dims,), "features", minimum=0), "features")
    if rows.ndim != 2 or not rows.shape[1]:
        raise ShapeError(f"features: expected shape (N, D), got {tuple(rows.shape)}")
    finite(batch_of(rows, rows.shape[1:], "features", minimum=_FEWEST_EVENTS), "features")
    constant = rows.amax(0) == rows.amin(0)
    if bool(constant.any()):
        column = int(torch.nonzero(constant)[0, 0])
        raise UsageError(f"features: column {column} is {float(rows[0, column]) + 0.0:g} in all events; leave it out")
    return rows
