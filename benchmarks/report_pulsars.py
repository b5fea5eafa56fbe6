"""What the report says of pulsar timing."""

from typing import Any

from benchmarks.tables import numbers, table

__all__ = ["arrays", "free_spectra"]


def arrays(result: dict[str, Any]) -> list[str]:
    """Networks for whole arrays beside emcee on the exact likelihood."""
    head = ["case", "pulsars, parameters", "simulations", "simulating + training [s]", "sky", "raw efficiency"]
    head += ["refined", "C2ST learned / corrected", "draws compared", "correction, with refinement [s]"]
    head += ["emcee [s], autocorrelation times", "independent draws a second, corrected / emcee"]
    rows, checks = [], []
    for row in result["rows"]:
        seconds = row["seconds"]
        for number, sky in enumerate(row["skies"]):
            first = [row["case"], f"{row['pulsars']}, {row['parameters']}", f"{row['simulations']:,}"]
            first.append(f"{seconds['simulation']:.0f} + {seconds['training']:.0f}")
            rows.append([*(first if number == 0 else [""] * 4), str(number + 1), *_sky(sky)])
        checks.append(f"{row['case']}: {row['calibration']['verdict']}.")
        if "calibration_two_missing" in row:
            checks.append(f"{row['case']}, two pulsars missing: {row['calibration_two_missing']['verdict']}.")
    return [
        "## Pulsar timing arrays: any sky by one network, corrected by the exact likelihood",
        "Efficiency: effective share of 10,000 draws of the network under importance weights. emcee begins at draws of "
        "the network; more than 50 autocorrelation times count as converged.",
        table(head, rows),
        "Simulation-based calibration. " + " ".join(checks),
    ]


def _sky(sky: dict[str, Any]) -> list[str]:
    work = sky["seconds_of_correction"] + sky.get("seconds_of_refinement", 0.0)
    efficiency = sky.get("refined_efficiency", sky["raw_efficiency"])
    cells = [f"{sky['raw_efficiency']:.3f}", f"{sky['refined_efficiency']:.2f}" if "refined_efficiency" in sky else ""]
    if "c2st_learned" not in sky:
        return [*cells, "", "", f"{work:.0f}", "", ""]
    cells += [f"{sky['c2st_learned']:.3f} / {sky['c2st_corrected']:.3f}", f"{sky['compared']:,}", f"{work:.0f}"]
    ours, theirs = 100_000 * efficiency / work, sky["emcee_independent"] / sky["emcee_seconds"]
    return [*cells, f"{sky['emcee_seconds']:.0f}, {sky['emcee_lengths']:.0f}", f"{ours:,.0f} / {theirs:,.2f}"]


def free_spectra(result: dict[str, Any]) -> list[str]:
    """Posteriors from free spectra against quadrature, then what moves their medians."""
    head = ["spectrum", "bins", "parameter", "16 %, 50 %, 84 % by quadrature", "median of the flow - quadrature"]
    head += ["median of emcee - quadrature", "C2ST flow / emcee / quadrature again", "power", "efficiency", "Pareto k"]
    rows, known, changes = [], [], []
    for row in result["rows"]:
        exact = row["quadrature"]["quantiles"]
        c2st = [row["flow"]["c2st"], row["emcee"]["c2st"], row["quadrature"]["c2st_of_two_sets"]]
        for i, name in enumerate(row["parameters"]):
            line = [row["case"], str(row["bins"]), name, numbers(level[i] for level in exact)]
            line += [f"{row[side]['median_distance'][i]:+.4f}" for side in ("flow", "emcee")]
            rows.append([*line, " / ".join(f"{c:.3f}" for c in c2st), *_weights(row["flow"])])
        known.append(_known(row))
        changes.append(_changes(row))
    note = (
        "The flow is fitted by variational inference to a power of the likelihood, and corrected by importance weights."
    )
    return [
        "## Free spectra of pulsar timing arrays",
        f"{result['rows'][0]['draws']:,} draws each. {note}",
        table(head, rows),
        *known,
        "What moves the medians, by quadrature:",
        *changes,
    ]


def _weights(flow: dict[str, Any]) -> list[str]:
    return [f"{flow['power']:g}", f"{flow['efficiency']:.2f}", f"{flow['pareto_k']:.2f}"]


def _known(row: dict[str, Any]) -> str:
    if "injected" in row:
        injected = ", ".join(f"{value:g}" for value in row["injected"])
        return f"{row['case']}: the injected {injected} lie on the edge of the {row['region_of_injected']:.1%} region."
    parts = [
        f"{name} {each['distance']:+.2f} from the published {each['published'][1]:g}, "
        f"{abs(each['in_published_errors']):.2f} of its error"
        for name, each in row["published"].items()
    ]
    return f"{row['case']}: " + "; ".join(parts) + "."


def _changes(row: dict[str, Any]) -> str:
    base = row["quadrature"]["quantiles"][1]
    head = [f"{row['case']}: change", *(f"median of {name}" for name in row["parameters"]), "moved by"]
    moved = {
        name: [a - b for a, b in zip(quantiles[1], base, strict=True)] for name, quantiles in row["changes"].items()
    }
    left_out = {name: moved.pop(name) for name in list(moved) if name.startswith("without number")}
    most = max(left_out, key=lambda name: abs(left_out[name][0]))
    rows = []
    for name, away in [*moved.items(), (f"{most}, of all that which moves it most", left_out[most])]:
        medians = row["changes"].get(name, row["changes"][most])[1]
        rows.append([name, *(f"{value:.3f}" for value in medians), " ".join(f"{value:+.3f}" for value in away)])
    return table(head, rows)
