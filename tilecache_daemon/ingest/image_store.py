"""Stores images under their paths in a tiles directory: verified, durable, never overwriting."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Final, NamedTuple

from tilecache_daemon.ingest.directory_lock import DIRECTORY, LockedError, open_locked
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackingError

_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors of the file system, which the next image would get too."""
_NO_HARD_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_LOCKS: Final = 64


class StoreError(UnpackingError):
    """An image is not stored. The message says why."""


class WrongContentError(StoreError):
    """The content is not what its hash says."""


class StoreFullError(StoreError, NoRoomError):
    """The file system takes no more files."""


class StoredImage(NamedTuple):
    """Where an image is stored."""

    file_path: str
    """Relative to the directory, with forward slashes."""
    is_new: bool
    """Whether this call has written it."""
    is_open: bool
    """Whether this is to be followed by `keep` or `undo`."""


@dataclass(slots=True)
class _Uses:
    """The tiles for which a new image was stored, of which it is open whether they name it."""

    count: int = 1
    is_kept: bool = False
    """Whether one of those that are not counted any more names it."""


class ImageStore:
    """A tiles directory that this process alone adds images to.

    Each part of a path is opened from the one before, and symbolic links are not followed: no path
    leads out of the directory. May be used by several threads.
    """

    def __init__(self, root: Path) -> None:
        """Raises StoreError if the directory cannot be used, or another process has locked it."""
        self.root = root.resolve()
        self._changed: set[tuple[str, ...]] = set()
        self._uses: dict[str, _Uses] = {}
        """Of the new images."""
        self._full: StoreFullError | None = None
        self._lock = Lock()
        self._path_locks = [Lock() for _ in range(_LOCKS)]
        try:
            self._root = open_locked(self.root)
        except OSError as error:
            raise StoreError(f"{root}: {error.strerror}") from error
        except LockedError:
            raise StoreError(
                f"{root}: another process adds or removes files there; try again later"
            ) from None

    def close(self) -> None:
        """Unlocks the directory."""
        os.close(self._root)

    def store(self, file_path: str, content_sha256: str, image: bytes) -> StoredImage:
        """Stores an image whose content has this hash.

        A file that is there is never overwritten. If it has the same content, it is the image's;
        if it has other content, the image gets its hash into its name. The image is on the disk
        under its name after `make_durable`. Raises WrongContentError, and StoreError if the path
        leads out of the directory or the file cannot be written; after the first StoreFullError
        nothing is tried any more.
        """
        if sha256(image).hexdigest() != content_sha256:
            raise WrongContentError(f"{file_path}: the content is not what its hash says")
        *parents, name = split_path(file_path)
        wanted = PurePosixPath(name)
        distinct = f"{wanted.stem}.{content_sha256[:16]}{wanted.suffix}"
        if self._full:
            raise self._full
        # The unfinished file of an image is named after its path, so that the next run overwrites
        # what a killed one has left. Two threads must not write the same one.
        unfinished = f".{sha256(name.encode()).hexdigest()[:32]}.part"
        try:
            with (
                self._path_lock(parents, name),
                opened_below(self._root, parents, create=True) as directory,
            ):
                for each in (name, distinct):
                    is_new = _publish(directory, each, unfinished, image)
                    if is_new is not None:
                        return self._note(parents, each, is_new=is_new)
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._full = self._full or StoreFullError(f"{file_path}: no room: {error.strerror}")
                raise self._full from error
            raise StoreError(f"{file_path}: {describe(error)}") from error
        raise StoreError(f"{file_path}: {distinct} exists with different content")

    def make_durable(self) -> None:
        """Returns when the names of all stored images are on the disk; raises StoreFullError."""
        with self._lock:
            changed, self._changed = self._changed, set()
        # Also those above, which `store` may have created.
        directories = {parents[:end] for parents in changed for end in range(len(parents) + 1)}
        for parents in sorted(directories):
            try:
                with opened_below(self._root, parents) as directory:
                    os.fsync(directory)
            except OSError as error:
                raise StoreFullError(f"{'/'.join(parents)}: {describe(error)}") from error

    def keep(self, file_path: str) -> None:
        """Says that a tile names the image that one call of `store` has returned."""
        with self._lock:
            self._end_use(file_path, is_kept=True)

    def undo(self, file_path: str) -> None:
        """Says that no tile names the image that one call of `store` has returned. If it was
        written since the directory was opened, the last such call removes it, unless one of the
        others kept it."""
        *parents, name = split_path(file_path)
        with (
            self._path_lock(parents, name),
            suppress(OSError),
            opened_below(self._root, parents) as directory,
        ):
            with self._lock:
                is_unused = self._end_use(file_path, is_kept=False)
            if is_unused:
                os.unlink(name, dir_fd=directory)

    def check_room(self, size_bytes: int) -> None:
        """Raises StoreFullError if so much does not fit."""
        free = os.statvfs(self._root)
        free_bytes = free.f_bavail * free.f_frsize
        if size_bytes > free_bytes:
            raise StoreFullError(
                f"{self.root}: no room: {size_bytes:,} bytes to store; "
                f"{free_bytes:,} bytes are free"
            )

    def _path_lock(self, parents: list[str], name: str) -> Lock:
        """The same one for the two names that an image may get."""
        stem, _, _ = name.partition(".")
        return self._path_locks[hash((*parents, stem)) % _LOCKS]

    def _note(self, parents: list[str], name: str, *, is_new: bool) -> StoredImage:
        path = "/".join((*parents, name))
        with self._lock:
            self._changed.add(tuple(parents))
            if is_new:
                self._uses[path] = _Uses()
            elif path in self._uses:
                self._uses[path].count += 1
            return StoredImage(path, is_new, path in self._uses)

    def _end_use(self, file_path: str, *, is_kept: bool) -> bool:
        """Whether it was the last one, and none was kept."""
        uses = self._uses.get(file_path)
        if uses is None:
            return False
        uses.count -= 1
        uses.is_kept |= is_kept
        if uses.count:
            return False
        del self._uses[file_path]
        return not uses.is_kept


