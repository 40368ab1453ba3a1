"""Sets of cells as bits, block by block."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import BLOCK_BITS, BLOCK_CELLS, CellRectangle

Bits = NDArray[np.bool_]

_AXIS_BITS: Final = 24
_ROWS_AT_ONCE: Final = 1 << 17
_BLOCKS_AT_ONCE: Final = 1 << 9


class CellMasks(NamedTuple):
    """Cells of one zoom. `x` and `y` number the blocks that have some, by row and column. Each
    has a number of 32 bits for each of its rows, the western cell in the lowest bit."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    rows: NDArray[np.uint32]

    @property
    def cell_count(self) -> int:
        return int(np.unpackbits(self.rows.view(np.uint8)).sum())

    def bits(self) -> Bits:
        """For each block its 1,024 cells, row by row."""
        octets = np.ascontiguousarray(self.rows, dtype="<u4").view(np.uint8)
        return np.unpackbits(octets, axis=1, bitorder="little").view(np.bool_)

    def part(self, start: int, end: int) -> "CellMasks":
        """Some of the blocks."""
        return CellMasks(self.x[start:end], self.y[start:end], self.rows[start:end])

    def having(self, bits: Bits) -> "CellMasks":
        """The blocks with other cells, as `bits` gives them, without those that have none."""
        rows = np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)
        some = rows.any(axis=1)
        return CellMasks(self.x[some], self.y[some], rows[some])

    def bounds(self) -> Iterator[CellRectangle]:
        """For each block the smallest rectangle that contains its cells."""
        columns = np.bitwise_or.reduce(self.rows, axis=1)
        set_columns = (columns[:, None] >> np.arange(BLOCK_CELLS, dtype=np.uint32)) & 1
        edges = [
            (values.argmax(axis=1), BLOCK_CELLS - 1 - values[:, ::-1].argmax(axis=1))
            for values in (set_columns != 0, self.rows != 0)
        ]
        (left, right), (top, bottom) = edges
        x, y = self.x << BLOCK_BITS, self.y << BLOCK_BITS
        sides = (x + left, x + right, y + top, y + bottom)
        return map(CellRectangle, *(side.tolist() for side in sides))

    def rectangles(self) -> Iterator[CellRectangle]:
        """The cells as disjoint rectangles, generated lazily."""
        open_runs: dict[tuple[int, int], CellRectangle] = {}
        for start in range(0, self.x.size, _BLOCKS_AT_ONCE):
            part = self.part(start, start + _BLOCKS_AT_ONCE)
            top = int(part.y[0]) << BLOCK_BITS
            for columns in [key for key, run in open_runs.items() if run.y_to + 1 < top]:
                yield open_runs.pop(columns)
            for run in part._runs():
                columns = (run.x_from, run.x_to)
                above = open_runs.pop(columns, None)
                if above and above.y_to + 1 < run.y_from:
                    yield above
                    above = None
                open_runs[columns] = above._replace(y_to=run.y_to) if above else run
        yield from open_runs.values()

    def _runs(self) -> Iterator[CellRectangle]:
        """The cells as rectangles of one row, from the north."""
        cells = self.bits().reshape(-1, BLOCK_CELLS, BLOCK_CELLS)
        beside = (np.diff(self.x) == 1) & (np.diff(self.y) == 0)
        before, behind = np.zeros_like(cells), np.zeros_like(cells)
        before[:, :, 1:], behind[:, :, :-1] = cells[:, :, :-1], cells[:, :, 1:]
        before[1:, :, 0] = cells[:-1, :, -1] & beside[:, None]
        behind[:-1, :, -1] = cells[1:, :, 0] & beside[:, None]
        first, last = self._in_order(cells & ~before), self._in_order(cells & ~behind)
        for (y, x_from), (_, x_to) in zip(first, last, strict=True):
            yield CellRectangle(x_from, x_to, y, y)

    def _in_order(self, cells: Bits) -> Iterable[tuple[int, int]]:
        """The rows and columns of some cells, row by row."""
        block, row, column = np.nonzero(cells)
        y, x = (self.y[block] << BLOCK_BITS) + row, (self.x[block] << BLOCK_BITS) + column
        order = np.lexsort((x, y))
        return zip(y[order].tolist(), x[order].tolist(), strict=True)


def mask_cells(rectangles: Iterable[CellRectangle]) -> CellMasks:
    """The cells of rectangles, which may overlap."""
    parts = [_rows_of_blocks(np.zeros((0, 4), dtype=np.int64))]
    for some in _batches(rectangles):
        parts.append(_rows_of_blocks(np.array(some, dtype=np.int64)))
    codes, bits = _unite(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    blocks, index = np.unique(codes >> BLOCK_BITS, return_inverse=True)
    rows = np.zeros((blocks.size, BLOCK_CELLS), dtype=np.uint32)
    rows[index, codes & (BLOCK_CELLS - 1)] = bits
    return CellMasks(blocks & ((1 << _AXIS_BITS) - 1), blocks >> _AXIS_BITS, rows)


def concatenate(parts: Sequence[CellMasks]) -> CellMasks:
    """Parts of masks in their order."""
    if not parts:
        return mask_cells([])
    x, y, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    return CellMasks(x, y, rows)


def _batches(rectangles: Iterable[CellRectangle]) -> Iterator[list[CellRectangle]]:
    """The rectangles, cut into parts of a bounded number of rows of blocks."""
    batch: list[CellRectangle] = []
    room = _ROWS_AT_ONCE
    for x_from, x_to, y_from, y_to in rectangles:
        blocks = (x_to >> BLOCK_BITS) - (x_from >> BLOCK_BITS) + 1
        y = y_from
        while y <= y_to:
            end = min(y + max(room // blocks, 1) - 1, y_to)
            batch.append(CellRectangle(x_from, x_to, y, end))
            room -= (end - y + 1) * blocks
            y = end + 1
            if room <= 0:
                yield batch
                batch, room = [], _ROWS_AT_ONCE
    if batch:
        yield batch


def _rows_of_blocks(
    rectangles: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The rows of blocks that rectangles have cells in, as codes, and these cells as bits."""
    x_from, x_to, y_from, y_to = rectangles.T
    heights = y_to - y_from + 1
    rectangle, offset = _repeat(heights)
    y = y_from[rectangle] + offset
    first, last = x_from[rectangle], x_to[rectangle]
    row, offset = _repeat((last >> BLOCK_BITS) - (first >> BLOCK_BITS) + 1)
    block = (first[row] >> BLOCK_BITS) + offset
    left = np.maximum(first[row] - (block << BLOCK_BITS), 0)
    right = np.minimum(last[row] - (block << BLOCK_BITS), BLOCK_CELLS - 1)
    bits = ((np.int64(1) << (right - left + 1)) - 1) << left
    codes = (((y[row] >> BLOCK_BITS) << _AXIS_BITS | block) << BLOCK_BITS) | (
        y[row] & (BLOCK_CELLS - 1)
    )
    return _unite(codes, bits.astype(np.uint32))


def _repeat(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each index as often as its count says, and the number of the repetition."""
    index = np.repeat(np.arange(counts.size), counts)
    return index, np.arange(index.size) - np.repeat(np.cumsum(counts) - counts, counts)


def _unite(
    codes: NDArray[np.int64], bits: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Each code once, in order, with all of its bits."""
    if not codes.size:
        return codes, bits
    order = np.argsort(codes, kind="stable")
    codes, bits = codes[order], bits[order]
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    return codes[begins], np.bitwise_or.reduceat(bits, begins)
