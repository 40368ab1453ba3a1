"""Tiles in memory as the bytes of their wire form, never staler than the table.

What is held is believed only while changes are heard (`changes.py`); while they
are not, reads go to PostgreSQL. If that does not answer either, what is held is
given all the same, and said to be `degraded`.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain, count
from typing import Final, NamedTuple, Protocol

from tilecache_daemon.blocks import (
    Block,
    BlockKey,
    LooseTiles,
    Slice,
    block_of,
    blocks_in,
    bounds_of,
    cells_of,
)
from tilecache_daemon.changes import ChangeListener
from tilecache_daemon.errors import DatabaseUnavailableError, TileCacheError
from tilecache_daemon.mercator import CellRectangle
from tilecache_daemon.models import TileColumns, TileFilter
from tilecache_daemon.store import Store

TILES_A_TURN: Final = 512
"""Tiles that are packed before others get their turn: less than a millisecond."""
_PLACE_BITS: Final = 24
_PLACE_MASK: Final = (1 << _PLACE_BITS) - 1
_FEW_TILES: Final = 1_000
_MANY_TILES: Final = 6_000
_LOADS_AT_ONCE: Final = 2
_FIRST_BLOCKS: Final = 4
_COMPLETE_AFTER_S: Final = 0.02
_MOST_BLOCKS: Final = 64
_MOST_ASKED_IN_PART: Final = 4_096


class Packer(Protocol):
    """How a tile becomes bytes. The cache does not look into them."""

    def pack_tiles(self, tiles: TileColumns) -> list[bytes]:
        """Each tile as an element of field 1."""

    def with_access(self, element: bytes, accessed_at: datetime) -> bytes:
        """The same tile, used at another time."""


class Found(NamedTuple):
    """Elements in the order asked, None for a miss; degraded if PostgreSQL is away."""

    elements: list[bytes | None]
    degraded: bool


class RegionPart(NamedTuple):
    """Some of a region's tiles."""

    slices: list[Slice]
    degraded: bool


class CacheStatus(NamedTuple):
    """What is held, and how reads went since the start."""

    tiles: int
    used_bytes: int
    max_bytes: int
    hits: int
    misses: int


