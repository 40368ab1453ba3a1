"""Polygons whose edges are straight in longitude and latitude."""

import importlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from tilecache_daemon.geometry.areas import Floats, Integers, Intervals, join, pair_with_bands

_NARROW_DEGREES: Final = 1e-11
"""More than the rounding error of a longitude, less than a millionth of a cell of zoom 22."""
_NO_DEGREES: Final = 1e-100
"""Less than this is 0: the slopes of edges between such latitudes would overflow."""

Positions = Sequence[tuple[float, float]]
"""Latitudes and longitudes in degrees."""


class InvalidPolygonError(ValueError):
    """The polygon has no well-defined inside; `ring` is 0 for the outer ring, else the hole's
    number."""

    def __init__(self, ring: int, description: str) -> None:
        super().__init__(description)
        self.ring = ring


class Polygon:
    """The positions within an outer ring and outside of its holes."""

    def __init__(
        self, outer: Positions, holes: Sequence[Positions] = (), *, check: bool = True
    ) -> None:
        """Raises InvalidPolygonError; without `check` not for rings that cross or overlap."""
        self.rings = (outer, *holes)
        """As they were given."""
        rings = [_unrolled(index, ring) for index, ring in enumerate((outer, *holes))]
        west, east = rings[0][:, 1].min(), rings[0][:, 1].max()
        if east - west > 360.0:
            raise InvalidPolygonError(0, "spans more than 360 degrees of longitude")
        for ring in rings[1:]:
            # A hole may have been written on the other side of the antimeridian.
            ring[:, 1] -= 360.0 * np.round((ring[:, 1].mean() - (west + east) / 2) / 360.0)
        turn = 360.0 * np.floor((west + 180.0) / 360.0)
        for ring in rings:
            ring[:, 1] -= turn
        if check:
            _check_validity(rings)
        starts, ends = (
            np.concatenate([np.roll(ring, shift, axis=0) for ring in rings]) for shift in (0, -1)
        )
        # Each edge from the south to the north.
        upward = (starts[:, 0] <= ends[:, 0])[:, None]
        self._south, self._west = np.where(upward, starts, ends).T
        self._north, self._east = np.where(upward, ends, starts).T
        self._narrowest = _NARROW_DEGREES if east - west > 2 * _NARROW_DEGREES else -1.0
        height = self._north - self._south
        self._slope = np.divide(
            self._east - self._west, height, out=np.zeros_like(height), where=height > 0
        )

    @property
    def edges(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The southern latitudes, their longitudes, the northern latitudes and their longitudes
        of all edges. The westernmost longitude is within -180..180."""
        return self._south, self._west, self._north, self._east

    @property
    def longitudes(self) -> tuple[float, float]:
        """The westernmost and the easternmost one."""
        ends = np.concatenate([self._west, self._east])
        return float(ends.min()), float(ends.max())

    def contains(self, latitude: float, longitude: float) -> bool:
        """Whether a position is within, edges included. Computed as the store's statements do, to
        the last bit."""
        south, north = self._south, self._north
        beside = self._west + (latitude - south) * self._slope
        level = south == north
        on_level = (
            (latitude == south)
            & (np.minimum(self._west, self._east) <= longitude)
            & (longitude <= np.maximum(self._west, self._east))
        )
        on_slope = (south <= latitude) & (latitude <= north) & (longitude == beside)
        if np.where(level, on_level, on_slope).any():
            return True
        crossed = (south <= latitude) & (latitude < north) & (longitude < beside)
        return bool(np.count_nonzero(crossed) % 2)

    @property
    def latitudes(self) -> tuple[float, float]:
        return float(self._south.min()), float(self._north.max())

    def intervals(self, upper: Floats, lower: Floats) -> Intervals:
        """As `areas.Area`. What the polygon has of a band is bounded by parts of edges and by
        the band's two lines. Each position of it lies below such a part, or below the part of
        the upper line that is inside."""
        parts: list[Intervals] = []
        crossings: list[tuple[Floats, Floats]] = []
        for edge, band in pair_with_bands(self._south, self._north, upper, lower):
            top, bottom = upper[band], lower[band]
            horizontal = self._south[edge] == self._north[edge]
            start = self._longitude(edge, np.maximum(bottom, self._south[edge]))
            end = self._longitude(edge, np.minimum(top, self._north[edge]))
            end = np.where(horizontal, self._east[edge], end)
            # What a vertical edge bounds lies beside it.
            west, east = np.minimum(start, end), np.maximum(start, end)
            wide = east - west > self._narrowest
            parts.append(Intervals(band[wide], west[wide], east[wide]))
            crossing = (self._south[edge] <= top) & (top < self._north[edge])
            crossings.append((band[crossing].astype(np.float64), end[crossing]))
        if parts:
            parts.append(_between(crossings))
        return join(parts)

    def _longitude(self, edge: Integers, at: Floats) -> Floats:
        longitude: Floats = self._west[edge] + (at - self._south[edge]) * self._slope[edge]
        return longitude


def _unrolled(index: int, ring: Positions) -> Floats:
    """A ring without the repetition of its first position, with longitudes that do not jump at
    the antimeridian."""
    positions = np.array(ring, dtype=np.float64).reshape(-1, 2)
    positions[np.abs(positions) < _NO_DEGREES] = 0.0
    if len(positions) > 1 and (positions[0] == positions[-1]).all():
        positions = positions[:-1]
    if len(positions) < 3:
        raise InvalidPolygonError(index, "must have at least three different points")
    steps = np.diff(positions[:, 1], append=positions[0, 1])
    turns = np.where(steps > 180.0, -360.0, np.where(steps < -180.0, 360.0, 0.0))
    if turns.sum():
        raise InvalidPolygonError(index, "goes around a pole; split it into polygons that do not")
    positions[1:, 1] += np.cumsum(turns)[:-1]
    return positions


def _check_validity(rings: Sequence[Floats]) -> None:
    # Loaded when it is needed: it takes time and memory.
    shapely = importlib.import_module("shapely")
    outer, *holes = [ring[:, ::-1] for ring in rings]
    for index, ring in enumerate((outer, *holes)):
        reason = shapely.is_valid_reason(shapely.Polygon(ring))
        if reason != "Valid Geometry":
            raise InvalidPolygonError(index, f"is not a simple ring: {reason}")
    reason = shapely.is_valid_reason(shapely.Polygon(outer, holes))
    if reason != "Valid Geometry":
        raise InvalidPolygonError(1, f"is not a valid hole: {reason}")


def _between(crossings: Sequence[tuple[Floats, Floats]]) -> Intervals:
    """The inside of a line: from each odd crossing with an edge to the next."""
    bands, longitudes = (np.concatenate(column) for column in zip(*crossings, strict=True))
    order = np.lexsort((longitudes, bands))
    bands, longitudes = bands[order].astype(np.int64), longitudes[order]
    return Intervals(bands[::2], longitudes[::2], longitudes[1::2])
