"""InsertTile."""

import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from tests.tiles import (
    FLIGHT,
    GOOGLEMAPS,
    NOW,
    ONBOARD,
    YESTERDAY,
    Block,
    by_key,
    insert,
    location_hash,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_centre, cell_edge_meters
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_FRESH,
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_INSERTED,
    INSERT_OUTCOME_KEPT_EXISTING,
    INSERT_OUTCOME_REPLACED,
    ON_CONFLICT_CONVERGE,
    ON_CONFLICT_FAIL,
    ON_CONFLICT_KEEP_EXISTING,
    ON_CONFLICT_REPLACE_IF_NEWER,
    GetTileRequest,
    LookupTilesRequest,
    MarkUploadedRequest,
    TileMetadata,
    UploadedTile,
)

EARLIER = YESTERDAY - timedelta(days=10)


def stored(client: TileCacheClient, message: TileMetadata) -> TileMetadata:
    request = GetTileRequest(tile=by_key(message.key))
    found: TileMetadata = client.store.GetTile(request, timeout=60).tile
    return found


def test_a_stored_tile_is_returned_unchanged(client: TileCacheClient, block: Block) -> None:
    quality = ParseDict({"blur": 0.5, "cloud": None, "bands": ["r", "g"]}, Struct())
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    sent = tile(key, tile_size_pixels=512, tile_size_meters=101.5, quality_metadata=quality)
    before = datetime.now(timezone.utc)
    answer = insert(client, sent)
    assert answer.outcome == INSERT_OUTCOME_INSERTED
    found = stored(client, sent)
    assert found == answer.tile
    for field, value in sent.ListFields():
        assert getattr(found, field.name) == value
    created_at = found.created_at.ToDatetime(timezone.utc)
    assert before - timedelta(seconds=5) <= created_at <= datetime.now(timezone.utc)
    assert not found.HasField("accessed_at")
    assert not found.HasField("uploaded_at")


def test_missing_fields_are_derived(client: TileCacheClient, block: Block) -> None:
    key = block.key()
    latitude, longitude = cell_centre(key.zoom, key.x, key.y)
    found = insert(client, tile(key)).tile
    assert (found.tile_uuid, found.location_hash) == (tile_uuid(key), location_hash(key))
    assert (found.latitude, found.longitude) == (latitude, longitude)
    assert found.tile_size_meters == cell_edge_meters(key.zoom, latitude)
    assert found.tile_size_pixels == 256
    assert found.freshness_label == FRESHNESS_LABEL_FRESH
    assert not found.HasField("quality_metadata")


def test_a_tile_is_stored_in_the_columns_of_the_schema(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    quality = ParseDict({"blur": 1}, Struct())
    insert(client, tile(key, quality_metadata=quality))
    row = sql.execute(
        """SELECT zoom, x, y, source, flight_id::text, location_hash::text, file_path,
                  content_sha256, disk_bytes, captured_at, freshness_status,
                  tile_quality_metadata, accessed_at, uploaded_at
           FROM tiles WHERE tile_uuid = %s""",
        [tile_uuid(key)],
    ).fetchone()
    assert row == (
        *(key.zoom, key.x, key.y, "onboard_ingest", FLIGHT, location_hash(key)),
        *(f"{key.zoom}/{key.x}/{key.y}.jpg", sha256("picture"), 12_345, YESTERDAY, "fresh"),
        *({"blur": 1}, None, None),
    )


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": {}},
        {"text": 'tab\tquote"backslash\\newline\nend', "path": "C:\\n\\t"},
        {"unicode": "käse 🧀 \u2028", "\\": "\\\\"},
        {"numbers": [0, -1.5, 1e300, 5e-324]},
    ],
    ids=str,
)
def test_quality_metadata_is_any_json_object(
    client: TileCacheClient, block: Block, value: dict[str, object]
) -> None:
    message = tile(block.key(), quality_metadata=ParseDict(value, Struct()))
    insert(client, message)
    found = stored(client, message)
    assert found.HasField("quality_metadata")
    assert MessageToDict(found.quality_metadata) == json.loads(json.dumps(value))


def test_the_most_nested_quality_can_be_read_in_every_answer(
    client: TileCacheClient, block: Block
) -> None:
    key = block.key()
    for depth in range(33, 0, -1):
        struct = Struct()
        leaf = struct
        for _ in range(depth - 1):
            leaf = leaf.fields["a"].struct_value
        leaf.fields["a"].bool_value = True
        with suppress(CallError):
            insert(client, tile(key, quality_metadata=struct))
            break
    request = LookupTilesRequest(tiles=[by_key(key)])
    (result,) = client.store.LookupTiles(request, timeout=60).results
    assert result.tile.quality_metadata == struct


