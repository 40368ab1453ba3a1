"""What a file holds: lines and areas, as positions in degrees."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

Position = tuple[float, float]
"""Latitude and longitude."""
Line = list[Position]

_LONGEST_EDGE_DEGREES: Final = 120.0


class FlightPlanError(ValueError):
    """The file has no route or area that can be read; the message says why."""


class PolygonShape(NamedTuple):
    """An outer ring and holes."""

    outer: Line
    holes: Sequence[Line] = ()


class CircleShape(NamedTuple):
    """A circle on the ground."""

    centre: Position
    radius_meters: float


class CorridorShape(NamedTuple):
    """All positions within a distance of a line."""

    line: Line
    half_width_meters: float


AreaShape = PolygonShape | CircleShape | CorridorShape


@dataclass(slots=True)
class Shapes:
    """The lines and areas of a file."""

    lines: list[Line] = field(default_factory=list)
    areas: list[AreaShape] = field(default_factory=list)
    other_count: int = 0
    """Positions that belong to neither, such as points of interest."""


def position(where: str, latitude: Any, longitude: Any) -> Position:
    """A checked position; `where` names it in an error. Its longitude may be one of the next turn
    around the world, as map editors write them: see `wrapped`."""
    numbers = []
    for name, value, most in (("latitude", latitude, 90.0), ("longitude", longitude, 540.0)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise FlightPlanError(f"{where}: {name} {value!r} is not a number") from None
        if isinstance(value, bool) or not -most <= number <= most:
            raise FlightPlanError(f"{where}: {name} {value} is not within -{most:g}..{most:g}")
        numbers.append(number)
    latitude, longitude = numbers
    return latitude, longitude


def wrapped(each: Position) -> Position:
    """The position with a longitude within -180..180."""
    latitude, longitude = each
    return latitude, longitude if abs(longitude) <= 180 else (longitude + 180.0) % 360.0 - 180.0


def split_long_edges(ring: Sequence[Position]) -> Iterator[Position]:
    """The ring with further positions on edges that go the long way round, as RFC 7946 has them:
    the contract's edges go the short way."""
    for index, (latitude, longitude) in enumerate(ring):
        next_latitude, next_longitude = ring[(index + 1) % len(ring)]
        yield latitude, longitude
        step = next_longitude - longitude
        if abs(step) <= 180.0:
            continue
        count = math.ceil(abs(step) / _LONGEST_EDGE_DEGREES)
        for part in range(1, count):
            share = part / count
            yield latitude + share * (next_latitude - latitude), longitude + share * step


def without_repetitions(positions: Iterable[Position]) -> Line:
    """The positions, wrapped, each only once where it follows itself."""
    line: Line = []
    for each in map(wrapped, positions):
        if not line or line[-1] != each:
            line.append(each)
    return line
