"""The files of a tile directory, for commands that remove them."""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tilecache_daemon.ingest.directory_lock import DIRECTORY, LockedError, open_locked


class RootError(Exception):
    """The root directory cannot be used. The message gives the reason."""


class Removal(NamedTuple):
    """What became of the files of evictions, by id. The others were removed."""

    problems: dict[int, str]
    """Those that could not be removed, each with the reason."""
    not_found: set[int]
    """Those that were not there."""


class TileFiles:
    """The files below a root directory, which this process alone may change.

    Each part of a path is opened from the one before, and symbolic links are not followed: no
    path leads out of the root, even if a directory is replaced meanwhile.
    """

    def __init__(self, root: Path) -> None:
        """Raises RootError if another process has locked the root."""
        self.root = root.resolve()
        try:
            self._root = open_locked(self.root)
        except OSError as error:
            raise RootError(f"{root}: {error.strerror}") from error
        except LockedError:
            raise RootError(
                f"{root}: another process removes or unpacks files there; try again later"
            ) from None

    def close(self) -> None:
        """Unlocks the root."""
        os.close(self._root)

    def check_root(self, stored: Sequence[str]) -> None:
        """Raises RootError if the root cannot be the directory of the tiles: it is empty, or has
        none of some stored tiles' files."""
        if _is_empty(self._root):
            raise RootError(f"{self.root} is empty: is its file system mounted?")
        if stored and not any(map(self._has, stored)):
            raise RootError(
                f"{self.root} has none of the files of {len(stored)} stored tiles, for example "
                f"{stored[0]}: is it the right directory, and is its file system mounted?"
            )

    def exists(self, file_path: str) -> bool:
        """Whether there is a file at a stored path; raises ValueError if that cannot be told."""
        parents, name = _split(file_path)
        with self._opened(parents) as directory:
            if directory is None:
                return False
            return _exists(directory, name)

    def remove(
        self, files: Mapping[int, str], find_listed: Callable[[], Collection[int]]
    ) -> Removal:
        """Removes the files of evictions, by id, durably.

        `find_listed` returns the ids of the evictions that are still listed. It is called when
        the files have been set aside, and those that are not listed any more are put back: a
        tile may name them by then.
        """
        problems: dict[int, str] = {}
        not_found: set[int] = set()
        by_directory: defaultdict[tuple[str, ...], dict[int, str]] = defaultdict(dict)
        for eviction_id, file_path in files.items():
            try:
                parents, name = _split(file_path)
            except ValueError as error:
                problems[eviction_id] = str(error)
            else:
                by_directory[parents][eviction_id] = name
        for parents, names in by_directory.items():
            try:
                with self._opened(parents) as directory:
                    if directory is None:
                        not_found.update(names)
                        continue
                    removal = _remove(directory, names, find_listed)
                problems |= removal.problems
                not_found |= removal.not_found
            except (OSError, ValueError) as error:
                problems |= dict.fromkeys(names, str(error))
        named = {key: f"{files[key]}: {reason}" for key, reason in problems.items()}
        return Removal(named, not_found)

    def remove_unchanged(self, file_path: str, identity: tuple[int, int]) -> bool:
        """Removes a file if it still has this inode and this time of its last change in
        nanoseconds; returns whether it did. Raises OSError, and ValueError as `exists`."""
        parents, name = _split(file_path)
        with self._opened(parents) as directory:
            if directory is None or not _exists(directory, name):
                return False
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (status.st_ino, status.st_ctime_ns) != identity:
                return False
            os.unlink(name, dir_fd=directory)
            return True

    def _has(self, file_path: str) -> bool:
        try:
            return self.exists(file_path)
        except (OSError, ValueError):
            return False

    @contextmanager
    def _opened(self, parents: Sequence[str]) -> Iterator[int | None]:
        """The directory, or None if it does not exist; raises ValueError if a symbolic link leads
        to it, or if it may be on a file system that is not mounted."""
        directory = os.dup(self._root)
        try:
            for number, part in enumerate(parents):
                try:
                    below = os.open(part, DIRECTORY, dir_fd=directory)
                except FileNotFoundError:
                    if _is_empty(directory):
                        empty = self.root.joinpath(*parents[:number])
                        raise ValueError(f"{empty} is empty: is its file system mounted?") from None
                    yield None
                    return
                except NotADirectoryError:
                    mode = os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode
                    if not stat.S_ISREG(mode):
                        raise ValueError(
                            f"outside {self.root}: {part} is a symbolic link"
                        ) from None
                    yield None
                    return
                os.close(directory)
                directory = below
            yield directory
        finally:
            os.close(directory)


def _split(file_path: str) -> tuple[tuple[str, ...], str]:
    """The directories and the name of a stored path; raises ValueError if it leads outside."""
    *parents, name = PurePosixPath(file_path).parts or ("",)
    if not name or ".." in (*parents, name) or file_path.startswith("/"):
        raise ValueError("outside the directory of the tiles")
    return tuple(parents), name


def _remove(
    directory: int, names: Mapping[int, str], find_listed: Callable[[], Collection[int]]
) -> Removal:
    """Removes files of a directory as `TileFiles.remove` does."""
    problems, not_found = {}, set()
    listed: Collection[int] = ()
    # By id, so that the next run finds those that a killed one has left.
    aside = {eviction_id: f".removed-{eviction_id}" for eviction_id in names}
    try:
        for eviction_id, name in names.items():
            with suppress(FileNotFoundError):
                _rename(directory, name, aside[eviction_id])
        listed = find_listed()
    finally:
        for eviction_id, name in names.items():
            try:
                if eviction_id in listed or _exists(directory, name):
                    os.unlink(aside[eviction_id], dir_fd=directory)
                else:
                    _rename(directory, aside[eviction_id], name)
            except FileNotFoundError:
                not_found.add(eviction_id)
            except OSError as error:
                problems[eviction_id] = error.strerror or str(error)
                _rename(directory, aside[eviction_id], name)
    # A file that reappears after a power failure would be on no list.
    os.fsync(directory)
    return Removal(problems, not_found)


def _rename(directory: int, name: str, new_name: str) -> None:
    os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_empty(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
