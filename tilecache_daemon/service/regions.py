"""Bounding and splitting the cells of a region."""

from collections.abc import Iterable, Iterator
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.errors import LimitExceededError

PIECE_CELLS: Final = 16_384
"""Cells per query, so that a query holds its connection for some milliseconds only and its
rows fit into a few messages."""


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


def split_cells(cells: Iterable[CellRectangle]) -> Iterator[list[CellRectangle]]:
    """The same cells in pieces of at most PIECE_CELLS."""
    piece: list[CellRectangle] = []
    cells_left = PIECE_CELLS
    for rectangle in cells:
        for part in _split_rectangle(rectangle):
            if part.cell_count > cells_left:
                yield piece
                piece, cells_left = [], PIECE_CELLS
            piece.append(part)
            cells_left -= part.cell_count
    if piece:
        yield piece


def _split_rectangle(rectangle: CellRectangle) -> Iterator[CellRectangle]:
    x_from, x_to, y_from, y_to = rectangle
    width = min(x_to - x_from + 1, PIECE_CELLS)
    height = PIECE_CELLS // width
    for top in range(y_from, y_to + 1, height):
        for left in range(x_from, x_to + 1, width):
            yield CellRectangle(left, min(left + width - 1, x_to), top, min(top + height - 1, y_to))
