"""HDF5 files that are written whole or with one plain error, also where the disk is full.

The HDF5 library cannot close a file that it could not write, and ends the process with a segmentation fault when it
tries again at exit.  Here it writes through a file object of Python that keeps the first error to itself, so that the
library always comes to its end, and the error is raised when the file is closed.
"""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

__all__ = ["careful_file"]

_FLUSHED_BYTES = 1 << 25
# Not everywhere: macOS has only the whole of it.
_to_disk = getattr(os, "fdatasync", os.fsync)


class _Careful(io.RawIOBase):
    """A file that takes everything and remembers the first error."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._position = self._end = 0
        self._unflushed, self._flushing = 0, threading.Thread()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += os.pwrite(self._descriptor, view[done:], self._position + done)
            except OSError as error:
                self.error = error
        self._position += len(view)
        self._end = max(self._end, self._position)
        self._unflushed += len(view)
        if self._unflushed >= _FLUSHED_BYTES and not self._flushing.is_alive():
            self._unflushed, self._flushing = 0, threading.Thread(target=self._flush)
            self._flushing.start()
        return len(view)

    def _flush(self) -> None:
        """Send to the disk what is there, while more is written: not all is left for the end."""
        try:
            _to_disk(self._descriptor)
        except OSError as error:
            self.error = self.error or error

    def settle(self) -> None:
        """Wait for a flush that is under way."""
        if self._flushing.is_alive():
            self._flushing.join()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = os.pread(self._descriptor, len(view), self._position)
        view[: len(found)] = found
        view[len(found) :] = bytes(len(view) - len(found))
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, self._end)
            except OSError as error:
                self.error = error
        return self._end

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.settle()
            os.close(self._descriptor)
        super().close()


@contextmanager
def careful_file(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file, in the format of version 1.10 of the library.

    Raises:
        OSError: it could not be written.
    """
    with _Careful(path) as target:
        try:
            with h5py.File(target, "w", libver=("v110", "v110")) as file:
                yield file
        finally:
            target.settle()
            if target.error is not None:
                raise target.error
