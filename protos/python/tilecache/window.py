"""Windows: what a replica holds in some cells, and how true it is."""

from __future__ import annotations

from itertools import chain
from typing import (
    Collection,
    Final,
    Generic,
    Iterable,
    Sequence,
    TypeVar,
    overload,
)

from tilecache.mercator import BLOCK_BITS, BLOCK_CELLS, BlockKey, CellRectangle
from tilecache.replica_state import Block

_MASK: Final = BLOCK_CELLS - 1
T = TypeVar("T")


class Window(Sequence[T], Generic[T]):
    """Some tiles, which must not be changed.

    An empty window that is `complete` means that there is no tile. An empty one that is not
    means that nobody knows.
    """

    __slots__ = ("_tiles", "age_s", "complete", "degraded")

    def __init__(self, tiles: list[T], complete: bool, age_s: float, degraded: bool) -> None:
        self._tiles = tiles
        self.complete = complete
        """Whether every cell that was asked for is followed and held."""
        self.age_s = age_s
        """Every change that was committed longer ago than this, in seconds, is in the tiles.
        Infinite if nothing is known."""
        self.degraded = degraded
        """Whether changes may go unnoticed at present."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._tiles[index]

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._tiles)

    def __repr__(self) -> str:
        known = "complete" if self.complete else "not complete"
        return f"<Window of {len(self._tiles)} tiles, {known}, {self.age_s:.3f} s old>"


def tiles_by_cell(
    blocks: dict[BlockKey, Block[T]],
    zoom: int,
    cells: Iterable[CellRectangle],
    *,
    usable: bool = True,
) -> tuple[list[tuple[T, ...]], bool]:
    """The tiles of each cell, the best one first, and whether all of the cells are held. With
    `usable` only those that a query returns by default."""
    found: list[tuple[T, ...]] = []
    complete = True
    for x_from, x_to, y_from, y_to in cells:
        first_x, last_x = x_from >> BLOCK_BITS, x_to >> BLOCK_BITS
        first_y, last_y = y_from >> BLOCK_BITS, y_to >> BLOCK_BITS
        for block_y in range(first_y, last_y + 1) if first_y < last_y else (first_y,):
            top = y_from & _MASK if block_y == first_y else 0
            bottom = y_to & _MASK if block_y == last_y else _MASK
            for block_x in range(first_x, last_x + 1) if first_x < last_x else (first_x,):
                # As a plain tuple, which is equal to the key and faster to make.
                block = blocks.get((zoom, block_x, block_y))  # type: ignore[call-overload]
                if block is None:
                    complete = False
                    continue
                tiles = block.usable_tiles if usable else block.all_tiles
                left = x_from & _MASK if block_x == first_x else 0
                right = (x_to & _MASK if block_x == last_x else _MASK) + 1
                # One row is the usual case: circles are made of rows.
                for row in range(top, bottom + 1) if top < bottom else (top,):
                    start = row << BLOCK_BITS
                    found += tiles[start + left : start + right]
    return found, complete


def flatten(by_cell: Iterable[Collection[T]]) -> list[T]:
    """The tiles of all cells."""
    return list(chain.from_iterable(by_cell))
