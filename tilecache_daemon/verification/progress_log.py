"""The progress of a verification, on disk, so that one that was stopped can be continued."""

import fcntl
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

_FORMAT: Final = 1


class ProgressLogError(Exception):
    """The progress cannot be kept. The message says why."""


class Position(NamedTuple):
    """How far a verification has come."""

    rows_done: bool = False
    page_token: str = ""
    """Of the next page of rows."""
    last_path: str = ""
    """The last file in the order of the walk."""
    row_count: int = 0
    file_count: int = 0


class ProgressLog:
    """A file of JSON Lines: what is verified, then for each step the paths with findings and the
    position after it. A step that was not written to its end is done again."""

    def __init__(self, file: IO[str], subject: dict[str, Any], *, restart: bool) -> None:
        """Continues the log in `file` if it is of the same subject, unless `restart`."""
        self._file = file
        self._name: Path | None = None
        self.position = Position()
        self.aliases: set[str] = set()
        """Paths of files that rows name in another way, such as through a symbolic link."""
        self.started_at = datetime.now(timezone.utc)
        self.is_continued = not restart and self._load(subject)
        if not self.is_continued:
            file.seek(0)
            file.truncate()
            self._append({"format": _FORMAT, "at": self.started_at.isoformat(), **subject})

    @classmethod
    def open(cls, path: Path, subject: dict[str, Any], *, restart: bool) -> "ProgressLog":
        """The log at a path. Raises ProgressLogError if another process uses it, and OSError
        if it cannot be written."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # ASCII is written, but a power failure may leave any bytes.
        file = os.fdopen(handle, "r+", encoding="latin-1")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ProgressLogError("another process verifies this root") from None
        log = cls(file, subject, restart=restart)
        log._name = path
        return log

    @classmethod
    def temporary(cls, subject: dict[str, Any]) -> "ProgressLog":
        """A log that ends with the process."""
        return cls(tempfile.TemporaryFile("w+"), subject, restart=True)

    def record(
        self, position: Position, paths: Iterable[str], aliases: Collection[str] = ()
    ) -> None:
        """A step is done, which has found something wrong with some files, and other names of
        some. Raises ProgressLogError."""
        self.position = position
        self.aliases.update(aliases)
        found = [{"path": path} for path in paths] + [{"alias": alias} for alias in aliases]
        try:
            self._append(*found, position._asdict())
        except OSError as error:
            raise ProgressLogError(f"{self._name or 'progress'}: {error.strerror}") from error

    def paths(self) -> Iterator[str]:
        """The files with which something was wrong, each once for each step that found it."""
        self._file.seek(0)
        for line in self._file:
            entry = json.loads(line)
            if "path" in entry:
                yield entry["path"]

    def close(self, *, done: bool) -> None:
        """`done`: there is nothing to continue."""
        if done and self._name:
            self._name.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written is written once more
            self._file.close()

    def _append(self, *entries: dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write("".join(f"{json.dumps(entry)}\n" for entry in entries))
        self._file.flush()

    def _load(self, subject: dict[str, Any]) -> bool:
        """Reads the log to its last complete step, and cuts off what follows."""
        try:
            first = json.loads(self._file.readline())
            self.started_at = datetime.fromisoformat(first.pop("at"))
            if first != {"format": _FORMAT, **subject}:
                return False
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        end, aliases = self._file.tell(), set()
        with suppress(ValueError, TypeError):  # of a line that was not written to its end
            while (line := self._file.readline()).endswith("\n"):
                entry = json.loads(line)
                if "alias" in entry:
                    aliases.add(entry["alias"])
                elif "path" not in entry:
                    self.position = Position(**entry)
                    self.aliases |= aliases
                    end = self._file.tell()
        self._file.seek(end)
        self._file.truncate()
        return end > 0 and self.position != Position()


def log_path(state_directory: Path, root: Path, socket_path: Path) -> Path:
    """Where the progress of a root is kept, beside the daemon that it is compared with."""
    name = sha256(os.fsencode(root) + b"\0" + os.fsencode(socket_path)).hexdigest()[:16]
    return state_directory / "verify" / f"{name}.jsonl"
