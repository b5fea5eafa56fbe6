"""Write benchmarks/RESULTS.md from the JSON files in benchmarks/results.

python -m benchmarks table
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.posterior.published import PUBLISHED
from benchmarks.report_integration import events, integrals, lattice
from benchmarks.report_mcmc import against_mcmc
from benchmarks.report_networks import known_answers, wide
from benchmarks.report_packages import evidences, intervals, networks, star_packages
from benchmarks.report_pulsars import arrays, free_spectra
from benchmarks.report_search_peers import search_peers
from benchmarks.report_searches import background, methods, null
from benchmarks.report_simulation import overhead, programs, streaming
from benchmarks.report_supernovae import union3
from benchmarks.tables import numbers, table

__all__ = ["main", "parts_of"]

_GALAXY_EMCEE = (
    "emcee on the exact density: {independent_stars:,.0f} independent stars in {seconds:.0f} s, {calls_per_star:,.0f} "
    "evaluations for each; {verdict}."
)
_GPU_SIDES = ("nflows", "eager", "graphed", "fused")


def main(results: Path = RESULTS, path: Path = Path(__file__).parent / "RESULTS.md") -> None:
    """Write the document and say where it is.

    Args:
        results: the folder of the JSON files.
        path: the document.
    """
    parts = ["# Results", "Written by `python -m benchmarks table` from `benchmarks/results/`; do not edit."]
    path.write_text("\n\n".join([*parts, *parts_of(results)]) + "\n", encoding="utf-8")
    print(f"written to {path}")


def parts_of(results: Path) -> list[str]:
    """Titles, tables and lines of what a folder of results holds."""
    sections = {"vs_sbi_two_moons": _posteriors, "flow_fits": _fits, "flow_steps": _steps}
    sections |= {"sbibm_posteriors": _tasks, "sbibm_exact": _exact, "flow_ensembles": _ensembles, "flow_gpu": _gpu}
    sections |= {"many_observations": _many, "calibration": _calibration, "oscillator": _oscillator}
    sections |= {"surrogate_calorimeter": _showers, "galaxy": _galaxy, "surrogate_check": _surrogate_checks}
    sections |= {"anomaly_methods": methods, "anomaly_null": null, "anomaly_background": background}
    sections |= {"integration_table": integrals, "integration_events": events, "lattice": lattice}
    sections |= {"pulsar_timing": arrays, "free_spectrum": free_spectra, "simulation_overhead": overhead}
    sections |= {"store_streaming": streaming, "against_mcmc": against_mcmc, "simulation_programs": programs}
    sections |= {"supernovae": union3, "networks": networks, "evidence": evidences, "intervals": intervals}
    sections |= {"galaxy_peers": star_packages, "anomaly_peers": search_peers}
    sections |= {"known_answers": known_answers, "wide": wide}
    parts: list[str] = []
    for name, section in sections.items():
        path = results / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            machines = [row["machine"] for row in _measured(result)]
            parts += [*section(result), *dict.fromkeys(map(_machine, machines))]
    return parts


def _measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a result that say on which machine they were made."""
    if "machine" in result:
        return [result]
    return list(result["cases"].values()) if "cases" in result else list(result["rows"])


def _posteriors(result: dict[str, Any]) -> list[str]:
    rows = [
        [row["package"], f"{row['training_seconds']:.1f}", f"{row['c2st_median']:.3f}", numbers(row["c2st"])]
        for row in result["rows"]
    ]
    return [
        f"## Posteriors of {result['task']} from {result['simulations']:,} simulations, defaults of both",
        f"Training time, ours over sbi's: {result['training_time_ratio']:.3f}.",
        table(["package", "training [s]", "median C2ST", "C2ST by observation"], rows),
    ]


