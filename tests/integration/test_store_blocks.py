"""DescribeBlocks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.admin import delete
from tests.tiles import (
    NOW,
    ONBOARD,
    TIMEOUT_S,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    circle_region,
    corridor_region,
    insert,
    polygon_region,
    random_flight,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    union_region,
)
from tilecache.block_digests import SHORT_DIGEST_BYTES, digest_block, digest_tile, record_of
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import block_of, blocks_in, cell_centre
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_CONVERGE,
    BlockDigest,
    BlockPosition,
    DescribeBlocksRequest,
    ListTilesRequest,
    Region,
    TileMetadata,
)
from tilecache_daemon.rpc import regions
from tilecache_daemon.rpc.wire import PART_TILES, block_digests
from tilecache_daemon.service.block_digests import BLOCKS_PER_PAGE, BLOCKS_PER_STATEMENT
from tilecache_daemon.store.digests import BlockDigest as StoredDigest

ZOOM = 18
Position = tuple[int, int]


def described(client: TileCacheClient, zoom: int = ZOOM, **request: Any) -> list[BlockDigest]:
    """The blocks of an answer."""
    answers = client.store.DescribeBlocks(
        DescribeBlocksRequest(zoom=zoom, **request), timeout=TIMEOUT_S
    )
    return [block for answer in answers for block in answer.blocks]


def stored(client: TileCacheClient, zoom: int = ZOOM) -> Iterator[TileMetadata]:
    token = ""
    while True:
        request = ListTilesRequest(zooms=[zoom], page_token=token)
        page = client.store.ListTiles(request, timeout=TIMEOUT_S)
        yield from page.tiles
        token = page.next_page_token
        if not token:
            return


def position_of(block: BlockDigest) -> Position:
    return block.block_x, block.block_y


def positions(cells: Iterable[tuple[int, int]], zoom: int = ZOOM) -> list[Position]:
    """The blocks of some cells, in the order of an answer."""
    return sorted({block_of(zoom, x, y)[1:] for x, y in cells})


def store_scattered(client: TileCacheClient) -> None:
    """Tiles of 60 blocks, of two sources."""
    keys = [
        tile_key(ZOOM, 150_000 + 37 * column, 95_000 + 41 * row)
        for column in range(8)
        for row in range(8)
    ]
    flight = random_flight()
    onboard = [tile_key(ZOOM, key.x, key.y, ONBOARD, flight) for key in keys[::3]]
    bulk_insert(client, [tile(key, f"{key.x} {key.y}") for key in (*keys, *onboard)])


def test_each_block_has_the_digest_of_its_tiles(admin: TileCacheClient) -> None:
    store_scattered(admin)
    tiles = defaultdict(list)
    for each in stored(admin):
        tiles[block_of(ZOOM, each.key.x, each.key.y)[1:]].append(record_of(each))

    blocks = described(admin)

    assert [position_of(block) for block in blocks] == sorted(tiles)
    for block in blocks:
        records = tiles[position_of(block)]
        assert block.tile_count == len(records)
        assert block.digest == digest_block(records)
        assert not block.tile_uuids
        assert not block.tile_digests


def test_named_blocks_tell_each_tile(admin: TileCacheClient) -> None:
    store_scattered(admin)
    records = {UUID(each.tile_uuid).bytes: record_of(each) for each in stored(admin)}
    named = described(admin)[5:25]

    blocks = described(
        admin,
        blocks=[BlockPosition(block_x=each.block_x, block_y=each.block_y) for each in named],
        detail=True,
    )

    for block, without in zip(blocks, named, strict=True):
        tile_uuids, digests = (
            [data[at : at + size] for at in range(0, len(data), size)]
            for data, size in (
                (block.tile_uuids, 16),
                (block.tile_digests, SHORT_DIGEST_BYTES),
            )
        )
        assert len(tile_uuids) == block.tile_count
        assert tile_uuids == sorted(tile_uuids)
        assert digest_block(records[each] for each in tile_uuids) == block.digest
        assert digests == [digest_tile(records[each])[:8] for each in tile_uuids]
        assert (block.tile_count, block.digest) == (without.tile_count, without.digest)


def test_blocks_without_tiles_are_left_out(admin: TileCacheClient) -> None:
    insert(admin, tile(tile_key(ZOOM, 150_000, 95_000)))
    ((x, y),) = positions([(150_000, 95_000)])

    blocks = described(
        admin, blocks=[BlockPosition(block_x=x, block_y=y), BlockPosition(block_x=x, block_y=y + 1)]
    )

    assert list(map(position_of, blocks)) == [(x, y)]
    assert described(admin, zoom=17) == []


X, Y = 149_984, 94_976
"""The corner of 10 by 5 blocks."""
LATITUDE, LONGITUDE = cell_centre(ZOOM, X + 160, Y + 80)
REGIONS = {
    "cells": cell_region(X + 40, X + 100, Y + 50, Y + 60),
    "box": box_region(LATITUDE - 0.01, LONGITUDE - 0.1, LATITUDE + 0.01, LONGITUDE),
    "circle": circle_region(LATITUDE, LONGITUDE, 2_500),
    "corridor": corridor_region(
        [(LATITUDE + 0.05, LONGITUDE - 0.2), (LATITUDE, LONGITUDE + 0.1)], 500
    ),
    "polygon": polygon_region(
        [
            (LATITUDE - 0.03, LONGITUDE),
            (LATITUDE + 0.05, LONGITUDE + 0.1),
            (LATITUDE - 0.05, LONGITUDE + 0.15),
        ]
    ),
    "union": union_region(cell_region(X, X, Y, Y), circle_region(LATITUDE, LONGITUDE, 500)),
}


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_a_region_has_the_blocks_that_it_overlaps_as_a_whole(
    admin: TileCacheClient, region: Region
) -> None:
    keys = [
        tile_key(ZOOM, X + column, Y + row)
        for column in range(0, 320, 16)
        for row in range(0, 160, 16)
    ]
    bulk_insert(admin, [tile(key) for key in keys])
    every = {position_of(block): block for block in described(admin)}
    assert len(every) == 50

    blocks = described(admin, region=region)

    overlapped = {key[1:] for key in blocks_in(ZOOM, regions.region_cells(ZOOM, region))} & set(
        every
    )
    assert list(map(position_of, blocks)) == sorted(overlapped)
    assert 0 < len(blocks) < len(every)
    assert all(every[position_of(block)] == block for block in blocks)


@pytest.mark.parametrize("zoom", range(7))
def test_a_block_is_larger_than_the_world_at_low_zooms(admin: TileCacheClient, zoom: int) -> None:
    last = (1 << zoom) - 1
    corners = {(0, 0), (last, 0), (0, last), (last, last)}
    bulk_insert(admin, [tile(tile_key(zoom, x, y)) for x, y in sorted(corners)])
    north_west = box_region(10, -170, 80, -10)

    assert list(map(position_of, described(admin, zoom))) == positions(corners, zoom)
    assert list(map(position_of, described(admin, zoom, region=north_west))) == [(0, 0)]


def test_more_blocks_than_a_page_are_all_described_in_order(admin: TileCacheClient) -> None:
    count = BLOCKS_PER_PAGE + BLOCKS_PER_STATEMENT + 1
    bulk_insert(
        admin,
        [tile(tile_key(20, 32 * (number % 30), 32 * (number // 30))) for number in range(count)],
    )

    found = list(map(position_of, described(admin, 20)))

    assert len(found) == count
    assert all(one < other for one, other in pairwise(found))


def test_content_and_capture_change_a_digest_and_nothing_else_does(
    admin: TileCacheClient, block: Block
) -> None:
    key = block.key()
    insert(admin, tile(key))

    def digest() -> bytes:
        ((answer,)) = described(admin)
        return answer.digest

    digests = [digest()]
    newer = NOW - timedelta(hours=1)
    insert(admin, tile(key, captured_at=newer, file_path="moved.jpg"), ON_CONFLICT_CONVERGE)
    digests.append(digest())
    insert(admin, tile(key, "new", captured_at=NOW, file_path="new.jpg"), ON_CONFLICT_CONVERGE)
    digests.append(digest())
    assert len(set(digests)) == 3

    delete(admin, tile_uuids=[tile_uuid(key)])
    assert described(admin) == []
    insert(admin, tile(key, file_path="elsewhere.png", disk_bytes=7))
    assert digest() == digests[0]


@pytest.mark.parametrize("content", [None, "A" * 64, "z" * 64])
def test_an_unknown_content_counts_as_zeros(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block, content: str | None
) -> None:
    store_row(sql, block.key(), content_sha256=content, disk_bytes=content and 1)
    (answer,) = stored(admin)
    without = TileMetadata()
    without.CopyFrom(answer)
    without.content_sha256 = ""

    (described_block,) = described(admin)

    assert described_block.digest == digest_block([record_of(answer)])
    assert record_of(answer) == record_of(without)


@pytest.mark.parametrize("captured_at", ["-infinity", "infinity", "4714-11-24 BC", "294276-12-31"])
def test_a_time_that_no_calendar_has_counts_as_the_nearest(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block, captured_at: str
) -> None:
    sql.execute("SET session_replication_role = replica")
    store_row(sql, block.key(), captured_at=captured_at, created_at=NOW)
    sql.execute("SET session_replication_role = origin")
    (answer,) = stored(admin)

    (block_digest,) = described(admin)

    assert block_digest.digest == digest_block([record_of(answer)])


def test_a_time_before_1970_is_digested(admin: TileCacheClient, block: Block) -> None:
    captured_at = datetime(1969, 12, 31, 23, 59, 59, 123_457, timezone.utc)
    insert(admin, tile(block.key(), captured_at=captured_at))
    (answer,) = stored(admin)

    (block_digest,) = described(admin)

    assert block_digest.digest == digest_block([record_of(answer)])


def test_a_block_with_more_tiles_than_a_message_holds_is_continued() -> None:
    count = 2 * PART_TILES + 1
    tile_uuids = b"".join(number.to_bytes(16, "big") for number in range(count))
    digests = b"".join(number.to_bytes(8, "big") for number in range(count))

    block = StoredDigest(3, 4, count, bytes(32), tile_uuids, digests)

    parts = list(block_digests(block))

    assert [len(part.tile_digests) // 8 for part in parts] == [PART_TILES, PART_TILES, 1]
    assert b"".join(part.tile_uuids for part in parts) == tile_uuids
    assert b"".join(part.tile_digests for part in parts) == digests
    assert {(part.block_x, part.block_y, part.tile_count) for part in parts} == {(3, 4, count)}
    assert all(part.ByteSize() < 3_000_000 for part in parts)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"zoom": 23}, "zoom"),
        ({"zoom": -1}, "zoom"),
        ({"detail": True}, "blocks"),
        ({"region": Region()}, "region"),
        ({"region": REGIONS["box"], "blocks": [BlockPosition()]}, "region"),
        ({"blocks": [BlockPosition()] * 4_097}, "blocks"),
        ({"zoom": 6, "blocks": [BlockPosition(), BlockPosition(block_x=2)]}, "blocks[1].block_x"),
        ({"zoom": 4, "blocks": [BlockPosition(block_y=1)]}, "blocks[0].block_y"),
        ({"blocks": [BlockPosition(block_y=-1)]}, "blocks[0].block_y"),
    ],
)
def test_bad_input_is_refused_by_name(
    client: TileCacheClient, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(CallError) as refusal:
        described(client, **fields)

    assert [violation.field for violation in refusal.value.violations] == [field]
