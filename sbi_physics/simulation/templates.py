"""Text with places for numbers: ``--rate {rate:.6e} --seed {seed}``.

A place is the name of a value in braces, with a format as of Python where one is wanted; it can name nothing else.
Without a format a number is written with all its digits.  Braces around anything but a name are left alone, so that C,
JSON and LaTeX need no change; ``{{name}}`` stands for ``{name}``.
"""

import re
from collections.abc import Mapping, Sequence

from sbi_physics.core.errors import UsageError

__all__ = ["Value", "check_places", "fill", "places"]

Value = float | int | str
_PLACE = re.compile(r"\{\{([A-Za-z_]\w*(?::[^{}]*)?)\}\}|\{([A-Za-z_]\w*)(?::([^{}]*))?\}")
_FORMAT = re.compile(r"[-+ ]?0?\d{0,3}(?:\.\d{1,3})?[eEfFgGd]?")


def places(text: str) -> list[str]:
    """The names of the places in a text."""
    return [match[2] for match in _PLACE.finditer(text) if match[2]]


def check_places(text: str, known: Sequence[str]) -> str:
    """Return the text, if all its places are known.

    Raises:
        UsageError: naming the first that is not, or whose format is none.
    """
    for match in _PLACE.finditer(text):
        if not match[2]:
            continue
        if match[2] not in known:
            raise UsageError(
                f"expected one of {', '.join(known)} in braces, got {match[0]!r} (write {{{match[0]}}} for itself)"
            )
        if match[3] is not None and not _FORMAT.fullmatch(match[3]):
            raise UsageError(f"expected a format such as .6e or 04d, got {match[3]!r} in {match[0]!r}")
    return text


def fill(text: str, values: Mapping[str, Value]) -> str:
    """Put values into their places."""

    def place(match: re.Match[str]) -> str:
        if not match[2]:
            return f"{{{match[1]}}}"
        value, form = values[match[2]], match[3]
        if isinstance(value, str):
            return value
        if not form:
            return repr(value)
        return format(round(value) if form.endswith("d") else value, form)

    return _PLACE.sub(place, text)
