"""Tiles are exported on one machine and imported on another: the same rows and the same files."""

import json
import sqlite3
import tarfile
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from tests.integration.bundles.conftest import Cache, import_json, prepare
from tests.tiles import (
    FLIGHT,
    GOOGLEMAPS,
    ONBOARD,
    YESTERDAY,
    bulk_insert,
    random_flight,
    tile_key,
    timestamp,
)
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1.tile_metadata_store_pb2 import BoundingBox, Flight, ListFlightsRequest

COUNT = 10_000
TARGETS = ("bundle", "bundle.tar")


def test_the_copy_of_ten_thousand_tiles_has_the_same_rows_and_files(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    tiles = []
    for number in range(COUNT):
        onboard = number % 3 == 0
        key = tile_key(
            10 + number % 9,
            number // 100,
            number % 100,
            ONBOARD if onboard else GOOGLEMAPS,
            FLIGHT if onboard and number % 2 else None,
        )
        quality = ParseDict({"blur": number / 7, "n": number, "bands": ["r", "ü"]}, Struct())
        fields = {
            "file_path": f"{key.zoom}/{key.x}/{key.y}-{number} ü.png",
            "tile_size_pixels": 256 + number % 5,
            "tile_size_meters": 10.5 + number,
            "quality_metadata": quality if number % 4 else None,
            "uploaded_at": timestamp(YESTERDAY + timedelta(seconds=number % 1000))
            if onboard and number % 5 == 0
            else None,
        }
        image = f"image of {number}".encode() * (number % 50 + 1)
        tiles.append(prepare(aircraft.tiles, key, image, **fields))
        tiles[-1].captured_at.FromMicroseconds(1_700_000_000_000_001 + number * 1_000_003)
    (answer,) = bulk_insert(aircraft.client, tiles)
    assert answer.inserted_count == COUNT

    exported = aircraft.run("export", tmp_path / "bundle")
    assert exported.returncode == 0, exported.stderr
    exit_code, report = import_json(ground, tmp_path / "bundle")

    assert (exit_code, report["inserted_count"]) == (0, COUNT)
    assert ground.rows() == aircraft.rows()
    assert ground.files() == aircraft.files()
    exit_code, report = import_json(ground, tmp_path / "bundle")
    assert (exit_code, report["already_present_count"]) == (0, COUNT)
    assert ground.files() == aircraft.files()


@pytest.mark.parametrize("target", TARGETS)
def test_a_filter_chooses_what_is_copied(
    target: str, aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    uploaded = {"uploaded_at": timestamp(YESTERDAY)}
    aircraft.store(tile_key(12, 1, 1, ONBOARD, FLIGHT))
    aircraft.store(tile_key(12, 1, 2, ONBOARD, FLIGHT), **uploaded)
    aircraft.store(tile_key(13, 1, 1, ONBOARD, FLIGHT))
    aircraft.store(tile_key(12, 9, 9, ONBOARD, FLIGHT))
    aircraft.store(tile_key(12, 1, 3, ONBOARD, random_flight()))
    aircraft.store(tile_key(12, 1, 1), file_path="other/1.png")

    chosen = ("--flight", FLIGHT, "--pending-uploads", "--zoom", "12", "--cells", "0,5,0,5")
    exported = aircraft.run("export", tmp_path / target, *chosen)
    assert exported.returncode == 0, exported.stderr
    assert import_json(ground, tmp_path / target)[0] == 0

    assert list(ground.files()) == ["12/1/1.jpg"]
    assert len(ground.rows()) == 1
    dry_run = aircraft.run("export", tmp_path / "none", *chosen, "--dry-run")
    assert "Would export 1 tile " in dry_run.stdout
    assert not (tmp_path / "none").exists()


def test_two_tiles_with_one_file_are_both_copied(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    for row in range(4):
        aircraft.store(tile_key(12, 1, row), b"sea", file_path="sea.png")
    for target in TARGETS:
        assert aircraft.run("export", tmp_path / target).returncode == 0
    # As `tar` writes it: each file once, and in any order.
    with tarfile.open(tmp_path / "by hand.tar", "w") as archive:
        archive.add(tmp_path / "bundle", ".")

    exit_code, report = import_json(ground, tmp_path / "by hand.tar")

    assert (exit_code, report["inserted_count"]) == (0, 4)
    assert ground.rows() == aircraft.rows()
    assert ground.files() == {"sea.png": b"sea"}
    assert import_json(ground, tmp_path / "bundle.tar")[1]["already_present_count"] == 4


def test_an_uploaded_tile_does_not_wait_for_upload_elsewhere(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    aircraft.store(tile_key(12, 1, 1, ONBOARD, FLIGHT), uploaded_at=timestamp(YESTERDAY))
    aircraft.store(tile_key(12, 1, 2, ONBOARD, FLIGHT))
    aircraft.run("export", tmp_path / "bundle")
    import_json(ground, tmp_path / "bundle")

    (flight,) = ground.client.store.ListFlights(ListFlightsRequest(), timeout=10).flights
    assert (flight.tile_count, flight.pending_upload_count) == (2, 1)


def test_names_and_times_of_flights_are_copied(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    flight = Flight(flight_id=FLIGHT, name="survey", started_at=timestamp(YESTERDAY))
    other = Flight(flight_id=random_flight(), name="no tiles")
    for each in (flight, other):
        aircraft.admin_client.admin.SetFlight(admin_pb.SetFlightRequest(flight=each), timeout=10)
    aircraft.store(tile_key(12, 1, 1, ONBOARD, FLIGHT))

    aircraft.run("export", tmp_path / "one", "--flight", FLIGHT)
    assert import_json(ground, tmp_path / "one")[1]["notes"] == ["Recorded 1 flight"]
    # Of the tiles in a region, only their flights.
    aircraft.run("export", tmp_path / "region", "--bbox", "-10,0,10,10")
    assert import_json(ground, tmp_path / "region")[1]["notes"] == []
    aircraft.run("export", tmp_path / "all")
    assert import_json(ground, tmp_path / "all")[1]["notes"] == ["Recorded 1 flight"]
    flights = ground.client.store.ListFlights(ListFlightsRequest(), timeout=10).flights
    assert {(each.flight_id, each.name, each.started_at.seconds) for each in flights} == {
        (each.flight_id, each.name, each.started_at.seconds) for each in (flight, other)
    }

    flight.name = "another name"
    ground.admin_client.admin.SetFlight(admin_pb.SetFlightRequest(flight=flight), timeout=10)
    exit_code, report = import_json(ground, tmp_path / "one")
    assert (exit_code, len(report["problems"])) == (1, 1)
    assert "another name" in report["problems"][0]


def test_without_an_admin_socket_tiles_are_copied_and_flights_are_named(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    flight = Flight(flight_id=FLIGHT, name="survey")
    aircraft.admin_client.admin.SetFlight(admin_pb.SetFlightRequest(flight=flight), timeout=10)
    aircraft.store(tile_key(12, 1, 1, ONBOARD, FLIGHT))
    aircraft.run("export", tmp_path / "bundle")
    nowhere = tmp_path / "no.sock"
    exit_code, report = import_json(ground, tmp_path / "bundle", "--admin-socket", nowhere)

    assert (exit_code, report["inserted_count"]) == (1, 1)
    assert "no.sock" in report["problems"][0]


def test_sectors_rules_and_pins_are_copied_where_both_sides_say_so(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    box = "--bbox", "50,30,51,31"
    for command in (
        ("sectors", "set", "front", "--class", "active_conflict", *box, "--yes"),
        ("rules", "set", "active_conflict", "--max-age-months", 3, "--action", "reject", "--yes"),
        ("pins", "set", "base", "--zoom", "12-13", *box, "--until", "2100-01-01"),
    ):
        run = aircraft.run(*command)
        assert run.returncode == 0, run.stderr
    aircraft.store(tile_key(12, 1, 1))
    aircraft.run("export", tmp_path / "bare")
    aircraft.run("export", tmp_path / "bundle", "--policy")

    assert import_json(ground, tmp_path / "bare", "--policy")[1]["notes"] == []
    (note,) = import_json(ground, tmp_path / "bundle")[1]["notes"]
    assert note == "Not set without --policy: 1 sector, 2 rules, 1 pin"
    assert policy(ground) != policy(aircraft)
    (note,) = import_json(ground, tmp_path / "bundle", "--policy")[1]["notes"]
    assert note == "Set 1 sector, 2 rules, 1 pin"
    assert policy(ground) == policy(aircraft)


def policy(cache: Cache) -> tuple[object, ...]:
    admin = cache.admin_client.admin
    sectors = admin.ListSectors(admin_pb.ListSectorsRequest(), timeout=10).sectors
    rules = admin.ListFreshnessRules(admin_pb.ListFreshnessRulesRequest(), timeout=10).rules
    pins = admin.ListPins(admin_pb.ListPinsRequest(), timeout=10).pins
    return (
        [(each.name, each.classification, each.bounding_box) for each in sectors],
        list(rules),
        [(each.name, each.region, list(each.zooms), each.expires_at) for each in pins],
    )


def test_what_the_receivers_rules_or_ceiling_refuse_is_listed(
    aircraft: Cache, other_database: str, short_directory: Path, tmp_path: Path
) -> None:
    old = tile_key(1, 1, 0)  # 0 to 85 north, 0 to 180 east
    aircraft.store(old, captured_at=YESTERDAY - timedelta(days=400))
    aircraft.store(tile_key(12, 1, 1), b"x" * 6000)
    aircraft.store(tile_key(12, 1, 2), b"y" * 6000)
    aircraft.run("export", tmp_path / "bundle")
    directory = short_directory / "g"
    directory.mkdir()
    limits = {"max_used_bytes": 10_000, "evict_on_insert": False}
    with Cache(directory, other_database, tmp_path / "ground", **limits) as ground:
        region = BoundingBox(south=10, west=10, north=80, east=170)
        sector = admin_pb.Sector(
            name="front",
            classification=admin_pb.SECTOR_CLASSIFICATION_ACTIVE_CONFLICT,
            bounding_box=region,
        )
        ground.admin_client.admin.SetSector(admin_pb.SetSectorRequest(sector=sector), timeout=10)
        exit_code, report = import_json(ground, tmp_path / "bundle")
        text = ground.run("import", tmp_path / "bundle").stdout

        assert (exit_code, report["inserted_count"], report["refused_count"]) == (1, 1, 2)
        reasons = Counter(refusal["reason"] for refusal in report["refused"])
        assert reasons == {"TILE_TOO_OLD": 1, "STORAGE_CEILING": 1}
        assert "Refused 1 tile (TILE_TOO_OLD)" in text
        assert set(ground.files()) == {row[13] for row in ground.rows()}


def test_a_file_of_two_tiles_stays_if_one_of_them_is_refused(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    old = YESTERDAY - timedelta(days=400)
    aircraft.store(tile_key(1, 1, 0), b"sea", file_path="sea.png", captured_at=old)
    aircraft.store(tile_key(12, 1, 1), b"sea", file_path="sea.png")
    aircraft.run("export", tmp_path / "bundle")
    box = "--bbox", "10,10,80,170"
    ground.run("sectors", "set", "front", "--class", "active_conflict", *box, "--yes")
    _, report = import_json(ground, tmp_path / "bundle", "--batch-size", 1)

    assert (report["inserted_count"], report["refused"][0]["reason"]) == (1, "TILE_TOO_OLD")
    assert ground.files() == {"sea.png": b"sea"}


def test_nothing_is_overwritten(aircraft: Cache, ground: Cache, tmp_path: Path) -> None:
    message = aircraft.store(tile_key(12, 1, 1))
    aircraft.run("export", tmp_path / "bundle")
    (ground.tiles / "12/1").mkdir(parents=True)
    (ground.tiles / "12/1/1.jpg").write_bytes(b"of somebody else")
    exit_code, _ = import_json(ground, tmp_path / "bundle")

    assert exit_code == 0
    path = f"12/1/1.{message.content_sha256[:16]}.jpg"
    image = (aircraft.tiles / "12/1/1.jpg").read_bytes()
    assert ground.files() == {"12/1/1.jpg": b"of somebody else", path: image}
    assert [row[13] for row in ground.rows()] == [path]
    import_json(ground, tmp_path / "bundle")
    assert set(ground.files()) == {"12/1/1.jpg", path}


def test_a_tile_with_other_content_stays_and_leaves_no_file(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    aircraft.store(tile_key(12, 1, 1), b"theirs", file_path="a/1.png")
    ground.store(tile_key(12, 1, 1), b"ours", file_path="b/1.png")
    aircraft.run("export", tmp_path / "bundle")
    exit_code, report = import_json(ground, tmp_path / "bundle")

    assert (exit_code, report["refused"][0]["reason"]) == (1, "CONTENT_CONFLICT")
    assert ground.files() == {"b/1.png": b"ours"}
    assert import_json(ground, tmp_path / "bundle", "--on-conflict", "keep-existing")[0] == 0
    assert ground.files() == {"b/1.png": b"ours"}


def test_missing_and_damaged_images_are_named_and_left_out(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    for row in range(3):
        aircraft.store(tile_key(12, 1, row))
    (aircraft.tiles / "12/1/0.jpg").unlink()
    (aircraft.tiles / "12/1/1.jpg").write_bytes(b"damaged")
    exported = aircraft.run("export", tmp_path / "bundle", "--json")
    *refused, summary = map(json.loads, exported.stdout.splitlines())

    assert exported.returncode == 1
    assert {(each["file"], each["reason"]) for each in refused} == {
        ("12/1/0.jpg", "MISSING_FILE"),
        ("12/1/1.jpg", "WRONG_CONTENT"),
    }
    assert (summary["kind"], summary["tile_count"], summary["refused_count"]) == ("summary", 1, 2)
    assert import_json(ground, tmp_path / "bundle")[0] == 0
    assert len(ground.rows()) == 1


def test_a_row_of_the_first_schema_is_exported_with_its_hash(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    message = aircraft.store(tile_key(12, 1, 1))
    with psycopg.connect(aircraft.dsn, autocommit=True) as sql:
        sql.execute("UPDATE tiles SET content_sha256 = NULL, disk_bytes = NULL")
    assert aircraft.run("export", tmp_path / "bundle").returncode == 0
    assert import_json(ground, tmp_path / "bundle")[0] == 0
    assert ground.rows()[0][7:9] == (message.content_sha256, message.disk_bytes)


def test_an_mbtiles_file_has_the_best_image_of_each_cell(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    from tests.imagery import cut_blue_marble

    cut_blue_marble(aircraft.tiles / "base", 0, 2)
    assert aircraft.run("import", aircraft.tiles / "base").returncode == 0
    newer = aircraft.tiles / "onboard/1/0/0.jpg"
    newer.parent.mkdir(parents=True)
    newer.write_bytes((aircraft.tiles / "base/2/1/1.jpg").read_bytes())
    later = ("--captured-at", (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat())
    onboard = ("--source", "onboard_ingest", "--flight", FLIGHT, *later)
    assert aircraft.run("import", aircraft.tiles / "onboard", *onboard).returncode == 0

    target = tmp_path / "map.mbtiles"
    run = aircraft.run("export", target, "--mbtiles")
    assert run.returncode == 0, run.stderr

    with closing(sqlite3.connect(target)) as database:
        metadata = dict(database.execute("SELECT * FROM metadata"))
        images = {row[:3]: row[3] for row in database.execute("SELECT * FROM tiles")}
    assert len(images) == 21
    assert images[1, 0, 1] == newer.read_bytes()
    assert images[1, 0, 0] == (aircraft.tiles / "base/1/0/1.jpg").read_bytes()
    assert (metadata["format"], metadata["minzoom"], metadata["maxzoom"]) == ("jpg", "0", "2")
    assert metadata["bounds"].startswith("-180.0,-85.05")
    assert aircraft.run("export", target, "--mbtiles").returncode == 2
    imported = ground.run("import", target, "--into", ground.tiles / "map")
    assert "21" in imported.stdout


def test_the_document_has_the_fields_of_a_line(aircraft: Cache, tmp_path: Path) -> None:
    aircraft.store(tile_key(12, 1, 1))
    assert aircraft.run("export", tmp_path / "bundle").returncode == 0
    line = json.loads((tmp_path / "bundle/tiles.jsonl").read_text())
    contract = Path(__file__).parents[3] / "docs/contract.md"
    section = contract.read_text().split("## Bundles\n")[1].split("\n## ")[0]
    example = json.loads(section.split("```json\n")[1].split("\n```")[0])

    assert set(line) == set(example)
    assert all(f"`{name}`" in section for name in line)
    header = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert all(f"`{name}`" in section for name in header)
