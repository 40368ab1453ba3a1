"""Tiles in memory as the bytes of their wire form: read-your-writes, whoever writes.

The change feed invalidates. What it may have missed is not trusted:

| change feed | PostgreSQL | an answer comes from |
| --- | --- | --- |
| subscribed | available | the cache; PostgreSQL for what is not cached or stale |
| not subscribed | available | PostgreSQL |
| either | away, or all connections in use | the cache, also stale blocks (degraded), or an error |

A read of PostgreSQL is cached unless its blocks changed while it was under way.
"""

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple, Protocol

from tilecache.mercator import (
    BlockKey,
    CellRectangle,
    block_of,
    blocks_in,
    bounds_of,
    cells_of,
)
from tilecache_daemon.cache.blocks import Block, in_order, split_blocks
from tilecache_daemon.cache.load_sizing import LoadSizing
from tilecache_daemon.cache.storage import CacheStorage
from tilecache_daemon.errors import DatabaseUnavailableError, OverloadedError, TileCacheError
from tilecache_daemon.models import TileFilter
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.store.change_feed import ChangeFeed
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tile_columns import TileColumns

PACK_BATCH_TILES: Final = 2_048
"""Tiles that are packed before other calls continue: about a millisecond."""
_CONCURRENT_LOADS: Final = 3
_PARTS_AHEAD: Final = 2
_IDLE_S: Final = 0.1
_IDLE_TIMEOUT_S: Final = 0.5
_BLOCKS_PER_LOAD: Final = 8
_MAX_READ_IN_PART: Final = 4_096
_MAX_WAITING_BLOCKS: Final = 256
_REWRITE_BATCH_TILES: Final = 64
_NO_ANSWER: Final = (DatabaseUnavailableError, OverloadedError)
"""PostgreSQL is away; or all connections are in use, perhaps by sessions that hang."""


class TilePacker(Protocol):
    """Turns tiles into the bytes of their wire form, which nothing else reads."""

    def pack_tiles(self, tiles: TileColumns) -> list[bytes]:
        """Each tile as an element of field 1 of a message."""


class Packer(TilePacker, Protocol):
    """What the cache needs."""

    def with_access(self, element: bytes, accessed_at: datetime) -> bytes:
        """The same tile with another access time."""


class FoundTiles(NamedTuple):
    """Elements in the order of the ids, None for a tile that is not stored; `degraded` if they
    may be out of date because PostgreSQL did not answer."""

    elements: list[bytes | None]
    degraded: bool


class RegionPart(NamedTuple):
    """Some of a region's tiles."""

    elements: list[bytes]
    degraded: bool


class CacheStatus(NamedTuple):
    """What is cached, and how reads went since the start."""

    tiles: int
    used_bytes: int
    max_bytes: int
    hits: int
    misses: int


