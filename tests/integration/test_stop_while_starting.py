"""SIGTERM while the daemon starts: it ends at once, and nothing goes on after it.

What it waits for would take longer than a test waits for its end.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import EXIT_TIMEOUT_S, DaemonProcess
from tests.migration.observed_database import Database
from tests.waiting import eventually
from tilecache_daemon.config import Config
from tilecache_daemon.daemon import Daemon
from tilecache_daemon.schema.connection import MIGRATION_LOCK_KEY

TOO_LONG_S = 10 * EXIT_TIMEOUT_S
LOCKS = [
    f"SELECT pg_advisory_lock({MIGRATION_LOCK_KEY})",
    "LOCK TABLE tiles IN ACCESS SHARE MODE",
]
NOBODY_MIGRATES = """NOT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tilecache migrate'
)"""


@pytest.fixture
def old(empty_database: str) -> Database:
    """A database that is to be migrated."""
    database = Database(empty_database)
    database.upgrade_to("0001_initial")
    return database


@pytest.mark.parametrize("lock", LOCKS)
def test_while_it_waits_for_a_lock_to_migrate(
    old: Database, short_directory: Path, lock: str
) -> None:
    process = DaemonProcess(short_directory, dsn=old.dsn, migration_lock_timeout_s=TOO_LONG_S)
    try:
        with old.holding(lock):
            process.launch()
            old.wait_for_waiting_sessions(1)
            assert process.stop() == 0
            old.wait_until(NOBODY_MIGRATES)
        assert '"stopped"' in process.log
        assert old.revisions() == ["0001_initial"]
    finally:
        process.close()


async def test_a_cancelled_start_ends_its_migration(old: Database, short_directory: Path) -> None:
    config = Config(
        dsn=old.dsn,
        socket_path=short_directory / "s",
        admin_socket_path=short_directory / "a",
        migration_lock_timeout_s=TOO_LONG_S,
    )
    with old.holding(LOCKS[1]):
        start = asyncio.create_task(Daemon(config).start())
        await asyncio.to_thread(old.wait_for_waiting_sessions, 1)
        start.cancel()
        await asyncio.wait({start})
        await asyncio.to_thread(old.wait_until, NOBODY_MIGRATES)
    assert old.revisions() == ["0001_initial"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_while_it_waits_for_a_silent_server(silent_port: int, short_directory: Path) -> None:
    dsn = f"host=127.0.0.1 port={silent_port} connect_timeout={TOO_LONG_S:.0f}"
    process = DaemonProcess(short_directory, dsn=dsn)
    process.log_path.touch()
    try:
        process.launch()
        eventually(lambda: "waiting for the database" in process.log)
        assert process.stop() == 0
        assert '"stopped"' in process.log
    finally:
        process.close()


def test_while_its_own_postgresql_is_made(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    process = DaemonProcess(short_directory)
    try:
        process.launch()
        initdb = eventually(lambda: find_process("initdb", short_directory))
        os.kill(initdb, signal.SIGSTOP)
        assert process.stop() == 0
        assert '"stopped"' in process.log
        assert not find_process("initdb", short_directory)
        assert not find_process("postgres", short_directory)
    finally:
        process.close()


def find_process(program: str, directory: Path) -> int | None:
    """The process id of a program that has a directory in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if Path(words[0]).name == program and str(directory) in " ".join(words):
            return int(file.parent.name)
    return None
