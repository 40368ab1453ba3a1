"""`tilecache derive`, `get` and `query`."""

import json
import subprocess
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import (
    FLIGHT,
    ONBOARD,
    YESTERDAY,
    bulk_insert,
    insert,
    location_hash,
    tile,
    tile_key,
    tile_uuid,
)
from tilecache.v1.tile_identity_pb2 import TileKey

Ran = subprocess.CompletedProcess[str]
KEY = tile_key(18, 154321, 95812)
FLOWN = tile_key(18, 154321, 95812, ONBOARD, FLIGHT)


@pytest.fixture(scope="module")
def filled(shared_daemon: DaemonProcess) -> DaemonProcess:
    """A daemon with two tiles of one cell, and a square of zoom 5."""
    quality = {"blur": 0.5}
    insert(shared_daemon.client, tile(KEY))
    insert(
        shared_daemon.client,
        tile(FLOWN, captured_at=YESTERDAY - timedelta(days=9), quality_metadata=quality),
    )
    bulk_insert(shared_daemon.client, [tile(tile_key(5, x, y)) for x in range(4) for y in range(3)])
    return shared_daemon


def run(daemon: DaemonProcess, *arguments: object) -> Ran:
    return run_tilecache(*arguments, "--socket", daemon.socket_path)


def json_lines(ran: Ran) -> list[dict[str, object]]:
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_derive_prints_the_ids() -> None:
    shown = run_tilecache("derive", 18, 154321, 95812)
    assert shown.returncode == 0
    assert shown.stdout.split() == [
        *("tile_uuid", "17f7ac7e-6c25-5050-a7cd-b6578cd5f323"),
        *("location_hash", "8d180ffb-bd42-5cb4-a4d6-628829b798b6"),
    ]


def test_derive_prints_json() -> None:
    arguments = ("20", "617284", "383250", "--source", "onboard_ingest", "--flight", FLIGHT)
    shown = run_tilecache("derive", *arguments, "--json")
    assert json.loads(shown.stdout) == {
        "tile_uuid": "24721fde-bf91-587b-a5e5-1c21bec0b3ad",
        "location_hash": location_hash(tile_key(20, 617284, 383250)),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["23", "0", "0"], "zoom is 23, must be within 0..22"),
        (["1", "2", "0"], "x is 2, must be within 0..1 at zoom 1"),
        (["1", "0", "0", "--flight", "LX1"], "flight_id is 'LX1', not a UUID"),
        (["1", "0", "0", "--source", "bing"], "'bing' is not one of"),
        (["one", "0", "0"], "'one' is not a valid integer"),
    ],
)
def test_derive_refuses_invalid_tiles(arguments: list[str], message: str) -> None:
    refused = run_tilecache("derive", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([tile_uuid(FLOWN)], FLOWN),
        (["18", "154321", "95812"], KEY),
        (["18", "154321", "95812", "--source", "onboard_ingest", "--flight", FLIGHT], FLOWN),
    ],
)
def test_get_shows_a_tile_by_its_id_and_by_its_key(
    filled: DaemonProcess, arguments: list[str], key: TileKey
) -> None:
    shown = run(filled, "get", *arguments)
    assert shown.returncode == 0
    assert "content_sha256" in shown.stdout
    (found,) = [json.loads(run(filled, "get", *arguments, "--json").stdout)]
    assert found["tile_uuid"] == tile_uuid(key)
    assert found["freshness_label"] == "FRESHNESS_LABEL_FRESH"
    assert found["file_path"] == "18/154321/95812.jpg"


