"""`Surrogate`: a generator fitted to what a simulator gave, which then stands in for it.

    simulations = sp.simulate("calorimeter_photons", 50_000, out="showers.h5")
    surrogate = sp.Surrogate("vae").fit(simulations)
    x = surrogate.sample(theta, seed=1)
    sp.simulate(surrogate, 1_000_000, out="many.h5")

A trained surrogate is itself a simulator: all that takes one takes it.
"""

import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, resolve_device, same_length
from sbi_physics.core.errors import NonFiniteError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import check_seed, derive
from sbi_physics.diagnostics.training_rows import FIRST_ROWS, first_rows
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.models.flows.build import FLOWS
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.store.models import write_model
from sbi_physics.store.simulations import Simulations
from sbi_physics.surrogate.build import SurrogateArchitecture, model_name
from sbi_physics.surrogate.chain import ModelChain
from sbi_physics.surrogate.check import BATCHES, Features, SurrogateReport, check_surrogate
from sbi_physics.surrogate.distillation import distill_chain, student_architecture
from sbi_physics.surrogate.export import export_onnx
from sbi_physics.surrogate.fitting import Training, fit_chain
from sbi_physics.surrogate.preprocessing import Plain, Preprocessing
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.pairs import training_pairs

__all__ = ["Surrogate"]

_ROWS_AT_ONCE = 1 << 14

_MOST_ROWS_AT_ONCE = 1 << 14
_FEWEST_ROWS_AT_ONCE = 1 << 6
_BYTES_AT_ONCE = 1 << 23


