"""Train the models of a surrogate, stage by stage, each in the way that suits its kind."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from sbi_physics.core.checks import known_keys
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.build import training_settings
from sbi_physics.models.build_generators import GENERATORS
from sbi_physics.models.consistency import ConsistencyModel
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.energy import EnergyModel
from sbi_physics.models.gan import GenerativeAdversarialNetwork
from sbi_physics.models.generator import ConditionalGenerator
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.store.row_parts import RowParts, row_parts
from sbi_physics.surrogate.build import SurrogateArchitecture, build_model
from sbi_physics.surrogate.chain import ModelChain
from sbi_physics.surrogate.preprocessing import Preprocessing
from sbi_physics.surrogate.symmetry import Augmentation
from sbi_physics.train.adversarial import train_adversarial
from sbi_physics.train.adversarial_config import AdversarialConfig
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.consistency import CONSISTENCY_SETTINGS, train_consistency
from sbi_physics.train.density import train_density
from sbi_physics.train.energy import ENERGY_SETTINGS, train_energy
from sbi_physics.train.loop import train

__all__ = ["Training", "fit_chain", "settings_for", "train_stage"]

# The rest of the settings is chosen for the model of the last stage.
_OF_ALL_STAGES = ("precision", "validation_fraction", "max_seconds", "checkpoint_seconds")

# A generator of hurdles knows the laws of the single numbers before the game begins, and should not forget them.
_START = TrainConfig(epochs=4, batch_size=512)
_AFTER_START = AdversarialConfig(generator_rate=5e-4, critic_rate=1e-3)

Settings = TypeVar("Settings", TrainConfig, AdversarialConfig)


class Training:
    """How the stages are trained.

    Args:
        config: settings in which the training of the model of the last stage is to differ from what suits it; budgets
            and precision are those of earlier stages, too.
        seed: of weights, splits, shuffles and noise.
        checkpoint: a file from which an interrupted training goes on exactly; a later stage has one of its own.
        progress: whether to show a progress bar.
        device: where.
        engine: how flows are run.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        seed: int,
        checkpoint: str | None,
        progress: bool,
        device: Any,
        engine: str,
    ) -> None:
        self.config, self.seed, self.checkpoint, self.progress = config, seed, checkpoint, progress
        self.device, self.engine = device, engine


def fit_chain(
    architecture: SurrogateArchitecture,
    preprocessing: Preprocessing,
    theta: Tensor,
    events: list[Any],
    weights: Tensor | None,
    how: Training,
) -> tuple[ModelChain, list[dict[str, Any]]]:
    """The trained chain, and the record of each stage.

    Args:
        architecture: of the chain, with its widths.
        preprocessing: fitted.
        theta: ``(N, P)``.
        events: of each stage, `Preprocessing.encode`; the last are taken out, and go as soon as they are not needed.
            Those that are in parts are trained on from the disk.
        weights: ``(N,)``, or None.
        how: see `Training`.
    """
    models, records = [], []
    last = len(events) - 1
    for stage in range(last + 1):
        with seeded(derive(how.seed, "weights", stage)):
            model = build_model(architecture, stage, engine=how.engine)
        contexts = preprocessing.context(theta, events[:stage])
        model.fit_scaling(events[stage], contexts)
        model.to(how.device)
        symmetry = preprocessing.stage_symmetries[stage]
        augment = None if symmetry is None else Augmentation(model, symmetry)
        given = (contexts, weights, how, augment)
        # The events themselves are handed over, so that they are nowhere else.
        records.append(
            train_stage(architecture, model, stage, events.pop() if stage == last else events[stage], *given)
        )
        models.append(model)
    return ModelChain(preprocessing.to(how.device), models).eval(), records


