"""`sbi-physics surrogate fit|distill|sample|check|export`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    kind_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sbi_physics.core.voxels import VoxelGeometry
    from sbi_physics.store.simulations import Simulations
    from sbi_physics.surrogate.surrogate import Surrogate

__all__ = ["app"]


class Calorimeter(StrEnum):
    """Geometries of showers."""

    PHOTONS = "photons"
    PIONS = "pions"


class Format(StrEnum):
    """Files of events."""

    SIMULATIONS = "simulations"
    CALOCHALLENGE = "calochallenge"


app = typer.Typer(help="Surrogates of simulators.", no_args_is_help=True)

OutputNameOption = Annotated[
    str | None, typer.Option("--output", help="Of simulations with named outputs: the one that is learned.")
]
ModelArgument = Annotated[Path, typer.Argument(help="A surrogate file.")]


@app.command("fit")
def fit(
    simulations: Annotated[Path, typer.Argument(help="An HDF5 file of simulations, or of CaloChallenge showers.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Surrogate file to write (safetensors).")],
    model: Annotated[
        str,
        typer.Option(
            help="flow, vae, gan, diffusion, consistency, autoregressive, energy, mixture, kernel, or a flow's name."
        ),
    ] = "flow",
    calorimeter: Annotated[
        Calorimeter | None, typer.Option(help="Learn layers first, then voxels, in this geometry.")
    ] = None,
    output_name: OutputNameOption = None,
    threshold: Annotated[float, typer.Option(help="Smallest energy of a voxel, with --calorimeter.")] = 1.0,
    ensemble: Annotated[int, typer.Option(help="Flows whose mixture is the density.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data at most, for the last stage.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Budget for training each stage.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted training goes on.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a surrogate on a file of simulations."""
    import sbi_physics as sp
    from sbi_physics.surrogate.showers import Showers

    output = Output(json, quiet)
    check_model_name(out)
    geometry = _geometry(calorimeter)
    store = _events(simulations, None if geometry is None else geometry.size, output_name)
    given: dict[str, Any] = {k: v for k, v in {"epochs": epochs, "max_seconds": max_seconds}.items() if v is not None}
    surrogate = sp.Surrogate(
        model,
        preprocessing=None if geometry is None else Showers(geometry, threshold=threshold),
        ensemble=ensemble,
        device=device,
        config=given,
    ).fit(store, seed=seed, checkpoint=None if checkpoint is None else str(checkpoint), progress=output.progress)
    if output_name is not None:
        surrogate.provenance["output"] = output_name
    surrogate.save(out)
    found = surrogate.provenance
    epochs_done = [len(stage.get("train_loss", stage.get("critic_loss", ()))) for stage in found["training"]]
    output.result(
        f"{out}: {surrogate.model} trained on {found['simulations']} simulations in {found['seconds']:.1f} s, "
        f"{' + '.join(map(str, epochs_done))} epochs",
        path=str(out),
        model=surrogate.model,
        simulations=found["simulations"],
        seconds=found["seconds"],
        epochs=epochs_done,
    )


