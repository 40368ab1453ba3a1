"""Outages of PostgreSQL under load: cached reads continue, and the daemon recovers."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from tests.faults.daemons import Daemon
from tests.faults.load import Load
from tests.faults.scale import OUTAGE_S, ROUNDS
from tests.faults.servers import (
    ForeignPostgres,
    backend_pids,
    embedded_dsn,
    frozen,
    suspended,
)
from tests.tiles import (
    NOW,
    Block,
    bulk_insert,
    by_id,
    by_key,
    cell_region,
    insert,
    tile,
    tile_uuid,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient, is_degraded
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_REPLACED,
    GetServerInfoRequest,
    GetTileRequest,
    InsertTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER as REPLACE,
)

CANCELED = "DEADLINE_EXCEEDED QUERY_CANCELED"
FULL = "RESOURCE_EXHAUSTED DATABASE_FULL"
UNAVAILABLE = "UNAVAILABLE DATABASE_UNAVAILABLE"


def is_unready(client: TileCacheClient) -> bool:
    return not client.is_serving()


def is_cached(client: TileCacheClient) -> bool:
    """Whether any tile is in memory."""
    return client.store.GetServerInfo(GetServerInfoRequest(), timeout=10).cache.tiles > 0


def renew_subscription(dsn: str) -> None:
    """Ends the session of the change notifications, and waits for the next one."""
    before = backend_pids(dsn, "tilecache-changes")
    with psycopg.connect(dsn) as connection:
        for pid in before:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    eventually(lambda: set(backend_pids(dsn, "tilecache-changes")) - set(before))


def test_a_restart_of_postgresql_causes_retryable_errors_only(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    with Load(daemon_on_foreign.socket_path) as load:
        for _ in range(ROUNDS):
            foreign.restart()
            load.wait_until_all_succeed()
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)


def test_while_postgresql_is_stopped_the_cache_answers_and_writes_fail(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    client, pid = daemon_on_foreign.client, daemon_on_foreign.pid
    with Load(daemon_on_foreign.socket_path) as load:
        foreign.stop_for_a_while()
        eventually(lambda: is_unready(client))
        load.wait_until_refused("bulk", "insert")
        load.wait_until_degraded()
        load.run_for(OUTAGE_S)
        assert load.refused("bulk").keys() | load.refused("insert").keys() == {UNAVAILABLE}
        foreign.start_again()
        eventually(client.is_serving)
        load.wait_until_all_succeed()
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)
    assert daemon_on_foreign.pid == pid
    assert not daemon_on_foreign.ended


def test_while_postgresql_is_frozen_the_cache_answers_and_writes_fail(
    daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    client = daemon_on_foreign.client
    with Load(daemon_on_foreign.socket_path) as load:
        for _ in range(ROUNDS):
            with frozen(foreign.pid):
                eventually(lambda: is_unready(client))
                load.wait_until_refused("bulk", "insert")
                load.wait_until_degraded()
                load.run_for(OUTAGE_S)
            eventually(client.is_serving)
            load.wait_until_all_succeed()
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)


def test_calls_waiting_for_a_frozen_server_fail_as_unavailable(
    foreign: ForeignPostgres, short_directory: Path
) -> None:
    """They time out waiting for a connection before the probe detects the outage."""
    calls = 8
    with (
        Daemon(short_directory, dsn=foreign.dsn, pool_timeout_s=1.6) as daemon,
        ThreadPoolExecutor(calls) as threads,
        frozen(foreign.pid),
    ):
        request = GetTileRequest(tile=by_key(Block().key()))
        waiting = [
            threads.submit(daemon.client.store.GetTile, request, timeout=60) for _ in range(calls)
        ]
        refused = [call.exception() for call in waiting]
    assert Counter(error.reason for error in refused if isinstance(error, CallError)) == {
        "DATABASE_UNAVAILABLE": calls
    }


@pytest.mark.parametrize("name", ["tilecache-changes", "tilecache-probe"])
def test_a_silently_lost_connection_is_replaced(
    name: str, daemon_on_foreign: Daemon, foreign: ForeignPostgres
) -> None:
    with Load(daemon_on_foreign.socket_path) as load:
        before = backend_pids(foreign.dsn, name)
        with suspended(before):
            eventually(lambda: set(backend_pids(foreign.dsn, name)) - set(before))
            load.wait_until_all_succeed()
        load.wait_until_all_succeed()
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)


def test_unresponsive_sessions_are_cut_without_a_deadline(
    foreign: ForeignPostgres, short_directory: Path
) -> None:
    """The probe does not detect it, since its own session answers."""
    with (
        Daemon(short_directory, dsn=foreign.dsn, statement_timeout_s=2) as daemon,
        Load(daemon.socket_path) as load,
    ):
        with ExitStack() as suspension:
            with load.paused():
                # A session that is frozen in a transaction would keep its locks.
                eventually(lambda: not backend_pids(foreign.dsn, "tilecache", busy=True))
                sessions = backend_pids(foreign.dsn, "tilecache")
                suspension.enter_context(suspended(sessions))
            load.wait_until_all_succeed()
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)


def test_tiles_in_memory_are_returned_while_unresponsive_sessions_occupy_the_pool(
    foreign: ForeignPostgres, short_directory: Path
) -> None:
    """Notifications were missed, so that what is in memory is not trusted."""
    key = Block().key()
    pool = {"pool_min_size": 4, "pool_max_size": 4, "pool_timeout_s": 1}
    lookup = LookupTilesRequest(tiles=[by_id(key)])
    query = QueryTilesRequest(zoom=key.zoom, region=cell_region(key.x, key.x, key.y, key.y))
    with (
        Daemon(short_directory, dsn=foreign.dsn, statement_timeout_s=3, **pool) as daemon,
        ThreadPoolExecutor(32) as threads,
    ):
        client = daemon.client

        def look_up(_: int) -> bool:
            answer, call = client.store.LookupTiles.with_call(lookup, timeout=30)
            assert answer.results[0].HasField("tile")
            return is_degraded(call)

        def query_region(_: int) -> bool:
            answers = client.store.QueryTiles(query, timeout=30)
            assert sum(len(answer.tiles) for answer in answers) == 1
            return is_degraded(answers)

        insert(client, tile(key))
        eventually(lambda: not query_region(0) and is_cached(client))
        sessions = backend_pids(foreign.dsn, "tilecache")
        assert len(sessions) == 4
        with suspended(sessions):
            renew_subscription(foreign.dsn)
            lookups = [threads.submit(look_up, number) for number in range(24)]
            queries = [threads.submit(query_region, number) for number in range(3)]
            degraded = [call.result() for call in lookups + queries]
            assert any(degraded)
        eventually(lambda: not look_up(0) and not query_region(0))


def test_a_daemon_that_hangs_in_a_transaction_loses_its_locks(
    foreign: ForeignPostgres, short_directory: Path, open_directory: Path
) -> None:
    """Else a replacement through another daemon would wait for the statement timeout."""
    held, free = Block().keys(2)
    (open_directory / "other").mkdir()
    with (
        Daemon(short_directory, dsn=foreign.dsn) as hung,
        Daemon(open_directory / "other", dsn=foreign.dsn) as other,
        ThreadPoolExecutor() as threads,
        psycopg.connect(foreign.dsn) as blocker,
    ):
        bulk_insert(other.client, [tile(held), tile(free)])
        blocker.execute("SELECT FROM tiles WHERE tile_uuid = %s FOR UPDATE", [tile_uuid(held)])
        threads.submit(insert, hung.client, tile(held, "newer", captured_at=NOW), REPLACE)
        eventually(lambda: waiting_for_locks(foreign.dsn) == 1)
        with suspended([hung.pid]):
            blocker.rollback()
            newer = InsertTileRequest(
                tile=tile(free, "newer", captured_at=NOW), on_conflict=REPLACE
            )
            answer = other.client.store.InsertTile(newer, timeout=25)
            assert answer.outcome == INSERT_OUTCOME_REPLACED
            hung.kill()


def test_writes_that_wait_for_a_lock_end_with_the_statement_timeout(
    foreign: ForeignPostgres, short_directory: Path
) -> None:
    with (
        Daemon(short_directory, dsn=foreign.dsn, statement_timeout_s=2) as daemon,
        Load(daemon.socket_path, expected=CANCELED) as load,
    ):
        with psycopg.connect(foreign.dsn) as other:
            other.execute("LOCK TABLE tiles IN EXCLUSIVE MODE")
            load.wait_until_refused("bulk", "insert")
        load.wait_until_all_succeed()
        assert load.refused("bulk").keys() | load.refused("insert").keys() == {CANCELED}
        assert load.refused("navigate") == Counter()
        load.verify(foreign.dsn)


def test_a_full_disk_fails_writes_and_loses_nothing(small_disk: Path) -> None:
    """PostgreSQL finally stops; the daemon restarts it until there is space."""
    filler = small_disk / "state" / "filler"
    with Daemon(small_disk) as daemon:
        dsn = embedded_dsn(daemon.state_directory)
        with Load(daemon.socket_path) as load:
            for _ in range(ROUNDS + 1):
                fill_up(filler)
                load.wait_until_refused("bulk", "insert")
                assert FULL in load.refused("bulk") + load.refused("insert")
                exhaust_wal(dsn)
                eventually(lambda: is_unready(daemon.client))
                load.wait_until_degraded()
                load.run_for(OUTAGE_S)
                filler.unlink()
                load.wait_until_all_succeed()
            assert load.refused("navigate") == Counter()
            load.verify(dsn)
        assert daemon.stop() == 0


@pytest.fixture
def small_disk(open_directory: Path) -> Iterator[Path]:
    """A directory whose `state` is a file system of 200 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = open_directory / "state"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m,mode=755", "tilecache-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield open_directory
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill_up(filler: Path) -> None:
    """Writes a file until the file system is full."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def exhaust_wal(dsn: str) -> None:
    """Switches to the next file of the write-ahead log until there is no space for one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.broken:
            with suppress(psycopg.Error):
                connection.execute("SELECT pg_logical_emit_message(false, 'test', 'next')")
                connection.execute("SELECT pg_switch_wal()")
