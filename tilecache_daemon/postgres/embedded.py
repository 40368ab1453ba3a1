"""The daemon's own PostgreSQL server, for installations without a database address.

The server listens only on a Unix socket, in a directory that only its user can
enter. It ends when the daemon does, however the daemon ends. PostgreSQL refuses
to run as root; a daemon that runs as root starts it as an unprivileged user.
"""

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from tilecache_daemon.clock import Clock
from tilecache_daemon.postgres.binaries import Binaries, choose_binaries
from tilecache_daemon.postgres.data_directory import (
    SOCKET_NAME,
    SUPERUSER,
    DataDirectory,
    try_lock,
)
from tilecache_daemon.postgres.errors import EmbeddedPostgresError
from tilecache_daemon.postgres.launcher import wrap_command
from tilecache_daemon.postgres.process import (
    LOG_LINE_PREFIX,
    ServerProcess,
    read_ready_pid,
    remove_stale_pid_file,
)

DATABASE: Final = "tilecache"

_POLL_INTERVAL_S: Final = 0.02
_CONNECT_TIMEOUT_S: Final = 10

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": "5432",
    # After a crash the daemon starts a new server. One that restarts its own processes may
    # come to a standstill if its disk is full meanwhile (seen with PostgreSQL 18).
    "restart_after_crash": "off",
    "unix_socket_permissions": "0700",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The pool's maximum size, and some for migrations and administrators.
    "max_connections": "120",
    # The least; memory.py has what a machine's memory allows.
    "shared_buffers": "48MB",
    "max_parallel_workers_per_gather": "0",
    # Flash wears out, and full-page images are most of what a checkpoint adds to the WAL.
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


