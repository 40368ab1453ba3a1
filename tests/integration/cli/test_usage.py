"""`tilecache usage`."""

import json
from pathlib import Path

from tests.admin import evict
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.integration.cli.conftest import Run
from tests.tiles import Block, bulk_insert, tile
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


def test_usage_of_an_empty_cache_names_the_import(admin: TileCacheClient, run: Run) -> None:
    shown = run("usage")

    assert shown.returncode == 0
    assert "no tiles" in shown.stdout
    assert "tilecache import" in shown.stdout


def test_usage_has_one_line_for_each_figure(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    evict(admin, free_bytes=100_000)

    shown = run("usage")

    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    for name, expected in (
        ("stored", "10 tiles at zoom 18"),
        ("used", "950.0 kB; no ceiling"),
        ("stale", "none"),
        ("pending upload", "1 tile (50.0 kB); see `tilecache uploads list`"),
        ("pending removal", "1 tile (100.0 kB); see `tilecache evictions remove`"),
        ("googlemaps", "900.0 kB"),
        ("onboard_ingest", "50.0 kB"),
        ("fresh", "950.0 kB"),
    ):
        assert any(line.startswith(name) and expected in line for line in lines), (name, lines)


def test_usage_shows_the_ceiling_as_a_bar(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=100_000) as daemon:
        bulk_insert(daemon.client, [tile(block.key(), disk_bytes=75_000)])

        shown = run_tilecache("usage", admin_socket_path=daemon.admin_socket_path)

    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("used")]
    assert "━" in line
    assert "75.0 kB of 100.0 kB (75%)" in line
    assert "An insert beyond the ceiling is refused." in shown.stdout


def test_usage_as_json_has_every_figure(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    usage = json.loads(run("usage", "--json").stdout)

    assert usage["total"] == {"tile_count": "11", "used_bytes": "1050000"}
    assert usage["pending_upload"] == {"tile_count": "1", "used_bytes": "50000"}
    assert usage["pending_removal"] == {"tile_count": "0", "used_bytes": "0"}
    assert usage["max_used_bytes"] == "0"


def test_without_a_daemon_the_error_names_the_socket(tmp_path: Path) -> None:
    ended = run_tilecache("usage", admin_socket_path=tmp_path / "admin.sock")

    assert ended.returncode == 3
    assert f"{tmp_path / 'admin.sock'}: no such socket" in ended.stderr
