"""What is in memory: found by block and by id, least recently used out first."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Final

from tilecache_daemon.blocks import Block, BlockKey, LooseTiles

_PLACE_BITS: Final = 24
_PLACE_MASK: Final = (1 << _PLACE_BITS) - 1


class HeldTiles:
    """Blocks, and loose tiles of others, under a ceiling of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.tile_count = 0
        self._held: OrderedDict[BlockKey, Block | LooseTiles] = OrderedDict()
        self._numbered: dict[int, Block | LooseTiles] = {}
        self._numbers = count()
        self._by_id: dict[int, int] = {}
        """Of the hash of an id: its holder's number, and its place in the last bits. A
        reference and a place of their own would take twice the memory."""
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
        location = self._by_id.get(hash(tile_uuid))
        holder = None if location is None else self._numbered.get(location >> _PLACE_BITS)
        if location is None or holder is None:
            return None
        place = location & _PLACE_MASK
        if holder.doubted and holder.doubts(place):
            return None
        self._held.move_to_end(holder.key)
        element = holder.element(place)
        return element if tile_uuid.encode() in element else None

    def find(self, tile_uuids: Sequence[str], *, doubted: bool) -> list[bytes | None]:
        """Elements in the order asked, None for a miss; those that are doubted only if that
        is asked for, too."""
        numbered, used = self._numbered, set()
        elements: list[bytes | None] = []
        # Step by step for all, not id by id: most of the time is waited for memory.
        locations = list(map(self._by_id.get, map(hash, tile_uuids)))
        for location in locations:
            holder = None if location is None else numbered.get(location >> _PLACE_BITS)
            if location is None or holder is None:
                elements.append(None)
                continue
            place = location & _PLACE_MASK
            if holder.doubted and not doubted and holder.doubts(place):
                elements.append(None)
                continue
            elements.append(holder.element(place))
            used.add(holder)
        for holder in used:
            self._held.move_to_end(holder.key)
        # Two ids may have one hash; a tile's own id comes early in its element.
        return [
            element if element and tile_uuid in element else None
            for element, tile_uuid in zip(elements, map(str.encode, tile_uuids), strict=True)
        ]

    async def rewrite(self, changes: Mapping[str, Callable[[bytes], bytes]]) -> None:
        """Gives tiles, by id, other elements, some at a time. Others are left out."""
        await self._index_blocks()
        of_holders: dict[int, dict[int, Callable[[bytes], bytes]]] = {}
        for tile_uuid, change in changes.items():
            location = self._by_id.get(hash(tile_uuid))
            if location is not None:
                of_holder = of_holders.setdefault(location >> _PLACE_BITS, {})
                of_holder[location & _PLACE_MASK] = change
        for number, of_holder in of_holders.items():
            if holder := self._numbered.get(number):
                size_before = holder.byte_count
                holder.rewrite(of_holder)
                self.used_bytes += holder.byte_count - size_before
            await asyncio.sleep(0)

    def doubt(self, keys: Iterable[BlockKey]) -> None:
        """These blocks may be out of date."""
        for key in keys:
            if key in self._held:
                self._held[key].doubt()

    def doubt_all(self) -> None:
        """Everything may be out of date."""
        for holder in self._held.values():
            holder.doubt()

    def keep(self, block: Block) -> None:
        """Holds a block; it takes the place of what was held of it."""
        self._forget(block.key)
        self._hold(block)
        self._grow(block.byte_count, block.tile_count)
        self._not_indexed.append(block)
        self._tidy_soon()

    def keep_loose(self, key: BlockKey, id_hash: int, element: bytes) -> None:
        """Holds a tile of a block, unless all of that is held. Also if the block is doubted:
        it is the better answer while PostgreSQL is away."""
        holder = self._held.get(key)
        if holder is None:
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
        self.used_bytes -= holder.byte_count
        self.tile_count -= holder.tile_count
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