@app.command("distill")
def distill(
    teacher: ModelArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Surrogate file to write (safetensors).")],
    model: Annotated[
        str, typer.Option(help="consistency, flow, gan, vae, or any other model that `fit` takes.")
    ] = "consistency",
    steps: Annotated[
        int | None, typer.Option(help="Evaluations of the network for an event, with --model consistency.")
    ] = None,
    events: Annotated[int, typer.Option(help="Events that the teacher draws for the training.")] = 100_000,
    ensemble: Annotated[int, typer.Option(help="Flows whose mixture is the density.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data at most, for the last stage.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Budget for training.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted training goes on.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a faster surrogate on what a slower one draws."""
    output = Output(json, quiet)
    check_model_name(out)
    given: dict[str, Any] = {k: v for k, v in {"epochs": epochs, "max_seconds": max_seconds}.items() if v is not None}
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    student = _surrogate(teacher, device).distill(
        model,
        events=events,
        ensemble=ensemble,
        config=given,
        seed=seed,
        checkpoint=None if checkpoint is None else str(checkpoint),
        progress=output.progress,
        **options,
    )
    student.save(out)
    found = student.provenance
    epochs_done = [len(stage.get("train_loss", stage.get("critic_loss", ()))) for stage in found["training"]]
    output.result(
        f"{out}: {student.model} taught by {found['teacher']['model']} with {events} events "
        f"in {found['seconds']:.1f} s, {' + '.join(map(str, epochs_done))} epochs",
        path=str(out),
        model=student.model,
        teacher=found["teacher"]["model"],
        events=events,
        seconds=found["seconds"],
        epochs=epochs_done,
    )


@app.command("sample")
def sample(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file to write.")],
    n: Annotated[int, typer.Option("-n", help="Number of events.")] = 10_000,
    like: Annotated[
        Path | None, typer.Option(help="Take the parameters of the first n events of this file; else the prior.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", help="NAME=VALUE of a parameter, once for each: all events there.")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Of the file; calochallenge by default for showers in a file *.hdf5."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores for a long run by default.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Generate events into a file, a few megabytes at a time.

    Run the same command again to go on after an interruption.
    """
    import sbi_physics as sp
    from sbi_physics.simulation.showers import simulate_showers
    from sbi_physics.surrogate.showers import Showers

    output = Output(json, quiet)
    check_hdf5_name(out)
    surrogate = _surrogate(model, device)
    if like is not None and at:
        raise sp.UsageError("--at: expected --like or --at, got both")
    theta = _parameters_like(like, n) if like is not None else _parameters_at(surrogate, at, n) if at else None
    if form is None and out.suffix == ".hdf5" and isinstance(surrogate.chain.preprocessing, Showers):
        form = Format.CALOCHALLENGE
    run = simulate_showers if form is Format.CALOCHALLENGE else sp.simulate
    run(surrogate, n, out=out, theta=theta, seed=seed, workers=workers, progress=output.progress)
    output.result(f"{out}: {n} events", path=str(out), events=n)


@app.command("check")
def check(
    model: ModelArgument,
    simulations: Annotated[Path, typer.Argument(help="Real events that the surrogate was not trained on.")],
    plot: Annotated[Path | None, typer.Option(help="Page of plots to write (.png, .pdf, .svg).")] = None,
    output_name: OutputNameOption = None,
    simulator: Annotated[str | None, typer.Option(help="What it stands in for, to be timed beside it.")] = None,
    most: Annotated[int, typer.Option(help="Events to use at most.")] = 100_000,
    epochs: Annotated[int, typer.Option(help="Of the classifiers.")] = 50,
    max_seconds: Annotated[float | None, typer.Option(help="Budget of each classifier.")] = None,
    features: Annotated[int, typer.Option(min=0, help="How many to print, those that differ most.")] = 3,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how far generated events are from real ones, and how fast they come."""
    from sbi_physics.simulation.resolve import resolve_simulator

    output = Output(json, quiet)
    check_figure(plot)
    surrogate = _surrogate(model, device)
    shape, learned = surrogate.x_shape, output_name or surrogate.provenance.get("output")
    theta, events = _events(simulations, shape[0] if len(shape) == 1 else None, learned).training_set()
    x: Any = events  # an array: there is one output
    with foreign_code():
        beside = None if simulator is None else resolve_simulator(simulator)
        report = surrogate.check(
            theta[:most],
            x[:most],
            simulator=beside,
            classifier={"epochs": epochs, "max_seconds": max_seconds, "device": device},
            seed=seed,
            progress=output.progress,
        )
    if plot is not None:
        from sbi_physics.report.figures import save_figure
        from sbi_physics.report.surrogate_figures import surrogate_check

        save_figure(surrogate_check(report), plot)
    text = output.table(report.verdict, ["measurement", "generated", "real"], report.rows(features))
    count = len(report.separation.names)
    if count > features:
        text += f"\n{count - features} further features differ less: --features {count} prints all"
    output.result(text, **report.to_dict())


@app.command("export")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="ONNX file to write.")],
    rows: Annotated[int, typer.Option(help="Outputs that are compared in onnxruntime afterwards.")] = 1000,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a surrogate as a function of theta and noise, for C++ (extra `export`)."""
    from sbi_physics.surrogate.export import compare_onnx

    output = Output(json, quiet)
    check_writable(out)
    surrogate = _surrogate(model, "cpu")
    surrogate.export(out)
    found = compare_onnx(surrogate.chain, surrogate.parameters, out, n=rows, seed=seed)
    output.result(
        f"{out}: x {tuple(surrogate.x_shape)} of theta ({', '.join(surrogate.parameters.names)}) and "
        f"{surrogate.noise_features} standard normal numbers; in onnxruntime {found.differing} of {found.numbers} "
        f"numbers differ, the others by {found.largest:.1e} at most",
        path=str(out),
        model=surrogate.model,
        parameters=list(surrogate.parameters.names),
        noise_features=surrogate.noise_features,
        x_shape=list(surrogate.x_shape),
        agreement=found._asdict(),
    )


def _geometry(calorimeter: Calorimeter | None) -> "VoxelGeometry | None":
    from sbi_physics.core.voxels import DATASET_1_PHOTONS, DATASET_1_PIONS

    known = {None: None, Calorimeter.PHOTONS: DATASET_1_PHOTONS, Calorimeter.PIONS: DATASET_1_PIONS}
    return known[calorimeter]


def _events(path: Path, voxels: int | None, output: str | None) -> "Simulations":
    """Simulations of a file of either format, with one output."""
    import sbi_physics as sp
    from sbi_physics.store.calochallenge import holds_showers, read_simulations

    if holds_showers(path):
        return read_simulations(path, voxels=voxels)
    store = sp.Simulations.open(path)
    if output is not None:
        return store.output(output)
    if store.header.named:
        names = " or ".join(store.header.shapes)
        raise sp.UsageError(f"{path}: a surrogate learns one output, and there are several: --output {names}")
    return store


def _parameters_like(path: Path, n: int) -> "Tensor":
    """Parameters of the first n events of a file of either format; the events themselves are not kept."""
    import torch

    import sbi_physics as sp
    from sbi_physics.store.calochallenge import holds_showers, iterate_showers

    parts, rows = [], 0
    for theta, _ in iterate_showers(path) if holds_showers(path) else sp.Simulations.open(path).batches():
        parts.append(theta)
        rows += len(theta)
        if rows >= n:
            return torch.cat(parts)[:n]
    raise sp.UsageError(f"{path}: expected at least n = {n} events, got {rows}")


def _parameters_at(surrogate: "Surrogate", at: list[str], n: int) -> "Tensor":
    """One theta n times, of all parameters as ``NAME=VALUE``."""
    import torch

    import sbi_physics as sp

    given: dict[str, float] = {}
    names = surrogate.parameters.names
    for one in at:
        name, _, value = one.partition("=")
        if name not in names or name in given:
            raise sp.UsageError(f"--at: expected NAME=VALUE once for each of {', '.join(names)}; got {one!r}")
        try:
            given[name] = float(value)
        except ValueError:
            raise sp.UsageError(f"--at: expected a number for {name}, got {value!r}") from None
    if missing := [name for name in names if name not in given]:
        raise sp.UsageError(f"--at: expected a value of each parameter, got none of {', '.join(missing)}")
    return torch.tensor([given[name] for name in names], dtype=torch.float32).expand(n, -1)


def _surrogate(path: Path, device: str) -> "Surrogate":
    import sbi_physics as sp

    loaded = sp.load(path, device=device)
    if not isinstance(loaded, sp.Surrogate):
        raise sp.UsageError(f"{path}: expected a surrogate, got {kind_of(loaded)}")
    return loaded
