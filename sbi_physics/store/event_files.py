"""Events of an integrand: written to HDF5, and to Les Houches event files through pylhe.

HDF5: `/points` ``(n, D)``, `/weights` ``(n,)`` and, for events of a process, `/incoming` and `/outgoing` momenta
``(n, k, 4)`` in GeV, (E, p_x, p_y, p_z); what is known of the integral as attributes.  Les Houches event files: Alwall
et al. 2007, hep-ph/0609017; the mean weight of their events is the cross section in picobarn (strategy -4).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, same_length
from sbi_physics.core.errors import ShapeError, StoreError, UsageError
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.layout import LIBVER, opened, read_dataset, write_text

__all__ = ["EVENTS_VERSION", "holds_events", "read_events", "write_events", "write_lhe"]

EVENTS_VERSION = 1
_INCOMING, _OUTGOING = -1, 1
_MEAN_IS_CROSS_SECTION = -4


def write_events(path: str | Path, arrays: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> None:
    """Write arrays ``(n, ...)`` of events with what is known of them.

    Raises:
        ShapeError: the arrays have different lengths.
        StoreError: nothing can be written there.
    """
    same_length(**arrays)
    with atomic_path(Path(path)) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
        file.attrs["sbi_physics_events"] = EVENTS_VERSION
        for name, value in attributes.items():
            if isinstance(value, str):
                write_text(file, name, value)
            else:
                file.attrs[name] = value
        for name, array in arrays.items():
            file.create_dataset(name, data=array.numpy(), compression=1, shuffle=True, fletcher32=True)


def holds_events(path: str | Path) -> bool:
    """Whether a file says that it holds events of an integral; what is no HDF5 file does not."""
    try:
        with opened(Path(path)) as file:
            return "sbi_physics_events" in file.attrs
    except StoreError:
        return False


def read_events(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_events` wrote: the arrays, and the attributes.

    Raises:
        StoreError: the file is missing, damaged, of a newer version, or holds no events.
    """
    with opened(Path(path), "events of an integral") as file:
        version = file.attrs.get("sbi_physics_events")
        if version is None:
            raise StoreError(f"{path}: expected events of an integral, got another HDF5 file")
        if int(version) > EVENTS_VERSION:
            raise StoreError(f"{path}: expected version {EVENTS_VERSION} or older, got {int(version)}")
        arrays = {name: torch.as_tensor(read_dataset(file, name)) for name in file}
        attributes = {name: _plain(value) for name, value in file.attrs.items() if name != "sbi_physics_events"}
    return arrays, attributes


def _plain(value: Any) -> Any:
    return bytes(value).decode(errors="replace") if isinstance(value, bytes) else value


def write_lhe(
    path: str | Path,
    incoming: Tensor,
    outgoing: Tensor,
    weights: Tensor,
    *,
    incoming_ids: Sequence[int],
    outgoing_ids: Sequence[int],
    cross_section: float,
    error: float,
) -> None:
    """Write events as a Les Houches event file (extra `hep`).

    Args:
        path: where.
        incoming: momenta ``(n, 1 or 2, 4)`` in GeV, (E, p_x, p_y, p_z).
        outgoing: momenta ``(n, k, 4)``.
        weights: ``(n,)``, of which 1 is an unweighted event.
        incoming_ids: numbers of the particles that come in, by the Particle Data Group.
        outgoing_ids: of those that go out.
        cross_section: in picobarn.
        error: of it.

    Raises:
        ShapeError: momenta, weights and particle numbers do not fit together.
        StoreError: nothing can be written there.
        UsageError: pylhe is not installed.
    """
    incoming, outgoing = as_tensor(incoming, "incoming", dtype=None), as_tensor(outgoing, "outgoing", dtype=None)
    batch_of(incoming, (len(incoming_ids), 4), "incoming")
    batch_of(outgoing, (len(outgoing_ids), 4), "outgoing")
    same_length(incoming=incoming, outgoing=outgoing, weights=weights)
    if weights.ndim != 1:
        raise ShapeError(f"weights: expected shape (n,), got {tuple(weights.shape)}")
    try:
        import pylhe
    except ImportError as missing:
        raise UsageError("write_lhe: expected the package pylhe: pip install 'sbi_physics[hep]'") from missing
    first, second = [*incoming_ids, 0][:2]
    energy, other = [*incoming[0, :, 0].tolist(), 0.0][:2]
    process = pylhe.LHEProcInfo(xSection=cross_section, error=error, unitWeight=cross_section, procId=1)
    info = pylhe.LHEInitInfo(first, second, energy, other, 0, 0, 0, 0, _MEAN_IS_CROSS_SECTION, 1)
    scaled = weights * (cross_section * len(weights) / float(weights.sum()))

    def events() -> Iterator[Any]:
        for start, end, weight in zip(incoming.tolist(), outgoing.tolist(), scaled.tolist(), strict=True):
            particles = [_particle(pylhe, i, _INCOMING, p, (0, 0)) for i, p in zip(incoming_ids, start, strict=True)]
            mothers = (1, len(incoming_ids))
            particles += [_particle(pylhe, i, _OUTGOING, p, mothers) for i, p in zip(outgoing_ids, end, strict=True)]
            head = pylhe.LHEEventInfo(len(particles), 1, weight, -1.0, -1.0, -1.0)
            yield pylhe.LHEEvent(head, particles)

    file = pylhe.LHEFile(init=pylhe.LHEInit(info, [process], []), events=events(), version="3.0")
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(file.tolhe())


def _particle(pylhe: Any, number: int, status: int, momentum: list[float], mothers: tuple[int, int]) -> Any:
    energy, px, py, pz = momentum
    mass = max(energy**2 - px**2 - py**2 - pz**2, 0.0) ** 0.5
    return pylhe.LHEParticle(number, status, *mothers, 0, 0, px, py, pz, energy, mass, 0.0, 9.0)
