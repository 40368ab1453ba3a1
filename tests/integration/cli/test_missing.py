"""`tilecache missing`: the work list of what is to be fetched."""

import csv
import io
import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import ACTIVE_CONFLICT, set_sector
from tests.clocked_daemon import ClockedDaemon
from tests.daemon_process import TILECACHE, DaemonProcess, run_tilecache
from tests.integration.cli.conftest import Run
from tests.tiles import NOW, Block, bulk_insert, store_row, tile
from tilecache.client import TileCacheClient
from tilecache.identity import derive_location_hash, derive_tile_id
from tilecache.mercator import cell_bounds
from tilecache_daemon.freshness_policy import add_months

HEADER = ["zoom", "x", "y", "source", "tile_uuid", "location_hash", "reason"]


def cells_option(block: Block, columns: int, rows: int) -> tuple[str, str]:
    return "--cells", f"{block.x},{block.x + columns - 1},{block.y},{block.y + rows - 1}"


@pytest.fixture
def filled(admin: TileCacheClient, block: Block, sql: psycopg.Connection[Any]) -> Block:
    """Of 3 x 2 cells three are usable, one is stale and two are missing."""
    bulk_insert(admin, [tile(key, disk_bytes=1_000) for key in block.keys(3)])
    store_row(sql, block.key(0, 1), freshness_status="rejected", disk_bytes=1_000)
    return block


def test_each_stale_and_missing_cell_has_its_ids_and_the_reason(run: Run, filled: Block) -> None:
    ran = run("missing", "--zoom", 18, *cells_option(filled, 3, 2))

    assert ran.returncode == 0, ran.stderr
    header, *rows = csv.reader(io.StringIO(ran.stdout))
    assert header == HEADER
    y = filled.y + 1
    assert sorted(rows) == [
        [
            *("18", str(x), str(y), "googlemaps"),
            *(
                str(derive_tile_id(18, x, y, "googlemaps", None)),
                str(derive_location_hash(18, x, y)),
            ),
            reason,
        ]
        for x, reason in zip(
            range(filled.x, filled.x + 3), ("stale", "missing", "missing"), strict=True
        )
    ]
    assert "zoom 18: 3 cells to fetch (2 missing, 1 stale), about 3.0 kB" in ran.stderr


def test_json_lines_end_with_the_zooms_and_a_summary(run: Run, filled: Block) -> None:
    bounds = cell_bounds(18, filled.x, filled.y + 1)
    box = ",".join(map(str, bounds))
    for option in (("--json",), ("--format", "jsonl")):
        ran = run("missing", "--zoom", "17-18", "--bbox", box, *option)

        assert ran.returncode == 0, ran.stderr
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [line["kind"] for line in lines] == ["cell", "cell", "zoom", "zoom", "summary"]
        assert [list(line)[1:] for line in lines[:2]] == [HEADER] * 2
        assert [(line["zoom"], line["reason"]) for line in lines[:2]] == [
            (17, "missing"),
            (18, "stale"),
        ]
        assert [(line["zoom"], line["cells"]) for line in lines[2:4]] == [(17, 1), (18, 1)]
        summary = lines[-1]
        assert (summary["cells"], summary["stale"], summary["missing"]) == (2, 1, 1)
        assert summary["estimated_fetch_bytes"] == 2_000
        assert summary["max_used_bytes"] is None
        assert summary["used_bytes"] == 4_000
        assert ran.stderr == ""


def test_geojson_has_the_outline_of_each_cell(run: Run, filled: Block) -> None:
    ran = run("missing", "--zoom", 18, *cells_option(filled, 3, 2), "--format", "geojson")

    collection = json.loads(ran.stdout)
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert [list(feature["properties"]) for feature in features] == [HEADER] * 3
    for feature in features:
        cell = feature["properties"]
        (ring,) = feature["geometry"]["coordinates"]
        south, west, north, east = cell_bounds(cell["zoom"], cell["x"], cell["y"])
        assert ring[0] == ring[-1] == [west, south]
        assert ring[2] == [east, north]


def test_nothing_to_fetch_is_an_empty_list(run: Run, filled: Block) -> None:
    for output in ("csv", "jsonl", "geojson"):
        ran = run("missing", "--zoom", 18, *cells_option(filled, 3, 1), "--format", output)
        assert ran.returncode == 0
        if output == "geojson":
            assert json.loads(ran.stdout)["features"] == []
        if output == "csv":
            assert ran.stdout == ",".join(HEADER) + "\n"