def test_the_same_content_again_returns_the_stored_tile(
    client: TileCacheClient, block: Block
) -> None:
    message = tile(block.key())
    first = insert(client, message)
    again = insert(client, tile(block.key(), captured_at=EARLIER, file_path="else/where.jpg"))
    assert again.outcome == INSERT_OUTCOME_ALREADY_PRESENT
    assert again.tile == first.tile == stored(client, message)


@pytest.mark.parametrize("on_conflict", [0, ON_CONFLICT_FAIL])
def test_different_content_is_refused_by_default(
    client: TileCacheClient, block: Block, on_conflict: int
) -> None:
    first = insert(client, tile(block.key(), "old")).tile
    with pytest.raises(CallError) as caught:
        insert(client, tile(block.key(), "new"), on_conflict)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.reason == "CONTENT_CONFLICT"
    assert caught.value.facts["tile_uuid"] == first.tile_uuid
    assert caught.value.facts["stored_content_sha256"] == sha256("old")
    assert caught.value.retry_after_s is None
    assert stored(client, first) == first


def test_keep_existing_keeps_the_stored_content(client: TileCacheClient, block: Block) -> None:
    first = insert(client, tile(block.key(), "old", EARLIER)).tile
    answer = insert(client, tile(block.key(), "new"), ON_CONFLICT_KEEP_EXISTING)
    assert answer.outcome == INSERT_OUTCOME_KEPT_EXISTING
    assert answer.tile == first == stored(client, first)


def test_replace_if_newer_replaces_an_older_capture(client: TileCacheClient, block: Block) -> None:
    first = insert(client, tile(block.key(), "old", EARLIER)).tile
    quality = ParseDict({"blur": 0.1}, Struct())
    newer = tile(block.key(), "new", file_path="new.jpg", disk_bytes=7, quality_metadata=quality)
    answer = insert(client, newer, ON_CONFLICT_REPLACE_IF_NEWER)
    assert answer.outcome == INSERT_OUTCOME_REPLACED
    assert answer.tile.content_sha256 == sha256("new")
    assert answer.tile.captured_at == timestamp(YESTERDAY)
    assert (answer.tile.file_path, answer.tile.disk_bytes) == ("new.jpg", 7)
    assert answer.tile.quality_metadata == quality
    assert answer.tile.tile_uuid == first.tile_uuid
    assert answer.tile.created_at == first.created_at
    assert stored(client, first) == answer.tile


@pytest.mark.parametrize("captured_at", [EARLIER, YESTERDAY])
def test_replace_if_newer_keeps_a_capture_that_is_not_older(
    client: TileCacheClient, block: Block, captured_at: datetime
) -> None:
    first = insert(client, tile(block.key(), "first", YESTERDAY)).tile
    answer = insert(client, tile(block.key(), "second", captured_at), ON_CONFLICT_REPLACE_IF_NEWER)
    assert answer.outcome == INSERT_OUTCOME_KEPT_EXISTING
    assert answer.tile == first == stored(client, first)


def test_replace_if_newer_replaces_an_older_capture_of_the_same_content(
    client: TileCacheClient, block: Block
) -> None:
    insert(client, tile(block.key(), captured_at=EARLIER))
    answer = insert(client, tile(block.key()), ON_CONFLICT_REPLACE_IF_NEWER)
    assert answer.outcome == INSERT_OUTCOME_REPLACED
    assert answer.tile.captured_at == timestamp(YESTERDAY)


SMALLER, LARGER = sorted(("one picture", "another picture"), key=sha256)


