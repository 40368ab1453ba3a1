"""Inserts that evict tiles to stay under the ceiling."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.admin import ACTIVE_CONFLICT, list_evictions, read_usage, set_sector, touch
from tests.daemon_process import DaemonProcess
from tests.tiles import NOW, ONBOARD, Block, bulk_insert, insert, key_name, tile
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import EVICTION_REASON_EVICTED_ON_INSERT
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_REPLACED,
    ON_CONFLICT_REPLACE_IF_NEWER,
)

CEILING = 1_000


@pytest.fixture(scope="module")
def shared_daemon(shared_database: str) -> Iterator[DaemonProcess]:
    """A daemon that evicts to stay under its ceiling."""
    with (
        tempfile.TemporaryDirectory(prefix="tilecache-") as directory,
        DaemonProcess(
            Path(directory),
            dsn=shared_database,
            max_used_bytes=CEILING,
            evict_on_insert=True,
            access_recent_s=0,
        ) as process,
    ):
        yield process


@pytest.fixture
def full(admin: TileCacheClient, block: Block) -> TileCacheClient:
    """Ten tiles of 100 bytes."""
    (answer,) = bulk_insert(admin, [tile(key, disk_bytes=100) for key in block.keys(10)])
    assert answer.inserted_count == 10
    return admin


def evicted(admin: TileCacheClient) -> list[tuple[int, int, int, int, str]]:
    """The listed evictions, in order."""
    return [key_name(eviction.key) for eviction in list_evictions(admin)]


def names(*keys: TileKey) -> list[tuple[int, int, int, int, str]]:
    return [key_name(key) for key in keys]


def used_bytes(admin: TileCacheClient) -> int:
    return read_usage(admin).total.used_bytes


def test_usage_includes_evict_on_insert(full: TileCacheClient) -> None:
    assert read_usage(full).evict_on_insert


def test_an_insert_evicts_the_least_recently_used_and_lists_them(
    full: TileCacheClient, block: Block
) -> None:
    touch(full, block.key(0))

    insert(full, tile(block.key(0, 1), disk_bytes=150))

    assert evicted(full) == names(block.key(1), block.key(2))
    reasons = {eviction.reason for eviction in list_evictions(full)}
    assert reasons == {EVICTION_REASON_EVICTED_ON_INSERT}
    assert used_bytes(full) == 950


def test_a_batch_evicts_once_for_all_its_tiles(full: TileCacheClient, block: Block) -> None:
    (answer,) = bulk_insert(full, [tile(block.key(i, 1), disk_bytes=100) for i in range(4)])

    assert answer.inserted_count == 4
    assert evicted(full) == names(*(block.key(i) for i in range(4)))
    assert used_bytes(full) == CEILING


def test_a_batch_larger_than_the_ceiling_stores_what_fits(
    full: TileCacheClient, block: Block
) -> None:
    (answer,) = bulk_insert(full, [tile(block.key(i, 1), disk_bytes=100) for i in range(12)])

    assert answer.inserted_count == 10
    assert [refused.reason for refused in answer.refused] == ["STORAGE_CEILING"] * 2
    assert sorted(evicted(full)) == sorted(names(*(block.key(i) for i in range(10))))


def test_pending_uploads_are_not_evicted(admin: TileCacheClient, block: Block) -> None:
    bulk_insert(admin, [tile(block.key(i, 0, ONBOARD), disk_bytes=100) for i in range(10)])

    with pytest.raises(CallError) as refusal:
        insert(admin, tile(block.key(0, 1), disk_bytes=1))

    assert refusal.value.reason == "STORAGE_CEILING"
    assert evicted(admin) == []


def test_a_tile_refused_for_another_reason_evicts_nothing(
    full: TileCacheClient, block: Block
) -> None:
    set_sector(full, "front", ACTIVE_CONFLICT, (-80, -180, 80, 180))
    too_old = NOW - timedelta(days=400)
    (answer,) = bulk_insert(
        full,
        [
            tile(block.key(0, 1), disk_bytes=CEILING + 1),
            tile(block.key(1, 1), disk_bytes=500, captured_at=too_old),
            tile(block.key(0), "another", disk_bytes=500),
        ],
    )

    reasons = [refused.reason for refused in answer.refused]
    assert reasons == ["INVALID_REQUEST", "TILE_TOO_OLD", "CONTENT_CONFLICT"]
    assert evicted(full) == []


def test_a_larger_replacement_evicts_tiles(full: TileCacheClient, block: Block) -> None:
    newer = tile(block.key(9), "newer", NOW, disk_bytes=250, file_path="newer.jpg")

    answer = insert(full, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    assert answer.outcome == INSERT_OUTCOME_REPLACED
    assert evicted(full)[:2] == names(block.key(0), block.key(1))
    assert used_bytes(full) == 950


def test_concurrent_writers_can_all_evict(full: TileCacheClient, block: Block) -> None:
    def write(row: int) -> None:
        for column in range(10):
            insert(full, tile(block.key(column, row), disk_bytes=100))

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, range(1, 5)))

    assert used_bytes(full) <= CEILING
    assert read_usage(full).pending_removal.tile_count + read_usage(full).total.tile_count == 50
