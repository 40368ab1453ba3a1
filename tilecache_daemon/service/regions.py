"""Bounding and splitting the cells of a region."""

from collections.abc import Iterable

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.errors import LimitExceededError


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
