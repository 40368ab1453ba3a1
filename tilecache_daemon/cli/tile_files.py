"""The files of a tile directory, for commands that remove them."""

import fcntl
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RootError(Exception):
    """The root directory cannot be used. The message gives the reason."""


class TileFiles:
    """The files below a root directory, which this process alone may change.

    Each part of a path is opened from the one before, and symbolic links are not followed: no
    path leads out of the root, even if a directory is replaced meanwhile.
    """

    def __init__(self, root: Path) -> None:
        """Raises RootError if another process has locked the root."""
        self.root = root.resolve()
        try:
            self._root = os.open(self.root, _DIRECTORY)
        except OSError as error:
            raise RootError(f"{root}: {error.strerror}") from error
        try:
            fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._root)
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
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return False
            return True

    def remove(self, file_paths: Iterable[str]) -> dict[str, str]:
        """Removes files durably; returns those that remain, each with the reason."""
        problems: dict[str, str] = {}
        by_directory: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
        for file_path in file_paths:
            try:
                parents, name = _split(file_path)
            except ValueError as error:
                problems[file_path] = str(error)
            else:
                by_directory[parents][file_path] = name
        for parents, names in by_directory.items():
            try:
                with self._opened(parents) as directory:
                    if directory is not None:
                        problems |= _unlink(directory, names)
            except (OSError, ValueError) as error:
                problems |= dict.fromkeys(names, str(error))
        return {path: f"{path}: {reason}" for path, reason in problems.items()}

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
                    below = os.open(part, _DIRECTORY, dir_fd=directory)
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


def _unlink(directory: int, names: dict[str, str]) -> dict[str, str]:
    """Removes files by name, given by stored path; returns those that remain with the reason."""
    problems = {}
    for file_path, name in names.items():
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems[file_path] = error.strerror or str(error)
    # A file that reappears after a power failure would be on no list.
    os.fsync(directory)
    return problems


def _is_empty(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
