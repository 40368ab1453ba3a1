"""What Prometheus sees, while the daemon works and while its database is away."""

import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.utils import floatToGoString
from psycopg.sql import SQL, Identifier

from tests.admin import evict
from tests.clocked_daemon import ClockedDaemon
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.scraping import Scrape, scrape
from tests.tiles import GOOGLEMAPS, NOW, TIMEOUT_S, Block, by_key, insert, store_row, tile, tile_key
from tests.waiting import PATIENCE_S, eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    GetTileRequest,
    TouchTilesRequest,
)
from tilecache_daemon.schema.migrator import HEAD_REVISION, REVISIONS
from tilecache_daemon.store.database import KEPT_FOR_READS

NEVER_S = 3_600
POOL_MIN_SIZE, POOL_MAX_SIZE = 2, 5
CEILING_BYTES = 1_000_000
OLD_TILE_BYTES = 777
LAST_USED = NOW - timedelta(days=3)
DAY_S = 86_400
EXIT_FAILED = 5


@pytest.fixture(scope="module")
def shared_daemon(shared_database: str) -> Iterator[DaemonProcess]:
    """It serves metrics on a Unix socket, and writes no accesses by itself."""
    with psycopg.connect(shared_database, autocommit=True) as sql:
        store_row(sql, tile_key(5, 1, 1), disk_bytes=OLD_TILE_BYTES, accessed_at=LAST_USED)
    with tempfile.TemporaryDirectory(prefix="tilecache-") as name:
        directory = Path(name)
        with DaemonProcess(
            directory,
            dsn=shared_database,
            metrics_address=directory / "metrics.sock",
            access_flush_interval_s=NEVER_S,
            pool_min_size=POOL_MIN_SIZE,
            pool_max_size=POOL_MAX_SIZE,
            pool_timeout_s=PATIENCE_S,
            max_used_bytes=CEILING_BYTES,
        ) as process:
            yield process


@pytest.fixture
def metrics(shared_daemon: DaemonProcess) -> Path:
    return shared_daemon.socket_path.with_name("metrics.sock")


def handled(seen: Scrape, method: str, code: str) -> float:
    return seen.value("grpc_server_handled_total", grpc_method=method, grpc_code=code)


def started(seen: Scrape, method: str) -> float:
    return seen.value("grpc_server_started_total", grpc_method=method)


def get(client: TileCacheClient, key: Any) -> None:
    client.store.GetTile(GetTileRequest(tile=by_key(key)), timeout=TIMEOUT_S)


def test_each_call_is_counted_by_how_it_ended(
    client: TileCacheClient, metrics: Path, block: Block
) -> None:
    before = scrape(metrics)
    insert(client, tile(block.key()))
    get(client, block.key())
    for missing in range(3):
        with pytest.raises(CallError, match="no tile"):
            get(client, block.key(1 + missing))

    def counted() -> dict[tuple[str, str], float]:
        after = scrape(metrics)
        counts = {
            (method, code): handled(after, method, code) - handled(before, method, code)
            for method in ("GetTile", "InsertTile", "QueryTiles")
            for code in ("OK", "NOT_FOUND")
        }
        return {what: count for what, count in counts.items() if count}

    # A refusal is counted when it has been sent.
    expected = {("GetTile", "OK"): 1, ("GetTile", "NOT_FOUND"): 3, ("InsertTile", "OK"): 1}
    assert eventually(lambda: counted() == expected)
    assert started(scrape(metrics), "GetTile") - started(before, "GetTile") == 4


def test_each_calls_time_is_in_the_histogram(
    client: TileCacheClient, metrics: Path, block: Block
) -> None:
    def seconds(suffix: str, **labels: str) -> float:
        name = f"grpc_server_handling_seconds_{suffix}"
        return scrape(metrics).value(name, grpc_method="InsertTile", **labels)

    count, total = seconds("count"), seconds("sum")
    insert(client, tile(block.key()))
    assert seconds("count") == seconds("bucket", le="+Inf") == count + 1
    assert seconds("sum") > total


@pytest.mark.parametrize(
    ("timeout_s", "code"), [(TIMEOUT_S, "CANCELLED"), (0.5, "DEADLINE_EXCEEDED")]
)
def test_a_stream_that_its_caller_ends_is_counted_as_such(
    client: TileCacheClient, metrics: Path, block: Block, timeout_s: float, code: str
) -> None:
    before = handled(scrape(metrics), "BulkInsertTiles", code)
    held_open = iter(lambda: BulkInsertTilesRequest(tiles=[tile(block.key())]), None)
    answers = client.store.BulkInsertTiles(held_open, timeout=timeout_s)
    next(answers)
    if code == "CANCELLED":
        answers.cancel()
    else:
        with pytest.raises(CallError):
            list(answers)
    assert eventually(lambda: handled(scrape(metrics), "BulkInsertTiles", code) == before + 1)


