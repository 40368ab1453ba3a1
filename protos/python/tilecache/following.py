"""Which area to follow, so that a moving caller seldom asks for another one."""

from __future__ import annotations

import math
from typing import Final, Iterable, NamedTuple, Sequence

from tilecache.identity import MAX_ZOOM
from tilecache.mercator import (
    BLOCK_BITS,
    EARTH_RADIUS_METERS,
    BlockKey,
    BoundingBox,
    CellRectangle,
    blocks_in,
    cells_in_box,
    cells_in_circle,
)
from tilecache.v1.tile_metadata_store_pb2 import Circle, Region, WatchedArea

MARGIN: Final = 0.25
"""The part of the radius by which the circle that is followed is larger than the one that was
asked for."""
LOOK_AHEAD_S: Final = 10.0
"""How long the caller can fly at the velocity that it gave until another circle is needed."""
MAX_BLOCKS: Final = 65_536
"""Many more than a daemon allows to follow."""
_MAX_RADIUS_METERS: Final = 20_015_087
"""The contract's `max_radius_meters`: half the way around the earth."""


class FollowedCircle(NamedTuple):
    """A circle that contains every circle of `radius_meters` that is needed for a while."""

    latitude: float
    longitude: float
    reach_meters: float
    radius_meters: float
    zooms: tuple[int, ...]

    def suffices(
        self, latitude: float, longitude: float, radius_meters: float, zooms: tuple[int, ...]
    ) -> bool:
        """Whether a circle lies within this one, which is not much larger than needed."""
        if zooms != self.zooms or radius_meters != self.radius_meters:
            return False
        distance = _distance_meters(self.latitude, self.longitude, latitude, longitude)
        return distance + radius_meters <= self.reach_meters

    @property
    def areas(self) -> list[WatchedArea]:
        circle = Circle(
            latitude=self.latitude, longitude=self.longitude, radius_meters=self.reach_meters
        )
        return [WatchedArea(zoom=zoom, region=Region(circle=circle)) for zoom in self.zooms]


def circle_to_follow(
    latitude: float,
    longitude: float,
    radius_meters: float,
    zooms: Iterable[int],
    velocity_mps: tuple[float, float],
) -> FollowedCircle:
    """A circle with a margin around the one that is needed, most of it ahead of the caller.

    `velocity_mps` is northward and eastward. Raises ValueError for a position, a radius or a
    zoom that is out of range.
    """
    levels = tuple(sorted(set(zooms)))
    _check(latitude, longitude, radius_meters, levels)
    north, east = velocity_mps
    speed = math.hypot(north, east)
    margin = max(MARGIN * radius_meters, LOOK_AHEAD_S * speed)
    reach = min(radius_meters + margin, _MAX_RADIUS_METERS)
    if speed > 0:
        # Not by all of it: rounding must not put the circle that is needed outside.
        ahead = 0.9 * margin / speed
        latitude, longitude = _moved(latitude, longitude, north * ahead, east * ahead)
    return FollowedCircle(latitude, longitude, reach, radius_meters, levels)


def blocks_of_areas(areas: Sequence[WatchedArea]) -> frozenset[BlockKey]:
    """The blocks that areas cover. Raises ValueError for a region of another kind than a
    bounding box, a circle or a cell range, and for more than `MAX_BLOCKS`."""
    blocks: set[BlockKey] = set()
    for area in areas:
        for cells in _cells(area):
            # Before they are listed: a mistaken radius or zoom may give millions.
            if len(blocks) + _block_count(cells) > MAX_BLOCKS:
                raise ValueError(f"the areas cover more than {MAX_BLOCKS} blocks of 32 x 32 cells")
            blocks.update(blocks_in(area.zoom, (cells,)))
    return frozenset(blocks)


def _block_count(cells: CellRectangle) -> int:
    columns = (cells.x_to >> BLOCK_BITS) - (cells.x_from >> BLOCK_BITS) + 1
    return columns * ((cells.y_to >> BLOCK_BITS) - (cells.y_from >> BLOCK_BITS) + 1)


def _cells(area: WatchedArea) -> Iterable[CellRectangle]:
    region, kind = area.region, area.region.WhichOneof("area")
    if kind == "circle":
        circle = region.circle
        return cells_in_circle(area.zoom, circle.latitude, circle.longitude, circle.radius_meters)
    if kind == "bounding_box":
        box = region.bounding_box
        return cells_in_box(area.zoom, BoundingBox(box.south, box.west, box.north, box.east))
    if kind == "cell_range":
        cells = region.cell_range
        return [CellRectangle(cells.x_from, cells.x_to, cells.y_from, cells.y_to)]
    raise ValueError(f"a replica follows boxes, circles and cell ranges, not {kind}")


def _check(latitude: float, longitude: float, radius_meters: float, zooms: Sequence[int]) -> None:
    if not -90 <= latitude <= 90:
        raise ValueError(f"latitude is {latitude}, must be within -90..90 degrees")
    if not -180 <= longitude <= 180:
        raise ValueError(f"longitude is {longitude}, must be within -180..180 degrees")
    if not 0 < radius_meters <= _MAX_RADIUS_METERS:
        raise ValueError(
            f"radius_meters is {radius_meters}, must be more than 0"
            f" and at most {_MAX_RADIUS_METERS}"
        )
    if not zooms:
        raise ValueError("zooms must not be empty")
    for zoom in zooms:
        if not 0 <= zoom <= MAX_ZOOM:
            raise ValueError(f"zooms has {zoom}, must be within 0..{MAX_ZOOM}")


def _distance_meters(
    latitude: float, longitude: float, to_latitude: float, to_longitude: float
) -> float:
    """On the sphere, by the haversine formula."""
    from_phi, to_phi = math.radians(latitude), math.radians(to_latitude)
    half_phi = (to_phi - from_phi) / 2
    half_lambda = math.radians(to_longitude - longitude) / 2
    chord = (
        math.sin(half_phi) ** 2 + math.cos(from_phi) * math.cos(to_phi) * math.sin(half_lambda) ** 2
    )
    return 2 * EARTH_RADIUS_METERS * math.asin(min(math.sqrt(chord), 1.0))


def _moved(
    latitude: float, longitude: float, north_meters: float, east_meters: float
) -> tuple[float, float]:
    """A position after a short way."""
    to_latitude = latitude + math.degrees(north_meters / EARTH_RADIUS_METERS)
    to_latitude = min(max(to_latitude, -89.9), 89.9)
    circle_meters = EARTH_RADIUS_METERS * math.cos(math.radians(to_latitude))
    to_longitude = longitude + math.degrees(east_meters / circle_meters)
    return to_latitude, (to_longitude + 180) % 360 - 180