def train_stage(
    architecture: SurrogateArchitecture,
    model: ConditionalGenerator,
    stage: int,
    events: Tensor | RowParts,
    contexts: Tensor,
    weights: Tensor | None,
    how: Training,
    augment: Augmentation | None = None,
) -> dict[str, Any]:
    """Train the model of a stage in place; the record of its training.

    Args:
        architecture: of the chain, with its widths.
        model: with fitted scalings, on the device.
        stage: its number.
        events: ``(N, D)``.
        contexts: ``(N, C)``.
        weights: ``(N,)``, or None.
        how: see `Training`.
        augment: what each batch goes through; None for nothing.
    """
    stages = len(architecture.widths)
    last = stage == stages - 1
    encoded = _encoded(model, events)
    del events
    data: list[Any] = [encoded, model.context_scaling(contexts.to(how.device)).detach()]
    name = architecture.model if last else ""
    path = None if how.checkpoint is None else f"{how.checkpoint}.{stage}" if stage else how.checkpoint
    settings: dict[str, Any] = {
        "weights": weights,
        "augment": augment,
        "seed": derive(how.seed, "train", stage),
        "checkpoint": None if path is None else Path(path),
        "progress": how.progress,
        "description": "training the surrogate" + (f", part {stage + 1} of {stages}" if stages > 1 else ""),
    }
    chosen = how.config if last else {key: value for key, value in how.config.items() if key in _OF_ALL_STAGES}
    config = settings_for(model, name, chosen)
    if isinstance(config, AdversarialConfig):
        game = cast(GenerativeAdversarialNetwork, model)
        if game.has_laws:
            _teach_laws(game, data, weights, how, stage)
        return train_adversarial(game, data, config=config, **settings).to_dict()
    if isinstance(model, EnergyModel):
        return train_energy(model, data, config=config, **settings).to_dict()
    if isinstance(model, ConsistencyModel):
        return _train_consistency(model, data, how, settings)
    if isinstance(model, ConditionalDensity):
        return train_density(model, data, config=config, **settings).to_dict()
    loss = cast(Callable[..., Tensor], model.loss)
    return train(model, loss, data, config=config, **settings).to_dict()


def _teach_laws(
    model: GenerativeAdversarialNetwork, data: list[Any], weights: Tensor | None, how: Training, stage: int
) -> None:
    """Give the generator a start by maximum likelihood, which a checkpoint of the game that follows replaces."""
    chosen = {key: value for key, value in how.config.items() if key in _OF_ALL_STAGES}
    train(
        model.generator_part,
        model.likelihood_loss,
        data,
        weights=weights,
        config=_settings(_START, chosen),
        seed=derive(how.seed, "laws", stage),
        progress=how.progress,
        description="the laws of single numbers",
    )


def settings_for(model: ConditionalGenerator, name: str, chosen: Mapping[str, Any]) -> TrainConfig | AdversarialConfig:
    """The settings that suit a model, with those that the user has chosen.

    Args:
        model: what is trained.
        name: of it, as `SurrogateArchitecture.model`; empty for an early stage.
        chosen: by the user.

    Raises:
        UsageError: there is no such setting, or it has a value that it does not take.
    """
    if isinstance(model, GenerativeAdversarialNetwork):
        return _settings(_AFTER_START if model.has_laws else AdversarialConfig(), chosen)
    if isinstance(model, EnergyModel):
        return _settings(ENERGY_SETTINGS, chosen)
    if isinstance(model, ConsistencyModel):
        return _settings(CONSISTENCY_SETTINGS, chosen)
    own = GENERATORS[name].training if name in GENERATORS else training_settings(name)
    return _settings(TrainConfig(**own), chosen)


def _train_consistency(
    model: ConsistencyModel, data: list[Any], how: Training, settings: dict[str, Any]
) -> dict[str, Any]:
    """The record of the student, with that of its teacher; each may take half of the seconds.

    Symmetries are those of the draws alone: a student learns from the solutions of its teacher, batch by batch.
    """
    settings = {key: value for key, value in settings.items() if key != "augment"}
    chosen = dict(how.config)
    if chosen.get("max_seconds") is not None:
        chosen["max_seconds"] = chosen["max_seconds"] / 2
    own = TrainConfig(**training_settings("flow-matching"))
    teacher, student = train_consistency(
        model,
        data,
        config=_settings(CONSISTENCY_SETTINGS, chosen),
        teacher_config=_settings(own, chosen),
        **settings,
    )
    return {**student.to_dict(), "teacher": teacher.to_dict()}


def _encoded(model: ConditionalGenerator, events: Tensor | RowParts) -> Tensor | DiskRows:
    """Encoded events ``(N, D)`` on the device of the model, or on the disk."""
    parts = row_parts(events).map(lambda part: model.encode(part.to(model.device))[0], events.shape[1:])
    return parts.stored(model.device)


def _settings(own: Settings, chosen: Mapping[str, Any]) -> Settings:
    """The settings that suit a model, with those that the user has chosen.

    Raises:
        UsageError: there is no such setting.
    """
    known_keys(list(chosen), [field.name for field in fields(own)], "setting of the training")
    return replace(own, **chosen)
