"""What is in memory: found by block and by id, least recently used out first."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Final

import numpy as np

from tilecache.mercator import BlockKey
from tilecache_daemon.cache.blocks import Block, LooseTiles
from tilecache_daemon.cache.id_index import NOWHERE, IdIndex, Spans
from tilecache_daemon.store.tile_ids import TileIds, numbers_of

Element = bytes | memoryview
"""A view is not copied until an answer is joined."""

_TIDY_AFTER_S: Final = 0.005
_TIDY_PATIENCE: Final = 40


class HeldTiles:
    """Blocks, and loose tiles of others, under a ceiling of bytes."""

    def __init__(self, max_bytes: int, is_loading: Callable[[], bool]) -> None:
        """Its own order is brought up to date when nobody waits for what is being loaded."""
        self.max_bytes = max_bytes
        self._is_loading = is_loading
        self.used_bytes = 0
        self.tile_count = 0
        self._held: OrderedDict[BlockKey, Block | LooseTiles] = OrderedDict()
        self._numbers = count(1)
        self._numbered: dict[int, Block | LooseTiles] = {}
        self._data: dict[int, memoryview] = {}
        """Of the blocks among them."""
        self._doubtful: set[int] = set()
        """The numbers of those that may hold something doubted."""
        self._by_id = IdIndex()
        self._forgotten: deque[Block | LooseTiles] = deque()
        self._not_indexed: deque[Block] = deque()
        self._tidier: asyncio.Task[None] | None = None

    def block(self, key: BlockKey, *, doubted: bool) -> Block | None:
        """A block; one that is doubted only if that is asked for, too."""
        block = self._held.get(key)
        if not isinstance(block, Block) or (block.doubted and not doubted):
            return None
        self._held.move_to_end(key)
        return block

    def tile(self, tile_uuid: str) -> bytes | None:
        """The element of one tile, unless it is doubted; as `find` gives it, for less."""
        number, start, end = self._by_id.find_one(tile_uuid) or (NOWHERE, 0, 0)
        holder = self._numbered.get(number)
        if holder is None or (number in self._doubtful and holder.doubts(start)):
            return None
        self._held.move_to_end(holder.key)
        return holder.element(start, end)

    def find(self, tile_ids: TileIds, *, doubted: bool) -> tuple[list[Element | None], list[int]]:
        """Elements in the order asked, None for a miss, and the places of misses. Those that
        are doubted are missed unless they are asked for, too."""
        holders, starts, ends = (column.tolist() for column in self._by_id.find(tile_ids.numbers))
        distinct = set(holders)
        used = self._numbered.keys() & distinct
        # Nobody waits for it: the answer is sent meanwhile.
        asyncio.get_running_loop().call_soon(self._note_uses, used)
        if not doubted and (doubtful := used & self._doubtful):
            holders = [
                NOWHERE if number in doubtful and self._numbered[number].doubts(start) else number
                for number, start in zip(holders, starts, strict=True)
            ]
            distinct.add(NOWHERE)
        data = self._data.get
        elements = [
            run[start:end] if (run := data(number)) is not None else self._loose(number, start)
            for number, start, end in zip(holders, starts, ends, strict=True)
        ]
        if len(distinct) == len(used):
            return elements, []
        return elements, [place for place, element in enumerate(elements) if element is None]

    async def rewrite(self, changes: Mapping[str, Callable[[bytes], bytes]]) -> None:
        """Gives tiles, by id, other elements, some at a time. Others are left out."""
        await self._index_blocks()
        of_holders: dict[int, dict[int, Callable[[bytes], bytes]]] = {}
        found = self._by_id.find(TileIds.of(list(changes)).numbers)
        for number, start, change in zip(
            found.holders.tolist(), found.starts.tolist(), changes.values(), strict=True
        ):
            of_holders.setdefault(number, {})[start] = change
        for number, of_holder in of_holders.items():
            if holder := self._numbered.get(number):
                size_before = holder.byte_count
                holder.rewrite(of_holder)
                self.used_bytes += holder.byte_count - size_before
                if isinstance(holder, Block):
                    self._data[number] = memoryview(holder.data)
                    self._index(holder)
            await asyncio.sleep(0)

    def doubt(self, keys: Iterable[BlockKey]) -> None:
        """These blocks may be out of date."""
        for key in keys:
            if key in self._held:
                self._doubt(self._held[key])

    def doubt_all(self) -> None:
        """Everything may be out of date."""
        for holder in self._held.values():
            self._doubt(holder)

    def keep(self, block: Block) -> None:
        """Holds a block; it takes the place of what was held of it."""
        self._forget(block.key)
        self._hold(block)
        self._grow(block.byte_count, block.tile_count)
        self._not_indexed.append(block)
        self._tidy_soon()

    def keep_loose(self, tiles: Iterable[tuple[BlockKey, bytes, bytes]]) -> None:
        """Holds tiles, each given by its block, id and element, unless all of a block is held.
        Also if the block is doubted: it is the better answer while PostgreSQL is away."""
        ids, numbers, places = [], [], []
        for key, tile_id, element in tiles:
            holder = self._held.get(key)
            if holder is None:
                holder = LooseTiles(key)
                self._hold(holder)
            if isinstance(holder, LooseTiles):
                bytes_before, tiles_before = holder.byte_count, holder.tile_count
                ids.append(tile_id)
                places.append(holder.add(tile_id, element))
                numbers.append(holder.number)
                self._grow(holder.byte_count - bytes_before, holder.tile_count - tiles_before)
        starts = np.array(places, dtype=np.uint64)
        self._by_id.put(
            numbers_of(np.frombuffer(b"".join(ids), dtype=np.uint8)),
            Spans(np.array(numbers, dtype=np.uint64), starts, starts),
        )
        self._tidy_soon()

    def _doubt(self, holder: Block | LooseTiles) -> None:
        holder.doubt()
        self._doubtful.add(holder.number)

    def _note_uses(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if holder := self._numbered.get(number):
                self._held.move_to_end(holder.key)

    def _loose(self, number: int, start: int) -> Element | None:
        holder = self._numbered.get(number)
        return holder.element(start, start) if holder else None

    def _index(self, block: Block) -> None:
        self._by_id.put(block.ids, Spans.following(block.number, block.ends))

    def _hold(self, holder: Block | LooseTiles) -> None:
        holder.number = next(self._numbers)
        self._numbered[holder.number] = holder
        self._held[holder.key] = holder
        if isinstance(holder, Block):
            self._data[holder.number] = memoryview(holder.data)

    def _grow(self, byte_count: int, tile_count: int) -> None:
        self.used_bytes += byte_count
        self.tile_count += tile_count
        while self.used_bytes > self.max_bytes and self._held:
            self._forget(next(iter(self._held)))

    def _forget(self, key: BlockKey) -> None:
        """Takes a block out of reach at once; its ids are swept out in turns."""
        holder = self._held.pop(key, None)
        if holder is None:
            return
        del self._numbered[holder.number]
        self._data.pop(holder.number, None)
        self._doubtful.discard(holder.number)
        self.used_bytes -= holder.byte_count
        self.tile_count -= holder.tile_count
        self._forgotten.append(holder)
        self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self._tidier is None or self._tidier.done():
            self._tidier = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        """Brings the index by id up to date, a block a turn."""
        for _ in range(_TIDY_PATIENCE):
            if self._is_loading():
                await asyncio.sleep(_TIDY_AFTER_S)
        while self._not_indexed or self._forgotten or self._by_id.growing:
            await self._index_blocks()
            if self._forgotten:
                holder = self._forgotten.popleft()
                self._by_id.discard(holder.ids, holder.number)
            await asyncio.sleep(0)

    async def _index_blocks(self) -> None:
        while self._not_indexed or self._by_id.growing:
            if self._by_id.growing:
                self._by_id.grow()
            else:
                block = self._not_indexed.popleft()
                if block.number in self._numbered:
                    self._index(block)
            await asyncio.sleep(0)
