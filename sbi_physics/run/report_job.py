"""The last stage of every job: what all others found becomes ``results.json`` and ``report.html``."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import sbi_physics
from sbi_physics.core.resources import cores
from sbi_physics.report.results import ResultSection, RunResults, report_of, write_results
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.findings import read_findings
from sbi_physics.run.records import Record
from sbi_physics.run.stages import Stage, Work

__all__ = ["PAGE_FILE", "machine", "report_stage", "versions"]

PAGE_FILE = "report.html"
_PACKAGES = ("torch", "nflows", "numpy", "scipy", "scikit-learn", "emcee", "h5py", "matplotlib", "safetensors")
_ORDER = {"bad": 0, "warning": 1, "good": 2}


def report_stage(analysis: Analysis, before: list[Stage]) -> Stage:
    """The report of the stages before it."""
    config = analysis.config
    title = config.title or f"{config.job.capitalize()}: {analysis.path.stem}"

    def make(work: Work) -> None:
        found = {name: read_findings(folder) for name, folder in work.inputs.items()}
        verdicts = sorted((v for one in found.values() for v in one.verdicts), key=lambda v: _ORDER[v[0]])
        sections: dict[str, list[Any]] = {}
        for one in found.values():
            for section in one.sections:
                sections.setdefault(section.title, []).extend(section.items)
        results = RunResults(
            title=title,
            subtitle=config.subtitle,
            verdicts=verdicts,
            sections=[ResultSection(title=name, items=items) for name, items in sections.items()],
            provenance=_provenance(analysis, work),
        )
        write_results(results, work.folder)
        root = next(iter(work.inputs.values())).parent
        report_of(results, root).write(work.folder / PAGE_FILE)

    settings = {"title": title, "subtitle": config.subtitle, "overrides": analysis.overrides}
    return Stage(
        "report", make, settings, tuple(stage.name for stage in before), files={"analysis.toml": analysis.path}
    )


def _provenance(analysis: Analysis, work: Work) -> dict[str, Any]:
    records = {name: Record.read(folder) for name, folder in work.inputs.items()}
    files = {name: digest for record in records.values() for name, digest in record.identity["files"].items()}
    return {
        "job": analysis.config.job,
        # Stages without chance in them have none.
        "seeds": {n: r.identity["seed"] for n, r in records.items() if r.identity["seed"] == analysis.seed(n)},
        "seconds": {name: record.seconds for name, record in records.items()},
        "finished": {name: record.finished for name, record in records.items()},
        "versions": versions(),
        "machine": machine(),
        "files that were read (sha256)": files,
        "results (sha256)": {name: record.digest for name, record in records.items()},
        "overrides": {f"--set {i + 1}": override for i, override in enumerate(analysis.overrides)},
        "analysis": analysis.text,
    }


def versions() -> dict[str, str]:
    """Of this package, of Python and of what decides numbers."""
    found = {"sbi-physics": sbi_physics.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """On what it was computed."""
    import torch

    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "byte order": sys.byteorder,
    }
