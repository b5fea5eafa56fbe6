"""`sbi-physics anomaly search|scan|inject`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sbi_physics.cli.common import (
    DeviceOption,
    JsonOption,
    Output,
    QuietOption,
    SeedOption,
    check_writable,
    new_folder,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sbi_physics.anomaly.search import ResonantSearch
    from sbi_physics.anomaly.search_result import SearchResult
    from sbi_physics.anomaly.significance import SignificanceImprovement
    from sbi_physics.store.tables import Table

__all__ = ["app"]

_TEMPLATE_OVER_DATA = 4

app = typer.Typer(help="Searches for resonances in data.", no_args_is_help=True)

EventsArgument = Annotated[Path, typer.Argument(help="Events: HDF5, NumPy, CSV, Parquet or ROOT, with named columns.")]
MassOption = Annotated[str, typer.Option("--mass", help="The column with the mass.")]
FeaturesOption = Annotated[
    list[str] | None, typer.Option("--feature", help="A column with a feature; again for each. All others by default.")
]
NamesOption = Annotated[
    list[str] | None, typer.Option("--name", help="Names of the columns of a file without names; again for each.")
]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="The column with weights.")]
LabelOption = Annotated[
    str | None, typer.Option("--label", help="A column that is 1 for signal: to score the search, never to fit it.")
]
MethodOption = Annotated[
    str, typer.Option(help="interpolation, latent, morphing, densities or sidebands: how the background is known.")
]
ModelOption = Annotated[str, typer.Option(help="Model of the density of the features at a mass.")]
EnsembleOption = Annotated[int, typer.Option(help="Flows whose mixture is the density.")]
ClassifierOption = Annotated[str, typer.Option(help="trees or networks.")]
MembersOption = Annotated[int, typer.Option(help="Classifiers for each fold.")]
FoldsOption = Annotated[int, typer.Option(help="Parts of the data that are scored by models which have not seen them.")]
EnergyOption = Annotated[float | None, typer.Option(help="Energy of the collision, in the unit of the mass.")]
EpochsOption = Annotated[int | None, typer.Option(help="Passes over the data of the density at most.")]
UnitOption = Annotated[str, typer.Option(help="Unit of the mass, for the pictures: TeV, say.")]


@app.command("search")
def search(
    events: EventsArgument,
    mass: MassOption,
    signal_region: Annotated[tuple[float, float], typer.Option(help="Lowest and highest mass.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the result and the pictures.")],
    feature: FeaturesOption = None,
    name: NamesOption = None,
    weights: WeightsOption = None,
    label: LabelOption = None,
    method: MethodOption = "interpolation",
    model: ModelOption = "nsf",
    ensemble: EnsembleOption = 1,
    classifier: ClassifierOption = "trees",
    folds: FoldsOption = 5,
    members: MembersOption = 5,
    epochs: EpochsOption = None,
    sqrt_s: EnergyOption = None,
    unit: UnitOption = "",
    closure: Annotated[bool, typer.Option(help="Test the template beside the signal region: another fit.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search for a resonance in one region of mass."""
    from sbi_physics.anomaly.search import ResonantSearch
    from sbi_physics.anomaly.significance import significance_improvement

    output = Output(json, quiet)
    x, m, w, labels, names = _columns(events, mass, feature, name, weights, label)
    settings = _settings(method, model, classifier, folds, members, epochs, sqrt_s, device, names)
    searcher = ResonantSearch(signal_region, ensemble=ensemble, **settings)
    inside = searcher.region.holds(m)
    signal = None if labels is None else _signal(events, label, labels[inside])
    with new_folder(out):
        searcher.fit(x, m, weights=w, seed=seed, progress=output.progress)
    result = searcher.search(seed=seed)
    text = f"features: {', '.join(names)}\n{result}"
    found, improvement = {"features": names, **result.to_dict()}, None
    if signal is not None:
        scores = searcher.data_scores[inside]
        improvement = significance_improvement(scores[~signal], scores[signal])
        found["largest_significance_improvement"] = improvement.maximum
        text += f"\nby the labels: significance improved by up to {improvement.maximum:.1f}"
    if closure:
        tested = searcher.closure(seed=seed, progress=output.progress)
        found |= {"closure_auc": tested.test.auc, "closure_error": tested.test.expected_error}
        found |= {"closure_floor": tested.floor.auc, "closure_passed": tested.passed}
        text += f"\n{tested.verdict}"
    written = _write(out, searcher, result, found, names, improvement, unit)
    output.result(f"{text}\n{out}: {', '.join(written)}", path=str(out), **found)