def read_below(root: int, file_path: str, max_bytes: int) -> bytes:
    """The content of a regular file below an open directory, without following symbolic links;
    one byte more than `max_bytes` if it is larger. Raises OSError, or StoreError for a path that
    leads out of it."""
    *parents, name = split_path(file_path)
    with opened_below(root, parents) as directory:
        handle = os.open(name, _FILE, dir_fd=directory)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StoreError(f"{file_path}: not a regular file")
            return file.read(max_bytes + 1)


@contextmanager
def opened_below(root: int, parents: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """A directory below an open one. Symbolic links are not followed. Raises OSError."""
    directory = os.dup(root)
    try:
        for part in parents:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=directory)
            below = os.open(part, DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        yield directory
    finally:
        os.close(directory)


def split_path(file_path: str) -> list[str]:
    """The parts of a stored path; raises StoreError if it leads out of its directory."""
    parts = file_path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise StoreError(f"{file_path!r} leads out of the directory of the tiles")
    try:
        file_path.encode()
    except UnicodeEncodeError:
        raise StoreError(f"{file_path!r} is not UTF-8") from None
    return parts


def write_durably(directory: int, name: str, content: bytes) -> None:
    """Writes a file and returns when its content is on the disk."""
    with os.fdopen(os.open(name, _NEW_FILE, 0o644, dir_fd=directory), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(directory: int, name: str, unfinished: str, image: bytes) -> bool | None:
    """Gives an image a name; False if it has it already, None if other content has it."""
    try:
        existing = _has_content(directory, name, image)
        if existing is not None:
            return False if existing else None
        write_durably(directory, unfinished, image)
        try:
            os.link(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            # Another program has just written it.
            return False if _has_content(directory, name, image) else None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
        return True
    finally:
        # Also that of a run that was killed after it had given the name.
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=directory)


def _has_content(directory: int, name: str, image: bytes) -> bool | None:
    """Whether a file has this content, which then is on the disk; None if there is none."""
    try:
        handle = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link
            return False
        raise
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size != len(image):
            return False
        if file.read(len(image) + 1) != image:
            return False
        os.fsync(handle)
    return True


def describe(error: OSError) -> str:
    """The reason of an error of a path that was opened without following links."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a symbolic link or a file stands where a directory should be"
    return error.strerror or str(error)
