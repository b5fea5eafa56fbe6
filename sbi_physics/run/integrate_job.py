"""The stages of an integral: integrate, and draw events.

An estimate knows its integrand, which no file can hold.  Where events alone are to be drawn anew, the same seed makes
the same estimate again, at the same cost.
"""

import importlib.util
import json
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.random import derive
from sbi_physics.integration.integrate import Estimate, integrate
from sbi_physics.integration.processes import resolve_integrand
from sbi_physics.report.integration_figures import convergence_panel, event_panel, weight_panel
from sbi_physics.report.style import panels
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import Findings
from sbi_physics.run.posterior_data import depends_of
from sbi_physics.run.sources import code_files, local_spec
from sbi_physics.run.stages import Stage, Work
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.event_files import write_events, write_lhe

__all__ = ["EVENTS_FILE", "integrate_stages"]

EVENTS_FILE, LHE_FILE, _INTEGRAL = "events.h5", "events.lhe", "integral.json"
_NUMBERS = ("value", "error", "calls", "chi2", "degrees", "trusted", "verdict", "effective_sample_size", "pareto_k")
_POINTS = 20_000
_OBSERVABLES = 4
_SPREAD = 1e-9


def integrate_stages(analysis: Analysis) -> list[Stage]:
    """The stages of an analysis file whose job is an integral.

    Raises:
        UsageError: the integrand cannot be made, or keys of the file do not fit it.
    """
    config: Any = analysis.config
    with analysis.blaming("integrand"):
        f: Any = resolve_integrand(local_spec(analysis, config.integrand), dims=config.dims)
    if config.lhe is not None:
        if not hasattr(f, "momenta"):
            raise analysis.error(["lhe"], "expected a process with momenta, this integrand has none")
        if importlib.util.find_spec("pylhe") is None:
            raise analysis.error(["lhe"], "needs the extra 'hep': pip install 'sbi-physics[hep]'")
    code = code_files(getattr(f, "squared_matrix_element", f), local_spec(analysis, config.integrand))
    files = {**code, **depends_of(analysis)}
    budget = config.budget.model_dump(exclude={"events"})
    settings = {"integrand": config.integrand, "dims": f.dims, "budget": budget, "method": config.method.model_dump()}
    seed = analysis.seed("integrate")
    stages = [Stage("integrate", partial(_integrate, analysis, f), settings, seed=seed, files=files)]
    if config.budget.events:
        lhe = None if config.lhe is None else config.lhe.model_dump()
        settings = {"events": config.budget.events, "lhe": lhe}
        make, seed = partial(_events, analysis, f), analysis.seed("events")
        stages.append(Stage("events", make, settings, ("integrate",), seed, files))
    return stages


def _estimated(analysis: Analysis, f: Any, progress: bool) -> Estimate:
    config: Any = analysis.config
    budget, method = config.budget, config.method
    return integrate(
        f,
        rel_error=budget.rel_error,
        abs_error=budget.abs_error,
        calls=budget.calls,
        max_seconds=budget.max_seconds,
        neural=method.neural,
        non_finite=method.non_finite,
        seed=derive(analysis.seed("integrate"), "integrate"),
        progress=progress,
    )


def _integrate(analysis: Analysis, f: Any, work: Work) -> None:
    found = _estimated(analysis, f, work.progress)
    work.memory["integrate"] = found
    unit = getattr(f, "unit", "")
    numbers = {name: getattr(found, name) for name in _NUMBERS}
    with atomic_path(work.folder / _INTEGRAL) as temporary:
        temporary.write_text(json.dumps({"unit": unit, **numbers}, indent=1, default=float) + "\n")
    findings = Findings(work.folder, "integrate")
    value = f"{found.value:.8g} ± {found.error:.2g} {unit}".rstrip()
    findings.verdict("good" if found.trusted else "bad", f"Integral: {value}, {found.calls:,} calls; {found.verdict}.")
    section = findings.section("Integral")
    section.table(
        ["round", "map", "calls", "value", "error"],
        [
            [str(i), kind, each.calls, f"{each.value:.8g}", f"{each.error:.2g}"]
            for i, (each, kind) in enumerate(zip(found.rounds, found.kinds, strict=True), 1)
        ],
        units=["", "", "", unit, unit],
        caption=f"Rounds: chi2 {found.chi2:.1f} for {found.degrees} degrees of freedom, Pareto k {found.pareto_k:.2f}.",
    )
    sample = found.sample(_POINTS, seed=derive(work.seed, "points"))
    figure, axes = panels(2, 2)
    convergence_panel(axes[0], {"sbi_physics": [(each.calls, each.value, each.error) for each in found.rounds]})
    weight_panel(axes[1], {"sbi_physics": sample.weights.abs().numpy()})
    section.figure(
        figure,
        "integral",
        alt="The relative error of each round against calls, and the distribution of the weights.",
        caption="Convergence, and the weights of points drawn from the maps that were learned.",
    )
    findings.numbers(unit=unit, **numbers)
    findings.write()


