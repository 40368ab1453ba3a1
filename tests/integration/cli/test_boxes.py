"""Boxes across the antimeridian, and with latitude and longitude exchanged."""

import pytest

from tests.daemon_process import run_tilecache
from tests.integration.cli.conftest import Run
from tests.tiles import bulk_insert, tile, tile_key
from tilecache.client import TileCacheClient
from tilecache.mercator import cell_at

WIDE = "-20,176,-15,170"
NARROW = "-20,176,-15,-178"


@pytest.mark.parametrize("command", [["coverage"], ["query"], ["delete", "--dry-run"]])
def test_a_wide_box_across_the_antimeridian_is_refused_where_nobody_can_be_asked(
    admin: TileCacheClient, run: Run, command: list[str]
) -> None:
    ran = run(*command, "--zoom", 5, "--bbox", WIDE)

    assert ran.returncode == 2
    assert "crosses the antimeridian and is 354 degrees wide" in " ".join(ran.stderr.split())
    assert run(*command, "--zoom", 5, "--bbox", NARROW).returncode == 0


def test_on_a_terminal_it_is_asked(admin: TileCacheClient, answer: Run) -> None:
    for reply, code in (("n", 1), ("y", 0)):
        ran = answer(reply, "delete", "--dry-run", "--zoom", 5, "--bbox", WIDE)
        assert ran.returncode == code
        assert "354 degrees wide. Is that meant?" in ran.stderr


def test_a_sector_is_asked_for_too(admin: TileCacheClient, answer: Run) -> None:
    sector = ("sectors", "set", "fiji", "--class", "stable_rear", "--bbox", WIDE)
    assert answer("n", *sector).returncode == 1
    assert run_tilecache(*sector).returncode == 2


def test_a_box_that_is_valid_only_if_exchanged_is_refused_with_that_hint(run: Run) -> None:
    ran = run("coverage", "--zoom", 5, "--bbox", "176,-20,179,-15")

    assert ran.returncode == 4
    assert "with latitude and longitude exchanged it would be valid: --bbox -20,176,-15,179" in (
        " ".join(ran.stderr.split())
    )
    # Neither way.
    plain = run("coverage", "--zoom", 5, "--bbox", "176,-20,179,-195")
    assert plain.returncode == 4
    assert "exchanged" not in plain.stderr


@pytest.mark.parametrize("command", ["coverage", "query", "delete"])
def test_an_empty_answer_hints_at_tiles_of_the_exchanged_box(
    admin: TileCacheClient, run: Run, command: str
) -> None:
    x, y = cell_at(8, 48.0, 31.0)
    bulk_insert(admin, [tile(tile_key(8, x, y))])
    options = ["--dry-run"] if command == "delete" else ["--json"]

    ran = run(command, "--zoom", "7-8", "--bbox", "30,47,32,49", *options)
    assert ran.returncode == 0
    assert "with latitude and longitude exchanged: --bbox 47,30,49,32" in " ".join(
        ran.stderr.split()
    )
    right = run(command, "--zoom", "7-8", "--bbox", "47,30,49,32", *options)
    assert "exchanged" not in right.stderr
    nowhere = run(command, "--zoom", "7-8", "--bbox", "-30,47,-29,49", *options)
    assert "exchanged" not in nowhere.stderr
