"""How simulations lie in an HDF5 file.

=================  ===========================================================================================
``/theta``         float32 ``(n, P)``
``/x/<name>``      float32 ``(n, *shape)``; NaN in rows that gave nothing; the name is "x" for a plain tensor
``/status``        uint8 ``(n,)``; the codes stand in its attributes
``/seed``          uint64 ``(n,)``: the seed of the call that made the row, shared by the rows of a block
``/error/row``     int64 ``(k,)`` and ``/error/text`` ``(k,)``: what went wrong, for the rows that have a text
attributes         ``format``, ``schema``, ``header`` (JSON: parameters, simulator, seed, ...) and ``header_sha256``
=================  ===========================================================================================

Every data set carries checksums (Fletcher-32), and so does the structure around them (the format of HDF5 1.10), so
that a flipped bit is an error and not a number.  Text has a fixed length: that of variable length lies outside all
checksums (schema 1 had such attributes, and is read).  Nothing in the file depends on the time or the place it was
made: the same simulations are the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import SBIPhysicsError, StoreError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.store.careful import careful_file
from sbi_physics.store.heaps import check_heaps

__all__ = [
    "FORMAT",
    "LIBVER",
    "SCHEMA",
    "TEXT_AND_TABLES",
    "Header",
    "Rows",
    "Status",
    "opened",
    "read_errors",
    "read_header",
    "read_rows",
    "read_text",
    "write",
    "write_text",
]

FORMAT = "sbi_physics.simulations"
SCHEMA = 2
LIBVER = ("v110", "v110")
"""The format of HDF5 1.10, in which the structure around the data carries checksums, too."""

_TEXT = h5py.string_dtype("utf-8", 300)
_OF_TABLES = "; of arrays of your own sp.Simulations.from_arrays(theta, x, parameters).save('own.h5') makes one"
TEXT_AND_TABLES = (".csv", ".tsv", ".txt", ".dat", ".npy", ".npz", ".parquet", ".root")
_EXPECTED = f"simulations ({FORMAT})"
_CHUNK_BYTES = 2**18
_SLAB_BYTES = 2**21
_LARGEST_CHUNK = 2**30
# Deflate makes at most 1032 bytes of one.
_MOST_SQUEEZED = 1100


class Status(IntEnum):
    """What became of a row."""

    OK = 0
    FAILED = 1
    NONFINITE = 2
    TIMEOUT = 3
    CRASHED = 4


@dataclass(frozen=True)
class Header:
    """What made a set of simulations.

    Attributes:
        parameters: names, units, bounds and prior of the columns of theta.
        simulator: name of the simulator, empty where unknown.
        seed: of the run.
        block_size: rows in a block; the last block may have fewer.
        theta: ``"prior"`` where theta was drawn from the prior, else where it came from.
        named: whether the simulator returns a dictionary of named outputs.
        shapes: shape of one row of each output.
    """

    parameters: Parameters
    simulator: str = ""
    seed: int = 0
    block_size: int = 1000
    theta: str = "given"
    named: bool = False
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (0,)})

    def __post_init__(self) -> None:
        for name in self.shapes:
            if not name or "/" in name or name.startswith(".") or "\0" in name:
                raise UsageError(f"x: expected names of outputs without slash or leading dot, got {name!r}")
        if not self.named and set(self.shapes) != {"x"}:
            raise UsageError(f"x: an output without a name is called 'x', got {', '.join(self.shapes)}")

    def to_json(self) -> str:
        """The header as JSON with sorted keys."""
        fields = {**self.__dict__, "parameters": self.parameters.to_dict()}
        return json.dumps(fields, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        shapes = {str(k): tuple(int(s) for s in v) for k, v in fields["shapes"].items()}
        return cls(
            Parameters.from_dict(fields["parameters"]),
            str(fields["simulator"]),
            int(fields["seed"]),
            int(fields["block_size"]),
            str(fields["theta"]),
            bool(fields["named"]),
            shapes,
        )


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a run, as numpy arrays.

    Attributes:
        theta: float32 ``(n, P)``.
        x: float32 ``(n, *shape)`` for each output; empty where no row gave any.
        status: uint8 ``(n,)``, codes of `Status`.
        seed: uint64 ``(n,)``.
        errors: texts by row, counted from the first of these rows.
    """

    theta: NDArray[np.float32]
    x: dict[str, NDArray[np.float32]]
    status: NDArray[np.uint8]
    seed: NDArray[np.uint64]
    errors: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.theta)