class TileCache:
    """Answers from what is cached, and loads what is not."""

    def __init__(
        self,
        store: Store,
        changes: ChangeFeed,
        packer: Packer,
        read_priority: ReadPriority,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._read_priority = read_priority
        self._changes = changes
        self._packer = packer
        self._storage = CacheStorage(max_bytes)
        self._hits = self._misses = 0
        self._tile_bytes = 0
        self._loads: set[_Load] = set()
        self._load_slots = asyncio.Semaphore(_CONCURRENT_LOADS)
        self._read_in_part: dict[BlockKey, None] = {}
        self._waiting_blocks: asyncio.Queue[BlockKey] = asyncio.Queue(_MAX_WAITING_BLOCKS)
        changes.add_subscriber(self)

    @property
    def status(self) -> CacheStatus:
        return CacheStatus(
            self._storage.tile_count,
            self._storage.used_bytes + self._storage.reserved_bytes,
            self._storage.max_bytes,
            self._hits,
            self._misses,
        )

    def reserve(self, byte_count: int) -> None:
        """Takes so much of the cache's memory for other uses, and counts it as used."""
        self._storage.reserve(byte_count)

    async def find(self, tile_uuids: Sequence[str]) -> FoundTiles:
        """Tiles by id. If one of them is not cached, raises DatabaseUnavailableError if
        PostgreSQL is away, and OverloadedError if no connection is free in time."""
        elements: list[bytes | None] = [None] * len(tile_uuids)
        if self._changes.subscribed:
            elements = self._storage.find_tiles(tile_uuids)
        misses = elements.count(None)
        self._count(hits=len(elements) - misses, misses=misses)
        if not misses:
            return FoundTiles(elements, degraded=not self._store.available)
        missing = [
            tile_uuid
            for tile_uuid, element in zip(tile_uuids, elements, strict=True)
            if element is None
        ]
        try:
            loaded = await self._load_tiles(missing)
        except _NO_ANSWER:
            cached = self._storage.find_tiles(tile_uuids, allow_stale=True)
            if None in cached:
                raise
            return FoundTiles(cached, degraded=True)
        found = [
            loaded.get(tile_uuid) if element is None else element
            for tile_uuid, element in zip(tile_uuids, elements, strict=True)
        ]
        return FoundTiles(found, degraded=False)

    async def read_region(
        self, zoom: int, cells: Iterable[CellRectangle], wanted: TileFilter
    ) -> AsyncIterator[RegionPart]:
        """The tiles of some cells that pass the filter, block by block in no promised order.
        Raises as `find` does."""
        parts = blocks_in(zoom, cells)
        missing: dict[BlockKey, CellRectangle] = {}
        for key, part in parts.items():
            if block := self._find_valid_block(key):
                # Block by block: a client that reads slowly keeps little in memory.
                yield RegionPart(block.select(part, wanted), not self._store.available)
            else:
                missing[key] = bounds_of(part)
        self._count(hits=len(parts) - len(missing), misses=len(missing))
        async for block, degraded in self._load_blocks(zoom, missing):
            yield RegionPart(block.select(parts[block.key], wanted), degraded)
        # Last: the answer does not wait for the rest of its blocks.
        self._note_partial_reads(key for key, part in missing.items() if part != cells_of(key))

    async def note_accesses(self, accessed_at: Mapping[str, datetime]) -> None:
        """Gives cached tiles, by id, the access times that this daemon has just written."""
        for index, (tile_uuid, moment) in enumerate(accessed_at.items()):
            if index % _REWRITE_BATCH_TILES == 0:
                await asyncio.sleep(0)
            self._storage.rewrite(tile_uuid, partial(self._packer.with_access, accessed_at=moment))

    async def run(self) -> None:
        """Loads the blocks that were read in part repeatedly, between reads, until cancelled."""
        while True:
            keys = [await self._waiting_blocks.get()]
            await self._read_priority.wait_until_idle(_IDLE_S, _IDLE_TIMEOUT_S)
            while len(keys) < _BLOCKS_PER_LOAD and not self._waiting_blocks.empty():
                keys.append(self._waiting_blocks.get_nowait())
            for zoom in {key.zoom for key in keys}:
                whole = {key: cells_of(key) for key in keys if key.zoom == zoom}
                with suppress(TileCacheError):
                    await self._load_part(zoom, partial(_fixed_part, whole))

    def blocks_changed(self, blocks: Collection[BlockKey], *, own_accesses: bool) -> None:
        """As `change_feed.Subscriber`. This daemon's own accesses come by `note_accesses`."""
        for load in self._loads:
            load.changed.update(blocks)
        if not own_accesses:
            self._storage.invalidate(blocks)

    def all_changed(self) -> None:
        """As `change_feed.Subscriber`."""
        for load in self._loads:
            load.all_changed = True
        self._storage.invalidate_all()

    def subscription_changed(self, *, subscribed: bool) -> None:
        """As `change_feed.Subscriber`. Changes until now may have been missed."""
        if subscribed:
            self.all_changed()

    async def _load_tiles(self, tile_uuids: Sequence[str]) -> dict[str, bytes]:
        async with self._store.connection() as queries:
            tiles = await queries.tiles.read_tiles(tile_uuids)
        cells = (tiles.rows[name].tolist() for name in ("zoom", "x", "y"))
        self._note_partial_reads(set(map(block_of, *cells)))
        return dict(zip(tiles.tile_uuids, self._packer.pack_tiles(tiles), strict=True))

    def _note_partial_reads(self, keys: Iterable[BlockKey]) -> None:
        """The second read of a part of a block has all of it loaded in the background."""
        if not (self._changes.subscribed and self._storage.max_bytes):
            return
        for key in keys:
            if key not in self._read_in_part:
                self._read_in_part[key] = None
            elif not self._waiting_blocks.full():
                del self._read_in_part[key]
                self._waiting_blocks.put_nowait(key)
        while len(self._read_in_part) > _MAX_READ_IN_PART:
            del self._read_in_part[next(iter(self._read_in_part))]

    async def _load_blocks(
        self, zoom: int, cells: Mapping[BlockKey, CellRectangle]
    ) -> AsyncIterator[tuple[Block, bool]]:
        """Each block, and whether it is a cached one because PostgreSQL did not answer. The next
        parts are read while one is sent."""
        missing = dict(cells)
        sizing = LoadSizing(cells)
        loads = deque(self._start_load(zoom, sizing) for _ in range(_PARTS_AHEAD))
        try:
            while loads:
                blocks = await loads.popleft()
                if blocks:
                    loads.append(self._start_load(zoom, sizing))
                sizing.record(
                    {block.key: missing.pop(block.key) for block in blocks},
                    sum(block.byte_count for block in blocks),
                )
                for block in blocks:
                    yield block, False
        except _NO_ANSWER:
            for key in missing:
                if not (cached := self._storage.find_block(key, allow_stale=True)):
                    raise
                yield cached, True
        finally:
            for load in loads:
                load.cancel()

    def _start_load(self, zoom: int, sizing: LoadSizing) -> "asyncio.Task[list[Block]]":
        load = asyncio.create_task(self._load_part(zoom, sizing.next_part))
        load.add_done_callback(_retrieve_error)
        return load

    async def _load_part(
        self, zoom: int, next_part: Callable[[int], Mapping[BlockKey, CellRectangle]]
    ) -> list[Block]:
        # With few loads at once, callers that want the same blocks wait for the first of them,
        # and a part is sized when the sizes of those before it are known.
        async with self._load_slots:
            part = next_part(self._tile_bytes)
            blocks = {key: block for key in part if (block := self._find_valid_block(key))}
            missing = {key: cells for key, cells in part.items() if key not in blocks}
            if missing:
                with self._loading() as load:
                    async with self._store.connection() as queries:
                        tiles = await queries.tiles.read_blocks(zoom, list(missing.values()))
                    ordered, elements = await pack_in_order(self._packer, tiles)
                    if elements:
                        self._tile_bytes = sum(map(len, elements)) // len(elements)
                    for block in split_blocks(missing, ordered, elements):
                        blocks[block.key] = block
                        is_whole = missing[block.key] == cells_of(block.key)
                        if is_whole and self._changes.subscribed and load.is_valid(block.key):
                            self._storage.put(block)
        return list(blocks.values())

    def _find_valid_block(self, key: BlockKey) -> Block | None:
        return self._storage.find_block(key) if self._changes.subscribed else None

    @contextmanager
    def _loading(self) -> "Iterator[_Load]":
        load = _Load()
        self._loads.add(load)
        try:
            yield load
        finally:
            self._loads.discard(load)

    def _count(self, *, hits: int, misses: int) -> None:
        self._hits += hits
        self._misses += misses


async def pack_in_order(packer: TilePacker, tiles: TileColumns) -> tuple[TileColumns, list[bytes]]:
    """The tiles `in_order`, and their elements. Other calls continue in between."""
    ordered = in_order(tiles)
    elements: list[bytes] = []
    for start in range(0, tiles.tile_count, PACK_BATCH_TILES):
        await asyncio.sleep(0)
        elements += packer.pack_tiles(ordered.part(start, start + PACK_BATCH_TILES))
    return ordered, elements


class _Load:
    """A read of PostgreSQL that is under way, and what changed since it began."""

    def __init__(self) -> None:
        self.changed: set[BlockKey] = set()
        self.all_changed = False

    def is_valid(self, key: BlockKey) -> bool:
        return not self.all_changed and key not in self.changed


def _fixed_part(
    cells: Mapping[BlockKey, CellRectangle], _: int
) -> Mapping[BlockKey, CellRectangle]:
    return cells


def _retrieve_error(load: "asyncio.Task[list[Block]]") -> None:
    """asyncio complains of an error that nobody retrieves, as after a client's cancellation."""
    if not load.cancelled():
        load.exception()
