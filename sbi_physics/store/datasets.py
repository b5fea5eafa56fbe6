"""The registry of public data sets, and how their files get here.

``data/registry.toml`` names each data set with its files (path, URL, sha256), licence and citation.  `fetch` looks for
a file in this order, and checks its sha256 wherever it is found:

1. among the tables that ship with the package;
2. in the folder that the environment variable ``SBI_PHYSICS_DATA`` names;
3. in the cache (the operating system's, or ``SBI_PHYSICS_CACHE``), downloading it with pooch where it is not there.
"""

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.core.resources import shipped
from sbi_physics.store.atomic import atomic_path

__all__ = ["DataFile", "Dataset", "available", "cache_folder", "fetch", "location"]

_SCHEMA = 1
_SECONDS_WITHOUT_AN_ANSWER = 30


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        path: relative to a data folder, ``<data set>/<...>``.
        sha256: checksum of its bytes, hexadecimal.
        url: where it is downloaded from; empty for a file that ships with the package.
        size: in bytes; 0 where the registry does not say.
    """

    path: str
    sha256: str
    url: str = ""
    size: int = 0


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes:
        name: also the folder of its files.
        description: one line.
        licence: its terms.
        citation: the paper to cite.
        files: its files.
    """

    name: str
    description: str
    licence: str
    citation: str
    files: tuple[DataFile, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)


def available(*, registry: Path | None = None) -> list[Dataset]:
    """The data sets of the registry, by name.

    Args:
        registry: a registry file; that of the package where None.

    Raises:
        StoreError: the registry cannot be read.
    """
    path = registry or shipped("registry.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        if table["schema"] > _SCHEMA:
            raise StoreError(f"{path}: has schema {table['schema']}, this version reads up to {_SCHEMA}")
        datasets = [_dataset(entry) for entry in table["dataset"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: the registry cannot be read: {type(error).__name__}: {error}") from error
    return sorted(datasets, key=lambda dataset: dataset.name)


def _dataset(entry: dict[str, Any]) -> Dataset:
    files = tuple(
        DataFile(f["path"], f["sha256"].lower(), f.get("url", ""), int(f.get("bytes", 0))) for f in entry["files"]
    )
    for file in files:
        parts = PurePosixPath(file.path).parts
        if len(parts) < 2 or parts[0] != entry["name"] or ".." in parts:
            raise ValueError(f"expected a path {entry['name']}/..., got {file.path!r}")
    return Dataset(entry["name"], entry["description"], entry["licence"], entry["citation"], files)


def cache_folder() -> Path:
    """Where downloads are kept: ``SBI_PHYSICS_CACHE``, or the cache folder of the operating system."""
    return Path(os.environ.get("SBI_PHYSICS_CACHE") or pooch.os_cache("sbi-physics"))


def location(dataset: Dataset) -> str:
    """Where `fetch` would take the files from: "shipped", "SBI_PHYSICS_DATA", "cache" or "download"."""
    places = {_find(file)[0] for file in dataset.files}
    return next(place for place in ("download", "cache", "SBI_PHYSICS_DATA", "shipped") if place in places)


def fetch(name: str, *, progress: bool = True, registry: Path | None = None) -> dict[str, Path]:
    """Return the files of a data set, downloading what is not here; every file is checked against its sha256.

    Args:
        name: of the data set.
        progress: whether to show a bar while downloading, where standard error is a terminal.
        registry: a registry file; that of the package where None.

    Returns:
        Paths by the name of the file within the folder of the data set.

    Raises:
        UsageError: there is no data set of that name.
        StoreError: a file has another sha256 than the registry says, or cannot be downloaded.
    """
    datasets = {dataset.name: dataset for dataset in available(registry=registry)}
    if name not in datasets:
        raise UsageError(f"data set: expected one of {', '.join(datasets)}; got {name!r}")
    return {file.path.partition("/")[2]: _fetch_file(file, progress) for file in datasets[name].files}


def _find(file: DataFile) -> tuple[str, Path]:
    """The place and the path where a file is, or will be when it has been downloaded."""
    try:
        return "shipped", shipped(file.path)
    except StoreError:
        pass
    folder = os.environ.get("SBI_PHYSICS_DATA")
    if folder and (Path(folder) / file.path).is_file():
        return "SBI_PHYSICS_DATA", Path(folder) / file.path
    # The checksum in the path keeps files of different registries apart.
    path = cache_folder() / file.sha256[:8] / file.path
    return ("cache" if path.is_file() else "download"), path


def _fetch_file(file: DataFile, progress: bool) -> Path:
    place, path = _find(file)
    if place in ("shipped", "SBI_PHYSICS_DATA"):
        _check(path, file, str(path))
        return path
    if place == "cache" and _sha256(path) == file.sha256:
        return path
    if not file.url:
        raise StoreError(f"{file.path}: is not shipped with this installation; install sbi-physics again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: the cache cannot be written: {error}") from error
    with atomic_path(path) as temporary:
        _download(file, temporary, progress)
        _check(temporary, file, file.url)
    return path


def _check(path: Path, file: DataFile, source: str) -> None:
    found = _sha256(path)
    if found != file.sha256:
        raise StoreError(f"{source}: refused, expected sha256 {file.sha256}, got {found}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def _download(file: DataFile, path: Path, progress: bool) -> None:
    bar = _Bar(file.path, progress)
    responses: list[Any] = []  # pooch leaves them open when something goes wrong
    keep = {"response": lambda response, *_, **__: responses.append(response)}
    try:
        pooch.HTTPDownloader(progressbar=bar, timeout=_SECONDS_WITHOUT_AN_ANSWER, hooks=keep)(file.url, str(path), None)
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        detail = " ".join(str(error).split())
        raise StoreError(
            f"{file.url}: cannot be downloaded ({type(error).__name__}: {detail}); without a network, put the file at "
            f"{file.path} in the folder that SBI_PHYSICS_DATA names"
        ) from error
    finally:
        bar.close()
        for response in responses:
            response.close()


class _Bar:
    """What pooch wants of a progress bar, drawn by rich."""

    def __init__(self, title: str, show: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=None)
        self._bar.start()

    @property
    def total(self) -> float | None:
        return self._bar.tasks[0].total

    @total.setter
    def total(self, total: float | None) -> None:
        self._bar.update(self._task, total=total or None)

    def update(self, amount: float) -> None:
        self._bar.advance(self._task, amount)

    def reset(self) -> None:
        self._bar.reset(self._task)

    def close(self) -> None:
        self._bar.stop()
