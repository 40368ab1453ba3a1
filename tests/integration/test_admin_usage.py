"""GetStorageUsage."""

from datetime import timedelta
from typing import Any

import psycopg

from tests.admin import STABLE_REAR, confirm, delete, evict, read_usage, set_sector
from tests.tiles import (
    GOOGLEMAPS,
    NOW,
    ONBOARD,
    Block,
    bulk_insert,
    insert,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_key,
    tile_uuid,
)
from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    ON_CONFLICT_REPLACE_IF_NEWER,
    MarkUploadedRequest,
    UploadedTile,
)


def used(usage: Any) -> tuple[int, int]:
    """The number of tiles and their size."""
    return usage.tile_count, usage.used_bytes


def test_an_empty_cache_uses_nothing(admin: TileCacheClient) -> None:
    usage = read_usage(admin)

    assert used(usage.total) == used(usage.pending_upload) == used(usage.pending_removal) == (0, 0)
    assert [*usage.sources, *usage.zooms, *usage.labels] == []


def test_without_a_ceiling_usage_has_none(admin: TileCacheClient) -> None:
    usage = read_usage(admin)

    assert usage.max_used_bytes == 0
    assert not usage.evict_on_insert


def test_usage_is_grouped_by_source_zoom_and_label(admin: TileCacheClient) -> None:
    set_sector(admin, "rear", STABLE_REAR, (50, 20, 60, 30))
    flight = random_flight()
    old = NOW - timedelta(days=800)
    (answer,) = bulk_insert(
        admin,
        [
            tile(tile_key(3, 4, 2), disk_bytes=10, captured_at=old),  # in the sector
            tile(tile_key(5, 1, 1), disk_bytes=200, captured_at=old),
            tile(tile_key(5, 2, 1, ONBOARD, flight), disk_bytes=3_000),
            tile(tile_key(5, 3, 1, ONBOARD), disk_bytes=40_000),
        ],
    )
    assert answer.inserted_count + answer.downgraded_count == 4

    usage = read_usage(admin)

    assert used(usage.total) == (4, 43_210)
    assert {item.source: used(item.usage) for item in usage.sources} == {
        GOOGLEMAPS: (2, 210),
        ONBOARD: (2, 43_000),
    }
    assert {item.zoom: used(item.usage) for item in usage.zooms} == {3: (1, 10), 5: (3, 43_200)}
    assert {item.label: used(item.usage) for item in usage.labels} == {
        FRESHNESS_LABEL_DOWNGRADED: (1, 10),
        FRESHNESS_LABEL_FRESH: (3, 43_200),
    }
    assert used(usage.pending_upload) == (2, 43_000)


def test_an_uploaded_tile_is_no_longer_pending(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(0, 0, ONBOARD), disk_bytes=7))
    insert(admin, tile(block.key(1, 0, ONBOARD), disk_bytes=8))
    uploaded = UploadedTile(
        tile_uuid=tile_uuid(block.key(0, 0, ONBOARD)), content_sha256=sha256("picture")
    )

    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[uploaded]), timeout=60)

    usage = read_usage(admin)
    assert used(usage.pending_upload) == (1, 8)
    assert used(usage.total) == (2, 15)


def test_a_replaced_tile_counts_with_its_new_size(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(), disk_bytes=100))

    insert(
        admin,
        tile(block.key(), "newer", NOW, disk_bytes=30, file_path="newer.jpg"),
        ON_CONFLICT_REPLACE_IF_NEWER,
    )

    usage = read_usage(admin)
    assert used(usage.total) == (1, 30)
    assert used(usage.pending_removal) == (1, 100)


def test_deleted_tiles_count_as_pending_removal_until_confirmed(
    admin: TileCacheClient, block: Block
) -> None:
    bulk_insert(admin, [tile(key, disk_bytes=10) for key in block.keys(5)])
    evicted = evict(admin, free_bytes=20).tiles
    deleted = delete(admin, tile_uuids=[tile_uuid(block.key(4))]).tiles

    usage = read_usage(admin)
    assert used(usage.total) == (2, 20)
    assert used(usage.pending_removal) == (3, 30)

    confirm(admin, [each.eviction_id for each in (*evicted, *deleted)])
    assert used(read_usage(admin).pending_removal) == (0, 0)


def test_tiles_of_unknown_size_are_counted(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    store_row(sql, block.key(0))
    insert(admin, tile(block.key(1), disk_bytes=0))

    usage = read_usage(admin)

    assert used(usage.total) == (2, 0)
    assert usage.unknown_size_count == 1
