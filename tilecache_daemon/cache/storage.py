"""The cached blocks under a ceiling of bytes, found by key and by the ids of their tiles.

When the ceiling is reached, the least recently used block is removed first.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

from tilecache.mercator import BlockKey
from tilecache_daemon.cache.blocks import Block

_INDEX_BITS: Final = 32
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1
_NOWHERE: Final = -1


class CacheStorage:
    """All changes of what is cached, and all accounting of its bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.reserved_bytes = 0
        """For others, under the same ceiling."""
        self.tile_count = 0
        self._blocks: OrderedDict[BlockKey, Block] = OrderedDict()
        """The least recently used first."""
        self._new_numbers = count()
        self._numbered: dict[int, Block] = {}
        # A number, not a pair: the garbage collector would visit a million pairs.
        self._locations: dict[str, int] = {}
        """By id, the number of the tile's block and its index there."""

    def find_block(self, key: BlockKey, *, allow_stale: bool = False) -> Block | None:
        """A block that is not stale, or also a stale one."""
        block = self._blocks.get(key)
        if block is None or (block.stale and not allow_stale):
            return None
        self._blocks.move_to_end(key)
        return block

    def find_tiles(
        self, tile_uuids: Iterable[str], *, allow_stale: bool = False
    ) -> list[bytes | None]:
        """The elements of tiles in the order of their ids, None for each that is not cached."""
        locations = [self._locations.get(tile_uuid, _NOWHERE) for tile_uuid in tile_uuids]
        usable: dict[int, list[bytes]] = {}
        for number in {location >> _INDEX_BITS for location in locations} & self._numbered.keys():
            block = self._numbered[number]
            if allow_stale or not block.stale:
                usable[number] = block.elements
                self._blocks.move_to_end(block.key)
        return [
            usable[location >> _INDEX_BITS][location & _INDEX_MASK]
            if location >> _INDEX_BITS in usable
            else None
            for location in locations
        ]

    def put(self, block: Block) -> None:
        """Caches a block in place of an older version of it."""
        self._remove(block.key)
        if block.byte_count > self.max_bytes:
            return
        block.number = next(self._new_numbers)
        self._blocks[block.key] = self._numbered[block.number] = block
        first = block.number << _INDEX_BITS
        self._locations.update(zip(block.tile_uuids, count(first), strict=False))
        self._account(block.byte_count, block.tile_count)

    def rewrite(self, tile_uuid: str, change: Callable[[bytes], bytes]) -> None:
        """Changes the element of a tile in what no filter tests, if the tile is cached."""
        location = self._locations.get(tile_uuid)
        if location is None:
            return
        block, index = self._numbered[location >> _INDEX_BITS], location & _INDEX_MASK
        element = change(block.elements[index])
        bytes_before = block.byte_count
        block.replace(index, element)
        self._account(block.byte_count - bytes_before)

    def reserve(self, byte_count: int) -> None:
        """Leaves so many bytes below the ceiling to others."""
        self.reserved_bytes = byte_count
        self._account(0)

    def invalidate(self, keys: Iterable[BlockKey]) -> None:
        """Makes blocks stale."""
        for key in keys:
            if block := self._blocks.get(key):
                block.stale = True

    def invalidate_all(self) -> None:
        """Makes all blocks stale."""
        for block in self._blocks.values():
            block.stale = True

    def _remove(self, key: BlockKey) -> None:
        block = self._blocks.pop(key, None)
        if block is None:
            return
        del self._numbered[block.number]
        for tile_uuid in block.tile_uuids:
            # Another block may have the tile by now, if a writer moved it.
            if self._locations.get(tile_uuid, _NOWHERE) >> _INDEX_BITS == block.number:
                del self._locations[tile_uuid]
        self._account(-block.byte_count, -block.tile_count)

    def _account(self, byte_count: int, tile_count: int = 0) -> None:
        self.used_bytes += byte_count
        self.tile_count += tile_count
        while self.used_bytes + self.reserved_bytes > self.max_bytes and self._blocks:
            self._remove(next(iter(self._blocks)))
