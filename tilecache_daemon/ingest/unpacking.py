"""Where the pictures of an archive come to lie."""

import fcntl
import os
from pathlib import Path
from threading import Lock


class UnpackingError(Exception):
    """A directory or file cannot be written; the message names it."""


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
        """Lets another import in."""
        os.close(self._handle)

    def write(self, name: str, content_sha256: str, picture: bytes) -> tuple[Path, bool]:
        """Where the picture lies, and whether it was put there by this call.

        A picture that is there already is left as it is, since a stored tile may
        name it: another one for the same cell gets its hash into its name. Raises
        UnpackingError.
        """
        wanted = self.path / name
        distinct = wanted.with_suffix(f".{content_sha256[:16]}{wanted.suffix}")
        try:
            with self._lock:
                for place in (wanted, distinct):
                    if not place.exists():
                        _write_whole(place, picture)
                        return place, True
                    if place.read_bytes() == picture:
                        return place, False
        except OSError as error:
            raise UnpackingError(f"{wanted}: {error.strerror}") from error
        raise UnpackingError(f"{distinct}: another file lies there")

    def make_durable(self) -> None:
        """Returns when what was written is on the disk."""
        os.sync()


def _write_whole(place: Path, picture: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.part")
    unfinished.write_bytes(picture)
    unfinished.rename(place)
