"""What memory holds: under its ceiling, and what was used last."""

import asyncio
from collections.abc import Callable

import pytest

from tests.unit.columns import columns_of
from tests.unit.some_tiles import old_row
from tilecache.identity import tile_uuid_text
from tilecache.mercator import BlockKey
from tilecache_daemon.cache.blocks import Block, cut_blocks, in_order
from tilecache_daemon.cache.storage import HeldTiles
from tilecache_daemon.rpc import packing
from tilecache_daemon.store.tile_ids import TileIds

ZOOM, X, ROOM = 18, 32 * 100, 3
TURNS = 100
"""Of the event loop, after which memory has nothing left to tidy."""
Use = Callable[[HeldTiles, int], object]


def tile_uuid(number: int) -> str:
    return tile_uuid_text(ZOOM, X + 32 * number, 0, "googlemaps", None)


def key(number: int) -> BlockKey:
    return BlockKey(ZOOM, X // 32 + number, 0)


def block(number: int) -> Block:
    """One of a single tile."""
    row = old_row()._replace(zoom=ZOOM, x=X + 32 * number, y=0, tile_uuid=tile_uuid(number))
    tiles = in_order(columns_of([row]))
    (made,) = cut_blocks([key(number)], tiles, *packing.pack_tiles(tiles))
    return made


async def fill() -> HeldTiles:
    """As many blocks as there is room for, which are found by id, too."""
    held = HeldTiles(ROOM * block(0).byte_count, is_loading=lambda: False)
    for number in range(ROOM):
        held.keep(block(number))
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert all(held.tile(tile_uuid(number)) for number in range(ROOM))
    return held


def test_no_more_is_held_than_there_is_room_for() -> None:
    async def test() -> None:
        held = await fill()
        for number in range(ROOM, 20):
            held.keep(block(number))
            assert held.tile_count == ROOM
            assert held.used_bytes <= held.max_bytes
        assert held.block(key(0), doubted=True) is None
        assert held.tile(tile_uuid(0)) is None

    asyncio.run(test())


@pytest.mark.parametrize(
    "use",
    [
        lambda held, number: held.block(key(number), doubted=False),
        lambda held, number: held.tile(tile_uuid(number)),
        lambda held, number: held.find(TileIds.of([tile_uuid(number)]), doubted=False),
    ],
    ids=["by region", "by id", "by many ids"],
)
def test_the_least_recently_used_goes_first(use: Use) -> None:
    async def test() -> None:
        held = await fill()
        assert use(held, 0)
        await asyncio.sleep(0)
        held.keep(block(ROOM))
        assert held.block(key(0), doubted=False)
        assert held.block(key(1), doubted=True) is None

    asyncio.run(test())
