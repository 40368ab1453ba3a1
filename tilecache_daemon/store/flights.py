"""Flights: their names and times, and the tiles that each has made."""

from collections.abc import Sequence
from typing import Any

from tilecache.identity import NO_FLIGHT_UUID
from tilecache.mercator import BoundingBox, cell_bounds
from tilecache_daemon.models import Flight, NewFlight
from tilecache_daemon.store.statements import Statements
from tilecache_daemon.store.usage import FOLD_LOCK

Extent = tuple[int, int | None, int | None, int | None, int | None, int, int]
"""Of the tiles of a zoom: first and last column in the western half of the map and in the eastern
one, first and last row."""


class FlightQueries(Statements):
    """Queries on flights. Their cost follows the number of flights, not that of tiles: triggers
    record the usage as differences, and the least and greatest of a flight are in indexes."""

    async def list_flights(self, after: str, limit: int) -> list[Flight]:
        """Flights by id, after an id, also those that only tiles tell of."""
        return await self._flights({"after": after, "flight_id": None, "limit": limit})

    async def get_flight(self, flight_id: str) -> Flight:
        """The flight with an id, which must exist."""
        parameters = {"after": str(NO_FLIGHT_UUID), "flight_id": flight_id, "limit": 1}
        (flight,) = await self._flights(parameters)
        return flight

    async def set_flight(self, flight: NewFlight) -> None:
        """Records the name and times of a flight, or changes them."""
        await self._execute("set_flight", flight._asdict())

    async def delete_flight(self, flight_id: str) -> bool:
        """Returns whether the flight was recorded."""
        return bool(await self._rows("delete_flight", {"flight_id": flight_id}))

    async def count_usage_rows(self) -> int:
        """How many differences are not summed up yet."""
        return int(await self._value("count_flight_usage_rows"))

    async def fold_usage(self) -> None:
        """Sums up the differences, unless another transaction is doing so."""
        await self._execute("fold_flight_usage", {"key": FOLD_LOCK})

    async def _flights(self, parameters: dict[str, object]) -> list[Flight]:
        return [_flight(*row) for row in await self._rows("list_flights", parameters)]


def _flight(*columns: Any) -> Flight:
    *values, extents = columns
    flight = Flight._make((*values, _bounds(extents)))
    return flight._replace(
        used_bytes=int(flight.used_bytes), pending_bytes=int(flight.pending_bytes)
    )


def _bounds(extents: Sequence[Extent]) -> BoundingBox | None:
    """The narrower of two boxes around some tiles: the one that does not cross the antimeridian,
    and the one that does."""
    if not extents:
        return None
    south, north = 90.0, -90.0
    west_half: list[float] = []
    east_half: list[float] = []
    for zoom, west_from, west_to, east_from, east_to, y_from, y_to in extents:
        south = min(south, _clamped(zoom, 0, y_to).south)
        north = max(north, _clamped(zoom, 0, y_from).north)
        for half, x_from, x_to in (
            (west_half, west_from, west_to),
            (east_half, east_from, east_to),
        ):
            if x_from is not None and x_to is not None:
                half.extend((_clamped(zoom, x_from, 0).west, _clamped(zoom, x_to, 0).east))
    west, east = min(west_half + east_half), max(west_half + east_half)
    if west_half and east_half and min(east_half) - max(west_half) > 360 - (east - west):
        west, east = min(east_half), max(west_half)
    return BoundingBox(south, west, north, east)


def _clamped(zoom: int, x: int, y: int) -> BoundingBox:
    """The bounds of a cell, or of the nearest one: rows of other writers may have any numbers."""
    last = (1 << zoom) - 1
    return cell_bounds(zoom, min(max(x, 0), last), min(max(y, 0), last))
