"""EvictTiles: which tiles are evicted, and how many."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import evict, list_evictions, read_usage, touch
from tests.daemon_process import DaemonProcess
from tests.filling import fill
from tests.tiles import (
    ONBOARD,
    TIMEOUT_S,
    Block,
    bulk_insert,
    insert,
    is_stored,
    key_name,
    sha256,
    store_row,
    store_tiles,
    tile,
    tile_uuid,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import (
    EVICTION_STOP_EMPTY,
    EVICTION_STOP_GOAL_MET,
    EVICTION_STOP_PENDING_UPLOADS,
    EvictedTile,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    MarkUploadedRequest,
    UploadedTile,
)
from tilecache_daemon.service.eviction import BATCH_TILES


def names(keys: Iterator[TileKey] | list[TileKey]) -> list[tuple[int, int, int, int, str]]:
    return [key_name(key) for key in keys]


def evicted_keys(tiles: list[EvictedTile]) -> list[tuple[int, int, int, int, str]]:
    return [key_name(each.key) for each in tiles]


def test_the_least_recently_used_are_evicted_first(admin: TileCacheClient, block: Block) -> None:
    keys = store_tiles(admin, block, 5)
    touch(admin, keys[3], keys[0])

    eviction = evict(admin, free_bytes=300)

    assert evicted_keys(eviction.tiles) == names([keys[1], keys[2], keys[4]])
    assert [is_stored(admin, key) for key in keys] == [True, False, False, True, False]


def test_an_access_that_is_not_written_yet_counts(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=3600) as daemon:
        keys = store_tiles(daemon.admin_client, block, 3)
        touch(daemon.client, keys[1], keys[0])

        eviction = evict(daemon.admin_client, free_bytes=200)

        assert evicted_keys(eviction.tiles) == names([keys[2], keys[1]])


def test_an_eviction_stops_at_its_goal(admin: TileCacheClient, block: Block) -> None:
    keys = store_tiles(admin, block, 10)

    eviction = evict(admin, free_bytes=201)

    assert evicted_keys(eviction.tiles) == names(keys[:3])
    assert eviction.summary.goal_met
    assert eviction.summary.stop == EVICTION_STOP_GOAL_MET
    assert (eviction.summary.evicted_count, eviction.summary.freed_bytes) == (3, 300)
    assert eviction.summary.used_bytes == read_usage(admin).total.used_bytes == 700


def test_the_used_bytes_are_reduced_below_the_ceiling(admin: TileCacheClient, block: Block) -> None:
    keys = store_tiles(admin, block, 10)

    eviction = evict(admin, max_used_bytes=450)

    assert evicted_keys(eviction.tiles) == names(keys[:6])
    assert eviction.summary.goal_met
    assert read_usage(admin).total.used_bytes == eviction.summary.used_bytes == 400


def test_below_the_ceiling_nothing_is_evicted(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 3)

    eviction = evict(admin, max_used_bytes=300)

    assert eviction.tiles == []
    assert eviction.summary.goal_met
    assert eviction.summary.used_bytes == 300


def test_a_ceiling_of_zero_evicts_all(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 3)

    assert evict(admin, max_used_bytes=0).summary.evicted_count == 3


@pytest.mark.parametrize(
    "goal", [{"free_bytes": 450}, {"max_used_bytes": 450}, {"free_bytes": 5_000}]
)
@pytest.mark.parametrize("include_pending_uploads", [False, True])
def test_a_dry_run_reports_the_same_as_a_run(
    admin: TileCacheClient,
    block: Block,
    sql: psycopg.Connection[Any],
    goal: dict[str, int],
    include_pending_uploads: bool,
) -> None:
    keys = store_tiles(admin, block, 6)
    bulk_insert(admin, [tile(block.key(i, 1, ONBOARD), disk_bytes=70) for i in range(6)])
    store_row(sql, block.key(0, 2), file_path="unknown-size.jpg")
    touch(admin, keys[0], keys[4])
    request: dict[str, Any] = {**goal, "include_pending_uploads": include_pending_uploads}

    before = read_usage(admin)
    tried = evict(admin, **request, dry_run=True)
    assert read_usage(admin) == before
    assert list(list_evictions(admin)) == []
    done = evict(admin, **request)

    assert tried.tiles
    assert tried.summary.dry_run
    assert not done.summary.dry_run
    tried.summary.dry_run = False
    assert tried.summary == done.summary
    assert [facts(each) for each in tried.tiles] == [facts(each) for each in done.tiles]
    assert {each.eviction_id for each in tried.tiles} == {0}


def facts(evicted: EvictedTile) -> EvictedTile:
    """All fields but those that a dry run does not set."""
    rest = EvictedTile()
    rest.CopyFrom(evicted)
    rest.ClearField("eviction_id")
    rest.ClearField("evicted_at")
    return rest


def test_a_dry_run_of_several_batches_reports_the_same_as_a_run(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, BATCH_TILES * 2 + 500, disk_bytes=10)
    goal = {"max_used_bytes": 10 * 100}

    tried, done = evict(admin, **goal, dry_run=True), evict(admin, **goal)

    assert tried.summary.evicted_count == len(done.tiles) == BATCH_TILES * 2 + 400
    assert [each.tile_uuid for each in tried.tiles] == [each.tile_uuid for each in done.tiles]


def test_pending_uploads_are_kept_and_counted(admin: TileCacheClient, block: Block) -> None:
    bulk_insert(admin, [tile(block.key(i, 0, ONBOARD), disk_bytes=100) for i in range(3)])
    keys = store_tiles(admin, Block(), 2)
    uploaded = UploadedTile(
        tile_uuid=tile_uuid(block.key(1, 0, ONBOARD)), content_sha256=sha256("picture")
    )
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[uploaded]), timeout=TIMEOUT_S)

    eviction = evict(admin, max_used_bytes=0)

    assert evicted_keys(eviction.tiles) == names([block.key(1, 0, ONBOARD), *keys])
    assert not eviction.summary.goal_met
    assert eviction.summary.stop == EVICTION_STOP_PENDING_UPLOADS
    assert eviction.summary.pending_upload_count == 2


def test_pending_uploads_are_evicted_on_request(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(0, 0, ONBOARD), disk_bytes=100))

    eviction = evict(admin, free_bytes=1, include_pending_uploads=True)

    assert evicted_keys(eviction.tiles) == names([block.key(0, 0, ONBOARD)])
    assert eviction.summary.goal_met


def test_tiles_without_a_known_size_are_kept(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    insert(admin, tile(block.key(0), disk_bytes=0))
    store_row(sql, block.key(1))

    eviction = evict(admin, free_bytes=1)

    assert eviction.tiles == []
    assert not eviction.summary.goal_met
    assert eviction.summary.stop == EVICTION_STOP_EMPTY


def test_a_locked_tile_is_skipped_and_reported(
    admin: TileCacheClient, shared_database: str, block: Block
) -> None:
    keys = store_tiles(admin, block, 3)
    with psycopg.connect(shared_database) as writer:
        writer.execute("SELECT FROM tiles WHERE tile_uuid = %s FOR UPDATE", [tile_uuid(keys[0])])

        eviction = evict(admin, max_used_bytes=0)

    assert evicted_keys(eviction.tiles) == names(keys[1:])
    assert eviction.summary.stop == EVICTION_STOP_PENDING_UPLOADS
    assert eviction.summary.used_bytes == 100


@pytest.mark.parametrize("callers", [2, 4])
def test_concurrent_evictions_evict_no_more_than_one(
    admin: TileCacheClient, sql: psycopg.Connection[Any], callers: int
) -> None:
    fill(sql, 12_000, disk_bytes=10)

    with ThreadPoolExecutor(callers) as pool:
        evictions = list(pool.map(lambda _: evict(admin, max_used_bytes=33_335), range(callers)))

    assert all(each.summary.goal_met for each in evictions)
    ids = [each.tile_uuid for part in evictions for each in part.tiles]
    assert len(ids) == len(set(ids)) == 12_000 - 3_333
    assert read_usage(admin).total.used_bytes == 33_330


def test_concurrent_evictions_free_the_bytes_of_each(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, 12_000, disk_bytes=10)

    with ThreadPoolExecutor(2) as pool:
        evictions = list(pool.map(lambda _: evict(admin, free_bytes=45_005), range(2)))

    assert [each.summary.freed_bytes for each in evictions] == [45_010] * 2
    assert read_usage(admin).total.used_bytes == 120_000 - 2 * 45_010


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "goal"),
        ({"max_used_bytes": -1}, "max_used_bytes"),
        ({"free_bytes": 0}, "free_bytes"),
        ({"free_bytes": -5}, "free_bytes"),
    ],
)
def test_an_invalid_goal_is_refused(
    admin: TileCacheClient, block: Block, request_: dict[str, int], field: str
) -> None:
    store_tiles(admin, block, 1)

    with pytest.raises(CallError) as refusal:
        evict(admin, **request_)

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in refusal.value.violations] == [field]
    assert is_stored(admin, block.key())