def write(path: Path, header: Header, n: int, blocks: Iterable[Rows]) -> None:
    """Write a file, block by block; `path` is a temporary name (see `atomic_path`).

    Args:
        path: file to create.
        header: what made the rows.
        n: number of rows in all.
        blocks: the rows in order; each must have the outputs of the header.
    """
    width = len(header.parameters)
    with careful_file(path) as file:
        text = header.to_json()
        file.attrs.update(schema=SCHEMA)
        for key, value in (("format", FORMAT), ("header", text), ("header_sha256", _digest(text))):
            write_text(file, key, value)
        theta = _create(file, "theta", n, (width,), "f4")
        outputs = {name: _create(file, f"x/{name}", n, shape, "f4") for name, shape in header.shapes.items()}
        status, seed = _create(file, "status", n, (), "u1"), _create(file, "seed", n, (), "u8")
        status.attrs.update({code.name.lower(): int(code) for code in Status})
        errors = file.create_group("error")
        for name, dtype in (("row", np.dtype("i8")), ("text", _TEXT)):
            errors.create_dataset(
                name, (0,), dtype, maxshape=(None,), chunks=(256,), compression=1, shuffle=True, fletcher32=True
            )
        start = 0
        for block in _slabs(blocks):
            rows = slice(start, start + len(block))
            theta[rows], status[rows], seed[rows] = block.theta, block.status, block.seed
            for name, output in outputs.items():
                if output.size:
                    output[rows] = block.x[name]
            _append_errors(errors, {start + row: message for row, message in sorted(block.errors.items())})
            start += len(block)
        if start != n:
            raise StoreError(f"{path}: expected {n} rows, got {start}")


def _slabs(blocks: Iterable[Rows]) -> Iterator[Rows]:
    """The same rows in pieces of some megabytes: HDF5 is at its best with whole chunks, and many of them."""
    held: list[Rows] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += block.theta.nbytes + sum(values.nbytes for values in block.x.values())
        if size >= _SLAB_BYTES:
            yield joined(held)
            held, size = [], 0
    if held:
        yield joined(held)


