"""PostgreSQL servers that a test can kill, freeze and restart."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from tests.waiting import eventually
from tilecache_daemon.postgres.embedded import EmbeddedPostgres

# Only processes are killed, not the machine: the kernel keeps written data.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_writer_delay": "10s"}


class ForeignPostgres:
    """An external server, which the daemon only connects to."""

    def __init__(self, directory: Path, **settings: str) -> None:
        # As an administrator's server, which nobody starts again.
        self.settings = SETTINGS | {"restart_after_crash": "on"} | settings
        """PostgreSQL's settings; they apply from the next start on."""
        self.dsn = ""
        self._directory = directory
        self._server = EmbeddedPostgres(directory)

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self._directory / "postgres" / "data"

    @property
    def pid(self) -> int:
        assert self._server.server_pid is not None
        return self._server.server_pid

    def start(self) -> None:
        self._server = EmbeddedPostgres(self._directory, settings=self.settings)
        self.dsn = self._server.start()

    def stop(self) -> None:
        """Stops the server, even if it is frozen."""
        if self._server.server_pid is not None:
            thaw(self.pid)
        self._server.stop()

    def kill(self) -> None:
        """Kills the server."""
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not self._server.is_running())

    def stop_for_a_while(self) -> None:
        """Stops the server as an administrator does."""
        os.kill(self.pid, signal.SIGINT)
        eventually(lambda: not self._server.is_running())

    def restart(self) -> None:
        """Stops the server as an administrator does, and starts it again."""
        self.stop_for_a_while()
        self.start_again()

    def start_again(self) -> None:
        """Starts the server again at the same address."""
        eventually(self._server.restart_if_dead)


def embedded_pid(state_directory: Path) -> int:
    """The process id of a daemon's embedded server; 0 while there is none."""
    pid_file = state_directory / "postgres" / "data" / "postmaster.pid"
    with suppress(FileNotFoundError, IndexError):
        return int(pid_file.read_text().split()[0])
    return 0


def embedded_dsn(state_directory: Path) -> str:
    """The address of a daemon's embedded server."""
    host = str(state_directory / "postgres")
    return make_conninfo(host=host, port=5432, user="tilecache", dbname="tilecache")


def backend_pids(dsn: str, application_name: str, *, busy: bool = False) -> list[int]:
    """The process ids of the sessions with this application name; with `busy`, of those that
    execute a statement or are in a transaction."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = %s AND (state <> 'idle' OR NOT %s)",
            [application_name, busy],
        ).fetchall()
    return [pid for (pid,) in rows]


def freeze(pid: int) -> None:
    """Suspends a server and its children: connections stay open, nothing answers."""
    os.kill(pid, signal.SIGSTOP)
    for child in children(pid):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Resumes a frozen server. Does nothing if it has ended."""
    with suppress(ProcessLookupError):
        for child in children(pid):
            os.kill(child, signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)


@contextmanager
def suspended(pids: Collection[int]) -> Iterator[None]:
    """Sessions that are suspended until the block ends."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            thaw(pid)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server that is frozen until the block ends."""
    freeze(pid)
    try:
        yield
    finally:
        thaw(pid)


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The parent is the second field after the name, which may contain blanks and ')'.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
