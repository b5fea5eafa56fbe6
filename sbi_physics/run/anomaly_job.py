"""The stages of a search for a resonance: gather the events, search."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.anomaly.search_result import SearchResult
from sbi_physics.anomaly.significance import significance_improvement
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive
from sbi_physics.report.search_figures import search_figure
from sbi_physics.report.spectrum_figures import spectrum_figure
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.configuration import AnomalyConfig
from sbi_physics.run.findings import Findings, SectionWriter
from sbi_physics.run.posterior_data import depends_of
from sbi_physics.run.sources import code_files, local_spec
from sbi_physics.run.stages import Stage, Work
from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.store.tables import read_table

__all__ = ["anomaly_stages"]

_EVENTS, _COLUMNS, _SCORES = "events.npy", "columns.json", "scores.npy"
_TEMPLATE_OVER_DATA = 4
_EVIDENCE, _DISCOVERY = 3.0, 5.0


@dataclass(frozen=True)
class _Events:
    """What the stage `data` keeps: features, masses, and weights and labels where there are any."""

    features: Tensor
    mass: Tensor
    weights: Tensor | None
    labels: Tensor | None
    names: list[str]


def anomaly_stages(analysis: Analysis) -> list[Stage]:
    """The stages of an analysis file whose job is a search.

    Raises:
        UsageError: keys of the file do not fit one another, or its events.
    """
    return [_data_stage(analysis), _search_stage(analysis)]


def _data_stage(analysis: Analysis) -> Stage:
    part = cast(AnomalyConfig, analysis.config).data
    if (part.file is None) == (part.simulator is None):
        raise analysis.error(["data"], "expected a file or a simulator, one of both")
    if part.file is None:
        return _simulated_stage(analysis, part)
    path = analysis.existing(part.file, "data", "file")
    mass = part.mass
    if mass is None:
        raise analysis.error(["data", "mass"], "expected the name of the column with the mass")

    def make(work: Work) -> None:
        others = [name for name in (mass, part.weights, part.label) if name is not None]
        wanted = None if part.features is None else [*dict.fromkeys([*part.features, *others])]
        with analysis.blaming("data"):
            table = read_table(path, wanted, names=part.names, where=part.where)
            if missing := [name for name in others if name not in table.names]:
                raise UsageError(f"{path}: expected a column {missing[0]!r}, got {', '.join(table.names)}")
            names = part.features or [name for name in table.names if name not in others]
            if not names or mass in names:
                raise UsageError(f"features: expected columns other than the mass {mass!r}, got {names or 'none'}")
        columns = {"mass": table[mass]}
        columns |= {key: table[name] for key, name in (("weights", part.weights), ("label", part.label)) if name}
        _keep(work, names, [table[name] for name in names], columns)

    return Stage("data", make, part.model_dump(), seed=0, files={path.name: path})


def _simulated_stage(analysis: Analysis, part: Any) -> Stage:
    with analysis.blaming("data", "simulator"):
        simulator: Any = resolve_simulator(local_spec(analysis, part.simulator))
        if not callable(getattr(simulator, "events", None)):
            raise UsageError("expected a simulator with events(background, signal, seed=...) and features")

    def make(work: Work) -> None:
        made = simulator.events(background=part.background, signal=part.signal, seed=derive(work.seed, "data"))
        columns = {"mass": made.mass}
        if part.signal:
            columns["label"] = made.labels
        _keep(work, list(simulator.features), list(made.features.unbind(1)), columns)

    files = {**code_files(simulator), **depends_of(analysis)}
    return Stage("data", make, part.model_dump(), seed=analysis.seed("data"), files=files)


def _keep(work: Work, names: list[str], features: list[Tensor], columns: dict[str, Tensor]) -> None:
    rows = torch.stack([each.double() for each in (*columns.values(), *features)], 1)
    np.save(work.folder / _EVENTS, rows.numpy())
    (work.folder / _COLUMNS).write_text(json.dumps({"columns": list(columns), "features": names}) + "\n")
    findings = Findings(work.folder, "data")
    findings.section("Events").table(
        ["column", "smallest", "median", "largest"],
        [
            [name, *(f"{value:.5g}" for value in (each.min(), each.median(), each.max()))]
            for name, each in zip([*columns, *names], rows.unbind(1), strict=True)
            if name != "label"
        ],
        caption=f"{len(rows)} events.",
    )
    findings.numbers(events=len(rows))
    findings.write()


def _read(folder: Path) -> _Events:
    rows = torch.from_numpy(np.load(folder / _EVENTS))
    about = json.loads((folder / _COLUMNS).read_text())
    columns = dict(zip(about["columns"], rows.unbind(1), strict=False))
    features = rows[:, len(columns) :].contiguous()
    return _Events(features, columns["mass"], columns.get("weights"), columns.get("label"), about["features"])


def _search_stage(analysis: Analysis) -> Stage:
    config: Any = analysis.config
    part, closure = config.search, config.diagnostics.closure
    searcher = _searcher(analysis)

    def make(work: Work) -> None:
        events = _read(work.inputs["data"])
        searcher.names = tuple(events.names)
        search = searcher.fit(
            events.features,
            events.mass,
            weights=events.weights,
            seed=derive(work.seed, "search"),
            progress=work.progress,
        )
        result = search.search(efficiencies=part.efficiencies, toys=part.toys, seed=derive(work.seed, "toys"))
        findings = Findings(work.folder, "search")
        size = result.significance
        kind: Any = "good" if size < _EVIDENCE else "warning"
        found = "no evidence of" if size < _EVIDENCE else "evidence of" if size < _DISCOVERY else "observation of"
        findings.verdict(kind, f"Search: {found} a resonance; {result.verdict}.")
        if closure:
            tested = search.closure(seed=derive(work.seed, "closure"), progress=work.progress)
            findings.verdict("good" if tested.passed else "bad", f"Closure: {tested.verdict}.")
            findings.numbers(closure_auc=tested.test.auc, closure_passed=tested.passed)
        _describe(search, result, events, part.unit, findings)
        np.save(work.folder / _SCORES, search.data_scores.numpy())
        findings.write()

    settings = {**part.model_dump(mode="json"), "closure": closure, "device": config.compute.device}
    return Stage("search", make, settings, ("data",), analysis.seed("search"))


def _searcher(analysis: Analysis) -> ResonantSearch:
    config: Any = analysis.config
    part = config.search
    low, high = part.signal_region
    if not low < high:
        raise analysis.error(["search", "signal_region"], f"expected low < high, got {part.signal_region}")
    with analysis.blaming("search"):
        return ResonantSearch(
            (low, high),
            method=part.method,
            model=part.model,
            preprocessing=part.preprocessing,
            ensemble=part.ensemble,
            oversampling=part.oversampling,
            classifier=part.classifier,
            folds=part.folds,
            members=part.members,
            sqrt_s=part.sqrt_s,
            config=part.training.given(),
            device=config.compute.device,
            **part.options,
        )


def _describe(search: ResonantSearch, result: SearchResult, events: _Events, unit: str, findings: Findings) -> None:
    """Tables and pictures of a search."""
    section = findings.section("Search")
    rows = [
        [
            f"{point.efficiency:.3g}",
            f"{point.observed:.0f}",
            f"{point.fit.background:.1f} ± {point.fit.uncertainty:.1f}",
            f"{point.template.background:.1f} ± {point.template.uncertainty:.1f}",
            f"{point.fit.significance:.1f}",
        ]
        for point in result.points
    ]
    columns = ["background kept", "observed", "expected by the fit", "by the template", "local sigma"]
    section.table(columns, rows, caption="After each cut on the score, in the signal region.")
    inside = search.region.holds(events.mass)
    improvement = _improvement(search, events, inside)
    data = search.signal_events
    template = search.sample_background(_TEMPLATE_OVER_DATA * len(data.mass), seed=0)
    section.figure(
        search_figure(result, data, template, names=events.names, improvement=improvement, unit=unit),
        "search",
        alt="Spectra after each cut, local significances, and features of data and background template.",
        caption="The search, and the background template beside the data of the signal region.",
    )
    _spectrum(section, result, unit)
    findings.numbers(**result.to_dict())
    if improvement is not None:
        findings.numbers(largest_significance_improvement=improvement.maximum)


def _improvement(search: ResonantSearch, events: _Events, inside: Tensor) -> Any:
    """How much the score improves the significance, where labels are known and both kinds are there."""
    if events.labels is None:
        return None
    signal = events.labels[inside] > 0
    if not 0 < int(signal.sum()) < len(signal):
        return None
    scores = search.data_scores[inside]
    return significance_improvement(scores[~signal], scores[signal])


def _spectrum(section: SectionWriter, result: SearchResult, unit: str) -> None:
    section.figure(
        spectrum_figure(result.best.spectrum or result.spectrum, unit=unit),
        "spectrum",
        alt="The spectrum of masses after the best cut, with the falling function fitted beside the signal region.",
        caption="The spectrum after the best cut.",
    )
