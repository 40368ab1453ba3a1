"""What the cache reads of the table, and what it keeps."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import psycopg
import pytest

from tests.waiting import PATIENCE_S, eventually
from tilecache.identity import tile_uuid_text
from tilecache.mercator import BlockKey, CellRectangle, cells_of
from tilecache_daemon import tasks
from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.models import TileFilter
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import packing
from tilecache_daemon.store.change_feed import ChangeFeed
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tiles import TileQueries

KEY = BlockKey(18, 4_000, 3_000)
WHOLE = cells_of(KEY)
CORNER = CellRectangle(WHOLE.x_from, WHOLE.x_from, WHOLE.y_from, WHOLE.y_from)


class Invalidations:
    """A later subscriber than the cache: what it has received the cache has received."""

    def __init__(self) -> None:
        self.received = asyncio.Event()

    def blocks_changed(self, blocks: Collection[BlockKey], *, own_accesses: bool) -> None:
        self.received.set()

    def all_changed(self) -> None:
        self.received.set()

    def subscription_changed(self, *, subscribed: bool) -> None:
        pass


@pytest.fixture
def changes(database: str) -> ChangeFeed:
    return ChangeFeed(database)


@pytest.fixture
async def cache(database: str, changes: ChangeFeed) -> AsyncIterator[TileCache]:
    """A subscribed cache on a database without tiles."""
    pool = Database(database, min_size=1, max_size=4, timeout_s=5, statement_timeout_s=30)
    await pool.open()
    read_priority = ReadPriority(time.monotonic)
    cache = TileCache(Store(pool, changes), changes, packing, read_priority, 1_000_000)
    running = [asyncio.create_task(work) for work in (changes.run(), cache.run())]
    await asyncio.to_thread(eventually, lambda: changes.subscribed)
    yield cache
    for task in running:
        await tasks.end(task)
    await pool.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[CellRectangle]":
    """The cells that are read, in order."""
    reads: asyncio.Queue[CellRectangle] = asyncio.Queue()
    read_blocks = TileQueries.read_blocks

    async def recorded(self: TileQueries, zoom: int, cells: Sequence[CellRectangle]) -> Any:
        for rectangle in cells:
            reads.put_nowait(rectangle)
        return await read_blocks(self, zoom, cells)

    monkeypatch.setattr(TileQueries, "read_blocks", recorded)
    return reads


def store_tile(database: str) -> str:
    """Stores a tile beside the daemon, in the corner; gives its id."""
    cell = KEY.zoom, CORNER.x_from, CORNER.y_from
    tile_uuid = tile_uuid_text(*cell, "googlemaps", None)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
                   tile_size_meters, tile_size_pixels, file_path, captured_at)
               VALUES (%s, %s, %s, %s, %s, 'googlemaps', 0, 0, 1, 256, 'a.jpg', now())""",
            (tile_uuid, tile_uuid, *cell),
        )
    return tile_uuid


async def read(cache: TileCache, cells: CellRectangle) -> int:
    """How many tiles were read."""
    parts = [part async for part in cache.read_region(KEY.zoom, [cells], TileFilter())]
    return sum(len(part.elements) for part in parts)


async def next_reads(reads: "asyncio.Queue[CellRectangle]", count: int) -> list[CellRectangle]:
    return [await asyncio.wait_for(reads.get(), PATIENCE_S) for _ in range(count)]


async def cached_tiles(cache: TileCache, count: int) -> None:
    """Returns when so many tiles are cached."""
    await asyncio.to_thread(eventually, lambda: cache.status.tiles == count)


async def test_a_part_of_a_block_is_read_alone_and_the_second_read_has_the_block_loaded(
    cache: TileCache, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    await read(cache, CORNER)
    await read(cache, CORNER)
    assert await next_reads(reads, 3) == [CORNER, CORNER, WHOLE]


async def test_the_second_read_of_a_tile_by_id_has_its_block_loaded(
    cache: TileCache, database: str, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    tile_uuid = store_tile(database)
    for misses in (1, 2):
        (element,), degraded = await cache.find([tile_uuid])
        assert element is not None
        assert not degraded
        assert (cache.status.hits, cache.status.misses) == (0, misses)
    assert await next_reads(reads, 1) == [WHOLE]
    await cached_tiles(cache, 1)
    assert (await cache.find([tile_uuid])).elements == [element]
    assert cache.status.hits == 1


async def test_a_block_that_was_read_whole_is_not_read_again(
    cache: TileCache, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    await read(cache, WHOLE)
    await read(cache, WHOLE)
    await read(cache, CORNER)
    assert await next_reads(reads, 1) == [WHOLE]
    assert reads.empty()


async def test_a_block_that_changes_while_it_is_read_is_not_cached(
    cache: TileCache, changes: ChangeFeed, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_blocks = TileQueries.read_blocks
    invalidations = Invalidations()
    changes.add_subscriber(invalidations)

    async def changed_meanwhile(self: TileQueries, zoom: int, cells: Any) -> Any:
        found = await read_blocks(self, zoom, cells)
        monkeypatch.undo()
        await asyncio.to_thread(store_tile, database)
        await asyncio.wait_for(invalidations.received.wait(), PATIENCE_S)
        return found

    monkeypatch.setattr(TileQueries, "read_blocks", changed_meanwhile)
    assert await read(cache, WHOLE) == 0
    assert await read(cache, WHOLE) == 1


@pytest.mark.parametrize("payload", ["x", "", " ", "a 1/2", "a 1/2/3/4", "a 1/x/3", "\u00e9 *"])
async def test_a_notification_of_unknown_form_invalidates_everything_and_the_feed_goes_on(
    cache: TileCache, changes: ChangeFeed, database: str, payload: str
) -> None:
    assert await read(cache, WHOLE) == 0
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("ALTER TABLE tiles DISABLE TRIGGER USER")
        await asyncio.to_thread(store_tile, database)
        assert await read(cache, WHOLE) == 0
        await connection.execute("ALTER TABLE tiles ENABLE TRIGGER USER")
        invalidations = Invalidations()
        changes.add_subscriber(invalidations)
        await connection.execute("SELECT pg_notify('tilecache_changes', %s)", [payload])
        await asyncio.wait_for(invalidations.received.wait(), PATIENCE_S)
    assert await read(cache, WHOLE) == 1
    assert changes.subscribed
