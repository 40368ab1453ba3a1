"""Clients that are killed, do not read, flood or idle: others are served, memory is bounded."""

import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.struct_pb2 import Struct

from tests.faults.daemons import Daemon
from tests.faults.dying_client import BATCH_TILES
from tests.faults.dying_client import ZOOM as DYING_ZOOM
from tests.faults.load import Load, open_channel, status_details
from tests.faults.scale import ROUNDS
from tests.tiles import ZOOM, Block, bulk_insert, by_key, insert, tile
from tests.waiting import eventually
from tilecache.v1.tile_cache_admin_pb2 import GetMetricsRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    DescribeCoverageRequest,
    GetServerInfoRequest,
    InsertTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

CALLS = 4
"""The limit of concurrent calls, so low that a slot lost to a dead client has an effect."""
WRITERS = CALLS * 3 // 4
IDLE_CONNECTIONS = 300


@pytest.fixture
def small_daemon(database: str, short_directory: Path) -> Iterator[Daemon]:
    """A daemon with a low limit of concurrent calls and a short stall timeout."""
    with Daemon(
        short_directory, dsn=database, max_concurrent_calls=CALLS, stream_stall_timeout_s=2
    ) as process:
        yield process


@pytest.fixture
def stub(small_daemon: Daemon) -> Iterator[TileMetadataStoreStub]:
    """A separate client without retries."""
    with open_channel(small_daemon.socket_path) as channel:
        yield TileMetadataStoreStub(channel)


@pytest.mark.parametrize("kind", ["bulk", "query"])
def test_a_client_killed_in_a_stream_leaves_whole_batches_and_holds_no_call_slot(
    kind: str, database: str, small_daemon: Daemon
) -> None:
    deaths = CALLS + ROUNDS
    with Load(small_daemon.socket_path) as load:
        for number in range(deaths):
            answered = kill_a_client(kind, small_daemon, number)
            assert count_batches(database, number) >= answered
        load.wait_until_all_succeed()


