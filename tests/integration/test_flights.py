"""SetFlight, ListFlights and DeleteFlight."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from psycopg.sql import SQL

from tests.admin import delete, list_flights, set_flight
from tests.tiles import (
    NOW,
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    insert,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds
from tilecache.v1.tile_cache_admin_pb2 import DeleteFlightRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    Flight,
    ListFlightsRequest,
    MarkUploadedRequest,
    UploadedTile,
)
from tilecache_daemon.store.sql import load_queries


def box(flight: Flight) -> tuple[float, float, float, float]:
    bounds = flight.bounds
    return bounds.south, bounds.west, bounds.north, bounds.east


def usage(flight: Flight) -> tuple[int, int, int, int]:
    return (
        flight.tile_count,
        flight.used_bytes,
        flight.pending_upload_count,
        flight.pending_upload_bytes,
    )


def refusal_of(client: TileCacheClient, **fields: Any) -> CallError:
    with pytest.raises(CallError) as refusal:
        set_flight(client, Flight(**fields))
    return refusal.value


def test_a_flight_is_recorded_changed_listed_and_deleted(admin: TileCacheClient) -> None:
    flight = Flight(
        flight_id=random_flight(),
        name="survey north",
        started_at=timestamp(YESTERDAY),
        ended_at=timestamp(NOW),
    )
    stored = set_flight(admin, flight)
    flight.recorded = True
    assert stored == flight
    assert list_flights(admin) == [flight]

    changed = set_flight(admin, Flight(flight_id=flight.flight_id, name="survey south"))
    assert (changed.name, changed.HasField("started_at")) == ("survey south", False)

    request = DeleteFlightRequest(flight_id=flight.flight_id)
    admin.admin.DeleteFlight(request, timeout=TIMEOUT_S)
    assert list_flights(admin) == []
    with pytest.raises(CallError) as refusal:
        admin.admin.DeleteFlight(request, timeout=TIMEOUT_S)
    assert refusal.value.code is grpc.StatusCode.NOT_FOUND
    assert refusal.value.reason == "FLIGHT_NOT_FOUND"


def test_a_bad_flight_is_refused_by_field(admin: TileCacheClient) -> None:
    flight_id = random_flight()
    for fields, field in (
        ({"flight_id": "north"}, "flight.flight_id"),
        ({"flight_id": str(UUID(int=0))}, "flight.flight_id"),
        ({"flight_id": flight_id, "name": "a" * 101}, "flight.name"),
        ({"flight_id": flight_id, "name": "two\nlines"}, "flight.name"),
        (
            {
                "flight_id": flight_id,
                "started_at": timestamp(NOW),
                "ended_at": timestamp(YESTERDAY),
            },
            "flight.ended_at",
        ),
    ):
        error = refusal_of(admin, **fields)
        assert error.reason == "INVALID_REQUEST"
        assert [violation.field for violation in error.violations] == [field]
    assert list_flights(admin) == []


def test_a_flight_that_only_tiles_tell_of_is_listed_with_them(
    admin: TileCacheClient, block: Block
) -> None:
    flight_id = random_flight()
    keys = [block.key(column, 0, ONBOARD, flight_id) for column in (0, 7)]
    bulk_insert(
        admin,
        [
            tile(keys[0], disk_bytes=10, captured_at=YESTERDAY),
            tile(keys[1], disk_bytes=200, captured_at=NOW - timedelta(hours=1)),
            tile(block.key(0, 0), disk_bytes=3_000),
            tile(block.key(0, 0, ONBOARD, random_flight()), disk_bytes=1),
        ],
    )
    mark = UploadedTile(tile_uuid=tile_uuid(keys[0]), content_sha256=sha256("picture"))
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[mark]), timeout=TIMEOUT_S)

    assert len(list_flights(admin)) == 2
    (flight,) = (each for each in list_flights(admin) if each.flight_id == flight_id)

    assert not flight.recorded
    assert usage(flight) == (2, 210, 1, 200)
    assert flight.first_captured_at == timestamp(YESTERDAY)
    assert flight.last_captured_at == timestamp(NOW - timedelta(hours=1))
    first, last = (cell_bounds(key.zoom, key.x, key.y) for key in keys)
    assert box(flight) == (first.south, first.west, first.north, last.east)


def test_the_usage_of_a_flight_follows_each_change(admin: TileCacheClient, block: Block) -> None:
    flight_id = set_flight(admin, Flight(flight_id=random_flight(), name="one")).flight_id
    keys = [block.key(column, 0, ONBOARD, flight_id) for column in range(3)]

    def listed() -> tuple[int, int, int, int]:
        (flight,) = list_flights(admin)
        return usage(flight)

    assert listed() == (0, 0, 0, 0)
    bulk_insert(admin, [tile(key, disk_bytes=100) for key in keys])
    assert listed() == (3, 300, 3, 300)
    newer = tile(keys[0], "newer", NOW, disk_bytes=30, file_path="newer.jpg")
    insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)
    assert listed() == (3, 230, 3, 230)
    delete(admin, flight_id=flight_id, include_pending_uploads=True)
    assert listed() == (0, 0, 0, 0)
    (flight,) = list_flights(admin)
    assert (flight.recorded, flight.HasField("bounds")) == (True, False)
    assert not flight.HasField("first_captured_at")


def test_the_area_of_several_zooms_holds_all_of_them(admin: TileCacheClient) -> None:
    flight_id = random_flight()
    bulk_insert(
        admin,
        [
            tile(tile_key(4, 9, 5, ONBOARD, flight_id)),
            tile(tile_key(10, 640, 300, ONBOARD, flight_id)),
        ],
    )

    (flight,) = list_flights(admin)

    coarse, fine = cell_bounds(4, 9, 5), cell_bounds(10, 640, 300)
    assert box(flight) == (coarse.south, coarse.west, fine.north, fine.east)


def test_an_area_across_the_antimeridian_is_narrow(admin: TileCacheClient) -> None:
    flight_id = random_flight()
    bulk_insert(
        admin, [tile(tile_key(10, x, 300, ONBOARD, flight_id)) for x in (1_022, 1_023, 0, 1)]
    )

    (flight,) = list_flights(admin)

    _, west, _, east = box(flight)
    assert (west, east) == (cell_bounds(10, 1_022, 300).west, cell_bounds(10, 1, 300).east)
    assert west > east


def test_pages_list_each_flight_once(admin: TileCacheClient, block: Block) -> None:
    flights = [random_flight() for _ in range(7)]
    for flight_id in flights[:3]:
        set_flight(admin, Flight(flight_id=flight_id))
    bulk_insert(admin, [tile(block.key(0, 0, ONBOARD, flight_id)) for flight_id in flights[2:]])

    assert [each.flight_id for each in list_flights(admin, page_size=2)] == sorted(flights)
    with pytest.raises(CallError, match="page_token"):
        admin.store.ListFlights(ListFlightsRequest(page_token="2"), timeout=TIMEOUT_S)


def test_rows_of_other_writers_do_not_break_the_list(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    flight_id = random_flight()
    key = block.key(0, 0, ONBOARD, flight_id)
    store_row(sql, key, x=-5, y=1 << 30, disk_bytes=None)
    store_row(sql, block.key(1, 0, ONBOARD, flight_id), zoom=77, disk_bytes=(1 << 63) - 1)
    store_row(sql, block.key(2, 0, ONBOARD, flight_id), disk_bytes=(1 << 63) - 1)

    (flight,) = list_flights(admin)

    assert (flight.tile_count, flight.used_bytes) == (3, (1 << 63) - 1)
    assert flight.bounds.west == -180


def test_the_cost_of_the_list_follows_the_flights_and_not_the_tiles(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    flights = [random_flight() for _ in range(3)]
    for flight_id in flights:
        bulk_insert(
            admin,
            [tile(block.key(n % 100, n // 100, ONBOARD, flight_id)) for n in range(3_000)],
        )
    sql.execute("ANALYZE tiles")

    statement = SQL("EXPLAIN (ANALYZE, FORMAT JSON) " + load_queries("flights")["list_flights"])
    parameters = {"after": str(UUID(int=0)), "flight_id": None, "limit": 1_001}
    (((plan,),),) = sql.execute(statement, parameters).fetchall()

    extremes = 8
    assert 0 < tiles_read(plan["Plan"]) <= extremes * len(flights)


def tiles_read(node: dict[str, Any]) -> float:
    """How many rows of tiles a plan has read."""
    below = sum(map(tiles_read, node.get("Plans", [])))
    own = node["Actual Rows"] * node["Actual Loops"] if node.get("Relation Name") == "tiles" else 0
    return below + float(own)


def test_differences_of_flights_are_summed_up(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    flight_id = random_flight()
    sql.execute(
        "INSERT INTO tile_flight_usage SELECT %s, 18, 1, 5, 0, 0 FROM generate_series(1, 1200)",
        [flight_id],
    )

    def rows() -> list[Any]:
        query = "SELECT tile_count, used_bytes FROM tile_flight_usage WHERE flight_id = %s"
        return sql.execute(query, [flight_id]).fetchall()

    eventually(lambda: rows() == [(1_200, 6_000)])
