"""Bounding the cells of a region."""

import asyncio
from collections.abc import Iterable, Iterator

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.errors import LimitExceededError


class ShapedCells:
    """The cells of an area with an outline, which take longer to compute than those of a box."""

    def __init__(self, cells: Iterator[CellRectangle]) -> None:
        self._cells = cells

    def __iter__(self) -> Iterator[CellRectangle]:
        return self._cells


async def bound_cells_aside(cells: Iterable[CellRectangle], max_cells: int) -> list[CellRectangle]:
    """As `bound_cells`; those of an outline in a thread, so that reads go on meanwhile."""
    if isinstance(cells, ShapedCells):
        return await asyncio.to_thread(bound_cells, cells, max_cells)
    return bound_cells(cells, max_cells)


def bound_cells(cells: Iterable[CellRectangle], max_cells: int) -> list[CellRectangle]:
    """The rectangles as a list; raises LimitExceededError for more than `max_cells` cells."""
    bounded, count = [], 0
    for rectangle in cells:
        count += rectangle.cell_count
        if count > max_cells:
            raise LimitExceededError(
                FieldViolation("region", f"has more than {max_cells} cells at this zoom")
            )
        bounded.append(rectangle)
    return bounded
