"""Stages of a posterior in which draws are made: by the network, corrected towards the exact one, and by MCMC."""

from pathlib import Path
from typing import Any

import torch

from sbi_physics.core.checks import resolve_device
from sbi_physics.core.errors import ConvergenceError, ShapeError
from sbi_physics.core.random import derive
from sbi_physics.core.resources import cores
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics.two_sample import c2st
from sbi_physics.files import load
from sbi_physics.posterior.compare import intervals
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.report.figures import corner
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import Findings, SectionWriter
from sbi_physics.run.posterior_data import Observed, read_observed
from sbi_physics.run.sources import Source
from sbi_physics.run.stages import Stage, Work
from sbi_physics.sampling.mcmc import mcmc
from sbi_physics.sampling.target import posterior_target
from sbi_physics.store.samples import read_samples, write_samples
from sbi_physics.train.encoding import packing_of

__all__ = ["SAMPLES_FILE", "best_draws", "correct_stage", "load_posterior", "reference_stage", "sample_stage"]

SAMPLES_FILE = "samples.h5"
POSTERIOR_FILE = "posterior.safetensors"
_SECTION = "Posterior"
_MOST_FOR_CORNER = 12
_GOOD_C2ST, _BAD_C2ST = 0.55, 0.6
_MOST_FOR_C2ST = 5_000
_WORTH_PROCESSES = 2_000


def load_posterior(work: Work, device: str) -> Posterior:
    """The posterior that the stage `fit` made."""
    posterior = load(work.inputs["fit"] / POSTERIOR_FILE, device=device)
    if not isinstance(posterior, Posterior):
        raise ShapeError(f"{work.inputs['fit']}: expected a posterior")
    return posterior


def sample_stage(analysis: Analysis) -> Stage:
    """Draw from the network for the observation."""
    config: Any = analysis.config
    n, independent, device = config.budget.draws, config.observation.independent, config.compute.device

    def make(work: Work) -> None:
        posterior, observed = load_posterior(work, device), read_observed(work.inputs["observe"])
        samples = posterior.sample(n, observed.x, iid=independent, seed=derive(work.seed, "sample"))
        write_samples(work.folder / SAMPLES_FILE, {"posterior": samples})
        _export(samples, work.folder, config.outputs.draws)
        findings = Findings(work.folder, "sample")
        _reach(posterior, observed, findings)
        section = findings.section(_SECTION)
        _table(section, samples, observed, "the network")
        _corner(section, {"network": samples}, observed, "of the draws of the network")
        findings.numbers(draws=n, intervals=intervals(samples))
        findings.write()

    settings = {"n": n, "independent": independent, "device": device, "draws": config.outputs.draws}
    return Stage("sample", make, settings, ("fit", "observe"), analysis.seed("sample"))


def correct_stage(analysis: Analysis, source: Source) -> Stage | None:
    """Move the draws to the exact posterior, where there is a likelihood; None where there is not.

    Raises:
        UsageError: a method is stated, and there is no likelihood.
    """
    config: Any = analysis.config
    part, device = config.correct, config.compute.device
    likelihood = getattr(source.simulator, "log_likelihood", None)
    if likelihood is None:
        if part.method in ("importance", "mcmc"):
            raise analysis.error(["correct", "method"], "expected a simulator with log_likelihood")
        return None
    if part.method == "none":
        return None
    methods: tuple[Any, ...] = ("importance", "mcmc") if part.method == "auto" else (part.method,)

    def make(work: Work) -> None:
        posterior, observed = load_posterior(work, device), read_observed(work.inputs["observe"])
        findings = Findings(work.folder, "correct")
        for method in methods:
            try:
                samples = posterior.correct(
                    likelihood,
                    observed.x,
                    part.proposals,
                    method,
                    seed=derive(work.seed, "correct", method),
                    max_calls=part.max_calls,
                    max_pareto_k=part.max_pareto_k,
                )
            except ConvergenceError as error:
                last = method == methods[-1]
                findings.verdict("bad" if last else "warning", f"Correction by {method} failed: {error}.")
                continue
            _corrected(work, samples, observed, method, findings, config.budget.draws)
            break
        findings.write()

    settings = {**source.settings, **part.model_dump(), "draws": config.budget.draws, "device": device}
    inputs = ("fit", "observe", "sample")
    return Stage("correct", make, settings, inputs, analysis.seed("correct"), source.code)


