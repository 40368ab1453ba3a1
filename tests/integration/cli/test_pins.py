"""`tilecache pins`, and how evict, delete and usage speak of them."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

from tests.admin import list_pins, set_pin
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.integration.cli.conftest import Run
from tests.tiles import Block, bulk_insert, cell_region, tile
from tilecache.client import TileCacheClient
from tilecache.mercator import cell_centre
from tilecache.v1.tile_identity_pb2 import TileKey


def cells(keys: list[TileKey], first: int, last: int) -> str:
    return f"{keys[first].x},{keys[last].x},{keys[0].y},{keys[0].y}"


def test_a_pin_is_set_listed_and_deleted(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("pins", "set", "tomorrow", "--zoom", 18, "--cells", cells(keys, 0, 9))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Pinned tomorrow: 10 cells, 10 tiles (1.0 MB), 0 missing.\n"

    listed = run("pins", "list")
    for text in ("tomorrow", "cells", "18", "10 tiles"):
        assert text in listed.stdout

    refused = run("pins", "delete", "tomorrow")
    assert refused.returncode == 2
    tried = run("pins", "delete", "tomorrow", "--dry-run")
    assert tried.stdout == "Would delete pin tomorrow. Nothing was changed.\n"
    assert len(list_pins(admin)) == 1
    deleted = run("pins", "delete", "tomorrow", "--yes")
    assert deleted.stdout == "Deleted pin tomorrow.\n"
    assert list_pins(admin) == []
    assert run("pins", "delete", "tomorrow", "--yes").returncode == 1


def test_a_deletion_is_confirmed_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], answer: Run
) -> None:
    set_pin(admin, "route", cell_region(keys[0].x, keys[1].x, keys[0].y, keys[0].y), [18])

    declined = answer("n", "pins", "delete", "route")
    assert declined.returncode == 1
    assert "which holds 2 tiles (200.0 kB)" in declined.stderr
    assert len(list_pins(admin)) == 1
    assert answer("y", "pins", "delete", "route").returncode == 0
    assert list_pins(admin) == []


def test_a_pin_of_a_route_ends_at_the_end_of_a_day(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    day = datetime.now(timezone.utc) + timedelta(days=9)
    start, goal = (cell_centre(18, key.x, key.y) for key in (keys[0], keys[4]))
    route = f"{start[0]},{start[1]} {goal[0]},{goal[1]}"
    done = run(
        *("pins", "set", "route", "--zoom", "17-18", "--route", route, "--width", 10),
        *("--until", f"{day:%Y-%m-%d}", "--json"),
    )

    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["kind"], line["name"], line["zooms"]) == ("pin", "route", "17,18")
    assert line["region"] == "route of 2 waypoints, 10 m on each side"
    assert line["expires_at"] == f"{day:%Y-%m-%d}T23:59:59.999999Z"
    assert (line["tile_count"], line["missing_count"]) == (5, 3)
    assert (line["ended"], line["fits"]) == (False, True)
    pin, summary = map(json.loads, run("pins", "list", "--json").stdout.splitlines())
    assert pin == {name: line[name] for name in pin}
    assert summary == {"kind": "summary", "pins": 1, "tile_count": 5, "used_bytes": 500_000}
    assert f"{day:%Y-%m-%d}" in run("pins", "list").stdout


def test_a_dry_run_sets_no_pin(admin: TileCacheClient, keys: list[TileKey], run: Run) -> None:
    region = ("--zoom", 18, "--cells", cells(keys, 0, 3))
    tried = run("pins", "set", "route", *region, "--dry-run")
    assert tried.stdout == "Would pin route: 4 cells, 4 tiles (400.0 kB), 0 missing.\n"
    assert list_pins(admin) == []

    run("pins", "set", "route", *region)
    tried = run("pins", "set", "route", "--zoom", 18, "--cells", cells(keys, 5, 5), "--dry-run")
    assert "Would pin route: 1 cell, 1 tile" in tried.stdout
    assert [pin.cell_count for pin in list_pins(admin)] == [4]


def test_what_does_not_fit_under_the_ceiling_is_a_warning(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=500_000) as daemon:
        bulk_insert(daemon.client, [tile(block.key(), disk_bytes=100_000)])
        done = run_tilecache(
            *("pins", "set", "route", "--zoom", 18),
            *("--cells", f"{block.x},{block.x + 9},{block.y},{block.y}"),
            admin_socket_path=daemon.admin_socket_path,
        )

    assert done.returncode == 0
    assert "WARNING: 100.0 kB are pinned or wait for upload, and about 900.0 kB are" in done.stderr
    assert "more than the ceiling (500.0 kB)" in done.stderr


def test_evict_delete_and_usage_speak_of_pins(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    run("pins", "set", "route", "--zoom", 18, "--cells", cells(keys, 0, 3))

    assert "4 tiles (400.0 kB); see `tilecache pins list`" in run("usage").stdout
    assert json.loads(run("usage", "--json").stdout)["pinned"]["tile_count"] == "4"
    kept = run("delete", "--zoom", 18, "--dry-run", "--yes")
    assert kept.returncode == 1
    assert "Would keep 4 matching tiles pinned by route" in kept.stdout
    evicted = run("evict", "--max-used", 0, "--yes")
    assert evicted.returncode == 1
    assert "upload or are being written; pins hold the remaining tiles." in evicted.stdout
    assert "Skipped 4 pinned tiles (pins: route)." in evicted.stdout

    assert run("delete", "--zoom", 18, "--yes", "--include-pinned", "--dry-run").returncode == 1
    rest = run("evict", "--free", "400kB", "--yes", "--include-pinned")
    assert rest.returncode == 0
    assert "Evicted 4 tiles (400.0 kB)" in rest.stdout
