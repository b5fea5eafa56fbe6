"""An analysis file, read and checked: every error names the file, the line and the key.

    analysis = read_analysis("analysis.toml", ["budget.simulations=500"])
    analysis.config.budget.simulations
    raise analysis.error(("budget", "simulations"), "too few")    # analysis.toml, line 12: budget.simulations: too few

Paths in the file are relative to its folder.
"""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sbi_physics.core.errors import SBIPhysicsError, StoreError, UsageError
from sbi_physics.run.configuration import JOBS, Config
from sbi_physics.run.toml_lines import KeyPath, key_lines, line_of

__all__ = ["Analysis", "read_analysis"]

_LONGEST = 80


@dataclass(frozen=True)
class Analysis:
    """An analysis file.

    Attributes:
        path: the file.
        text: what stands in it.
        overrides: ``KEY=VALUE`` on the command line, which come before what the file says.
        data: both together, as `tomllib` reads them.
        config: the same, checked.
    """

    path: Path
    text: str
    overrides: tuple[str, ...]
    data: dict[str, Any]
    config: Config
    _places: "_Places"

    def error(self, keys: Sequence[str | int], message: str) -> UsageError:
        """An error about a key: its message begins with the file, the line and the key."""
        return UsageError(f"{self._places.of(keys)}: {message}")

    @contextmanager
    def blaming(self, *keys: str | int) -> Iterator[None]:
        """Say of errors that arise in a block which key they are about."""
        try:
            yield
        except SBIPhysicsError as error:
            raise self.error(keys, str(error)) from error

    def resolve(self, name: str) -> Path:
        """The path that a name in the file stands for."""
        return (self.path.parent / name).resolve()

    def existing(self, name: str, *keys: str | int) -> Path:
        """The path of a file that is named in the analysis.

        Raises:
            UsageError: there is no such file.
        """
        path = self.resolve(name)
        if not path.is_file():
            raise self.error(keys, f"no such file: {path}")
        return path

    def seed(self, stage: str) -> int:
        """The seed of a stage: its own where the file states one, else that of the analysis."""
        return self.config.seeds.get(stage, self.config.seed)


@dataclass(frozen=True)
class _Places:
    """Where the keys of an analysis stand."""

    path: Path
    lines: Mapping[KeyPath, int]
    overrides: Mapping[KeyPath, str]

    def of(self, keys: Sequence[str | int]) -> str:
        """The file, the line and the key, or the override that set it."""
        dotted = _dotted(keys)
        for length in range(len(keys), 0, -1):
            if tuple(keys[:length]) in self.overrides:
                return f"--set {self.overrides[tuple(keys[:length])]}: {dotted}"
        line = line_of(self.lines, keys)
        return f"{self.path}{f', line {line}' if line else ''}: {dotted}".removesuffix(": ")