def test_get_fails_for_an_unknown_tile(filled: DaemonProcess) -> None:
    missing = str(uuid4())
    refused = run(filled, "get", missing)
    assert refused.returncode == 1
    assert f"there is no tile {missing}" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-uuid"], 4, "must be a UUID"),
        (["30", "0", "0"], 4, "zoom: is 30"),
        (["1", "2"], 2, "Give TILE_UUID, or ZOOM X Y"),
        (["one", "0", "0"], 2, "Give TILE_UUID, or ZOOM X Y"),
    ],
)
def test_get_refuses_invalid_references(
    filled: DaemonProcess, arguments: list[str], code: int, message: str
) -> None:
    refused = run(filled, "get", *arguments)
    assert refused.returncode == code
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--bbox", "83,-180,90,-140", "--zoom", "5"], 8),
        (["--cells", "0,1,0,1", "--zoom", "5"], 4),
        (["--circle", "84.9,-179,100", "--zoom", "5"], 1),
        (["--cells", "0,31,0,31", "--zoom", "5", "--limit", "5"], 5),
        (["--bbox", "83,-180,90,-140", "--zoom", "4-5,9"], 8),
        (["--bbox", "83,-180,90,-140", "--zoom", "5", "--zoom", "4"], 8),
        (["--route", "84,-179 84,-141", "--width", "1000", "--zoom", "5"], 4),
        (["--cells", "0,15,0,15", "--zoom", "4"], 0),
        (["--cells", "154321,154321,95812,95812", "--zoom", "18"], 2),
        (["--cells", "154321,154321,95812,95812", "--zoom", "18", "--best"], 1),
    ],
)
def test_query_lists_the_tiles_of_a_region(
    filled: DaemonProcess, arguments: list[str], count: int
) -> None:
    assert len(json_lines(run(filled, "query", *arguments, "--json"))) == count
    shown = run(filled, "query", *arguments)
    assert shown.returncode == 0
    assert "tile_uuid" in shown.stdout


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--source", "googlemaps"], {tile_uuid(KEY)}),
        (["--source", "onboard_ingest", "--source", "googlemaps"], {"both"}),
        (["--flight", FLIGHT], {tile_uuid(FLOWN)}),
        (["--captured-after", f"{YESTERDAY - timedelta(days=3):%Y-%m-%d}"], {tile_uuid(KEY)}),
        (["--label", "fresh", "--label", "rejected"], {"both"}),
        (["--label", "rejected"], set()),
    ],
)
def test_query_filters(filled: DaemonProcess, filters: list[str], expected: set[str]) -> None:
    cell = ("--cells", "154321,154321,95812,95812", "--zoom", "18")
    found = {
        line["tile_uuid"] for line in json_lines(run(filled, "query", *cell, *filters, "--json"))
    }
    assert found == ({tile_uuid(KEY), tile_uuid(FLOWN)} if expected == {"both"} else expected)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--zoom", "5"], 2, "--bbox, --circle, --cells, --route"),
        (["--zoom", "5", "--cells", "0,1,0,1", "--bbox", "0,0,1,1"], 2, "--bbox, --circle"),
        (["--zoom", "5", "--cells", "0,1,0"], 2, "X_FROM,X_TO,Y_FROM,Y_TO"),
        (["--zoom", "5", "--bbox", "a,b,c,d"], 2, "SOUTH,WEST,NORTH,EAST"),
        (["--cells", "0,1,0,1"], 2, "--zoom"),
        (["--zoom", "5", "--cells", "0,99,0,1"], 4, "region.cell_range.x_to: is 99"),
        (["--zoom", "5", "--bbox", "2,0,1,1"], 4, "region.bounding_box.south"),
        (["--zoom", "22", "--bbox", "-85,-180,85,180"], 4, "more than 4194304 cells"),
        (["--zoom", "5", "--cells", "0,1,0,1", "--flight", "x"], 4, "flight_id"),
        (["--zoom", "5", "--cells", "0,1,0,1", "--limit", "0"], 2, "--limit"),
    ],
)
def test_query_names_the_invalid_option(
    filled: DaemonProcess, arguments: list[str], code: int, message: str
) -> None:
    refused = run(filled, "query", *arguments)
    assert refused.returncode == code
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
