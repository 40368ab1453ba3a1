"""Bounds of the numbers that callers send, and rows of other writers beyond them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import delete, evict, list_evictions, read_usage
from tests.daemon_process import DaemonProcess
from tests.tiles import TIMEOUT_S, Block, by_key, insert, is_stored, store_row, tile, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import GetMetricsRequest
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest, GetTileRequest

LARGEST = 2**63 - 1


@pytest.fixture
def under_ceiling(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """A daemon that evicts for an insert."""
    settings: dict[str, Any] = {"max_used_bytes": 1_000_000, "evict_on_insert": True}
    with DaemonProcess(short_directory, dsn=database, **settings) as process:
        yield process


def store_largest(sql: psycopg.Connection[Any], block: Block, count: int = 3) -> None:
    for index in range(count):
        key = block.key(index)
        store_row(sql, key, file_path=f"largest/{index}.jpg", disk_bytes=LARGEST)


def test_numbers_are_bounded_and_the_bounds_are_published(
    admin: TileCacheClient, block: Block
) -> None:
    limits = admin.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S).limits
    largest = {
        "disk_bytes": limits.max_disk_bytes,
        "tile_size_meters": limits.max_tile_size_meters,
        "tile_size_pixels": limits.max_tile_size_pixels,
    }

    for name, value in largest.items():
        with pytest.raises(CallError) as caught:
            insert(admin, tile(block.key(), **{name: value + 1}))
        assert [violation.field for violation in caught.value.violations] == [f"tile.{name}"]
    insert(admin, tile(block.key(), **largest))

    assert admin.store.GetTile(
        GetTileRequest(tile=by_key(block.key())), timeout=TIMEOUT_S
    ).tile.disk_bytes == (limits.max_disk_bytes)
    for goal in ("free_bytes", "max_used_bytes"):
        with pytest.raises(CallError, match=f"{goal}: is"):
            evict(admin, **{goal: limits.max_goal_bytes + 1})
        evict(admin, **{goal: limits.max_goal_bytes}, dry_run=True)


def test_rows_of_the_largest_size_are_counted_evicted_and_deleted(
    admin: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    store_largest(sql, block, count=4)

    assert read_usage(admin).total.used_bytes == LARGEST
    sent = admin.store.GetTile(GetTileRequest(tile=by_key(block.key())), timeout=TIMEOUT_S).tile
    assert sent.disk_bytes == LARGEST
    dry_run = evict(admin, max_used_bytes=0, dry_run=True)
    assert (len(dry_run.tiles), dry_run.summary.freed_bytes) == (4, LARGEST)
    evicted = evict(admin, max_used_bytes=LARGEST // 2)
    assert (len(evicted.tiles), evicted.summary.freed_bytes) == (4, LARGEST)
    assert evicted.summary.used_bytes == 0
    assert read_usage(admin).pending_removal.used_bytes == LARGEST
    assert [entry.disk_bytes for entry in list_evictions(admin)] == [LARGEST] * 4

    other = Block()
    for index in range(2):
        store_row(sql, other.key(index), file_path=f"other/{index}", disk_bytes=LARGEST)
    deleted = delete(admin, tile_uuids=[tile_uuid(other.key(index)) for index in range(2)])
    assert (deleted.summary.deleted_count, deleted.summary.freed_bytes) == (2, LARGEST)


def test_an_insert_under_a_ceiling_evicts_rows_of_the_largest_size(
    under_ceiling: DaemonProcess, database: str, block: Block
) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        store_largest(sql, block)

    key = block.key(50)
    insert(under_ceiling.client, tile(key, disk_bytes=1_000))

    assert is_stored(under_ceiling.client, key)
    assert read_usage(under_ceiling.admin_client).total.used_bytes == 1_000


def test_rows_of_the_largest_size_are_in_the_metrics(
    database: str, short_directory: Path, block: Block
) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        store_largest(sql, block)
    with DaemonProcess(short_directory, dsn=database) as daemon:
        text = daemon.admin_client.admin.GetMetrics(GetMetricsRequest(), timeout=TIMEOUT_S).text

    (line,) = [line for line in text.splitlines() if line.startswith("tilecache_stored_bytes{")]
    assert float(line.split()[-1]) == 3.0 * LARGEST
