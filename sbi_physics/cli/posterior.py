"""`sbi-physics posterior fit|sample|check|compare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sbi_physics.cli.common import (
    DeviceOption,
    JsonOption,
    Output,
    QuietOption,
    SeedOption,
    check_figure,
    check_hdf5_name,
    check_model_name,
    check_writable,
    foreign_code,
    load_posterior,
    make_folder,
)

__all__ = ["app"]


class Method(StrEnum):
    """What is learned."""

    NPE = "npe"
    NLE = "nle"
    NRE = "nre"


class Failed(StrEnum):
    """What to do where simulations failed."""

    REFUSE = "refuse"
    CORRECT = "correct"


app = typer.Typer(help="Posteriors: fit them, draw from them, check and compare them.", no_args_is_help=True)

ModelArgument = Annotated[Path, typer.Argument(help="A posterior file.")]
ObservationOption = Annotated[
    str,
    typer.Option("-x", "--observation", help="A .npy, .npz, .csv or .txt file, or a simulator that carries its data."),
]


@app.command("fit")
def fit(
    simulations: Annotated[Path, typer.Argument(help="An HDF5 file of simulations.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Posterior file to write (safetensors).")],
    method: Annotated[Method, typer.Option(help="Learn the posterior, the likelihood or the ratio.")] = Method.NPE,
    model: Annotated[
        str | None, typer.Option(help="Of the density: nsf, maf, maf-spline, nsf-box, mixture, flow-matching, score.")
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder of observations: residual, gru, lstm, deep-set, conv1d, ...; not for nle. Of named ones "
            "NAME=ENCODER, once for each."
        ),
    ] = None,
    ensemble: Annotated[int, typer.Option(help="Flows whose mixture is the density; not for nre.")] = 1,
    failed: Annotated[
        Failed, typer.Option(help="Where simulations failed: refuse, or correct for it.")
    ] = Failed.REFUSE,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data at most.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Budget for training.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a posterior on a file of simulations."""
    import sbi_physics as sp
    from sbi_physics.train.config import TrainConfig

    output = Output(json, quiet)
    check_model_name(out)
    store = sp.Simulations.open(simulations)
    chosen: dict[str, Any] = {"epochs": epochs, "max_seconds": max_seconds}
    config = {"config": TrainConfig(**given)} if (given := _given(chosen)) else {}
    encoder = _embedding(embedding or [])
    how = _given({"model": model, "embedding": encoder, "ensemble": ensemble if ensemble != 1 else None})
    if method is Method.NRE and "ensemble" in how:
        raise sp.UsageError("--ensemble: a ratio has none; use --method npe or nle")
    estimator = {Method.NPE: sp.NPE, Method.NLE: sp.NLE, Method.NRE: sp.NRE}[method]
    made = estimator(store.parameters, device=device, **how, **config)
    try:
        posterior = made.fit(store, failed=failed.value, seed=seed, progress=output.progress)
    except (sp.NonFiniteError, sp.SimulationError) as error:
        raise type(error)(str(error).replace("failed='correct'", "--failed correct")) from error
    posterior.save(out)
    training = posterior.provenance["training"]
    found = posterior.provenance
    quality = {key: found[key] for key in ("validation_log_prob", "validation_loss") if key in found}
    words = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in quality.items())
    output.result(
        f"{out}: trained on {found['simulations']} simulations in {training['seconds']:.1f} s, "
        f"{len(training['train_loss'])} epochs, {words}",
        path=str(out),
        method=method.value,
        simulations=found["simulations"],
        failed=found["failed"],
        seconds=training["seconds"],
        epochs=len(training["train_loss"]),
        **quality,
    )


def _embedding(given: list[str]) -> str | dict[str, str] | None:
    """The name of an encoder, or those of named observations."""
    from sbi_physics.core.errors import UsageError

    named = dict(one.split("=", 1) for one in given if "=" in one)
    if len(named) == len(given):
        return named or None
    if len(given) > 1:
        raise UsageError(
            f"--embedding: expected one encoder, or NAME=ENCODER for each observation; got {', '.join(given)}"
        )
    return given[0]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


