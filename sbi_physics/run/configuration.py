"""What an analysis file may say: one class for each job, one for each of its tables.

`docs/run.md` explains every key.  Unknown keys, other types and values out of range are errors; what depends on more
than one key, or on what a simulator says of itself, is checked where the stages of the job are put together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import UsageError
from sbi_physics.run.prior_configuration import Finite, Part, Positive, PriorPart
from sbi_physics.train.config import RULES

__all__ = [
    "JOBS",
    "AnomalyConfig",
    "Config",
    "IntegrateConfig",
    "Part",
    "PosteriorConfig",
    "PriorPart",
    "SurrogateConfig",
    "TablePart",
]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class ClusterPart(BaseModel):
    """Jobs of a batch system; other keys are the arguments of the class of dask-jobqueue."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    system: Literal["slurm", "htcondor", "pbs", "lsf", "sge", "oar", "moab", "local"]
    jobs: Count


class ComputePart(Part):
    """Where it is computed."""

    device: str = "auto"
    workers: Count | None = None
    timeout: Positive | None = None
    cluster: str | ClusterPart | None = None


class OutputsPart(Part):
    """What is written besides what there always is."""

    directory: str | None = None
    draws: list[Literal["ecsv", "fits"]] = []


class TrainingPart(Part):
    """Settings of the training loop (`train.config.TrainConfig`)."""

    epochs: Any = None
    batch_size: Any = None
    optimizer: Any = None
    learning_rate: Any = None
    weight_decay: Any = None
    schedule: Any = None
    warmup: Any = None
    ema: Any = None
    precision: Any = None
    clip_norm: Any = None
    validation_fraction: Any = None
    patience: Any = None
    max_seconds: Any = None
    checkpoint_seconds: Any = None

    @field_validator("*")
    @classmethod
    def _by_the_rules(cls, value: Any, info: Any) -> Any:
        good, wanted = RULES[info.field_name]
        if not good(value):
            raise UsageError(f"expected {wanted}, got {value!r}")
        return value

    def given(self) -> dict[str, Any]:
        """The settings that the file states."""
        return self.model_dump(exclude_unset=True)


class TablePart(Part):
    """A table of numbers with a row for each simulation; its parameters are those of the prior."""

    file: str
    outputs: list[str] | None = Field(default=None, min_length=1)
    names: list[str] | None = None
    where: str | None = None


class Config(Part):
    """What every analysis may say; each kind narrows `job` to its own."""

    job: str
    title: str = ""
    subtitle: str = ""
    seed: Seed = 0
    seeds: dict[str, Seed] = {}
    depends: list[str] = []
    compute: ComputePart = ComputePart()
    outputs: OutputsPart = OutputsPart()


class SimulatedConfig(Config):
    simulator: str | None = None
    simulations: str | None = None
    table: TablePart | None = None
    prior: dict[str, PriorPart] = {}


class _Learned(Part):
    model: str | None = None
    ensemble: Count = 1
    failed: Literal["refuse", "correct"] = "refuse"
    options: dict[str, Any] = {}
    training: TrainingPart = TrainingPart()

    @field_validator("model")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        from sbi_physics.models.build import known_models  # deferred: it takes torch, which a plan does without

        if value is not None and value not in known_models():
            raise UsageError(f"expected one of {', '.join(known_models())}; got {value!r}")
        return value


class NPEPart(_Learned):
    """Neural posterior estimation."""

    name: Literal["npe"]
    embedding: str | dict[str, str] | None = None
    augment: bool | None = None


class NLEPart(_Learned):
    """Neural likelihood estimation."""

    name: Literal["nle"]


class NREPart(Part):
    """Neural ratio estimation."""

    name: Literal["nre"]
    embedding: str | dict[str, str] | None = None
    balance: Annotated[float, Field(ge=0)] | None = None
    failed: Literal["refuse", "correct"] = "refuse"
    options: dict[str, Any] = {}
    training: TrainingPart = TrainingPart()


class VIPart(Part):
    """Variational inference, where the likelihood is known."""

    name: Literal["vi"]
    model: Literal["nsf", "maf", "maf-spline", "nsf-box"] = "nsf"
    steps: Count = 2000
    draws: Count = 256
    learning_rate: Positive = 5e-3
    options: dict[str, Any] = {}


class ObservationPart(Part):
    """The data: a file, what is simulated at a truth, or what the simulator carries where neither is said."""

    file: str | None = None
    truth: dict[str, Finite] | None = None
    independent: bool = False


class CorrectPart(Part):
    """Towards the exact posterior, where the likelihood is known."""

    method: Literal["auto", "importance", "mcmc", "none"] = "auto"
    proposals: Count = 50_000
    max_calls: Count | None = None
    max_pareto_k: Positive = 0.7


class ReferencePart(Part):
    """MCMC (emcee) on the exact likelihood beside it."""

    steps: Count = 2000
    walkers: Annotated[int, Field(ge=4)] = 128
    c2st: bool = True
    max_calls: Count | None = None


