"""Stages of a posterior in which data are made: the observation, simulations to learn from, and fresh ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sbi_physics.core.errors import ShapeError, SimulationError
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import derive, seeded
from sbi_physics.posterior.observation import read_observation
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.configuration import ClusterPart, PosteriorConfig
from sbi_physics.run.findings import Findings
from sbi_physics.run.sources import Source
from sbi_physics.run.stages import Stage, Work
from sbi_physics.simulation.run import simulate
from sbi_physics.store.observation import read_data
from sbi_physics.store.simulations import Simulations
from sbi_physics.train.encoding import choose_encoder, first_row
from sbi_physics.train.pairs import observables

__all__ = [
    "SIMULATIONS_FILE",
    "Observed",
    "check_observed",
    "depends_of",
    "first_and_last",
    "observe_stage",
    "read_observed",
    "simulate_stage",
]

SIMULATIONS_FILE = "simulations.h5"
_OBSERVATION, _NAMED, _TRUTH = "observation.npy", "observation.npz", "truth.npy"


@dataclass(frozen=True)
class Observed:
    """What was observed.

    Attributes:
        x: an array, or a dictionary of such.
        truth: ``(P,)`` at which it was simulated; None where it is not known.
    """

    x: Any
    truth: np.ndarray[Any, Any] | None = None


def observe_stage(
    analysis: Analysis, source: Source, fits: Callable[[Observed, Simulations], None] | None = None
) -> Stage:
    """Read the observation, take that of the simulator, or simulate it at a truth.

    Args:
        analysis: its file.
        source: where simulations come from.
        fits: raises an error where a model of some simulations cannot take the observation.

    Raises:
        UsageError: there is none, or the truth is not one of the parameters.
    """
    part = cast(PosteriorConfig, analysis.config).observation
    if part.file is not None and part.truth is not None:
        raise analysis.error(["observation", "truth"], "expected a file or a truth, got both")
    settings: dict[str, Any] = {"observation": part.model_dump()}
    if part.file is not None:
        path = analysis.existing(part.file, "observation", "file")

        def read(work: Work) -> None:
            x = read_data(path)
            if fits is not None and source.simulations is None and (one := _one_simulation(analysis, source)):
                with analysis.blaming("observation", "file"):
                    fits(Observed(x), one)
            _keep(work, x, None)

        return Stage("observe", read, settings, files={path.name: path})
    simulator = source.simulator
    if simulator is None:
        raise analysis.error(["observation"], "expected a file, as there is no simulator")
    settings["simulator"] = source.settings["simulator"]
    if part.truth is None:
        observed = getattr(simulator, "observed", None)
        if observed is None:
            raise analysis.error(
                ["observation"], f"the simulator {settings['simulator']} carries no data; expected a file or a truth"
            )
        return Stage("observe", lambda work: _keep(work, observed, None), settings, files=source.code)
    truth = _truth(analysis, source, part.truth)

    def make(work: Work) -> None:
        x = simulator(truth.unsqueeze(0), seed=derive(work.seed, "observation"))
        rows = {name: value[0] for name, value in x.items()} if isinstance(x, dict) else x[0]
        _keep(work, rows, truth.numpy())

    return Stage("observe", make, settings, seed=analysis.seed("observe"), files=source.code)


def _one_simulation(analysis: Analysis, source: Source) -> Simulations | None:
    """One draw of the prior, to see what is simulated before all of it is; None where it failed: others may not."""
    simulator, compute = cast(Simulator, source.simulator), analysis.config.compute
    one = simulate(simulator, 1, seed=derive(analysis.seed("observe"), "one"), timeout=compute.timeout, progress=False)
    return one if one.counts()["ok"] else None


def _truth(analysis: Analysis, source: Source, given: dict[str, float]) -> torch.Tensor:
    names = source.parameters.names
    for name in given:
        if name not in names:
            raise analysis.error(["observation", "truth", name], f"expected one of {', '.join(names)}")
    if missing := [name for name in names if name not in given]:
        raise analysis.error(["observation", "truth"], f"expected a value of {missing[0]}")
    truth = torch.tensor([given[name] for name in names], dtype=torch.float32)
    with analysis.blaming("observation", "truth"):
        source.parameters.check_within(truth.unsqueeze(0), "truth")
    return truth


def _keep(work: Work, x: Any, truth: Any) -> None:
    if isinstance(x, dict):
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in x.items()}
        np.savez(work.folder / _NAMED, **arrays)
    else:
        np.save(work.folder / _OBSERVATION, np.asarray(x))
    if truth is not None:
        np.save(work.folder / _TRUTH, truth)


def read_observed(folder: Path) -> Observed:
    """What `observe_stage` kept."""
    truth = np.load(folder / _TRUTH) if (folder / _TRUTH).exists() else None
    if (folder / _NAMED).exists():
        with np.load(folder / _NAMED) as arrays:
            return Observed({name: arrays[name] for name in arrays.files}, truth)
    return Observed(np.load(folder / _OBSERVATION), truth)


def check_observed(observed: Observed, simulations: Simulations, embedding: Any, *, joined: bool, iid: bool) -> None:
    """Whether a model of these simulations can take the observation.

    Args:
        observed: what was observed.
        simulations: what the model is to be trained on; one row is read.
        embedding: of the estimator.
        joined: whether its posteriors join independent observations.
        iid: whether the observation holds several independent ones.

    Raises:
        ShapeError, NonFiniteError, UsageError: it cannot.
    """
    with seeded(0):
        encoder = choose_encoder(embedding, simulations, None)
    shape = tuple(observables(first_row(simulations), encoder, "").shape[1:])
    found = read_observation(observed.x, shape, iid=iid, device=torch.device("cpu"), joined=joined, encoder=encoder)
    if found.batched:
        raise ShapeError(
            f"expected one of shape {shape}, got {len(found.x)}; say observation.independent = true where they are "
            "independent observations of one theta, and leave out rows that are no data, as numbers of bins"
        )


def simulate_stage(analysis: Analysis, source: Source, name: str, n: int, what: str) -> Stage:
    """Simulate n rows from the prior into a file; an interrupted run goes on.

    Args:
        analysis: its file.
        source: with a simulator.
        name: of the stage.
        n: how many.
        what: what they are for, in words.
    """
    compute = analysis.config.compute
    cluster = compute.cluster.model_dump() if isinstance(compute.cluster, ClusterPart) else compute.cluster
    # Two stages of one seed must not see the same numbers.
    seed = analysis.seed(name)

    def make(work: Work) -> None:
        found = simulate(
            cast(Simulator, source.simulator),
            n,
            out=work.folder / SIMULATIONS_FILE,
            seed=derive(work.seed, name),
            workers=compute.workers,
            cluster=cluster,
            timeout=compute.timeout,
            progress=work.progress,
        )
        counts = found.counts()
        if not counts["ok"] and not getattr(source.simulator, "missing", False):
            reason = next(iter(found.errors.values()), "")
            raise SimulationError(f"none of {n} simulations succeeded{f': {reason}' if reason else ''}")
        findings = Findings(work.folder, name)
        findings.section("Simulations").table(
            ["simulations", "number", *counts], [[what, n, *counts.values()]], caption=f"Rows by status: {what}."
        )
        failed = n - counts["ok"]
        if failed:
            findings.verdict("warning", f"{failed} of {n} simulations {what} failed or are not finite.")
        findings.numbers(simulations=n, **counts)
        findings.write()

    settings = {**source.settings, "n": n, "timeout": compute.timeout}
    files = {**source.code, **depends_of(analysis)}
    return Stage(name, make, settings, seed=seed, files=files, scratch=("*.parts",))


def depends_of(analysis: Analysis) -> dict[str, Path]:
    """Files that the simulator reads, as the user lists them."""
    return {name: analysis.existing(name, "depends", i) for i, name in enumerate(analysis.config.depends)}


def first_and_last(simulations: Simulations, last: int) -> tuple[Simulations, Simulations]:
    """All but the last rows of a file to learn from, and the last rows to check with."""
    theta, parameters = simulations.theta, simulations.parameters
    x: Any = simulations.x
    cut = len(theta) - last
    named = isinstance(x, dict)
    first = {key: value[:cut] for key, value in x.items()} if named else x[:cut]
    rest = {key: value[cut:] for key, value in x.items()} if named else x[cut:]
    return (
        Simulations.from_arrays(theta[:cut], first, parameters),
        Simulations.from_arrays(theta[cut:], rest, parameters),
    )
