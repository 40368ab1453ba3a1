"""Blocks of 32 x 32 cells of a zoom, held as the bytes that answers are made of.

A tile's row, once packed, is an element of a message's field 1; a block joins
its elements in the order of its cells, so that a run of cells is one slice.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import neg
from typing import Final, NamedTuple, TypeVar

from tilecache_daemon.mercator import CellRectangle
from tilecache_daemon.models import (
    FreshnessLabel,
    TileColumns,
    TileFilter,
    TileSelection,
    micros_of,
)

BLOCK_BITS: Final = 5
BLOCK_CELLS: Final = 1 << BLOCK_BITS
PIECE_BYTES: Final = 128 * 1024
"""Slices are cut to this, so that a message can be filled but not burst by one."""

TILE_OVERHEAD_BYTES: Final = 150
"""What a tile takes beside its bytes: its place in the arrays and in the index by id."""
LOOSE_OVERHEAD_BYTES: Final = 260
BLOCK_OVERHEAD_BYTES: Final = 1_500

_MASK: Final = BLOCK_CELLS - 1
_RANKS: Final = {label.value: rank for rank, label in enumerate(FreshnessLabel)}


Item = TypeVar("Item")


class BlockKey(NamedTuple):
    """Which block: its zoom, and its cells' columns and rows without their last bits."""

    zoom: int
    x: int
    y: int


class Slice(NamedTuple):
    """Joined elements, and how many tiles they are. The elements are not copied."""

    elements: memoryview
    tile_count: int

    def first(self, count: int) -> "Slice":
        """The first tiles of it."""
        end = 0
        for _ in range(count):
            end += 1  # the field's tag
            length = shift = 0
            while self.elements[end] & 0x80:
                length |= (self.elements[end] & 0x7F) << shift
                shift, end = shift + 7, end + 1
            end += 1 + (length | self.elements[end] << shift)
        return Slice(self.elements[:end], count)


def block_of(zoom: int, x: int, y: int) -> BlockKey:
    """The block that a cell lies in."""
    return BlockKey(zoom, x >> BLOCK_BITS, y >> BLOCK_BITS)


def blocks_in(zoom: int, cells: Iterable[CellRectangle]) -> dict[BlockKey, list[CellRectangle]]:
    """The blocks that rectangles touch, each with its part of them."""
    blocks: dict[BlockKey, list[CellRectangle]] = {}
    for x_from, x_to, y_from, y_to in cells:
        for block_y in range(y_from >> BLOCK_BITS, (y_to >> BLOCK_BITS) + 1):
            top, bottom = block_y << BLOCK_BITS, (block_y << BLOCK_BITS) | _MASK
            for block_x in range(x_from >> BLOCK_BITS, (x_to >> BLOCK_BITS) + 1):
                left, right = block_x << BLOCK_BITS, (block_x << BLOCK_BITS) | _MASK
                part = CellRectangle(
                    max(x_from, left), min(x_to, right), max(y_from, top), min(y_to, bottom)
                )
                blocks.setdefault(BlockKey(zoom, block_x, block_y), []).append(part)
    return blocks


def bounds_of(cells: Sequence[CellRectangle]) -> CellRectangle:
    """The smallest rectangle that holds some."""
    x_from, x_to, y_from, y_to = zip(*cells, strict=True)
    return CellRectangle(min(x_from), max(x_to), min(y_from), max(y_to))


def cells_of(key: BlockKey) -> CellRectangle:
    """All cells of a block."""
    x, y = key.x << BLOCK_BITS, key.y << BLOCK_BITS
    return CellRectangle(x, x | _MASK, y, y | _MASK)


