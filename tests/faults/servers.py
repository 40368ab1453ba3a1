"""PostgreSQL servers that a test may kill, freeze and bring back."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from tests.waiting import eventually
from tilecache_daemon.postgres.embedded import EmbeddedPostgres

# What is killed is a process, not the machine: the kernel keeps what was written.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_writer_delay": "10s"}


class ForeignPostgres:
    """A server that the daemon knows by its address only."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.settings = SETTINGS | settings
        """PostgreSQL's; what is added before the start counts, too."""
        self.dsn = ""
        self._directory = directory
        self._server = EmbeddedPostgres(directory)

    @property
    def pid(self) -> int:
        assert self._server.server_pid is not None
        return self._server.server_pid

    def start(self) -> None:
        self._server = EmbeddedPostgres(self._directory, settings=self.settings)
        self.dsn = self._server.start()

    def stop(self) -> None:
        """Ends it in order, whatever was done to it."""
        if self._server.server_pid is not None:
            thaw(self.pid)
        self._server.stop()

    def kill(self) -> None:
        """Ends it as a crash would."""
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not self._server.is_running())

    def stop_for_a_while(self) -> None:
        """Ends it as an administrator would."""
        os.kill(self.pid, signal.SIGINT)
        eventually(lambda: not self._server.is_running())

    def restart(self) -> None:
        """Ends it as an administrator would, and brings it back."""
        self.stop_for_a_while()
        self.start_again()

    def start_again(self) -> None:
        """Brings it back, at the same address."""
        eventually(self._server.restart_if_dead)


def embedded_pid(state_directory: Path) -> int:
    """The process id of the server that a daemon runs by itself; 0 while there is none."""
    pid_file = state_directory / "postgres" / "data" / "postmaster.pid"
    with suppress(FileNotFoundError, IndexError):
        return int(pid_file.read_text().split()[0])
    return 0


def embedded_dsn(state_directory: Path) -> str:
    """The address of the server that a daemon runs by itself."""
    host = str(state_directory / "postgres")
    return make_conninfo(host=host, port=5432, user="tilecache", dbname="tilecache")


def backend_pids(dsn: str, application_name: str) -> list[int]:
    """The sessions of a program, by the name that it gives itself."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [application_name]
        ).fetchall()
    return [pid for (pid,) in rows]


def freeze(pid: int) -> None:
    """Stops a server and its children without a word: connections stay, nothing answers."""
    os.kill(pid, signal.SIGSTOP)
    for child in children(pid):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Lets a frozen server go on. Does nothing to one that has ended."""
    with suppress(ProcessLookupError):
        for child in children(pid):
            os.kill(child, signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server that is frozen until the block ends."""
    freeze(pid)
    try:
        yield
    finally:
        thaw(pid)


def children(pid: int) -> list[int]:
    """The processes that have this one for their parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name may hold blanks and parentheses; the parent is the second after it.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
