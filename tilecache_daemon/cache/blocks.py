"""Blocks of 32 x 32 cells of a zoom, held as the bytes that answers are made of.

A tile's row, once packed, is an element of a message's field 1; a block joins
its elements in the order of its cells, so that a run of cells is one slice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tilecache.identity import SOURCE_TEXTS
from tilecache.mercator import BLOCK_BITS, BLOCK_CELLS, BlockKey, CellRectangle
from tilecache_daemon.models import (
    FreshnessLabel,
    TileFilter,
    TileSelection,
    micros_of,
)
from tilecache_daemon.store.tile_columns import NO_FLIGHT, Bytes, TileColumns
from tilecache_daemon.store.tile_ids import Numbers, numbers_of

PIECE_BYTES: Final = 128 * 1024
"""Slices are cut to this, so that a message can be filled but not burst by one."""

TILE_OVERHEAD_BYTES: Final = 100
"""What a tile takes beside its bytes: its place in the arrays and in the index by id."""
LOOSE_OVERHEAD_BYTES: Final = 260
BLOCK_OVERHEAD_BYTES: Final = 1_500

_MASK: Final = BLOCK_CELLS - 1
_AXIS_BITS: Final = 24
_ZERO: Final = np.zeros(1, dtype=np.int64)

Places = NDArray[np.intp]
_RANKS: Final = {label.value: rank for rank, label in enumerate(FreshnessLabel)}


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


def in_order(tiles: TileColumns) -> TileColumns:
    """Tiles of a zoom, block by block, in the order of a block's cells; within a cell the
    best label first, then the newest capture."""
    cells = _block_numbers(tiles) << 2 * BLOCK_BITS | _cells(tiles)
    order = np.argsort(cells)
    if bool((np.diff(cells[order]) == 0).any()):
        uuids = tiles.rows["tile_uuid"].view(">u8")
        captured = -tiles.rows["captured_us"]
        order = np.lexsort((uuids[:, 1], uuids[:, 0], captured, tiles.label_place, cells))
    return tiles.take(order)


def cut_blocks(
    keys: Iterable[BlockKey], tiles: TileColumns, data: Bytes, ends: NDArray[Any]
) -> "Iterator[Block]":
    """The blocks of these keys from tiles `in_order`, packed one after the other, and where
    each ends."""
    numbers = _block_numbers(tiles)
    for key in keys:
        number = key.y << _AXIS_BITS | key.x
        first, last = np.searchsorted(numbers, (number, number + 1)).tolist()
        start = int(ends[first - 1]) if first else 0
        stop = int(ends[last - 1]) if last else 0
        run = data[start:stop].tobytes()
        yield Block(key, tiles.part(first, last), run, ends[first:last] - start)


class Block:
    """The tiles of a block. Immutable but for their uses; made from all of its rows."""

    __slots__ = (
        *("key", "number", "doubted", "ids", "data"),
        *("_offsets", "_cells", "_ranks", "_captured", "_maker_of", "_makers"),
        *("_one_a_cell", "_ranks_there"),
    )

    def __init__(self, key: BlockKey, tiles: TileColumns, data: bytes, ends: NDArray[Any]) -> None:
        """Tiles `in_order`, packed one after the other, and where each ends."""
        self.key = key
        self.number = 0
        """Which of the cache's holders it is."""
        self.doubted = False
        """Whether it may be out of date."""
        self.ids: Numbers = numbers_of(tiles.rows["tile_uuid"])
        """In the order of the tiles' places."""
        self.data = data
        self._offsets = np.concatenate((_ZERO, ends)).astype(np.uint32)
        self._cells = _cells(tiles).astype(np.uint16)
        self._one_a_cell = not bool((np.diff(self._cells) == 0).any())
        self._ranks = tiles.label_place.astype(np.uint8)
        self._ranks_there = frozenset(self._ranks.tolist())
        self._captured = tiles.rows["captured_us"].astype(np.int64)
        self._makers, self._maker_of = _makers(tiles)

    @property
    def tile_count(self) -> int:
        return len(self._cells)

    @property
    def byte_count(self) -> int:
        """What the block takes in memory, about."""
        return len(self.data) + self.tile_count * TILE_OVERHEAD_BYTES + BLOCK_OVERHEAD_BYTES

    @property
    def ends(self) -> NDArray[np.uint32]:
        """Where each tile ends in `data`."""
        return self._offsets[1:]

    def doubt(self) -> None:
        """It may be out of date from now on."""
        self.doubted = True

    def doubts(self, start: int) -> bool:
        """Whether the tile that starts there may be out of date."""
        return self.doubted

    def element(self, start: int, end: int) -> bytes:
        """The element of the tile from there to there."""
        return self.data[start:end]

    def select(self, cells: Iterable[CellRectangle], wanted: TileFilter) -> Iterator[Slice]:
        """The tiles in some rectangles of the block's cells that pass the filter."""
        starts, ends = self._runs(cells)
        passing = self._passing(wanted)
        best_only = wanted.selection is TileSelection.BEST_PER_CELL and not self._one_a_cell
        if passing is not None or best_only:
            starts, ends = self._narrowed(starts, ends, passing, best_only=best_only)
        data, offsets = memoryview(self.data), self._offsets
        for start, end, first, last in zip(
            *(offsets[starts].tolist(), offsets[ends].tolist()),
            *(starts.tolist(), ends.tolist()),
            strict=True,
        ):
            if end - start <= PIECE_BYTES:
                if last > first:
                    yield Slice(data[start:end], last - first)
            else:
                yield from self._pieces(first, last)

    def rewrite(self, changes: Mapping[int, Callable[[bytes], bytes]]) -> None:
        """Gives the tiles that start at some places other elements; what the filters see may
        not change."""
        elements = [self.data[start:end] for start, end in pairwise(self._offsets.tolist())]
        places = np.searchsorted(self._offsets, list(changes)).tolist()
        for place, change in zip(places, changes.values(), strict=True):
            elements[place] = change(elements[place])
        self.data = b"".join(elements)
        sizes = np.fromiter(map(len, elements), dtype=np.uint32, count=len(elements))
        np.cumsum(sizes, out=self._offsets[1:])

    def _runs(self, cells: Iterable[CellRectangle]) -> tuple[Places, Places]:
        """Where runs of tiles in the given cells start and end."""
        firsts: list[int] = []
        widths: list[int] = []
        for x_from, x_to, y_from, y_to in cells:
            rows, width = range(_cell(x_from, y_from), _cell(x_from, y_to) + 1, BLOCK_CELLS), 1
            if x_to - x_from == _MASK:
                # Whole rows follow each other.
                rows, width = rows[:1], len(rows)
            firsts += rows
            widths += [(width - 1) * BLOCK_CELLS + x_to - x_from + 1] * len(rows)
        starts = np.array(firsts, dtype=np.uint16)
        ends = starts + np.array(widths, dtype=np.uint16)
        return self._cells.searchsorted(starts), self._cells.searchsorted(ends)

    def _narrowed(
        self,
        starts: Places,
        ends: Places,
        passing: NDArray[np.bool_] | None,
        *,
        best_only: bool,
    ) -> tuple[Places, Places]:
        """The same of those among them that pass."""
        places = np.concatenate([np.arange(0), *map(np.arange, starts, ends)])
        if passing is not None:
            places = places[passing[places]]
        if best_only:
            # The best of a cell comes first in it.
            places = places[np.diff(self._cells[places].astype(np.int64), prepend=-1) != 0]
        is_first = np.diff(places, prepend=-2) != 1
        is_last = np.diff(places, append=-1) != 1
        return places[is_first], places[is_last] + 1

    def _pieces(self, start: int, end: int) -> Iterator[Slice]:
        data, offsets = memoryview(self.data), self._offsets
        while start < end:
            begin = int(offsets[start])
            reach = int(offsets.searchsorted(begin + PIECE_BYTES, "right")) - 1
            stop = min(max(reach, start + 1), end)
            yield Slice(data[begin : int(offsets[stop])], stop - start)
            start = stop

    def _passing(self, wanted: TileFilter) -> NDArray[np.bool_] | None:
        """Whether each tile passes; None if all do."""
        makers = [
            number
            for number, (source, flight_id) in enumerate(self._makers)
            if (not wanted.sources or source in wanted.sources)
            and (wanted.flight_id is None or flight_id == wanted.flight_id)
        ]
        ranks = {_RANKS[label] for label in wanted.labels}
        after = wanted.captured_after
        if len(makers) == len(self._makers) and after is None and ranks >= self._ranks_there:
            return None
        passing = np.isin(self._ranks, list(ranks)) & np.isin(self._maker_of, makers)
        return passing if after is None else passing & (self._captured > micros_of(after))