class PosteriorBudget(Part):
    """How many of what."""

    simulations: Annotated[int, Field(ge=20)] = 10_000
    calibration: Annotated[int, Field(ge=10)] = 1_000
    draws: Annotated[int, Field(ge=10)] = 10_000
    predictive: Count = 1_000
    max_seconds: Positive | None = None


class PosteriorDiagnostics(Part):
    """Which checks are made."""

    calibration: bool = True
    calibration_draws: Annotated[int, Field(ge=10)] = 256
    predictive: bool = True
    level: Probability = 0.01


class PosteriorConfig(SimulatedConfig):
    """A posterior."""

    job: Literal["posterior"]
    method: Annotated[NPEPart | NLEPart | NREPart | VIPart, Field(discriminator="name")] = NPEPart(name="npe")

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": "npe", **value} if isinstance(value, dict) else value

    observation: ObservationPart = ObservationPart()
    budget: PosteriorBudget = PosteriorBudget()
    correct: CorrectPart = CorrectPart()
    reference: ReferencePart | None = None
    diagnostics: PosteriorDiagnostics = PosteriorDiagnostics()


class SurrogateMethod(Part):
    """What is learned."""

    model: str = "flow"
    geometry: Literal["photons", "pions"] | None = None
    threshold: Positive = 1.0
    symmetries: bool = False
    ensemble: Count = 1
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        from sbi_physics.surrogate.build import model_name

        model_name(value)
        return value


class SurrogateBudget(Part):
    """How many of what."""

    simulations: Annotated[int, Field(ge=20)] = 10_000
    check: Annotated[int, Field(ge=800)] = 5_000
    max_seconds: Positive | None = None


class SurrogateDiagnostics(Part):
    """How it is checked."""

    classifier_epochs: Count = 50
    classifier_seconds: Positive | None = None
    timing: bool = True
    level: Probability = 0.01


class SurrogateConfig(SimulatedConfig):
    """A surrogate."""

    job: Literal["surrogate"]
    method: SurrogateMethod = SurrogateMethod()
    budget: SurrogateBudget = SurrogateBudget()
    diagnostics: SurrogateDiagnostics = SurrogateDiagnostics()


class IntegrateMethod(Part):
    """How it is integrated."""

    neural: bool = True
    non_finite: Literal["raise", "zero"] = "raise"


class IntegrateBudget(Part):
    """When it is done, and how many events are drawn."""

    rel_error: Positive | None = None
    abs_error: Positive | None = None
    calls: Annotated[int, Field(ge=1000)] | None = None
    max_seconds: Positive | None = None
    events: Annotated[int, Field(ge=0)] = 10_000


class LHEPart(Part):
    """Les Houches events: numbers of the particles by the Particle Data Group."""

    incoming: list[int] = Field(min_length=1)
    outgoing: list[int] = Field(min_length=1)


class IntegrateConfig(Config):
    """An integral."""

    job: Literal["integrate"]
    integrand: str
    dims: Count | None = None
    method: IntegrateMethod = IntegrateMethod()
    budget: IntegrateBudget = IntegrateBudget()
    lhe: LHEPart | None = None


class DataPart(Part):
    """Events of a file, or of a simulator that has them."""

    file: str | None = None
    where: str | None = None
    names: list[str] | None = None
    mass: str | None = None
    features: list[str] | None = None
    weights: str | None = None
    label: str | None = None
    simulator: str | None = None
    background: Annotated[int, Field(ge=0)] = 20_000
    signal: Annotated[int, Field(ge=0)] = 0


class SearchPart(Part):
    """The search, as `ResonantSearch` takes it."""

    signal_region: list[Finite] = Field(min_length=2, max_length=2)
    method: Literal["interpolation", "latent", "morphing", "densities", "sidebands"] = "interpolation"
    model: str = "nsf"
    ensemble: Count = 1
    classifier: Literal["trees", "networks"] = "trees"
    folds: Annotated[int, Field(ge=2)] = 5
    members: Count = 5
    oversampling: Positive = 4.0
    preprocessing: Literal["probit", "quantile"] = "probit"
    sqrt_s: Positive | None = None
    unit: str = ""
    efficiencies: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.2, 0.1, 0.05, 0.01], min_length=1)
    toys: Count = 20_000
    options: dict[str, Any] = {}
    training: TrainingPart = TrainingPart()

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        from sbi_physics.models.build import known_models

        known_keys([value], known_models(), "model")
        return value


class AnomalyDiagnostics(Part):
    """Which checks are made."""

    closure: bool = False


class AnomalyConfig(Config):
    """A search for a resonance."""

    job: Literal["anomaly"]
    data: DataPart
    search: SearchPart
    diagnostics: AnomalyDiagnostics = AnomalyDiagnostics()


JOBS: dict[str, type[Config]] = {
    "posterior": PosteriorConfig,
    "surrogate": SurrogateConfig,
    "integrate": IntegrateConfig,
    "anomaly": AnomalyConfig,
}