def _events(analysis: Analysis, f: Any, work: Work) -> None:
    config: Any = analysis.config
    found = work.memory.get("integrate")
    findings = Findings(work.folder, "events")
    known = json.loads((work.inputs["integrate"] / _INTEGRAL).read_text(encoding="utf-8"))
    if found is None:
        work.say("events: integrating again, to draw from the maps that it learns")
        found = _estimated(analysis, f, work.progress)
        if found.value != known["value"]:
            findings.verdict("warning", "The integral came out differently when it was made again for its events.")
    drawn = found.unweight(config.budget.events, seed=derive(work.seed, "events"), progress=work.progress)
    arrays = {"points": drawn.points, "weights": drawn.weights}
    if hasattr(f, "momenta"):
        incoming, outgoing, _ = f.momenta(drawn.points)
        arrays |= {"incoming": incoming, "outgoing": outgoing}
    about = {"value": known["value"], "error": known["error"], "unit": known["unit"], "seed": work.seed}
    write_events(work.folder / EVENTS_FILE, arrays, {**about, "verdict": found.verdict, "overweight": drawn.overweight})
    if config.lhe is not None:
        write_lhe(
            work.folder / LHE_FILE,
            arrays["incoming"],
            arrays["outgoing"],
            drawn.weights,
            incoming_ids=config.lhe.incoming,
            outgoing_ids=config.lhe.outgoing,
            cross_section=known["value"],
            error=known["error"],
        )
    _describe(f, found, drawn, work, findings)
    findings.write()


def _describe(f: Any, found: Estimate, drawn: Any, work: Work, findings: Findings) -> None:
    """Say how the events came out, and draw them over weighted points."""
    section = findings.section("Events")
    rows = [
        ["events", f"{len(drawn):,}"],
        ["unweighting efficiency", f"{drawn.efficiency:.3g}"],
        ["events of a weight above one", f"{drawn.overweight:,}"],
        ["calls", f"{drawn.calls:,}"],
    ]
    section.table(["events", "value"], rows)
    sample = found.sample(_POINTS, seed=derive(work.seed, "reference"))
    weights = sample.weights.clamp(min=0).double()
    chosen = np.random.default_rng(0).choice(len(weights), len(weights), p=(weights / weights.sum()).numpy())
    reference, events = _observables(f, sample.points[chosen]), _observables(f, drawn.points)
    events = dict([one for one in events.items() if one[0] in reference][:_OBSERVABLES])
    figure, axes = panels(len(events), min(len(events), 2))
    for axis, name in zip(axes, events, strict=True):
        event_panel(axis, name, reference[name].numpy(), events[name].numpy(), label="weighted points")
    section.figure(
        figure,
        "events",
        alt=f"Distributions of {', '.join(events)} of unweighted events and of weighted points.",
        caption="Unweighted events, and as a reference weighted points from the same maps.",
    )
    findings.numbers(
        events=len(drawn), efficiency=drawn.efficiency, overweight=drawn.overweight, event_calls=drawn.calls
    )


def _observables(f: Any, points: Tensor) -> dict[str, Tensor]:
    """Some numbers of each event: momenta and directions of what goes out, or the coordinates themselves."""
    if not hasattr(f, "momenta"):
        return {f"u_{i + 1}": points[:, i] for i in range(min(_OBSERVABLES, points.shape[1]))}
    outgoing = f.momenta(points)[1]
    found = {}
    for i in range(outgoing.shape[1]):
        momentum = outgoing[:, i, 1:]
        size = torch.linalg.vector_norm(momentum, dim=1)
        found[f"p of particle {i + 1} [GeV]"] = size
        found[f"cos theta of particle {i + 1}"] = momentum[:, 2] / size
    # A momentum that is the same in all events, as of two particles at a fixed energy, is no distribution.
    return {name: each for name, each in found.items() if float(each.std()) > _SPREAD * float(each.abs().max())}
