"""QueryTiles."""

import random
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import (
    GOOGLEMAPS,
    ONBOARD,
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
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds, cell_centre, cell_edge_meters
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    FRESHNESS_LABEL_REJECTED,
    FRESHNESS_LABEL_STALE_REJECT,
    FRESHNESS_LABEL_STALE_WARN,
    TILE_SELECTION_BEST_PER_CELL,
    FreshnessLabel,
    GetServerInfoRequest,
    QueryTilesRequest,
    QueryTilesResponse,
    Region,
    TileMetadata,
)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # the default limit of a gRPC client
LABELS = {
    "fresh": FRESHNESS_LABEL_FRESH,
    "downgraded": FRESHNESS_LABEL_DOWNGRADED,
    "stale_warn": FRESHNESS_LABEL_STALE_WARN,
    "stale_reject": FRESHNESS_LABEL_STALE_REJECT,
    "rejected": FRESHNESS_LABEL_REJECTED,
}


def chunks(
    client: TileCacheClient, zoom: int, region: Region, **filters: Any
) -> Iterator[QueryTilesResponse]:
    request = QueryTilesRequest(zoom=zoom, region=region, **filters)
    answers: Iterator[QueryTilesResponse] = client.store.QueryTiles(request, timeout=60)
    return answers


def query(client: TileCacheClient, zoom: int, region: Region, **filters: Any) -> list[TileMetadata]:
    return [tile for chunk in chunks(client, zoom, region, **filters) for tile in chunk.tiles]


def cells(tiles: Iterable[TileMetadata]) -> list[tuple[int, int]]:
    return sorted((found.key.x, found.key.y) for found in tiles)


@pytest.fixture(scope="module")
def world(shared_daemon: DaemonProcess) -> TileCacheClient:
    """All cells of zooms 0 to 5: 1,365 tiles."""
    keys = [
        tile_key(zoom, x, y)
        for zoom in range(6)
        for x in range(1 << zoom)
        for y in range(1 << zoom)
    ]
    bulk_insert(shared_daemon.client, list(map(tile, keys)))
    return shared_daemon.client


def region_name(value: object) -> str:
    return " ".join(str(value).split()) if isinstance(value, Region) else ""


def square(x_from: int, x_to: int, y_from: int, y_to: int) -> list[tuple[int, int]]:
    return [(x, y) for x in range(x_from, x_to + 1) for y in range(y_from, y_to + 1)]


RIM = sorted(set(square(13, 18, 13, 18)) - set(square(14, 17, 14, 17)))


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (cell_region(3, 5, 10, 11), square(3, 5, 10, 11)),
        (cell_region(0, 31, 0, 31), square(0, 31, 0, 31)),
        (box_region(0.1, 0.1, 11.0, 11.0), [(16, 15)]),
        (box_region(-0.1, -0.1, 0.1, 0.1), square(15, 16, 15, 16)),
        (box_region(-90, -180, 90, 180), square(0, 31, 0, 31)),
        (box_region(0.1, 170, 0.2, -170), [(0, 15), (31, 15)]),
        (box_region(84.9, -180, 90, -179), [(0, 0)]),
        (box_region(86, -180, 90, 180), []),
        (circle_region(5.0, 5.0, 1_000), [(16, 15)]),
        (circle_region(0.0, 0.0, 1_000), square(15, 16, 15, 16)),
        (circle_region(5.0, 179.999, 10_000), [(0, 15), (31, 15)]),
        (circle_region(90.0, 0.0, 580_000), [(x, 0) for x in range(32)]),
        (polygon_region([(0.1, 0.1), (0.1, 22.4), (11, 0.1)]), square(16, 17, 15, 15)),
        (
            polygon_region([(1, 1), (1, 179), (-1, -179), (-1, 2)]),
            [*square(16, 31, 15, 16), (0, 16)],
        ),
        (
            polygon_region(
                [(-30, -30), (-30, 30), (30, 30), (30, -30)],
                [(-29, -29), (-29, 29), (29, 29), (29, -29)],
            ),
            RIM,
        ),
        (corridor_region([(5.0, 5.0), (5.0, 40.0)], 1_000), square(16, 19, 15, 15)),
        (corridor_region([(5.0, 170.0), (5.0, -170.0)], 1_000), [(0, 15), (31, 15)]),
        (
            union_region(box_region(0.1, 0.1, 11, 23), cell_region(16, 16, 15, 16)),
            [(16, 15), (16, 16), (17, 15), (18, 15)],
        ),
    ],
    ids=region_name,
)
def test_a_region_selects_the_cells_that_it_overlaps(
    world: TileCacheClient, region: Region, expected: list[tuple[int, int]]
) -> None:
    found = query(world, 5, region)
    assert cells(found) == sorted(expected)
    assert {tile.key.zoom for tile in found} <= {5}


