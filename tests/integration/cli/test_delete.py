"""`tilecache delete`."""

import pytest

from tests.admin import read_usage
from tests.integration.cli.conftest import Run
from tests.integration.cli.removals import listed_paths, split_json_lines
from tests.tiles import NOW, Block, tile, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


def test_tiles_are_deleted_by_id(admin: TileCacheClient, keys: list[TileKey], run: Run) -> None:
    unknown = "00000000-0000-5000-8000-000000000000"

    done = run("delete", tile_uuid(keys[4]), unknown, "--yes")

    assert done.returncode == 1
    assert "Deleted 1 tile (100.0 kB)." in done.stdout
    assert f"{unknown}: not found" in done.stderr
    assert listed_paths(admin) == [tile(keys[4]).file_path]


@pytest.mark.parametrize(
    ("filters", "deleted", "exit_code"),
    [
        (["--zoom", "18", "--zoom", "17"], 10, 1),
        (["--zoom", "17"], 0, 0),
        (["--source", "googlemaps"], 10, 0),
        (["--source", "onboard_ingest"], 0, 1),
        (["--source", "onboard_ingest", "--include-pending-uploads"], 1, 0),
        (["--captured-before", f"{NOW:%Y-%m-%dT%H:%M:%S}"], 10, 1),
        (["--captured-before", "2020-01-01"], 0, 0),
        (["--flight", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"], 0, 0),
        (["--bbox", "-90,-180,90,180"], 10, 1),
        (["--circle", "0,90,1000"], 0, 0),
    ],
)
def test_tiles_are_deleted_by_filters(
    admin: TileCacheClient,
    keys: list[TileKey],
    run: Run,
    filters: list[str],
    deleted: int,
    exit_code: int,
) -> None:
    dry_run = run("delete", *filters, "--dry-run", "--json")
    assert read_usage(admin).total.tile_count == 11
    done = run("delete", *filters, "--yes", "--json")

    tiles, summary = split_json_lines(done)
    assert (len(tiles), summary["deleted_count"]) == (deleted, str(deleted))
    assert (dry_run.returncode, done.returncode) == (exit_code, exit_code)
    assert [one["tile_uuid"] for one in split_json_lines(dry_run)[0]] == [
        one["tile_uuid"] for one in tiles
    ]
    assert read_usage(admin).total.tile_count == 11 - deleted


def test_tiles_are_deleted_by_cells(
    admin: TileCacheClient, keys: list[TileKey], block: Block, run: Run
) -> None:
    cells = f"{block.x},{block.x + 3},{block.y},{block.y}"

    run("delete", "--cells", cells, "--zoom", "18", "--source", "googlemaps", "--yes")

    assert sorted(listed_paths(admin)) == sorted(tile(key).file_path for key in keys[:4])


def test_delete_reports_what_is_kept_and_why(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("delete", "--zoom", "18", "--yes")

    assert "Deleted 10 tiles (1.0 MB)." in done.stdout
    assert "Kept 1 matching tile pending upload" in done.stdout


def test_delete_asks_for_confirmation_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], answer: Run
) -> None:
    declined = answer("n", "delete", "--source", "googlemaps")
    assert declined.returncode == 1
    assert "This deletes 10 tiles (1.0 MB). Continue?" in declined.stderr
    assert read_usage(admin).total.tile_count == 11

    assert answer("y", "delete", "--source", "googlemaps").returncode == 0
    assert read_usage(admin).total.tile_count == 1