def test_what_will_be_stale_on_the_day_is_on_the_list(
    database: str, short_directory: Path, block: Block
) -> None:
    with ClockedDaemon(short_directory, NOW, dsn=database) as daemon:
        set_sector(daemon.admin_client, "all", ACTIVE_CONFLICT, (-90, -180, 90, 180))
        ages = (0, 5)
        bulk_insert(
            daemon.admin_client,
            [
                tile(block.key(column), captured_at=add_months(NOW, -age))
                for column, age in enumerate(ages)
            ],
        )

        def reasons(*options: str) -> list[str]:
            ran = run_tilecache(
                *("missing", "--zoom", 18, *cells_option(block, 3, 1), *options),
                admin_socket_path=daemon.admin_socket_path,
            )
            assert ran.returncode == 0, ran.stderr
            return [row["reason"] for row in csv.DictReader(io.StringIO(ran.stdout))]

        assert reasons() == ["missing"]
        day = f"{add_months(NOW, 1):%Y-%m-%d}"
        assert sorted(reasons("--on", day)) == ["missing", "stale"]


def test_the_ceiling_and_the_free_disk_are_shown(
    database: str, short_directory: Path, block: Block, tmp_path: Path
) -> None:
    with DaemonProcess(
        short_directory, dsn=database, max_used_bytes=5_000, tiles_directory=tmp_path
    ) as daemon:
        bulk_insert(daemon.admin_client, [tile(block.key(), disk_bytes=2_000)])
        region = cells_option(block, 4, 1)
        ran = run_tilecache(
            "missing", "--zoom", 18, *region, admin_socket_path=daemon.admin_socket_path
        )
        as_json = run_tilecache(
            "missing", "--zoom", 18, *region, "--json", admin_socket_path=daemon.admin_socket_path
        )

    assert "ceiling: 5.0 kB, 2.0 kB used" in ran.stderr
    assert "WARNING: this does not fit under the ceiling." in ran.stderr
    assert "free disk space: " in ran.stderr
    summary = json.loads(as_json.stdout.splitlines()[-1])
    assert (summary["max_used_bytes"], summary["used_bytes"]) == (5_000, 2_000)
    assert summary["free_disk_bytes"] > 0


def test_memory_is_bounded_whatever_the_number_of_cells(
    database: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Half a million cells, of which many are in a checkerboard, so that none joins another."""
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute(
            """INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
                                  tile_size_meters, tile_size_pixels, file_path, captured_at)
               SELECT gen_random_uuid(), gen_random_uuid(), 18, x, y, 'googlemaps', 0, 0, 1, 256,
                      'a.jpg', now()
               FROM generate_series(0, 255) AS x, generate_series(0, 1023) AS y
               WHERE (x + y) % 2 = 0"""
        )
    few = peak_bytes(daemon, tmp_path, "0,9,0,1023")
    many = peak_bytes(daemon, tmp_path, "0,599,0,1023")

    assert many < few + 40_000_000


def peak_bytes(daemon: DaemonProcess, tmp_path: Path, cells: str) -> int:
    """The memory that a command takes at its peak."""
    path = tmp_path / "list.csv"
    with path.open("w") as file:
        command = [TILECACHE, "missing", "--zoom", "18", "--cells", cells]
        command += ["--socket", daemon.admin_socket_path]
        process = subprocess.Popen(command, stdout=file)
        _, process.returncode, usage = os.wait4(process.pid, 0)
    assert process.returncode == 0
    x_from, x_to, y_from, y_to = map(int, cells.split(","))
    covered = 256 * 1_024 // 2 if x_to > 255 else (x_to + 1) * 512
    expected = (x_to - x_from + 1) * (y_to - y_from + 1) - covered
    assert len(path.read_text().splitlines()) == expected + 1
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss * 1_024


@pytest.mark.parametrize("form", ["csv", "jsonl", "geojson"])
def test_nothing_is_written_of_a_list_that_is_refused(run: Run, form: str) -> None:
    ran = run("missing", "--zoom", 18, "--bbox=-80,-180,80,180", "--format", form)

    assert (ran.returncode, ran.stdout) == (4, "")
    assert "has more than 4194304 cells" in ran.stderr
