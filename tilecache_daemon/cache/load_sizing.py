"""How many blocks one statement reads: enough to be worth a statement, and little enough that a
client that reads slowly keeps little waiting in memory."""

from collections import deque
from collections.abc import Mapping
from typing import Final

from tilecache.mercator import BlockKey, CellRectangle

_PART_BYTES: Final = 1536 * 1024
_FIRST_CELLS: Final = 2_048
_MOST_CELLS: Final = 65_536


class LoadSizing:
    """The parts of one answer, each sized by the bytes of those before it."""

    def __init__(self, cells: Mapping[BlockKey, CellRectangle]) -> None:
        """`cells` are what is to be read of each block."""
        self._remaining = deque(cells.items())
        self._part_cells = 0

    def next_part(self, tile_bytes: int) -> dict[BlockKey, CellRectangle]:
        """The next blocks, at least one; none at the end. `tile_bytes` is the size of a tile in
        recent loads, 0 if it is unknown."""
        if not self._part_cells:
            self._part_cells = min(_FIRST_CELLS, _PART_BYTES // max(tile_bytes, 1))
        part: dict[BlockKey, CellRectangle] = {}
        count = 0
        while self._remaining:
            key, rectangle = self._remaining[0]
            count += rectangle.cell_count
            if part and count > self._part_cells:
                break
            part[key] = rectangle
            self._remaining.popleft()
        return part

    def record(self, part: Mapping[BlockKey, CellRectangle], byte_count: int) -> None:
        """Sizes later parts by the bytes of one that was read."""
        if not part:
            return
        cells = sum(rectangle.cell_count for rectangle in part.values())
        fitting = cells * _PART_BYTES // max(byte_count, 1)
        self._part_cells = max(min(fitting, 2 * self._part_cells, _MOST_CELLS), 1)