class LooseTiles:
    """Tiles of a block that were read by id; the block may have others. A tile starts at its
    place among them."""

    __slots__ = ("_doubted", "_elements", "_places", "byte_count", "key", "number")

    def __init__(self, key: BlockKey) -> None:
        self.key = key
        self.number = 0
        self.byte_count = BLOCK_OVERHEAD_BYTES
        self._elements: list[bytes] = []
        self._places: dict[bytes, int] = {}
        self._doubted: set[int] = set()

    @property
    def ids(self) -> Numbers:
        """As `Block.ids`."""
        return numbers_of(np.frombuffer(b"".join(self._places), dtype=np.uint8))

    @property
    def tile_count(self) -> int:
        return len(self._elements)

    def add(self, tile_id: bytes, element: bytes) -> int:
        """Holds a tile; gives its place."""
        place = self._places.setdefault(tile_id, len(self._elements))
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

    def doubts(self, start: int) -> bool:
        """As `Block.doubts`."""
        return start in self._doubted

    def element(self, start: int, _: int) -> bytes:
        """As `Block.element`."""
        return self._elements[start]

    def rewrite(self, changes: Mapping[int, Callable[[bytes], bytes]]) -> None:
        """As `Block.rewrite`."""
        for place, change in changes.items():
            self._replace(place, change(self._elements[place]))

    def _replace(self, place: int, element: bytes) -> None:
        self.byte_count += len(element) - len(self._elements[place])
        self._elements[place] = element