def _corrected(work: Work, samples: Samples, observed: Observed, method: str, findings: Findings, draws: int) -> None:
    """Write corrected draws, equally weighted and distinct where there were weights, and what they say."""
    equal = samples
    if samples.log_weights is not None:
        alive = int(torch.count_nonzero(samples.weights))
        equal = samples.resample(min(draws, alive // 2), seed=derive(work.seed, "resample"), replace=False)
    write_samples(work.folder / SAMPLES_FILE, {"corrected": equal, "proposals": samples})
    numbers = {name: float(value) for name, value in samples.diagnostics.items()}
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
    findings.verdict("good", f"Corrected towards the exact posterior by {method}: {words}.")
    section = findings.section(_SECTION)
    _table(section, equal, observed, f"the network, corrected by {method}")
    network = read_samples(work.inputs["sample"] / SAMPLES_FILE)["posterior"]
    _corner(section, {"network": network, "corrected": equal}, observed, "before and after the correction")
    findings.numbers(
        method=method, intervals=intervals(equal), likelihood_calls=samples.cost.likelihood_calls, **numbers
    )


def reference_stage(analysis: Analysis, source: Source) -> Stage | None:
    """MCMC on the exact likelihood, where the file asks for it.

    Raises:
        UsageError: it does, and there is no likelihood.
    """
    config: Any = analysis.config
    part = config.reference
    if part is None:
        return None
    likelihood = getattr(source.simulator, "log_likelihood", None)
    if likelihood is None:
        raise analysis.error(["reference"], "expected a simulator with log_likelihood")
    if config.observation.independent:
        raise analysis.error(["reference"], "expected one observation; leave out observation.independent")
    corrected = correct_stage(analysis, source) is not None

    def make(work: Work) -> None:
        observed, parameters = read_observed(work.inputs["observe"]), source.parameters
        device = resolve_device(config.compute.device)
        target = posterior_target(parameters, likelihood, torch.as_tensor(observed.x, dtype=torch.float32).to(device))
        start = parameters.sample(max(10 * part.walkers, 1000), seed=derive(work.seed, "start"))
        chain = mcmc(
            target,
            start,
            steps=part.steps,
            walkers=part.walkers,
            parameters=parameters,
            seed=derive(work.seed, "mcmc"),
            device=device,
            max_calls=part.max_calls,
            progress=work.progress,
        )
        exact = chain.resample(min(config.budget.draws, len(chain)), seed=derive(work.seed, "thin"), replace=False)
        write_samples(work.folder / SAMPLES_FILE, {"mcmc": exact})
        _compared(work, exact, chain, observed, distances=part.c2st)

    settings = {**source.settings, **part.model_dump(), "draws": config.budget.draws, "device": config.compute.device}
    inputs = ("observe", "sample", *(("correct",) if corrected else ()))
    return Stage("reference", make, settings, inputs, analysis.seed("reference"), source.code)


def _compared(work: Work, exact: Samples, chain: Samples, observed: Observed, *, distances: bool) -> None:
    """Say how far the draws are from those of MCMC."""
    findings = Findings(work.folder, "reference")
    section = findings.section(_SECTION)
    sets = {"network": read_samples(work.inputs["sample"] / SAMPLES_FILE)["posterior"]}
    corrected = work.inputs.get("correct", Path()) / SAMPLES_FILE
    if "correct" in work.inputs and corrected.exists():
        sets["corrected"] = read_samples(corrected)["corrected"]
    found = _distances(sets, exact) if distances else {}
    converged = bool(chain.diagnostics.get("converged", False))
    if found and converged:
        best = found.get("corrected", found["network"])
        kind: Any = "good" if best <= _GOOD_C2ST else "warning" if best <= _BAD_C2ST else "bad"
        told = ", ".join(f"{value:.3f} ({name})" for name, value in found.items())
        findings.verdict(kind, f"Beside MCMC on the exact likelihood: C2ST {told}; 0.5 is perfect.")
    if not converged:
        told = chain.diagnostics.get("verdict", "it is too short to say more")
        far = "".join(f" C2ST to it, for what that is worth: {value:.3f} ({name})." for name, value in found.items())
        findings.verdict("warning", f"MCMC is no reference here: {told}; ask for more steps.{far}")
    _table(section, exact, observed, "MCMC (emcee)")
    _corner(section, {**sets, "MCMC": exact}, observed, "of the draws of each method")
    findings.numbers(
        c2st=found,
        intervals=intervals(exact),
        likelihood_calls=chain.cost.likelihood_calls,
        **{name: value for name, value in chain.diagnostics.items() if isinstance(value, int | float)},
    )
    findings.write()


def _distances(sets: dict[str, Samples], exact: Samples) -> dict[str, float]:
    """How well a classifier tells each set of draws from those of MCMC."""
    found = {}
    for name, samples in sets.items():
        n = min(_MOST_FOR_C2ST, len(samples), len(exact))
        workers = min(5, cores()) if n >= _WORTH_PROCESSES else 1
        found[name] = float(c2st(exact.values[:n], samples.values[:n], workers=workers))
    return found


def best_draws(work: Work) -> tuple[Samples, str]:
    """The draws nearest to the exact posterior that there are, and their name."""
    corrected = work.inputs.get("correct", Path()) / SAMPLES_FILE
    if "correct" in work.inputs and corrected.exists():
        return read_samples(corrected)["corrected"], "corrected"
    return read_samples(work.inputs["sample"] / SAMPLES_FILE)["posterior"], "network"


def _reach(posterior: Posterior, observed: Observed, findings: Findings) -> None:
    """Say where the observation is far from all simulations."""
    if posterior.simulated is None:
        return
    packing = packing_of(posterior.encoder)
    if isinstance(observed.x, dict):
        if packing is None:
            return
        x = packing.pack({name: torch.as_tensor(value) for name, value in observed.x.items()})
    else:
        x = torch.as_tensor(observed.x, dtype=torch.float32)
    far = posterior.simulated.far(x.reshape(-1, *posterior.x_shape))
    if bool(far.any()):
        findings.verdict("bad", "The observation is far from all simulations: what the network says of it is a guess.")


def _table(section: SectionWriter, samples: Samples, observed: Observed, method: str) -> None:
    found = intervals(samples)
    truths = [None] * len(found) if observed.truth is None else [float(value) for value in observed.truth]
    rows = [
        [name, unit, f"{v['median']:.5g}", f"{v['lower_68']:.5g}", f"{v['upper_68']:.5g}"]
        + ([] if truth is None else [f"{truth:.5g}"])
        for (name, v), unit, truth in zip(found.items(), samples.units, truths, strict=True)
    ]
    columns = ["parameter", "unit", "median", "68 % from", "to", *(["truth"] if observed.truth is not None else [])]
    section.table(columns, rows, caption=f"By {method}: {len(samples)} draws.")


def _corner(section: SectionWriter, sets: dict[str, Samples], observed: Observed, what: str) -> None:
    first = next(iter(sets.values()))
    names, truth = first.names[:_MOST_FOR_CORNER], observed.truth
    left = len(first.names) - len(names)
    shown = {name: samples.select(names) for name, samples in sets.items()}
    figure = corner(shown, truth=None if truth is None else truth[: len(names)])
    more = f"; {left} further parameters are left out" if left else ""
    marks = ", with the truth marked" if truth is not None else ""
    section.figure(
        figure,
        "corner",
        alt=f"Corner plot of {', '.join(names)}: marginal distributions of one and two parameters {what}{marks}.",
        caption=f"Marginal distributions {what}{marks}{more}.",
    )


def _export(samples: Samples, folder: Path, formats: list[str]) -> None:
    """Write draws as astropy tables."""
    for ending in formats:
        name = {"ecsv": "samples.ecsv", "fits": "samples.fits"}[ending]
        samples.to_qtable().write(folder / name, overwrite=True)
