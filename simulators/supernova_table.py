"""Reading a table of supernovae and its covariance, in the two layouts in which they are published.

* That of JLA, Pantheon and Union3: a table with the columns ``zcmb``, ``zhel``, ``mb`` and ``dmb`` (``lcparam_*.txt``).
  Its errors dmb are statistical: their squares are added to the diagonal of the covariance in the second file
  (``sys_*.txt``, ``mag_covmat.txt``).  In Union3 they are zero.
* That of Pantheon+: ``zHD``, ``zHEL`` and ``m_b_corr`` (``Pantheon+SH0ES.dat``), with a covariance that is complete
  (``Pantheon+SH0ES_STAT+SYS.cov``).  Supernovae below z = 0.01, whose velocities are not those of the Hubble flow, are
  left out, as in the analysis of Brout et al. 2022 (arXiv:2202.04077); those of Cepheid hosts are among them.

A file of a covariance is N and then N x N numbers row by row, or the numbers alone, separated by any white space.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import NonFiniteError, StoreError, UsageError

__all__ = ["SupernovaTable", "read_supernovae"]

# Columns of redshift, heliocentric redshift, magnitude and error, and the least redshift.
_LAYOUTS: tuple[tuple[tuple[str, str, str, str], float], ...] = (
    (("zcmb", "zhel", "mb", "dmb"), 0.0),
    (("zhd", "zhel", "m_b_corr", "m_b_corr_err_diag"), 0.01),
)
_PANTHEON_PLUS = 1


@dataclass(frozen=True)
class SupernovaTable:
    """N supernovae, or bins of such.

    Attributes:
        redshifts: cosmological, float64 ``(N,)``.
        heliocentric: as observed, float64 ``(N,)``.
        magnitudes: corrected magnitudes or distance moduli, float64 ``(N,)``.
        covariance: of the magnitudes, complete, float64 ``(N, N)``.
    """

    redshifts: Tensor
    heliocentric: Tensor
    magnitudes: Tensor
    covariance: Tensor


def read_supernovae(
    table: str | Path, covariance: str | Path | None = None, *, minimum_redshift: float | None = None
) -> SupernovaTable:
    """Read and check the two files; the layout shows in the names of the columns.

    Args:
        table: a line of names, which may begin with ``#``, and a line of values for each supernova.
        covariance: as above; None takes the errors of the table alone.
        minimum_redshift: rows below it are left out; None takes 0.01 for Pantheon+ and 0 for the other layout.

    Raises:
        StoreError: a file is missing or no text, or its lines are not as they should be; the message names the line.
        NonFiniteError: a number is NaN or infinite.
        UsageError: no row is left, or there are no errors where the covariance is None.
    """
    origin, names, rows = _lines(Path(table))
    layout = next((i for i, (columns, _) in enumerate(_LAYOUTS) if {columns[0], columns[2]} <= set(names)), None)
    if layout is None:
        raise StoreError(f"{origin}: expected columns zcmb and mb, or zHD and m_b_corr; got {', '.join(names)}")
    (z, z_hel, magnitude, error), least = _LAYOUTS[layout]
    redshifts, magnitudes = (_column(origin, names, rows, name) for name in (z, magnitude))
    heliocentric = _column(origin, names, rows, z_hel) if z_hel in names else redshifts
    errors = _column(origin, names, rows, error) if error in names else torch.zeros_like(redshifts)
    if covariance is None:
        if not bool((errors > 0).all()):
            raise UsageError(f"{origin}: expected positive errors {error} where no covariance is given")
        matrix = torch.diag(errors**2)
    else:
        matrix = _covariance(Path(covariance), len(rows))
        matrix = matrix if layout == _PANTHEON_PLUS else matrix + torch.diag(errors**2)
    least = least if minimum_redshift is None else float(minimum_redshift)
    kept = redshifts >= least
    if not bool(kept.any()):
        raise UsageError(f"{origin}: expected redshifts of {least:g} or more, got {float(redshifts.max()):g} at most")
    return SupernovaTable(redshifts[kept], heliocentric[kept], magnitudes[kept], matrix[kept][:, kept])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read as text: {error}") from error


def _lines(path: Path) -> tuple[str, list[str], list[tuple[int, list[str]]]]:
    """The path, the names of the columns in lower case, and the words of each further line with its number."""
    lines = [(i, line.replace(",", " ").split()) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise StoreError(f"{path}: expected a line of names of columns, got an empty file")
    names = [word.lower() for word in " ".join(lines[0][1]).lstrip("# ").split()]
    rows = [(i, words) for i, words in lines[1:] if not words[0].startswith("#")]
    if not rows:
        raise StoreError(f"{path}: expected at least one supernova after the names of the columns, got none")
    return str(path), names, rows


def _column(origin: str, names: list[str], rows: list[tuple[int, list[str]]], name: str) -> Tensor:
    # The table of Union3 names more columns than it has, all of them at the end.
    place, values = names.index(name), []
    for number, words in rows:
        if len(words) <= place:
            raise StoreError(f"{origin}, line {number}: expected {place + 1} columns or more, got {len(words)}")
        try:
            values.append(float(words[place]))
        except ValueError as error:
            raise StoreError(f"{origin}, line {number}: column {name}: expected a number, got {words[place]!r}") from (
                error
            )
        if not np.isfinite(values[-1]):
            raise NonFiniteError(f"{origin}, line {number}: column {name}: expected a finite number, got {values[-1]}")
    return torch.tensor(values, dtype=torch.float64)


def _covariance(path: Path, count: int) -> Tensor:
    """The numbers of the file as ``(count, count)``."""
    try:
        numbers = torch.as_tensor(np.array(_text(path).split(), dtype=np.float64))
    except ValueError as error:
        raise StoreError(f"{path}: expected numbers alone: {error}") from error
    if len(numbers) == count**2 + 1:
        if float(numbers[0]) != count:
            raise StoreError(
                f"{path}: expected the first number to be {count}, the rows of the table, got {numbers[0]:g}"
            )
        numbers = numbers[1:]
    if len(numbers) != count**2:
        raise StoreError(
            f"{path}: expected {count} and {count} x {count} numbers, for as many rows of the table; "
            f"got {len(numbers)} numbers"
        )
    return finite(numbers.reshape(count, count), str(path))
