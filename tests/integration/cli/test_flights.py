"""`tilecache flights`."""

import json

from tests.admin import list_flights, set_flight
from tests.integration.cli.conftest import Run
from tests.tiles import ONBOARD, YESTERDAY, Block, bulk_insert, random_flight, tile
from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import Flight


def test_a_flight_is_set_listed_and_deleted(admin: TileCacheClient, block: Block, run: Run) -> None:
    flight_id = random_flight()
    bulk_insert(
        admin,
        [tile(block.key(n, 0, ONBOARD, flight_id), disk_bytes=100_000) for n in range(3)],
    )

    done = run("flights", "set", flight_id, "--name", "survey", "--start", "2026-12-24 06:00")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Recorded flight {flight_id} (survey), with 3 tiles (300.0 kB).\n"

    listed = run("flights")
    assert listed.returncode == 0, listed.stderr
    for text in ("survey", "3 tiles", f"{YESTERDAY:%Y-%m-%d}"):
        assert text in listed.stdout

    refused = run("flights", "delete", flight_id)
    assert refused.returncode == 2
    tried = run("flights", "delete", flight_id, "--dry-run")
    assert tried.stdout == f"Would delete flight {flight_id} (survey). Nothing was changed.\n"
    assert list_flights(admin)[0].recorded
    deleted = run("flights", "delete", flight_id, "--yes")
    assert deleted.stdout == f"Deleted flight {flight_id} (survey); 3 tiles (300.0 kB) stay.\n"
    assert run("flights", "delete", flight_id, "--yes").returncode == 1
    assert [flight.recorded for flight in list_flights(admin)] == [False]


def test_a_deletion_is_confirmed_on_a_terminal(admin: TileCacheClient, answer: Run) -> None:
    flight_id = random_flight()
    set_flight(admin, Flight(flight_id=flight_id, name="survey"))

    declined = answer("n", "flights", "delete", flight_id)
    assert declined.returncode == 1
    assert "not its tiles" in declined.stderr
    assert len(list_flights(admin)) == 1
    assert answer("y", "flights", "delete", flight_id).returncode == 0
    assert list_flights(admin) == []


def test_the_list_as_json_begins_with_the_earliest_flight(
    admin: TileCacheClient, block: Block, run: Run
) -> None:
    early, late, unknown = (random_flight() for _ in range(3))
    bulk_insert(admin, [tile(block.key(0, 0, ONBOARD, late), disk_bytes=7)])
    set_flight(admin, Flight(flight_id=unknown))
    run("flights", "set", early, "--start", "2026-01-01", "--end", "2026-01-01")

    *flights, summary = map(json.loads, run("flights", "--json").stdout.splitlines())

    assert [flight["flight_id"] for flight in flights] == [early, late, unknown]
    assert {flight["kind"] for flight in flights} == {"flight"}
    first, second, _ = flights
    assert (first["started_at"], first["ended_at"]) == (
        "2026-01-01T00:00:00Z",
        "2026-01-01T23:59:59.999999Z",
    )
    assert (first["name"], first["recorded"], first["south"]) == (None, True, None)
    assert (second["tile_count"], second["pending_upload_bytes"]) == (1, 7)
    assert second["south"] < second["north"]
    assert first.keys() == second.keys()
    assert summary == {
        "kind": "summary",
        "flights": 3,
        "tile_count": 1,
        "used_bytes": 7,
        "pending_upload_count": 1,
        "pending_upload_bytes": 7,
    }


def test_a_malformed_id_is_refused(admin: TileCacheClient, run: Run) -> None:
    refused = run("flights", "set", "north")

    assert refused.returncode == 4
    assert "flight.flight_id" in refused.stderr