@pytest.mark.parametrize(
    ("content", "captured_at", "outcome"),
    [
        (LARGER, EARLIER, INSERT_OUTCOME_KEPT_EXISTING),
        (SMALLER, YESTERDAY, INSERT_OUTCOME_ALREADY_PRESENT),
        (LARGER, YESTERDAY, INSERT_OUTCOME_REPLACED),
        (SMALLER, NOW, INSERT_OUTCOME_REPLACED),
    ],
)
def test_converge_keeps_the_later_capture_and_then_the_larger_hash(
    client: TileCacheClient, block: Block, content: str, captured_at: datetime, outcome: int
) -> None:
    def tiles(key: TileKey) -> list[TileMetadata]:
        return [
            tile(key, SMALLER, file_path=f"{key.x}-one.jpg"),
            tile(key, content, captured_at=captured_at, file_path=f"{key.x}-other.jpg"),
        ]

    kept = []
    for key, order in ((block.key(0), 1), (block.key(1), -1)):
        first, second = tiles(key)[::order]
        insert(client, first)
        answer = insert(client, second, ON_CONFLICT_CONVERGE)
        if order == 1:
            assert answer.outcome == outcome
        kept.append((answer.tile.content_sha256, answer.tile.captured_at))

    assert kept[0] == kept[1], "the same tile stays, whichever comes first"


def test_replace_if_newer_does_not_depend_on_the_hash(
    client: TileCacheClient, block: Block
) -> None:
    insert(client, tile(block.key(), SMALLER))
    answer = insert(client, tile(block.key(), LARGER), ON_CONFLICT_REPLACE_IF_NEWER)
    assert answer.outcome == INSERT_OUTCOME_KEPT_EXISTING


def test_converge_replaces_an_unknown_content_of_the_same_time(
    client: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    store_row(sql, block.key(), file_path="unknown.jpg")
    answer = insert(client, tile(block.key()), ON_CONFLICT_CONVERGE)
    assert answer.outcome == INSERT_OUTCOME_REPLACED


def test_a_replaced_tile_is_pending_upload_again(client: TileCacheClient, block: Block) -> None:
    key = block.key(source=ONBOARD, flight_id=random_flight())
    insert(client, tile(key, "old", EARLIER))
    uploaded = UploadedTile(tile_uuid=tile_uuid(key), content_sha256=sha256("old"))
    client.store.MarkUploaded(MarkUploadedRequest(tiles=[uploaded]), timeout=60)
    answer = insert(client, tile(key, "new"), ON_CONFLICT_REPLACE_IF_NEWER)
    assert not answer.tile.HasField("uploaded_at")


def test_each_source_and_flight_of_a_cell_is_a_separate_tile(
    client: TileCacheClient, block: Block
) -> None:
    keys = [
        block.key(source=GOOGLEMAPS),
        block.key(source=ONBOARD),
        block.key(source=ONBOARD, flight_id=random_flight()),
        block.key(source=ONBOARD, flight_id=random_flight()),
    ]
    tiles = [insert(client, tile(key, f"content {i}")).tile for i, key in enumerate(keys)]
    assert len({found.tile_uuid for found in tiles}) == len(keys)
    assert {found.location_hash for found in tiles} == {location_hash(keys[0])}


def test_the_nil_flight_is_no_flight(client: TileCacheClient, block: Block) -> None:
    nil = block.key(flight_id="00000000-0000-0000-0000-000000000000")
    answer = insert(client, tile(nil))
    assert answer.tile.tile_uuid == tile_uuid(block.key())
    assert not answer.tile.key.HasField("flight_id")
    assert insert(client, tile(block.key())).outcome == INSERT_OUTCOME_ALREADY_PRESENT


@pytest.mark.parametrize(("zoom", "x", "y"), [(0, 0, 0), (22, 4194303, 4194303), (22, 0, 4194303)])
def test_cells_in_the_corners_of_the_world_can_be_stored(
    client: TileCacheClient, zoom: int, x: int, y: int
) -> None:
    message = tile(tile_key(zoom, x, y))
    insert(client, message)
    assert stored(client, message).key == message.key


def test_old_captures_outside_all_sectors_are_accepted(
    client: TileCacheClient, block: Block
) -> None:
    message = tile(block.key(), captured_at=datetime(1, 1, 1, tzinfo=timezone.utc))
    insert(client, message)
    assert stored(client, message).captured_at == message.captured_at


def test_a_capture_in_the_future_is_refused(client: TileCacheClient, block: Block) -> None:
    tomorrow_and_more = datetime.now(timezone.utc) + timedelta(days=2)
    with pytest.raises(CallError) as caught:
        insert(client, tile(block.key(), captured_at=tomorrow_and_more))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["tile.captured_at"]
    with pytest.raises(CallError, match="there is no tile"):
        stored(client, tile(block.key()))


def test_a_key_stored_under_a_different_id_is_a_conflict(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    store_row(sql, key, tile_uuid=FLIGHT)
    with pytest.raises(CallError) as caught:
        insert(client, tile(key))
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
