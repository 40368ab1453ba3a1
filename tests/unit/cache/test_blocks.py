"""A block's answers are what going through its tiles one by one gives."""

from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import groupby
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles import FLIGHT
from tests.unit.columns import LABELS, columns_of
from tests.unit.some_tiles import old_row
from tilecache.identity import tile_ids_text
from tilecache.mercator import BlockKey, CellRectangle
from tilecache.v1.tile_metadata_store_pb2 import QueryTilesResponse
from tilecache_daemon.cache.blocks import Block, in_order, split_blocks
from tilecache_daemon.models import Tile, TileFilter, TileSelection, micros_of
from tilecache_daemon.rpc import packing

ZOOM, X, Y = 18, 32 * 700, 32 * 500
DAYS = [datetime(2026, 1, day, tzinfo=timezone.utc) for day in range(1, 6)]
SOURCES = ["googlemaps", "onboard_ingest"]
FLIGHTS = [None, FLIGHT, FLIGHT.replace("3f", "4f")]

keys = st.tuples(
    st.integers(0, 63), st.integers(0, 63), st.sampled_from(SOURCES), st.sampled_from(FLIGHTS)
)
some_tiles = st.dictionaries(
    keys, st.tuples(st.sampled_from(LABELS), st.sampled_from(DAYS)), max_size=40
).map(
    lambda some: [
        old_row()._replace(
            tile_uuid=tile_ids_text(ZOOM, X + x, Y + y, source, flight_id)[0],
            x=X + x,
            y=Y + y,
            source=source,
            flight_id=flight_id,
            freshness_label=label,
            captured_us=micros_of(captured_at),
        )
        for (x, y, source, flight_id), (label, captured_at) in some.items()
    ]
)
spans = st.tuples(st.integers(0, 31), st.integers(0, 31)).map(sorted)
filters = st.builds(
    TileFilter,
    sources=st.frozensets(st.sampled_from(SOURCES)),
    flight_id=st.sampled_from(FLIGHTS),
    captured_after=st.none() | st.sampled_from(DAYS),
    labels=st.frozensets(st.sampled_from(LABELS), min_size=1),
    selection=st.sampled_from(TileSelection),
)


def blocks_of(tiles: Sequence[Tile]) -> dict[BlockKey, Block]:
    keys = [BlockKey(ZOOM, X // 32 + i, Y // 32 + j) for i in (0, 1) for j in (0, 1)]
    ordered = in_order(columns_of(tiles))
    blocks = list(split_blocks(keys, ordered, packing.pack_tiles(ordered)))
    assert [block.key for block in blocks] == keys
    return dict(zip(keys, blocks, strict=True))


def ids_in(elements: Sequence[bytes]) -> list[str]:
    return [tile.tile_uuid for tile in QueryTilesResponse.FromString(b"".join(elements)).tiles]


def passes(tile: Tile, wanted: TileFilter) -> bool:
    return (
        (not wanted.sources or tile.source in wanted.sources)
        and wanted.flight_id in (None, tile.flight_id)
        and tile.freshness_label in wanted.labels
        and (wanted.captured_after is None or tile.captured_us > micros_of(wanted.captured_after))
    )


@given(some_tiles, spans, spans, filters)
def test_a_block_selects_as_its_tiles_one_by_one_would(
    tiles: list[Tile], columns: list[int], rows: list[int], wanted: TileFilter
) -> None:
    for key, block in blocks_of(tiles).items():
        x, y = key.x * 32, key.y * 32
        part = CellRectangle(x + columns[0], x + columns[1], y + rows[0], y + rows[1])
        expected = sorted(
            (
                tile
                for tile in tiles
                if part.x_from <= tile.x <= part.x_to and part.y_from <= tile.y <= part.y_to
                if passes(tile, wanted)
            ),
            key=lambda tile: (
                *(tile.y, tile.x, LABELS.index(tile.freshness_label)),
                *(-tile.captured_us, tile.tile_uuid),
            ),
        )
        if wanted.selection is TileSelection.BEST_PER_CELL:
            cells = groupby(expected, key=lambda tile: (tile.y, tile.x))
            expected = [next(best) for _, best in cells]
        found = ids_in(block.select([part], wanted))
        assert found == [tile.tile_uuid for tile in expected]


def test_a_replaced_element_keeps_its_place_among_the_others() -> None:
    tiles = [
        old_row()._replace(
            tile_uuid=tile_ids_text(ZOOM, X + x, Y, "googlemaps", None)[0],
            x=X + x,
            y=Y,
            freshness_label="fresh",
        )
        for x in range(8)
    ]
    block = blocks_of(tiles)[BlockKey(ZOOM, X // 32, Y // 32)]
    assert block.tile_uuids == [tile.tile_uuid for tile in tiles]
    block.replace(3, packing.with_access(block.elements[3], DAYS[0]))
    everything = block.select([CellRectangle(X, X + 31, Y, Y + 31)], TileFilter())
    read = QueryTilesResponse.FromString(b"".join(everything)).tiles
    assert [tile.tile_uuid for tile in read] == [tile.tile_uuid for tile in tiles]
    assert [tile.HasField("accessed_at") for tile in read] == [index == 3 for index in range(8)]


def test_a_block_takes_the_tiles_of_any_number_of_flights() -> None:
    count = 70_000
    tiles = columns_of([old_row()._replace(x=X, y=Y, freshness_label="fresh")])
    tiles = tiles.take(np.zeros(count, dtype=np.intp))
    tiles.rows["flight_id"][:, 12:] = np.arange(1, count + 1, dtype=">u4").view("4u1")
    ordered = in_order(tiles)
    key = BlockKey(ZOOM, X // 32, Y // 32)
    (block,) = split_blocks([key], ordered, packing.pack_tiles(ordered))
    for number in (1, 65_536, count):
        wanted = TileFilter(flight_id=str(UUID(int=number)))
        (element,) = block.select([CellRectangle(X, X, Y, Y)], wanted)
        (read,) = QueryTilesResponse.FromString(element).tiles
        assert read.key.flight_id == wanted.flight_id
