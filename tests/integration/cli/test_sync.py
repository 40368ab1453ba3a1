"""`tilecache sync` between two daemons."""

import json
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.admin import ACTIVE_CONFLICT, set_sector
from tests.daemon_process import run_tilecache
from tests.integration.cli.pairs import (
    Pair,
    lines_of,
    put,
    store_with_files,
    stored,
    summary_of,
    sync,
)
from tests.tiles import (
    NOW,
    ONBOARD,
    YESTERDAY,
    Block,
    bulk_insert,
    insert,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
)

# Which tiles differ, and which one stays.


def test_both_sides_end_with_the_same_tiles(pair: Pair, block: Block) -> None:
    common, only_here, only_there, newer_here, newer_there = list(block.keys(5))
    flight = random_flight()
    onboard = block.key(source=ONBOARD, flight_id=flight)
    far = tile_key(12, 5, 7)
    sides = {
        pair.here: [common, only_here, newer_there],
        pair.there: [common, only_there, newer_here, onboard, far],
    }
    for side, keys in sides.items():
        bulk_insert(side.client, [tile(key) for key in keys])
    insert(pair.here.client, tile(newer_here, "newer", captured_at=NOW))
    insert(pair.there.client, tile(newer_there, "newer", captured_at=NOW, file_path="new.jpg"))
    assert not pair.equal

    fetched = sync(pair.here, pair.there, "--json")

    assert fetched.returncode == 0, fetched.stderr
    summary = summary_of(fetched)
    assert (summary["inserted_count"], summary["replaced_count"]) == (3, 1)
    assert summary["kept_tile_count"] == 1
    assert sync(pair.there, pair.here).returncode == 0
    assert pair.equal
    tiles = stored(pair.there.client)
    assert len(tiles) == 7
    for key in (newer_here, newer_there):
        assert tiles[tile_uuid(key)].content_sha256 == sha256("newer")
    again = summary_of(sync(pair.here, pair.there, "--json"))
    assert again["differing_block_count"] == again["inserted_count"] == 0


@pytest.mark.parametrize("first", ["here", "there"])
def test_of_two_contents_of_one_time_the_larger_hash_stays_on_both_sides(
    pair: Pair, block: Block, first: str
) -> None:
    smaller, larger = sorted(("one picture", "another picture"), key=sha256)
    keys = list(block.keys(2))
    insert(pair.here.client, tile(keys[0], smaller))
    insert(pair.there.client, tile(keys[0], larger, file_path="0.jpg"))
    insert(pair.here.client, tile(keys[1], larger, file_path="1.jpg"))
    insert(pair.there.client, tile(keys[1], smaller))
    sides = [pair.here, pair.there]
    if first == "there":
        sides.reverse()

    for side, other in (sides, sides[::-1]):
        assert sync(side, other).returncode == 0

    assert pair.equal
    for side in sides:
        contents = {each.content_sha256 for each in stored(side.client).values()}
        assert contents == {sha256(larger)}


def test_only_the_zooms_and_the_region_are_compared(pair: Pair) -> None:
    inside, same_block, outside = (tile_key(18, 3_200 + at, 3_200) for at in (0, 31, 32))
    other_zoom = tile_key(17, 1_600, 1_600)
    bulk_insert(pair.there.client, list(map(tile, (inside, same_block, outside, other_zoom))))
    cells = "3200,3201,3200,3201"

    run = sync(pair.here, pair.there, "--zoom", 18, "--cells", cells)

    assert run.returncode == 0, run.stderr
    assert set(stored(pair.here.client)) == {tile_uuid(inside), tile_uuid(same_block)}
    assert sync(pair.here, pair.there, "--zoom", "17-18").returncode == 0
    assert pair.equal


def test_what_was_carried_is_as_it_was_and_the_rest_is_local(pair: Pair, block: Block) -> None:
    key = block.key(source=ONBOARD, flight_id=random_flight())
    uploaded_at = timestamp(YESTERDAY + timedelta(hours=1))
    quality = {"sharpness": 0.5, "tags": ["a", "b"]}
    sent = tile(key, tile_size_pixels=512, uploaded_at=uploaded_at)
    sent.quality_metadata.update(quality)
    insert(pair.there.client, sent)

    assert sync(pair.here, pair.there).returncode == 0

    (there,), (here,) = (stored(side.client).values() for side in (pair.there, pair.here))
    assert here.uploaded_at == uploaded_at
    for each in (here, there):
        each.ClearField("created_at")
        each.ClearField("accessed_at")
    assert here == there


