"""The lock of a tile directory: one process at a time adds or removes files."""

import fcntl
import os
from pathlib import Path
from typing import Final

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LockedError(Exception):
    """Another process has locked the directory."""


def open_locked(path: Path) -> int:
    """An open directory that is locked until it is closed. Raises LockedError, and OSError if it
    cannot be opened, also for a symbolic link."""
    directory = os.open(path, DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(directory)
        raise LockedError from error
    return directory
