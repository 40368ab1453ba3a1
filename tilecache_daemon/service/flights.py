"""Flights: their names and times, and the tiles that each has made."""

from tilecache_daemon.errors import FlightNotFoundError
from tilecache_daemon.models import Flight, NewFlight
from tilecache_daemon.store.store import Store


class FlightService:
    """Sets, lists and deletes flights."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def set(self, flight: NewFlight) -> Flight:
        """Records the name and times of a flight, or changes them. Its tiles stay as they are."""
        async with self._store.transaction() as queries:
            await queries.flights.set_flight(flight)
            return await queries.flights.get_flight(flight.flight_id)

    async def list(self, after: str, limit: int) -> list[Flight]:
        """Flights by id after an id, also those that only tiles tell of."""
        async with self._store.connection() as queries:
            return await queries.flights.list_flights(after, limit)

    async def delete(self, flight_id: str) -> None:
        """Deletes the name and times of a flight. Raises FlightNotFoundError if none are
        recorded."""
        async with self._store.transaction() as queries:
            if not await queries.flights.delete_flight(flight_id):
                raise FlightNotFoundError(
                    f"flight {flight_id} has no recorded name or times", flight_id=flight_id
                )
