"""Stages of a posterior in which it is checked: its calibration, and what it predicts."""

from collections.abc import Sequence
from typing import Any

import torch

from sbi_physics.core.random import derive
from sbi_physics.diagnostics.calibration_report import CalibrationReport, calibrate
from sbi_physics.diagnostics.predictive import predictive_check
from sbi_physics.diagnostics.uniformity import LEAST_PAIRS
from sbi_physics.report.calibration_figures import calibration
from sbi_physics.report.diagnostic_figures import predictive
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import Findings
from sbi_physics.run.posterior_data import SIMULATIONS_FILE, first_and_last, read_observed
from sbi_physics.run.posterior_draws import best_draws, load_posterior
from sbi_physics.run.repeated_rows import unlearned_rows
from sbi_physics.run.sources import Source
from sbi_physics.run.stages import Stage, Work
from sbi_physics.train.encoding import accepts_missing
from sbi_physics.train.pairs import training_pairs

__all__ = ["calibrate_stage", "predict_stage"]


def calibrate_stage(analysis: Analysis, source: Source, last: int) -> Stage:
    """Check the calibration of the network on simulations that it has not seen.

    Args:
        analysis: its file.
        source: of the simulations.
        last: rows at the end of a file that were held out; 0 where fresh ones are simulated.
    """
    config: Any = analysis.config
    part, device = config.diagnostics, config.compute.device

    def make(work: Work) -> None:
        posterior = load_posterior(work, device)
        if last and source.simulations is not None:
            learned, held_out = first_and_last(source.simulations, last)
            simulations: Any
            simulations, again = unlearned_rows(held_out, learned, LEAST_PAIRS)
        else:
            simulations, again = work.inputs["fresh"] / SIMULATIONS_FILE, 0
        encoder = posterior.encoder
        pairs = training_pairs(posterior.parameters, simulations, failed="correct", encoder=encoder)
        report = calibrate(
            posterior,
            pairs.theta,
            pairs.x,
            draws=part.calibration_draws,
            seed=derive(work.seed, "calibrate"),
            level=part.level,
            missing=accepts_missing(encoder),
            progress=work.progress,
        )
        findings = Findings(work.folder, "calibrate")
        findings.verdict(
            "good" if report.passed else "warning" if report.conservative else "bad",
            f"Calibration of the network: {report.verdict}.{_advice(report)}",
        )
        if again:
            findings.verdict(
                "warning",
                f"{again:,} of the last {last:,} rows, held out to check with, are among those that were learned, and "
                "were left out of the check.",
            )
        section = findings.section("Calibration")
        ranks = report.sbc
        columns = zip(ranks.names, ranks.p_values.tolist(), ranks.coverage_68.tolist(), ranks.verdicts, strict=True)
        section.table(
            ["parameter", "verdict", "p-value of ranks", "coverage of 68 %"],
            [[name, verdict, p, covered] for name, p, covered, verdict in columns],
            caption=f"Over {len(ranks.ranks)} simulations that the network has not seen; a p-value below "
            f"{ranks.level / len(ranks.names):.2g} is not taken for chance.",
        )
        others = {name: check for name, check in report.checks.items() if name != "ranks"}
        section.table(["check", "verdict"], [[name, check.verdict] for name, check in others.items()])
        section.figure(
            calibration(report),
            "calibration",
            alt="Histograms of the ranks of the truth among posterior draws, and coverage against credibility.",
            caption="Flat histograms and coverage on the diagonal are those of a calibrated posterior.",
        )
        findings.numbers(
            passed=report.passed,
            p_values=dict(zip(ranks.names, ranks.p_values.tolist(), strict=True)),
            coverage_68=dict(zip(ranks.names, ranks.coverage_68.tolist(), strict=True)),
            simulations=len(ranks.ranks),
        )
        findings.write()

    settings = {"draws": part.calibration_draws, "level": part.level, "device": device, "held_out": last}
    inputs = ("fit",) if last else ("fit", "fresh")
    return Stage("calibrate", make, settings, inputs, analysis.seed("calibrate"), source.files if last else {})


def _advice(report: CalibrationReport) -> str:
    """What to do about a calibration that is off, in one sentence."""
    if report.passed:
        return ""
    if report.conservative:
        return " Intervals are wider than they need be: they hold the truth, and more simulations would narrow them."
    return " Do not report its intervals: take more simulations, method.ensemble = 8, or another method.model."


def predict_stage(analysis: Analysis, source: Source, made: Sequence[str]) -> Stage:
    """Compare the observation with data simulated at draws of its posterior.

    Args:
        analysis: its file.
        source: with a simulator.
        made: names of the stages before it.

    Raises:
        UsageError: too few simulations for the level.
    """
    config: Any = analysis.config
    part, n = config.diagnostics, config.budget.predictive
    if n < 4 / part.level:
        raise analysis.error(
            ["budget", "predictive"], f"expected at least {4 / part.level:.0f} for diagnostics.level {part.level:g}"
        )
    simulator: Any = source.simulator

    def make(work: Work) -> None:
        observed = read_observed(work.inputs["observe"])
        samples, which = best_draws(work)
        x: Any = observed.x
        x = {name: torch.as_tensor(v) for name, v in x.items()} if isinstance(x, dict) else torch.as_tensor(x)
        check = predictive_check(
            samples,
            simulator,
            x,
            n=n,
            level=part.level,
            seed=derive(work.seed, "predict"),
            missing=bool(getattr(simulator, "missing", False)),
        )
        findings = Findings(work.folder, "predict")
        findings.verdict("good" if check.passed else "bad", f"Predictive check: {check.verdict}.")
        section = findings.section("Predictive check")
        section.figure(
            predictive(check),
            "predictive",
            alt="The observation beside the distribution of data simulated at draws of the posterior.",
            caption=f"Data simulated at {n} draws ({which}), and the observation among them.",
        )
        findings.numbers(passed=check.passed, p_value=check.p_value, simulations=n)
        findings.write()

    settings = {**source.settings, "n": n, "level": part.level}
    inputs = ("observe", "sample", *(("correct",) if "correct" in made else ()))
    return Stage("predict", make, settings, inputs, analysis.seed("predict"), source.code)
