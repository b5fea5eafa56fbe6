"""How a comparison of posteriors is printed and written: shared by `posterior compare` and `demo`."""

from pathlib import Path
from typing import Any

from sbi_physics.cli.common import Output, make_folder, to_json
from sbi_physics.posterior.compare import Comparison, intervals
from sbi_physics.report.figures import corner, save_figure
from sbi_physics.store.samples import write_samples

__all__ = ["comparison_table", "write_comparison"]

TITLES = {"npe": "NPE", "corrected": "NPE corrected", "mcmc": "MCMC (emcee)"}


def write_comparison(comparison: Comparison, folder: Path, **more: Any) -> None:
    """Write ``samples.h5``, ``corner.png`` and ``result.json`` (figures of merit, and `more`) into a folder."""
    make_folder(folder)
    write_samples(folder / "samples.h5", comparison.samples)
    named = {TITLES[name]: samples for name, samples in comparison.samples.items()}
    save_figure(corner(named), folder / "corner.png")
    result = comparison.to_dict()
    for key, value in more.items():
        result[key] = {**value, **result[key]} if key == "seconds" else value
    (folder / "result.json").write_text(to_json(result, indent=2) + "\n", encoding="utf-8")


def comparison_table(comparison: Comparison, output: Output) -> str:
    """Medians, 68 % intervals, distances and costs of each method."""
    found = {name: intervals(samples) for name, samples in comparison.samples.items()}
    methods = list(found)
    units = comparison.samples["mcmc"].units
    rows = []
    for (parameter, _), unit in zip(found["mcmc"].items(), units, strict=True):
        cells = [_interval(found[method][parameter]) for method in methods]
        rows.append([f"{parameter} [{unit}]" if unit else parameter, *cells])
    efficiency = f"{comparison.importance_efficiency:.3f}, Pareto k {comparison.pareto_k:.2f} (good below 0.7)"
    chain = f"{comparison.mcmc.get('lengths', 0):.0f} autocorrelation times"
    converged = bool(comparison.mcmc.get("converged", False))
    calls = comparison.likelihood_calls
    distances = [f"{comparison.c2st[m]:.3f}" if m in comparison.c2st else "reference" for m in methods]
    stages = dict(zip(methods, ("sample", "correct", "mcmc"), strict=True))
    rows += [
        ["C2ST against MCMC (0.5: the same)", *distances],
        ["effective share of draws", "", efficiency, chain],
        ["seconds", *(f"{comparison.seconds[stages[m]]:.2f}" for m in methods)],
        ["likelihood calls", *(f"{calls[m]:,}" for m in methods)],
    ]
    table = output.table("median and 68 % interval", ["parameter", *(TITLES[m] for m in methods)], rows)
    if converged:
        return table
    told = comparison.mcmc.get("verdict", "the chain is too short to say more")
    return f"{table}\nMCMC is no reference here, nor are distances from it: {told}"


def _interval(value: dict[str, float]) -> str:
    up, down = value["upper_68"] - value["median"], value["median"] - value["lower_68"]
    return f"{value['median']:8.3f} +{up:.3f} -{down:.3f}"