def test_rows_that_do_not_fit_into_a_message_together_cost_themselves_alone(
    pair: Pair, second_database: str, block: Block
) -> None:
    """Neither an answer with all of them nor a batch of them would be possible."""
    good, *long = block.keys(6)
    insert(pair.there.client, tile(good))
    with psycopg.connect(second_database, autocommit=True) as sql:
        for key in long:
            quality = json.dumps({"text": "x" * 2_000_000})
            content = {"content_sha256": sha256("long"), "disk_bytes": 1}
            store_row(sql, key, tile_quality_metadata=quality, **content)

    run = sync(pair.here, pair.there, "--json")

    assert run.returncode == 1
    refused = [line["reason"] for line in lines_of(run)[:-1] if line["kind"] == "refused"]
    assert refused == ["INVALID_REQUEST"] * len(long), run.stderr
    assert set(stored(pair.here.client)) == {tile_uuid(good)}


def test_a_later_capture_of_the_same_content_keeps_the_path(pair: Pair, block: Block) -> None:
    key = block.key()
    insert(pair.here.client, tile(key, file_path="here.jpg"))
    insert(pair.there.client, tile(key, file_path="there.jpg", captured_at=NOW))

    run = sync(pair.here, pair.there, "--json")

    assert [line["kind"] for line in lines_of(run)] == ["summary"], "no file is needed"
    assert pair.equal
    (here,) = stored(pair.here.client).values()
    assert here.file_path == "here.jpg"


# Files.


def test_files_are_copied_before_their_tiles_are_stored(pair: Pair, block: Block) -> None:
    tiles = store_with_files(pair.there.client, pair.there_tiles, list(block.keys(20)))
    taken = tiles[3]
    put(pair.here_tiles, taken.file_path, "another tile's picture")
    put(pair.here_tiles, tiles[4].file_path, (pair.there_tiles / tiles[4].file_path).read_text())

    run = sync(pair.here, pair.there, "--copy-from", pair.there_tiles, "--json")

    assert run.returncode == 0, run.stderr
    assert summary_of(run)["copied_file_count"] == 19
    assert pair.equal
    for each in stored(pair.here.client).values():
        assert sha256((pair.here_tiles / each.file_path).read_text()) == each.content_sha256
    assert (pair.here_tiles / taken.file_path).read_text() == "another tile's picture"


def test_a_tile_whose_file_is_missing_or_another_is_refused(pair: Pair, block: Block) -> None:
    tiles = store_with_files(pair.there.client, pair.there_tiles, list(block.keys(4)))
    (pair.there_tiles / tiles[0].file_path).unlink()
    put(pair.there_tiles, tiles[1].file_path, "damaged")
    options = ("--copy-from", pair.there_tiles, "--json")

    preview = sync(pair.here, pair.there, *options, "--dry-run")
    run = sync(pair.here, pair.there, *options)

    for each in (preview, run):
        assert each.returncode == 1
        refused = [line for line in lines_of(each) if line["kind"] == "refused"]
        assert {(line["file_path"], line["reason"]) for line in refused} == {
            (tiles[0].file_path, "MISSING_FILE"),
            (tiles[1].file_path, "WRONG_CONTENT"),
        }
    assert set(stored(pair.here.client)) == {tile_uuid(each.key) for each in tiles[2:]}
    assert not (pair.here_tiles / tiles[1].file_path).exists()


def test_a_tile_that_is_refused_here_leaves_no_file(pair: Pair, block: Block) -> None:
    (fresh,) = store_with_files(pair.there.client, pair.there_tiles, [block.key(0)])
    (old,) = store_with_files(
        pair.there.client,
        pair.there_tiles,
        [block.key(1)],
        captured_at=NOW - timedelta(days=1_000),
    )
    set_sector(pair.here.admin_client, "front", ACTIVE_CONFLICT, (-85.0, -180.0, 85.0, 180.0))

    run = sync(pair.here, pair.there, "--copy-from", pair.there_tiles, "--json")

    assert run.returncode == 1
    assert [line["reason"] for line in lines_of(run) if line["kind"] == "refused"] == [
        "TILE_TOO_OLD"
    ]
    assert set(stored(pair.here.client)) == {tile_uuid(fresh.key)}
    assert (pair.here_tiles / fresh.file_path).exists()
    assert not (pair.here_tiles / old.file_path).exists()