def _tasks(result: dict[str, Any]) -> list[str]:
    parts = [
        "## Posteriors of the tasks of sbibm",
        "Median C2ST over the observations (0.5 is perfect) and in brackets seconds of training for one posterior, "
        "both as means over seeds; in italics the figures that Lueckmann et al. 2021 (arXiv:2101.04653) publish.",
    ]
    for simulations in sorted({row["simulations"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["simulations"] == simulations]
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        methods = list(dict.fromkeys(row["method"] for row in rows))
        ours = [[method, *(_task_cell(rows, method, task) for task in tasks)] for method in methods]
        published = [
            [f"*{method}*", *(f"*{medians[task]:.3f}*" if task in medians else "" for task in tasks)]
            for method, medians in PUBLISHED.get(simulations, {}).items()
        ]
        parts += [f"### {simulations:,} simulations", table(["", *tasks], [*ours, *published])]
    return parts


def _task_cell(rows: list[dict[str, Any]], method: str, task: str) -> str:
    found = [row for row in rows if row["method"] == method and row["task"] == task]
    if not found:
        return ""
    return f"{mean(row['c2st_median'] for row in found):.3f} ({mean(row['training_seconds'] for row in found):.1f})"


def _exact(result: dict[str, Any]) -> list[str]:
    rows = [
        [row["task"], str(row["observation"]), f"{row['c2st']:.3f}", f"{row['largest_pull']:.2f}"]
        for row in result["rows"]
    ]
    head = ["task", "observation", "C2ST", "largest difference of a mean, in standard errors"]
    return ["## Our exact likelihoods against the reference posteriors of sbibm", table(head, rows)]


def _oscillator(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["encoder"],
            f"{row['training_seconds']:.0f}",
            numbers(row["correlation"]),
            numbers(row["width_over_exact"]),
            "yes" if row["calibrated"] else "no",
        ]
        for row in result["rows"]
    ]
    names = ", ".join(result["parameters"])
    head = [
        "encoder",
        "training [s]",
        f"correlation of mean and truth ({names})",
        "width over exact, median",
        "calibrated",
    ]
    return [
        f"## An oscillator with {result['missing']:.0%} of samples missing, from {result['simulations']:,} series",
        table(head, rows),
    ]


def _showers(result: dict[str, Any]) -> list[str]:
    rows = []
    for row in result["rows"]:
        aucs = [f"{row[f'{name}_auc']:.3f} ± {row[f'{name}_error']:.3f}" for name in ("low", "high", "features")]
        if "response" not in row:
            rows.append([row["model"], f"{row['events']:,}", *aucs, *[""] * 7])
            continue
        response = max(abs(ratio[0] - 1) for ratio in row["response"])
        resolution = max(abs(ratio[2] - 1) for ratio in row["response"])
        rows.append([
            row["model"],
            f"{row['events']:,}",
            *aucs,
            f"{row['coverage']:.2f}",
            f"{response:.1%}",
            f"{resolution:.1%}",
            f"{row['rates']['10000']:,.0f}",
            f"{row['speed_up']:.0f}",
            f"{row['showers']:,}",
            f"{row['training_seconds']:,.0f}",
        ])  # fmt: skip
    head = [
        "model",
        "judged by",
        "AUC of voxels",
        "AUC of high-level features",
        "AUC of all features of `check`",
        "coverage",
    ]
    head += ["response", "resolution", "showers/s", "over the simulator", "trained on", "training [s]"]
    return [
        "## Showers of photons in 368 voxels: surrogates against the simulator",
        "Classifiers see as many real as generated showers; the simulator against itself is the floor. Response and "
        "resolution: the largest deviation in ten bins of energy. Rates are at 100 GeV, in batches of 10,000.",
        table(head, rows),
    ]


def _galaxy(result: dict[str, Any]) -> list[str]:
    names = ("upsampled", "fixed_kernels", "floor")
    rows = [
        [str(row["seed"]), *(f"{row[name]['auc']:.3f} ± {row[name]['error']:.3f}" for name in names)]
        for row in result["rows"]
    ]
    parts = [
        f"## Stars from {result['particles']:,} star particles: six-dimensional AUC against true stars",
        table(["galaxy", "upsampled", "fixed kernels of the best scale", "true stars"], rows),
    ]
    if "models" in result:
        parts += [
            f"Surrogates that know nothing of galaxies, on the particles of galaxy {result['rows'][0]['seed']}:",
            table(["model", "AUC", "training [s]", "microseconds a star"], _galaxy_models(result["models"])),
        ]
    chain = result.get("emcee", {})
    return [*parts, _GALAXY_EMCEE.format(**chain)] if chain.get("independent_stars") else parts


def _galaxy_models(models: dict[str, Any]) -> list[list[str]]:
    return [
        [
            model,
            f"{found['auc']:.3f} ± {found['error']:.3f}",
            f"{found['fit_seconds']:.0f}",
            f"{1e6 * found['seconds_per_star']:.1f}",
        ]
        for model, found in models.items()
    ]


def _surrogate_checks(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["case"],
            f"{row['events']:,}",
            f"{row['flunked']} of {row['repeats']}",
            ", ".join(f"{name} {count}" for name, count in row["by_test"].items()) or "-",
        ]
        for row in result["rows"]
    ]
    return [
        f"## How often `check` flunks showers, at the level {result['rows'][0]['level']:.0%}",
        "Electromagnetic showers of 1 to 30 GeV; half of the events are the reference of the others.",
        table(["what is wrong", "events", "flunked", "by test"], rows),
    ]


