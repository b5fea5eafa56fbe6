"""The stages of a posterior.

    observe ----------------------+--------+-----------+
    simulate --- fit --- sample --+-- correct -- predict, reference -- report
    fresh ------- calibrate

`observe` keeps the observation; `correct` and `reference` need a likelihood, `predict` a simulator.  Variational
inference fits to the observation, and needs no simulations.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.uniformity import LEAST_PAIRS
from sbi_physics.models.build import known_options, training_settings
from sbi_physics.posterior.build import RATIO_OPTIONS
from sbi_physics.posterior.circles import cut_circles
from sbi_physics.posterior.nle import NLE
from sbi_physics.posterior.npe import NPE
from sbi_physics.posterior.nre import NRE
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.posterior.variational import VI
from sbi_physics.report.figures import losses
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import Findings, without_seconds
from sbi_physics.run.posterior_checks import calibrate_stage, predict_stage
from sbi_physics.run.posterior_data import (
    SIMULATIONS_FILE,
    Observed,
    check_observed,
    first_and_last,
    observe_stage,
    read_observed,
    simulate_stage,
)
from sbi_physics.run.posterior_draws import correct_stage, reference_stage, sample_stage
from sbi_physics.run.prior_table import prior_table, unlike_prior
from sbi_physics.run.repeated_rows import repeated_rows
from sbi_physics.run.sources import Source, source_of
from sbi_physics.run.stages import Stage, Work
from sbi_physics.store.observation import read_data
from sbi_physics.store.simulations import Simulations
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.encoding import FLAT

__all__ = ["POSTERIOR_FILE", "posterior_stages"]

POSTERIOR_FILE = "posterior.safetensors"
# What the classes of posteriors take where nothing is said.
_NRE_TRAINING = {"epochs": 40}
_HELD_OUT_SHARE = 5
_REPEATED_SHARE = 0.01


def posterior_stages(analysis: Analysis) -> list[Stage]:
    """The stages of an analysis file whose job is a posterior.

    Raises:
        UsageError: keys of the file do not fit one another, or the simulator.
    """
    config: Any = analysis.config
    source = source_of(analysis)
    stages: list[Stage] = []
    if config.method.name == "vi":
        stages += [observe_stage(analysis, source), _variational_stage(analysis, source)]
    else:
        calibrated = config.diagnostics.calibration
        last = _held_out(analysis, source)
        if source.simulations is None:
            stages.append(simulate_stage(analysis, source, "simulate", config.budget.simulations, "to learn from"))
        if calibrated and source.simulator is not None:
            stages.append(simulate_stage(analysis, source, "fresh", config.budget.calibration, "to check with"))
        estimator = _estimator(analysis, source)

        def fits(observed: Observed, simulations: Simulations) -> None:
            joined, iid = config.method.name != "npe", config.observation.independent
            embedding = getattr(estimator, "embedding", FLAT)
            try:
                check_observed(observed, simulations, embedding, joined=joined, iid=iid)
            except ShapeError as error:
                if (columns := source.settings.get("outputs")) is None:
                    raise
                raise ShapeError(f"{error}; the data of the table are its columns {', '.join(columns)}") from error

        fit = _fit_stage(analysis, source, estimator, last, fits)
        stages = [replace(observe_stage(analysis, source, fits), check=fit.check), *stages, fit]
        if calibrated:
            stages.append(calibrate_stage(analysis, source, last))
    stages.append(sample_stage(analysis))
    stages += [stage for stage in (correct_stage(analysis, source), reference_stage(analysis, source)) if stage]
    if config.diagnostics.predictive and source.simulator is not None and not config.observation.independent:
        stages.append(predict_stage(analysis, source, [stage.name for stage in stages]))
    return stages


def _held_out(analysis: Analysis, source: Source) -> int:
    """Rows at the end of a file of simulations that are there to check with; none where there is a simulator."""
    config: Any = analysis.config
    if source.simulations is None or source.simulator is not None or not config.diagnostics.calibration:
        return 0
    rows = len(source.simulations)
    last: int = min(config.budget.calibration, rows // _HELD_OUT_SHARE)
    if last < LEAST_PAIRS:
        raise analysis.error(
            ["diagnostics", "calibration"],
            f"expected at least {LEAST_PAIRS} simulations to check with, got {last} (budget.calibration, and a fifth "
            f"of {rows} at most); say false to go without",
        )
    return last


def _fit_stage(
    analysis: Analysis, source: Source, estimator: Any, last: int, fits: Callable[[Observed, Simulations], None]
) -> Stage:
    config: Any = analysis.config
    method, budget = config.method, config.budget
    # Of simulations that are there already, all, where nothing is said.
    most = budget.simulations if source.simulations and "simulations" in budget.model_fields_set else None

    def stored(made: Mapping[str, Path]) -> Simulations:
        return source.simulations or Simulations.open(made["simulate"] / SIMULATIONS_FILE)

    def check(made: Mapping[str, Path]) -> None:
        file = config.observation.file
        if file is None and "observe" not in made:
            return
        with analysis.blaming("observation", *([] if file is None else ["file"])):
            observed = read_observed(made["observe"]) if file is None else Observed(read_data(analysis.resolve(file)))
            if source.simulations is not None or "simulate" in made:
                fits(observed, stored(made))

    def make(work: Work) -> None:
        store = stored(work.inputs)
        if last:
            store, _ = first_and_last(store, last)
        if most is not None and len(store) > most:
            store, _ = first_and_last(store, len(store) - most)
        posterior = estimator.fit(
            store,
            failed=method.failed,
            seed=derive(work.seed, "fit"),
            checkpoint=str(work.folder / "checkpoint"),
            progress=work.progress,
        )
        _keep(work, posterior, method.name, None if config.table is None else store)

    settings = {
        "method": method.model_dump(mode="json"),
        "max_seconds": config.budget.max_seconds,
        "device": config.compute.device,
        "parameters": source.parameters.to_dict(),
        "outputs": source.settings.get("outputs"),
        "held_out": last,
        "most": most,
    }
    inputs = ("simulate",) if source.simulations is None else ()
    seed = analysis.seed("fit")
    return Stage("fit", make, settings, inputs, seed, source.files, check, scratch=("checkpoint*",), format=2)


def _estimator(analysis: Analysis, source: Source) -> Any:
    """NPE, NLE or NRE with the settings of the file; what they do not take is an error now, not after simulating."""
    config: Any = analysis.config
    method = config.method
    training = method.training.given()
    if config.budget.max_seconds is not None:
        training.setdefault("max_seconds", config.budget.max_seconds)
    own = _NRE_TRAINING if method.name == "nre" else training_settings(getattr(method, "model", None) or "nsf")
    given: dict[str, Any] = {"config": TrainConfig(**{**own, **training}), "device": config.compute.device}
    for name in ("model", "embedding", "ensemble", "augment", "balance"):
        value = getattr(method, name, None)
        if value is not None:
            given[name] = value
    for name in method.options:
        if name not in (known := _options_of(method)):
            raise analysis.error(["method", "options", name], f"expected one of {', '.join(known)}")
    with analysis.blaming("method"):
        kind: Any = {"npe": NPE, "nle": NLE, "nre": NRE}[method.name]
        return kind(source.parameters, **given, **method.options)


def _options_of(method: Any) -> tuple[str, ...]:
    """The options that the model of a method takes."""
    if method.name == "nre":
        return tuple(RATIO_OPTIONS)
    model = method.model or "nsf"
    return known_options(model)


def _variational_stage(analysis: Analysis, source: Source) -> Stage:
    config: Any = analysis.config
    method = config.method
    likelihood = getattr(source.simulator, "log_likelihood", None)
    if likelihood is None:
        raise analysis.error(["method", "name"], "variational inference needs a simulator with log_likelihood")
    if config.observation.independent:
        raise analysis.error(["observation", "independent"], "variational inference is for one observation")
    with analysis.blaming("method"):
        estimator = VI(
            source.parameters,
            likelihood,
            method.model,
            config.compute.device,
            learning_rate=method.learning_rate,
            **method.options,
        )

    def make(work: Work) -> None:
        posterior = estimator.fit(
            read_observed(work.inputs["observe"]).x,
            steps=method.steps,
            draws=method.draws,
            seed=derive(work.seed, "fit"),
            max_seconds=config.budget.max_seconds,
            progress=work.progress,
        )
        _keep(work, posterior, method.name)

    settings = {
        **source.settings,
        "method": method.model_dump(mode="json"),
        "max_seconds": config.budget.max_seconds,
        "device": config.compute.device,
    }
    return Stage("fit", make, settings, ("observe",), analysis.seed("fit"), source.code, format=2)


def _keep(work: Work, posterior: Posterior, method: str, table: Simulations | None = None) -> None:
    """Write a posterior and how its training went; rows of a table must look like independent draws."""
    posterior = replace(posterior, provenance=without_seconds(posterior.provenance))
    posterior.save(work.folder / POSTERIOR_FILE)
    found = posterior.provenance
    record = found["training"]
    findings = Findings(work.folder, "fit")
    prior_table(findings.section("Prior"), posterior.parameters)
    section = findings.section("Training")
    rows: list[tuple[str, Any]] = [
        ("method", method.upper()),
        ("model", posterior.architecture.model),
        ("networks", posterior.architecture.members),
        ("simulations", found.get("simulations")),
        ("likelihood calls", found.get("likelihood_calls")),
        ("epochs", len(record["train_loss"])),
        ("stopped by", record["stopped"]),
        ("best validation loss", min(record["validation_loss"], default=None)),
        ("log-density of simulations held out (nats)", found.get("validation_log_prob")),
        ("lower bound of the log-evidence", found.get("elbo")),
    ]
    section.table(["training", "value"], [[name, _text(value)] for name, value in rows if value is not None])
    section.figure(
        losses(record["train_loss"], record["validation_loss"], record["best_epoch"]),
        "training",
        alt="Losses of training and validation against the epoch.",
        caption="The loss of each epoch, and the one that was kept.",
    )
    for name in [] if table is None else unlike_prior(posterior.parameters, table.theta):
        findings.verdict(
            "bad",
            f"{name} of the table was not drawn from the prior that the file states: the posterior rests on the "
            "distribution in the table; state that as the prior.",
        )
    if table is not None and (again := repeated_rows(table)) > _REPEATED_SHARE * len(table):
        findings.verdict(
            "warning",
            f"{again:,} of {len(table):,} rows of the table repeat another: the network learns those by heart, "
            "and what it holds out to stop in time, too, unless they are independent simulations whose data are few "
            "whole numbers.",
        )
    if text := cut_circles(posterior.parameters, posterior.architecture.model, boxes=method in ("npe", "vi")):
        findings.verdict("warning", f"{text[0].upper()}{text[1:]}.")
    if record["stopped"] == "seconds":
        findings.verdict("warning", "Training was stopped by its budget of seconds; it cannot be repeated exactly.")
    findings.numbers(method=method, epochs=len(record["train_loss"]), stopped=record["stopped"])
    findings.write()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
