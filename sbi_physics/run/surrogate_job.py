"""The stages of a surrogate: simulate (or a file), fit, check on events that it has not seen."""

from typing import Any

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive
from sbi_physics.core.voxels import DATASET_1_PHOTONS, DATASET_1_PIONS
from sbi_physics.files import load
from sbi_physics.report.surrogate_figures import surrogate_check
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import Findings, without_seconds
from sbi_physics.run.posterior_data import SIMULATIONS_FILE, first_and_last, simulate_stage
from sbi_physics.run.sources import Source, source_of
from sbi_physics.run.stages import Stage, Work
from sbi_physics.store.simulations import Simulations
from sbi_physics.surrogate.check import BATCHES
from sbi_physics.surrogate.showers import Showers
from sbi_physics.surrogate.surrogate import Surrogate

__all__ = ["SURROGATE_FILE", "surrogate_stages"]

SURROGATE_FILE = "surrogate.safetensors"
_GEOMETRIES = {"photons": DATASET_1_PHOTONS, "pions": DATASET_1_PIONS}
_FEWEST_TO_CHECK = 800


def surrogate_stages(analysis: Analysis) -> list[Stage]:
    """The stages of an analysis file whose job is a surrogate.

    Raises:
        UsageError: keys of the file do not fit one another, or the simulator.
    """
    config: Any = analysis.config
    geometry = _GEOMETRIES.get(config.method.geometry)
    source = source_of(analysis, None if geometry is None else geometry.size)
    stages = []
    if source.simulations is None:
        stages = [
            simulate_stage(analysis, source, "simulate", config.budget.simulations, "to learn from"),
            simulate_stage(analysis, source, "fresh", config.budget.check, "to check with"),
        ]
    last = _held_out(analysis, source)
    return [*stages, _fit_stage(analysis, source, last), _check_stage(analysis, source, last)]


def _held_out(analysis: Analysis, source: Source) -> int:
    """Rows at the end of a file of simulations that are there to check with."""
    if source.simulations is None:
        return 0
    config: Any = analysis.config
    last = min(config.budget.check, len(source.simulations) // 3)
    if last < _FEWEST_TO_CHECK:
        where = "simulations" if config.simulations is not None else "table"
        raise analysis.error(
            [where],
            f"expected at least {3 * _FEWEST_TO_CHECK} rows, a third to check with; got {len(source.simulations)}",
        )
    return last


def _surrogate(analysis: Analysis, source: Source) -> Surrogate:
    config: Any = analysis.config
    method, geometry = config.method, _GEOMETRIES.get(config.method.geometry)
    training = dict(method.training)
    if config.budget.max_seconds is not None:
        training.setdefault("max_seconds", config.budget.max_seconds)
    with analysis.blaming("method"):
        preprocessing = None
        if geometry is not None:
            preprocessing = Showers(geometry, threshold=method.threshold, symmetries=method.symmetries)
        return Surrogate(
            method.model,
            prior=source.parameters,
            preprocessing=preprocessing,
            ensemble=method.ensemble,
            device=config.compute.device,
            config=training,
            **method.options,
        )


def _fit_stage(analysis: Analysis, source: Source, last: int) -> Stage:
    config: Any = analysis.config
    _surrogate(analysis, source)  # what it does not take is an error now, not after simulating

    def make(work: Work) -> None:
        if source.simulations is None:
            store = Simulations.open(work.inputs["simulate"] / SIMULATIONS_FILE)
        else:
            store, _ = first_and_last(source.simulations, last)
        surrogate = _surrogate(analysis, source).fit(
            store, seed=derive(work.seed, "fit"), checkpoint=str(work.folder / "checkpoint"), progress=work.progress
        )
        found = without_seconds(surrogate.provenance)
        Surrogate.of(surrogate.parameters, surrogate.architecture, surrogate.chain, found).save(
            work.folder / SURROGATE_FILE
        )
        epochs = [len(part.get("train_loss", part.get("critic_loss", ()))) for part in found["training"]]
        findings = Findings(work.folder, "fit")
        rows = [
            ["model", surrogate.model],
            ["simulations", f"{found['simulations']:,}"],
            ["epochs of each stage of the model", " + ".join(map(str, epochs))],
            ["numbers of one event", f"{surrogate.x_shape.numel():,}"],
        ]
        findings.section("Training").table(["training", "value"], rows)
        findings.numbers(model=surrogate.model, simulations=found["simulations"], epochs=epochs)
        findings.write()

    settings = {
        "method": config.method.model_dump(mode="json"),
        "max_seconds": config.budget.max_seconds,
        "device": config.compute.device,
        "parameters": source.parameters.to_dict(),
        "outputs": source.settings.get("outputs"),
        "held_out": last,
    }
    inputs = ("simulate",) if source.simulations is None else ()
    return Stage("fit", make, settings, inputs, analysis.seed("fit"), source.files, scratch=("checkpoint*",))


def _check_stage(analysis: Analysis, source: Source, last: int) -> Stage:
    config: Any = analysis.config
    part, device = config.diagnostics, config.compute.device

    def make(work: Work) -> None:
        surrogate = load(work.inputs["fit"] / SURROGATE_FILE, device=device)
        if source.simulations is None:
            store = Simulations.open(work.inputs["fresh"] / SIMULATIONS_FILE)
        else:
            _, store = first_and_last(source.simulations, last)
        theta, x = store.training_set()
        if isinstance(x, dict):
            raise UsageError(f"simulator: expected one output, got several: {', '.join(x)}")
        report = surrogate.check(
            theta,
            x,
            simulator=source.simulator if part.timing else None,
            classifier={"epochs": part.classifier_epochs, "max_seconds": part.classifier_seconds, "device": device},
            batches=tuple(b for b in BATCHES if b <= len(theta)) if part.timing else (),
            level=part.level,
            seed=derive(work.seed, "check"),
            progress=work.progress,
        )
        findings = Findings(work.folder, "check")
        findings.verdict("good" if report.passed else "warning", f"Surrogate: {report.verdict}")
        section = findings.section("Closure")
        section.table(
            ["measurement", "generated", "real"],
            report.rows(),
            caption=f"{len(theta)} events that the surrogate has not seen, and as many that it made; "
            "'real' is what two halves of real events give.",
        )
        section.figure(
            surrogate_check(report),
            "check",
            alt="Classifiers, response, correlations and the features that differ most, of real and generated events.",
            caption="Real and generated events.",
        )
        findings.numbers(**report.to_dict())
        findings.write()

    settings = {**part.model_dump(), "device": device, "held_out": last, "simulator": source.settings["simulator"]}
    inputs = ("fit",) if last else ("fit", "fresh")
    return Stage("check", make, settings, inputs, analysis.seed("check"), source.files if last else {})
