"""`tilecache evict`."""

import pytest

from tests.admin import read_usage
from tests.integration.cli.conftest import Run
from tests.integration.cli.removals import split_json_lines
from tests.tiles import tile
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


def test_evict_lists_the_tiles_and_names_the_next_step(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("evict", "--free", "250kB", "--yes")

    assert done.returncode == 0, done.stderr
    assert "Evicted 3 tiles (300.0 kB); 750.0 kB remain in use." in done.stdout
    for key in keys[:3]:
        assert tile(key).file_path in done.stdout
    assert "tilecache evictions remove" in done.stdout
    assert read_usage(admin).total.tile_count == 8


@pytest.mark.parametrize(
    ("size", "evicted"), [("500kB", 6), ("500000", 6), ("512KiB", 6), ("0.9 MB", 2), ("2GiB", 0)]
)
def test_sizes_have_units(
    admin: TileCacheClient, keys: list[TileKey], run: Run, size: str, evicted: int
) -> None:
    dry_run = run("evict", "--max-used", size, "--dry-run", "--json")

    tiles, summary = split_json_lines(dry_run)
    assert summary["evicted_count"] == str(len(tiles)) == str(evicted)


def test_a_dry_run_changes_nothing(admin: TileCacheClient, keys: list[TileKey], run: Run) -> None:
    dry_run = run("evict", "--max-used", "900kB", "--dry-run")

    assert dry_run.returncode == 0
    assert "Would evict 2 tiles (200.0 kB)" in dry_run.stdout
    assert "Nothing was changed" in dry_run.stdout
    assert read_usage(admin).total.tile_count == 11


def test_evict_gives_the_reason_if_the_goal_was_not_reached(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("evict", "--max-used", "0", "--yes")

    assert done.returncode == 1
    assert "The goal was not reached: the remaining tiles wait for upload" in done.stdout
    assert "Skipped 1 tile pending upload." in done.stdout

    rest = run("evict", "--max-used", "0", "--yes", "--include-pending-uploads")
    assert rest.returncode == 0
    assert "Evicted 1 tile (50.0 kB); 0 bytes remain in use." in rest.stdout


def test_evict_asks_for_confirmation_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], answer: Run
) -> None:
    declined = answer("n", "evict", "--free", "1MB")
    assert declined.returncode == 1
    assert "This evicts 10 tiles (1.0 MB). Continue?" in declined.stderr
    assert read_usage(admin).total.tile_count == 11

    agreed = answer("y", "evict", "--free", "1MB")
    assert agreed.returncode == 0
    assert read_usage(admin).total.tile_count == 1


def test_a_refusal_of_the_daemon_names_the_field(admin: TileCacheClient, run: Run) -> None:
    ended = run("evict", "--free", "0", "--yes")

    assert ended.returncode == 4
    assert "free_bytes: is 0" in ended.stderr
