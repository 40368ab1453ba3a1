"""Unpacks the images of an archive into a directory."""

import fcntl
import os
from pathlib import Path
from threading import Lock


class UnpackingError(Exception):
    """A directory or file cannot be written. The message names it."""


class UnpackDirectory:
    """A directory of `{zoom}/{x}/{y}.{suffix}` that one import at a time writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = Lock()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UnpackingError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise UnpackingError(f"{path}: another import is unpacking there") from error

    def close(self) -> None:
        """Releases the directory for other imports."""
        os.close(self._handle)

    def write(self, name: str, content_sha256: str, image: bytes) -> tuple[Path, bool]:
        """The path of the image, and whether this call has written it.

        An existing file is never overwritten, because a stored tile may name it. A
        different image of the same cell gets its hash in its name. Raises
        UnpackingError.
        """
        wanted = self.path / name
        distinct = wanted.with_suffix(f".{content_sha256[:16]}{wanted.suffix}")
        try:
            with self._lock:
                for path in (wanted, distinct):
                    if not path.exists():
                        _write_atomically(path, image)
                        return path, True
                    if path.read_bytes() == image:
                        return path, False
        except OSError as error:
            raise UnpackingError(f"{wanted}: {error.strerror}") from error
        raise UnpackingError(f"{distinct}: exists with different content")

    def make_durable(self) -> None:
        """Flushes all written files to disk."""
        os.sync()


def _write_atomically(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(image)
    unfinished.rename(path)
