"""`tilecache sectors`, `rules`, `explain` and `uploads`."""

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.admin import read_label, read_usage
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.terminal import answer_tilecache
from tests.tiles import (
    FLIGHT,
    NOW,
    ONBOARD,
    Block,
    bulk_insert,
    insert,
    sha256,
    tile,
    tile_key,
    tile_uuid,
)
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey

IN_FRONT = tile_key(10, 583, 356)
BOX = "40,20,50,30"


@pytest.fixture
def run(shared_daemon: DaemonProcess, admin: TileCacheClient) -> Any:
    """Runs a command against the module's daemon, whose cache is empty."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return run_tilecache(
            *arguments,
            socket_path=shared_daemon.socket_path,
            admin_socket_path=shared_daemon.admin_socket_path,
        )

    return run


def set_front(run: Any) -> Any:
    return run("sectors", "set", "the front", "--class", "active_conflict", "--bbox", BOX)


def test_a_sector_is_set_listed_and_deleted(admin: TileCacheClient, run: Any) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=400)))

    made = set_front(run)
    assert made.returncode == 0, made.stderr
    assert "the front is set. 1 tiles have another label now." in made.stdout
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


def test_a_sector_may_cross_the_antimeridian(run: Any) -> None:
    made = run("sectors", "set", "fiji", "--class", "stable_rear", "--bbox", "-20,176,-15,-178")

    assert made.returncode == 0, made.stderr
    assert "-20,176,-15,-178" in run("sectors", "list").stdout


def test_a_name_in_brackets_is_shown_as_it_is(run: Any, admin: TileCacheClient) -> None:
    run("sectors", "set", "[old] front", "--class", "stable_rear", "--bbox", BOX)
    insert(admin, tile(IN_FRONT))

    assert "[old] front" in run("sectors", "list").stdout
    assert "[old] front stable_rear" in run("explain", tile_uuid(IN_FRONT)).stdout


def test_deleting_a_sector_can_be_tried_and_asks(run: Any, shared_daemon: DaemonProcess) -> None:
    set_front(run)
    socket = shared_daemon.admin_socket_path

    tried = run("sectors", "delete", "the front", "--dry-run")
    refused = answer_tilecache("n", "sectors", "delete", "the front", admin_socket_path=socket)

    assert tried.returncode == 0
    assert f"Would delete the front active_conflict {BOX}. Nothing was changed." in tried.stdout
    assert refused.returncode == 1
    assert "Go on?" in refused.stderr
    assert "the front" in run("sectors", "list").stdout


def test_a_sector_that_is_not_there_is_told(run: Any) -> None:
    ended = run("sectors", "delete", "nowhere", "--yes")

    assert ended.returncode == 1
    assert "there is no sector 'nowhere'" in ended.stderr


def test_a_sector_that_contradicts_itself_is_told_by_its_field(run: Any) -> None:
    ended = run("sectors", "set", "front", "--class", "active_conflict", "--bbox", "50,20,40,30")

    assert ended.returncode == 4
    assert "sector.bounding_box.south" in ended.stderr


def test_rules_are_listed_and_set(run: Any) -> None:
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
def test_a_rule_that_makes_no_sense_is_told(run: Any, months: str, exit_code: int) -> None:
    ended = run("rules", "set", "stable_rear", "--max-age-months", months, "--action", "reject")

    assert ended.returncode == exit_code
    assert "max" in ended.stderr


@pytest.mark.parametrize("by", ["id", "key"])
def test_a_tile_is_explained_in_words(admin: TileCacheClient, run: Any, by: str) -> None:
    set_front(run)
    insert(admin, tile(IN_FRONT, captured_at=NOW - timedelta(days=40)))
    named = [tile_uuid(IN_FRONT)] if by == "id" else [IN_FRONT.zoom, IN_FRONT.x, IN_FRONT.y]

    told = run("explain", *named)

    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(
        "The tile is in sector 'the front' (active_conflict), "
        "whose rule rejects tiles after 6 months."
    )
    assert "1 months (40 days)" in told.stdout
    facts = json.loads(run("explain", *named, "--json").stdout)
    assert facts["sector"]["name"] == "the front"
    assert facts["next_label"] == "FRESHNESS_LABEL_REJECTED"


def test_a_tile_that_is_not_there_cannot_be_explained(run: Any) -> None:
    ended = run("explain", 3, 1, 1)

    assert ended.returncode == 1
    assert "there is no tile" in ended.stderr


@pytest.fixture
def uploads(admin: TileCacheClient, block: Block) -> list[TileKey]:
    """Tiles that wait for upload, oldest capture first; every other one of a flight."""
    keys = [block.key(i, 0, ONBOARD, FLIGHT if i % 2 else None) for i in range(4)]
    captures = [NOW - timedelta(hours=9 - i) for i in range(4)]
    bulk_insert(admin, [tile(key, captured_at=at) for key, at in zip(keys, captures, strict=True)])
    return keys


def test_uploads_are_listed_oldest_first(uploads: list[TileKey], run: Any) -> None:
    listed = run("uploads", "list")
    of_flight = run("uploads", "list", "--flight", FLIGHT, "--json")

    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        tile_uuid(key) for key in uploads
    ]
    assert [json.loads(line)["tile_uuid"] for line in of_flight.stdout.splitlines()] == [
        tile_uuid(key) for key in uploads[1::2]
    ]


def test_what_was_listed_can_be_marked(
    admin: TileCacheClient, uploads: list[TileKey], run: Any, tmp_path: Path
) -> None:
    pending = tmp_path / "pending.jsonl"
    pending.write_text(run("uploads", "list", "--json").stdout)

    marked, again = (run("uploads", "mark", "--from", pending) for _ in range(2))

    assert (marked.returncode, again.returncode) == (0, 0)
    assert "4: marked" in marked.stdout
    assert "4: was marked before" in again.stdout
    assert read_usage(admin).pending_upload.tile_count == 0


def test_what_cannot_be_marked_is_told(uploads: list[TileKey], run: Any) -> None:
    right = run("uploads", "mark", tile_uuid(uploads[0]), sha256("picture"))
    replaced = run("uploads", "mark", tile_uuid(uploads[1]), sha256("another"))

    assert (right.returncode, replaced.returncode) == (0, 1)
    assert f"{tile_uuid(uploads[1])}: has another content by now" in replaced.stderr
    assert len(run("uploads", "list").stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("not json", "line 2"),
        ('{"tile_uuid": "x"}', "content_sha256"),
        ('["x"]', "line 2"),
    ],
)
def test_a_bad_line_is_told_and_nothing_is_marked(
    admin: TileCacheClient,
    uploads: list[TileKey],
    run: Any,
    tmp_path: Path,
    line: str,
    told: str,
) -> None:
    good = json.dumps({"tile_uuid": tile_uuid(uploads[0]), "content_sha256": sha256("picture")})
    file = tmp_path / "pending.jsonl"
    file.write_text(f"{good}\n{line}\n")

    ended = run("uploads", "mark", "--from", file)

    assert ended.returncode == 2
    assert told in ended.stderr
    assert read_usage(admin).pending_upload.tile_count == 4


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "y", "--from", "-"]])
def test_marking_takes_a_tile_or_a_file(run: Any, arguments: list[str]) -> None:
    ended = run("uploads", "mark", *arguments)

    assert ended.returncode == 2
    assert "--from" in ended.stderr
