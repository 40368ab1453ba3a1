"""`tilecache list`, and `tilecache query` where there are many rows."""

import csv
import json

from tests.integration.cli.conftest import Run
from tests.tiles import ONBOARD, Block, bulk_insert, random_flight, tile, tile_key, tile_uuid
from tilecache.client import TileCacheClient


def test_every_field_of_every_tile_is_in_each_format(
    admin: TileCacheClient, block: Block, run: Run
) -> None:
    flight_id = random_flight()
    flown, downloaded = block.key(0, 0, ONBOARD, flight_id), tile_key(3, 1, 2)
    made = tile(flown, disk_bytes=7)
    made.quality_metadata.update({"sharpness": 0.5})
    bulk_insert(admin, [made])
    bulk_insert(admin, [tile(downloaded, disk_bytes=20)])

    *lines, summary = map(json.loads, run("list", "--json").stdout.splitlines())
    rows = list(csv.DictReader(run("list").stdout.splitlines()))
    features = json.loads(run("list", "--format", "geojson").stdout)["features"]

    assert [line["tile_uuid"] for line in lines] == [tile_uuid(flown), tile_uuid(downloaded)]
    first, second = lines
    assert first.keys() == second.keys()
    assert (first["kind"], first["source"], first["flight_id"]) == (
        "tile",
        "onboard_ingest",
        flight_id,
    )
    assert (first["freshness_label"], first["disk_bytes"]) == ("fresh", 7)
    assert first["quality_metadata"] == {"sharpness": 0.5}
    assert (second["flight_id"], second["uploaded_at"]) == (None, None)
    assert second["captured_at"].endswith("Z")
    assert summary == {"kind": "summary", "tile_count": 2, "used_bytes": 27}
    assert [{"kind": "tile", **feature["properties"]} for feature in features] == lines
    assert [row["tile_uuid"] for row in rows] == [line["tile_uuid"] for line in lines]
    assert list(rows[0]) == [name for name in first if name != "kind"]
    assert json.loads(rows[0]["quality_metadata"]) == {"sharpness": 0.5}


def test_filters(admin: TileCacheClient, block: Block, run: Run) -> None:
    flight_id = random_flight()
    bulk_insert(admin, [tile(block.key()), tile(block.key(0, 0, ONBOARD, flight_id))])

    for filters, count in (
        ([], 2),
        (["--zoom", "3-17"], 0),
        (["--source", "googlemaps"], 1),
        (["--flight", flight_id], 1),
        (["--pending-uploads"], 1),
        (["--label", "fresh", "--captured-after", "2020-01-01"], 2),
        (["--captured-before", "2020-01-01"], 0),
    ):
        listed = run("list", *filters)
        assert listed.returncode == 0, listed.stderr
        assert len(listed.stdout.splitlines()) == 1 + count, filters


def test_a_row_of_a_query_is_one_line_where_there_is_no_terminal(
    admin: TileCacheClient, block: Block, run: Run
) -> None:
    path = "a/" * 120 + "tile.jpg"
    bulk_insert(admin, [tile(block.key(), file_path=path)])
    cells = f"{block.x},{block.x},{block.y},{block.y}"

    header, row = run("query", "--zoom", 18, "--cells", cells).stdout.splitlines()

    assert header.split()[:2] == ["tile_uuid", "zoom/x/y"]
    assert row.split()[0] == tile_uuid(block.key())
    assert row.endswith(path)