@app.command("sample")
def sample(
    model: ModelArgument,
    observation: ObservationOption,
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file of draws to write.")],
    n: Annotated[int, typer.Option("-n", help="Number of draws.")] = 10_000,
    plot: Annotated[Path | None, typer.Option(help="Corner plot to write (.png, .pdf, .svg).")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw from a posterior for one observation."""
    import sbi_physics as sp
    from sbi_physics.posterior.compare import intervals
    from sbi_physics.store.samples import write_samples

    output = Output(json, quiet)
    check_hdf5_name(out)
    check_writable(out)
    check_figure(plot)
    posterior = load_posterior(model, device)
    samples = posterior.sample(n, _observation(observation), seed=seed)
    if samples.values.ndim != 2:
        raise sp.ShapeError(
            f"observation: expected one of shape {posterior.x_shape}, got {len(samples.values)} of them; leave out "
            "rows that are no data, as numbers of bins"
        )
    write_samples(out, {"posterior": samples})
    if plot is not None:
        from sbi_physics.report.figures import corner, save_figure

        save_figure(corner(samples), plot)
    found = intervals(samples)
    lines = [
        [name, unit, f"{v['median']:.4g}", f"{v['lower_68']:.4g} ... {v['upper_68']:.4g}"]
        for (name, v), unit in zip(found.items(), samples.units, strict=True)
    ]
    text = output.table(f"{out}: {n} draws", ["parameter", "unit", "median", "68 %"], lines)
    output.result(text, path=str(out), draws=n, intervals=found)


@app.command("check")
def check(
    model: ModelArgument,
    simulations: Annotated[Path, typer.Argument(help="Simulations that the posterior was not trained on.")],
    plot: Annotated[Path | None, typer.Option(help="Calibration plot to write (.png, .pdf, .svg).")] = None,
    draws: Annotated[int, typer.Option(help="Posterior draws for each simulation.")] = 256,
    most: Annotated[int, typer.Option(help="Simulations to use at most.")] = 1000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the calibration of a posterior on fresh simulations."""
    import sbi_physics as sp
    from sbi_physics.posterior.likelihood import LikelihoodPosterior
    from sbi_physics.train.encoding import accepts_missing
    from sbi_physics.train.pairs import training_pairs

    output = Output(json, quiet)
    check_figure(plot)
    posterior = load_posterior(model, device)
    encoder = posterior.encoder
    pairs = training_pairs(posterior.parameters, simulations, failed="correct", encoder=encoder)
    theta, x = pairs.theta[:most], pairs.x[:most]
    if isinstance(posterior, LikelihoodPosterior):
        output.say(
            f"each of {len(theta)} posteriors is sampled by tempering, which may take minutes; --most takes fewer"
        )
    report = sp.diagnostics.calibrate(
        posterior, theta, x, draws=draws, seed=seed, missing=accepts_missing(encoder), progress=output.progress
    )
    if plot is not None:
        from sbi_physics.report.calibration_figures import calibration
        from sbi_physics.report.figures import save_figure

        save_figure(calibration(report), plot)
    ranks = report.sbc
    lines = [*ranks.verdicts, f"coverage: {report.coverage.verdict}", f"random points: {report.tarp.verdict}"]
    if report.highest_density is not None:
        lines.append(f"highest density: {report.highest_density.verdict}")
    lines.append(f"{'passed' if report.passed else 'not passed'}: {report.verdict}")
    output.result(
        "\n".join(lines),
        passed=report.passed,
        verdict=report.verdict,
        verdicts=list(ranks.verdicts),
        coverage_verdict=report.coverage.verdict,
        tarp_verdict=report.tarp.verdict,
        p_values=dict(zip(ranks.names, ranks.p_values.tolist(), strict=True)),
        coverage_68=dict(zip(ranks.names, ranks.coverage_68.tolist(), strict=True)),
        simulations=len(ranks.ranks),
        failed=pairs.failed,
    )


@app.command("compare")
def compare(
    model: ModelArgument,
    simulator: Annotated[str, typer.Option(help="A simulator with a known likelihood.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    observation: Annotated[
        str | None, typer.Option("-x", "--observation", help="A file; the simulator's own data by default.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Draws of each method.")] = 10_000,
    steps: Annotated[int, typer.Option(help="Steps of each emcee walker.")] = 4_000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare a posterior with MCMC on the exact likelihood, for one observation."""
    from sbi_physics.cli.comparison import comparison_table, write_comparison
    from sbi_physics.posterior.compare import compare as compare_posteriors
    from sbi_physics.simulation.resolve import resolve_simulator

    output = Output(json, quiet)
    posterior = load_posterior(model, device)
    make_folder(out)
    x_obs = _observation(observation or simulator)
    with foreign_code():
        exact = resolve_simulator(simulator)
        comparison = compare_posteriors(posterior, exact, x_obs, n=n, steps=steps, seed=seed, progress=output.progress)
    write_comparison(comparison, out)
    output.result(comparison_table(comparison, output), path=str(out), **comparison.to_dict())


def _observation(source: str) -> Any:
    """Read an observation from a file, or take that of a simulator."""
    from sbi_physics.simulation.resolve import resolve_simulator
    from sbi_physics.store.observation import read_data

    path = Path(source)
    if path.suffix in (".npy", ".npz", ".csv", ".txt") or path.is_file():
        return read_data(path)
    with foreign_code():
        simulator = resolve_simulator(source)
    observed = getattr(simulator, "observed", None)
    if observed is None:
        from sbi_physics.core.errors import UsageError

        raise UsageError(
            f"observation: the simulator {source!r} carries no data; expected a .npy, .npz, .csv or .txt file"
        )
    return observed
