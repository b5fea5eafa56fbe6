"""`Simulations`: what a run of a simulator gave, in a file or in memory.

    simulations = sp.simulate("two_moons", 10_000, out="moons.h5")
    simulations = sp.Simulations.open("moons.h5")
    simulations = sp.Simulations.open_many(["moons.h5", "more.h5"])
    theta, x = simulations.training_set()

Opening reads the header and checks the structure; numbers are read when they are asked for, and checked then: their
checksums, and that every row marked ok is finite.  `batches` streams a file that does not fit in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, positive_integer, same_length
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.store import layout
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.combine import joined_header
from sbi_physics.store.layout import Header, Rows, Status

__all__ = ["Simulations"]

Outputs = Tensor | dict[str, Tensor]


class Simulations:
    """Rows of parameters and what a simulator made of them.

    Use `Simulations.open` for a file and `Simulations.from_arrays` for arrays; `sp.simulate` returns one too.

    Attributes:
        header: what made the rows: parameters, simulator, seed, block size.
        path: the file; None in memory.
    """

    def __init__(
        self,
        header: Header,
        n: int,
        *,
        path: Path | None = None,
        rows: Rows | None = None,
        pieces: Sequence[tuple[Path, int]] = (),
    ) -> None:
        self.header, self.path = header, path
        self._n, self._rows = n, rows
        self._pieces = tuple(pieces) if path is None else ((path, n),)
        self._errors: dict[int, str] | None = None if rows is None else rows.errors

    @classmethod
    def open(cls, path: str | Path) -> "Simulations":
        """Open a file; numbers are read later, when they are asked for.

        Raises:
            StoreError: the file is missing, empty, damaged, of another format or of a newer version.
        """
        path = Path(path)
        with layout.opened(path) as file:
            header, n = layout.read_header(file)
        return cls(header, n, path=path)

    @classmethod
    def open_many(cls, paths: Iterable[str | Path]) -> "Simulations":
        """Open several files as one, their rows in this order; they stay where they are.

        Raises:
            UsageError: there are none, or the same simulations come twice.
            StoreError: a file cannot be read, or holds other parameters or outputs than the first.
        """
        files = [Path(path) for path in paths]
        header, sizes = joined_header(files)
        return cls(header, sum(sizes), pieces=list(zip(files, sizes, strict=True)))

    @classmethod
    def from_arrays(cls, theta: Any, x: Any, parameters: Parameters, *, simulator: str = "") -> "Simulations":
        """Wrap rows that were simulated elsewhere; rows of x that are not finite get the status nonfinite.

        Args:
            theta: ``(n, P)``, inside the bounds of the parameters.
            x: ``(n, *x_shape)``, or a dictionary of such.
            parameters: names, units and prior of the columns of theta.
            simulator: a name for where they come from.

        Raises:
            ShapeError: theta is not ``(n, P)``, or the numbers of rows differ.
            SupportError: a row of theta is outside the prior.
        """
        parameters = Parameters.from_prior(parameters)
        values = as_tensor(theta, "theta").cpu()
        if values.ndim != 2 or not len(values):
            raise ShapeError(f"theta: expected shape (n, {len(parameters)}), got {tuple(values.shape)}")
        parameters.check_within(values)
        outputs = {
            str(k): as_tensor(v, f"x[{k!r}]").cpu() for k, v in (x if isinstance(x, Mapping) else {"x": x}).items()
        }
        if not outputs or any(v.ndim == 0 for v in outputs.values()):
            raise ShapeError("x: expected shape (n, *x_shape), or a dictionary of such")
        same_length(theta=values, **outputs)
        arrays = {k: v.numpy() for k, v in outputs.items()}
        finite = np.stack([np.isfinite(v.reshape(len(v), -1)).all(1) for v in arrays.values()]).all(0)
        status = np.where(finite, Status.OK, Status.NONFINITE).astype(np.uint8)
        shapes = {k: v.shape[1:] for k, v in arrays.items()}
        header = Header(parameters, simulator, named=isinstance(x, Mapping), shapes=shapes)
        rows = Rows(values.numpy(), arrays, status, np.zeros(len(values), np.uint64))
        return cls(header, len(values), rows=rows)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items() if count)
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.header.shapes.items())
        where = "in memory" if self._rows is not None and not self._pieces else str(self.path)
        where = f"{len(self._pieces)} files" if len(self._pieces) > 1 else where
        simulator = f"{self.header.simulator}: " if self.header.simulator else ""
        return (
            f"Simulations({simulator}{len(self)} rows ({counts}); theta ({len(self.parameters)},); {shapes}; {where})"
        )

    @property
    def parameters(self) -> Parameters:
        """Names, units, bounds and prior of the columns of theta."""
        return self.header.parameters

    @property
    def x_shape(self) -> torch.Size | dict[str, torch.Size]:
        """Shape of one observation, or of each named output."""
        shapes = {name: torch.Size(shape) for name, shape in self.header.shapes.items()}
        return shapes if self.header.named else shapes["x"]

    @property
    def theta(self) -> Tensor:
        """Parameters of all rows: float32 ``(n, P)``."""
        return torch.from_numpy(self._load().theta)

    @property
    def x(self) -> Outputs:
        """Outputs of all rows, float32 ``(n, *x_shape)``, or a dictionary of such; NaN where a row gave nothing."""
        return self._outputs(self._load())

    @property
    def status(self) -> Tensor:
        """Codes of `Status` for all rows: uint8 ``(n,)``."""
        return torch.from_numpy(self._load().status)

    @property
    def ok(self) -> Tensor:
        """Which rows succeeded: boolean ``(n,)``."""
        return self.status == int(Status.OK)

    @property
    def seeds(self) -> list[int]:
        """The seed of the call that made each row; the rows of a block that was simulated at once share one."""
        return [int(seed) for seed in self._load().seed]

    @property
    def errors(self) -> dict[int, str]:
        """What went wrong, by row, for the rows that have a text."""
        if self._errors is None:
            self._errors, start = {}, 0
            for path, n in self._pieces:
                with layout.opened(path) as file:
                    self._errors |= {start + row: text for row, text in layout.read_errors(file).items()}
                start += n
        return dict(self._errors)

    def counts(self) -> dict[str, int]:
        """Number of rows by status: ok, failed, nonfinite, timeout, crashed."""
        if self._rows is not None:
            status = self._rows.status
        else:
            parts = []
            for path, _ in self._pieces:
                with layout.opened(path) as file:
                    parts.append(layout.read_dataset(file, "status"))
            status = np.concatenate(parts)
        return {code.name.lower(): int((status == code).sum()) for code in Status}

    def unkept(self) -> "Simulations":
        """The same simulations, which keep what they read from a file only as long as they live themselves."""
        return (
            self
            if not self._pieces or self._rows is not None
            else Simulations(self.header, len(self), path=self.path, pieces=self._pieces)
        )

    def output(self, name: str) -> "Simulations":
        """The same simulations with one of their named outputs alone, as an array.

        Raises:
            UsageError: there is no output of that name.
        """
        if not self.header.named or name not in self.header.shapes:
            known = f"one of {', '.join(self.header.shapes)}" if self.header.named else "none, as x is one array"
            raise UsageError(f"output: expected {known}; got {name!r}")
        rows = self._load()
        header = replace(self.header, named=False, shapes={"x": self.header.shapes[name]})
        return Simulations(header, len(self), rows=replace(rows, x={"x": rows.x[name]}))

    def training_set(self) -> tuple[Tensor, Outputs]:
        """The rows that succeeded: theta float32 ``(m, P)``, x float32 ``(m, *x_shape)`` or a dictionary of such."""
        return self._good(self._load())

    def read(self, rows: slice) -> Rows:
        """Read consecutive rows, whatever became of them, without the texts of errors."""
        start, stop, _ = rows.indices(len(self))
        part = slice(start, max(start, stop))
        return self._read(part) if self._rows is None else _cut(self._rows, part)

    @property
    def streamed_bytes(self) -> int:
        """What x takes in memory, where it is on the disk and has not been read; else 0."""
        if self._rows is not None:
            return 0
        return 4 * len(self) * sum(int(np.prod(shape, dtype=np.int64)) for shape in self.header.shapes.values())

    def batches(self, size: int = 4096) -> Iterator[tuple[Tensor, Outputs]]:
        """Stream the rows that succeeded, as `training_set` gives them, reading `size` rows at a time."""
        positive_integer(size, "size")
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield self._good(self._read(rows) if self._rows is None else _cut(self._rows, rows))

    def save(self, path: str | Path) -> None:
        """Write the simulations to an HDF5 file, whole or not at all; the same simulations give the same bytes.

        Raises:
            StoreError: the file cannot be written.
            UsageError: `path` is the file that these simulations are read from.
        """
        path = Path(path)
        if path.exists() and any(path.samefile(own) for own, _ in self._pieces if own.exists()):
            raise UsageError(f"path: {path} is the file these simulations are read from")
        with atomic_path(path) as temporary:
            layout.write(temporary, self.header, len(self), self._blocks())

    def _blocks(self) -> Iterator[Rows]:
        size, errors = layout.rows_of_a_slab(self.header), self.errors
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            block = _cut(self._rows, rows) if self._rows is not None else self._read(rows)
            local = {row - start: text for row, text in errors.items() if rows.start <= row < rows.stop}
            yield Rows(block.theta, block.x, block.status, block.seed, local)

    def _load(self) -> Rows:
        if self._rows is None:
            self._rows = self._read(slice(0, len(self)))
        return self._rows

    def _read(self, rows: slice) -> Rows:
        parts: list[Rows] = []
        start = 0
        for path, n in self._pieces:
            own = slice(max(rows.start - start, 0), min(rows.stop - start, n))
            if own.start < own.stop or (rows.start >= rows.stop and not parts):
                with layout.opened(path) as file:
                    parts.append(layout.read_rows(file, self.header, own))
            start += n
        return layout.joined(parts)

    def _outputs(self, rows: Rows) -> Outputs:
        tensors = {name: torch.from_numpy(values) for name, values in rows.x.items()}
        return tensors if self.header.named else tensors["x"]

    def _good(self, rows: Rows) -> tuple[Tensor, Outputs]:
        good = rows.status == Status.OK
        if not good.all():
            x = {name: values[good] for name, values in rows.x.items()}
            rows = Rows(rows.theta[good], x, rows.status[good], rows.seed[good])
        return torch.from_numpy(rows.theta), self._outputs(rows)


def _cut(rows: Rows, part: slice) -> Rows:
    x = {name: values[part] for name, values in rows.x.items()}
    return Rows(rows.theta[part], x, rows.status[part], rows.seed[part])
