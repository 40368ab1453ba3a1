"""Tiles in memory as the bytes of their wire form, never staler than the table.

What is held is believed only while changes are heard (`changes.py`); while they
are not, reads go to PostgreSQL. If that does not answer either, what is held is
given all the same, and said to be `degraded`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import BlockKey, CellRectangle, block_of, blocks_in, bounds_of, cells_of
from tilecache_daemon.cache.blocks import Block, Slice, cut_blocks, in_order
from tilecache_daemon.cache.load_sizing import LOADS_AT_ONCE, Pace
from tilecache_daemon.cache.storage import Element, HeldTiles
from tilecache_daemon.errors import DatabaseUnavailableError, TileCacheError
from tilecache_daemon.models import TileFilter
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.store.change_feed import ChangeListener
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tile_columns import Bytes, TileColumns
from tilecache_daemon.store.tile_ids import TileIds

TILES_A_TURN: Final = 2_048
"""Tiles that are packed before others get their turn: some two milliseconds."""
_COMPLETE_AFTER_S: Final = 0.05
_COMPLETE_PATIENCE: Final = 4
_MOST_ASKED_IN_PART: Final = 4_096


class Packer(Protocol):
    """How a tile becomes bytes. The cache does not look into them."""

    def pack_tiles(self, tiles: TileColumns) -> tuple[Bytes, NDArray[Any]]:
        """Each tile as an element of field 1, one after the other, and where each ends."""

    def with_access(self, element: bytes, accessed_at: datetime) -> bytes:
        """The same tile, used at another time."""


class Found(NamedTuple):
    """Elements in the order asked, None for a miss; degraded if PostgreSQL is away."""

    elements: list[Element | None]
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
    """Answers from what is held, and loads what is not."""

    def __init__(
        self,
        store: Store,
        changes: ChangeListener,
        packer: Packer,
        read_priority: ReadPriority,
        max_bytes: int,
    ) -> None:
        self._read_priority = read_priority
        self._store = store
        self._changes = changes
        self._packer = packer
        self._loads: set[_Load] = set()
        self._held = HeldTiles(max_bytes, lambda: bool(self._loads))
        self._hits = self._misses = 0
        self._tile_bytes = 0
        self._asked_in_part: dict[BlockKey, bool] = {}
        self._incomplete: dict[BlockKey, bool] = {}
        self._completer: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(LOADS_AT_ONCE)
        changes.subscribe(self)

    @property
    def status(self) -> CacheStatus:
        return CacheStatus(
            self._held.tile_count,
            self._held.used_bytes,
            self._held.max_bytes,
            self._hits,
            self._misses,
        )

    def find_held(self, tile_uuid: str) -> tuple[bytes, bool] | None:
        """One tile's element and whether it is degraded; None if `find` has to look."""
        element = self._held.tile(tile_uuid) if self._changes.hearing else None
        if element is None:
            return None
        self._hits += 1
        return element, not self._store.available

    async def find(self, tile_ids: TileIds) -> Found:
        """Tiles by id. Raises DatabaseUnavailableError if one that is not held is asked
        for while PostgreSQL is away."""
        held: list[Element | None] = [None] * len(tile_ids)
        wanted: Sequence[int] = range(len(tile_ids))
        if self._changes.hearing:
            held, wanted = self._held.find(tile_ids, doubted=False)
        self._count(hits=len(held) - len(wanted), misses=len(wanted))
        if not wanted:
            return Found(held, degraded=not self._store.available)
        try:
            loaded = await self._load_tiles([tile_ids[place] for place in wanted])
        except DatabaseUnavailableError:
            recalled, missing = self._held.find(tile_ids, doubted=True)
            if missing:
                raise
            return Found(recalled, degraded=True)
        for place in wanted:
            held[place] = loaded.get(UUID(tile_ids[place]).bytes)
        return Found(held, degraded=False)

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
        await self._held.rewrite(
            {
                tile_uuid: partial(self._packer.with_access, accessed_at=accessed_at)
                for tile_uuid, accessed_at in written.items()
            }
        )

    def blocks_changed(self, blocks: Iterable[BlockKey], *, own: bool) -> None:
        """As `changes.Subscriber` has it. Own accesses follow by `note_accesses`."""
        keys = list(blocks)
        for load in self._loads:
            load.outdated.update(keys)
        if not own:
            self._held.doubt(keys)

    def all_changed(self) -> None:
        """As `changes.Subscriber` has it."""
        for load in self._loads:
            load.all_outdated = True
        self._held.doubt_all()

    def hearing_changed(self, *, hearing: bool) -> None:
        """What was held while nothing was heard may be stale by now."""
        if hearing:
            self.all_changed()

    async def _load_tiles(self, tile_uuids: Sequence[str]) -> dict[bytes, bytes]:
        load = self._begin_load()
        try:
            async with self._store.connection() as queries:
                tiles = await queries.tiles.read_tiles(tile_uuids)
            packed, ends = self._packer.pack_tiles(tiles)
            data = packed.tobytes()
            elements = [data[start:end] for start, end in pairwise([0, *ends.tolist()])]
            cells = (tiles.rows[name].tolist() for name in ("zoom", "x", "y"))
            keys = list(map(block_of, *cells))
            ids = [tile_id.tobytes() for tile_id in tiles.rows["tile_uuid"]]
            self._held.keep_loose(
                entry
                for entry in zip(keys, ids, elements, strict=True)
                if self._may_keep(load, entry[0])
            )
            for key in set(keys):
                if self._held.block(key, doubted=True):
                    self._note_asked_in_part(key)
        finally:
            self._loads.discard(load)
        return dict(zip(ids, elements, strict=True))

    def _cells_to_read(self, key: BlockKey, asked: Sequence[CellRectangle]) -> CellRectangle:
        """Those asked for: no answer waits for the rest of a block. But if that is waiting to
        be read, who asks once more reads it now: so often, it is read sooner or later."""
        part, whole = bounds_of(asked), cells_of(key)
        if part != whole:
            if self._incomplete.pop(key, False):
                return whole
            self._note_asked_in_part(key)
        return part

    def _note_asked_in_part(self, key: BlockKey) -> None:
        """Who asks again for a part of a block has it loaded in whole, afterwards."""
        if not (self._changes.hearing and self._held.max_bytes):
            return
        if self._asked_in_part.pop(key, False):
            self._incomplete[key] = True
            if self._completer is None or self._completer.done():
                self._completer = asyncio.create_task(
                    self._complete_blocks(), name="cache-completer"
                )
        else:
            self._asked_in_part[key] = True
        for keys in (self._asked_in_part, self._incomplete):
            if len(keys) > _MOST_ASKED_IN_PART:
                del keys[next(iter(keys))]

    async def _complete_blocks(self) -> None:
        while self._incomplete:
            # Whoever reads goes first, but not for ever.
            for _ in range(_COMPLETE_PATIENCE):
                if self._loads or self._read_priority.idle_s < _COMPLETE_AFTER_S:
                    await asyncio.sleep(_COMPLETE_AFTER_S)
            # Whoever asked a third time may have read the last of them meanwhile.
            if key := next(iter(self._incomplete), None):
                del self._incomplete[key]
                with suppress(TileCacheError):
                    await self._load_part(key.zoom, partial(_whole, key))

    async def _load_blocks(
        self, zoom: int, wanted: Mapping[BlockKey, CellRectangle]
    ) -> AsyncIterator[tuple[Block, bool]]:
        """Each block, and whether it is given because PostgreSQL is away.

        The next are fetched while those before are packed, but a client that does not read
        keeps little waiting for it.
        """
        left, pace = deque(wanted.items()), Pace()
        parts: deque[_Part] = deque()

        def fetch(most: int) -> None:
            while left and len(parts) < most:
                cells: dict[BlockKey, CellRectangle] = {}
                take = partial(pace.take, left, cells)
                blocks = asyncio.create_task(self._load_part(zoom, take))
                blocks.add_done_callback(_look_at_error)
                parts.append(_Part(cells, blocks))

        try:
            fetch(2)
            while parts:
                blocks = await parts[0].blocks
                part = parts.popleft()
                pace.note(part.cells, sum(len(block.data) for block in blocks))
                fetch(pace.parts_ahead)
                for block in blocks:
                    yield block, False
                fetch(1)
        except DatabaseUnavailableError:
            keys = [*chain.from_iterable(part.cells for part in parts), *dict(left)]
            left.clear()
            for key in keys:
                if not (held := self._held.block(key, doubted=True)):
                    raise
                yield held, True
        finally:
            for part in parts:
                part.blocks.cancel()

    async def _load_part(
        self, zoom: int, take: Callable[[int], Mapping[BlockKey, CellRectangle]]
    ) -> list[Block]:
        # Few at once: many who ask for the same wait for what the first of them loads, and
        # how much is loaded is decided when it is known how large that was.
        async with self._places:
            wanted = take(self._tile_bytes)
            blocks = {key: block for key in wanted if (block := self._believed_block(key))}
            missing = {key: cells for key, cells in wanted.items() if key not in blocks}
            if missing:
                load = self._begin_load()
                try:
                    async with self._store.connection() as queries:
                        tiles = await queries.tiles.read_blocks(zoom, list(missing.values()))
                    for block in await self._pack(missing, tiles):
                        blocks[block.key] = block
                        if missing[block.key] == cells_of(block.key) and self._may_keep(
                            load, block.key
                        ):
                            self._held.keep(block)
                finally:
                    self._loads.discard(load)
        return list(blocks.values())

    async def _pack(self, keys: Iterable[BlockKey], tiles: TileColumns) -> list[Block]:
        ordered = in_order(tiles)
        pieces, ends, size = [np.zeros(0, dtype=np.uint8)], [np.zeros(0, dtype=np.int64)], 0
        for start in range(0, tiles.tile_count, TILES_A_TURN):
            await asyncio.sleep(0)
            piece, piece_ends = self._packer.pack_tiles(ordered.part(start, start + TILES_A_TURN))
            pieces.append(piece)
            ends.append(piece_ends + size)
            size += len(piece)
        if tiles.tile_count:
            self._tile_bytes = size // tiles.tile_count
        await asyncio.sleep(0)
        # The usual single piece is not copied.
        data = pieces[-1] if len(pieces) <= 2 else np.concatenate(pieces)
        return list(cut_blocks(keys, ordered, data, np.concatenate(ends)))

    def _believed_block(self, key: BlockKey) -> Block | None:
        return self._held.block(key, doubted=False) if self._changes.hearing else None

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
            and self._held.max_bytes > 0
        )

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


def _whole(key: BlockKey, _: int) -> dict[BlockKey, CellRectangle]:
    return {key: cells_of(key)}
