"""Numbers as tables show them: a column alike, four digits for its largest, powers of ten where zeros would be many."""

import math
import numbers
from collections.abc import Sequence
from html import escape
from typing import Any, SupportsFloat

__all__ = ["column_texts", "is_number", "number_text", "value_with_error"]

_DIGITS = 4
_LOW, _HIGH = 1e-3, 1e6
_NOTHING = "–"


def is_number(value: Any) -> bool:
    """Whether a cell is a number (a truth value is none)."""
    return isinstance(_plain(value), numbers.Real) and not isinstance(_plain(value), bool)


def number_text(value: SupportsFloat) -> str:
    """HTML of one number with at most four digits: ``0.5``, ``12 345``, ``1.2 × 10<sup>−7</sup>``."""
    if isinstance(value, numbers.Integral):
        return _grouped(f"{int(value)}")
    return _float_text(float(value))


def _float_text(value: float) -> str:
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not _LOW <= abs(value) < _HIGH:
        mantissa, power = f"{value:.{_DIGITS - 1}e}".split("e")
        mantissa = (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa).replace("-", "−")
        return f"{mantissa} × 10<sup>{str(int(power)).replace('-', '−')}</sup>"
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{decimals}f}"
    return _grouped(text.rstrip("0").rstrip(".") if "." in text else text)


def value_with_error(value: SupportsFloat, error: SupportsFloat) -> str:
    """Plain text of a value and its error, to two digits of the error: ``20.8850 ± 0.0010``, ``(1.20 ± 0.15)e-7``.

    Where the error is zero or not finite, the value has six digits.
    """
    centre, width = float(value), float(error)
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        return f"{centre:.6g} ± {width:.2g}".replace("-", "−")
    power = math.floor(math.log10(max(abs(centre), width)))
    power = power if not -4 < power < 6 else 0
    scale = 10.0**power
    # Rounding first: an error of 0.0996 is 0.10, not 0.100.
    digits = -int(f"{width / scale:.1e}".partition("e")[2]) + 1
    text = f"{round(centre / scale, digits):.{max(digits, 0)}f} ± {round(width / scale, digits):.{max(digits, 0)}f}"
    return (f"({text})e{power}" if power else text).replace("-", "−")


def column_texts(cells: Sequence[Any]) -> list[str]:
    """HTML of the cells of one column; its ordinary numbers have equally many decimals."""
    values = [_plain(cell) for cell in cells]
    ordinary = [i for i, value in enumerate(values) if isinstance(value, float) and _ordinary(value)]
    texts = [_cell(value) for value in values]
    largest = max((abs(values[i]) for i in ordinary), default=0.0)
    if not largest:
        return texts
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(largest)))
    # A small number beside large ones keeps digits of its own.
    aligned = [i for i in ordinary if values[i] == 0 or abs(values[i]) >= 10.0 ** (1 - decimals)]
    needed = [len(f"{values[i]:.{decimals}f}".rstrip("0").partition(".")[2]) for i in aligned]
    for i in aligned:
        texts[i] = _grouped(f"{values[i]:.{max(needed)}f}")
    return texts


def _plain(value: Any) -> Any:
    """A Python number from a NumPy scalar or a tensor of one number; anything else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _ordinary(value: float) -> bool:
    return value == 0 or (math.isfinite(value) and _LOW <= abs(value) < _HIGH)


def _cell(value: Any) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value) if isinstance(value, numbers.Real) else escape(str(value))


def _grouped(text: str) -> str:
    """Digits before the point in threes where there are more than four, and a proper minus sign."""
    whole, point, rest = text.lstrip("-").partition(".")
    if len(whole) > 4:
        whole = f"{int(whole):,}".replace(",", "\u202f")
    return ("−" if text.startswith("-") else "") + whole + point + rest
