"""Cancellation, deadlines and admission control."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import Block, by_key, insert, store_row, tile, tile_uuid, waiting_for_locks
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    DescribeCoverageRequest,
    GetTileRequest,
    InsertTileRequest,
    QueryTilesRequest,
)
from tilecache_daemon.rpc.server import STREAMS_PER_CONNECTION


@contextmanager
def other_writer(dsn: str, block: Block) -> Iterator[None]:
    """A transaction that inserts the block's first tile, and is rolled back."""
    with psycopg.connect(dsn) as other:
        store_row(other, block.key())
        try:
            yield
        finally:
            other.rollback()


@contextmanager
def table_lock(dsn: str, _: Block) -> Iterator[None]:
    """A transaction that blocks reads of tiles."""
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tiles")
        yield
        other.rollback()


def insert_one(client: TileCacheClient, block: Block, timeout_s: float) -> Any:
    return client.store.InsertTile(InsertTileRequest(tile=tile(block.key())), timeout=timeout_s)


def insert_many(client: TileCacheClient, block: Block, timeout_s: float) -> Any:
    batch = BulkInsertTilesRequest(tiles=map(tile, block.keys(5)))
    return list(client.store.BulkInsertTiles(iter([batch]), timeout=timeout_s))


def query(client: TileCacheClient, block: Block, timeout_s: float) -> Any:
    request = QueryTilesRequest(zoom=block.zoom, region=block.region)
    return list(client.store.QueryTiles(request, timeout=timeout_s))


def describe(client: TileCacheClient, block: Block, timeout_s: float) -> Any:
    request = DescribeCoverageRequest(zoom=block.zoom, region=block.region)
    return list(client.store.DescribeCoverage(request, timeout=timeout_s))


BLOCKED_CALLS = [
    (insert_one, other_writer),
    (insert_many, other_writer),
    (query, table_lock),
    (describe, table_lock),
]


@pytest.mark.parametrize(("call", "blocker"), BLOCKED_CALLS)
def test_an_exceeded_deadline_cancels_the_query_in_postgresql(
    database: str, short_directory: Path, block: Block, call: Any, blocker: Any
) -> None:
    # A separate daemon, since the shared one may still run queries of other tests.
    with DaemonProcess(short_directory, dsn=database) as daemon:
        with blocker(database, block), ThreadPoolExecutor(1) as threads:
            calling = threads.submit(call, daemon.client, block, 1.0)
            eventually(lambda: waiting_for_locks(database))
            with pytest.raises(CallError) as caught:
                calling.result()
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            eventually(lambda: not waiting_for_locks(database))
        assert query(daemon.client, block, 10) == []
        assert insert_one(daemon.client, block, 10)


def test_a_cancelled_call_cancels_its_query_in_postgresql(
    client: TileCacheClient, shared_database: str, block: Block
) -> None:
    with other_writer(shared_database, block):
        batch = BulkInsertTilesRequest(tiles=[tile(block.key(1)), tile(block.key())])
        answers = client.store.BulkInsertTiles(iter([batch]), timeout=60)
        eventually(lambda: waiting_for_locks(shared_database))
        answers.cancel()
        eventually(lambda: not waiting_for_locks(shared_database))
    assert query(client, block, 10) == []


def test_a_disconnected_client_leaves_no_query_running(
    shared_daemon: DaemonProcess, shared_database: str, block: Block
) -> None:
    with other_writer(shared_database, block), ThreadPoolExecutor(1) as threads:
        client = TileCacheClient(shared_daemon.socket_path)
        calling = threads.submit(insert_one, client, block, 60.0)
        eventually(lambda: waiting_for_locks(shared_database))
        client.close()
        assert calling.exception()
        eventually(lambda: not waiting_for_locks(shared_database))


def test_without_a_deadline_the_statement_timeout_applies(
    database: str, short_directory: Path, block: Block
) -> None:
    with (
        DaemonProcess(short_directory, dsn=database, statement_timeout_s=0.2) as daemon,
        other_writer(database, block),
        pytest.raises(CallError) as caught,
    ):
        insert_one(daemon.client, block, 60)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == "QUERY_CANCELED"


class OpenStream:
    """A bulk insert in progress."""

    def __init__(self, client: TileCacheClient, block: Block) -> None:
        self._queue: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
        self._answers = client.store.BulkInsertTiles(iter(self._queue.get, None), timeout=60)
        self._queue.put(BulkInsertTilesRequest(tiles=[tile(block.key())]))
        next(self._answers)

    def end(self) -> None:
        self._queue.put(None)
        assert list(self._answers) == []

    def cancel(self) -> None:
        self._answers.cancel()
        self._queue.put(None)


def is_admitted(client: TileCacheClient, block: Block) -> bool:
    request = GetTileRequest(tile=by_key(block.key()))
    try:
        client.store.GetTile(request, timeout=60)
    except CallError as error:
        if error.reason != "OVERLOADED":
            raise
        return False
    return True


def test_calls_beyond_the_concurrency_limit_are_refused_as_retryable(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_concurrent_calls=1) as daemon:
        stream = OpenStream(daemon.client, block)
        request = GetTileRequest(tile=by_key(block.key()))
        with pytest.raises(CallError) as caught:
            daemon.client.store.GetTile(request, timeout=60)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after_s
        assert daemon.client.is_serving()
        stream.end()
        eventually(lambda: is_admitted(daemon.client, block))
        OpenStream(daemon.client, block).cancel()
        eventually(lambda: is_admitted(daemon.client, block))


def test_a_part_of_the_concurrency_limit_is_reserved_for_reads(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_concurrent_calls=4) as daemon:
        streams = [OpenStream(daemon.client, block) for _ in range(3)]
        with pytest.raises(CallError) as caught:
            insert(daemon.client, tile(block.key()))
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_s
        assert is_admitted(daemon.client, block)
        for stream in streams:
            stream.end()
        assert insert(daemon.client, tile(block.key()))


def test_calls_without_a_free_connection_are_refused_as_retryable(
    database: str, short_directory: Path, block: Block
) -> None:
    settings = {"pool_min_size": 1, "pool_max_size": 1, "pool_timeout_s": 0.2}
    with (
        DaemonProcess(short_directory, dsn=database, **settings) as daemon,
        ThreadPoolExecutor(1) as threads,
    ):
        with other_writer(database, block):
            blocked = threads.submit(insert_one, daemon.client, block, 60.0)
            eventually(lambda: waiting_for_locks(database))
            with pytest.raises(CallError) as caught:
                insert(daemon.client, tile(block.key(1)))
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.retry_after_s
        assert blocked.result().tile.tile_uuid == tile_uuid(block.key())
        assert insert(daemon.client, tile(block.key(1)))


def test_refused_calls_do_not_count_as_concurrent_streams_of_their_connection(
    daemon: DaemonProcess,
) -> None:
    # With grpcio before 1.81, a connection is locked out after as many as it may have streams.
    for _ in range(STREAMS_PER_CONNECTION + 100):
        with pytest.raises(CallError) as caught:
            daemon.client.store.InsertTile(InsertTileRequest(), timeout=60)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
