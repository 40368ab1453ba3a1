"""The tiles of a block of 32 x 32 cells, each as the bytes of its wire form.

The cache does not read these bytes. An answer is a join of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tilecache.identity import SOURCE_NUMBERS
from tilecache.mercator import BLOCK_BITS, BLOCK_CELLS, BlockKey, CellRectangle
from tilecache_daemon.models import FreshnessLabel, TileFilter, TileSelection, micros_of
from tilecache_daemon.store.tile_columns import UUID_BYTES, TileColumns, uuid_texts

TILE_OVERHEAD_BYTES: Final = 300
"""Memory of a tile beside its element's bytes: object headers, its id, and its places in the
block's lists and in the index by id. Measured as resident memory."""
BLOCK_OVERHEAD_BYTES: Final = 1_500

_MASK: Final = BLOCK_CELLS - 1
_AXIS_BITS: Final = 24
_RANKS: Final = {label.value: rank for rank, label in enumerate(FreshnessLabel)}


def in_order(tiles: TileColumns) -> TileColumns:
    """Tiles of one zoom by block, within it by cell, and within a cell the best label first,
    then the newest capture, then the id."""
    cells = _block_numbers(tiles) << 2 * BLOCK_BITS | _cells(tiles)
    order = np.argsort(cells)
    if bool((np.diff(cells[order]) == 0).any()):
        uuids = tiles.rows["tile_uuid"].view(">u8")
        # Not the negative, which does not exist for -infinity.
        captured = ~tiles.rows["captured_us"]
        order = np.lexsort((uuids[:, 1], uuids[:, 0], captured, tiles.label_index, cells))
    return tiles.take(order)


def split_blocks(
    keys: Iterable[BlockKey], tiles: TileColumns, elements: Sequence[bytes]
) -> "Iterator[Block]":
    """The blocks of these keys, empty ones too, from tiles `in_order` and their elements."""
    numbers = _block_numbers(tiles)
    for key in keys:
        number = key.y << _AXIS_BITS | key.x
        start, end = np.searchsorted(numbers, (number, number + 1)).tolist()
        yield Block(key, tiles.part(start, end), list(elements[start:end]))


class Block:
    """All tiles of a block, in the order of its cells."""

    __slots__ = (
        *("key", "number", "stale", "elements", "byte_count", "_uuids"),
        *("_cells", "_ranks", "_captured", "_sources", "_flights"),
    )

    def __init__(self, key: BlockKey, tiles: TileColumns, elements: list[bytes]) -> None:
        """Tiles `in_order`, and their elements."""
        self.key = key
        self.number = 0
        """Assigned by the storage."""
        self.stale = False
        """Whether the table may have changed since the block was read."""
        self.elements = elements
        self.byte_count = (
            sum(map(len, elements)) + len(elements) * TILE_OVERHEAD_BYTES + BLOCK_OVERHEAD_BYTES
        )
        """Memory that the block takes, about."""
        self._uuids = tiles.rows["tile_uuid"].copy()
        self._cells = _cells(tiles).astype(np.uint16)
        self._ranks = tiles.label_index.astype(np.uint8)
        self._captured = tiles.rows["captured_us"].astype(np.int64)
        self._sources = tiles.source_number.astype(np.uint8)
        flights = tiles.rows["flight_id"]
        self._flights = flights.copy() if flights.any() else None

    @property
    def tile_count(self) -> int:
        return len(self.elements)

    @property
    def tile_uuids(self) -> list[str]:
        """The ids of the tiles, made anew each time."""
        return uuid_texts(self._uuids)

    @property
    def ids(self) -> list[bytes]:
        """As `tile_uuids`, as 16 bytes each."""
        data = self._uuids.tobytes()
        return [data[at : at + UUID_BYTES] for at in range(0, len(data), UUID_BYTES)]

    def replace(self, index: int, element: bytes) -> None:
        """Another element of the same tile; nothing that a filter tests may differ."""
        self.byte_count += len(element) - len(self.elements[index])
        self.elements[index] = element

    def select(self, cells: Iterable[CellRectangle], wanted: TileFilter) -> list[bytes]:
        """The elements of the tiles in some rectangles of the block's cells that pass the
        filter, rectangle by rectangle."""
        runs = self._runs(cells)
        passing = self._passing(wanted)
        best_only = wanted.selection is TileSelection.BEST_PER_CELL
        if passing is None and not best_only:
            return list(chain.from_iterable(self.elements[start:end] for start, end in runs))
        indexes = np.concatenate([np.arange(0), *(np.arange(start, end) for start, end in runs)])
        if passing is not None:
            indexes = indexes[passing[indexes]]
        if best_only:
            # The best of a cell comes first in it.
            indexes = indexes[np.diff(self._cells[indexes].astype(np.int64), prepend=-1) != 0]
        return [self.elements[index] for index in indexes.tolist()]

    def _runs(self, cells: Iterable[CellRectangle]) -> list[tuple[int, int]]:
        """First and last index (exclusive) of each run of tiles in some rectangles."""
        starts: list[int] = []
        widths: list[int] = []
        for x_from, x_to, y_from, y_to in cells:
            rows, width = range(_cell(x_from, y_from), _cell(x_from, y_to) + 1, BLOCK_CELLS), 1
            if x_to - x_from == _MASK:
                # Whole rows are one run.
                rows, width = rows[:1], len(rows)
            starts += rows
            widths += [(width - 1) * BLOCK_CELLS + x_to - x_from + 1] * len(rows)
        first = np.array(starts, dtype=np.uint16)
        indexes = self._cells.searchsorted((first, first + np.array(widths, dtype=np.uint16)))
        return list(zip(*indexes.tolist(), strict=True))

    def _passing(self, wanted: TileFilter) -> NDArray[np.bool_] | None:
        """Whether each tile passes; None if all do."""
        wanted_ranks = np.zeros(len(_RANKS), dtype=np.bool_)
        wanted_ranks[[_RANKS[label] for label in wanted.labels]] = True
        passing = wanted_ranks[self._ranks]
        if wanted.sources:
            passing &= np.isin(self._sources, [SOURCE_NUMBERS[text] for text in wanted.sources])
        if wanted.flight_id is not None:
            if self._flights is None:
                return np.zeros(self.tile_count, dtype=np.bool_)
            flight = np.frombuffer(UUID(wanted.flight_id).bytes, dtype=np.uint8)
            passing &= (self._flights == flight).all(axis=1)
        if wanted.captured_after is not None:
            passing &= self._captured > micros_of(wanted.captured_after)
        return None if passing.all() else passing


def _block_numbers(tiles: TileColumns) -> NDArray[np.int64]:
    x, y = (tiles.rows[name].astype(np.int64) >> BLOCK_BITS for name in ("x", "y"))
    return y << _AXIS_BITS | x


def _cells(tiles: TileColumns) -> NDArray[np.int32]:
    cells: NDArray[np.int32] = (tiles.rows["y"] & _MASK) << BLOCK_BITS | tiles.rows["x"] & _MASK
    return cells


def _cell(x: int, y: int) -> int:
    return (y & _MASK) << BLOCK_BITS | x & _MASK
