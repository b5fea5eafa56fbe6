"""`sbi-physics doctor`: what this installation has, and how to get what it lacks."""

import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from sbi_physics import __version__
from sbi_physics.cli.common import JsonOption, Output, QuietOption

__all__ = ["doctor"]

REQUIRED = (
    *("torch", "nflows", "numpy", "scipy", "h5py", "emcee", "corner", "matplotlib", "astropy", "arviz-stats"),
    *("scikit-learn", "safetensors", "pydantic", "typer", "rich", "pooch", "lazy_loader"),
)
OPTIONAL = {
    **{"arviz": "arviz", "getdist": "getdist", "distributed": "cluster", "dask-jobqueue": "cluster"},
    **{"zuko": "zuko", "sbi": "bench"},
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
}


def doctor(
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler: compare its workers with this machine instead.")
    ] = None,
    simulator: Annotated[
        str | None, typer.Option(help="With --cluster: a simulator that all workers must be able to load.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report versions, devices, threads, the data cache, and what is missing and how to install it.

    With --cluster, the exit status is 1 where a worker differs from this machine or cannot load the simulator.
    """
    if cluster is not None:
        _examine(cluster, simulator, Output(json, quiet))
        return
    if simulator is not None:
        from sbi_physics.core.errors import UsageError

        raise UsageError("--simulator: tells what the workers of a --cluster must load")
    _report(Output(json, quiet))


def _examine(address: str, simulator: str | None, output: Output) -> None:
    from sbi_physics.cli.common import foreign_code
    from sbi_physics.simulation.cluster import connected
    from sbi_physics.simulation.examine import examine

    with foreign_code(), connected(address) as client:
        found = examine(client, simulator)
    threads = sum(found.workers.values())
    lines = [f"{address}: {len(found.workers)} workers, {threads} threads", *found.problems]
    if not found.problems:
        loads = f", and load {simulator}" if simulator else ""
        lines.append("all workers have the versions of this machine" + loads)
    output.result("\n".join(lines), cluster=address, workers=found.workers, problems=found.problems)
    if found.problems:
        sys.exit(1)


def _report(output: Output) -> None:
    import torch

    from sbi_physics.core.resources import cores
    from sbi_physics.models.native.compiler import find_compiler
    from sbi_physics.simulation.resolve import available_simulators
    from sbi_physics.store.datasets import available, cache_folder, location

    versions = {name: _version(name) for name in [*REQUIRED, *OPTIONAL]}
    missing = [name for name in REQUIRED if versions[name] is None]
    advice = ["pip install --upgrade sbi-physics"] if missing else []
    extras = sorted({OPTIONAL[name] for name in OPTIONAL if versions[name] is None})
    advice += [f"pip install 'sbi-physics[{extra}]'" for extra in extras]
    compiler = find_compiler()
    if compiler is None:
        advice.append("install a C compiler (gcc or clang): flows train several times faster on the CPU")
    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    values: dict[str, Any] = {
        "sbi_physics": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cuda_devices": devices,
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "compiler": None if compiler is None else compiler[1],
        "data_cache": str(cache_folder()),
        "data_sets": {d.name: location(d) for d in available()},
        "simulators": available_simulators(),
        "missing": missing,
        "optional_missing": [name for name in OPTIONAL if versions[name] is None],
        "advice": advice,
    }
    lines = [
        f"sbi-physics {__version__}, Python {values['python']}, {values['platform']}",
        "packages: " + ", ".join(f"{name} {version or '(missing)'}" for name, version in versions.items()),
        f"devices: cpu with {values['cores']} cores, {values['torch_threads']} torch threads; "
        + (", ".join(devices) or "no CUDA device"),
        f"C compiler: {values['compiler'] or 'none: flows run without compilation'}",
        f"data cache: {values['data_cache']}",
        "data sets: " + ", ".join(f"{name} ({where})" for name, where in values["data_sets"].items()),
        "simulators: " + ", ".join(values["simulators"]),
    ]
    lines.append("nothing required is missing" if not missing else "MISSING: " + ", ".join(missing))
    lines += [f"optional: {command}" for command in advice]
    output.result("\n".join(lines), **values)
    if missing:
        sys.exit(1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
