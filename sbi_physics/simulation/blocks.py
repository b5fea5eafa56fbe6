"""The plan of a run, and one call of a simulator.

A run of n rows is cut into blocks whose size depends on n alone.  Block b draws its theta from the prior with the seed
``derive(seed, "theta", b)`` and is simulated in one call with ``derive(seed, "block", b)``.  When that call does not
give good rows (it raises, hangs, dies, or returns the wrong number of rows), each row i of the run that lies in the
block is simulated in a call of its own with ``derive(seed, "row", i)``, so that one bad row costs one row.  A simulator
that reports the failures of rows itself (see `rowwise`) is called once.  Nothing depends on which process makes a call,
or when.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import derive, seeded
from sbi_physics.simulation.rowwise import RowResult, RowwiseSimulator
from sbi_physics.store.layout import Header, Rows, Status

__all__ = [
    "Block",
    "Outcome",
    "Plan",
    "block_of_call",
    "block_of_rows",
    "call",
    "conform",
    "default_block_size",
    "header_of",
    "one_thread",
    "run_block",
]


def default_block_size(n: int, at_once: int | None = None) -> int:
    """Rows in a block: at least 64 blocks for small runs, 1024 rows for large ones, at most 16384 blocks.

    Args:
        n: rows of the run.
        at_once: how many rows the simulator makes best in one call; a sixteenth of the run, and at least 1024 rows, are
            then a block, up to that many.
    """
    if at_once is not None:
        return min(n, at_once, max(1024, -(-n // 16)))
    return max(1, min(1024, -(-n // 64)), -(-n // 16384))


@dataclass(frozen=True)
class Plan:
    """What is to be simulated.

    Attributes:
        parameters: of the simulator.
        n: rows in all.
        seed: of the run.
        block_size: rows in a block; the last may have fewer.
        given: ``(n, P)`` float32 where the user gave theta; None to draw from the prior.
    """

    parameters: Parameters
    n: int
    seed: int
    block_size: int
    given: NDArray[np.float32] | None = None

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n // self.block_size)

    def rows(self, block: int) -> range:
        """The rows of a block."""
        return range(block * self.block_size, min((block + 1) * self.block_size, self.n))

    def theta(self, block: int) -> NDArray[np.float32]:
        """Parameters of the rows of a block: float32 ``(rows, P)``."""
        rows = self.rows(block)
        if self.given is not None:
            return self.given[rows.start : rows.stop]
        return self.parameters.sample(len(rows), seed=derive(self.seed, "theta", block)).numpy()

    def block_seed(self, block: int) -> int:
        """The seed of the one call for a block."""
        return derive(self.seed, "block", block)

    def row_seed(self, row: int) -> int:
        """The seed of the call for a single row."""
        return derive(self.seed, "row", row)


@dataclass(frozen=True)
class Outcome:
    """What one call gave.

    Attributes:
        x: float32 outputs ``(rows, *shape)`` by name; None where the call failed.
        named: whether the simulator returned a dictionary.
        status: `Status.OK` where there is x, else what went wrong.
        error: one line that says so.
        failed: of the rows that failed though the call did not, what went wrong; NaN in x.
        seeds: of each row, where the rows have seeds of their own.
    """

    x: dict[str, NDArray[np.float32]] | None
    named: bool = False
    status: Status = Status.OK
    error: str = ""
    failed: dict[int, tuple[Status, str]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @property
    def form(self) -> tuple[Any, ...]:
        """Whether outputs have names, and the name and shape of each: equal for outcomes that fit in one data set."""
        return (self.named, *((name, values.shape[1:]) for name, values in sorted((self.x or {}).items())))


@dataclass(frozen=True)
class Block:
    """The rows of a block and the form of their outputs (see `Outcome.form`): None where no row gave any."""

    rows: Rows
    form: tuple[Any, ...] | None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the last digits of a matrix product depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _streams(seed: int) -> Iterator[None]:
    """Seed the global generators too, for simulators that draw from them, and leave them as they were."""
    legacy, python = np.random.get_state(), random.getstate()  # noqa: NPY002  simulators may use it
    try:
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        with seeded(seed):
            yield
    finally:
        np.random.set_state(legacy)  # noqa: NPY002
        random.setstate(python)


def call(simulator: Simulator, theta: NDArray[np.float32], seed: int) -> Outcome:
    """Call the simulator for rows of theta ``(rows, P)``; whatever goes wrong is in the outcome."""
    try:
        with _streams(seed), torch.no_grad():
            if isinstance(simulator, RowwiseSimulator):
                return _outcome_of_rows(simulator.simulate_rows(torch.from_numpy(theta.copy()), seed=seed), len(theta))
            result = simulator(torch.from_numpy(theta.copy()), seed=seed)
        return _outcome(result, len(theta))
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        return Outcome(None, status=Status.FAILED, error=f"{type(error).__name__}: {text}" if text else repr(error))


def _outcome(result: Any, rows: int) -> Outcome:
    named = isinstance(result, Mapping)
    outputs = {str(name): value for name, value in result.items()} if named else {"x": result}
    if not outputs:
        raise ShapeError("the simulator returned a dictionary without outputs")
    x = {}
    for name, value in outputs.items():
        tensor = as_tensor(value, name).cpu()
        if tensor.ndim == 0 or len(tensor) != rows:
            raise ShapeError(
                f"{name}: expected {rows} rows, one for each row of theta, got shape {tuple(tensor.shape)}"
            )
        x[name] = np.array(tensor.numpy(), dtype=np.float32, order="C")
    return Outcome(x, named)


def _outcome_of_rows(results: Sequence[RowResult], rows: int) -> Outcome:
    if len(results) != rows:
        raise ShapeError(f"the simulator gave {len(results)} results for {rows} rows")
    outcomes = [_outcome_of_row(result) for result in results]
    seeds = tuple(result.seed for result in results if result.seed is not None)
    if len(seeds) not in (0, rows):
        raise ShapeError(f"the simulator gave seeds for {len(seeds)} of {rows} rows")
    if rows == 1 and outcomes[0].x is None:
        return replace(outcomes[0], seeds=seeds)
    form, x, failed = _merged(outcomes)
    return Outcome(x, bool(form and form[0]), failed=failed, seeds=seeds)


def _outcome_of_row(result: RowResult) -> Outcome:
    if result.x is None:
        status = Status.FAILED if result.status in (Status.OK, Status.NONFINITE) else result.status
        return Outcome(None, status=status, error=" ".join(result.error.split()))
    named = isinstance(result.x, Mapping)
    outputs = result.x.items() if isinstance(result.x, Mapping) else [("x", result.x)]
    x = {str(k): np.asarray(v)[None] for k, v in outputs}
    return _outcome(x if named else x["x"], 1)


def _merged(
    outcomes: list[Outcome],
) -> tuple[tuple[Any, ...] | None, dict[str, NDArray[np.float32]], dict[int, tuple[Status, str]]]:
    """The form that most rows have, their outputs, and what went wrong with the other rows."""
    forms = Counter(outcome.form for outcome in outcomes if outcome.x is not None)
    form = forms.most_common(1)[0][0] if forms else None
    shapes = dict(form[1:]) if form else {}
    x = {name: np.full((len(outcomes), *shape), np.nan, dtype=np.float32) for name, shape in shapes.items()}
    failed = {}
    for i, outcome in enumerate(outcomes):
        if outcome.x is None:
            failed[i] = (outcome.status, outcome.error)
        elif outcome.form != form:
            failed[i] = (Status.FAILED, _other_form(outcome.form, form))
        else:
            for name in x:
                x[name][i] = outcome.x[name][0]
    return form, x, failed


def _rows(
    theta: NDArray[np.float32], x: dict[str, Any], seeds: Sequence[int], failed: dict[int, tuple[Status, str]]
) -> Rows:
    codes = np.zeros(len(theta), dtype=np.uint8)
    for i, (status, _) in failed.items():
        codes[i] = status
    for values in x.values():
        finite = np.isfinite(values.reshape(len(values), -1 if values.size else 0)).all(1)
        codes[(codes == Status.OK) & ~finite] = Status.NONFINITE
    errors = {i: error for i, (_, error) in failed.items()}
    return Rows(theta, dict(sorted(x.items())), codes, np.asarray(seeds, dtype=np.uint64), errors)


def block_of_call(theta: NDArray[np.float32], seed: int, outcome: Outcome) -> Block:
    """The rows of a block that one good call gave."""
    rows = _rows(theta, outcome.x or {}, outcome.seeds or [seed] * len(theta), outcome.failed)
    return Block(rows, outcome.form if outcome.x else None)


def block_of_rows(theta: NDArray[np.float32], seeds: list[int], outcomes: list[Outcome]) -> Block:
    """The rows of a block that was simulated row by row; rows whose outputs have another form than most have failed."""
    form, x, failed = _merged(outcomes)
    own = [outcome.seeds[0] if outcome.seeds else seed for seed, outcome in zip(seeds, outcomes, strict=True)]
    return Block(_rows(theta, x, own, failed), form)


def _other_form(found: tuple[Any, ...], expected: tuple[Any, ...] | None) -> str:
    """Say that outputs have another form than those of the run."""

    def words(form: tuple[Any, ...] | None) -> str:
        return ", ".join(f"{name} of shape {tuple(shape)}" for name, shape in (form or ())[1:])

    return f"ShapeError: expected {words(expected)} for each row, as in the rest of the run, got {words(found)}"


def conform(block: Block, header: Header, form: tuple[Any, ...] | None) -> Rows:
    """Return the rows with exactly the outputs of the header; a block of another form becomes one of failures."""
    rows = block.rows
    if block.form is not None and block.form == form:
        return rows
    x = {name: np.full((len(rows), *shape), np.nan, np.float32) for name, shape in header.shapes.items()}
    if block.form is None:
        return Rows(rows.theta, x, rows.status, rows.seed, rows.errors)
    gave = (rows.status == Status.OK) | (rows.status == Status.NONFINITE)
    text = _other_form(block.form, form)
    errors = {**rows.errors, **{int(i): text for i in np.flatnonzero(gave)}}
    return Rows(rows.theta, x, np.where(gave, Status.FAILED, rows.status).astype(np.uint8), rows.seed, errors)


def header_of(plan: Plan, simulator: str, source: str, form: tuple[Any, ...] | None) -> Header:
    """The header of a file for a plan; `form` is that of the first block that gave any outputs."""
    more = {"named": form[0], "shapes": dict(form[1:])} if form else {}
    return Header(plan.parameters, simulator, plan.seed, plan.block_size, source, **more)


def run_block(simulator: Simulator, plan: Plan, block: int) -> Block:
    """Simulate a block in this process, row by row where the call for all of it does not give good rows."""
    theta = plan.theta(block)
    outcome = call(simulator, theta, plan.block_seed(block))
    if outcome.x is not None:
        return block_of_call(theta, plan.block_seed(block), outcome)
    seeds = [plan.row_seed(row) for row in plan.rows(block)]
    outcomes = [call(simulator, theta[i : i + 1], seed) for i, seed in enumerate(seeds)]
    return block_of_rows(theta, seeds, outcomes)
