"""`tilecache evict`."""

import pytest

from tests.admin import read_usage
from tests.integration.cli.conftest import Run
from tests.integration.cli.removals import split_json_lines
from tests.tiles import tile
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


def test_evict_tells_what_went_and_what_is_left_to_do(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("evict", "--free", "250kB", "--yes")

    assert done.returncode == 0, done.stderr
    assert "Evicted 3 tiles (300.0 kB); 750.0 kB are used now." in done.stdout
    for key in keys[:3]:
        assert tile(key).file_path in done.stdout
    assert "tilecache evictions remove" in done.stdout
    assert read_usage(admin).total.tile_count == 8


@pytest.mark.parametrize(
    ("size", "evicted"), [("500kB", 6), ("500000", 6), ("512KiB", 6), ("0.9 MB", 2), ("2GiB", 0)]
)
def test_sizes_are_written_as_people_do(
    admin: TileCacheClient, keys: list[TileKey], run: Run, size: str, evicted: int
) -> None:
    tried = run("evict", "--max-used", size, "--dry-run", "--json")

    tiles, summary = split_json_lines(tried)
    assert summary["evicted_count"] == str(len(tiles)) == str(evicted)


def test_a_dry_run_changes_nothing(admin: TileCacheClient, keys: list[TileKey], run: Run) -> None:
    tried = run("evict", "--max-used", "900kB", "--dry-run")

    assert tried.returncode == 0
    assert "Would evict 2 tiles (200.0 kB)" in tried.stdout
    assert "Nothing was changed" in tried.stdout
    assert read_usage(admin).total.tile_count == 11


def test_evict_says_in_words_why_no_more_could_go(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    done = run("evict", "--max-used", "0", "--yes")

    assert done.returncode == 1
    assert "The goal is not met: what is left waits for upload" in done.stdout
    assert "1 tiles were passed over" in done.stdout

    rest = run("evict", "--max-used", "0", "--yes", "--include-pending-uploads")
    assert rest.returncode == 0
    assert "Evicted 1 tile (50.0 kB); 0 bytes are used now." in rest.stdout


def test_evict_asks_on_a_terminal(admin: TileCacheClient, keys: list[TileKey], answer: Run) -> None:
    refused = answer("n", "evict", "--free", "1MB")
    assert refused.returncode == 1
    assert "This evicts 10 tiles (1.0 MB). Go on?" in refused.stderr
    assert read_usage(admin).total.tile_count == 11

    agreed = answer("y", "evict", "--free", "1MB")
    assert agreed.returncode == 0
    assert read_usage(admin).total.tile_count == 1


def test_what_the_daemon_refuses_is_told_by_its_field(admin: TileCacheClient, run: Run) -> None:
    ended = run("evict", "--free", "0", "--yes")

    assert ended.returncode == 4
    assert "free_bytes: is 0" in ended.stderr