class EmbeddedPostgres:
    """A PostgreSQL server whose data is below a state directory.

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
        """`settings` are PostgreSQL's, and override the daemon's defaults.

        `start_timeout_s` bounds two waits: for an earlier server to end, and for
        the recovery after a crash.
        """
        self._directory = DataDirectory(state_directory)
        self._settings = {**_SETTINGS, **(settings or {})}
        self._start_timeout_s = start_timeout_s
        self._clock = clock or Clock()
        self._lifecycle = threading.Lock()
        self._stopping = threading.Event()
        self._daemon_lock: int | None = None
        self._socket_directory: Path | None = None
        self._server: ServerProcess | None = None
        self._binaries: Binaries

    @property
    def dsn(self) -> str:
        """The conninfo of the daemon's database; EmbeddedPostgresError before the start."""
        return self._conninfo(DATABASE)

    @property
    def server_pid(self) -> int | None:
        """The process id of the server that was started last, if any."""
        return self._server.pid if self._server else None

    def is_running(self) -> bool:
        """Whether the server process exists; it may still be starting or stopping."""
        return self._server is not None and self._server.is_running()

    def start(self) -> str:
        """Starts the server, and initializes its data if there is none; returns `dsn`.

        Returns when the server accepts connections and has the database. Raises
        EmbeddedPostgresError, with nothing left running.
        """
        with self._lifecycle:
            if self._server is not None:
                raise EmbeddedPostgresError(
                    f"PostgreSQL in {self._directory.path} is already started"
                )
            try:
                with self._translating_errors():
                    self._start()
            except BaseException:
                self._release()
                raise
        return self.dsn

    def restart_if_dead(self) -> bool:
        """Restarts the server if it has ended without `stop`; returns whether it did.

        Raises EmbeddedPostgresError on failure; may then be called again.
        """
        with self._lifecycle, self._translating_errors():
            if self._server is None or self._server.is_running():
                return False
            _logger.warning("PostgreSQL ended unexpectedly; restarting it")
            self._restart()
            return True

    def restart(self) -> None:
        """Kills the server, which no longer responds, and starts it again.

        Raises EmbeddedPostgresError on failure; `restart_if_dead` may then be called.
        """
        with self._lifecycle, self._translating_errors():
            if self._server is not None:
                self._server.kill()
                self._restart()

    def stop(self) -> None:
        """Stops the server with a checkpoint, by force if that takes too long.

        Aborts a start that is under way in another thread. Does nothing if there
        is no server.
        """
        self._stopping.set()
        with self._lifecycle:
            self._release()
            self._stopping.clear()

    def _start(self) -> None:
        directory = self._directory
        directory.prepare()
        self._daemon_lock = directory.lock_for_daemon()
        with self._server_lock() as lock:
            self._binaries = choose_binaries(
                directory.user,
                copies=directory.state_directory,
                data=directory.data,
                data_version=directory.read_major_version(),
            )
            if not directory.data.exists():
                sync = self._settings.get("fsync") != "off"
                directory.initialize(self._binaries.directory, lock, self._stopping, sync=sync)
            self._socket_directory = directory.make_socket_directory()
            self._server = self._launch(lock)
        self._create_database(self._server)

    def _restart(self) -> None:
        with self._server_lock() as lock:
            self._server = self._launch(lock)
        self._create_database(self._server)

    def _release(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._socket_directory not in (None, self._directory.path):
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._socket_directory = None
        if self._daemon_lock is not None:
            os.close(self._daemon_lock)
            self._daemon_lock = None

    @contextmanager
    def _server_lock(self) -> Iterator[int]:
        """The lock that PostgreSQL's processes inherit.

        The processes of a killed daemon or a killed server run on for a moment, and
        two servers must never use the same data: this waits for the last of them.
        """
        lock = os.open(self._directory.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            failure = f"an earlier PostgreSQL in {self._directory.path} did not end"
            self._await(lambda: try_lock(lock) or None, failure)
            yield lock
        finally:
            os.close(lock)

    def _launch(self, lock: int) -> ServerProcess:
        assert self._socket_directory is not None
        directory = self._directory
        remove_stale_pid_file(directory.data / "postmaster.pid")
        remove_stale_pid_file(self._socket_directory / f"{SOCKET_NAME}.lock")
        settings = {**self._settings, "unix_socket_directories": str(self._socket_directory)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        program = str(self._binaries.directory / "postgres")
        command = [program, "-D", str(directory.data), *options]
        return ServerProcess(wrap_command(command, directory.user), lock)

    def _create_database(self, server: ServerProcess) -> None:
        failure = f"PostgreSQL in {self._directory.path} did not become ready"
        with self._await(lambda: self._find_connection(server), failure) as connection:
            exists = "SELECT FROM pg_database WHERE datname = %s"
            if not connection.execute(exists, [DATABASE]).rowcount:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _find_connection(self, server: ServerProcess) -> psycopg.Connection | None:
        """A connection if the server is ready; EmbeddedPostgresError if it has ended."""
        if not server.is_running():
            raise self._directory.failure("PostgreSQL did not start", server.read_last_lines())
        if read_ready_pid(self._directory.data) == server.pid:
            # The file may still be that of an earlier server with the same process id.
            with suppress(psycopg.OperationalError):
                return psycopg.connect(
                    self._conninfo("postgres"), autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
                )
        return None

    def _await(self, find: Callable[[], _T | None], failure: str) -> _T:
        deadline = self._clock.monotonic() + self._start_timeout_s
        while (found := find()) is None:
            if self._stopping.wait(_POLL_INTERVAL_S):
                raise EmbeddedPostgresError("PostgreSQL was stopped while it was starting")
            if self._clock.monotonic() > deadline:
                raise EmbeddedPostgresError(f"{failure} within {self._start_timeout_s:g} s")
        return found

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
            raise EmbeddedPostgresError(
                f"PostgreSQL cannot be started in {self._directory.path}: {error}"
                " (the setting state_directory says where its data is stored)"
            ) from error

    def _conninfo(self, database: str) -> str:
        if self._socket_directory is None:
            raise EmbeddedPostgresError("PostgreSQL is not started")
        host = str(self._socket_directory)
        return make_conninfo(host=host, port=5432, user=SUPERUSER, dbname=database)
