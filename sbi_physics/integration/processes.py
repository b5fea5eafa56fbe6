"""From what the user names to an integrand.

A process can be given as a `Process`, as the name of an entry point of the group ``sbi_physics.processes`` (which any
package can add to), or as ``path/file.py:Name``.  What stands there may be the process, or a function without arguments
that makes one; a file may also hold any integrand, an object with `dims` that can be called.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import SBIPhysicsError, UsageError
from sbi_physics.core.processes import Process
from sbi_physics.core.protocols import Integrand
from sbi_physics.integration.cross_section import CrossSection
from sbi_physics.simulation.resolve import load_file

__all__ = ["available_processes", "resolve_integrand"]

_GROUP = "sbi_physics.processes"


def available_processes() -> list[str]:
    """The names that installed packages give to their processes."""
    return sorted({entry.name for entry in entry_points(group=_GROUP)})


def resolve_integrand(spec: Any, *, dims: int | None = None) -> Integrand:
    """Return the integrand that `spec` names.

    Args:
        spec: an integrand, a `Process`, the name of an installed one, or ``"path/file.py:Name"``.
        dims: of a plain function of points ``(n, dims)``; None where the integrand knows it.

    Raises:
        UsageError: there is nothing of that name, it cannot be loaded, or it is no integrand.
    """
    if not isinstance(spec, str):
        return _integrand(spec, f"a {type(spec).__name__}", dims)
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), name, spec, dims)
    entries = [entry for entry in entry_points(group=_GROUP) if entry.name == spec]
    if not entries:
        names = ", ".join(available_processes()) or "none installed"
        raise UsageError(f"integrand: expected a name ({names}) or path/file.py:name, got {spec!r}")
    return _made(entries[0].load, spec, dims)


def _from_file(path: Path, name: str, spec: str, dims: int | None) -> Integrand:
    if not path.is_file():
        raise UsageError(f"integrand: no such file: {path}")
    module = load_file(path, f"sbi_physics_user_integrand_{path.stem}")
    if not hasattr(module, name):
        own = [key for key, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        raise UsageError(f"integrand: {path} has no {name!r}; it defines: {', '.join(sorted(own)) or 'nothing'}")
    return _made(lambda: getattr(module, name), spec, dims)


def _made(load: Callable[[], Any], spec: str, dims: int | None) -> Integrand:
    """The integrand itself, from an object or from a function that makes one."""
    try:
        target = load()
        if callable(target) and dims is None and not hasattr(target, "dims"):
            if isfunction(target) and _takes_points(target):
                raise UsageError(f"integrand {spec}: a plain function needs --dims N, the number of its variables")
            target = target()
    except SBIPhysicsError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())
        raise UsageError(f"integrand {spec}: cannot be made: {type(error).__name__}: {detail}") from error
    return _integrand(target, spec, dims)


def _takes_points(function: Callable[..., Any]) -> bool:
    """Whether it cannot be called without arguments."""
    try:
        signature(function).bind()
    except TypeError:
        return True
    return False


class _Function:
    """A plain function with its number of dimensions."""

    def __init__(self, function: Callable[[Any], Any], dims: int) -> None:
        self._function, self.dims = function, dims

    def __call__(self, u: Tensor) -> Tensor:
        value: Tensor = self._function(u)
        return value


def _integrand(target: Any, what: str, dims: int | None) -> Integrand:
    if isinstance(target, Process):
        return CrossSection.of(target)
    if callable(target) and dims is not None and not hasattr(target, "dims"):
        return _Function(target, positive_integer(dims, "dims"))
    if callable(target) and isinstance(getattr(target, "dims", None), int):
        checked: Integrand = target
        return checked
    raise UsageError(
        f"integrand: expected a Process, or an object with dims that can be called, got {what}; a plain function of "
        "points (n, dims) needs dims beside it"
    )
