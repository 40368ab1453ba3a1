"""DeleteTiles."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import Deletion, delete, list_evictions, read_usage
from tests.filling import fill
from tests.tiles import (
    GOOGLEMAPS,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    circle_region,
    corridor_region,
    key_name,
    polygon_region,
    random_flight,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
    union_region,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1.tile_cache_admin_pb2 import EVICTION_REASON_DELETED, EvictedTile, ExpectedFile
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import QueryTilesRequest
from tilecache_daemon.service.eviction import BATCH_TILES

LAST_COLUMN_OF_10 = 1023
UNKNOWN_ID = "00000000-0000-5000-8000-000000000000"


def store(admin: TileCacheClient, *keys: TileKey, **fields: Any) -> None:
    (answer,) = bulk_insert(admin, [tile(key, disk_bytes=10, **fields) for key in keys])
    assert answer.inserted_count == len(keys)


def deleted_keys(deletion: Deletion) -> set[tuple[int, int, int, int, str]]:
    names = [key_name(each.key) for each in deletion.tiles]
    assert len(names) == len(set(names)) == deletion.summary.deleted_count
    return set(names)


def names(*keys: TileKey) -> set[tuple[int, int, int, int, str]]:
    return {key_name(key) for key in keys}


def stored_keys(sql: psycopg.Connection[Any]) -> set[tuple[int, int, int, int, str]]:
    rows = sql.execute(
        "SELECT zoom, x, y, source, coalesce(flight_id::text, '') FROM tiles"
    ).fetchall()
    return {(zoom, x, y, SOURCE_NUMBERS[source], flight) for zoom, x, y, source, flight in rows}


def test_a_tile_with_another_file_than_expected_is_kept(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    same, moved, replaced, unknown = (block.key(i) for i in range(4))
    store(admin, same, moved, replaced)
    store_row(sql, unknown, file_path="unknown.jpg")  # its content is unknown
    stored = [tile(same), tile(moved, file_path="before.jpg"), tile(replaced, content="before")]
    expected = [
        ExpectedFile(file_path=t.file_path, content_sha256=t.content_sha256) for t in stored
    ]
    expected.append(ExpectedFile(file_path="unknown.jpg"))
    ids = [tile_uuid(key) for key in (same, moved, replaced, unknown)]

    tried = delete(admin, tile_uuids=ids, expected_files=expected, dry_run=True)
    deletion = delete(admin, tile_uuids=ids, expected_files=expected)

    assert deleted_keys(tried) == deleted_keys(deletion) == names(same, unknown)
    assert tried.summary.changed_count == deletion.summary.changed_count == 2
    assert stored_keys(sql) == names(moved, replaced)


def test_expected_files_are_those_of_the_ids(admin: TileCacheClient, block: Block) -> None:
    for request in (
        {"tile_uuids": [tile_uuid(block.key())], "expected_files": [ExpectedFile()] * 2},
        {"zooms": [3], "expected_files": [ExpectedFile()]},
    ):
        with pytest.raises(CallError) as refusal:
            delete(admin, **request)
        assert [each.field for each in refusal.value.violations] == ["expected_files"]


def test_tiles_are_deleted_by_id_and_unknown_ids_are_reported(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    keys = [block.key(i) for i in range(3)]
    store(admin, *keys)

    deletion = delete(admin, tile_uuids=[tile_uuid(keys[0]), UNKNOWN_ID, tile_uuid(keys[2])])

    assert deleted_keys(deletion) == names(keys[0], keys[2])
    assert list(deletion.summary.not_found_tile_uuids) == [UNKNOWN_ID]
    assert deletion.summary.freed_bytes == 20
    assert stored_keys(sql) == names(keys[1])


def test_deleted_tiles_are_listed(admin: TileCacheClient, block: Block) -> None:
    store(admin, block.key())

    (deleted,) = delete(admin, zooms=[block.zoom]).tiles

    assert list(list_evictions(admin)) == [deleted]
    assert deleted.reason == EVICTION_REASON_DELETED


@pytest.mark.parametrize(
    ("region", "kept"),
    [
        (cell_region(500, 510, 300, 310), [(511, 300), (500, 311), (499, 305)]),
        (box_region(59.6, -4.1, 60.0, -0.6), [(511, 300), (511, 311)]),
        (circle_region(60.0, -4.05, 20_000.0), [(510, 310), (511, 300)]),
        (polygon_region([(59.0, -5.0), (60.3, -5.0), (60.3, -2.5)]), [(510, 310), (511, 300)]),
        (corridor_region([(60.0, -4.2), (60.4, -4.2)], 9_000.0), [(510, 310), (511, 300)]),
        (
            union_region(cell_region(500, 500, 297, 298), circle_region(60.0, -4.05, 9_000.0)),
            [(510, 310), (511, 300)],
        ),
    ],
)
def test_tiles_are_deleted_by_region(
    admin: TileCacheClient, sql: psycopg.Connection[Any], region: Any, kept: list[tuple[int, int]]
) -> None:
    far = [tile_key(10, x, y) for x, y in kept]
    near = [
        *(tile_key(10, 500, y) for y in range(296, 300)),
        *(tile_key(10, x, 298) for x in range(501, 504)),
    ]
    store(admin, *far, *near)
    queried = {
        key_name(each.key)
        for answer in admin.store.QueryTiles(
            QueryTilesRequest(zoom=10, region=region), timeout=TIMEOUT_S
        )
        for each in answer.tiles
    }

    deletion = delete(admin, region=region, zooms=[10])

    assert deleted_keys(deletion) == queried, "a region selects the same tiles as in a query"
    assert stored_keys(sql) == names(*far, *near) - queried
    assert names(*far) <= stored_keys(sql)


@pytest.mark.parametrize(
    "region",
    [
        circle_region(-17.0, 180.0, 60_000.0),
        circle_region(-17.0, -179.9, 60_000.0),
        box_region(-18.0, 179.5, -16.0, -179.5),
        polygon_region([(-18.0, 179.5), (-18.0, -179.5), (-16.0, -179.5), (-16.0, 179.5)]),
        corridor_region([(-17.0, 179.9), (-17.0, -179.9)], 9_000.0),
        union_region(
            corridor_region([(-17.0, 179.9), (-17.0, -179.9)], 9_000.0),
            circle_region(-17.0, 180.0, 60_000.0),
        ),
    ],
)
def test_a_region_may_cross_the_antimeridian(
    admin: TileCacheClient, sql: psycopg.Connection[Any], region: Any
) -> None:
    row = 560  # at 17 degrees south
    beside = [tile_key(10, LAST_COLUMN_OF_10, row), tile_key(10, 0, row)]
    far = [tile_key(10, LAST_COLUMN_OF_10 - 9, row), tile_key(10, 9, row), tile_key(10, 512, row)]
    store(admin, *beside, *far)

    deletion = delete(admin, region=region)

    assert deleted_keys(deletion) == names(*beside)
    assert stored_keys(sql) == names(*far)


def test_a_region_without_zooms_includes_all_zooms(admin: TileCacheClient) -> None:
    store(admin, *(tile_key(zoom, 0, 0) for zoom in range(23)))

    deletion = delete(admin, region=box_region(85.05, -180.0, 85.06, -179.9999))

    assert deleted_keys(deletion) == names(*(tile_key(zoom, 0, 0) for zoom in range(23)))


def test_filters_are_combined(admin: TileCacheClient, sql: psycopg.Connection[Any]) -> None:
    flight, other = random_flight(), random_flight()
    old = YESTERDAY - timedelta(days=5)
    wanted = tile_key(9, 5, 5, ONBOARD, flight)
    store(admin, wanted, captured_at=old)
    others = [
        tile_key(9, 5, 5, ONBOARD, other),
        tile_key(8, 5, 5, ONBOARD, flight),
        tile_key(9, 300, 5, ONBOARD, flight),
        tile_key(9, 5, 5),
    ]
    store(admin, *others, captured_at=old)
    store(admin, tile_key(9, 6, 5, ONBOARD, flight), captured_at=YESTERDAY)

    deletion = delete(
        admin,
        region=box_region(-85, -180, 85, 0),
        zooms=[9, 10],
        sources=[ONBOARD],
        flight_id=flight,
        captured_before=timestamp(YESTERDAY),
        include_pending_uploads=True,
    )

    assert deleted_keys(deletion) == names(wanted)
    assert stored_keys(sql) == names(*others, tile_key(9, 6, 5, ONBOARD, flight))


@pytest.mark.parametrize(
    ("filters", "deleted"),
    [
        ({"zooms": [7]}, {0, 1}),
        ({"zooms": [7, 8]}, {0, 1, 2}),
        ({"sources": [GOOGLEMAPS]}, {0, 2}),
        ({"sources": [GOOGLEMAPS, ONBOARD]}, {0, 1, 2, 3}),
        ({"captured_before": timestamp(YESTERDAY)}, {2, 3}),
        ({"flight_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}, {1}),
    ],
)
def test_one_filter_is_enough(
    admin: TileCacheClient, filters: dict[str, Any], deleted: set[int]
) -> None:
    keys = [
        tile_key(7, 1, 1),
        tile_key(7, 1, 1, ONBOARD, "3f2504e0-4f89-41d3-9a0c-0305e82c3301"),
        tile_key(8, 1, 1),
        tile_key(9, 1, 1, ONBOARD),
    ]
    store(admin, *keys[:2])
    store(admin, *keys[2:], captured_at=YESTERDAY - timedelta(microseconds=1))

    deletion = delete(admin, **filters, include_pending_uploads=True)

    assert deleted_keys(deletion) == names(*(keys[position] for position in deleted))


def test_pending_uploads_are_kept_and_counted(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    store(admin, block.key(0), block.key(0, 0, ONBOARD))

    by_zoom = delete(admin, zooms=[block.zoom])
    by_id = delete(admin, tile_uuids=[tile_uuid(block.key(0, 0, ONBOARD))])

    assert deleted_keys(by_zoom) == names(block.key(0))
    assert by_zoom.summary.pending_upload_count == by_id.summary.pending_upload_count == 1
    assert stored_keys(sql) == names(block.key(0, 0, ONBOARD))


@pytest.mark.parametrize(
    "filters",
    [
        {"zooms": [20]},
        {"region": cell_region(0, 1023, 0, 1), "zooms": [20]},
        {"region": circle_region(85.05, -180.0, 2_000.0)},
        {"captured_before": timestamp(NOW)},
    ],
)
def test_a_dry_run_reports_the_same_as_a_run(
    admin: TileCacheClient, sql: psycopg.Connection[Any], filters: dict[str, Any]
) -> None:
    fill(sql, BATCH_TILES + 500, disk_bytes=10)
    fill(sql, 100, disk_bytes=7, source="onboard_ingest")
    before = read_usage(admin)

    tried = delete(admin, **filters, dry_run=True)
    assert read_usage(admin) == before
    assert list(list_evictions(admin)) == []
    done = delete(admin, **filters)

    assert tried.summary.dry_run
    tried.summary.dry_run = False
    assert tried.summary == done.summary
    assert tried.tiles
    assert sorted(map(facts, tried.tiles)) == sorted(map(facts, done.tiles))
    assert read_usage(admin).total.tile_count == before.total.tile_count - len(done.tiles)


def facts(deleted: EvictedTile) -> bytes:
    rest = EvictedTile()
    rest.CopyFrom(deleted)
    rest.ClearField("eviction_id")
    rest.ClearField("evicted_at")
    return rest.SerializeToString()


def test_the_cost_of_a_region_depends_on_its_tiles(admin: TileCacheClient) -> None:
    """At zoom 22 the Earth has 17 million million cells, more than the limit of a query."""
    store(admin, tile_key(22, 1, 1), tile_key(22, 4_000_000, 4_000_000))

    box = delete(admin, region=box_region(-90, -180, 90, 180), dry_run=True)
    circle = delete(admin, region=circle_region(0, 0, 20_000_000.0), dry_run=True)

    parts = union_region(box_region(-90, -180, 90, 0), box_region(-90, 0, 90, 180))
    union = delete(admin, region=parts, dry_run=True)

    assert deleted_keys(box) == deleted_keys(circle) == deleted_keys(union)
    assert len(box.tiles) == 2


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "tile_uuids"),
        ({"include_pending_uploads": True}, "tile_uuids"),
        ({"tile_uuids": ["x"]}, "tile_uuids[0]"),
        ({"tile_uuids": [UNKNOWN_ID] * 4097}, "tile_uuids"),
        ({"tile_uuids": [UNKNOWN_ID], "zooms": [3]}, "zooms"),
        ({"zooms": [3, 23]}, "zooms[1]"),
        ({"sources": [0]}, "sources[0]"),
        ({"flight_id": "x"}, "flight_id"),
        ({"region": cell_region(0, 1, 0, 1)}, "zooms"),
        ({"region": cell_region(0, 1, 0, 1), "zooms": [3, 4]}, "zooms"),
        ({"region": cell_region(0, 99, 0, 1), "zooms": [3]}, "region.cell_range.x_to"),
        ({"region": box_region(5, 0, 4, 1)}, "region.bounding_box.south"),
        ({"region": circle_region(5, 0, -1)}, "region.circle.radius_meters"),
        ({"region": {}}, "region"),
        ({"region": union_region(cell_region(0, 1, 0, 1))}, "zooms"),
        ({"region": corridor_region([], 1)}, "region.corridor.waypoints"),
    ],
)
def test_an_invalid_request_is_refused_and_deletes_nothing(
    admin: TileCacheClient,
    sql: psycopg.Connection[Any],
    request_: dict[str, Any],
    field: str,
) -> None:
    store(admin, tile_key(3, 0, 0))

    with pytest.raises(CallError) as refusal:
        delete(admin, **request_)

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in refusal.value.violations] == [field]
    assert stored_keys(sql) == names(tile_key(3, 0, 0))


@pytest.mark.parametrize("selection", ["by id", "by region", "anywhere"])
def test_a_tile_in_use_is_deleted(
    admin: TileCacheClient, shared_database: str, sql: psycopg.Connection[Any], selection: str
) -> None:
    block = Block()
    key = block.key()
    store(admin, key)
    request = {
        "by id": {"tile_uuids": [tile_uuid(key)]},
        "by region": {"region": block.region, "zooms": [block.zoom]},
        "anywhere": {"captured_before": timestamp(NOW)},
    }[selection]
    with ThreadPoolExecutor() as threads, psycopg.connect(shared_database) as user:
        user.execute(
            "UPDATE tiles SET accessed_at = now(), access_order = nextval('tile_access_order_seq')"
        )
        deletion = threads.submit(delete, admin, **request)
        eventually(lambda: waiting_for_locks(shared_database))
        user.commit()
        assert deleted_keys(deletion.result()) == names(key)
    assert stored_keys(sql) == set()
