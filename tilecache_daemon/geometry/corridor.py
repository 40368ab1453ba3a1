"""All positions within a distance of a route on the sphere.

A leg is split where a great circle turns in latitude, so that each part of it goes north or
south alone. What the corridor of such a part has of a band of latitudes is connected, so its
longitudes are one interval. Its boundary consists of the circles around the part's ends and,
between them, of two circles parallel to the great circle. The ends of the interval lie where the
boundary meets the band's lines, or where a circle around an end is widest. Where a meridian touches
a parallel circle, the corridor is narrowest.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import EARTH_RADIUS_METERS
from tilecache_daemon.geometry.areas import Floats, Integers, Intervals, join, pair_with_bands

_NEARLY_ANTIPODAL: Final = 1e-6


class AntipodalLegError(ValueError):
    """A leg has no shortest line; `waypoint` is the index of its end."""

    def __init__(self, waypoint: int) -> None:
        super().__init__("is opposite the waypoint before it on the globe")
        self.waypoint = waypoint


class _Ends(NamedTuple):
    """The ends of parts, in radians, and the widest latitude of the circles around them."""

    latitude: Floats
    longitude: Floats
    widest: Floats


class Corridor:
    """The positions within `half_width_meters` of the legs between some waypoints."""

    def __init__(self, waypoints: Sequence[tuple[float, float]], half_width_meters: float) -> None:
        """Latitudes and longitudes in degrees. Raises AntipodalLegError."""
        self._width = half_width_meters / EARTH_RADIUS_METERS
        positions = np.radians(np.array(waypoints, dtype=np.float64).reshape(-1, 2))
        self._lay_out(positions)
        low = np.minimum(self._starts.latitude, self._ends.latitude) - self._width
        high = np.maximum(self._starts.latitude, self._ends.latitude) + self._width
        self._south = np.degrees(np.maximum(low, -np.pi / 2))
        self._north = np.degrees(np.minimum(high, np.pi / 2))

    @property
    def latitudes(self) -> tuple[float, float]:
        return float(self._south.min()), float(self._north.max())

    def intervals(self, upper: Floats, lower: Floats) -> Intervals:
        """As `areas.Area`."""
        parts = []
        for part, band in pair_with_bands(self._south, self._north, upper, lower):
            top = np.radians(np.minimum(upper[band], self._north[part]))
            bottom = np.radians(np.maximum(lower[band], self._south[part]))
            found = np.stack([*self._at_ends(part, top, bottom), *self._beside(part, top, bottom)])
            west, east = np.fmin.reduce(found), np.fmax.reduce(found)
            overlapping = ~np.isnan(west)
            parts.append(
                Intervals(
                    band[overlapping],
                    np.degrees(west[overlapping]),
                    np.degrees(east[overlapping]),
                )
            )
        return join(parts)

    def _lay_out(self, positions: Floats) -> None:
        """Splits the legs, and describes each part by the plane of its great circle."""
        latitude, longitude = positions[:-1].T
        towards = _tangents(positions)
        length = np.arctan2(np.linalg.norm(towards, axis=1), _cosines(positions))
        if len(antipodal := np.flatnonzero(length > np.pi - _NEARLY_ANTIPODAL)):
            raise AntipodalLegError(int(antipodal[0]) + 1)
        # A leg of no length is a circle, whatever its direction.
        towards[length == 0] = (0.0, 1.0)
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        start = _vectors(latitude, longitude)
        along = towards[:, :1] * _easts(longitude) + towards[:, 1:] * _norths(latitude, longitude)
        turn = np.arctan2(along[:, 2], start[:, 2]) % np.pi
        turning = (turn > 0) & (turn < length)
        splits = np.where(turning, turn, length)
        leg = np.concatenate([np.arange(len(length)), np.flatnonzero(turning)])
        self._from = np.concatenate([np.zeros_like(length), turn[turning]])
        self._to = np.concatenate([splits, length[turning]])
        if len(positions) == 1:
            start, along = _vectors(*positions.T), _norths(*positions.T)
            leg, self._from, self._to = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1)
            longitude = positions[:, 1]
        self._start, self._along = start[leg], along[leg]
        self._normal = np.cross(self._start, self._along)
        self._longitude = longitude[leg]
        self._starts, self._ends = (self._ends_at(angle) for angle in (self._from, self._to))

    def _ends_at(self, angle: Floats) -> _Ends:
        positions = _along(self._start, self._along, angle)
        latitude = np.arctan2(positions[:, 2], np.hypot(positions[:, 0], positions[:, 1]))
        widest = np.arcsin(np.clip(np.sin(latitude) / np.cos(self._width), -1.0, 1.0))
        return _Ends(latitude, self._unrolled(positions, self._longitude), widest)

    def _unrolled(self, positions: Floats, near: Floats) -> Floats:
        """The longitudes of positions of legs, of which none is as long as half a circle."""
        longitude: Floats = near + _wrapped(np.arctan2(positions[:, 1], positions[:, 0]) - near)
        return longitude

    def _at_ends(self, part: Integers, top: Floats, bottom: Floats) -> Iterator[Floats]:
        """The western- and easternmost longitudes of the circles in bands; NaN if apart."""
        for ends in (self._starts, self._ends):
            centre, longitude, widest = (column[part] for column in ends)
            high = np.minimum(top, centre + self._width)
            low = np.maximum(bottom, centre - self._width)
            width = np.maximum(self._half_width(centre, high), self._half_width(centre, low))
            within = (low < widest) & (widest < high)
            width[within] = self._half_width(centre[within], widest[within])
            width[low > high] = np.nan
            yield longitude - width
            yield longitude + width

    def _half_width(self, centre: Floats, latitude: Floats) -> Floats:
        """The difference of longitude between a circle's centre and its edge at a latitude, by
        the haversine formula; half a circle where the circle goes around the pole."""
        rest = np.sin(self._width / 2) ** 2 - np.sin((latitude - centre) / 2) ** 2
        scale = np.cos(centre) * np.cos(latitude)
        ratio = np.divide(np.maximum(rest, 0.0), scale, out=np.ones_like(rest), where=scale > 1e-12)
        half_width: Floats = 2 * np.arcsin(np.sqrt(np.minimum(ratio, 1.0)))
        return half_width

    def _beside(self, part: Integers, top: Floats, bottom: Floats) -> Iterator[Floats]:
        """Longitudes where the parallel circles meet the lines of bands; NaN where they do not, or
        where it is beside another part of the great circle."""
        normal = self._normal[part]
        tilt, flat = normal[:, 2], np.hypot(normal[:, 0], normal[:, 1])
        node = np.arctan2(normal[:, 1], normal[:, 0])
        for sine in (np.sin(self._width), -np.sin(self._width)):
            for latitude in (top, bottom):
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    cosine = (sine - tilt * np.sin(latitude)) / (np.cos(latitude) * flat)
                    angle = np.arccos(cosine)
                for longitude in (node - angle, node + angle):
                    yield self._near_part(part, latitude, longitude)

    def _near_part(self, part: Integers, latitude: Floats, longitude: Floats) -> Floats:
        positions = _vectors(latitude, longitude)
        start, along = self._start[part], self._along[part]
        foot = np.arctan2((positions * along).sum(axis=1), (positions * start).sum(axis=1))
        below = self._unrolled(_along(start, along, foot), self._longitude[part])
        found: Floats = below + _wrapped(longitude - below)
        found[~((foot >= self._from[part]) & (foot <= self._to[part]))] = np.nan
        return found


def _tangents(positions: Floats) -> Floats:
    """The directions of legs at their starts, east and north, by the sine of their lengths: from
    differences, because those of short legs would drown in the rounding of vectors."""
    latitude, next_latitude = positions[:-1, 0], positions[1:, 0]
    step = np.diff(positions[:, 1])
    east = np.cos(next_latitude) * np.sin(step)
    north = np.sin(next_latitude - latitude) + (
        2 * np.cos(next_latitude) * np.sin(latitude) * np.sin(step / 2) ** 2
    )
    return np.column_stack([east, north])


def _cosines(positions: Floats) -> Floats:
    vectors = _vectors(*positions.T)
    cosines: Floats = (vectors[:-1] * vectors[1:]).sum(axis=1)
    return cosines


def _vectors(latitude: Floats, longitude: Floats) -> Floats:
    cosine = np.cos(latitude)
    return np.column_stack(
        [cosine * np.cos(longitude), cosine * np.sin(longitude), np.sin(latitude)]
    )


def _easts(longitude: Floats) -> Floats:
    return np.column_stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)])


def _norths(latitude: Floats, longitude: Floats) -> Floats:
    sine = np.sin(latitude)
    return np.column_stack([-sine * np.cos(longitude), -sine * np.sin(longitude), np.cos(latitude)])


def _along(start: Floats, along: Floats, angle: Floats) -> Floats:
    positions: Floats = start * np.cos(angle)[:, None] + along * np.sin(angle)[:, None]
    return positions


def _wrapped(angle: NDArray[np.float64]) -> Floats:
    """The same angle within half a circle of 0."""
    wrapped: Floats = angle - 2 * np.pi * np.round(angle / (2 * np.pi))
    return wrapped
