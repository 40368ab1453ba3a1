"""Confirmation and usage errors of the commands that remove something."""

import pytest

from tests.admin import read_usage
from tests.daemon_process import run_tilecache
from tests.integration.cli.conftest import Run
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey

GIVE_IDS = "Give either ids, or --all-gone, perhaps with --root"


@pytest.mark.parametrize(
    "command",
    [
        ("evict", "--free", "1"),
        ("delete", "--zoom", "18"),
        ("evictions", "remove", "--root", "/"),
        ("sectors", "delete", "front"),
    ],
)
def test_without_a_terminal_and_yes_nothing_is_removed(
    admin: TileCacheClient, keys: list[TileKey], run: Run, command: tuple[str, ...]
) -> None:
    refused = run(*command)

    assert refused.returncode == 2
    assert "there is no terminal to ask for confirmation; use --yes" in refused.stderr
    assert read_usage(admin).total.tile_count == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evict"], "Give either --max-used or --free"),
        (["evict", "--free", "1", "--max-used", "2"], "Give either --max-used or --free"),
        (["evict", "--free", "lots"], "'lots' is not a size such as 500MB or 2GiB"),
        (["evict", "--free", "-5MB"], "is not a size"),
        (["evict", "--free", "9999999999TB"], "more than the maximum"),
        (["delete"], "Give either tile ids or at least one filter"),
        (["delete", "an-id", "--zoom", "3"], "Give either tile ids or at least one filter"),
        (["delete", "--bbox", "1,2,3"], "SOUTH,WEST,NORTH,EAST"),
        (["evictions", "confirm"], GIVE_IDS),
        (
            ["evictions", "confirm", "3", "--all-gone", "--root", "/"],
            GIVE_IDS,
        ),
        (["evictions", "confirm", "3", "--root", "/"], GIVE_IDS),
        (["evictions", "remove", "--root", "/nowhere/at/all"], "--root"),
    ],
)
def test_wrong_usage_is_reported_first(arguments: list[str], message: str) -> None:
    ended = run_tilecache(*arguments, "--socket", "/nowhere/admin.sock")

    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.replace("│", " ").split())
