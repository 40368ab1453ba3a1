"""WatchTiles beside the server's limits, its timeouts and its end."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.scraping import Scrape
from tests.tiles import (
    TIMEOUT_S,
    Block,
    bulk_insert,
    cell_region,
    insert,
    store_row,
    tile,
    tile_uuid,
)
from tests.waiting import eventually
from tests.watching import Stream, held
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import GetMetricsRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    BlockUpdate,
    CacheStatus,
    GetServerInfoRequest,
    QueryTilesRequest,
)

STALL_S = 1.0


def follow_cell(client: TileCacheClient, block: Block) -> tuple[Stream, BlockUpdate]:
    """A stream that follows the first block of some test cells, and what it was sent."""
    stream = Stream(client)
    stream.follow(cell_region(block.x, block.x, block.y, block.y))
    (sent,) = stream.blocks_until_synced()
    return stream, sent


def test_a_silent_client_is_normal_for_longer_than_every_timeout(
    database: str, short_directory: Path
) -> None:
    block = Block()
    settings = {
        "stream_stall_timeout_s": STALL_S,
        "statement_timeout_s": STALL_S,
        "pool_timeout_s": STALL_S / 2,
        "access_flush_interval_s": STALL_S,
    }
    with DaemonProcess(short_directory, dsn=database, **settings) as daemon:
        stream, _ = follow_cell(daemon.client, block)
        beats = stream.heartbeats()
        # Two heartbeats more than the longest of these timeouts takes.
        for _ in range(5):
            next(beats)
        insert(daemon.client, tile(block.key()))
        assert [each.tile_uuid for each in stream.next_block().tiles] == [tile_uuid(block.key())]
        stream.close()


def test_streams_have_a_limit_of_their_own_beside_that_of_calls(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database, max_concurrent_calls=1) as daemon:
        most = daemon.client.store.GetServerInfo(GetServerInfoRequest()).limits.max_watch_streams
        streams = [follow_cell(daemon.client, block)[0] for _ in range(most)]
        # Calls go on.
        insert(daemon.client, tile(block.key()))
        with pytest.raises(CallError) as refused:
            follow_cell(daemon.client, block)
        assert refused.value.reason == "OVERLOADED"
        assert refused.value.retry_after_s

        for stream in streams:
            stream.close()
        eventually(lambda: is_followed(daemon.client, block))


def is_followed(client: TileCacheClient, block: Block) -> bool:
    try:
        follow_cell(client, block)[0].close()
    except CallError:
        return False
    return True


def test_a_stop_ends_streams_at_once_and_says_when_to_come_back(
    database: str, short_directory: Path
) -> None:
    with DaemonProcess(short_directory, dsn=database, drain_timeout_s=600) as daemon:
        stream, _ = follow_cell(daemon.client, Block())

        assert daemon.stop() == 0

        with pytest.raises(CallError) as ended:
            list(stream)
        assert ended.value.code is grpc.StatusCode.UNAVAILABLE
        assert ended.value.reason == "SHUTTING_DOWN"
        assert ended.value.retry_after_s == 1


def test_versions_outlast_a_restart_of_the_daemon(database: str, short_directory: Path) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database) as daemon:
        quality = {name: name for name in "zyxwvutsrq"}
        tiles = [tile(key) for key in block.keys(20)]
        for each in tiles:
            each.quality_metadata.update(quality)
        bulk_insert(daemon.client, tiles)
        stream, before = follow_cell(daemon.client, block)
        stream.close()
        daemon.kill()
        daemon.start()

        again = Stream(daemon.client)
        again.follow(cell_region(block.x, block.x, block.y, block.y), held=[held(before)])
        assert again.blocks_until_synced() == []

        # The new daemon has no history; the difference is known from then on.
        insert(daemon.client, tile(block.key(30)))
        change = again.next_block()
        assert change.base_version == before.version
        assert len(change.tiles) == 1
        again.close()


@pytest.mark.parametrize("settings", [{"cache_max_bytes": 0}, {"watch_max_bytes": 0}])
def test_a_block_that_is_not_in_memory_is_sent(
    settings: dict[str, int], database: str, short_directory: Path
) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database, **settings) as daemon:
        insert(daemon.client, tile(block.key()))
        stream, before = follow_cell(daemon.client, block)
        insert(daemon.client, tile(block.key(1)))
        change = stream.next_block()
        if "watch_max_bytes" in settings:
            assert (len(change.tiles), change.base_version) == (2, b"")
        else:
            assert (len(change.tiles), change.base_version) == (1, before.version)
        stream.close()


def test_what_is_remembered_counts_as_memory_of_the_cache(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database) as daemon:
        bulk_insert(daemon.client, [tile(key) for key in block.keys(32, 32)])
        before = used_bytes(daemon)
        stream, _ = follow_cell(daemon.client, block)
        assert used_bytes(daemon) - before > 1_000 * 100
        stream.close()


def test_what_is_remembered_leaves_half_of_a_small_cache_to_tiles(
    database: str, short_directory: Path
) -> None:
    block = Block()
    settings = {"cache_max_bytes": 2_000_000, "watch_max_bytes": 32_000_000}
    with DaemonProcess(short_directory, dsn=database, **settings) as daemon:
        for row in range(0, 100, 25):
            keys = [block.key(column, row + more) for column in range(100) for more in range(25)]
            bulk_insert(daemon.client, [tile(key) for key in keys])
        stream = Stream(daemon.client)
        stream.follow(block.region)
        stream.blocks_until_synced()

        region = cell_region(block.x, block.x + 31, block.y, block.y + 31)
        request = QueryTilesRequest(zoom=block.zoom, region=region)

        def is_read_from_memory() -> bool:
            before = cache(daemon).misses
            assert len(list(daemon.client.store.QueryTiles(request, timeout=TIMEOUT_S))) > 0
            return cache(daemon).misses == before

        eventually(is_read_from_memory)
        stream.close()


def cache(daemon: DaemonProcess) -> CacheStatus:
    return daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S).cache


def used_bytes(daemon: DaemonProcess) -> int:
    return int(cache(daemon).used_bytes)


def test_a_client_that_does_not_read_is_ended_and_takes_little_memory(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with (
        DaemonProcess(short_directory, dsn=database, stream_stall_timeout_s=2) as daemon,
        ExitStack() as closing,
    ):
        tiles = [tile(key) for key in block.keys(96, 96)]
        for each in tiles:
            each.quality_metadata["note"] = "x" * 1_500
        for start in range(0, len(tiles), 2_000):
            bulk_insert(daemon.client, tiles[start : start + 2_000])
        bytes_in_all = sum(each.ByteSize() for each in tiles)
        # After a restart, freed memory does not hide what the streams take.
        daemon.stop()
        daemon.start()
        resident_before = resident_bytes(daemon)
        client = closing.enter_context(TileCacheClient(daemon.socket_path))
        streams = [Stream(client) for _ in range(16)]
        for stream in streams:
            closing.callback(stream.close)
            stream.follow(block.region)

        # Writers do not wait for streams that are not read.
        number = count(1)
        began = time.monotonic()
        while open_watches(daemon):
            assert time.monotonic() - began < TIMEOUT_S
            newer = tile(block.key(), f"content {next(number)}", captured_at=None)
            newer.captured_at.FromSeconds(1_600_000_000 + next(number))
            insert(daemon.client, newer, ON_CONFLICT_REPLACE_IF_NEWER)
        taken = resident_bytes(daemon) - resident_before

        # Four to five megabytes for each stream, most of it in gRPC, as for other answers.
        assert taken < bytes_in_all * len(streams) / 2
        for stream in streams:
            with pytest.raises(CallError) as ended:
                list(stream)
            assert ended.value.reason == "OVERLOADED"


def open_watches(daemon: DaemonProcess) -> float:
    return metrics(daemon).value("tilecache_watches_open")


def metrics(daemon: DaemonProcess) -> Scrape:
    return Scrape(daemon.admin_client.admin.GetMetrics(GetMetricsRequest(), timeout=5).text)


def resident_bytes(daemon: DaemonProcess) -> int:
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_stream_is_counted_as_open_and_not_as_a_latency(
    database: str, short_directory: Path
) -> None:
    with DaemonProcess(short_directory, dsn=database) as daemon:
        stream, _ = follow_cell(daemon.client, Block())
        assert open_watches(daemon) == 1
        assert metrics(daemon).value("tilecache_calls_under_way") == 1  # GetMetrics itself
        stream.close()
        eventually(lambda: open_watches(daemon) == 0)

        scraped = metrics(daemon)
        assert scraped.value("grpc_server_started_total", grpc_method="WatchTiles") == 1
        timed = {
            sample.labels["grpc_method"]
            for sample in scraped.samples
            if sample.name == "grpc_server_handling_seconds_count"
        }
        assert "GetServerInfo" in timed
        assert "WatchTiles" not in timed


def test_while_nothing_is_received_of_changes_the_heartbeat_says_so(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with (
        DaemonProcess(short_directory, dsn=database) as daemon,
        psycopg.connect(database, autocommit=True) as sql,
    ):
        stream, _ = follow_cell(daemon.client, block)
        beats = stream.heartbeats()
        next(beats)
        backend = change_feed_backend(sql)
        os.kill(backend, signal.SIGSTOP)
        try:
            changed = store_row(sql, block.key())
            degraded = next(beat for beat in beats if beat.heartbeat.degraded).heartbeat
        finally:
            os.kill(backend, signal.SIGCONT)
        assert degraded.age_ms > 1_000

        seen = [
            each.tile_uuid
            for response in until(stream, lambda beat: not beat.degraded and beat.age_ms < 2_500)
            for update in response.blocks
            for each in update.tiles
        ]
        assert seen == [changed]
        stream.close()


def change_feed_backend(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'tilecache-changes'"
        " AND datname = current_database()"
    ).fetchone()
    assert row
    return int(row[0])


def until(stream: Stream, condition: Any) -> Iterator[Any]:
    """The messages up to a heartbeat that fulfils a condition."""
    for response in stream:
        yield response
        if response.HasField("heartbeat") and condition(response.heartbeat):
            return
