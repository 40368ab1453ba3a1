"""ListTiles."""

import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.admin import delete
from tests.tiles import (
    GOOGLEMAPS,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    by_key,
    random_flight,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_FRESH,
    FRESHNESS_LABEL_REJECTED,
    GetTileRequest,
    ListTilesRequest,
    ListTilesResponse,
    TileMetadata,
)
from tilecache_daemon.service.reading import SCANNED_ROWS


def pages(client: TileCacheClient, **request: Any) -> list[ListTilesResponse]:
    """All pages of a list."""
    answers: list[ListTilesResponse] = []
    token = ""
    while not answers or token:
        answers.append(
            client.store.ListTiles(ListTilesRequest(page_token=token, **request), timeout=TIMEOUT_S)
        )
        token = answers[-1].next_page_token
    return answers


def listed(client: TileCacheClient, **request: Any) -> list[TileMetadata]:
    return [tile for page in pages(client, **request) for tile in page.tiles]


def ids(client: TileCacheClient, **request: Any) -> list[str]:
    return [tile.tile_uuid for tile in listed(client, **request)]


def test_all_tiles_of_all_zooms_are_listed_in_the_order_of_their_insert(
    admin: TileCacheClient, block: Block
) -> None:
    assert listed(admin) == []
    keys = [*block.keys(5), tile_key(3, 1, 2), tile_key(9, 0, 0, ONBOARD, random_flight())]
    for key in keys:
        bulk_insert(admin, [tile(key)])

    found = listed(admin)

    assert [tile.tile_uuid for tile in found] == [tile_uuid(key) for key in keys]
    request = GetTileRequest(tile=by_key(keys[-1]))
    assert found[-1] == admin.store.GetTile(request, timeout=TIMEOUT_S).tile


def test_pages_neither_repeat_nor_skip_while_tiles_come_and_go(
    admin: TileCacheClient, block: Block
) -> None:
    keys = list(block.keys(10))
    for key in keys:
        bulk_insert(admin, [tile(key)])
    first = admin.store.ListTiles(ListTilesRequest(page_size=4), timeout=TIMEOUT_S)
    delete(admin, tile_uuids=[tile_uuid(keys[0]), tile_uuid(keys[5])])
    late = block.key(0, 1)
    bulk_insert(admin, [tile(late)])

    rest = ids_after(admin, first.next_page_token)

    assert len(first.tiles) == 4
    assert rest == [tile_uuid(key) for key in (keys[4], *keys[6:], late)]


def ids_after(client: TileCacheClient, token: str) -> list[str]:
    answer = client.store.ListTiles(ListTilesRequest(page_token=token), timeout=TIMEOUT_S)
    assert answer.next_page_token == ""
    return [tile.tile_uuid for tile in answer.tiles]


def test_filters(admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block) -> None:
    flight_id = random_flight()
    downloaded, flown = block.key(0, 0), block.key(0, 0, ONBOARD, flight_id)
    coarse, rejected = tile_key(4, 1, 1), tile_key(4, 2, 1)
    bulk_insert(
        admin,
        [
            tile(downloaded, captured_at=YESTERDAY),
            tile(flown, captured_at=NOW - timedelta(hours=1)),
            tile(coarse, captured_at=NOW - timedelta(days=9)),
        ],
    )
    store_row(sql, rejected, freshness_status="rejected")

    for expected, filters in (
        ([downloaded, flown], {"zooms": [18, 7]}),
        ([downloaded, coarse, rejected], {"sources": [GOOGLEMAPS]}),
        ([flown], {"flight_id": flight_id}),
        ([flown], {"captured_after": timestamp(YESTERDAY)}),
        ([coarse], {"captured_before": timestamp(YESTERDAY)}),
        ([rejected], {"labels": [FRESHNESS_LABEL_REJECTED]}),
        ([coarse], {"labels": [FRESHNESS_LABEL_FRESH], "zooms": [4]}),
        ([flown], {"pending_upload": True}),
        ([], {"pending_upload": True, "sources": [GOOGLEMAPS]}),
    ):
        assert sorted(ids(admin, **filters)) == sorted(map(tile_uuid, expected)), filters


def test_the_tiles_of_some_files_are_listed_page_by_page(
    admin: TileCacheClient, block: Block
) -> None:
    shared = [tile(key, file_path="a/shared image.jpg") for key in block.keys(3)]
    own, other = tile(block.key(5), file_path="b.jpg"), tile(block.key(6), file_path="c.jpg")
    bulk_insert(admin, [*shared, own, other])
    files = ["b.jpg", "a/shared image.jpg", "not there.jpg"]

    answers = pages(admin, file_paths=files, page_size=3)

    found = [[each.tile_uuid for each in answer.tiles] for answer in answers]
    assert found == [[tile_uuid(each.key) for each in shared], [tile_uuid(own.key)]]
    assert ids(admin, file_paths=["not there.jpg"]) == []


def test_a_filter_that_few_tiles_pass_reads_a_bounded_part_of_the_table(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    sql.execute(
        """
        INSERT INTO tiles (zoom, x, y, source, latitude, longitude, tile_size_meters,
            tile_size_pixels, file_path, captured_at, tile_uuid, location_hash)
        SELECT 20, n, 1, 'googlemaps', 0, 0, 1, 256, 'f', now(), gen_random_uuid(),
            gen_random_uuid()
        FROM generate_series(1, %s) AS n
        """,
        [SCANNED_ROWS],
    )
    bulk_insert(admin, [tile(block.key())])

    answers = pages(admin, zooms=[18])

    assert [len(answer.tiles) for answer in answers] == [0, 1]


def test_a_page_with_long_texts_fits_into_a_message(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    for key in block.keys(4):
        store_row(sql, key, tile_quality_metadata=json.dumps({"note": "a" * 1_400_000}))

    assert [len(answer.tiles) for answer in pages(admin)] == [2, 2]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"page_token": "next"}, "page_token"),
        ({"page_token": "9223372036854775808"}, "page_token"),
        ({"page_size": -1}, "page_size"),
        ({"zooms": [23]}, r"zooms\[0\]"),
        ({"sources": [7]}, r"sources\[0\]"),
        ({"flight_id": "LX1"}, "flight_id"),
        ({"labels": [9]}, r"labels\[0\]"),
        ({"file_paths": ["a"], "zooms": [3]}, "zooms"),
        ({"file_paths": ["a", "b\0"]}, r"file_paths\[1\]"),
    ],
)
def test_a_bad_field_is_named(
    client: TileCacheClient, request_: dict[str, Any], field: str
) -> None:
    with pytest.raises(CallError, match=field) as refusal:
        client.store.ListTiles(ListTilesRequest(**request_), timeout=TIMEOUT_S)
    assert refusal.value.reason == "INVALID_REQUEST"
