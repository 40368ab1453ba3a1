"""The files of a tile directory, in an order in which a walk can be continued."""

import os
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from tilecache_daemon.ingest.tile_directory import is_skipped


class WalkedFile(NamedTuple):
    """A file, or a directory that cannot be read."""

    path: str
    """Relative to the root. That of a directory ends with a slash."""
    inode: int


def walk(root: str, after: str = "") -> Iterator[WalkedFile]:
    """The files below a root, after the path `after` of one of them.

    A directory's own files come first, then those of its directories, each by name: such an order
    stays the same over a restart, which the order of inodes does not on every file system.
    Symbolic links are left out, and what an import skips.
    """
    # A stack, since directories may be nested deeper than calls.
    directories = [("", after.split("/") if after else [])]
    while directories:
        directory, position = directories.pop()
        if position == [""]:
            continue  # `after` is this directory, which could not be read
        try:
            with os.scandir(f"{root}/{directory}") as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            yield WalkedFile(directory or "./", 0)
            continue
        below = []
        for entry in ordered:
            if is_skipped(entry.name):
                continue
            path = f"{directory}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if len(position) < 2 or entry.name >= position[0]:
                    rest = position[1:] if position[:1] == [entry.name] else []
                    below.append((f"{path}/", rest))
            elif _is_after(entry.name, position) and entry.is_file(follow_symlinks=False):
                yield WalkedFile(path, entry.inode())
        directories += reversed(below)


def in_chunks(files: Iterator[WalkedFile], size: int) -> Iterator[tuple[list[str], str]]:
    """The paths of `size` files at a time, in the order of their inodes, in which reading them is
    as sequential as it can be; and the path of the last file in the order of the walk."""
    while chunk := list(islice(files, size)):
        by_inode = sorted(chunk, key=lambda file: file.inode)
        yield [file.path for file in by_inode], chunk[-1].path


def _is_after(name: str, position: list[str]) -> bool:
    """Whether a file of a directory comes after a position below it."""
    return not position or (len(position) == 1 and name > position[0])