def read_analysis(path: str | Path, overrides: Sequence[str] = ()) -> Analysis:
    """Read and check an analysis file.

    Args:
        path: a TOML file (`docs/run.md`).
        overrides: ``KEY=VALUE`` with a dotted key, and a value as in TOML; what is none is taken for a string.

    Raises:
        StoreError: the file cannot be read.
        UsageError: it is no TOML, or a key is unknown, missing, or has a value that it does not take.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: expected TOML: {error}{_line_at(text, str(error))}") from error
    given: dict[KeyPath, str] = {}
    for override in overrides:
        keys, value = _parsed(override)
        _put(data, keys, value, override)
        given[keys] = override
    places = _Places(path, key_lines(text), given)
    return Analysis(path, text, tuple(overrides), data, _checked(data, places), places)


def _parsed(override: str) -> tuple[KeyPath, Any]:
    name, equals, text = override.partition("=")
    try:
        path: list[str] = []
        inner: Any = tomllib.loads(f"{name} = 0")
        while isinstance(inner, dict):
            path.append(next(iter(inner)))
            inner = inner[path[-1]]
        if not equals:
            raise UsageError("there is no =")
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"--set {override}: expected KEY=VALUE, as budget.simulations=500") from error
    try:
        return tuple(path), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return tuple(path), text


def _put(data: dict[str, Any], keys: KeyPath, value: Any, override: str) -> None:
    inner: Any = data
    for i, key in enumerate(keys[:-1]):
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {_dotted(keys[: i + 1])} is no table")
    inner[keys[-1]] = value


def _line_at(text: str, message: str) -> str:
    """The line of the text that an error speaks of, where it says which."""
    found, lines = re.search(r"at line (\d+)", message), text.splitlines()
    return f": {lines[int(found[1]) - 1].strip()[:_LONGEST]}" if found and 0 < int(found[1]) <= len(lines) else ""


def _checked(data: dict[str, Any], places: _Places) -> Config:
    """The configuration of the job that the data name."""
    jobs = ", ".join(JOBS)
    if "job" not in data:
        raise UsageError(f"{places.path}: job: this key must be there: one of {jobs}")
    if data["job"] not in JOBS:
        raise UsageError(f"{places.of(['job'])}: expected one of {jobs}; got {data['job']!r}")
    kind = JOBS[data["job"]]
    try:
        return kind.model_validate(copy.deepcopy(data))
    except ValidationError as error:
        found = []
        for each in error.errors(include_url=False):
            # An alternative is chosen by a key of the table: that is the one that is wrong, or missing.
            chosen = str(each.get("ctx", {}).get("discriminator", "")).strip("'")
            keys = _keys_of((*each["loc"], chosen) if chosen else each["loc"], data)
            found.append(f"{places.of(keys)}: {_message(each, keys, error)}")
        raise UsageError("; ".join(dict.fromkeys(found))) from error


def _keys_of(place: Sequence[str | int], data: Any) -> list[str | int]:
    """The path of keys in the file, without the names of alternatives that pydantic puts between them."""
    keys: list[str | int] = []
    for i, each in enumerate(place):
        inside = each in data if isinstance(data, dict) else isinstance(data, list) and isinstance(each, int)
        if inside:
            data = data[each]
            keys.append(each)
        elif i == len(place) - 1 and isinstance(data, dict):
            keys.append(each)
    return keys


def _message(found: Any, keys: Sequence[str | int], error: ValidationError) -> str:
    """What is wrong with a key, in words."""
    kind, got = found["type"], found["input"]
    if kind in ("missing", "union_tag_not_found"):
        return "this key must be there"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(keys[-1]), _names_beside(found["loc"], error), 1)
        return f"there is no such key{f'; did you mean {near[0]}?' if near else ''}"
    if kind == "union_tag_invalid":
        return f"expected one of {found['ctx']['expected_tags']}; {_got(found['ctx']['tag'])}"
    if kind == "value_error":
        return found["msg"].removeprefix("Value error, ")
    expected = found["msg"].removeprefix("Input should be ").rstrip(".")
    return f"expected {expected}, {_got(got)}"


def _got(value: Any) -> str:
    text = repr(value)
    return f"got {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"


def _names_beside(place: Sequence[str | int], error: ValidationError) -> list[str]:
    """The keys that may stand where an unknown one does."""
    kind: Any = next(each for each in JOBS.values() if each.__name__ == error.title)
    for each in place[:-1]:
        options = _models_in(kind.model_fields[each].annotation) if each in kind.model_fields else [kind]
        if isinstance(each, int) or not options:
            return []
        tagged = [m for m in options if any(each in str(f.annotation) for f in m.model_fields.values())]
        kind = (tagged or options)[0]
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
    return list(kind.model_fields)


def _models_in(annotation: Any) -> list[Any]:
    """The classes of tables in an annotation."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _dotted(keys: Sequence[str | int]) -> str:
    words = ""
    for key in keys:
        words += f"[{key}]" if isinstance(key, int) else f".{key}" if words else str(key)
    return words
