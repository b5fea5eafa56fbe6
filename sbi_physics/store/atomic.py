"""Files that are whole or absent.

A file is written under a temporary name in the folder where it will stand, flushed to the disk, and renamed; the
folder is flushed after it.  Whoever is killed at any instant leaves either the old file or the new one, never a part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sbi_physics.core.errors import StoreError

__all__ = ["atomic_path", "sync_folder"]


@contextmanager
def atomic_path(path: Path, *, temporary: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends, and vanishes when the block raises.

    Args:
        path: where the file will stand.
        temporary: the temporary path, on the same file system; beside `path` where None.
        durable: whether the file must also outlive the machine; False leaves the flushing to the operating system, for
            files that are checked when they are read and can be made again.

    Raises:
        StoreError: the folder is missing, or nothing can be written there.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not path.parent.is_dir():
        raise StoreError(f"{path}: cannot be written, the folder {path.parent} does not exist")
    if path.is_dir():
        raise StoreError(f"{path}: cannot be written, it is a folder")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