@app.command("scan")
def scan(
    events: EventsArgument,
    mass: MassOption,
    window: Annotated[list[str], typer.Option(help="Lowest and highest mass, as 3.3:3.7; again for each window.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Picture of the p-values (PNG or PDF).")],
    feature: FeaturesOption = None,
    name: NamesOption = None,
    weights: WeightsOption = None,
    method: MethodOption = "interpolation",
    model: ModelOption = "nsf",
    classifier: ClassifierOption = "trees",
    folds: FoldsOption = 5,
    members: MembersOption = 5,
    epochs: EpochsOption = None,
    sqrt_s: EnergyOption = None,
    unit: UnitOption = "",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search for a resonance in each of several windows of mass."""
    from sbi_physics.anomaly.scan import scan_regions
    from sbi_physics.report.figures import save_figure
    from sbi_physics.report.search_figures import region_scan_figure

    output = Output(json, quiet)
    check_writable(out)
    windows = [_window(one) for one in window]
    x, m, w, _, names = _columns(events, mass, feature, name, weights, None)
    settings = _settings(method, model, classifier, folds, members, epochs, sqrt_s, device, names)
    found = scan_regions(x, m, windows, weights=w, seed=seed, progress=output.progress, **settings)
    save_figure(region_scan_figure(found, unit=unit), out)
    rows = [
        [f"{low:g} to {high:g}", f"{'less than ' if one.beyond_toys else ''}{p:.3g}", f"{one.best.efficiency:.2g}"]
        for (low, high), p, one in zip(windows, found.p_values, found.results, strict=True)
    ]
    output.result(
        output.table(found.verdict, ["window", "p-value", "best cut"], rows),
        path=str(out),
        windows=[one.to_dict() for one in found.results],
        global_p_value=found.global_p_value,
        global_significance=found.significance,
    )


@app.command("inject")
def inject(
    events: EventsArgument,
    signal: Annotated[Path, typer.Argument(help="Signal events, with the same columns.")],
    mass: MassOption,
    signal_region: Annotated[tuple[float, float], typer.Option(help="Lowest and highest mass.")],
    number: Annotated[list[int], typer.Option(help="How many signal events to put in; again for each number.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Picture of the significances (PNG or PDF).")],
    feature: FeaturesOption = None,
    name: NamesOption = None,
    weights: WeightsOption = None,
    draws: Annotated[int, typer.Option(help="Searches for each number.")] = 3,
    method: MethodOption = "interpolation",
    model: ModelOption = "nsf",
    classifier: ClassifierOption = "trees",
    folds: FoldsOption = 5,
    members: MembersOption = 5,
    epochs: EpochsOption = None,
    sqrt_s: EnergyOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put signal events into data, and search for them."""
    from sbi_physics.anomaly.scan import inject as run
    from sbi_physics.anomaly.search import ResonantSearch
    from sbi_physics.report.figures import save_figure
    from sbi_physics.report.search_figures import injection_figure

    output = Output(json, quiet)
    check_writable(out)
    x, m, w, _, names = _columns(events, mass, feature, name, weights, None)
    x_signal, m_signal, _, _, _ = _columns(signal, mass, names, name, None, None)
    settings = _settings(method, model, classifier, folds, members, epochs, sqrt_s, device, names)
    searcher = ResonantSearch(signal_region, **settings)
    found = run(searcher, x, m, x_signal, m_signal, number, weights=w, draws=draws, seed=seed, progress=output.progress)
    save_figure(injection_figure(found), out)
    bands = found.bands()
    rows = [
        [str(n), f"{middle:.1f}", f"{low:.1f} to {high:.1f}"]
        for n, (low, middle, high) in zip(found.numbers, bands.tolist(), strict=True)
    ]
    output.result(
        output.table("standard deviations over all cuts", ["signal events", "median", "68 %"], rows),
        path=str(out),
        numbers=list(found.numbers),
        local=found.local.tolist(),
        overall=found.overall.tolist(),
        without_cut=found.without_cut.tolist(),
    )


def _write(
    out: Path,
    searcher: "ResonantSearch",
    result: "SearchResult",
    found: dict[str, Any],
    names: list[str],
    improvement: "SignificanceImprovement | None",
    unit: str,
) -> list[str]:
    """Write numbers, scores and pictures of a search; the names of the files."""
    import numpy as np

    from sbi_physics.cli.common import to_json
    from sbi_physics.report.figures import save_figure
    from sbi_physics.report.search_figures import search_figure
    from sbi_physics.report.spectrum_figures import spectrum_figure

    (out / "result.json").write_text(to_json(found, indent=2) + "\n", encoding="utf-8")
    np.save(out / "scores.npy", searcher.data_scores.numpy())
    np.save(out / "selection.npy", searcher.data_selection.numpy())
    data = searcher.signal_events
    template = searcher.sample_background(_TEMPLATE_OVER_DATA * len(data.mass))
    page = search_figure(result, data, template, names=names, improvement=improvement, unit=unit)
    save_figure(page, out / "search.png")
    save_figure(spectrum_figure(result.best.spectrum or result.spectrum, unit=unit), out / "spectrum.png")
    return ["result.json", "scores.npy", "selection.npy", "search.png", "spectrum.png"]


def _signal(path: Path, label: str | None, labels: "Tensor") -> "Tensor | None":
    """Which events of the signal region are signal, some of them not; None where there is none."""
    from sbi_physics.core.errors import UsageError

    signal = labels > 0
    many = int(signal.sum())
    if not many:
        return None
    if many == len(labels) or not bool(((labels == 0) | (labels == 1)).all()):
        raise UsageError(
            f"{path}: expected 0 and 1 in the column {label!r}, got {many} signal of {len(labels)} events in the region"
        )
    return signal


def _columns(
    path: Path,
    mass: str,
    features: list[str] | None,
    names: list[str] | None,
    weights: str | None,
    label: str | None,
) -> tuple["Tensor", "Tensor", "Tensor | None", "Tensor | None", list[str]]:
    """Features, masses, weights and labels of a file, and the names of the features."""
    from sbi_physics.core.errors import UsageError
    from sbi_physics.store.tables import read_table

    others = [one for one in (mass, weights, label) if one is not None]
    wanted = None if not features else [*features, *(one for one in others if one not in features)]
    table: Table = read_table(path, wanted, names=names)
    missing = [one for one in others if one not in table.names]
    if missing:
        raise UsageError(f"{path}: expected a column {missing[0]!r}, got {', '.join(table.names)}")
    chosen = list(features) if features else [one for one in table.names if one not in others]
    if not chosen or mass in chosen:
        raise UsageError(f"feature: expected columns other than the mass {mass!r}, got {chosen or 'none'}")
    return (
        table.stack(chosen),
        table[mass],
        None if weights is None else table[weights],
        None if label is None else table[label],
        chosen,
    )


def _settings(
    method: str,
    model: str,
    classifier: str,
    folds: int,
    members: int,
    epochs: int | None,
    sqrt_s: float | None,
    device: str,
    names: list[str],
) -> dict[str, Any]:
    """What all verbs hand on to a search."""
    return {
        "method": method,
        "model": model,
        "classifier": classifier,
        "folds": folds,
        "members": members,
        "config": {} if epochs is None else {"epochs": epochs},
        "sqrt_s": sqrt_s,
        "device": device,
        "names": names,
    }


def _window(text: str) -> tuple[float, float]:
    """Two masses written as low:high."""
    from sbi_physics.core.errors import UsageError

    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UsageError(f"window: expected two masses as 3.3:3.7, got {text!r}") from error