class Block:
    """The tiles of a block. Immutable but for their uses; made from all of its rows."""

    __slots__ = (
        *("key", "number", "doubted", "id_hashes"),
        *("_blob", "_offsets", "_cells", "_ranks", "_captured", "_maker_of", "_makers"),
        *("_one_a_cell", "_ranks_there"),
    )

    def __init__(self, key: BlockKey, tiles: TileColumns, elements: Sequence[bytes]) -> None:
        """`elements` are the tiles packed; both in the same order, whichever it is."""
        self.key = key
        self.number = 0
        """Which of the cache's blocks it is."""
        self.doubted = False
        """Whether it may be out of date."""
        cells = [
            (y & _MASK) << BLOCK_BITS | x & _MASK for x, y in zip(tiles.x, tiles.y, strict=True)
        ]
        ranks = list(map(_RANKS.__getitem__, tiles.freshness_label))
        self._one_a_cell = len(set(cells)) == len(cells)
        places = range(len(cells))
        if self._one_a_cell:
            order = sorted(places, key=cells.__getitem__)
        else:
            # Within a cell the best label first, then the newest capture.
            merits = list(
                zip(cells, ranks, map(neg, tiles.captured_us), tiles.tile_uuid, strict=True)
            )
            order = sorted(places, key=merits.__getitem__)
        makers = list(zip(tiles.source, tiles.flight_id, strict=True))
        self._makers = list(dict.fromkeys(makers))
        numbers = {maker: number for number, maker in enumerate(self._makers)}
        elements = _at(order, elements)
        self._blob = b"".join(elements)
        self._offsets = array("I", accumulate(map(len, elements), initial=0))
        self._cells = array("H", _at(order, cells))
        self._ranks = bytes(_at(order, ranks))
        self._ranks_there = frozenset(ranks)
        self._captured = array("q", _at(order, tiles.captured_us))
        self._maker_of = array("H", map(numbers.__getitem__, _at(order, makers)))
        self.id_hashes = array("q", map(hash, _at(order, tiles.tile_uuid)))
        """Of the tiles' ids, in the order of their places."""

    @property
    def tile_count(self) -> int:
        return len(self._cells)

    @property
    def byte_count(self) -> int:
        """What the block takes in memory, about."""
        return len(self._blob) + self.tile_count * TILE_OVERHEAD_BYTES + BLOCK_OVERHEAD_BYTES

    def doubt(self) -> None:
        """It may be out of date from now on."""
        self.doubted = True

    def doubts(self, place: int) -> bool:
        """Whether the tile at a place may be out of date."""
        return self.doubted

    def element(self, place: int) -> bytes:
        """The element of the tile at a place."""
        return self._blob[self._offsets[place] : self._offsets[place + 1]]

    def select(self, cells: Iterable[CellRectangle], wanted: TileFilter) -> Iterator[Slice]:
        """The tiles in some rectangles of the block's cells that pass the filter."""
        test = self._test(wanted)
        best_only = wanted.selection is TileSelection.BEST_PER_CELL and not self._one_a_cell
        for start, end in self._runs(cells):
            if test is None and not best_only:
                yield from self._slices(start, end)
            else:
                yield from self._picked(start, end, test, best_only=best_only)

    def rewrite(self, changes: Mapping[int, Callable[[bytes], bytes]]) -> None:
        """Gives the tiles at some places other elements; what the filters see may not
        change."""
        elements = [self._blob[start:end] for start, end in pairwise(self._offsets)]
        for place, change in changes.items():
            elements[place] = change(elements[place])
        self._blob = b"".join(elements)
        self._offsets = array("I", accumulate(map(len, elements), initial=0))

    def _runs(self, cells: Iterable[CellRectangle]) -> Iterator[tuple[int, int]]:
        """Where runs of tiles in the given cells start and end."""
        for x_from, x_to, y_from, y_to in cells:
            if x_to - x_from == _MASK:
                # Whole rows follow each other.
                yield self._run(_cell(x_from, y_from), _cell(x_to, y_to))
                continue
            for y in range(y_from, y_to + 1):
                yield self._run(_cell(x_from, y), _cell(x_to, y))

    def _run(self, first: int, last: int) -> tuple[int, int]:
        start = bisect_left(self._cells, first)
        return start, bisect_right(self._cells, last, start)

    def _slices(self, start: int, end: int) -> Iterator[Slice]:
        blob, offsets = memoryview(self._blob), self._offsets
        while start < end:
            stop = end
            if offsets[end] - offsets[start] > PIECE_BYTES:
                reach = bisect_right(offsets, offsets[start] + PIECE_BYTES, start, end + 1) - 1
                stop = max(reach, start + 1)
            yield Slice(blob[offsets[start] : offsets[stop]], stop - start)
            start = stop

    def _picked(
        self, start: int, end: int, test: Callable[[int], bool] | None, *, best_only: bool
    ) -> Iterator[Slice]:
        blob, offsets, last_cell = memoryview(self._blob), self._offsets, -1
        for place in range(start, end):
            if best_only and self._cells[place] == last_cell:
                continue
            if test is None or test(place):
                # The best of a cell comes first in it.
                last_cell = self._cells[place]
                yield Slice(blob[offsets[place] : offsets[place + 1]], 1)

    def _test(self, wanted: TileFilter) -> Callable[[int], bool] | None:
        """Whether the tile at a place passes; None if all do."""
        makers = {
            number
            for number, (source, flight_id) in enumerate(self._makers)
            if (not wanted.sources or source in wanted.sources)
            and (wanted.flight_id is None or flight_id == wanted.flight_id)
        }
        ranks = {_RANKS[label] for label in wanted.labels}
        after = None if wanted.captured_after is None else micros_of(wanted.captured_after)
        if len(makers) == len(self._makers) and after is None and ranks >= self._ranks_there:
            return None
        return lambda place: (
            self._ranks[place] in ranks
            and self._maker_of[place] in makers
            and (after is None or self._captured[place] > after)
        )


