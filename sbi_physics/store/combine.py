"""Files of simulations joined, cut and checked.

Joined, they are one set of rows in the order of the files; cut, each piece remembers which rows of what it was, so that
joining all pieces gives the file back, bit for bit.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store import layout
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.layout import Header, Rows

__all__ = ["JOINED", "Verification", "joined_header", "merge", "split", "verify"]

JOINED = "joined"
_PIECE = re.compile(r"rows (\d+):(\d+) of (\d+) of (.*)", re.DOTALL)
_READ_BYTES = 1 << 24


def joined_header(paths: Sequence[Path]) -> tuple[Header, list[int]]:
    """The header of files joined in this order, and the rows in each.

    Raises:
        UsageError: there are none, or the same simulations come twice.
        StoreError: a file cannot be read, or holds other parameters or outputs than the first.
    """
    if not paths:
        raise UsageError("files of simulations: expected at least one, got none")
    headers: list[Header] = []
    sizes: list[int] = []
    firsts: dict[tuple[int, bytes], Path] = {}
    for path in paths:
        with layout.opened(path) as file:
            header, n = layout.read_header(file)
            first = layout.read_rows(file, header, slice(0, 1), checked=False) if n else None
        if first is not None and int(first.seed[0]):
            key = (int(first.seed[0]), first.theta.tobytes())
            if key in firsts:
                raise UsageError(f"{path}: the same simulations as in {firsts[key]}; take other seeds for more of them")
            firsts[key] = path
        if headers:
            _check_alike(path, header, headers[0], paths[0])
        headers.append(header)
        sizes.append(n)
    whole = _whole_of(headers) or (headers[0] if len(headers) == 1 else None)
    if whole is not None:
        return whole, sizes
    simulators = {header.simulator for header in headers}
    return replace(headers[0], simulator=simulators.pop() if len(simulators) == 1 else "", theta=JOINED), sizes


def _check_alike(path: Path, header: Header, first: Header, other: Path) -> None:
    for what, own, wanted in (
        ("parameters", header.parameters.to_dict(), first.parameters.to_dict()),
        ("outputs", (header.named, header.shapes), (first.named, first.shapes)),
    ):
        if own != wanted:
            raise StoreError(f"{path}: has other {what} than {other}; they cannot be joined")


def _whole_of(headers: Sequence[Header]) -> Header | None:
    """The header of a file of which these are all the pieces, in their order."""
    pieces = [_PIECE.fullmatch(header.theta) for header in headers]
    here, total, source = 0, None, None
    for piece in pieces:
        if piece is None or int(piece[1]) != here or (total, source) not in ((None, None), (piece[3], piece[4])):
            return None
        here, total, source = int(piece[2]), piece[3], piece[4]
    whole = [replace(header, theta=str(source)) for header in headers]
    alike = len({header.to_json() for header in whole}) == 1
    return whole[0] if alike and str(here) == total else None


def _blocks(path: Path, header: Header, n: int, start: int = 0) -> Iterator[Rows]:
    """The rows of a file from `start`, n in all, with the texts of their errors."""
    with layout.opened(path) as file:
        errors = layout.read_errors(file)
        for begin in range(start, start + n, header.block_size):
            rows = slice(begin, min(begin + header.block_size, start + n))
            block = layout.read_rows(file, header, rows)
            own = {row - rows.start: text for row, text in errors.items() if rows.start <= row < rows.stop}
            yield replace(block, errors=own)


def merge(paths: Sequence[Path], out: Path) -> int:
    """Write the rows of all files to one, in the order of the files; return how many.

    Raises:
        UsageError: there are none, the same simulations come twice, or `out` is one of them.
        StoreError: a file is damaged or does not fit the others, or `out` is there or cannot be written.
    """
    header, sizes = joined_header(paths)
    if out.exists():
        raise StoreError(f"{out}: is there already; choose another name or remove it")

    def blocks() -> Iterator[Rows]:
        for path, n in zip(paths, sizes, strict=True):
            yield from _blocks(path, header, n)

    with atomic_path(out) as temporary:
        layout.write(temporary, header, sum(sizes), blocks())
    return sum(sizes)


def split(path: Path, rows: int, folder: Path) -> list[Path]:
    """Write the rows of a file to several, of `rows` each, into a folder; return their paths.

    Raises:
        UsageError: `rows` is no positive integer.
        StoreError: the file is damaged, or a piece is there already or cannot be written.
    """
    positive_integer(rows, "rows")
    with layout.opened(path) as file:
        header, n = layout.read_header(file)
    width = len(str(max(0, -(-n // rows) - 1)))
    made = []
    for number, start in enumerate(range(0, n, rows)):
        end = min(start + rows, n)
        piece = folder / f"{path.stem}-{number:0{width}d}{path.suffix}"
        if piece.exists():
            raise StoreError(f"{piece}: is there already; choose another folder or remove it")
        own = replace(header, theta=f"rows {start}:{end} of {n} of {header.theta}")
        with atomic_path(piece) as temporary:
            layout.write(temporary, own, end - start, _blocks(path, header, end - start, start))
        made.append(piece)
    return made


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        rows: of the file.
        damaged: what is wrong, by data set and rows; empty where all is well.
    """

    rows: int
    damaged: tuple[str, ...]


def verify(path: Path) -> Verification:
    """Read a whole file, in little memory, and name each part whose checksum is wrong.

    Raises:
        StoreError: the structure of the file is damaged, so that its parts cannot be told.
    """
    damaged = []
    with layout.opened(path) as file:
        header, n = layout.read_header(file)
        for name in (
            "theta",
            "status",
            "seed",
            *(f"x/{output}" for output in header.shapes),
            "error/row",
            "error/text",
        ):
            damaged += [f"/{name}: {place}" for place in _damaged(layout.find_dataset(file, name))]
        size = max(1, _READ_BYTES // max(1, _row_bytes(header)))
        if not damaged:
            for start in range(0, n, size):
                try:
                    layout.read_rows(file, header, slice(start, min(start + size, n)))
                except StoreError as error:
                    damaged.append(str(error).removeprefix(f"{file.filename}: "))
    return Verification(n, tuple(damaged))


def _row_bytes(header: Header) -> int:
    return (
        4 * sum(int(np.prod(shape, dtype=np.int64)) for shape in header.shapes.values())
        + 4 * len(header.parameters)
        + 9
    )


def _damaged(dataset: h5py.Dataset) -> Iterator[str]:
    """The rows of a data set that cannot be read, chunk by chunk."""
    step = dataset.chunks[0] if dataset.chunks else max(1, len(dataset))
    for start in range(0, len(dataset), step):
        rows = slice(start, min(start + step, len(dataset)))
        try:
            dataset[rows]
        except OSError:
            yield f"rows {rows.start} to {rows.stop - 1} do not match their checksum"
