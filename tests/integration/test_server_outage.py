"""Outages of PostgreSQL."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.conftest import UNSAFE_BUT_FAST
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import Block, by_key, cell_region, insert, tile, tile_key
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    DeriveTileIdentityRequest,
    GetServerInfoRequest,
    GetTileRequest,
    InsertTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
    TouchTilesRequest,
)
from tilecache_daemon.postgres.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory with a short path, which PostgreSQL's user can access."""
    with tempfile.TemporaryDirectory(prefix="tilecache-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def postgres(directory: Path) -> Iterator[EmbeddedPostgres]:
    """A server that tests stop and start again."""
    server = EmbeddedPostgres(directory / "own", settings=UNSAFE_BUT_FAST)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def own_daemon(postgres: EmbeddedPostgres, directory: Path) -> Iterator[DaemonProcess]:
    """A daemon that uses this server."""
    with DaemonProcess(directory, dsn=postgres.dsn, access_flush_interval_s=0.2) as process:
        yield process


def database_available(client: TileCacheClient) -> bool:
    return bool(client.store.GetServerInfo(GetServerInfoRequest(), timeout=60).database_available)


def refused_insert(client: TileCacheClient, block: Block) -> CallError:
    with pytest.raises(CallError) as caught:
        client.store.InsertTile(InsertTileRequest(tile=tile(block.key(1))), timeout=60)
    return caught.value


def test_an_outage_is_reported_and_recovered_from(
    postgres: EmbeddedPostgres, own_daemon: DaemonProcess, block: Block
) -> None:
    client, pid = own_daemon.client, own_daemon.pid
    stored = insert(client, tile(block.key())).tile
    for _ in range(2):
        postgres.stop()
        error = refused_insert(client, block)
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.reason == "DATABASE_UNAVAILABLE"
        assert error.retry_after_s
        eventually(lambda: not client.is_serving())
        assert client.is_serving("")
        assert not database_available(client)
        status = run_tilecache("status", "--socket", own_daemon.socket_path)
        assert status.returncode == 1
        assert "NOT available" in status.stdout
        derive = DeriveTileIdentityRequest(keys=[block.key()])
        assert client.store.DeriveTileIdentity(derive, timeout=60).identities
        postgres.start()
        eventually(client.is_serving)
        assert database_available(client)
        again = insert(client, tile(block.key())).tile
        assert again == stored
    os.kill(pid, 0)
    assert "Traceback" not in own_daemon.log


def test_accesses_recorded_before_an_outage_are_written_after_it(
    postgres: EmbeddedPostgres, own_daemon: DaemonProcess, block: Block
) -> None:
    client, ref = own_daemon.client, by_key(block.key())
    insert(client, tile(block.key()))
    client.store.TouchTiles(TouchTilesRequest(tiles=[ref]), timeout=60)
    postgres.stop()
    eventually(lambda: not client.is_serving())
    postgres.start()
    eventually(client.is_serving)
    request = GetTileRequest(tile=ref)
    eventually(lambda: client.store.GetTile(request, timeout=60).tile.HasField("accessed_at"))


def test_the_cache_survives_repeated_outages(
    postgres: EmbeddedPostgres, own_daemon: DaemonProcess
) -> None:
    """A read of one tile between them does not replace its block, which is stale by then."""
    client, zoom = own_daemon.client, 13
    keys = [tile_key(zoom, x, 0) for x in range(3)]
    for key in keys:
        insert(client, tile(key))
    region = QueryTilesRequest(zoom=zoom, region=cell_region(0, 31, 0, 31))
    assert len(read(client, region)) == len(keys)
    for _ in range(2):
        postgres.stop()
        eventually(lambda: not client.is_serving())
        assert len(read(client, region)) == len(keys)
        look_up(client, keys)
        postgres.start()
        eventually(client.is_serving)
        look_up(client, keys[:1])


def read(client: TileCacheClient, request: QueryTilesRequest) -> list[Any]:
    answers = client.store.QueryTiles(request, timeout=60)
    return [tile for answer in answers for tile in answer.tiles]


def look_up(client: TileCacheClient, keys: list[Any]) -> None:
    """Looks up tiles, all of which must be found."""
    request = LookupTilesRequest(tiles=map(by_key, keys))
    answer = client.store.LookupTiles(request, timeout=60)
    assert all(result.HasField("tile") for result in answer.results)


def is_cached(client: TileCacheClient, key: Any) -> bool:
    hits = cache_hits(client)
    look_up(client, [key])
    return cache_hits(client) > hits


def cache_hits(client: TileCacheClient) -> int:
    return int(client.store.GetServerInfo(GetServerInfoRequest(), timeout=60).cache.hits)


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Suspends the server and all its processes: they neither answer nor disconnect."""
    assert server.server_pid is not None
    children = Path(f"/proc/{server.server_pid}/task/{server.server_pid}/children").read_text()
    pids = [server.server_pid, *map(int, children.split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_frozen_server_is_an_outage(
    postgres: EmbeddedPostgres, own_daemon: DaemonProcess, block: Block
) -> None:
    client = own_daemon.client
    insert(client, tile(block.key()))
    with frozen(postgres):
        assert refused_insert(client, block).code is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: not client.is_serving())
        assert client.is_serving("")
    eventually(client.is_serving)
    assert insert(client, tile(block.key(2)))


def test_broken_connections_are_replaced(
    postgres: EmbeddedPostgres, own_daemon: DaemonProcess, block: Block
) -> None:
    insert(own_daemon.client, tile(block.key()))
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND application_name LIKE 'tilecache%'"
        )
    eventually(lambda: is_inserted(own_daemon.client, block))
    eventually(own_daemon.client.is_serving)


def is_inserted(client: TileCacheClient, block: Block) -> bool:
    with suppress(CallError):
        return bool(insert(client, tile(block.key(1))).outcome)
    return False


def test_a_start_waits_for_the_database(
    postgres: EmbeddedPostgres, short_directory: Path, block: Block
) -> None:
    dsn = postgres.dsn
    postgres.stop()
    process = DaemonProcess(short_directory, dsn=dsn)
    process.log_path.touch()
    try:
        process.launch()
        eventually(lambda: "waiting for the database" in process.log)
        postgres.start()
        process.client.wait_until_ready(30)
        assert insert(process.client, tile(block.key()))
    finally:
        process.close()
