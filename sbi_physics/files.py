"""`save` and `load`: trained models as safetensors files that any later version can read, and no file runs code."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.anomaly.outlier import OutlierDetector
from sbi_physics.core.allocation import allocating_most
from sbi_physics.core.errors import BudgetError, SBIPhysicsError, StoreError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.models.flows.zuko_flow import as_flow
from sbi_physics.posterior.confidence import NeymanConstruction
from sbi_physics.posterior.files import KINDS, confidence_from, models_from, posterior_from
from sbi_physics.posterior.model_comparison import ModelPosterior
from sbi_physics.store.event_files import holds_events, read_events
from sbi_physics.store.layout import TEXT_AND_TABLES
from sbi_physics.store.models import read_model
from sbi_physics.store.samples import holds_samples, read_samples, write_samples
from sbi_physics.store.simulations import Simulations
from sbi_physics.surrogate.files import surrogate_from
from sbi_physics.surrogate.surrogate import Surrogate

__all__ = ["load", "save"]

# What building a model may allocate, all in all: its weights, their first values, and what those are made from.
_LEAST_BYTES = 1 << 28
_MOST_OF_FILE = 64
_HDF5 = (".h5", ".hdf5")


def save(obj: Any, path: str | Path) -> None:
    """Write a trained object to a file.

    Args:
        obj: a `Posterior`, a `Surrogate`, `Simulations`, fitted `ConfidenceSets`, `ModelComparison` or
            `OutlierDetector`, or anything else with a ``save(path)`` method; `Samples`, or a dictionary of them.
        path: the file.

    Raises:
        UsageError: the object cannot be saved.
        StoreError: the file cannot be written.
    """
    if isinstance(obj, Samples) or _are_samples(obj):
        write_samples(path, {"samples": obj} if isinstance(obj, Samples) else obj)
        return
    if not callable(getattr(obj, "save", None)):
        raise UsageError(
            f"save: expected a trained posterior, a surrogate, simulations or samples, got {type(obj).__name__}"
        )
    obj.save(path)


def _are_samples(obj: Any) -> bool:
    return isinstance(obj, Mapping) and bool(obj) and all(isinstance(one, Samples) for one in obj.values())


def load(
    path: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device = "auto",
    flow: Any = None,
    embedding: nn.Module | None = None,
    statistic: Callable[..., Any] | None = None,
) -> Any:
    """Read what `save` wrote, as the file says: a trained model, or `Samples`; or open files of simulations.

    Of samples the file may hold several sets: one is given as it is, more as a dictionary by name.  Events of an
    integral are a dictionary of tensors: ``points``, ``weights`` and, of a process, ``incoming`` and ``outgoing``.

    Args:
        path: the file; of simulations (``.h5``) also several, which are opened as one.
        device: where the model is to live.
        flow: a flow of nflows or zuko of the same structure, where a posterior was trained with one of the user's own.
        embedding: likewise an embedding network.
        statistic: likewise the statistic of confidence sets.

    Raises:
        StoreError: the file is missing, damaged, of another kind or of another version.
        UsageError: a network of the user's own is needed and was not handed in.
    """
    if not isinstance(path, str | Path):
        return Simulations.open_many(path)
    if Path(path).suffix.lower() in _HDF5:
        if holds_events(path):
            return read_events(path)[0]
        if not holds_samples(path):
            return Simulations.open(path)
        found = read_samples(path)
        return found if len(found) != 1 else next(iter(found.values()))
    if Path(path).suffix.lower() in TEXT_AND_TABLES:
        raise StoreError(
            f"{path}: expected a model (.safetensors), or simulations, draws or events (.h5); an observation is given "
            "to `sample` as an array, simulations of your own to sp.Simulations.from_arrays(theta, x, parameters)"
        )
    header, tensors = read_model(path)
    own = {"flow": as_flow(flow), "embedding": embedding, "statistic": statistic}
    own = {name: one for name, one in own.items() if one is not None}
    return _built(path, header, tensors, device, own)


def _built(
    path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor], device: Any, own: dict[str, Any]
) -> Any:
    """The model of the parts of a file; `own` holds what the user hands in."""
    kind = header["kind"]
    if kind not in _READERS:
        raise StoreError(f"{path}: expected a file of kind {' or '.join(map(repr, _READERS))}, got {kind!r}")
    read, takes = _READERS[kind]
    for name in own:
        if name not in takes:
            raise UsageError(f"{path}: {name}: a file of kind {kind!r} is built without one of your own")
    limit = _LEAST_BYTES + _MOST_OF_FILE * Path(path).stat().st_size
    try:
        with allocating_most(limit):
            return read(path, header, tensors, device=device, **{name: own.get(name) for name in takes})
    except (BudgetError, UsageError) as error:
        if isinstance(error, UsageError) and takes:
            raise
        raise StoreError(f"{path}: the header and the weights do not fit together: {error}") from error
    except SBIPhysicsError:
        raise
    except Exception as error:  # whatever a header from a stranger leads to, it is one line that names the file
        words = " ".join(str(error).split())[:300]
        raise StoreError(f"{path}: the header or the weights are damaged: {type(error).__name__}: {words}") from error


def _outliers(path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor], *, device: Any) -> OutlierDetector:
    try:
        return OutlierDetector.from_parts(header, tensors, device)
    except SBIPhysicsError as error:
        raise StoreError(f"{path}: the header and the weights do not fit together: {error}") from error


# How the file of each kind is read, and what of the user's own it may need.
_READERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    **dict.fromkeys(KINDS, (posterior_from, ("flow", "embedding"))),
    Surrogate.KIND: (surrogate_from, ()),
    NeymanConstruction.KIND: (confidence_from, ("flow", "embedding", "statistic")),
    ModelPosterior.KIND: (models_from, ("embedding",)),
    OutlierDetector.KIND: (_outliers, ()),
}
