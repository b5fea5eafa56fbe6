"""Model files: safetensors, with a versioned JSON header among its metadata.

A safetensors file is a table of tensors and a table of texts; opening one runs no code, so that a file from a
stranger is safe to open.  One text, ``header``, is JSON: ``format``, ``schema``, ``kind`` and whatever the kind of
model needs to be built again (architecture, scaling, prior, names, units, provenance).  ``schema`` counts versions: a
newer file than the package knows is refused, never half understood.  ``sha256`` in it is the checksum of all else
in the header and of all tensors, so that a flipped bit is an error and not another model; files of schema 1 have none.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store.atomic import atomic_path

__all__ = ["FORMAT", "SCHEMA", "read_model", "write_model"]

FORMAT = "sbi_physics.model"
SCHEMA = 2
_CHECKED_SINCE = 2
_TRIES = 5


def write_model(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a model file, whole or not at all; the same content gives the same bytes.

    Args:
        path: file to write.
        tensors: the tensors of the model by name, on any device; views of one another are stored apart.
        header: JSON types only; must have ``kind``; ``format`` and ``schema`` are added.

    Raises:
        UsageError: the header has no kind, or holds what JSON does not know (NaN and infinity among it).
        StoreError: the file cannot be written.
    """
    path = Path(path)
    kind = header.get("kind")
    if not (isinstance(kind, str) and kind):
        raise UsageError(f"header: expected a kind, got {kind!r}")
    try:
        full = {**header, "format": FORMAT, "schema": SCHEMA}
        json.dumps(full, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"header: expected JSON types and finite numbers: {error}") from error
    # A copy of each: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(tensors.items())}
    with atomic_path(path) as temporary:
        try:
            full["sha256"] = _digest(full, own)
            # One text: safetensors writes several in any order.
            save_file(own, temporary, metadata={"header": json.dumps(full, sort_keys=True)})
            # It makes files that nobody else may read.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        except SafetensorError as error:
            raise StoreError(f"{path}: cannot be written: {error}") from error


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model file: its header, and its tensors on the CPU.

    Raises:
        StoreError: the file is missing, empty, damaged, of another format or of a newer version.
    """
    path = Path(path)
    for left in reversed(range(_TRIES)):
        before = _state(path)
        try:
            return _read(path)
        except StoreError:
            # Tensors are read after the header: another process may have put a newer file there in between.
            if not left or _state(path) == before:
                raise
    raise StoreError(f"{path}: is being written all the time")


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when another file takes the place of one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise StoreError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        if not path.stat().st_size:
            raise StoreError(f"{path}: the file is empty; expected a model file ({FORMAT})")
        with safe_open(path, framework="pt") as file:
            header = _checked_header(path, (file.metadata() or {}).get("header"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        found = header.pop("sha256", None)
        if header["schema"] >= _CHECKED_SINCE and found != _digest(header, tensors):
            raise StoreError(f"{path}: the file is damaged: its content does not match its checksum")
        return header, tensors
    except StoreError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        detail = " ".join(str(error).split())
        raise StoreError(f"{path}: damaged, or not a safetensors file; expected {FORMAT}: {detail}") from error


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_header(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise StoreError(f"{path}: a safetensors file without the header of a model; expected {FORMAT}")
    try:
        header = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise StoreError(f"{path}: expected a header of keys and values, got {type(header).__name__}")
    if header.get("format") != FORMAT:
        raise StoreError(f"{path}: expected format {FORMAT!r}, got {header.get('format')!r}")
    schema = header.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise StoreError(f"{path}: expected a schema number, got {schema!r}")
    if schema > SCHEMA:
        raise StoreError(f"{path}: has schema {schema}, this version reads up to {SCHEMA}; upgrade sbi-physics")
    if not isinstance(header.get("kind"), str):
        raise StoreError(f"{path}: expected a kind of model, got {header.get('kind')!r}")
    return header


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
