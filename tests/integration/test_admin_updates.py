"""UpdateTiles."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tests.admin import (
    ACTIVE_CONFLICT,
    confirm,
    delete,
    evict,
    list_evictions,
    read_label,
    read_usage,
    reevaluate,
    set_sector,
    touch,
)
from tests.clocked_daemon import ClockedDaemon
from tests.tiles import (
    FLIGHT,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    ZOOM,
    Block,
    bulk_insert,
    by_key,
    insert,
    sha256,
    store_row,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
    waiting_for_locks,
)
from tests.waiting import eventually
from tests.watching import Stream
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import TileUpdate, UpdateOutcome, UpdateTilesRequest
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    GetServerInfoRequest,
    GetTileRequest,
    MarkUploadedRequest,
    QueryTilesRequest,
    TileMetadata,
    UploadedTile,
)

EVERYWHERE = (-90.0, -180.0, 90.0, 180.0)
# The keys of advisory locks.
POLICY_LOCK = 0x7469_6C65_0001
FILES_LOCK = 0x7469_6C65_0005
A_YEAR_AGO = NOW - timedelta(days=365)
A_WEEK_AGO = NOW - timedelta(days=7)


def correction(key: TileKey, content: str = "picture", **fields: Any) -> TileUpdate:
    """A correction of a tile; times and quality as Python values."""
    if isinstance(captured_at := fields.get("captured_at"), datetime):
        fields["captured_at"] = timestamp(captured_at)
    return TileUpdate(tile_uuid=tile_uuid(key), content_sha256=sha256(content), **fields)


def update(client: TileCacheClient, *tiles: TileUpdate, dry_run: bool = False) -> list[str]:
    """Corrects tiles; returns the outcomes."""
    answer = client.admin.UpdateTiles(
        UpdateTilesRequest(tiles=tiles, dry_run=dry_run), timeout=TIMEOUT_S
    )
    return [
        UpdateOutcome.Name(outcome).removeprefix("UPDATE_OUTCOME_") for outcome in answer.outcomes
    ]


def read(client: TileCacheClient, key: TileKey) -> TileMetadata:
    """A stored tile."""
    stored: TileMetadata = client.store.GetTile(
        GetTileRequest(tile=by_key(key)), timeout=TIMEOUT_S
    ).tile
    return stored


def quality(**values: Any) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("captured_at", timestamp(A_WEEK_AGO)),
        ("file_path", "moved/picture.jpg"),
        ("quality_metadata", quality(cloud=0.5)),
    ],
)
def test_one_field_is_corrected_and_all_others_stay(
    admin: TileCacheClient, block: Block, field: str, value: Any
) -> None:
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    insert(admin, tile(key, quality_metadata=quality(cloud=0.1, sharp=True)))
    mark = UploadedTile(tile_uuid=tile_uuid(key), content_sha256=sha256("picture"))
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[mark]), timeout=TIMEOUT_S)
    before = read(admin, key)

    assert update(admin, correction(key, **{field: value})) == ["UPDATED"]

    expected = TileMetadata()
    expected.CopyFrom(before)
    if isinstance(value, str):
        setattr(expected, field, value)
    else:
        getattr(expected, field).CopyFrom(value)
    assert read(admin, key) == expected
    assert expected.HasField("uploaded_at")
    assert list(list_evictions(admin)) == []


def test_each_tile_has_its_outcome(
    admin: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    changed, same, other, unknown, missing, listed = block.keys(6)
    bulk_insert(admin, [tile(key) for key in (changed, same, other, listed)])
    store_row(sql, unknown)
    gone = tile(block.key(0, 1), file_path="gone.jpg")
    insert(admin, gone)
    delete(admin, tile_uuids=[tile_uuid(gone.key)])
    corrections = [
        correction(changed, captured_at=A_WEEK_AGO),
        correction(same, captured_at=YESTERDAY, file_path=tile(same).file_path),
        correction(other, "another picture", captured_at=A_WEEK_AGO),
        correction(unknown, captured_at=A_WEEK_AGO),
        correction(missing, captured_at=A_WEEK_AGO),
        correction(listed, captured_at=A_WEEK_AGO, file_path="gone.jpg"),
    ]
    before = {key.x: read(admin, key) for key in (same, other, unknown, listed)}
    outcomes = [
        "UPDATED",
        "UNCHANGED",
        "CONTENT_DIFFERS",
        "CONTENT_DIFFERS",
        "NOT_FOUND",
        "FILE_PENDING_REMOVAL",
    ]

    assert update(admin, *corrections, dry_run=True) == outcomes
    assert read(admin, changed).captured_at == timestamp(YESTERDAY)
    assert update(admin, *corrections) == outcomes

    assert read(admin, changed).captured_at == timestamp(A_WEEK_AGO)
    assert {key.x: read(admin, key) for key in (same, other, unknown, listed)} == before
    assert update(admin, *corrections)[0] == "UNCHANGED"


def test_quality_is_replaced_as_a_whole_and_compared_by_its_values(
    admin: TileCacheClient, block: Block
) -> None:
    key = block.key()
    insert(admin, tile(key, quality_metadata=quality(cloud=1, sharp=True)))

    assert update(admin, correction(key, quality_metadata=quality(sharp=True, cloud=1.0))) == [
        "UNCHANGED"
    ]
    assert update(admin, correction(key, quality_metadata=quality(cloud=True, sharp=1))) == [
        "UPDATED"
    ]
    assert update(admin, correction(key, quality_metadata=Struct())) == ["UPDATED"]
    stored = read(admin, key)
    assert stored.HasField("quality_metadata")
    assert MessageToDict(stored.quality_metadata) == {}


def test_tiles_are_relabelled_in_the_same_transaction(admin: TileCacheClient, block: Block) -> None:
    key = block.key()
    insert(admin, tile(key))
    set_sector(admin, "front", ACTIVE_CONFLICT, EVERYWHERE)

    assert update(admin, correction(key, captured_at=A_YEAR_AGO)) == ["UPDATED"]
    assert read_label(admin, key) == "rejected"
    assert [label.usage.tile_count for label in read_usage(admin).labels] == [1]

    assert update(admin, correction(key, captured_at=A_WEEK_AGO)) == ["UPDATED"]
    assert read_label(admin, key) == "fresh"
    assert reevaluate(admin) == 0


def test_a_sector_that_is_set_meanwhile_counts(
    admin: TileCacheClient, block: Block, shared_database: str
) -> None:
    key = block.key()
    insert(admin, tile(key))
    with psycopg.connect(shared_database) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute("SELECT pg_advisory_xact_lock(%s)", [POLICY_LOCK])
        writer.execute(
            "INSERT INTO sector_classifications (name, classification, south, west, north, east)"
            " VALUES ('front', 'active_conflict', -90, -180, 90, 180)"
        )
        corrected = threads.submit(update, admin, correction(key, captured_at=A_YEAR_AGO))
        eventually(lambda: waiting_for_locks(shared_database))
        writer.commit()
        assert corrected.result(TIMEOUT_S) == ["UPDATED"]

    assert read_label(admin, key) == "rejected"


def test_a_label_of_the_first_schema_stays(
    admin: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    store_row(sql, key, freshness_status="stale_warn", content_sha256=sha256("picture"))

    assert update(admin, correction(key, captured_at=A_YEAR_AGO)) == ["UPDATED"]
    assert read_label(admin, key) == "stale_warn"


def test_while_the_clock_is_not_trusted_no_tile_becomes_fresh(
    database: str, short_directory: Path
) -> None:
    noon = datetime(2027, 6, 1, 12, tzinfo=timezone.utc)
    moved, recaptured = tile_key(10, 1, 1), tile_key(10, 2, 2)
    with ClockedDaemon(short_directory, noon, dsn=database) as daemon:
        admin = daemon.admin_client
        fresh, too_old = noon - timedelta(days=1), noon - timedelta(days=300)
        set_sector(admin, "front", ACTIVE_CONFLICT, EVERYWHERE)
        for key in (moved, recaptured):
            insert(admin, tile(key, captured_at=fresh))
        daemon.set_clock(datetime(1970, 1, 1, tzinfo=timezone.utc))
        eventually(lambda: not is_clock_trusted(admin))

        assert update(admin, correction(moved, file_path="moved.jpg")) == ["UPDATED"]
        assert update(admin, correction(recaptured, captured_at=fresh - timedelta(days=1))) == [
            "UPDATED"
        ]
        assert (read_label(admin, moved), read_label(admin, recaptured)) == ("fresh", "downgraded")
        update(admin, correction(moved, captured_at=too_old))
        assert read_label(admin, moved) == "rejected"

        daemon.set_clock(noon + timedelta(minutes=1))
        eventually(lambda: read_label(admin, recaptured) == "fresh")


def is_clock_trusted(client: TileCacheClient) -> bool:
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
    return bool(info.clock.trusted)


def test_caches_and_replicas_see_a_correction(admin: TileCacheClient, block: Block) -> None:
    key = block.key()
    insert(admin, tile(key))
    query = QueryTilesRequest(zoom=ZOOM, region=block.region)
    for _ in range(2):  # so that the block is in memory
        list(admin.store.QueryTiles(query, timeout=TIMEOUT_S))
    stream = Stream(admin)
    try:
        stream.follow(block.region)
        assert any(each.tiles for each in stream.blocks_until_synced())

        update(admin, correction(key, captured_at=A_WEEK_AGO, file_path="moved.jpg"))

        (answer,) = admin.store.QueryTiles(query, timeout=TIMEOUT_S)
        (watched,) = stream.next_block().tiles
    finally:
        stream.close()
    for seen in (answer.tiles[0], watched):
        assert (seen.captured_at, seen.file_path) == (timestamp(A_WEEK_AGO), "moved.jpg")


def test_a_path_on_the_removal_list_is_refused_until_its_removal_is_confirmed(
    admin: TileCacheClient, block: Block
) -> None:
    gone, key = tile(block.key(0), file_path="gone.jpg"), block.key(1)
    bulk_insert(admin, [gone, tile(key)])
    (listed,) = delete(admin, tile_uuids=[tile_uuid(gone.key)]).tiles
    moved = correction(key, file_path="gone.jpg")

    assert update(admin, moved) == ["FILE_PENDING_REMOVAL"]
    confirm(admin, [listed.eviction_id])
    assert update(admin, moved) == ["UPDATED"]

    # From now on it is this tile's file, and the former one is nobody's.
    evict(admin, max_used_bytes=0)
    assert [each.file_path for each in list_evictions(admin)] == ["gone.jpg"]


def test_a_file_that_is_listed_meanwhile_is_not_named(
    admin: TileCacheClient, block: Block, shared_database: str
) -> None:
    key = block.key()
    insert(admin, tile(key))
    with psycopg.connect(shared_database) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute(
            "INSERT INTO tile_evictions (tile_uuid, zoom, x, y, source, file_path, evicted_at,"
            " reason) VALUES (gen_random_uuid(), 1, 1, 1, 'googlemaps', 'going.jpg', now(),"
            " 'deleted')"
        )
        moved = threads.submit(update, admin, correction(key, file_path="going.jpg"))
        eventually(lambda: waiting_for_locks(shared_database))
        writer.commit()
        assert moved.result(TIMEOUT_S) == ["FILE_PENDING_REMOVAL"]


def test_a_file_that_is_named_meanwhile_is_not_listed(
    admin: TileCacheClient, block: Block, shared_database: str
) -> None:
    first, second = block.keys(2)
    bulk_insert(admin, [tile(first, file_path="one.jpg"), tile(second, file_path="two.jpg")])
    with psycopg.connect(shared_database) as writer, ThreadPoolExecutor(2) as threads:
        writer.execute("SELECT pg_advisory_xact_lock(%s)", [FILES_LOCK])
        moved = threads.submit(update, admin, correction(second, file_path="one.jpg"))
        eventually(lambda: waiting_for_locks(shared_database) == 1)
        deletion = threads.submit(delete, admin, tile_uuids=[tile_uuid(first)])
        eventually(lambda: waiting_for_locks(shared_database) == 2)
        writer.commit()
        assert moved.result(TIMEOUT_S) == ["UPDATED"]
        deletion.result(TIMEOUT_S)

    assert list(list_evictions(admin)) == []


def test_recently_used_tiles_keep_their_place(admin: TileCacheClient, block: Block) -> None:
    first, second = block.keys(2)
    bulk_insert(admin, [tile(key, disk_bytes=100) for key in (first, second)])
    touch(admin, first)
    eventually(lambda: read(admin, first).HasField("accessed_at"))

    update(admin, correction(second, captured_at=A_WEEK_AGO))

    assert [each.tile_uuid for each in evict(admin, free_bytes=1, dry_run=True).tiles] == [
        tile_uuid(second)
    ]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("tile_uuid", {"tile_uuid": "x"}),
    ("content_sha256", {"content_sha256": ""}),
    ("content_sha256", {"content_sha256": "A" * 64}),
    ("captured_at", {"captured_at": None}),
    ("captured_at", {"captured_at": timestamp(NOW + timedelta(days=2))}),
    ("file_path", {"file_path": ""}),
    ("file_path", {"file_path": "../outside.jpg"}),
    ("file_path", {"file_path": "x" * 513}),
    ("file_path", {"file_path": "two\nlines.jpg"}),
    ("quality_metadata", {"quality_metadata": quality(text="x" * 2_048)}),
]


@pytest.mark.parametrize(("field", "fields"), BAD)
def test_a_bad_field_is_named_and_nothing_is_changed(
    admin: TileCacheClient, block: Block, field: str, fields: dict[str, Any]
) -> None:
    first, second = block.keys(2)
    bulk_insert(admin, [tile(first), tile(second)])
    given = {
        "tile_uuid": tile_uuid(second),
        "content_sha256": sha256("picture"),
        "captured_at": timestamp(A_WEEK_AGO),
    } | fields
    bad = TileUpdate(**{name: value for name, value in given.items() if value is not None})

    violations = refused(lambda: update(admin, correction(first, captured_at=A_WEEK_AGO), bad))

    assert violations == [f"tiles[1].{field}"]
    assert read(admin, first).captured_at == timestamp(YESTERDAY)


def test_too_many_no_and_repeated_tiles_are_refused(admin: TileCacheClient, block: Block) -> None:
    same = correction(block.key(), captured_at=A_WEEK_AGO)
    many = [correction(tile_key(20, x, 1), captured_at=A_WEEK_AGO) for x in range(4_097)]

    assert refused(lambda: update(admin)) == ["tiles"]
    assert refused(lambda: update(admin, same, same)) == ["tiles[1].tile_uuid"]
    assert refused(lambda: update(admin, *many), "LIMIT_EXCEEDED") == ["tiles"]
    assert update(admin, *many[1:]) == ["NOT_FOUND"] * 4_096


def test_a_full_request_is_corrected_in_one_transaction(
    admin: TileCacheClient, block: Block
) -> None:
    keys = [block.key(number % 100, number // 100) for number in range(4_096)]
    bulk_insert(admin, [tile(key) for key in keys])

    outcomes = update(admin, *(correction(key, captured_at=A_WEEK_AGO) for key in keys))

    assert outcomes == ["UPDATED"] * 4_096


def refused(call: Callable[[], object], reason: str = "INVALID_REQUEST") -> list[str]:
    """The fields that the refusal of a call names."""
    with pytest.raises(CallError) as caught:
        call()
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
    )
    return [violation.field for violation in caught.value.violations]
