"""A map of the cells of a region: covered or missing, and how fresh.

Needs the extra `plot` (matplotlib and numpy).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tilecache.mercator import CellRectangle, cell_bounds, cell_edge_meters, row_position
from tilecache.v1.tile_metadata_store_pb2 import DescribeCoverageResponse, Region
from tilecache_daemon.cli.region_outline import Line, outlines
from tilecache_daemon.rpc.regions import region_cells

_MAX_PIXELS: Final = 4096


class _Kind(NamedTuple):
    text: str
    colour: str


_KINDS: Final = (
    _Kind("usable", "#2a9d6f"),
    _Kind("downgraded", "#f2b134"),
    _Kind("stale", "#c8452f"),
    _Kind("missing", "#d5dae1"),
    _Kind("", "#ffffff"),
)
FRESH, DOWNGRADED, STALE, MISSING, _OUTSIDE = range(len(_KINDS))
KIND_COLOURS: Final = [kind.colour for kind in _KINDS]
KIND_OF_LABEL: Final = {
    "fresh": FRESH,
    "downgraded": DOWNGRADED,
    "stale_warn": STALE,
    "stale_reject": STALE,
    "rejected": STALE,
}


class CoverageMap:
    """The cells of a region at one zoom. All are missing until `mark` gives them a label."""

    def __init__(
        self, zoom: int, rectangles: Sequence[CellRectangle], outlines: Iterable[Line] = ()
    ) -> None:
        """`rectangles` are the region's cells, at least one."""
        self.zoom = zoom
        self._outlines = list(outlines)
        self._side = 1 << zoom
        self._west, width = _narrowest_window(self._side, rectangles)
        self._north = min(rectangle.y_from for rectangle in rectangles)
        height = max(rectangle.y_to for rectangle in rectangles) - self._north + 1
        self._cells = np.full((height, width), _OUTSIDE, np.uint8)
        for rectangle in rectangles:
            rows = slice(rectangle.y_from - self._north, rectangle.y_to - self._north + 1)
            columns = np.arange(rectangle.x_from, rectangle.x_to + 1) - self._west
            self._cells[rows, columns % self._side] = MISSING

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        height, width = self._cells.shape
        return height, width

    def bands(self, max_cells: int) -> Iterator[CellRectangle]:
        """Splits the map into rectangles of whole rows, of at most `max_cells` cells or one row."""
        height, width = self.shape
        rows = max(1, max_cells // width)
        east = self._west + width - 1
        for top in range(self._north, self._north + height, rows):
            bottom = min(top + rows, self._north + height) - 1
            yield CellRectangle(self._west, min(east, self._side - 1), top, bottom)
            if east >= self._side:
                yield CellRectangle(0, east - self._side, top, bottom)

    def mark(self, x: int, y: int, label: str) -> None:
        """Sets the label of a cell's best tile. Cells outside the region are ignored."""
        index = y - self._north, (x - self._west) % self._side
        if self._cells[index] != _OUTSIDE:
            self._cells[index] = KIND_OF_LABEL[label]

    def mark_all(self, rectangle: CellRectangle, kind: int) -> None:
        """Sets the kind of the region's cells in a rectangle."""
        rows = slice(rectangle.y_from - self._north, rectangle.y_to - self._north + 1)
        columns = (np.arange(rectangle.x_from, rectangle.x_to + 1) - self._west) % self._side
        columns = columns[columns < self._cells.shape[1]]
        cells = self._cells[rows, columns]
        self._cells[rows, columns] = np.where(cells == _OUTSIDE, _OUTSIDE, kind)

    def count(self, kind: int) -> int:
        """Number of cells of a kind."""
        return int(np.count_nonzero(self._cells == kind))

    def save(self, path: Path | IO[bytes], title: str) -> None:
        """Draws a PNG; raises OSError if it cannot be written."""
        height, width = self.shape
        figure = Figure(figsize=_figure_size(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        self._draw_cells(axes)
        self._draw_grid(axes)
        self._draw_outlines(axes)
        self._draw_scale(axes)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
        self._draw_legend(figure)
        # High enough that a single missing cell is at least one pixel.
        dpi = max(150.0, 1.25 * max(width / figure.get_figwidth(), height / figure.get_figheight()))
        dpi = min(dpi, _MAX_PIXELS / max(figure.get_size_inches()))
        figure.savefig(path, format="png", dpi=dpi, facecolor="white")

    def _draw_cells(self, axes: Axes) -> None:
        height, width = self.shape
        axes.imshow(
            self._cells,
            cmap=ListedColormap(KIND_COLOURS),
            vmin=0,
            vmax=len(_KINDS) - 1,
            extent=(0, width, height, 0),
            interpolation="nearest" if max(width, height) < _MAX_PIXELS else "antialiased",
            interpolation_stage="rgba",
            aspect="equal" if 0.35 <= height / width <= 1.6 else "auto",
        )
        if max(width, height) <= 64:
            axes.hlines(range(1, height), 0, width, colors="white", linewidth=0.6)
            axes.vlines(range(1, width), 0, height, colors="white", linewidth=0.6)

    def _draw_grid(self, axes: Axes) -> None:
        height, width = self.shape
        box = cell_bounds(self.zoom, self._west, self._north)
        south = cell_bounds(self.zoom, 0, self._north + height - 1).south
        longitudes = _round_degrees(box.west, box.west + width / self._side * 360)
        latitudes = _round_degrees(south, box.north)
        axes.set_xticks(
            [(degrees + 180) / 360 * self._side - self._west for degrees in longitudes],
            _name_degrees(longitudes, "E", "W"),
        )
        axes.set_yticks(
            [row_position(self.zoom, degrees) - self._north for degrees in latitudes],
            _name_degrees(latitudes, "N", "S"),
        )
        axes.grid(color="#14202b", alpha=0.35, linewidth=0.6)
        axes.tick_params(length=3, labelsize=9, color="#52606d", labelcolor="#323f4b")
        axes.spines[:].set_color("#52606d")

    def _draw_outlines(self, axes: Axes) -> None:
        height, width = self.shape
        for line in self._outlines:
            column = (line[:, 0] + 180.0) / 360.0 * self._side - self._west
            row = [row_position(self.zoom, latitude) - self._north for latitude in line[:, 1]]
            # The region may lie on another turn around the world.
            turns = np.floor(column.min() / self._side) * self._side
            for turn in (turns, turns + self._side):
                axes.plot(column - turn, row, color="#14202b", linewidth=1.2, alpha=0.8)
        axes.set(xlim=(0, width), ylim=(height, 0))

    def _draw_scale(self, axes: Axes) -> None:
        """A bar of a round length, true at the map's middle."""
        height, width = self.shape
        middle = cell_bounds(self.zoom, 0, self._north + height // 2)
        cell_meters = cell_edge_meters(self.zoom, (middle.south + middle.north) / 2)
        most = width * cell_meters / 4
        power = 10 ** math.floor(math.log10(most))
        meters = next(step * power for step in (5, 2, 1) if step * power <= most)
        text = f"{meters / 1000:g} km" if meters >= 1_000 else f"{meters:g} m"
        left, bottom = width * 0.03, height * 0.95
        axes.plot(
            [left, left + meters / cell_meters], [bottom, bottom], color="#14202b", linewidth=3
        )
        axes.text(left, bottom - height * 0.015, text, fontsize=9, color="#14202b")

    def _draw_legend(self, figure: Figure) -> None:
        counts = {kind: self.count(number) for number, kind in enumerate(_KINDS[:_OUTSIDE])}
        total = sum(counts.values()) or 1
        if not counts[_KINDS[DOWNGRADED]]:
            # Nor is it told from usable for another day.
            del counts[_KINDS[DOWNGRADED]]
        figure.legend(
            handles=[Patch(facecolor=kind.colour, edgecolor="#52606d") for kind in counts],
            labels=[
                f"{kind.text}  {count:,} ({count / total:.1%})" for kind, count in counts.items()
            ],
            loc="outside lower center",
            ncols=len(counts),
            frameon=False,
            fontsize=9,
            columnspacing=1.5,
        )


def map_of(zoom: int, region: Region) -> CoverageMap | None:
    """The map of a region that the daemon has accepted; None if it has no cells. All of its cells
    are usable until others are marked."""
    rectangles = list(region_cells(zoom, region))
    if not rectangles:
        return None
    coverage_map = CoverageMap(zoom, rectangles, outlines(zoom, region))
    for rectangle in rectangles:
        coverage_map.mark_all(rectangle, FRESH)
    return coverage_map


def mark(coverage_map: CoverageMap, answer: DescribeCoverageResponse) -> None:
    """Marks the missing and the stale cells of an answer."""
    for kind, areas in ((MISSING, answer.missing), (STALE, answer.stale)):
        for area in areas:
            rectangle = CellRectangle(area.x_from, area.x_to, area.y_from, area.y_to)
            coverage_map.mark_all(rectangle, kind)


def _figure_size(width: int, height: int) -> tuple[float, float]:
    """Inches. The cells are square unless that makes the figure too narrow or too flat."""
    ratio = min(max(height / width, 0.35), 1.6)
    return (9.0, 9.0 * ratio + 1.0) if ratio <= 1 else (9.0 / ratio + 1.5, 10.0)


def _round_degrees(start: float, end: float) -> list[float]:
    ticks = MaxNLocator(nbins=7, steps=[1, 2, 3, 5, 6, 10]).tick_values(start, end)
    return [float(tick) for tick in ticks if start <= tick <= end]


def _name_degrees(ticks: Sequence[float], positive: str, negative: str) -> list[str]:
    step = min((after - before for before, after in pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    names = []
    for tick in ticks:
        degrees = round((tick + 180) % 360 - 180, decimals)
        hemisphere = positive if degrees > 0 else negative if degrees < 0 else ""
        names.append(f"{abs(degrees):.{decimals}f}°{hemisphere}")
    return names


def _narrowest_window(side: int, rectangles: Sequence[CellRectangle]) -> tuple[int, int]:
    """First column and width of the narrowest window that contains all rectangles.

    It may cross the antimeridian.
    """
    used = np.zeros(side, bool)
    for rectangle in rectangles:
        used[rectangle.x_from : rectangle.x_to + 1] = True
    columns = np.flatnonzero(used)
    following = np.roll(columns, -1)
    following[-1] += side
    widest_gap = int(np.argmax(following - columns))
    if following[widest_gap] - columns[widest_gap] == 1:
        return 0, side
    west = int(following[widest_gap]) % side
    return west, (int(columns[widest_gap]) - west) % side + 1