def test_without_a_directory_the_files_are_listed_for_rsync(pair: Pair, block: Block) -> None:
    tiles = [tile(key, str(number)) for number, key in enumerate(block.keys(10))]
    bulk_insert(pair.there.client, tiles)
    paths = {each.file_path for each in tiles}

    preview = sync(pair.here, pair.there, "--dry-run")
    assert set(preview.stdout.splitlines()) == paths
    assert stored(pair.here.client) == {}
    *as_json, _ = lines_of(sync(pair.here, pair.there, "--dry-run", "--json"))
    assert {(line["file_path"], line["content_sha256"]) for line in as_json} == {
        (each.file_path, each.content_sha256) for each in tiles
    }

    run = sync(pair.here, pair.there)
    assert set(run.stdout.splitlines()) == paths
    assert pair.equal


def test_a_tile_of_unknown_content_is_refused(
    pair: Pair, second_database: str, block: Block
) -> None:
    with psycopg.connect(second_database, autocommit=True) as sql:
        store_row(sql, block.key())

    run = sync(pair.here, pair.there, "--json")

    assert run.returncode == 1
    assert lines_of(run)[0]["reason"] == "UNKNOWN_CONTENT"


# Uploads.


def test_pending_uploads_are_pushed_and_marked(pair: Pair, block: Block) -> None:
    flight = random_flight()
    keys = [block.key(column, source=ONBOARD, flight_id=flight) for column in range(5)]
    bulk_insert(pair.here.client, [tile(key) for key in keys])
    # The other daemon has one of them already, and a later one of another.
    insert(pair.there.client, tile(keys[0], uploaded_at=timestamp(YESTERDAY)))
    insert(pair.there.client, tile(keys[1], "later", captured_at=NOW))

    preview = summary_of(sync(pair.here, pair.there, "--push-uploads", "--dry-run", "--json"))
    assert (preview["pending_upload_count"], preview["marked_count"]) == (5, 0)
    assert len(stored(pair.here.client, pending_upload=True)) == 5
    assert len(stored(pair.there.client)) == 2

    run = sync(pair.here, pair.there, "--push-uploads", "--json")

    assert run.returncode == 0, run.stderr
    summary = summary_of(run)
    assert (summary["marked_count"], summary["not_taken_count"]) == (4, 1)
    assert pair.equal
    # What was fetched in the place of the fifth waits for upload, as it does there.
    for side in (pair.here, pair.there):
        assert set(stored(side.client, pending_upload=True)) == {tile_uuid(keys[1])}


def test_what_the_other_side_refuses_stays_pending(pair: Pair, block: Block) -> None:
    flight = random_flight()
    fresh, old = (block.key(column, source=ONBOARD, flight_id=flight) for column in range(2))
    insert(pair.here.client, tile(fresh))
    insert(pair.here.client, tile(old, captured_at=NOW - timedelta(days=1_000)))
    set_sector(pair.there.admin_client, "front", ACTIVE_CONFLICT, (-85.0, -180.0, 85.0, 180.0))

    run = sync(pair.here, pair.there, "--push-uploads", "--json")

    assert run.returncode == 1
    assert summary_of(run)["push_refused_count"] == 1
    assert set(stored(pair.here.client, pending_upload=True)) == {tile_uuid(old)}


# Mistakes.


def test_a_daemon_that_does_not_answer_is_named(pair: Pair, tmp_path: Path) -> None:
    run = run_tilecache("sync", "--from", tmp_path / "none.sock", socket_path=pair.here.socket_path)

    assert run.returncode == 3
    assert "none.sock" in run.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--from", "ground.example:7443"], "--tls-ca"),
        (["--from", "a/socket", "--tls-ca", __file__], "--tls"),
        (["--from", "a/socket", "--root", "/"], "--copy-from"),
        (["--from", "a/socket", "--cells", "0,1,0,1"], "--zoom"),
        (["--from", "a/socket", "--cells", "0,1,0,1", "--zoom", "3-4"], "--zoom"),
        ([], "--from"),
    ],
)
def test_wrong_usage_is_told(options: list[str], named: str) -> None:
    run = run_tilecache("sync", *options)

    assert run.returncode == 2
    assert named in run.stderr


def test_files_need_a_tiles_directory(pair: Pair) -> None:
    run = sync(pair.there, pair.here, "--copy-from", pair.here_tiles)

    assert run.returncode == 2
    assert "--root" in run.stderr
