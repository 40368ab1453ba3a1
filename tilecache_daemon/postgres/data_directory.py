"""The files of an embedded PostgreSQL: its directories, their locks and the data."""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from tilecache_daemon.config import MAX_SOCKET_PATH_BYTES
from tilecache_daemon.postgres.commands import run_until_stopped
from tilecache_daemon.postgres.errors import EmbeddedPostgresError
from tilecache_daemon.postgres.launcher import ServerUser, wrap_command
from tilecache_daemon.postgres.process import SERVER_ENVIRONMENT

SUPERUSER: Final = "tilecache"
"""The database user that owns the cluster."""
SOCKET_NAME: Final = ".s.PGSQL.5432"

_UNPRIVILEGED_USERS: Final = ("tilecache", "postgres", "nobody")
_INITDB_TIMEOUT_S: Final = 300


class DataDirectory:
    """The directory `postgres` below a state directory, and the server's data in it."""

    user: ServerUser
    """The system user that the server runs as: the owner of `path`. Set by `prepare`."""

    def __init__(self, state_directory: Path) -> None:
        self.state_directory = state_directory.absolute()
        self.path = self.state_directory / "postgres"
        self.data = self.path / "data"

    def prepare(self) -> None:
        """Creates the directory if it is missing, and determines `user`."""
        is_root = os.geteuid() == 0
        if not self.state_directory.exists():
            self.state_directory.mkdir(parents=True)
            # The server's user must be able to pass through.
            self.state_directory.chmod(0o755 if is_root else 0o700)
        self.path.mkdir(mode=0o700, exist_ok=True)
        owner = self.path.stat()
        self.user = ServerUser(owner.st_uid, owner.st_gid)
        if is_root and owner.st_uid == 0:
            self.user = _find_unprivileged_user()
            os.chown(self.path, *self.user)

    def lock_for_daemon(self) -> int:
        """Reserves the directory for this process; returns the descriptor of the lock.

        Raises EmbeddedPostgresError if another daemon has reserved it.
        """
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(lock):
            os.close(lock)
            raise EmbeddedPostgresError(
                f"another daemon runs PostgreSQL in {self.path}:"
                " stop it, or choose another state_directory"
            )
        return lock

    def read_major_version(self) -> int | None:
        """The major version that the data belongs to; None if there is no data yet.

        Raises EmbeddedPostgresError if the data is not PostgreSQL's, or damaged.
        """
        try:
            text = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if self.data.exists():
                raise EmbeddedPostgresError(
                    f"{self.data} is not a PostgreSQL data directory: move it away"
                ) from None
            return None
        if not text.isdecimal():
            raise EmbeddedPostgresError(
                f"{self.data} is damaged (PG_VERSION contains {text!r}): restore it from a backup"
            )
        return int(text)

    def initialize(
        self, binaries: Path, lock: int, stopping: threading.Event, *, sync: bool
    ) -> None:
        """Creates the data with `initdb`, atomically: it is written beside its path first.

        `lock` is the descriptor of the directory, which `initdb` inherits. When `stopping` is
        set, `initdb` is killed and InterruptedError raised.
        """
        unfinished = self.data.with_name("data.new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        command = [
            *(str(binaries / "initdb"), "-D", str(unfinished)),
            *("--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-locale"),
            "--data-checksums",
        ]
        if not sync:
            command.append("--no-sync")
        outcome = run_until_stopped(
            wrap_command(command, self.user),
            stopping,
            _INITDB_TIMEOUT_S,
            cwd=self.path,
            env=SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[lock],
        )
        if outcome.returncode != 0:
            raise self.failure("initdb failed", outcome.stderr)
        unfinished.rename(self.data)
        os.fsync(lock)  # makes the rename durable

    def make_socket_directory(self) -> Path:
        """A directory for the server's socket: this one, or a temporary one whose path is short.

        Raises EmbeddedPostgresError if neither path can be used.
        """
        # libpq and PostgreSQL take a comma as the separator of several directories.
        if _fits_socket_path(self.path) and "," not in str(self.path):
            return self.path
        short = Path(tempfile.mkdtemp(prefix="tilecache-"))
        os.chown(short, *self.user)
        if not _fits_socket_path(short):
            short.rmdir()
            raise EmbeddedPostgresError(
                f"a socket cannot be created in {self.path}, and {short} is too long for one:"
                " choose a shorter state_directory"
            )
        return short

    def failure(self, what: str, output: str) -> EmbeddedPostgresError:
        """The error for a program that failed and wrote `output`."""
        message = f"{what} in {self.path}: {output.strip() or 'no output'}"
        if "Permission denied" in output and self.user.uid != os.geteuid():
            message += (
                f" (PostgreSQL does not run as root, but as {_name_user(self.user.uid)}, who needs"
                " access to every parent directory: choose another state_directory)"
            )
        return EmbeddedPostgresError(message)


def try_lock(descriptor: int) -> bool:
    """Whether the lock could be taken. It lasts until the last copy of the descriptor closes."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _find_unprivileged_user() -> ServerUser:
    for name in _UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root, and none of the users {', '.join(_UNPRIVILEGED_USERS)}"
        f" exists: create one (useradd --system {_UNPRIVILEGED_USERS[0]})"
    )


def _name_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _fits_socket_path(directory: Path) -> bool:
    return len(os.fsencode(directory / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
