"""What the commands that remove something have in common."""

import pytest

from tests.admin import read_usage
from tests.daemon_process import run_tilecache
from tests.integration.cli.conftest import Run
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


@pytest.mark.parametrize(
    "command",
    [
        ("evict", "--free", "1"),
        ("delete", "--zoom", "18"),
        ("evictions", "remove", "--root", "/"),
        ("sectors", "delete", "front"),
    ],
)
def test_without_a_terminal_and_without_yes_nothing_is_removed(
    admin: TileCacheClient, keys: list[TileKey], run: Run, command: tuple[str, ...]
) -> None:
    refused = run(*command)

    assert refused.returncode == 2
    assert "there is no terminal to ask on; give --yes" in refused.stderr
    assert read_usage(admin).total.tile_count == 11


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evict"], "one of --max-used and --free"),
        (["evict", "--free", "1", "--max-used", "2"], "one of --max-used and --free"),
        (["evict", "--free", "lots"], "'lots' is no size such as 500MB or 2GiB"),
        (["evict", "--free", "-5MB"], "is no size"),
        (["evict", "--free", "9999999999TB"], "more than there can be"),
        (["delete"], "Give ids, or at least one filter"),
        (["delete", "an-id", "--zoom", "3"], "and not both"),
        (["delete", "--bbox", "1,2,3"], "SOUTH,WEST,NORTH,EAST"),
        (["evictions", "confirm"], "Give ids, or --all-gone"),
        (["evictions", "confirm", "3", "--all-gone", "--root", "/"], "Give ids, or --all-gone"),
        (["evictions", "confirm", "--all-gone"], "Give ids, or --all-gone"),
        (["evictions", "remove", "--root", "/nowhere/at/all"], "--root"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(arguments: list[str], told: str) -> None:
    ended = run_tilecache(*arguments, "--socket", "/nowhere/admin.sock")

    assert ended.returncode == 2
    assert told in " ".join(ended.stderr.replace("│", " ").split())
