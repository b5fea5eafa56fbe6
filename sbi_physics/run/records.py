"""The record of a stage: what it was made of, and checksums of what it made."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import StoreError
from sbi_physics.store.atomic import atomic_path

__all__ = ["RECORD_FILE", "Record", "changes", "digest_of", "file_hash"]

RECORD_FILE = "stage.json"
_VERSION = 1
_MOST_CHANGES = 3
_LONGEST = 40
_BYTES_AT_ONCE = 1 << 20


def digest_of(value: Any) -> str:
    """The sha256 of a value in types that JSON knows."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        StoreError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BYTES_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """What a stage was made of, and what it made.

    Attributes:
        identity: what its key is made of.
        key: the checksum of that.
        files: the sha256 of each file that it made, by its path in the folder.
        input_digests: checksums of what its inputs had made.
        seconds: that it took.
        finished: when, in UTC.
    """

    identity: dict[str, Any]
    key: str
    files: dict[str, str]
    input_digests: dict[str, str]
    seconds: float
    finished: str

    @classmethod
    def of(
        cls, folder: Path, identity: dict[str, Any], key: str, input_digests: Mapping[str, str], seconds: float
    ) -> "Record":
        """The record of a folder that is whole."""
        files = {path.relative_to(folder).as_posix(): file_hash(path) for path in _files(folder)}
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(identity, key, files, dict(input_digests), round(seconds, 3), finished)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record in the folder of a stage.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = folder / RECORD_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("version") != _VERSION:
                raise ValueError("it is of another version")
            record = cls(**found)
            if digest_of(record.identity) != record.key:
                raise ValueError("its key does not fit it")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{path}: {' '.join(str(error).split())}") from error
        return record

    @classmethod
    def digest_in(cls, folder: Path) -> str | None:
        """The checksum of what the stage in a folder made; None where its record cannot be read."""
        try:
            return cls.read(folder).digest
        except StoreError:
            return None

    @property
    def digest(self) -> str:
        """One checksum of all files."""
        return digest_of(self.files)

    def write(self, folder: Path) -> None:
        """Write the record into the folder of its stage."""
        with atomic_path(folder / RECORD_FILE) as temporary:
            temporary.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n")

    def damage(self, folder: Path) -> str:
        """Which file of the folder is not as it was made, in words; no words where all are."""
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            try:
                if file_hash(path) != expected:
                    return f"{name} was changed or damaged"
            except StoreError as error:
                return str(error)
        return ""


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD_FILE)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what a stage differs from its record, in words."""
    found = []
    if old.get("format") != new.get("format"):
        found.append("made by another version of sbi-physics")
    if old.get("seed") != new.get("seed"):
        found.append(f"seed {old.get('seed')} -> {new.get('seed')}")
    found += _differences(old.get("settings", {}), new.get("settings", {}), "")
    before, now = old.get("files", {}), new.get("files", {})
    found += [f"file {name} changed" for name in now if before.get(name) != now[name]]
    found += [f"file {name} is not read any more" for name in before if name not in now]
    before, now = old.get("inputs", {}), new.get("inputs", {})
    found += [f"{name} changed" for name in now if before.get(name) != now[name]]
    found += [f"without {name}" for name in before if name not in now]
    rest = len(found) - _MOST_CHANGES
    return ", ".join(found[:_MOST_CHANGES]) + (f" and {rest} more" if rest > 0 else "")


def _differences(old: Any, new: Any, prefix: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*new, *(key for key in old if key not in new)]
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{prefix}.{key}")]
    if old == new:
        return []
    name = prefix.lstrip(".")
    if any(isinstance(value, list) and any(isinstance(one, dict) for one in value) for value in (old, new)):
        return [f"{name} changed"]
    texts = [_short(_rounded(value)) for value in (old, new)]
    if texts[0] == texts[1]:
        texts = [_short(old), _short(new)]
    return [f"{name} {texts[0]} -> {texts[1]}"]


def _rounded(value: Any) -> Any:
    """Numbers as they were written, which single precision made a little larger or smaller."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
