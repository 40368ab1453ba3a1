"""`tilecache sectors`, `rules` and `explain`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.admin import read_label
from tests.integration.cli.conftest import Run
from tests.tiles import (
    NOW,
    insert,
    tile,
    tile_key,
    tile_uuid,
)
from tilecache.client import TileCacheClient

# Without sectors, with the default rules.
pytestmark = pytest.mark.usefixtures("admin")

IN_FRONT = tile_key(10, 583, 356)
BOX = "40,20,50,30"


def set_front(run: Run) -> Any:
    return run("sectors", "set", "the front", "--class", "active_conflict", "--bbox", BOX)


def test_a_sector_is_set_listed_and_deleted(admin: TileCacheClient, run: Run) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=400)))

    made = set_front(run)
    assert made.returncode == 0, made.stderr
    assert "Set sector the front. Relabelled 1 tile." in made.stdout
    listed = run("sectors", "list").stdout
    assert "the front" in listed
    assert "active_conflict" in listed
    assert BOX in listed
    (sector,) = json.loads(run("sectors", "list", "--json").stdout)
    assert sector["bounding_box"] == {"south": 40, "west": 20, "north": 50, "east": 30}

    deleted = run("sectors", "delete", "the front", "--yes")
    assert deleted.returncode == 0
    assert read_label(admin, IN_FRONT) == "fresh"
    assert json.loads(run("sectors", "list", "--json").stdout) == []


def test_a_sector_may_cross_the_antimeridian(run: Run) -> None:
    made = run("sectors", "set", "fiji", "--class", "stable_rear", "--bbox", "-20,176,-15,-178")

    assert made.returncode == 0, made.stderr
    assert "-20,176,-15,-178" in run("sectors", "list").stdout


def test_a_name_in_brackets_is_shown_unchanged(run: Run, admin: TileCacheClient) -> None:
    run("sectors", "set", "[old] front", "--class", "stable_rear", "--bbox", BOX)
    insert(admin, tile(IN_FRONT))

    assert "[old] front" in run("sectors", "list").stdout
    assert "[old] front stable_rear" in run("explain", tile_uuid(IN_FRONT)).stdout


def test_deleting_a_sector_has_a_dry_run_and_asks_for_confirmation(run: Run, answer: Run) -> None:
    set_front(run)

    dry_run = run("sectors", "delete", "the front", "--dry-run")
    declined = answer("n", "sectors", "delete", "the front")

    assert dry_run.returncode == 0
    assert (
        f"Would delete sector the front active_conflict {BOX}. Nothing was changed."
        in dry_run.stdout
    )
    assert declined.returncode == 1
    assert "Continue?" in declined.stderr
    assert "the front" in run("sectors", "list").stdout


def test_deleting_an_unknown_sector_fails(run: Run) -> None:
    ended = run("sectors", "delete", "nowhere", "--yes")

    assert ended.returncode == 1
    assert "there is no sector 'nowhere'" in ended.stderr


def test_an_invalid_sector_is_refused_by_its_field(run: Run) -> None:
    ended = run("sectors", "set", "front", "--class", "active_conflict", "--bbox", "50,20,40,30")

    assert ended.returncode == 4
    assert "sector.bounding_box.south" in ended.stderr


def test_rules_are_listed_and_set(run: Run) -> None:
    set_ = run("rules", "set", "active_conflict", "--max-age-months", "3", "--action", "downgrade")

    assert set_.returncode == 0, set_.stderr
    assert json.loads(run("rules", "list", "--json").stdout) == [
        {
            "classification": "SECTOR_CLASSIFICATION_ACTIVE_CONFLICT",
            "max_age_months": 3,
            "action": "FRESHNESS_ACTION_DOWNGRADE",
        },
        {
            "classification": "SECTOR_CLASSIFICATION_STABLE_REAR",
            "max_age_months": 12,
            "action": "FRESHNESS_ACTION_DOWNGRADE",
        },
    ]
    lines = run("rules", "list").stdout.splitlines()
    assert any("active_conflict" in line and "3 months" in line for line in lines)


@pytest.mark.parametrize(
    ("months", "exit_code"), [("0", 4), ("1201", 4), ("99999999999", 2), ("x", 2)]
)
def test_an_invalid_rule_is_refused(run: Run, months: str, exit_code: int) -> None:
    ended = run("rules", "set", "stable_rear", "--max-age-months", months, "--action", "reject")

    assert ended.returncode == exit_code
    assert "max" in ended.stderr


@pytest.mark.parametrize("by", ["id", "key"])
def test_explain_names_the_sector_and_the_rule(admin: TileCacheClient, run: Run, by: str) -> None:
    set_front(run)
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=40)))
    named = [tile_uuid(IN_FRONT)] if by == "id" else [IN_FRONT.zoom, IN_FRONT.x, IN_FRONT.y]

    shown = run("explain", *named)

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(
        "The tile is in sector 'the front' (active_conflict), "
        "whose rule rejects tiles after 6 months."
    )
    assert "1 month (40 days)" in shown.stdout
    facts = json.loads(run("explain", *named, "--json").stdout)
    assert facts["sector"]["name"] == "the front"
    assert facts["next_label"] == "FRESHNESS_LABEL_REJECTED"


def test_explain_fails_for_an_unknown_tile(run: Run) -> None:
    ended = run("explain", 3, 1, 1)

    assert ended.returncode == 1
    assert "there is no tile" in ended.stderr


AREA = {
    "type": "Polygon",
    "coordinates": [[[20, 40], [30, 40], [30, 50], [20, 50], [20, 40]]],
}


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(AREA))
    return path


def test_a_sector_may_be_the_polygon_of_a_file(
    admin: TileCacheClient, run: Run, area: Path
) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=400)))

    made = run("sectors", "set", "city", "--class", "active_conflict", "--area", area)
    assert made.returncode == 0, made.stderr
    assert "Relabelled 1 tile." in made.stdout
    assert "polygon of 4 points" in run("sectors", "list").stdout
    for arguments in (["--area", area, "--bbox", BOX], []):
        refused = run("sectors", "set", "city", "--class", "active_conflict", *arguments)
        assert refused.returncode == 2
    several = run(
        *("sectors", "set", "city", "--class", "active_conflict"),
        *("--area", Path(__file__).parents[2] / "plans/areas.geojson"),
    )
    assert several.returncode == 2
    assert "has 2 shapes, must be one polygon" in several.stderr


def test_a_dry_run_shows_what_would_be_relabelled(admin: TileCacheClient, run: Run) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=400)))
    sector = ("sectors", "set", "front", "--class", "active_conflict", "--bbox", BOX)

    tried = run(*sector, "--dry-run")
    assert tried.stdout == (
        "fresh to rejected: 1 tile, 0 of them used within the last seven days\n"
        "Would set sector front and relabel 1 tile. Nothing was changed.\n"
    )
    counts, summary = map(json.loads, run(*sector, "--dry-run", "--json").stdout.splitlines())
    assert counts == {
        "kind": "relabelled",
        "old_label": "fresh",
        "new_label": "rejected",
        "tile_count": 1,
        "recently_used_count": 0,
    }
    assert summary == {"kind": "summary", "relabelled_count": 1, "dry_run": True}
    assert json.loads(run("sectors", "list", "--json").stdout) == []
    set_front(run)
    rule = ("rules", "set", "active_conflict", "--max-age-months", 5, "--action", "downgrade")
    assert "rejected to downgraded: 1 tile" in run(*rule, "--dry-run").stdout
    assert read_label(admin, IN_FRONT) == "rejected"


def test_a_change_that_relabels_is_asked_for_on_a_terminal(
    admin: TileCacheClient, run: Run, answer: Run
) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=400)))
    sector = ("sectors", "set", "front", "--class", "active_conflict", "--bbox", BOX)

    declined = answer("n", *sector)
    assert declined.returncode == 1
    assert "fresh to rejected: 1 tile" in declined.stderr
    assert "This relabels 1 tile. Continue?" in declined.stderr
    assert json.loads(run("sectors", "list", "--json").stdout) == []
    assert answer("", *sector, "--yes").returncode == 0
    rule = ("rules", "set", "active_conflict", "--max-age-months", 5, "--action", "downgrade")
    assert answer("n", *rule).returncode == 1
    assert answer("y", *rule).returncode == 0
    assert read_label(admin, IN_FRONT) == "downgraded"
    # Nothing would be relabelled, so nothing is asked.
    assert answer("", *rule).returncode == 0