def _block_numbers(tiles: TileColumns) -> NDArray[np.int64]:
    x, y = (tiles.rows[name].astype(np.int64) >> BLOCK_BITS for name in ("x", "y"))
    return y << _AXIS_BITS | x


def _cells(tiles: TileColumns) -> NDArray[np.int32]:
    cells: NDArray[np.int32] = (tiles.rows["y"] & _MASK) << BLOCK_BITS | tiles.rows["x"] & _MASK
    return cells


def _makers(tiles: TileColumns) -> tuple[list[tuple[str, str | None]], NDArray[np.uint32]]:
    """The distinct sources and flights, and the number of each tile's among them."""
    sources, flights = tiles.source_number, tiles.rows["flight_id"]
    numbers: dict[tuple[int, bytes], int] = {}
    if not flights.any() and bool((sources == sources[:1]).all()):
        numbers = {(int(source), NO_FLIGHT): 0 for source in sources[:1]}
        maker_of = np.zeros(len(sources), dtype=np.uint32)
    else:
        makers = zip(sources.tolist(), map(bytes, flights), strict=True)
        maker_of = np.array(
            [numbers.setdefault(maker, len(numbers)) for maker in makers], dtype=np.uint32
        )
    return [
        (SOURCE_TEXTS.get(source, ""), None if flight == NO_FLIGHT else str(UUID(bytes=flight)))
        for source, flight in numbers
    ], maker_of


def _cell(x: int, y: int) -> int:
    return (y & _MASK) << BLOCK_BITS | x & _MASK
