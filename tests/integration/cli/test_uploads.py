"""`tilecache uploads`."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.admin import read_usage
from tests.integration.cli.conftest import Run
from tests.tiles import FLIGHT, NOW, ONBOARD, Block, bulk_insert, sha256, tile, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey


@pytest.fixture
def uploads(admin: TileCacheClient, block: Block) -> list[TileKey]:
    """Tiles that wait for upload, oldest capture first; every other one of a flight."""
    keys = [block.key(i, 0, ONBOARD, FLIGHT if i % 2 else None) for i in range(4)]
    captures = [NOW - timedelta(hours=9 - i) for i in range(4)]
    bulk_insert(admin, [tile(key, captured_at=at) for key, at in zip(keys, captures, strict=True)])
    return keys


def test_uploads_are_listed_oldest_first(uploads: list[TileKey], run: Run) -> None:
    listed = run("uploads", "list")
    of_flight = run("uploads", "list", "--flight", FLIGHT, "--json")

    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        tile_uuid(key) for key in uploads
    ]
    assert [json.loads(line)["tile_uuid"] for line in of_flight.stdout.splitlines()] == [
        tile_uuid(key) for key in uploads[1::2]
    ]


def test_listed_tiles_can_be_marked(
    admin: TileCacheClient, uploads: list[TileKey], run: Run, tmp_path: Path
) -> None:
    pending = tmp_path / "pending.jsonl"
    pending.write_text(run("uploads", "list", "--json").stdout)

    marked, again = (run("uploads", "mark", "--from", pending) for _ in range(2))

    assert (marked.returncode, again.returncode) == (0, 0)
    assert "4 tiles marked" in marked.stdout
    assert "4 tiles already marked" in again.stdout
    assert read_usage(admin).pending_upload.tile_count == 0


def test_a_tile_with_other_content_is_not_marked(uploads: list[TileKey], run: Run) -> None:
    right = run("uploads", "mark", tile_uuid(uploads[0]), sha256("picture"))
    replaced = run("uploads", "mark", tile_uuid(uploads[1]), sha256("another"))

    assert (right.returncode, replaced.returncode) == (0, 1)
    assert f"{tile_uuid(uploads[1])}: not marked: the content has changed" in replaced.stderr
    assert len(run("uploads", "list").stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2"),
        ('{"tile_uuid": "x"}', "content_sha256"),
        ('["x"]', "line 2"),
    ],
)
def test_a_bad_line_is_reported_and_nothing_is_marked(
    admin: TileCacheClient,
    uploads: list[TileKey],
    run: Run,
    tmp_path: Path,
    line: str,
    message: str,
) -> None:
    good = json.dumps({"tile_uuid": tile_uuid(uploads[0]), "content_sha256": sha256("picture")})
    file = tmp_path / "pending.jsonl"
    file.write_text(f"{good}\n{line}\n")

    ended = run("uploads", "mark", "--from", file)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert read_usage(admin).pending_upload.tile_count == 4


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "y", "--from", "-"]])
def test_mark_needs_a_tile_or_a_file(run: Run, arguments: list[str]) -> None:
    ended = run("uploads", "mark", *arguments)

    assert ended.returncode == 2
    assert "--from" in ended.stderr
