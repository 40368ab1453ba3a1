"""Unpacks the images of an archive into a directory."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from tilecache_daemon.ingest.directory_lock import LockedError, open_locked

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors of the file system, which the next image would get too."""


class UnpackingError(Exception):
    """A directory or file cannot be written. The message names it."""


class NoRoomError(UnpackingError):
    """The file system takes no more files."""


class UnpackDirectory:
    """A directory of `{zoom}/{x}/{y}.{suffix}` that one import at a time writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = Lock()
        self._full: NoRoomError | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = open_locked(self.path)
        except OSError as error:
            raise UnpackingError(f"{path}: {error.strerror}") from error
        except LockedError:
            raise UnpackingError(f"{path}: another import is unpacking there") from None

    def close(self) -> None:
        """Releases the directory for other imports."""
        os.close(self._handle)

    def write(self, name: str, content_sha256: str, image: bytes) -> tuple[Path, bool]:
        """The path of the image, and whether this call has written it.

        An existing file is never overwritten, because a stored tile may name it. A
        different image of the same cell gets its hash in its name. Raises
        UnpackingError; after the first NoRoomError nothing is tried any more.
        """
        wanted = self.path / name
        distinct = wanted.with_suffix(f".{content_sha256[:16]}{wanted.suffix}")
        try:
            with self._lock:
                if self._full:
                    raise self._full
                for path in (wanted, distinct):
                    if not path.exists():
                        _write_atomically(path, image)
                        return path, True
                    if path.read_bytes() == image:
                        return path, False
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise UnpackingError(f"{wanted}: {error.strerror}") from error
            failure = NoRoomError(f"{wanted}: {self._describe(error)}")
            self._full = self._full or failure
            raise self._full from error
        raise UnpackingError(f"{distinct}: exists with different content")

    def check_room(self, size_bytes: int, files: int) -> None:
        """Raises NoRoomError if so much does not fit, beside what is unpacked already."""
        free = os.statvfs(self._handle)
        free_bytes, free_files = free.f_bavail * free.f_frsize, free.f_favail
        # Some file systems have no fixed number of files, and say 0.
        enough_files = free.f_files == 0 or files <= free_files
        if size_bytes <= free_bytes and enough_files:
            return
        unpacked = [path.stat().st_size for path in self.path.glob("*/*/*") if path.is_file()]
        size_bytes, files = size_bytes - sum(unpacked), files - len(unpacked)
        if size_bytes > free_bytes or not (free.f_files == 0 or files <= free_files):
            raise NoRoomError(
                f"{self.path}: no room: {size_bytes:,} bytes in {files:,} files to unpack; "
                f"{free_bytes:,} bytes and {free_files:,} files are free. --max-zoom imports less"
            )

    def _describe(self, error: OSError) -> str:
        free = os.statvfs(self._handle)
        if error.errno == errno.ENOSPC and free.f_files and not free.f_favail:
            return "no room: the file system has no inodes left"
        return f"no room: {error.strerror}" if error.errno != errno.EIO else str(error.strerror)

    def make_durable(self) -> None:
        """Flushes all written files to disk."""
        os.sync()


def _write_atomically(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(image)
        unfinished.rename(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
