"""How much of a region is read at once: enough for a query's trouble, and little for memory,
since a client that does not read keeps it waiting."""

from collections import deque
from collections.abc import Mapping
from typing import Final

from tilecache.mercator import BlockKey, CellRectangle

LOADS_AT_ONCE: Final = 3
"""Of all answers together."""
_PART_BYTES: Final = 768 * 1024
_WAITING_BYTES: Final = 1024 * 1024
_FIRST_CELLS: Final = 2_048
_MOST_CELLS: Final = 65_536


class Pace:
    """The pace of one answer. Several small parts may wait for the client, or one large."""

    def __init__(self) -> None:
        self.parts_ahead = 1
        """How many parts to fetch while one is sent; of large ones none."""
        self._cells = 0

    def take(
        self,
        left: deque[tuple[BlockKey, CellRectangle]],
        part: dict[BlockKey, CellRectangle],
        tile_bytes: int,
    ) -> Mapping[BlockKey, CellRectangle]:
        """Moves the next blocks' cells into a part, one at least, and gives it; a tile had
        about so many bytes lately."""
        if not self._cells:
            self._cells = min(_FIRST_CELLS, _PART_BYTES // max(tile_bytes, 1))
        cells = 0
        while left and (not part or cells + left[0][1].cell_count <= self._cells):
            key, rectangle = left.popleft()
            part[key] = rectangle
            cells += rectangle.cell_count
        return part

    def note(self, part: Mapping[BlockKey, CellRectangle], byte_count: int) -> None:
        """A part had so many bytes."""
        cells = sum(rectangle.cell_count for rectangle in part.values())
        fitting = cells * _PART_BYTES // max(byte_count, 1)
        self._cells = max(min(fitting, 2 * self._cells, _MOST_CELLS), 1)
        self.parts_ahead = min(_WAITING_BYTES // max(byte_count, 1), LOADS_AT_ONCE)