def test_a_client_that_never_reads_uses_little_memory_and_is_aborted(
    database: str, short_directory: Path
) -> None:
    calls, block = 16, Block()
    settings = {"max_concurrent_calls": calls, "stream_stall_timeout_s": 2}
    request = QueryTilesRequest(zoom=ZOOM, region=block.region)
    with Daemon(short_directory, dsn=database, **settings) as daemon:
        insert_large_tiles(daemon, block)
        # A restart, since memory freed after the inserts would hide what the answers take.
        daemon.stop()
        daemon.start()
        answer_bytes = sum(answer.ByteSize() for answer in daemon.client.store.QueryTiles(request))
        # The client's flow control window takes in unread data, so that the daemon goes on sending.
        window = [
            ("grpc.http2.lookahead_bytes", answer_bytes * 2 // 3),
            ("grpc.http2.bdp_probe", 0),
        ]
        with open_channel(daemon.socket_path, *window) as channel, ExitStack() as stalled:
            stub = TileMetadataStoreStub(channel)
            with daemon.memory_taken() as taken:
                for _ in range(calls):
                    answers: Any = stub.QueryTiles(request)
                    stalled.callback(answers.cancel)
                    next(answers)
                eventually(lambda: is_admitted(stub))
            eventually(lambda: are_half_admitted(stub, request))
    assert taken[0] < answer_bytes * calls / 3


def test_a_stalled_bulk_client_is_aborted(stub: TileMetadataStoreStub) -> None:
    queue: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
    queue.put(BulkInsertTilesRequest(tiles=[tile(Block().key())]))
    answers: Any = stub.BulkInsertTiles(iter(queue.get, None))
    assert next(answers).inserted_count == 1
    with pytest.raises(grpc.RpcError):
        next(answers)
    assert outcome(answers) == "RESOURCE_EXHAUSTED OVERLOADED"
    queue.put(None)


def test_a_flood_of_writes_is_refused_as_retryable_and_later_calls_succeed(
    small_daemon: Daemon, stub: TileMetadataStoreStub
) -> None:
    block = Block()
    keys = list(block.keys(20 * CALLS))
    calls = [stub.InsertTile.future(InsertTileRequest(tile=tile(key))) for key in keys]
    outcomes = list(map(outcome, calls))
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED OVERLOADED"}
    found = small_daemon.client.store.LookupTiles(LookupTilesRequest(tiles=map(by_key, keys)))
    stored = ["OK" if result.HasField("tile") else "" for result in found.results]
    assert stored == [outcome if outcome == "OK" else "" for outcome in outcomes]
    insert(small_daemon.client, tile(block.key(0, 1)))


def test_a_flood_of_reads_is_refused_as_retryable_and_later_calls_succeed(
    stub: TileMetadataStoreStub, database: str
) -> None:
    request = DescribeCoverageRequest(zoom=ZOOM, region=Block().region)
    with psycopg.connect(database) as other:
        # Blocks reads until this transaction ends.
        other.execute("LOCK TABLE tiles IN ACCESS EXCLUSIVE MODE")
        calls: list[Any] = [stub.DescribeCoverage(request) for _ in range(10 * CALLS)]
        eventually(lambda: sum(call.done() for call in calls) == 9 * CALLS)
    assert Counter(map(outcome_of_stream, calls)) == {
        "OK": CALLS,
        "RESOURCE_EXHAUSTED OVERLOADED": 9 * CALLS,
    }
    assert outcome_of_stream(stub.DescribeCoverage(request)) == "OK"


def test_reads_are_admitted_while_writes_are_at_their_limit(
    small_daemon: Daemon, stub: TileMetadataStoreStub, database: str
) -> None:
    block = Block()
    insert(small_daemon.client, tile(block.key()))
    with psycopg.connect(database) as other:
        # Blocks writes until this transaction ends.
        other.execute("LOCK TABLE tiles IN SHARE MODE")
        writers = [
            stub.InsertTile.future(InsertTileRequest(tile=tile(block.key(column))))
            for column in range(1, CALLS + 1)
        ]
        eventually(lambda: sum(writer.done() for writer in writers) == CALLS - WRITERS)
        read = stub.LookupTiles(LookupTilesRequest(tiles=[by_key(block.key())]))
        assert read.results[0].HasField("tile")
        # Diagnosis is a read, too.
        small_daemon.admin_client.admin.GetMetrics(GetMetricsRequest(), timeout=60)
        # These cells are not cached: reads also get a connection.
        assert list(stub.QueryTiles(QueryTilesRequest(zoom=ZOOM, region=block.region)))
    assert Counter(map(outcome, writers)) == {
        "OK": WRITERS,
        "RESOURCE_EXHAUSTED OVERLOADED": CALLS - WRITERS,
    }


def test_waiting_for_a_connection_is_bounded_and_reads_do_not_wait_for_writes(
    database: str, short_directory: Path
) -> None:
    """Of three connections one is for writes. Writes wait for it, not for those of reads."""
    block = Block()
    with (
        Daemon(short_directory, dsn=database, pool_max_size=3, pool_timeout_s=0.5) as daemon,
        open_channel(daemon.socket_path) as channel,
        psycopg.connect(database) as other,
    ):
        stub = TileMetadataStoreStub(channel)
        insert(daemon.client, tile(block.key()))
        other.execute("LOCK TABLE tiles IN SHARE MODE")
        writers = [
            stub.InsertTile.future(InsertTileRequest(tile=tile(block.key(column))))
            for column in range(1, 33)
        ]
        eventually(lambda: sum(writer.done() for writer in writers) == len(writers) - 1)
        assert list(stub.QueryTiles(QueryTilesRequest(zoom=ZOOM, region=block.region)))
        other.rollback()
        assert Counter(map(outcome, writers)) == {
            "OK": 1,
            "RESOURCE_EXHAUSTED OVERLOADED": len(writers) - 1,
        }


def test_hundreds_of_idle_connections_use_little_memory(
    daemon_on_foreign: Daemon,
) -> None:
    path = str(daemon_on_foreign.socket_path)
    with daemon_on_foreign.memory_taken() as taken, ExitStack() as idle:
        for _ in range(IDLE_CONNECTIONS):
            connection = idle.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(path)
        with Load(daemon_on_foreign.socket_path) as load:
            load.wait_until_all_succeed()
            assert all(not load.refused(name) for name in ("navigate", "bulk", "query"))
    assert taken[0] < IDLE_CONNECTIONS * 1024 * 1024


def insert_large_tiles(daemon: Daemon, block: Block) -> None:
    """Inserts ten thousand tiles of two kilobytes."""
    quality = Struct()
    quality.update({"remark": "x" * 1_900})
    for row in range(100):
        keys = [block.key(column, row) for column in range(100)]
        bulk_insert(daemon.client, [tile(key, quality_metadata=quality) for key in keys])


def kill_a_client(kind: str, daemon: Daemon, number: int) -> int:
    """Runs a client and kills it; returns how many batches were acknowledged at least."""
    command = [sys.executable, "-m", "tests.faults.dying_client"]
    with subprocess.Popen(
        [*command, kind, str(daemon.socket_path), str(number)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        answered = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    return answered


def count_batches(database: str, number: int) -> int:
    """The number of stored batches of a client, each of which must be complete."""
    query = "SELECT count(*) FROM tiles WHERE zoom = %s AND x / %s = %s GROUP BY y"
    with psycopg.connect(database) as connection:
        rows = connection.execute(query, [DYING_ZOOM, BATCH_TILES, number]).fetchall()
    assert {count for (count,) in rows} == {BATCH_TILES}, (
        "a batch is stored completely or not at all"
    )
    return len(rows)


def is_admitted(stub: TileMetadataStoreStub) -> bool:
    call: Any = stub.GetServerInfo.future(GetServerInfoRequest())
    return outcome(call) == "OK"


def are_half_admitted(stub: TileMetadataStoreStub, request: QueryTilesRequest) -> bool:
    """Whether half as many calls as the limit are admitted at once."""
    calls = [stub.QueryTiles(request) for _ in range(CALLS // 2)]
    return set(map(outcome_of_stream, calls)) == {"OK"}


def outcome_of_stream(call: Any) -> str:
    """As `outcome`, for a stream whose answers are unread."""
    with suppress(grpc.RpcError):
        list(call)
    return outcome(call)


def outcome(call: Any) -> str:
    """The result of a call, by code and reason; errors must have a retry delay."""
    if call.code() is grpc.StatusCode.OK:
        return "OK"
    reason, retry = status_details(call)
    assert retry, f"{call.code()} {call.details()} without a retry delay"
    return f"{call.code().name} {reason}"