def _many(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["method"],
            f"{row['seconds']:.0f}",
            f"{row['effective_sample_size']['smallest']:.0f}",
            f"{row['r_hat']:.3f}",
            f"{row['share_of_a_mode']['smallest']:.2f} to {row['share_of_a_mode']['largest']:.2f}",
            " ".join(_compared(one["learned"]) for one in row["compared"]),
            " ".join(_compared(one["exact"]) for one in row["compared"]),
        ]
        for row in result["rows"]
    ]
    head = ["method", "seconds", "smallest ESS", "largest R-hat", "share of a mode"]
    head += ["C2ST with NPE corrected to the same", "C2ST with NPE corrected to the exact posterior"]
    return [
        f"## {result['draws']:,} draws for each of {result['observations']} observations of {result['task']}",
        table(head, rows),
    ]


def _compared(one: dict[str, Any]) -> str:
    return f"{one['c2st']:.3f}" if "c2st" in one else "refused"


def _calibration(result: dict[str, Any]) -> list[str]:
    rows = [
        [row["task"], row["method"], f"{row['observations']:,}", f"{row['seconds']:.0f}", row["sbc"], row["tarp"]]
        for row in result["rows"]
    ]
    head = ["task", "method", "observations", "seconds", "simulation-based calibration", "TARP"]
    return ["## Calibration over many observations, 10,000 simulations, defaults", table(head, rows)]


def _fits(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["task"],
            f"{row['sbi_physics_log_density']:.3f}",
            f"{row['sbi_log_density']:.3f}",
            f"{row['sbi_physics_seconds']:.1f}",
            f"{row['sbi_seconds']:.1f}",
            f"{row['time_ratio']:.3f}",
        ]
        for row in result["rows"]
    ]
    head = ["task", "held-out log-density", "sbi", "seconds", "sbi", "ratio"]
    return [f"## Whole fits from {result['simulations']:,} simulations, defaults of both", table(head, rows)]


def _steps(result: dict[str, Any]) -> list[str]:
    measured, speeds = result["milliseconds"], result["speed over nflows"]
    sides = list(next(iter(measured.values())))
    rows = [[key, *(f"{row[side]:.1f} ({speeds[key][side]:.1f})" for side in sides)] for key, row in measured.items()]
    shares = ", ".join(f"{share:.0%} for {key}" for key, share in result["share of that peak, compiled"].items())
    return [
        "## One flow: five couplings, 64 hidden, two blocks, eight bins, D = 5, context 10",
        "Milliseconds, and in brackets how many times as fast as nflows' coupling flow.",
        table(["", *sides], rows),
        f"Share of the peak of a matrix product ({result['matrix peak in 1e9 operations per second']:.0f}e9 operations "
        f"per second) that the compiled engine reaches: {shares}. Compiling and loading took "
        f"{result['compile seconds']:.1f} s into an empty cache; afterwards the library is taken from the cache.",
    ]


def _ensembles(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["task"],
            numbers(row["one_density"]),
            numbers(row["ensemble_density"]),
            f"{row['gain']:+.3f}",
            f"{row['time_ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    head = ["task", "held-out log-density, one flow", "ensemble", "mean gain", "time, ensemble over one"]
    return [
        f"## An ensemble of {result['members']} flows, {result['simulations']:,} simulations, one column for each seed",
        table(head, rows),
    ]


def _gpu(result: dict[str, Any]) -> list[str]:
    rows = [
        [name, *(f"{value:.2f} ({row['nflows'] / value:.1f})" if value else "" for value in map(row.get, _GPU_SIDES))]
        for name, row in (
            (f"step {result['batch']}", result["step milliseconds"]),
            (f"draws {result['draws']:,}", result["draws milliseconds"]),
        )
    ]
    fit = result["fit"]
    return [
        "## The same flow on a GPU",
        "Milliseconds, and in brackets how many times as fast as nflows.",
        table(["", *_GPU_SIDES], rows),
        f"NPE on {fit['simulations']:,} simulations of {fit['task']}: {fit['seconds']:.1f} s, held-out log-density "
        f"{fit['held-out log-density']:.3f}.",
    ]


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    devices = ", ".join(machine["cuda"]) or "no CUDA device"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} threads, {devices}; {versions}."
    )


if __name__ == "__main__":
    main()