class Surrogate:
    """p(x | theta), learned from pairs and sampled.

    Args:
        model: ``"flow"`` (a coupling spline flow; or the name of any flow, see `models.flows.build`),
            ``"diffusion"``, ``"consistency"``, ``"vae"``, ``"gan"``, ``"autoregressive"``, ``"energy"``, ``"mixture"``,
            ``"kernel"``: see `models.build` and `models.build_generators`.
        prior: `Parameters` of theta; None takes those of the simulations, or for arrays the box that they fill.
        preprocessing: how outputs become events; None takes each number by its kind (`models.columns`).
        ensemble: k flows whose mixture is the density.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        config: settings of the training in which it is to differ from what suits the model, as
            ``{"epochs": 100, "max_seconds": 600}``: of `train.config.TrainConfig`, or for a GAN of
            `train.adversarial_config.AdversarialConfig`.
        engine: how flows are run, see `models.flows.engines`.
        **options: of the model.

    Raises:
        UsageError: an argument has a value that it does not take.
    """

    KIND: ClassVar[str] = "surrogate"

    def __init__(
        self,
        model: str = "flow",
        *,
        prior: Any = None,
        preprocessing: Preprocessing | None = None,
        ensemble: int = 1,
        device: str | torch.device = "auto",
        config: Mapping[str, Any] | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        self.model, self.options = model_name(model), options
        self.ensemble = positive_integer(ensemble, "ensemble")
        if self.ensemble > 1 and self.model not in FLOWS:
            raise UsageError(f"ensemble: only flows come in ensembles, got {ensemble} of the model {self.model!r}")
        self._prior = None if prior is None else Parameters.from_prior(prior)
        self.preprocessing = preprocessing
        self.device = resolve_device(device)
        self.config, self.engine = dict(config or {}), check_engine(engine)
        self._trained: tuple[Parameters, SurrogateArchitecture, ModelChain, dict[str, Any]] | None = None

    @classmethod
    def of(
        cls,
        parameters: Parameters,
        architecture: SurrogateArchitecture,
        chain: ModelChain,
        provenance: dict[str, Any],
    ) -> "Surrogate":
        """A trained surrogate of its parts, as `load` makes it."""
        made = cls(architecture.model, ensemble=architecture.members, device=chain.device)
        made.options = dict(architecture.options)
        made._trained = (parameters, architecture, chain, provenance)
        return made

    @property
    def parameters(self) -> Parameters:
        """Names, units and prior of theta."""
        return self._fitted()[0]

    @property
    def architecture(self) -> SurrogateArchitecture:
        """What is needed to build it again."""
        return self._fitted()[1]

    @property
    def chain(self) -> ModelChain:
        """Preprocessing and models."""
        return self._fitted()[2]

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on, and how that went."""
        return self._fitted()[3]

    @property
    def x_shape(self) -> torch.Size:
        """The shape of one output."""
        return torch.Size(self.architecture.x_shape)

    @property
    def name(self) -> str:
        """Its model, and a checksum of what it has learned: a run of another surrogate is not taken up by mistake."""
        if self._trained is None:
            return self.KIND
        digest = hashlib.sha256(json.dumps(self.architecture.to_dict(), sort_keys=True).encode())
        for tensor in self.chain.state_dict().values():
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{self.KIND}-{self.model}-{digest.hexdigest()[:12]}"

    @property
    def rows_at_once(self) -> int:
        """How many outputs are drawn at once: a power of two, so many that they fill 8 MB."""
        fit = _BYTES_AT_ONCE // (4 * max(self.x_shape.numel(), 1))
        return min(max(1 << fit.bit_length() - 1 if fit else 0, _FEWEST_ROWS_AT_ONCE), _MOST_ROWS_AT_ONCE)

    def fit(
        self,
        theta_or_store: Any,
        x: Any = None,
        *,
        weights: Any = None,
        seed: int = 0,
        checkpoint: str | None = None,
        progress: bool = True,
    ) -> "Surrogate":
        """Train on pairs (theta, x); returns itself.

        In memory the pairs take at most MEMORY times what x takes in single precision, with the path of a file as with
        a `Simulations` object that has not been read yet, and once more where x is already in memory.  A file whose x
        takes more than ``config["memory"]`` bytes (`train.config.TrainConfig`) is streamed from the disk, where the
        preprocessing can.

        Args:
            theta_or_store: theta ``(N, P)``, a `Simulations` object or the path of its file.
            x: ``(N, *x_shape)`` simulated at each theta; None with a store.
            weights: ``(N,)`` weights of the pairs; negative ones are allowed.
            seed: of the initial weights, the validation split, the shuffles and the noise.
            checkpoint: a file from which an interrupted training goes on exactly.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, SupportError, SimulationError, StoreError, UsageError: the data do not fit.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        check_seed(seed)
        if isinstance(theta_or_store, str | Path):
            theta_or_store = Simulations.open(theta_or_store)
        parameters = self._prior or _parameters_of(theta_or_store)
        streams = self.preprocessing is None or self.preprocessing.STREAMS
        memory = TrainConfig(memory=self.config.get("memory")).memory if streams else -1
        pairs = training_pairs(parameters, theta_or_store, x, memory=memory)
        preprocessing = self.preprocessing or Plain(pairs.x.shape[1:], len(parameters))
        preprocessing.fit(pairs.theta, pairs.x)
        architecture = SurrogateArchitecture(
            self.model,
            tuple(pairs.x.shape[1:]),
            len(parameters),
            preprocessing.describe(),
            {**preprocessing.model_options(self.model, self.options), **self.options},
            self.ensemble,
            preprocessing.widths,
        )
        how = Training(
            config=self.config,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            device=self.device,
            engine=self.engine,
        )
        remembered = first_rows(pairs.theta, pairs.x)
        events = preprocessing.encode(pairs.theta, pairs.x, seed=derive(seed, "noise"))
        theta, weights = pairs.theta, pairs.weights(weights)
        # What was read from a file goes: the events take as much memory again.
        del pairs, x
        chain, records = fit_chain(architecture, preprocessing, theta, events, weights, how)
        provenance = {
            "simulations": len(theta),
            "seed": seed,
            FIRST_ROWS: remembered,
            "seconds": time.monotonic() - began,
            "training": records,
        }
        self._trained = (parameters, architecture, chain, provenance)
        return self

    def distill(
        self,
        model: str = "consistency",
        *,
        events: int = 100_000,
        theta: Any = None,
        ensemble: int = 1,
        config: Mapping[str, Any] | None = None,
        engine: str = "auto",
        seed: int = 0,
        checkpoint: str | None = None,
        progress: bool = True,
        **options: Any,
    ) -> "Surrogate":
        """Train a faster surrogate on draws of this one, see `surrogate.distillation`; this one stays as it is.

            fast = sp.Surrogate("diffusion").fit(simulations).distill("consistency", steps=1)

        Args:
            model: of the student, as `Surrogate` takes it; of several stages it is that of the last one.
            events: how many this one draws for the student to learn from.
            theta: ``(n, P)``, where it draws them, in turn; None takes parameters from the prior.
            ensemble: k flows whose mixture is the density.
            config: settings of the training, as `Surrogate` takes them; drawing is not part of its seconds.
            engine: how flows are run.
            seed: of all that is random.
            checkpoint: a file from which an interrupted training goes on exactly.
            progress: whether to show progress bars.
            **options: of the model, such as the ``steps`` of a consistency model: how many evaluations of its network
                make an event.

        Raises:
            UsageError: an argument has a value that it does not take; or this surrogate is not trained.
            ShapeError, NonFiniteError, SupportError: theta does not fit the parameters.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        parameters, teacher, chain, provenance = self._fitted()
        student = type(self)(model, ensemble=ensemble, device=self.device, config=config, engine=engine, **options)
        check_seed(seed)
        positive_integer(events, "events")
        rows = parameters.sample(events, seed=derive(seed, "theta")) if theta is None else self._checked(theta)
        rows = rows[torch.arange(events) % len(rows)].to(torch.float32)
        architecture = student_architecture(teacher, student.model, student.ensemble, options)
        how = Training(
            config=student.config,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            device=self.device,
            engine=student.engine,
        )
        chain, records = distill_chain(chain, architecture, rows, how)
        student.options = architecture.options
        record = {
            "simulations": provenance["simulations"],
            "seed": seed,
            "seconds": time.monotonic() - began,
            "training": records,
            FIRST_ROWS: provenance.get(FIRST_ROWS, []),
            "events": events,
            "teacher": {"model": teacher.model, "options": teacher.to_dict()["options"], "seed": provenance["seed"]},
        }
        student._trained = (parameters, architecture, chain, record)
        return student

    def with_sampling_steps(self, steps: int | None) -> "Surrogate":
        """The same diffusion model, drawing in so many evaluations of its network; None for as many as densities take.

        Needs no training.  The densities of events are what they were.

        Raises:
            UsageError: the model is no diffusion model, or the steps are no positive integer.
        """
        parameters, architecture, chain, provenance = self._fitted()
        chain = copy.deepcopy(chain)
        last = chain.stages[-1]
        if not isinstance(last, DiffusionDensity):
            raise UsageError(f"sampling_steps: only diffusion models draw in a number of steps, got {self.model!r}")
        last.sampling_steps = None if steps is None else positive_integer(steps, "sampling_steps")
        options = {**architecture.options, "sampling_steps": last.sampling_steps}
        return Surrogate.of(parameters, replace(architecture, options=options), chain, provenance)

    def sample(self, theta: Any, *, seed: int = 0) -> Tensor:
        """Draw one output for each theta ``(n, P)``: float32 ``(n, *x_shape)``, on the CPU.

        Raises:
            ShapeError, NonFiniteError, SupportError: theta does not fit the parameters.
        """
        return self(self._checked(theta), seed=seed)

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """As `sample`, where theta is known to be inside the prior: so the surrogate is a `Simulator`."""
        check_seed(seed)
        size = self.rows_at_once
        x = torch.empty(len(theta), *self.x_shape)
        for start in range(0, len(theta), size):
            part = slice(start, start + size)
            x[part] = self.chain.sample(theta[part], seed=derive(seed, "rows", start))
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError("sample: the surrogate gave NaN or infinity; it has not learned the simulator")
        return x

    @property
    def noise_features(self) -> int:
        """K: how many standard normal numbers `from_noise` makes one output of.

        Raises:
            UsageError: the model draws in another way.
        """
        return sum(self.chain.noise_features)

    def from_noise(self, theta: Any, noise: Any) -> Tensor:
        """The outputs that standard normal noise ``(n, K)`` stands for at theta ``(n, P)``: float32, on the CPU.

        Raises:
            ShapeError, NonFiniteError, SupportError: theta or noise does not fit.
            UsageError: the model draws in another way.
        """
        rows = batch_of(finite(as_tensor(theta, "theta"), "theta"), (len(self.parameters),), "theta")
        self.parameters.check_within(rows)
        given = batch_of(finite(as_tensor(noise, "noise"), "noise"), (self.noise_features,), "noise")
        same_length(theta=rows, noise=given)
        parts = zip(rows.split(_ROWS_AT_ONCE), given.split(_ROWS_AT_ONCE), strict=True)
        chain = self.chain
        return torch.cat([chain.from_noise(one.to(chain.device), two.to(chain.device)).cpu() for one, two in parts])

    def export(self, path: str | Path) -> None:
        """Write it to an ONNX file, a function of theta and noise as `from_noise`; see `surrogate.export`.

        Raises:
            UsageError: the extra ``export`` is not installed, it is not trained, or its model draws in another way.
            StoreError: the file cannot be written.
        """
        export_onnx(self.chain, self.parameters, self.model, path)

    def check(
        self,
        theta: Any,
        x: Any,
        *,
        weights: Any = None,
        features: Features | None = None,
        simulator: Simulator | None = None,
        classifier: Mapping[str, Any] | None = None,
        batches: Sequence[int] = BATCHES,
        level: float = 0.01,
        seed: int = 0,
        progress: bool = True,
    ) -> SurrogateReport:
        """Compare what it generates with real events that it was not trained on; see `surrogate.check`.

        Args:
            theta: ``(n, P)``.
            x: ``(n, *x_shape)``, what the simulator gave there.
            weights: of these events ``(n,)``, ones where None; negative ones may be among them.
            features: ``features(theta, x)`` gives named numbers ``(n,)``; None takes those of the preprocessing.
            simulator: what it stands in for, to be timed beside it.
            classifier: settings of `diagnostics.classifier_auc`.
            batches: rising sizes of the batches that are timed; none are where there is no size.
            level: the probability that a perfect surrogate flunks.
            seed: of the split, the generated events and the classifiers.
            progress: whether to show progress bars.

        Raises:
            ShapeError, NonFiniteError, SupportError: the events do not fit one another, or there are too few.
            UsageError: an argument is out of range.
        """
        preprocessing = self.chain.preprocessing
        return check_surrogate(
            self,
            theta,
            x,
            weights=weights,
            features=features or preprocessing.features,
            energy=preprocessing.energy,
            geometry=getattr(preprocessing, "geometry", None),
            simulator=simulator,
            classifier=classifier,
            batches=batches,
            level=level,
            seed=seed,
            progress=progress,
        )

    def save(self, path: str | Path) -> None:
        """Write the surrogate to a file (safetensors).

        Raises:
            StoreError: the file cannot be written.
            UsageError: the surrogate is not trained.
        """
        parameters, architecture, chain, provenance = self._fitted()
        header = {
            "kind": self.KIND,
            "parameters": parameters.to_dict(),
            "architecture": architecture.to_dict(),
            "provenance": provenance,
        }
        write_model(path, chain.state_dict(), header)

    def _checked(self, theta: Any) -> Tensor:
        """Parameters ``(n, P)`` inside the prior."""
        rows = batch_of(finite(as_tensor(theta, "theta"), "theta"), (len(self.parameters),), "theta")
        self.parameters.check_within(rows)
        return rows

    def __repr__(self) -> str:
        if self._trained is None:
            return f"Surrogate({self.model}, not trained)"
        return f"Surrogate({self.model}, {', '.join(self.parameters.names)} -> {tuple(self.x_shape)})"

    def _fitted(self) -> tuple[Parameters, SurrogateArchitecture, ModelChain, dict[str, Any]]:
        if self._trained is None:
            raise UsageError("surrogate: it is not trained; call fit(theta, x) first, or load one from a file")
        return self._trained


def _parameters_of(theta_or_store: Any) -> Parameters:
    """The parameters of simulations, or for bare arrays the box that they fill."""
    if isinstance(theta_or_store, Simulations):
        return theta_or_store.parameters
    theta = finite(as_tensor(theta_or_store, "theta"), "theta").to(torch.float32)
    if theta.ndim != 2 or not len(theta):
        return Parameters([Parameter("theta_0", td.Uniform(0.0, 1.0))])
    low, high = theta.amin(0), theta.amax(0)
    high = torch.where(high > low, high, low + 1)
    return Parameters([Parameter(f"theta_{i}", td.Uniform(low[i], high[i])) for i in range(theta.shape[1])])