def test_what_is_read_again_is_a_hit(client: TileCacheClient, metrics: Path, block: Block) -> None:
    insert(client, tile(block.key()))
    tiles = scrape(metrics).value("tilecache_cache_tiles")

    def hits_and_misses_of_a_get() -> tuple[float, float]:
        before = scrape(metrics)
        get(client, block.key())
        after = scrape(metrics)
        hits, misses = (
            after.value(name) - before.value(name)
            for name in ("tilecache_cache_hits_total", "tilecache_cache_misses_total")
        )
        return hits, misses

    assert [hits_and_misses_of_a_get() for _ in range(2)] == [(0, 1), (0, 1)]
    # The second one has the tile's block loaded.
    eventually(lambda: scrape(metrics).value("tilecache_cache_tiles") > tiles)
    assert hits_and_misses_of_a_get() == (1, 0)
    after = scrape(metrics)
    assert after.value("tilecache_cache_tiles") > 0
    used, most = (after.value(f"tilecache_cache_{name}") for name in ("used_bytes", "max_bytes"))
    assert 0 < used < most


def test_the_pool_is_told(metrics: Path) -> None:
    def idle() -> Scrape | None:
        seen = scrape(metrics)
        return None if seen.value("tilecache_pool_connections_in_use") else seen

    seen = eventually(idle)
    assert POOL_MIN_SIZE <= seen.value("tilecache_pool_connections") <= POOL_MAX_SIZE
    assert seen.value("tilecache_pool_connections_max") == POOL_MAX_SIZE
    assert seen.value("tilecache_pool_waiting") == 0


def test_calls_that_work_and_that_wait_are_told(
    client: TileCacheClient, sql: psycopg.Connection[Any], metrics: Path, block: Block
) -> None:
    def working_and_waiting() -> tuple[float, ...]:
        seen = scrape(metrics)
        names = ("calls_under_way", "pool_connections_in_use", "pool_waiting")
        return tuple(seen.value(f"tilecache_{name}") for name in names)

    writers = POOL_MAX_SIZE - KEPT_FOR_READS
    with ThreadPoolExecutor(POOL_MAX_SIZE) as executor:
        with sql.transaction():
            sql.execute("LOCK TABLE tiles IN ACCESS EXCLUSIVE MODE")
            stuck = [
                executor.submit(insert, client, tile(key)) for key in block.keys(POOL_MAX_SIZE)
            ]
            assert eventually(
                lambda: working_and_waiting() == (POOL_MAX_SIZE, writers, KEPT_FOR_READS)
            )
        for call in stuck:
            call.result()


def test_what_is_stored_is_told_beside_the_ceiling(
    metrics: Path, sql: psycopg.Connection[Any]
) -> None:
    # Not the old tile, which another test evicts.
    store_row(sql, tile_key(7, 1, 1), disk_bytes=OLD_TILE_BYTES)
    stored = {"zoom": "7", "source": "googlemaps", "label": "fresh", "pending_upload": "false"}

    def told() -> Scrape | None:
        seen = scrape(metrics)
        with suppress(AssertionError):
            seen.value("tilecache_stored_tiles", **stored)
            return seen
        return None

    seen = eventually(told)
    assert seen.value("tilecache_stored_max_bytes") == CEILING_BYTES
    assert seen.value("tilecache_stored_tiles", **stored) == 1
    assert seen.value("tilecache_stored_bytes", **stored) == OLD_TILE_BYTES


def test_accesses_that_are_not_yet_written_are_told(
    client: TileCacheClient, metrics: Path, block: Block
) -> None:
    for key in block.keys(3):
        insert(client, tile(key))
    before = scrape(metrics).value("tilecache_accesses_pending")
    tiles = [by_key(key) for key in block.keys(3)]
    client.store.TouchTiles(TouchTilesRequest(tiles=tiles), timeout=TIMEOUT_S)
    assert scrape(metrics).value("tilecache_accesses_pending") == before + len(tiles)


def test_versions_are_told(metrics: Path) -> None:
    about = scrape(metrics).labels("tilecache_info")
    assert about["schema_revision"] == HEAD_REVISION
    assert about["namespace_uuid"] == str(TILE_NAMESPACE_UUID)


