"""`kill -9` under load: nothing acknowledged is lost, and no answer is wrong."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import psycopg

from tests.clocked_daemon import ClockedDaemon
from tests.faults.daemons import Daemon
from tests.faults.load import Load
from tests.faults.scale import ROUNDS
from tests.faults.servers import (
    ForeignPostgres,
    backend_pids,
    embedded_dsn,
    embedded_pid,
    thaw,
)
from tests.tiles import NOW, Block, insert, is_stored, tile, tile_uuid
from tests.waiting import eventually


def test_a_killed_daemon_loses_nothing_acknowledged(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    with Load(daemon_on_foreign.socket_path) as load:
        for _ in range(ROUNDS):
            daemon_on_foreign.kill()
            load.wait_until_refused("lookup", "insert", "bulk")
            daemon_on_foreign.start()
            load.wait_until_all_succeed()
        load.verify(foreign.dsn)


def test_a_killed_embedded_postgresql_is_restarted(
    daemon_with_embedded: Daemon,
) -> None:
    state = daemon_with_embedded.state_directory
    with Load(daemon_with_embedded.socket_path) as load:
        for _ in range(ROUNDS):
            pid = embedded_pid(state)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: embedded_pid(state) not in (0, pid))
            load.wait_until_all_succeed()
        load.verify(embedded_dsn(state))


def test_a_crash_of_a_session_starts_a_new_embedded_postgresql(
    daemon_with_embedded: Daemon,
) -> None:
    """Instead of one that restarts its own processes, which may come to a standstill."""
    state = daemon_with_embedded.state_directory
    with Load(daemon_with_embedded.socket_path) as load:
        for _ in range(ROUNDS):
            pid = embedded_pid(state)
            os.kill(backend_pids(embedded_dsn(state), "tilecache")[0], signal.SIGKILL)
            eventually(lambda pid=pid: embedded_pid(state) not in (0, pid))
            load.wait_until_all_succeed()
        load.verify(embedded_dsn(state))


def test_an_embedded_postgresql_that_does_not_respond_is_killed_and_started_again(
    open_directory: Path,
) -> None:
    with ClockedDaemon(open_directory, NOW) as daemon:
        state = open_directory / "state"
        pid, dsn, key = embedded_pid(state), embedded_dsn(state), Block().key()
        insert(daemon.client, tile(key))
        with psycopg.connect(dsn, autocommit=True) as connection:
            os.kill(pid, signal.SIGSTOP)
            try:
                # Sessions that exist would go on; new ones are not accepted.
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                eventually(lambda: not daemon.client.is_serving())
                daemon.pass_time(timedelta(seconds=121))
                eventually(daemon.client.is_serving)
            finally:
                thaw(pid)
        assert embedded_pid(state) not in (0, pid)
        assert is_stored(daemon.client, key)
        assert "postgres_unresponsive" in daemon.log


def test_the_daemon_reconnects_to_a_killed_external_postgresql(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    with Load(daemon_on_foreign.socket_path) as load:
        for _ in range(ROUNDS):
            foreign.kill()
            load.wait_until_refused("insert", "bulk")
            foreign.start_again()
            load.wait_until_all_succeed()
        load.verify(foreign.dsn)


def test_a_killed_session_causes_retryable_errors_only(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    with Load(daemon_on_foreign.socket_path) as load:
        for name in ("tilecache", "tilecache-changes", "tilecache-probe"):
            # PostgreSQL treats it as a crash: it ends all sessions and recovers.
            os.kill(backend_pids(foreign.dsn, name)[0], signal.SIGKILL)
            load.wait_until_all_succeed()
        load.verify(foreign.dsn)


def test_killing_both_processes_loses_nothing_acknowledged(
    daemon_with_embedded: Daemon,
) -> None:
    state = daemon_with_embedded.state_directory
    with Load(daemon_with_embedded.socket_path) as load:
        for _ in range(ROUNDS):
            os.kill(embedded_pid(state), signal.SIGKILL)
            daemon_with_embedded.kill()
            daemon_with_embedded.start()
            load.wait_until_all_succeed()
        load.verify(embedded_dsn(state))


def test_commits_are_durable_even_if_synchronous_commit_is_off(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    """The write-ahead log is written every ten seconds, unless a commit waits for it."""
    with psycopg.connect(foreign.dsn, autocommit=True) as connection:
        connection.execute("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
    daemon_on_foreign.stop()
    daemon_on_foreign.start()
    block = Block()
    for key in block.keys(5):
        insert(daemon_on_foreign.client, tile(key))
    foreign.kill()
    foreign.start_again()
    with psycopg.connect(foreign.dsn) as connection:
        rows = connection.execute("SELECT tile_uuid::text FROM tiles").fetchall()
    assert {uuid for (uuid,) in rows} == {tile_uuid(key) for key in block.keys(5)}
