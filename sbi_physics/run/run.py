"""`run_analysis`: a whole analysis from one file, made once, and again only where something changed.

A run directory holds everything that is needed to repeat it:

===================  =======================================================================================
``analysis.toml``    the file, as it was
``run.json``         versions, machine, seeds, overrides, checksums of inputs and results, by stage
``<stage>/``         what each stage made, with its record (`stages`)
``results.json``     verdicts, tables and figures (`report.results`)
``report.html``      the page
===================  =======================================================================================
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import StoreError
from sbi_physics.report.results import RESULTS_FILE
from sbi_physics.run.analysis import Analysis, read_analysis
from sbi_physics.run.findings import read_findings
from sbi_physics.run.report_job import PAGE_FILE, machine, report_stage, versions
from sbi_physics.run.stages import Engine, Stage, Step, locked
from sbi_physics.store.atomic import atomic_path

__all__ = ["RunSummary", "run_analysis", "stages_of"]

RUN_FILE, _COPY = "run.json", "analysis.toml"
_FORMAT, _VERSION = "sbi-physics run", 1


@dataclass(frozen=True)
class RunSummary:
    """What a run did, or would do.

    Attributes:
        path: the run directory.
        job: which of the four.
        steps: its stages.
        verdicts: kind and words; none in a plan.
        numbers: what each stage found, by its name; none in a plan.
    """

    path: Path
    job: str
    steps: list[Step]
    verdicts: list[tuple[str, str]]
    numbers: dict[str, dict[str, Any]]

    @property
    def todo(self) -> list[Step]:
        """The stages that were made, or would be."""
        return [step for step in self.steps if step.status != "done"]


def stages_of(analysis: Analysis) -> list[Stage]:
    """The stages of an analysis, its report at the end.

    Raises:
        UsageError: keys of the file do not fit one another, or what they name.
    """
    job = analysis.config.job
    # Deferred: a plan of an integral needs nothing of a search.
    if job == "posterior":
        from sbi_physics.run.posterior_job import posterior_stages as build
    elif job == "surrogate":
        from sbi_physics.run.surrogate_job import surrogate_stages as build
    elif job == "integrate":
        from sbi_physics.run.integrate_job import integrate_stages as build
    else:
        from sbi_physics.run.anomaly_job import anomaly_stages as build
    stages = build(analysis)
    names = [stage.name for stage in stages]
    for name in analysis.config.seeds:
        if name not in names:
            raise analysis.error(["seeds", name], f"expected one of the stages {', '.join(names)}")
    return [*stages, report_stage(analysis, stages)]


def run_analysis(
    path: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> RunSummary:
    """Run an analysis file, or what is missing or changed of it.

    Args:
        path: a TOML file (`docs/run.md`).
        out: the run directory; None takes `outputs.directory` of the file, or a folder beside it, ``<name>-run``.
        overrides: ``KEY=VALUE``, which come before what the file says.
        dry_run: whether to say only what would be done, and why.
        say: tells a human.
        progress: whether to show progress bars.

    Raises:
        UsageError: the file is wrong; the message names the file, the line and the key.
        StoreError: a file cannot be read or written, the directory holds something else, or another process works on
            it.
        SBIPhysicsError: whatever a stage raises.
    """
    analysis = read_analysis(path, overrides)
    stages = stages_of(analysis)
    folder = _directory(analysis, out)
    _check_directory(folder, analysis)
    engine = Engine(folder, stages, say=say, progress=progress)
    job = analysis.config.job
    if dry_run:
        return RunSummary(folder, job, engine.plan(), [], {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: the folder cannot be made: {error.strerror}") from error
    with locked(folder):
        _write(folder / _COPY, analysis.text)
        if not (folder / RUN_FILE).exists():
            _write(folder / RUN_FILE, _description(analysis, engine, []))
        steps = engine.run()
        for name in (RESULTS_FILE, PAGE_FILE):
            _write(folder / name, (folder / "report" / name).read_text(encoding="utf-8"))
        if any(step.status == "made" for step in steps):
            _write(folder / RUN_FILE, _description(analysis, engine, steps))
    found = {stage.name: read_findings(folder / stage.name) for stage in stages}
    verdicts = [verdict for one in found.values() for verdict in one.verdicts]
    numbers = {name: one.numbers for name, one in found.items() if one.numbers}
    return RunSummary(folder, job, steps, [(str(kind), text) for kind, text in verdicts], numbers)


def _directory(analysis: Analysis, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out)
    stated = analysis.config.outputs.directory
    return analysis.resolve(stated) if stated else analysis.path.parent / f"{analysis.path.stem}-run"


def _check_directory(folder: Path, analysis: Analysis) -> None:
    """Refuse a folder that holds something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder}: expected a folder for the run, it is a file")
    there = folder / RUN_FILE
    if not there.exists():
        if any(path.name not in (".lock", _COPY) for path in folder.iterdir()):
            raise StoreError(f"{folder}: is not empty, and no run directory; choose another with -o")
        return
    try:
        found = json.loads(there.read_text(encoding="utf-8"))
        job = found["job"] if found["format"] == _FORMAT else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{there}: cannot be read: {' '.join(str(error).split())}") from error
    if job != analysis.config.job:
        raise StoreError(f"{folder}: holds a run of the job {job!r}; choose another directory with -o")


def _description(analysis: Analysis, engine: Engine, steps: list[Step]) -> str:
    """What ``run.json`` says."""
    records = {step.name: engine.record(step.name) for step in steps}
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "job": analysis.config.job,
        "seed": analysis.config.seed,
        "overrides": list(analysis.overrides),
        "versions": versions(),
        "machine": machine(),
        "stages": {name: asdict(record) for name, record in records.items()},
    }
    return json.dumps(about, indent=1, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, unless it is like that already."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, UnicodeDecodeError):
        pass
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
