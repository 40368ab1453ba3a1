"""`tilecache expiring`."""

import csv
import io
import json
from datetime import timedelta

import pytest

from tests.admin import ACTIVE_CONFLICT, set_sector
from tests.integration.cli.conftest import Run
from tests.tiles import NOW, Block, bulk_insert, tile
from tilecache.client import TileCacheClient
from tilecache_daemon.freshness_policy import add_months

FIELDS = [
    *("zoom", "x", "y", "source", "flight_id", "tile_uuid", "captured_at", "disk_bytes"),
    *("freshness_label", "expires_at", "next_label", "sector"),
]


@pytest.fixture
def aging(admin: TileCacheClient, block: Block) -> Block:
    """Tiles that expire in one, two, two and a hundred days."""
    set_sector(admin, "front", ACTIVE_CONFLICT, (-90, -180, 90, 180))
    for column, days in enumerate((1, 2, 2, 100)):
        captured_at = add_months(NOW + timedelta(days=days), -6)
        bulk_insert(admin, [tile(block.key(column), captured_at=captured_at, disk_bytes=1_000)])
    return block


def test_it_counts_by_day_and_sector(run: Run, aging: Block) -> None:
    ran = run("expiring", "--within", "30d")

    assert ran.returncode == 0, ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines() if "front" in line]
    day = f"{NOW + timedelta(days=2):%Y-%m-%d}"
    assert [(row[1], row[7]) for row in rows][-1] == (day, "2")
    assert ran.stdout.endswith("3 tiles (3.0 kB) expire.\n")
    assert "1 tile (1.0 kB) expire" in run("expiring", "--within", "36h").stdout
    assert "4 tiles (4.0 kB) expire" in run("expiring", "--within", "20w").stdout


def test_json_lines_have_the_tiles_the_days_and_a_summary(run: Run, aging: Block) -> None:
    ran = run("expiring", "--within", "30d", "--json")

    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    kinds = [line.pop("kind") for line in lines]
    assert kinds == ["tile"] * 3 + ["day"] * 2 + ["summary"]
    assert [list(line) for line in lines[:3]] == [FIELDS] * 3
    assert {line["next_label"] for line in lines[:3]} == {"rejected"}
    assert [line["tile_count"] for line in lines[3:]] == [1, 2, 3]
    assert lines[-1]["clock_trusted"]
    assert ran.stderr == ""


def test_the_tiles_of_a_region_are_listed_in_each_format(run: Run, aging: Block) -> None:
    region = ("--zoom", 18, "--cells", f"{aging.x + 1},{aging.x + 9},{aging.y},{aging.y}")
    as_csv = run("expiring", "--within", "30d", *region, "--format", "csv")
    header, *rows = csv.reader(io.StringIO(as_csv.stdout))
    assert header == FIELDS
    assert sorted(int(row[1]) for row in rows) == [aging.x + 1, aging.x + 2]
    assert "2 tiles (2.0 kB) expire." in as_csv.stderr
    features = json.loads(
        run("expiring", "--within", "30d", *region, "--format", "geojson").stdout
    )["features"]
    assert [list(feature["properties"]) for feature in features] == [FIELDS] * 2


@pytest.mark.parametrize("within", ["30", "d", "-1d", "1y", "9" * 400 + "d"])
def test_a_bad_duration_is_a_usage_error(run: Run, within: str) -> None:
    ran = run("expiring", f"--within={within}")
    assert ran.returncode == 2
    assert "12h, 30d or 8w" in " ".join(ran.stderr.split())