def rows_of_a_slab(header: Header) -> int:
    """How many rows are written at once, a multiple of the rows in a block: whoever has them needs not join them."""
    numbers = len(header.parameters) + sum(int(np.prod(shape, dtype=np.int64)) for shape in header.shapes.values())
    return header.block_size * -(-_SLAB_BYTES // max(1, 4 * numbers * header.block_size))


def joined(blocks: Sequence[Rows]) -> Rows:
    """Rows one after the other."""
    if len(blocks) == 1:
        return blocks[0]
    starts = np.cumsum([0, *map(len, blocks)])
    return Rows(
        np.concatenate([block.theta for block in blocks]),
        {name: np.concatenate([block.x[name] for block in blocks]) for name in blocks[0].x},
        np.concatenate([block.status for block in blocks]),
        np.concatenate([block.seed for block in blocks]),
        {
            int(start) + row: text
            for start, block in zip(starts, blocks, strict=False)
            for row, text in block.errors.items()
        },
    )


def _create(file: h5py.File, name: str, n: int, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    full = (n, *shape)
    if not all(full):
        return file.create_dataset(name, full, dtype)
    row_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    chunk = (min(n, max(1, _CHUNK_BYTES // row_bytes)), *shape)
    return file.create_dataset(name, full, dtype, chunks=chunk, fletcher32=True)


def create_checked(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Write a whole array as a data set with checksums."""
    if values.ndim and values.size:
        group.create_dataset(name, data=values, chunks=True, fletcher32=True)
    else:
        group.create_dataset(name, data=values)


def write_text(owner: h5py.Group, key: str, text: str) -> None:
    """Write a text as an attribute of fixed length, which HDF5 keeps under a checksum."""
    owner.attrs.create(key, text.encode(), dtype=h5py.string_dtype("utf-8", max(1, len(text.encode()))))


def read_text(owner: h5py.Group, key: str) -> str | None:
    """A text among the attributes, of fixed or variable length; None where there is none."""
    text = owner.attrs.get(key)
    if isinstance(text, bytes | np.bytes_):
        return bytes(text).decode(errors="replace")
    return text if isinstance(text, str) else None


def find_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """A data set of the file itself, and no larger than the file can fill.

    Raises:
        StoreError: there is none; it is a link to something else, or lies in other files; or its header promises more
            than is there, which reading it would first make room for.
    """
    path, found = group.file.filename, group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise StoreError(f"{path}: the data set /{name} is missing")
    parts = name.split("/")
    links = [group.get("/".join(parts[: i + 1]), getlink=True) for i in range(len(parts))]
    if found.external or found.is_virtual or not all(isinstance(link, h5py.HardLink) for link in links):
        raise StoreError(f"{path}: /{name}: expected numbers in the file itself, got a link to others")
    if found.shape is None or found.dtype.hasobject:
        raise StoreError(f"{path}: /{name}: expected an array of numbers, got {found.dtype} of shape {found.shape}")
    squeezed = _MOST_SQUEEZED if found.compression else 1
    chunk = int(np.prod(found.chunks, dtype=np.float64)) * found.dtype.itemsize if found.chunks else 0
    if found.size * found.dtype.itemsize > squeezed * found.id.get_storage_size() or chunk > _LARGEST_CHUNK:
        raise StoreError(f"{path}: the file is damaged: /{name}: more numbers are promised than are there")
    return found


def read_dataset(group: h5py.Group, name: str) -> NDArray[Any]:
    """Read a whole array of numbers.

    Raises:
        StoreError: there is something else.
    """
    found = find_dataset(group, name)
    if found.dtype.kind not in "fiub":
        raise StoreError(f"{group.file.filename}: /{name}: expected numbers, got {found.dtype}")
    return np.asarray(found[()])


def _append_errors(group: h5py.Group, errors: dict[int, str]) -> None:
    if not errors:
        return
    rows, text = group["row"], group["text"]
    old, new = len(rows), len(rows) + len(errors)
    rows.resize((new,))
    text.resize((new,))
    rows[old:new] = np.fromiter(errors, dtype=np.int64)
    # A character of several bytes may straddle the end of the field: leave it out whole.
    cut = [m.encode()[:300].decode(errors="ignore").encode() for m in errors.values()]
    text[old:new] = np.array(cut, dtype=_TEXT)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def opened(path: Path, expected: str = _EXPECTED) -> Iterator[h5py.File]:
    """Open a file for reading; whatever HDF5 finds wrong, also in the block, is one `StoreError` naming the file.

    Args:
        path: the file.
        expected: what it should hold, for the message where it is no HDF5 file.
    """
    if not path.is_file():
        raise StoreError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        if not path.stat().st_size:
            raise StoreError(f"{path}: the file is empty; expected {expected}")
        if not h5py.is_hdf5(path):
            hint = _OF_TABLES if expected == _EXPECTED and path.suffix.lower() in TEXT_AND_TABLES else ""
            raise StoreError(f"{path}: not an HDF5 file; expected {expected}{hint}")
        check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except SBIPhysicsError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise StoreError(f"{path}: the file is damaged: {' '.join(str(error).split())}") from error


def read_header(file: h5py.File) -> tuple[Header, int]:
    """Check the structure of an opened file; return its header and its number of rows.

    Raises:
        StoreError: another format, a newer schema, a missing or misshapen data set, an unreadable header.
    """
    path = file.filename
    _check_format(file)
    header = _header_of(file)
    width = len(header.parameters)
    for name in ("theta", "status", "seed", "error/row", "error/text", *(f"x/{x}" for x in header.shapes)):
        find_dataset(file, name)
    if file["theta"].ndim != 2:
        raise StoreError(f"{path}: /theta: expected shape (n, {width}), got {file['theta'].shape}")
    n = len(file["theta"])
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "theta": ((n, width), "f4"),
        "status": ((n,), "u1"),
        "seed": ((n,), "u8"),
        **{f"x/{name}": ((n, *shape), "f4") for name, shape in header.shapes.items()},
    }
    for name, (shape, kind) in wanted.items():
        found = file[name]
        if found.shape != shape or found.dtype != np.dtype(kind):
            raise StoreError(
                f"{path}: /{name}: expected {np.dtype(kind)} of shape {shape}, got {found.dtype} of shape {found.shape}"
            )
    return header, n


def _check_format(file: h5py.File) -> None:
    path, found = file.filename, read_text(file, "format")
    if found is None:
        raise StoreError(
            f"{path}: not a file of simulations: the attribute 'format' = {FORMAT!r} is missing; "
            "write your own theta and x with Simulations.from_arrays(theta, x, parameters).save(path)"
        )
    if found != FORMAT:
        raise StoreError(f"{path}: expected format {FORMAT!r}, got {found!r}")
    schema = file.attrs.get("schema")
    if not isinstance(schema, int | np.integer) or schema < 1:
        raise StoreError(f"{path}: expected a schema number, got {schema!r}")
    if schema > SCHEMA:
        raise StoreError(f"{path}: has schema {schema}, this version reads up to {SCHEMA}; upgrade sbi-physics")


def _header_of(file: h5py.File) -> Header:
    text = read_text(file, "header")
    if text is None:
        raise StoreError(f"{file.filename}: the attribute 'header' is missing")
    if _digest(text) != read_text(file, "header_sha256"):
        raise StoreError(f"{file.filename}: the file is damaged: its header does not match its checksum")
    try:
        return Header.from_json(text)
    except Exception as error:  # whatever the header of a stranger leads to
        raise StoreError(f"{file.filename}: the header cannot be read: {' '.join(str(error).split())[:300]}") from error


def read_rows(file: h5py.File, header: Header, rows: slice, *, checked: bool = True) -> Rows:
    """Read consecutive rows of an opened file, without the texts of errors.

    Raises:
        StoreError: an unknown status, or (where `checked`) a row that is marked ok and is not finite.
    """
    x = {name: file[f"x/{name}"][rows] for name in header.shapes}
    block = Rows(file["theta"][rows], x, file["status"][rows], file["seed"][rows])
    if len(block) and int(block.status.max()) > max(Status):
        raise StoreError(f"{file.filename}: /status: expected codes 0 to {max(Status):d}, got {block.status.max()}")
    if checked:
        good = block.status == Status.OK
        for name, values in (("theta", block.theta), *((f"x/{k}", v) for k, v in x.items())):
            bad = good & ~np.isfinite(values.reshape(len(values), -1 if values.size else 0)).all(1)
            if bad.any():
                row = (rows.start or 0) + int(np.flatnonzero(bad)[0])
                raise StoreError(f"{file.filename}: /{name}: row {row} is marked ok but is not finite")
    return block


def read_errors(file: h5py.File) -> dict[int, str]:
    """Read the texts of errors by row from an opened file."""
    found = find_dataset(file, "error/row"), find_dataset(file, "error/text")
    shapes, kinds = [one.shape for one in found], [one.dtype.kind for one in found]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1 or kinds != ["i", "S"]:
        raise StoreError(f"{file.filename}: /error: expected as many rows as texts, got {shapes[0]} and {shapes[1]}")
    rows, texts = (one[:] for one in found)
    return {int(row): bytes(text).decode(errors="replace") for row, text in zip(rows, texts, strict=True)}
