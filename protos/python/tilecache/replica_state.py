"""What a replica holds, and what the messages of `WatchTiles` do to it.

This module knows neither gRPC nor protobuf: a message is any object with the fields of the
contract's, and a tile is whatever `TileTraits` reads. Blocks are immutable and replaced as a
whole, so readers need no lock; calls that change the state do.
"""

from __future__ import annotations

from itertools import chain
from math import inf
from typing import (
    Any,
    Final,
    Generic,
    Iterator,
    NamedTuple,
    Protocol,
    Sequence,
    TypeVar,
)

from tilecache.mercator import BLOCK_BITS, BLOCK_CELLS, BlockKey, block_of

_MASK: Final = BLOCK_CELLS - 1
_PLACES: Final = BLOCK_CELLS * BLOCK_CELLS
_REPACK_SHARE: Final = 4
"""A block is packed anew when one of so many of its tiles came by a change."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class TileTraits(Protocol[T]):
    """How tiles are read."""

    def id_of(self, tile: T) -> str:
        """Its `tile_uuid`."""

    def cell_of(self, tile: T) -> tuple[int, int]:
        """The column and the row of its cell."""

    def order_of(self, tile: T) -> Any:
        """What sorts the tiles of a cell: the best one first."""

    def is_usable(self, tile: T) -> bool:
        """Whether a query returns it by default."""

    def repack(self, tiles: Sequence[T]) -> Sequence[T]:
        """The same tiles in the same order, in memory of their own."""


class Update(Protocol[T_co]):
    """The fields of a `BlockUpdate`."""

    @property
    def tiles(self) -> Sequence[T_co]: ...
    @property
    def zoom(self) -> int: ...
    @property
    def block_x(self) -> int: ...
    @property
    def block_y(self) -> int: ...
    @property
    def version(self) -> bytes: ...
    @property
    def base_version(self) -> bytes: ...
    @property
    def removed_tile_uuids(self) -> Sequence[str]: ...
    @property
    def is_partial(self) -> bool: ...


class Request(NamedTuple):
    """What is to be sent: the number, all areas' blocks, and the blocks that are held or wanted
    anew, with their versions."""

    number: int
    held: dict[BlockKey, bytes]


class Block(Generic[T]):
    """The tiles of a block in one version. Never changed."""

    __slots__ = ("all_tiles", "changed_count", "usable_tiles", "version")

    def __init__(
        self,
        version: bytes,
        all_tiles: list[tuple[T, ...]],
        usable_tiles: list[tuple[T, ...]],
        changed_count: int,
    ) -> None:
        self.version = version
        self.all_tiles = all_tiles
        """For each cell, row by row, its tiles, the best one first."""
        self.usable_tiles = usable_tiles
        """The same with those only that a query returns by default."""
        self.changed_count = changed_count
        """Tiles that came or went by changes since the block arrived or was packed anew."""

    @property
    def tiles(self) -> Iterator[T]:
        """All tiles."""
        return chain.from_iterable(self.all_tiles)


class ReplicaState(Generic[T]):
    """The blocks that are followed and held, and how old they are."""

    def __init__(self, traits: TileTraits[T]) -> None:
        self.blocks: dict[BlockKey, Block[T]] = {}
        """Those that are held. To be read without a lock."""
        self.tiles: dict[str, T] = {}
        """Their tiles by id. To be read without a lock."""
        self.followed: frozenset[BlockKey] = frozenset()
        self.synced = False
        """Whether every followed block has arrived."""
        self.degraded = True
        self.confirmed_at = -inf
        """The blocks hold every change that was committed before this time, by the clock of
        the `received_at`s."""
        self._traits = traits
        self._number = 0
        self._followed_since: dict[BlockKey, int] = {}
        self._parts: dict[BlockKey, list[Update[T]]] = {}
        self._earliest_origin = inf

    def follow(self, keys: frozenset[BlockKey]) -> Request:
        """Follows these blocks, and forgets others."""
        self._number += 1
        for key in self.followed - keys:
            del self._followed_since[key]
            self._parts.pop(key, None)
            if key in self.blocks:
                self._replace(key, None)
        for key in keys - self.followed:
            self._followed_since[key] = self._number
        self.followed = keys
        self.synced = False
        return Request(self._number, {})

    def reconnect(self, opened_at: float) -> Request:
        """A new stream begins: what is held is named. `opened_at` is a time before the stream is
        opened, in seconds by a monotonic clock."""
        self._number += 1
        self._parts.clear()
        # The daemon cannot have begun the stream before, however late its heartbeats arrive.
        self._earliest_origin = opened_at
        self.synced = False
        return Request(self._number, {key: block.version for key, block in self.blocks.items()})

    def disconnect(self) -> None:
        """The stream has ended: what is held may be out of date."""
        self.degraded = True
        self.synced = False

    def apply(self, number: int, update: Update[T]) -> tuple[BlockKey | None, Request | None]:
        """One of the blocks of a message with this number. Returns the block if it has changed,
        and what is to be sent if the change does not fit to what is held."""
        key = BlockKey(update.zoom, update.block_x, update.block_y)
        if number < self._followed_since.get(key, self._number + 1):
            # Sent before the daemon knew that the block is followed (again).
            return None, None
        if update.is_partial:
            self._parts.setdefault(key, []).append(update)
            return None, None
        parts = [*self._parts.pop(key, ()), update]
        put = list(chain.from_iterable(part.tiles for part in parts))
        if not update.base_version:
            self._replace(key, self._new_block(update.version, put))
            return key, None
        base = self.blocks.get(key)
        if base is None or base.version != update.base_version:
            self._replace(key, None)
            self._number += 1
            self._followed_since[key] = self._number
            self.synced = False
            return key, Request(self._number, {key: b""})
        removed = set(chain.from_iterable(part.removed_tile_uuids for part in parts))
        self._change(key, base, update.version, put, removed)
        return key, None

    def note_synced(self, number: int) -> None:
        """The mark of a message with this number that all is sent."""
        if number == self._number:
            self.synced = True

    def note_heartbeat(
        self, age_ms: int | None, degraded: bool, elapsed_ms: int, received_at: float
    ) -> None:
        """A heartbeat, and when it was received, in seconds by a monotonic clock."""
        self.degraded = degraded
        # A heartbeat that was delayed on its way tells of an earlier time than it seems to.
        self._earliest_origin = min(self._earliest_origin, received_at - elapsed_ms / 1000)
        if age_ms is not None:
            self.confirmed_at = self._earliest_origin + (elapsed_ms - age_ms) / 1000

    def _change(
        self, key: BlockKey, base: Block[T], version: bytes, put: list[T], removed: set[str]
    ) -> None:
        id_of = self._traits.id_of
        gone = removed.union(map(id_of, put))
        block = self._changed_block(key, base, version, put, gone)
        self.blocks[key] = block
        for tile_uuid in removed:
            tile = self.tiles.get(tile_uuid)
            if tile is not None and block_of(key.zoom, *self._traits.cell_of(tile)) == key:
                del self.tiles[tile_uuid]
        self.tiles.update((id_of(tile), tile) for tile in put)
        if block.changed_count * _REPACK_SHARE > sum(map(len, block.all_tiles)):
            self._repack(key, block)

    def _repack(self, key: BlockKey, block: Block[T]) -> None:
        tiles = list(block.tiles)
        packed = self._traits.repack(tiles)
        self.blocks[key] = self._new_block(block.version, packed)
        for old, new in zip(tiles, packed):
            tile_uuid = self._traits.id_of(new)
            # An id may have moved to a block that has arrived before.
            if self.tiles.get(tile_uuid) is old:
                self.tiles[tile_uuid] = new

    def _new_block(self, version: bytes, tiles: Sequence[T]) -> Block[T]:
        all_tiles: list[tuple[T, ...]] = [()] * _PLACES
        crowded: set[int] = set()
        for tile, place in zip(tiles, self._places(tiles)):
            if all_tiles[place]:
                crowded.add(place)
            all_tiles[place] += (tile,)
        for place in crowded:
            all_tiles[place] = self._in_order(all_tiles[place])
        usable_tiles = all_tiles
        if not all(map(self._traits.is_usable, tiles)):
            usable_tiles = list(map(self._usable, all_tiles))
        return Block(version, all_tiles, usable_tiles, 0)

    def _changed_block(
        self, key: BlockKey, base: Block[T], version: bytes, put: list[T], gone: set[str]
    ) -> Block[T]:
        """The base without the tiles of the ids in `gone`, and with those of `put`."""
        id_of = self._traits.id_of
        all_tiles = base.all_tiles.copy()
        places = self._places_of_ids(key, base, gone)
        changed_count = base.changed_count + len(put)
        for place in places:
            kept = tuple(tile for tile in all_tiles[place] if id_of(tile) not in gone)
            changed_count += len(all_tiles[place]) - len(kept)
            all_tiles[place] = kept
        for tile, place in zip(put, self._places(put)):
            places.add(place)
            all_tiles[place] += (tile,)
        usable_tiles = all_tiles
        if base.usable_tiles is not base.all_tiles or not all(map(self._traits.is_usable, put)):
            usable_tiles = base.usable_tiles.copy()
        for place in places:
            if len(all_tiles[place]) > 1:
                all_tiles[place] = self._in_order(all_tiles[place])
            usable_tiles[place] = self._usable(all_tiles[place])
        return Block(version, all_tiles, usable_tiles, changed_count)

    def _places_of_ids(self, key: BlockKey, block: Block[T], tile_uuids: set[str]) -> set[int]:
        """The cells of a held block in which tiles with some ids are."""
        places: set[int] = set()
        for tile_uuid in tile_uuids:
            tile = self.tiles.get(tile_uuid)
            if tile is None:
                continue
            x, y = self._traits.cell_of(tile)
            if block_of(key.zoom, x, y) == key:
                places.add(place_of(x, y))
            else:
                # It was moved to a cell of another block, which has arrived before.
                places.update(
                    place
                    for place, tiles in enumerate(block.all_tiles)
                    if any(self._traits.id_of(each) == tile_uuid for each in tiles)
                )
        return places

    def _replace(self, key: BlockKey, block: Block[T] | None) -> None:
        """Holds another block, or None, in the place of what is held."""
        old = self.blocks.get(key)
        id_of = self._traits.id_of
        new_ids: set[str] = set()
        if block is not None:
            tiles = {id_of(tile): tile for tile in block.tiles}
            self.blocks[key] = block
            self.tiles.update(tiles)
            new_ids = set(tiles)
        else:
            self.blocks.pop(key, None)
        if old is not None:
            for tile in old.tiles:
                tile_uuid = id_of(tile)
                if tile_uuid not in new_ids and self.tiles.get(tile_uuid) is tile:
                    del self.tiles[tile_uuid]

    def _places(self, tiles: Sequence[T]) -> list[int]:
        return [place_of(x, y) for x, y in map(self._traits.cell_of, tiles)]

    def _in_order(self, tiles: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(sorted(tiles, key=self._traits.order_of))

    def _usable(self, tiles: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(filter(self._traits.is_usable, tiles))


def place_of(x: int, y: int) -> int:
    """The index of a cell among the cells of its block."""
    return (y & _MASK) << BLOCK_BITS | x & _MASK
