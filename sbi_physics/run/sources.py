"""Where the numbers of an analysis come from: simulators, files of simulations, tables; and which files those are."""

import ast
import inspect
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import Simulator
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.priors import parameters_of, with_prior
from sbi_physics.simulation.resolve import resolve_simulator, simulator_name
from sbi_physics.store.calochallenge import holds_showers, read_simulations
from sbi_physics.store.simulations import Simulations
from sbi_physics.store.tables import read_table

__all__ = ["Source", "code_files", "local_spec", "source_of"]

_USER = "sbi_physics_user_"
_FILES = (".toml", ".safetensors")


@dataclass(frozen=True)
class Source:
    """What the pairs of parameters and data of an analysis come from.

    Attributes:
        parameters: with the prior of the analysis.
        simulator: that makes more of them; None where there is none.
        simulations: pairs that are there already; None where they are to be simulated.
        files: files of the user that were read, by name.
        settings: what decides the numbers, in types that JSON knows.
    """

    parameters: Parameters
    simulator: Simulator | None
    simulations: Simulations | None
    files: dict[str, Path]
    settings: dict[str, Any]

    @property
    def code(self) -> dict[str, Path]:
        """The files of the simulator."""
        return {} if self.simulator is None else code_files(self.simulator)


def local_spec(analysis: Analysis, spec: str) -> str:
    """A name, or ``file.py:Name``, ``program.toml`` or a file of a model with the path that it stands for."""
    if spec.endswith(_FILES):
        return str(analysis.resolve(spec))
    path, colon, name = spec.rpartition(":")
    return f"{analysis.resolve(path)}:{name}" if colon and path.endswith(".py") else spec


def source_of(analysis: Analysis, voxels: int | None = None) -> Source:
    """Where the pairs of a posterior or a surrogate come from.

    Args:
        analysis: its file.
        voxels: how many a shower must have, in files of showers.

    Raises:
        UsageError, StoreError: there is no source, or two of them; or one cannot be read.
    """
    config: Any = analysis.config
    stated = [name for name in ("simulations", "table") if getattr(config, name) is not None]
    if len(stated) == 2:
        raise analysis.error(["table"], "expected simulations or a table, got both")
    if not stated and config.simulator is None:
        raise analysis.error(["simulator"], "expected a simulator, simulations or a table, got none of them")
    simulator = None
    if config.simulator is not None:
        with analysis.blaming("simulator"):
            simulator = resolve_simulator(local_spec(analysis, config.simulator))
    if not stated and simulator is not None:
        chosen = with_prior(analysis, simulator)
        return _made(chosen.parameters, chosen, None, {})
    if config.table is not None:
        return _of_table(analysis, simulator)
    path = analysis.existing(config.simulations, "simulations")
    with analysis.blaming("simulations"):
        found = read_simulations(path, voxels=voxels) if holds_showers(path) else Simulations.open(path)
    if config.prior:
        raise analysis.error(["prior"], "the simulations were drawn from a prior, which their file holds; leave it out")
    if simulator is not None and simulator.parameters.names != found.parameters.names:
        raise analysis.error(["simulator"], f"expected the parameters {', '.join(found.parameters.names)}")
    return _made(found.parameters, simulator, found, {path.name: path})


def _of_table(analysis: Analysis, simulator: Simulator | None) -> Source:
    config: Any = analysis.config
    part = config.table
    parameters = parameters_of(analysis, None if simulator is None else simulator.parameters)
    path = analysis.existing(part.file, "table", "file")
    if both := [name for name in part.outputs or [] if name in parameters.names]:
        raise analysis.error(["table", "outputs"], f"{both[0]} is a parameter, which the outputs must not tell")
    with analysis.blaming("table"):
        columns = None if part.outputs is None else [*parameters.names, *part.outputs]
        table = read_table(path, columns, names=part.names, where=part.where)
        outputs = part.outputs or [name for name in table.names if name not in parameters.names]
        if not outputs:
            raise UsageError(f"expected columns of data beside the parameters, got {', '.join(table.names)}")
        found = Simulations.from_arrays(table.stack(parameters.names), table.stack(outputs), parameters)
    source = _made(parameters, simulator, found, {path.name: path})
    return replace(source, settings={**source.settings, "outputs": outputs})


def _made(
    parameters: Parameters, simulator: Simulator | None, simulations: Simulations | None, files: dict[str, Path]
) -> Source:
    settings = {
        "simulator": None if simulator is None else simulator_name(simulator),
        "parameters": parameters.to_dict(),
    }
    return Source(parameters, simulator, simulations, files, settings)


def code_files(target: Any, spec: str = "") -> dict[str, Path]:
    """The Python file that an object comes from and, of a user, the files beside it that it imports, by name.

    Args:
        target: what was loaded.
        spec: the name that it was loaded by; ``path/file.py:Name`` says the file.
    """
    stated, colon, _ = spec.rpartition(":")
    if colon and stated.endswith(".py"):
        return _beside(Path(stated).resolve())
    inner = getattr(target, "simulator", target)
    owner = inner if inspect.isfunction(inner) or inspect.isclass(inner) else type(inner)
    module = sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return {}
    path = Path(file).resolve()
    return _beside(path) if owner.__module__.startswith(_USER) else {path.name: path}


def _beside(path: Path) -> dict[str, Path]:
    """A file of the user, and the files of its folder that it imports, or that those import."""
    found: dict[str, Path] = {}
    todo = [path]
    while todo:
        file = todo.pop()
        name = file.relative_to(path.parent).as_posix()
        if name in found:
            continue
        found[name] = file
        for module in _imports(file):
            inner = path.parent.joinpath(*module.split("."))
            todo += [one for one in (inner.with_suffix(".py"), inner / "__init__.py") if one.is_file()]
    return dict(sorted(found.items()))


def _imports(file: Path) -> set[str]:
    """The modules that a Python file may import by name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    # A package is loaded before what is in it.
    return names | {name.rsplit(".", k)[0] for name in names for k in range(1, name.count(".") + 1)}