@pytest.mark.parametrize("zoom", range(6))
def test_a_query_returns_tiles_of_its_zoom_only(world: TileCacheClient, zoom: int) -> None:
    assert len(query(world, zoom, box_region(-90, -180, 90, 180))) == 4**zoom


def test_the_bounds_of_a_cell_and_a_circle_within_it_select_that_cell(
    client: TileCacheClient, block: Block
) -> None:
    keys = list(block.keys(5, 5))
    bulk_insert(client, [tile(key) for key in keys])
    middle = keys[12]
    bounds = cell_bounds(middle.zoom, middle.x, middle.y)
    latitude, longitude = cell_centre(middle.zoom, middle.x, middle.y)
    radius = 0.4 * cell_edge_meters(middle.zoom, latitude)
    for region in (box_region(*bounds), circle_region(latitude, longitude, radius)):
        assert cells(query(client, block.zoom, region)) == [(middle.x, middle.y)]


def test_a_tile_has_all_its_fields(client: TileCacheClient, block: Block) -> None:
    key = block.key(source=ONBOARD, flight_id=random_flight())
    sent = tile(key, quality_metadata={"blur": 0.5})
    bulk_insert(client, [sent])
    (found,) = query(client, block.zoom, block.region)
    for field, value in sent.ListFields():
        assert getattr(found, field.name) == value
    assert found.tile_uuid == tile_uuid(key)


def test_chunks_of_an_answer_are_below_the_default_size_limit(
    client: TileCacheClient, block: Block
) -> None:
    keys = list(block.keys(100, 80))
    quality = {"note": "x" * 400}
    bulk_insert(client, [tile(key, quality_metadata=quality) for key in keys])
    answers = list(chunks(client, block.zoom, block.region))
    assert len(answers) > 3
    assert all(0 < answer.ByteSize() < MAX_MESSAGE_BYTES for answer in answers)
    found = [tile_uuid(found.key) for answer in answers for found in answer.tiles]
    assert sorted(found) == sorted(map(tile_uuid, keys))


def test_a_region_without_tiles_has_an_empty_answer(client: TileCacheClient, block: Block) -> None:
    assert query(client, block.zoom, block.region) == []


def test_filters_select_matching_tiles(client: TileCacheClient, block: Block) -> None:
    chance = random.Random(3)
    flights = [random_flight(), random_flight()]
    captures = [YESTERDAY - timedelta(days=days) for days in range(4)]
    sent = [
        tile(block.key(i, row, source, flight_id), captured_at=chance.choice(captures))
        for i in range(10)
        for row, (source, flight_id) in enumerate(
            [(GOOGLEMAPS, None), (ONBOARD, None), (ONBOARD, flights[0]), (ONBOARD, flights[1])]
        )
    ]
    bulk_insert(client, sent)

    def names(**filters: Any) -> set[tuple[Any, ...]]:
        return {key_name(found.key) for found in query(client, block.zoom, block.region, **filters)}

    def expected(condition: Any) -> set[tuple[Any, ...]]:
        return {key_name(message.key) for message in sent if condition(message)}

    for sources in ([GOOGLEMAPS], [ONBOARD], [GOOGLEMAPS, ONBOARD]):
        assert names(sources=sources) == expected(lambda m, s=sources: m.key.source in s)
    for flight_id in (*flights, random_flight()):
        assert names(flight_id=flight_id) == expected(lambda m, f=flight_id: m.key.flight_id == f)
    for capture in captures:
        after = timestamp(capture)
        assert names(captured_after=after) == expected(
            lambda m, a=after: m.captured_at.ToNanoseconds() > a.ToNanoseconds()
        )
    both = names(flight_id=flights[0], captured_after=timestamp(captures[2]))
    assert both == names(flight_id=flights[0]) & names(captured_after=timestamp(captures[2]))


@pytest.fixture
def labelled(block: Block, sql: psycopg.Connection[Any]) -> dict[int, TileKey]:
    """A tile of each label, by its label."""
    keys = dict(zip(LABELS.values(), block.keys(5), strict=True))
    for word, number in LABELS.items():
        store_row(sql, keys[number], freshness_status=word)
    return keys


def labels(tiles: Iterable[TileMetadata]) -> set[int]:
    return {found.freshness_label for found in tiles}


def test_unusable_labels_are_excluded_by_default(
    client: TileCacheClient, block: Block, labelled: dict[int, TileKey]
) -> None:
    assert labels(query(client, block.zoom, block.region)) == {
        FRESHNESS_LABEL_FRESH,
        FRESHNESS_LABEL_DOWNGRADED,
        FRESHNESS_LABEL_STALE_WARN,
    }
    assert len(labelled) == 5


