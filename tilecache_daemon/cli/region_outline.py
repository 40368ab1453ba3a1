"""The outline of a region, for a picture of it."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

from tilecache.mercator import EARTH_RADIUS_METERS, cell_bounds
from tilecache.v1.tile_metadata_store_pb2 import Circle, Corridor, LatLng, Region

_CIRCLE_POINTS: Final = 72
_LEG_STEP_RADIANS: Final = np.radians(0.5)

Line = NDArray[np.float64]
"""Rows of longitude and latitude in degrees; longitudes do not jump at the antimeridian."""


def outlines(zoom: int, region: Region) -> Iterator[Line]:
    """The lines around a region's parts, and along its routes. Of a corridor about."""
    match region.WhichOneof("area"):
        case "bounding_box":
            box = region.bounding_box
            yield _rectangle(box.south, box.west, box.north, box.east)
        case "cell_range":
            cells = region.cell_range
            first = cell_bounds(zoom, cells.x_from, cells.y_from)
            last = cell_bounds(zoom, cells.x_to, cells.y_to)
            yield _rectangle(last.south, first.west, first.north, last.east)
        case "circle":
            yield _circle(region.circle)
        case "polygon":
            for ring in (region.polygon.outer, *region.polygon.holes):
                points = [(point.longitude, point.latitude) for point in ring.points]
                yield _unrolled(np.array([*points, points[0]]))
        case "corridor":
            yield from _corridor(region.corridor)
        case "union":
            for member in region.union.regions:
                yield from outlines(zoom, member)


def _rectangle(south: float, west: float, north: float, east: float) -> Line:
    if west > east:
        east += 360.0
    return np.array([(west, south), (east, south), (east, north), (west, north), (west, south)])


def _circle(circle: Circle) -> Line:
    phi, reach = np.radians(circle.latitude), circle.radius_meters / EARTH_RADIUS_METERS
    bearing = np.linspace(0, 2 * np.pi, _CIRCLE_POINTS + 1)
    latitude = np.arcsin(
        np.sin(phi) * np.cos(reach) + np.cos(phi) * np.sin(reach) * np.cos(bearing)
    )
    turn = np.arctan2(
        np.sin(bearing) * np.sin(reach) * np.cos(phi),
        np.cos(reach) - np.sin(phi) * np.sin(latitude),
    )
    return np.column_stack([circle.longitude + np.degrees(turn), np.degrees(latitude)])


def _corridor(corridor: Corridor) -> Iterator[Line]:
    route = _route(corridor.waypoints)
    yield route
    circles = [
        shapely.Polygon(
            _circle(Circle(latitude=y, longitude=x, radius_meters=corridor.half_width_meters))
        )
        for x, y in route
    ]
    legs = [shapely.union(before, after).convex_hull for before, after in pairwise(circles)]
    for part in shapely.get_parts(shapely.union_all(legs or circles)):
        for ring in (part.exterior, *part.interiors):
            yield shapely.get_coordinates(ring)


def _route(waypoints: Iterable[LatLng]) -> Line:
    """Waypoints, with others between them on long legs."""
    positions = np.radians([(point.longitude, point.latitude) for point in waypoints])
    cosine = np.cos(positions[:, 1])
    vectors = np.column_stack(
        [
            cosine * np.cos(positions[:, 0]),
            cosine * np.sin(positions[:, 0]),
            np.sin(positions[:, 1]),
        ]
    )
    parts = [vectors[:1]]
    for start, end in pairwise(vectors):
        angle = np.arccos(np.clip(start @ end, -1.0, 1.0))
        share = np.linspace(0, 1, int(angle / _LEG_STEP_RADIANS) + 2)[1:, None]
        if angle > _LEG_STEP_RADIANS:
            share = np.sin(share * angle) / (np.sin(share * angle) + np.sin((1 - share) * angle))
        parts.append((1 - share) * start + share * end)
    x, y, z = np.concatenate(parts).T
    return _unrolled(np.degrees(np.column_stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))])))


def _unrolled(line: Line) -> Line:
    line[:, 0] = np.unwrap(line[:, 0], period=360.0)
    return line
