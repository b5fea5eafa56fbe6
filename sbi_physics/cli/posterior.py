"""`sbi-physics posterior fit|sample|check|compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sbi_physics.cli.common import (
    DeviceOption,
    JsonOption,
    Output,
    QuietOption,
    SeedOption,
    check_writable,
    foreign_code,
    make_folder,
)

__all__ = ["app"]

app = typer.Typer(help="Neural posterior estimation.", no_args_is_help=True)

ModelArgument = Annotated[Path, typer.Argument(help="A posterior file.")]
ObservationOption = Annotated[
    str, typer.Option("-x", "--observation", help="A .npy, .csv or .txt file, or a simulator that carries its data.")
]


@app.command("fit")
def fit(
    simulations: Annotated[Path, typer.Argument(help="An HDF5 file of simulations.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Posterior file to write (safetensors).")],
    model: Annotated[str, typer.Option(help="nsf, maf, maf-spline or nsf-box.")] = "nsf",
    ensemble: Annotated[int, typer.Option(help="Flows whose mixture is the posterior.")] = 1,
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
    check_writable(out)
    store = sp.Simulations.open(simulations)
    chosen: dict[str, Any] = {"epochs": epochs, "max_seconds": max_seconds}
    config = TrainConfig(**{key: value for key, value in chosen.items() if value is not None})
    estimator = sp.NPE(store.parameters, model, device=device, ensemble=ensemble, config=config)
    posterior = estimator.fit(store, seed=seed, progress=output.progress)
    posterior.save(out)
    training = posterior.provenance["training"]
    output.result(
        f"{out}: trained on {posterior.provenance['simulations']} simulations in {training['seconds']:.1f} s, "
        f"{len(training['train_loss'])} epochs, held-out log-density {posterior.provenance['validation_log_prob']:.3f}",
        path=str(out),
        simulations=posterior.provenance["simulations"],
        seconds=training["seconds"],
        epochs=len(training["train_loss"]),
        validation_log_prob=posterior.provenance["validation_log_prob"],
    )


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
    check_writable(out)
    posterior = sp.load(model, device=device)
    samples = posterior.sample(n, _observation(observation), seed=seed)
    if samples.values.ndim != 2:
        raise sp.ShapeError(
            f"observation: expected one of shape {posterior.x_shape}, got {len(samples.values)} of them"
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
    from sbi_physics.posterior.data import training_pairs

    output = Output(json, quiet)
    posterior = sp.load(model, device=device)
    pairs = training_pairs(posterior.parameters, simulations, failed="correct")
    theta, x = pairs.theta, pairs.x
    result = sp.diagnostics.sbc(posterior, theta[:most], x[:most], draws=draws, seed=seed)
    expected = sp.diagnostics.coverage(posterior, theta[:most], x[:most], draws=draws, seed=seed)
    if plot is not None:
        from sbi_physics.report.figures import calibration, save_figure

        save_figure(calibration(result, expected), plot)
    output.result(
        "\n".join([*result.verdicts, f"coverage: {expected.verdict}"]),
        passed=result.passed and expected.passed,
        verdicts=list(result.verdicts),
        coverage_verdict=expected.verdict,
        p_values=dict(zip(result.names, result.p_values.tolist(), strict=True)),
        coverage_68=dict(zip(result.names, result.coverage_68.tolist(), strict=True)),
        simulations=len(result.ranks),
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
    import sbi_physics as sp
    from sbi_physics.cli.comparison import comparison_table, write_comparison
    from sbi_physics.posterior.compare import compare as compare_posteriors
    from sbi_physics.simulation.resolve import resolve_simulator

    output = Output(json, quiet)
    posterior = sp.load(model, device=device)
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
    from sbi_physics.store.observation import read_array

    path = Path(source)
    if path.suffix in (".npy", ".csv", ".txt") or path.is_file():
        return read_array(path)
    with foreign_code():
        simulator = resolve_simulator(source)
    observed = getattr(simulator, "observed", None)
    if observed is None:
        from sbi_physics.core.errors import UsageError

        raise UsageError(f"observation: the simulator {source!r} carries no data; expected a .npy, .csv or .txt file")
    return observed