class TileCache:
    """Blocks and loose tiles, least recently used out first."""

    def __init__(
        self, store: Store, changes: ChangeListener, packer: Packer, max_bytes: int
    ) -> None:
        self._store = store
        self._changes = changes
        self._packer = packer
        self._max_bytes = max_bytes
        self._held: OrderedDict[BlockKey, Block | LooseTiles] = OrderedDict()
        self._numbered: dict[int, Block | LooseTiles] = {}
        self._numbers = count()
        self._by_id: dict[int, int] = {}
        """Of the hash of an id: its holder's number, and its place in the last bits. A
        reference and a place of their own would take twice the memory."""
        self._used_bytes = 0
        self._tile_count = 0
        self._hits = self._misses = 0
        self._asked_in_part: dict[BlockKey, bool] = {}
        self._incomplete: dict[BlockKey, bool] = {}
        self._completer: asyncio.Task[None] | None = None
        self._loads: set[_Load] = set()
        self._places = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._forgotten: deque[Block | LooseTiles] = deque()
        self._not_indexed: deque[Block] = deque()
        self._tidier: asyncio.Task[None] | None = None
        changes.subscribe(self)

    @property
    def status(self) -> CacheStatus:
        return CacheStatus(
            self._tile_count, self._used_bytes, self._max_bytes, self._hits, self._misses
        )

    async def find(self, tile_uuids: Sequence[str]) -> Found:
        """Tiles by id. Raises DatabaseUnavailableError if one that is not held is asked
        for while PostgreSQL is away."""
        held = self._find_held(tile_uuids, only_believed=True)
        wanted = [
            tile_uuid
            for tile_uuid, element in zip(tile_uuids, held, strict=True)
            if element is None
        ]
        self._count(hits=len(held) - len(wanted), misses=len(wanted))
        if not wanted:
            return Found(held, degraded=not self._store.available)
        try:
            loaded = await self._load_tiles(wanted)
        except DatabaseUnavailableError:
            recalled = self._find_held(tile_uuids, only_believed=False)
            if None in recalled:
                raise
            return Found(recalled, degraded=True)
        return Found(
            [
                element or loaded.get(tile_uuid)
                for tile_uuid, element in zip(tile_uuids, held, strict=True)
            ],
            degraded=False,
        )

    async def read_region(
        self, zoom: int, cells: Iterable[CellRectangle], wanted: TileFilter
    ) -> AsyncIterator[RegionPart]:
        """The tiles of some cells that pass the filter, some at a time, in no promised
        order. Raises as `find` does."""
        parts = blocks_in(zoom, cells)
        missing: list[BlockKey] = []
        for key, part in parts.items():
            if block := self._believed_block(key):
                # Block by block: a client that does not read keeps little waiting for it.
                degraded = not self._store.available
                yield RegionPart(list(block.select(part, wanted)), degraded)
            else:
                missing.append(key)
        self._count(hits=len(parts) - len(missing), misses=len(missing))
        wanted_cells = {key: self._cells_to_read(key, parts[key]) for key in missing}
        async for block, degraded in self._load_blocks(zoom, wanted_cells):
            yield RegionPart(list(block.select(parts[block.key], wanted)), degraded)

    async def note_accesses(self, written: Mapping[str, datetime]) -> None:
        """Gives held tiles the access times that this daemon has just written."""
        await self._index_blocks()
        changes: dict[int, dict[int, Callable[[bytes], bytes]]] = {}
        for tile_uuid, accessed_at in written.items():
            location = self._by_id.get(hash(tile_uuid))
            if location is not None:
                change = partial(self._packer.with_access, accessed_at=accessed_at)
                of_holder = changes.setdefault(location >> _PLACE_BITS, {})
                of_holder[location & _PLACE_MASK] = change
        for number, of_holder in changes.items():
            if holder := self._numbered.get(number):
                size_before = holder.byte_count
                holder.rewrite(of_holder)
                self._used_bytes += holder.byte_count - size_before
            await asyncio.sleep(0)

    def blocks_changed(self, blocks: Iterable[BlockKey], *, own: bool) -> None:
        """As `changes.Subscriber` has it. Own accesses follow by `note_accesses`."""
        for key in blocks:
            for load in self._loads:
                load.outdated.add(key)
            if not own and key in self._held:
                self._held[key].doubted = True

    def all_changed(self) -> None:
        """As `changes.Subscriber` has it."""
        for load in self._loads:
            load.all_outdated = True
        for holder in self._held.values():
            holder.doubted = True

    def hearing_changed(self, *, hearing: bool) -> None:
        """What was held while nothing was heard may be stale by now."""
        if hearing:
            self.all_changed()

    def _find_held(self, tile_uuids: Sequence[str], *, only_believed: bool) -> list[bytes | None]:
        if only_believed and not self._changes.hearing:
            return [None] * len(tile_uuids)
        numbered, used = self._numbered, set()
        elements: list[bytes | None] = []
        # Step by step for all, not id by id: most of the time is waited for memory.
        locations = list(map(self._by_id.get, map(hash, tile_uuids)))
        for location in locations:
            holder = None if location is None else numbered.get(location >> _PLACE_BITS)
            if location is None or holder is None or (only_believed and holder.doubted):
                elements.append(None)
                continue
            elements.append(holder.element(location & _PLACE_MASK))
            used.add(holder)
        for holder in used:
            self._held.move_to_end(holder.key)
        # Two ids may have one hash; a tile's own id comes early in its element.
        return [
            element if element and tile_uuid in element else None
            for element, tile_uuid in zip(elements, map(str.encode, tile_uuids), strict=True)
        ]

    async def _load_tiles(self, tile_uuids: Sequence[str]) -> dict[str, bytes]:
        load = self._begin_load()
        try:
            async with self._store.connection() as queries:
                tiles = await queries.tiles.find_tiles(tile_uuids)
            elements = self._packer.pack_tiles(TileColumns.of(tiles.values()))
            for tile, element in zip(tiles.values(), elements, strict=True):
                key = block_of(tile.zoom, tile.x, tile.y)
                if self._may_keep(load, key):
                    self._keep_loose(key, hash(tile.tile_uuid), element)
        finally:
            self._loads.discard(load)
        return dict(zip(tiles, elements, strict=True))

    def _cells_to_read(self, key: BlockKey, asked: Sequence[CellRectangle]) -> CellRectangle:
        """Those asked for: no answer waits for the rest of a block. Who asks again has it
        loaded in whole, afterwards."""
        part = bounds_of(asked)
        if part == cells_of(key):
            return part
        if self._asked_in_part.pop(key, False):
            self._incomplete[key] = True
            if self._completer is None or self._completer.done():
                self._completer = asyncio.create_task(self._complete_blocks())
        else:
            self._asked_in_part[key] = True
        for keys in (self._asked_in_part, self._incomplete):
            if len(keys) > _MOST_ASKED_IN_PART:
                del keys[next(iter(keys))]
        return part

    async def _complete_blocks(self) -> None:
        while self._incomplete:
            # Whoever waits for an answer goes first.
            await asyncio.sleep(_COMPLETE_AFTER_S)
            if self._loads:
                continue
            key = next(iter(self._incomplete))
            del self._incomplete[key]
            with suppress(TileCacheError):
                await self._load_part(key.zoom, {key: cells_of(key)})

    async def _load_blocks(
        self, zoom: int, wanted: Mapping[BlockKey, CellRectangle]
    ) -> AsyncIterator[tuple[Block, bool]]:
        """Each block, and whether it is given because PostgreSQL is away.

        The next are fetched while those before are packed.
        """
        left, size = deque(wanted.items()), _FIRST_BLOCKS
        parts: deque[_Part] = deque()

        def load_next() -> None:
            if cells := dict(left.popleft() for _ in range(min(size, len(left)))):
                blocks = asyncio.create_task(self._load_part(zoom, cells))
                blocks.add_done_callback(_look_at_error)
                parts.append(_Part(cells, blocks))

        try:
            load_next()
            load_next()
            while parts:
                blocks = await parts[0].blocks
                del parts[0]
                size = _next_size(size, sum(block.tile_count for block in blocks))
                load_next()
                for block in blocks:
                    yield block, False
        except DatabaseUnavailableError:
            for key in (*chain.from_iterable(part.cells for part in parts), *dict(left)):
                held = self._held.get(key)
                if not isinstance(held, Block):
                    raise
                yield held, True
        finally:
            for part in parts:
                part.blocks.cancel()

    async def _load_part(self, zoom: int, wanted: Mapping[BlockKey, CellRectangle]) -> list[Block]:
        # Few at once: many who ask for the same wait for what the first of them loads.
        async with self._places:
            blocks = {key: block for key in wanted if (block := self._believed_block(key))}
            missing = {key: cells for key, cells in wanted.items() if key not in blocks}
            if missing:
                load = self._begin_load()
                try:
                    async with self._store.connection() as queries:
                        fetched = await queries.tiles.read_blocks(zoom, list(missing.values()))
                    for key, cells in missing.items():
                        blocks[key] = block = await self._pack(key, fetched.pop((key.x, key.y)))
                        if cells == cells_of(key) and self._may_keep(load, key):
                            self._keep(block)
                finally:
                    self._loads.discard(load)
        return list(blocks.values())

    async def _pack(self, key: BlockKey, tiles: TileColumns) -> Block:
        elements: list[bytes] = []
        for start in range(0, tiles.tile_count, TILES_A_TURN):
            elements += self._packer.pack_tiles(tiles.part(start, start + TILES_A_TURN))
            await asyncio.sleep(0)
        block = Block(key, tiles, elements)
        await asyncio.sleep(0)
        return block

    def _believed_block(self, key: BlockKey) -> Block | None:
        block = self._held.get(key)
        if isinstance(block, Block) and self._changes.hearing and not block.doubted:
            self._held.move_to_end(key)
            return block
        return None

    def _begin_load(self) -> "_Load":
        load = _Load()
        self._loads.add(load)
        return load

    def _may_keep(self, load: "_Load", key: BlockKey) -> bool:
        """Whether what was read is known to be what is stored: nothing went unheard since."""
        return (
            self._changes.hearing
            and not load.all_outdated
            and key not in load.outdated
            and self._max_bytes > 0
        )

    def _keep(self, block: Block) -> None:
        self._forget(block.key)
        self._hold(block)
        self._grow(block.byte_count, block.tile_count)
        self._not_indexed.append(block)
        self._tidy_soon()

    def _keep_loose(self, key: BlockKey, id_hash: int, element: bytes) -> None:
        holder = self._held.get(key)
        if holder is None or holder.doubted:
            self._forget(key)
            holder = LooseTiles(key)
            self._hold(holder)
        if isinstance(holder, LooseTiles):
            bytes_before, tiles_before = holder.byte_count, holder.tile_count
            place = holder.add(id_hash, element)
            self._by_id[id_hash] = holder.number << _PLACE_BITS | place
            self._grow(holder.byte_count - bytes_before, holder.tile_count - tiles_before)

    def _hold(self, holder: Block | LooseTiles) -> None:
        holder.number = next(self._numbers)
        self._numbered[holder.number] = holder
        self._held[holder.key] = holder

    def _grow(self, byte_count: int, tile_count: int) -> None:
        self._used_bytes += byte_count
        self._tile_count += tile_count
        while self._used_bytes > self._max_bytes and self._held:
            self._forget(next(iter(self._held)))

    def _forget(self, key: BlockKey) -> None:
        """Takes a block out of reach at once; its ids are swept out in turns."""
        holder = self._held.pop(key, None)
        if holder is None:
            return
        del self._numbered[holder.number]
        self._used_bytes -= holder.byte_count
        self._tile_count -= holder.tile_count
        self._forgotten.append(holder)
        self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self._tidier is None or self._tidier.done():
            self._tidier = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        """Brings the index by id up to date, a block a turn."""
        while self._not_indexed or self._forgotten:
            await self._index_blocks()
            if self._forgotten:
                holder = self._forgotten.popleft()
                for id_hash in holder.id_hashes:
                    if self._by_id.get(id_hash, -1) >> _PLACE_BITS == holder.number:
                        del self._by_id[id_hash]
            await asyncio.sleep(0)

    async def _index_blocks(self) -> None:
        while self._not_indexed:
            block = self._not_indexed.popleft()
            if block.number in self._numbered:
                first = block.number << _PLACE_BITS
                self._by_id.update(zip(block.id_hashes, count(first), strict=False))
            await asyncio.sleep(0)

    def _count(self, *, hits: int, misses: int) -> None:
        self._hits += hits
        self._misses += misses


class _Load:
    """A read that is under way, and what changed meanwhile."""

    def __init__(self) -> None:
        self.outdated: set[BlockKey] = set()
        self.all_outdated = False


class _Part(NamedTuple):
    """Blocks that are on their way, and which of their cells are wanted."""

    cells: dict[BlockKey, CellRectangle]
    blocks: asyncio.Task[list[Block]]


def _look_at_error(part: "asyncio.Task[list[Block]]") -> None:
    """Nobody may wait for it any more: then asyncio would complain."""
    if not part.cancelled():
        part.exception()


def _next_size(size: int, tile_count: int) -> int:
    """How many blocks to fetch next: enough tiles for a query's trouble, not too many
    for memory."""
    if tile_count < _FEW_TILES:
        return min(size * 2, _MOST_BLOCKS)
    return max(size // 2, 1) if tile_count > _MANY_TILES else size
