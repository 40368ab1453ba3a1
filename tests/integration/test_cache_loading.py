"""What the cache reads of the table, and in which order: only it can tell."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.waiting import PATIENCE_S, eventually
from tilecache.mercator import BlockKey, CellRectangle, cells_of
from tilecache_daemon import tasks
from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.models import TileFilter
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import packing
from tilecache_daemon.store.change_feed import ChangeListener
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tiles import TileQueries

KEY = BlockKey(18, 4_000, 3_000)
WHOLE = cells_of(KEY)
CORNER = CellRectangle(WHOLE.x_from, WHOLE.x_from, WHOLE.y_from, WHOLE.y_from)


@pytest.fixture
def read_priority() -> ReadPriority:
    return ReadPriority(time.monotonic)


@pytest.fixture
async def cache(database: str, read_priority: ReadPriority) -> AsyncIterator[TileCache]:
    """One that hears of changes, on a database without tiles."""
    pool = Database(database, min_size=1, max_size=4, timeout_s=5, statement_timeout_s=30)
    await pool.open()
    changes = ChangeListener(database)
    listening = asyncio.create_task(changes.run())
    cache = TileCache(Store(pool, changes), changes, packing, read_priority, 1_000_000)
    await asyncio.to_thread(eventually, lambda: changes.hearing)
    yield cache
    await tasks.end(listening)
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


async def ask(cache: TileCache, cells: CellRectangle) -> None:
    async for _ in cache.read_region(KEY.zoom, [cells], TileFilter()):
        pass


async def test_an_answer_does_not_wait_for_the_rest_of_its_block(
    cache: TileCache, read_priority: ReadPriority, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    await ask(cache, CORNER)
    read_priority.note_read()
    await ask(cache, CORNER)
    read = [await asyncio.wait_for(reads.get(), PATIENCE_S) for _ in range(3)]
    assert read == [CORNER, CORNER, WHOLE]


async def test_who_asks_a_third_time_reads_the_rest_that_nobody_had_time_for(
    cache: TileCache, read_priority: ReadPriority, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    for _ in range(4):
        read_priority.note_read()
        await ask(cache, CORNER)
    assert [reads.get_nowait() for _ in range(reads.qsize())] == [CORNER, CORNER, WHOLE]

    await asyncio.gather(
        *(task for task in asyncio.all_tasks() if task.get_name() == "cache-completer")
    )
    assert reads.empty()


async def test_what_was_read_in_whole_is_not_read_again(
    cache: TileCache, reads: "asyncio.Queue[CellRectangle]"
) -> None:
    await ask(cache, WHOLE)
    await ask(cache, WHOLE)
    await ask(cache, CORNER)
    assert [reads.get_nowait() for _ in range(reads.qsize())] == [WHOLE]