def test_a_database_that_is_away_is_told_and_keeps_no_scrape_waiting(
    client: TileCacheClient, postgres_dsn: str, shared_database: str, metrics: Path
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(shared_database)["dbname"]
    allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {{}}").format(Identifier(str(name)))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"

    def available() -> bool:
        return bool(scrape(metrics).value("tilecache_database_available"))

    with psycopg.connect(postgres_dsn, autocommit=True) as server:
        assert available()
        server.execute(SQL(allow.as_string()).format(SQL("false")))
        try:
            server.execute(cut, [name])
            assert eventually(lambda: not available())
            assert scrape(metrics).value("tilecache_pool_connections") == 0
        finally:
            server.execute(SQL(allow.as_string()).format(SQL("true")))
    assert eventually(available)
    client.wait_until_ready(TIMEOUT_S)


def test_the_age_of_evicted_tiles_is_in_the_histogram(
    shared_daemon: DaemonProcess, sql: psycopg.Connection[Any], metrics: Path
) -> None:
    def younger_than(days: int) -> float:
        bound_s = floatToGoString(days * DAY_S)
        return scrape(metrics).value("tilecache_eviction_age_seconds_bucket", le=bound_s)

    store_row(
        sql,
        tile_key(6, 1, 1, GOOGLEMAPS),
        disk_bytes=1,
        created_at=NOW - timedelta(days=10),
    )
    evict(shared_daemon.admin_client, max_used_bytes=0, dry_run=True)
    assert scrape(metrics).value("tilecache_eviction_age_seconds_count") == 0
    gone = evict(shared_daemon.admin_client, max_used_bytes=0)
    assert scrape(metrics).value("tilecache_eviction_age_seconds_count") == len(gone.tiles)
    # Used three days ago; and stored ten days ago, but never used.
    assert younger_than(7) - younger_than(2) == 1
    assert younger_than(14) - younger_than(7) == 1


def test_applied_migrations_are_told(empty_database: str, short_directory: Path) -> None:
    address = short_directory / "metrics.sock"
    with DaemonProcess(short_directory, dsn=empty_database, metrics_address=address) as process:
        assert scrape(address).value("tilecache_migrations_applied") == len(REVISIONS)
        process.stop()
        process.start()
        assert scrape(address).value("tilecache_migrations_applied") == 0


def test_a_clock_that_is_not_trusted_is_told(database: str, short_directory: Path) -> None:
    address = short_directory / "metrics.sock"
    before_its_release = datetime(2020, 1, 1, tzinfo=timezone.utc)
    with ClockedDaemon(
        short_directory, before_its_release, dsn=database, metrics_address=address
    ) as process:
        assert scrape(address).value("tilecache_clock_trusted") == 0
        process.set_clock(NOW)
        assert scrape(address).value("tilecache_clock_trusted") == 1


def test_metrics_are_served_over_tcp_too(database: str, short_directory: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with DaemonProcess(short_directory, dsn=database, metrics_address=address) as process:
        assert scrape(address).value("tilecache_database_available") == 1
        assert process.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        scrape(address)


def test_nothing_is_served_unless_it_is_asked_for(
    daemon: DaemonProcess, short_directory: Path
) -> None:
    sockets = {path for path in short_directory.iterdir() if path.is_socket()}
    assert sockets == {daemon.socket_path, daemon.admin_socket_path}
    assert not listens_on_tcp(daemon.pid)


def listens_on_tcp(pid: int) -> bool:
    open_files = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    listening = "0A"
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return any(row[3] == listening and f"socket:[{row[9]}]" in open_files for row in rows)


def test_the_socket_of_the_metrics_goes_with_the_daemon(
    database: str, short_directory: Path
) -> None:
    address = short_directory / "metrics.sock"
    with DaemonProcess(short_directory, dsn=database, metrics_address=address) as process:
        assert address.stat().st_mode & 0o777 == 0o660
        process.stop()
        assert not address.exists()


def test_an_address_that_is_not_to_be_had_ends_the_start(
    database: str, short_directory: Path
) -> None:
    settings: dict[str, Any] = {
        "dsn": database,
        "socket_path": short_directory / "s",
        "admin_socket_path": short_directory / "a",
    }
    precious = short_directory / "precious"
    precious.write_text("not a socket")
    finished = run_tilecache("serve", metrics_address=precious, **settings)
    assert (finished.returncode, precious.read_text()) == (EXIT_FAILED, "not a socket")
    assert str(precious) in finished.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finished = run_tilecache("serve", metrics_address=address, **settings)
    assert finished.returncode == EXIT_FAILED
    assert f"metrics_address: {address}" in finished.stderr


def test_a_client_that_says_nothing_keeps_no_scrape_waiting(metrics: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(metrics))
        assert scrape(metrics).value("tilecache_database_available") == 1