class LooseTiles:
    """Tiles of a block that were read by id; the block may have others."""

    __slots__ = ("_doubted", "_elements", "_places", "byte_count", "key", "number")

    def __init__(self, key: BlockKey) -> None:
        self.key = key
        self.number = 0
        self.byte_count = BLOCK_OVERHEAD_BYTES
        self._elements: list[bytes] = []
        self._places: dict[int, int] = {}
        self._doubted: set[int] = set()

    @property
    def doubted(self) -> bool:
        """Whether some of them may be out of date."""
        return bool(self._doubted)

    @property
    def id_hashes(self) -> Iterable[int]:
        return self._places

    @property
    def tile_count(self) -> int:
        return len(self._elements)

    def add(self, id_hash: int, element: bytes) -> int:
        """Holds a tile; gives its place."""
        place = self._places.setdefault(id_hash, len(self._elements))
        self._doubted.discard(place)
        if place == len(self._elements):
            self._elements.append(element)
            self.byte_count += len(element) + LOOSE_OVERHEAD_BYTES
        else:
            self._replace(place, element)
        return place

    def doubt(self) -> None:
        """As `Block.doubt`; what is added later is believed again."""
        self._doubted.update(self._places.values())

    def doubts(self, place: int) -> bool:
        """As `Block.doubts`."""
        return place in self._doubted

    def element(self, place: int) -> bytes:
        """As `Block.element`."""
        return self._elements[place]

    def rewrite(self, changes: Mapping[int, Callable[[bytes], bytes]]) -> None:
        """As `Block.rewrite`."""
        for place, change in changes.items():
            self._replace(place, change(self._elements[place]))

    def _replace(self, place: int, element: bytes) -> None:
        self.byte_count += len(element) - len(self._elements[place])
        self._elements[place] = element


def _at(places: Sequence[int], column: Sequence[Item]) -> list[Item]:
    return list(map(column.__getitem__, places))


def _cell(x: int, y: int) -> int:
    return (y & _MASK) << BLOCK_BITS | x & _MASK