def test_requested_labels_are_returned(
    client: TileCacheClient, block: Block, labelled: dict[int, TileKey]
) -> None:
    for label, key in labelled.items():
        (found,) = query(client, block.zoom, block.region, labels=[label])
        assert found.freshness_label == label
        assert found.tile_uuid == tile_uuid(key)
    every = [label for label in FreshnessLabel.values() if label]
    assert labels(query(client, block.zoom, block.region, labels=every)) == set(labelled)


def test_rows_of_the_oldest_schema_have_no_hash_and_size(
    client: TileCacheClient, block: Block, labelled: dict[int, TileKey]
) -> None:
    (found,) = query(client, block.zoom, block.region, labels=[FRESHNESS_LABEL_FRESH])
    assert found.key == labelled[FRESHNESS_LABEL_FRESH]
    assert found.content_sha256 == ""
    assert not found.HasField("disk_bytes")


def test_the_best_tile_has_the_best_label_then_the_newest_capture(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(4)
    order = list(LABELS)
    best: dict[tuple[int, int], tuple[Any, ...]] = {}
    for column in range(30):
        for _ in range(chance.randrange(1, 6)):
            key = block.key(column, 0, ONBOARD, random_flight())
            captured_at = YESTERDAY - timedelta(days=chance.randrange(1000))
            label = chance.choice(order)
            store_row(sql, key, freshness_status=label, captured_at=captured_at)
            merit = (-order.index(label), captured_at, tile_uuid(key))
            best[key.x, key.y] = max(best.get((key.x, key.y), merit), merit)
    found = query(
        client,
        block.zoom,
        block.region,
        labels=list(LABELS.values()),
        selection=TILE_SELECTION_BEST_PER_CELL,
    )
    assert {(tile.key.x, tile.key.y): tile.tile_uuid for tile in found} == {
        cell: merit[2] for cell, merit in best.items()
    }
    assert len(found) == 30


def test_the_best_tile_is_selected_after_filtering(client: TileCacheClient, block: Block) -> None:
    flight_id = random_flight()
    old = tile(block.key(source=ONBOARD, flight_id=flight_id), captured_at=YESTERDAY)
    new = tile(block.key(), captured_at=YESTERDAY + timedelta(hours=1))
    bulk_insert(client, [old, new])
    best = {"selection": TILE_SELECTION_BEST_PER_CELL}
    (found,) = query(client, block.zoom, block.region, **best)
    assert found.key == new.key
    (found,) = query(client, block.zoom, block.region, flight_id=flight_id, **best)
    assert found.key == old.key


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, 300), (1, 1), (299, 299), (300, 300), (5000, 300)]
)
def test_a_limit_bounds_the_number_of_tiles(
    world: TileCacheClient, limit: int, expected: int
) -> None:
    found = query(world, 5, cell_region(0, 19, 0, 14), limit=limit)
    assert len(found) == expected
    assert len(set(cells(found))) == expected
    assert set(cells(found)) <= set(square(0, 19, 0, 14))


def test_a_limit_of_the_best_tiles_counts_cells(client: TileCacheClient, block: Block) -> None:
    keys = [block.key(i, 0, ONBOARD, random_flight()) for i in range(10) for _ in range(3)]
    bulk_insert(client, list(map(tile, keys)))
    found = query(client, block.zoom, block.region, selection=TILE_SELECTION_BEST_PER_CELL, limit=7)
    assert len(set(cells(found))) == len(found) == 7


def test_the_largest_region_is_answered(client: TileCacheClient, block: Block) -> None:
    bulk_insert(client, [tile(block.key())])
    region = cell_region(block.x, block.x + 2047, block.y, block.y + 2047)
    assert (block.x, block.y) in cells(query(client, 18, region))


def test_a_second_read_of_a_part_of_a_block_caches_the_block(
    daemon: DaemonProcess,
) -> None:
    x, y = 32 * 4_000, 32 * 3_000
    bulk_insert(daemon.client, [tile(tile_key(18, x, y)), tile(tile_key(18, x + 31, y + 31))])

    def cached_tiles() -> int:
        info = daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)
        return int(info.cache.tiles)

    assert cells(query(daemon.client, 18, cell_region(x, x, y, y))) == [(x, y)]
    assert cached_tiles() == 0
    assert cells(query(daemon.client, 18, cell_region(x, x, y, y))) == [(x, y)]
    eventually(lambda: cached_tiles() == 2)


@pytest.mark.parametrize(
    ("zoom", "region"),
    [
        (18, cell_region(0, 2048, 0, 2047)),
        (22, box_region(-90, -180, 90, 180)),
        (22, circle_region(0, 0, 1_000_000)),
    ],
    ids=region_name,
)
def test_a_region_of_too_many_cells_is_refused(
    client: TileCacheClient, zoom: int, region: Region
) -> None:
    with pytest.raises(CallError) as caught:
        query(client, zoom, region)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.violations == [("region", "has more than 4194304 cells at this zoom")]
