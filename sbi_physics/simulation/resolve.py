"""From what the user names to a simulator.

A simulator can be given as an object, as the name of an entry point of the group ``sbi_physics.simulators`` (which
any package can add to), as ``path/file.toml`` that describes a program (see `executable`), as
``path/surrogate.safetensors`` or another file that an entry point of the group ``sbi_physics.simulator_files`` reads,
or as ``path/file.py:Name``.  What stands there may be the simulator, a class of simulators, or a function without
arguments that makes one.  A Python file is loaded as a module with a name of its own, made from its
path, which worker processes use to load it again.
"""

import hashlib
import importlib.util
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from sbi_physics.core.errors import SBIPhysicsError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import Simulator
from sbi_physics.simulation.executable import ExecutableSimulator

__all__ = ["available_simulators", "load_file", "resolve_simulator", "simulator_name", "user_files"]

_GROUP = "sbi_physics.simulators"
_FILES = "sbi_physics.simulator_files"
_PREFIX = "sbi_physics_user_"


def available_simulators() -> list[str]:
    """The names that installed packages give to their simulators."""
    return sorted({entry.name for entry in entry_points(group=_GROUP)})


def resolve_simulator(spec: Any) -> Simulator:
    """Return the simulator that `spec` names.

    Args:
        spec: a simulator, the name of an installed one, ``"path/file.py:Name"``, ``"path/program.toml"`` or
            ``"path/surrogate.safetensors"``.

    Raises:
        UsageError: there is nothing of that name, it cannot be loaded, or it is no simulator.
    """
    if not isinstance(spec, str):
        return _checked(
            spec, f"a {type(spec).__name__}" if not isinstance(spec, type) else f"the class {spec.__name__}"
        )
    if spec.endswith(".toml"):
        return ExecutableSimulator(spec)
    for entry in entry_points(group=_FILES):
        if spec.endswith(f".{entry.name}"):
            return _checked(_loaded(entry)(spec), spec)
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        module = load_file(Path(path), _module_name(Path(path)))
        return _from_module(module, path, name, spec)
    entries = [entry for entry in entry_points(group=_GROUP) if entry.name == spec]
    if not entries:
        names = ", ".join(available_simulators()) or "none installed"
        raise UsageError(
            f"simulator: expected a name ({names}), path/file.py:Class, path/program.toml or "
            f"path/surrogate.safetensors, got {spec!r}"
        )
    return _made(_loaded(entries[0]), spec)


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        raise UsageError(f"simulator {entry.name}: cannot be loaded: {type(error).__name__}: {error}") from error


def _from_module(module: ModuleType, path: str, name: str, spec: str) -> Simulator:
    if not hasattr(module, name):
        found = [
            k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and k[0] != "_"
        ]
        raise UsageError(f"simulator: {path} has no {name!r}; it defines: {', '.join(sorted(found)) or 'nothing'}")
    return _made(getattr(module, name), spec)


def _made(target: Any, spec: str) -> Simulator:
    """The simulator itself, from an instance, a class or a function that makes one."""
    if isinstance(target, type) or (callable(target) and not hasattr(target, "parameters")):
        if inspect.isfunction(target) and (needed := _needed(target)):
            raise UsageError(
                f"simulator {spec}: {target.__name__} needs {', '.join(needed)}; expected a function without arguments "
                "that makes a simulator, or one of (theta, seed) with an attribute 'parameters' of type "
                "sbi_physics.Parameters"
            )
        try:
            target = target()
        except SBIPhysicsError:
            raise
        except Exception as error:
            detail = " ".join(str(error).split())
            raise UsageError(f"simulator {spec}: cannot be made: {type(error).__name__}: {detail}") from error
    return _checked(target, spec)


def _needed(function: Any) -> list[str]:
    """The arguments without which a function cannot be called."""
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.default is one.empty and one.kind not in fixed]


def _checked(simulator: Any, what: str) -> Simulator:
    if isinstance(simulator, type) or not callable(simulator):
        raise UsageError(f"simulator: expected an object that can be called with (theta, seed=...), got {what}")
    if not isinstance(getattr(simulator, "parameters", None), Parameters):
        raise UsageError(f"simulator: {what} needs an attribute 'parameters' of type sbi_physics.Parameters")
    checked: Simulator = simulator
    return checked


def simulator_name(simulator: Any) -> str:
    """A name that is the same wherever the simulator is loaded: its attribute ``name``, or its module and class."""
    name = getattr(simulator, "name", None)
    if isinstance(name, str) and name:
        return name
    owner = simulator if hasattr(simulator, "__qualname__") else type(simulator)
    module = sys.modules.get(owner.__module__)
    place = Path(str(module.__file__)).name if owner.__module__.startswith(_PREFIX) and module else owner.__module__
    return f"{place}:{owner.__qualname__}"


def _module_name(path: Path) -> str:
    return _PREFIX + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def user_files() -> dict[str, str]:
    """The files loaded so far: path by module name."""
    return {name: str(module.__file__) for name, module in sys.modules.items() if name.startswith(_PREFIX)}


def load_file(path: Path, name: str) -> ModuleType:
    """Load a Python file as the module `name`; modules that stand beside it can be imported while it loads.

    Raises:
        UsageError: there is no such file, or running it raised.
    """
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"simulator: no such file: {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"simulator: not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        detail = " ".join(str(error).split())
        raise UsageError(f"simulator: {path} cannot be loaded: {type(error).__name__}: {detail}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
