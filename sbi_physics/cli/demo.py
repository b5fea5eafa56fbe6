"""`sbi-physics demo`: the planets of a real star, from simulation to a posterior checked against MCMC."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sbi_physics.cli.common import DeviceOption, JsonOption, Output, QuietOption, SeedOption, make_folder

__all__ = ["demo"]

SIMULATIONS = 200_000
CALIBRATION_SIMULATIONS = 1_000
# A simulation costs microseconds here: many simulations and few passes leave little to overfit.  After 8 passes the
# joint posterior is still over-confident when 4,000 simulations look (seeds 11, 12); after 16 it is not (11, 12, 13).
EPOCHS = 16


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo-output"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Infer the two planets of K2-24 from its radial velocities, and check the answer against MCMC.

    Simulates velocities like those of Petigura et al. (2016), trains a neural posterior on them, samples it for the
    measured velocities, corrects it by importance sampling and compares with emcee on the exact likelihood.
    """
    import sbi_physics as sp
    from sbi_physics.cli.comparison import comparison_table, write_comparison
    from sbi_physics.posterior.compare import compare
    from sbi_physics.report.calibration_figures import calibration
    from sbi_physics.report.figures import losses, save_figure
    from sbi_physics.simulation.resolve import resolve_simulator
    from sbi_physics.train.config import TrainConfig

    output = Output(json, quiet)
    simulator: Any = resolve_simulator("radial_velocity")
    make_folder(out)
    seconds: dict[str, float] = {}

    output.say(f"K2-24: {len(simulator.observed)} radial velocities, {len(simulator.parameters)} parameters")
    with _timed("simulate", seconds, output):
        training = sp.simulate(simulator, SIMULATIONS, seed=seed, progress=output.progress)
        fresh = sp.simulate(simulator, CALIBRATION_SIMULATIONS, seed=seed + 1, progress=output.progress)
    with _timed("train", seconds, output):
        estimator = sp.NPE(simulator.parameters, device=device, config=TrainConfig(epochs=EPOCHS))
        posterior = estimator.fit(training, seed=seed, progress=output.progress)
        posterior.save(out / "posterior.safetensors")
    with _timed("calibrate", seconds, output):
        theta, x = fresh.training_set()
        report = sp.diagnostics.calibrate(posterior, theta, x, seed=seed, progress=output.progress)
        save_figure(calibration(report), out / "calibration.png")
    output.say("compare: correcting, running emcee, and training classifiers to tell the draws apart: about a minute")
    with _timed("compare", seconds, output):
        comparison = compare(posterior, simulator, simulator.observed, seed=seed, progress=output.progress)

    masses = _minimum_masses(simulator, comparison.samples["corrected"])
    record = posterior.provenance["training"]
    save_figure(losses(record["train_loss"], record["validation_loss"], record["best_epoch"]), out / "training.png")
    _plot_velocities(simulator, comparison.samples["corrected"], out / "velocities.png")
    write_comparison(
        comparison,
        out,
        seconds=seconds,
        simulations=SIMULATIONS,
        seed=seed,
        calibration=list(report.sbc.verdicts),
        coverage=report.coverage.verdict,
        random_points=report.tarp.verdict,
        minimum_masses=masses,
    )
    table = comparison_table(comparison, output)
    planets = ", ".join(
        f"{name} {m['median']:.1f} [{m['lower_68']:.1f}, {m['upper_68']:.1f}]" for name, m in masses.items()
    )
    words = f"minimum masses in Earth masses: {planets}\ncalibration: {report.verdict}\nwritten to {out}/"
    output.result(f"{table}\n{words}", path=str(out), **comparison.to_dict())


class _timed:
    """Say what a stage does, and note how long it took."""

    def __init__(self, stage: str, seconds: dict[str, float], output: Output) -> None:
        self.stage, self.seconds, self.output = stage, seconds, output

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.stage] = time.monotonic() - self.began
        self.output.say(f"{self.stage}: {self.seconds[self.stage]:.1f} s")


def _minimum_masses(simulator: Any, samples: Any) -> dict[str, dict[str, float]]:
    """Median and 68 % interval of m sin i in Earth masses, the error of the stellar mass included."""
    import numpy as np

    from sbi_physics.core.random import numpy_generator

    mass, error = simulator.stellar_mass
    stellar = numpy_generator(0).normal(mass, error, len(samples))
    found = {}
    for planet in simulator.planets:
        low, median, high = np.quantile(
            simulator.minimum_mass(samples.values, planet.name, stellar).to_value("earthMass"), [0.16, 0.5, 0.84]
        )
        found[planet.name] = {"median": median, "lower_68": low, "upper_68": high}
    return found


def _plot_velocities(simulator: Any, samples: Any, path: Path) -> None:
    import torch

    from sbi_physics.report.figures import curve, save_figure

    times = simulator.times
    grid = torch.linspace(float(times.min()) - 5, float(times.max()) + 5, 600, dtype=torch.float64)
    draws = samples.values[:1000]
    jitter = float(torch.exp(samples["log_jitter"].double().median()))
    figure = curve(
        grid,
        simulator.model(draws, grid),
        (times, simulator.observed, simulator.errors, simulator.model(draws).median(0).values),
        noise=jitter,
        x_label="BJD - 2454833 [d]",
        y_label="radial velocity [m/s]",
        title=f"K2-24: posterior of the velocity curve (jitter {jitter:.1f} m/s as thin bars)",
    )
    save_figure(figure, path)
