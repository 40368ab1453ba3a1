"""ListPendingUploads and MarkUploaded."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import (
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    by_id,
    by_key,
    insert,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_uuid,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    MARK_OUTCOME_ALREADY_MARKED,
    MARK_OUTCOME_CONTENT_DIFFERS,
    MARK_OUTCOME_MARKED,
    MARK_OUTCOME_NOT_FOUND,
    MARK_OUTCOME_NOT_UPLOADABLE,
    ON_CONFLICT_REPLACE_IF_NEWER,
    GetServerInfoRequest,
    GetTileRequest,
    ListPendingUploadsRequest,
    ListPendingUploadsResponse,
    LookupTilesRequest,
    MarkUploadedRequest,
    TileMetadata,
    UploadedTile,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub


@pytest.fixture
def flight_id() -> str:
    return random_flight()


def page(
    client: TileCacheClient, flight_id: str, size: int = 0, token: str = ""
) -> ListPendingUploadsResponse:
    request = ListPendingUploadsRequest(page_size=size, page_token=token, flight_id=flight_id)
    answer: ListPendingUploadsResponse = client.store.ListPendingUploads(request, timeout=60)
    return answer


def pending(client: TileCacheClient, flight_id: str, size: int = 0) -> Iterator[TileMetadata]:
    """All pending uploads, page by page."""
    token = ""
    while True:
        answer = page(client, flight_id, size, token)
        yield from answer.tiles
        token = answer.next_page_token
        if not token:
            return


def mark(client: TileCacheClient, *uploads: tuple[str, str]) -> list[int]:
    tiles = [UploadedTile(tile_uuid=text, content_sha256=content) for text, content in uploads]
    answer = client.store.MarkUploaded(MarkUploadedRequest(tiles=tiles), timeout=60)
    return list(answer.outcomes)


def captures(block: Block, flight_id: str, count: int) -> list[TileMetadata]:
    """Tiles that are not ordered by capture."""
    minutes = list(range(count))
    random.Random(6).shuffle(minutes)
    return [
        tile(
            block.key(i, 0, ONBOARD, flight_id),
            captured_at=YESTERDAY - timedelta(minutes=minute // 2),
        )
        for i, minute in enumerate(minutes)
    ]


def in_order(tiles: list[TileMetadata]) -> bool:
    moments = [found.captured_at.ToNanoseconds() for found in tiles]
    return moments == sorted(moments)


def test_pending_uploads_are_ordered_by_capture(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    sent = captures(block, flight_id, 50)
    bulk_insert(client, sent)
    found = list(pending(client, flight_id))
    assert in_order(found)
    assert {tile.tile_uuid for tile in found} == {tile_uuid(message.key) for message in sent}


@pytest.mark.parametrize("size", [1, 7, 49, 50, 51])
def test_pages_contain_every_tile_once(
    client: TileCacheClient, block: Block, flight_id: str, size: int
) -> None:
    bulk_insert(client, captures(block, flight_id, 50))
    found = list(pending(client, flight_id, size))
    assert len(found) == len({tile.tile_uuid for tile in found}) == 50
    assert in_order(found)
    first = page(client, flight_id, size)
    assert len(first.tiles) == min(size, 50)
    assert bool(first.next_page_token) is (size < 50)


def test_a_page_has_at_most_a_thousand_tiles(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    keys = [block.key(i % 100, i // 100, ONBOARD, flight_id) for i in range(1_001)]
    bulk_insert(client, [tile(key) for key in keys])
    for size in (0, 1_000, 5_000):
        answer = page(client, flight_id, size)
        assert len(answer.tiles) == 1_000
        assert len(page(client, flight_id, size, answer.next_page_token).tiles) == 1


def test_pages_are_stable_while_tiles_are_added_and_uploaded(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    bulk_insert(client, captures(block, flight_id, 30))
    everything = list(pending(client, flight_id))
    first = page(client, flight_id, 10)
    assert list(first.tiles) == everything[:10]
    uploaded = [everything[3], everything[9], everything[15]]
    mark(client, *((tile.tile_uuid, tile.content_sha256) for tile in uploaded))
    old = tile(block.key(80, 0, ONBOARD, flight_id), captured_at=YESTERDAY - timedelta(days=9))
    new = tile(block.key(81, 0, ONBOARD, flight_id), captured_at=YESTERDAY + timedelta(hours=1))
    bulk_insert(client, [old, new])
    rest = page(client, flight_id, 100, first.next_page_token)
    assert [found.tile_uuid for found in rest.tiles] == [
        *(found.tile_uuid for found in everything[10:] if found not in uploaded),
        tile_uuid(new.key),
    ]
    assert page(client, flight_id, 1).tiles[0].tile_uuid == tile_uuid(old.key)


def test_onboard_tiles_are_pending_until_they_are_uploaded(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    waiting, uploaded = block.key(0, 0, ONBOARD, flight_id), block.key(1, 0, ONBOARD, flight_id)
    bulk_insert(client, [tile(waiting), tile(uploaded), tile(block.key(2, 0, flight_id=flight_id))])
    assert mark(client, (tile_uuid(uploaded), sha256("picture"))) == [MARK_OUTCOME_MARKED]
    assert [found.key for found in pending(client, flight_id)] == [waiting]


def test_without_a_flight_all_flights_are_listed(client: TileCacheClient, block: Block) -> None:
    keys = [block.key(i, 0, ONBOARD, random_flight() if i else None) for i in range(3)]
    oldest = YESTERDAY - timedelta(days=5_000)
    bulk_insert(client, [tile(key, captured_at=oldest) for key in keys])
    answer = client.store.ListPendingUploads(ListPendingUploadsRequest(page_size=3), timeout=60)
    assert {found.tile_uuid for found in answer.tiles} == set(map(tile_uuid, keys))


@pytest.mark.parametrize("token", ["x", "AAAA", "!" * 24, "A" * 24, "/" * 24, "ÿ" * 24, " "])
def test_an_invalid_page_token_is_refused(client: TileCacheClient, token: str) -> None:
    request = ListPendingUploadsRequest(page_token=token)
    with pytest.raises(CallError) as caught:
        client.store.ListPendingUploads(request, timeout=60)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_mark_outcomes_are_in_the_requested_order(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    marked, again, differs, missing = (block.key(i, 0, ONBOARD, flight_id) for i in range(4))
    downloaded = block.key(5)
    bulk_insert(client, [tile(key) for key in (marked, again, differs, downloaded)])
    content = sha256("picture")
    mark(client, (tile_uuid(again), content))
    assert mark(
        client,
        (tile_uuid(missing), content),
        (tile_uuid(differs), sha256("another")),
        (tile_uuid(marked), content),
        (tile_uuid(downloaded), content),
        (tile_uuid(again), content),
    ) == [
        MARK_OUTCOME_NOT_FOUND,
        MARK_OUTCOME_CONTENT_DIFFERS,
        MARK_OUTCOME_MARKED,
        MARK_OUTCOME_NOT_UPLOADABLE,
        MARK_OUTCOME_ALREADY_MARKED,
    ]
    assert [found.key for found in pending(client, flight_id)] == [differs]


def uploaded_at(client: TileCacheClient, key: TileKey) -> datetime | None:
    found = client.store.GetTile(GetTileRequest(tile=by_id(key)), timeout=60).tile
    if not found.HasField("uploaded_at"):
        return None
    moment: datetime = found.uploaded_at.ToDatetime(timezone.utc)
    return moment


def test_the_time_of_the_first_mark_is_kept(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    key = block.key(0, 0, ONBOARD, flight_id)
    insert(client, tile(key))
    assert uploaded_at(client, key) is None
    before = datetime.now(timezone.utc)
    mark(client, (tile_uuid(key), sha256("picture")))
    moment = uploaded_at(client, key)
    assert moment is not None
    assert before <= moment <= datetime.now(timezone.utc)
    mark(client, (tile_uuid(key), sha256("picture")))
    assert uploaded_at(client, key) == moment


def test_a_replaced_tile_is_not_marked_by_its_old_content(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    key = block.key(0, 0, ONBOARD, flight_id)
    insert(client, tile(key, "old", YESTERDAY - timedelta(days=1)))
    insert(client, tile(key, "new"), ON_CONFLICT_REPLACE_IF_NEWER)
    assert mark(client, (tile_uuid(key), sha256("old"))) == [MARK_OUTCOME_CONTENT_DIFFERS]
    assert uploaded_at(client, key) is None
    assert mark(client, (tile_uuid(key), sha256("new"))) == [MARK_OUTCOME_MARKED]


def test_a_tile_sent_with_wrong_and_right_content_is_marked(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    key = block.key(0, 0, ONBOARD, flight_id)
    insert(client, tile(key))
    assert mark(client, (tile_uuid(key), sha256("wrong")), (tile_uuid(key), sha256("picture"))) == [
        MARK_OUTCOME_CONTENT_DIFFERS,
        MARK_OUTCOME_MARKED,
    ]
    assert uploaded_at(client, key)


def test_a_row_without_a_content_hash_stays_pending(
    client: TileCacheClient, block: Block, flight_id: str, sql: psycopg.Connection[Any]
) -> None:
    key = block.key(0, 0, ONBOARD, flight_id)
    store_row(sql, key)
    assert [found.key for found in pending(client, flight_id)] == [key]
    assert mark(client, (tile_uuid(key), sha256("x"))) == [MARK_OUTCOME_CONTENT_DIFFERS]


def test_pages_are_below_the_default_size_limit(
    client: TileCacheClient, shared_daemon: DaemonProcess, block: Block
) -> None:
    flight = random_flight()
    heavy = {"q": [0.5] * 390}
    tiles = [tile(block.key(n % 100, n // 100, ONBOARD, flight)) for n in range(1_000)]
    for message in tiles:
        message.quality_metadata.update(heavy)
    bulk_insert(client, tiles[:500])
    bulk_insert(client, tiles[500:])
    request, listed = ListPendingUploadsRequest(flight_id=flight), []
    with grpc.insecure_channel(
        f"unix:{shared_daemon.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        stub = TileMetadataStoreStub(channel)
        while True:
            answer = stub.ListPendingUploads(request, timeout=TIMEOUT_S)
            listed += [found.tile_uuid for found in answer.tiles]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
    assert sorted(listed) == sorted(tile_uuid(message.key) for message in tiles)
    refs = [by_key(message.key) for message in tiles]
    with pytest.raises(CallError) as caught:
        client.store.LookupTiles(LookupTilesRequest(tiles=refs), timeout=TIMEOUT_S)
    assert [violation.field for violation in caught.value.violations] == ["tiles"]


def test_a_tile_that_was_uploaded_elsewhere_does_not_wait_for_upload(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    uploaded = timestamp(YESTERDAY + timedelta(microseconds=1))
    keys = [block.key(column, 0, ONBOARD, flight_id) for column in range(3)]
    bulk_insert(client, [tile(key, uploaded_at=uploaded) for key in keys[:2]])
    # Beside a stored one, tiles are stored one by one.
    bulk_insert(client, [tile(key, uploaded_at=uploaded) for key in keys[1:]])
    waiting = block.key(3, 0, ONBOARD, flight_id)
    bulk_insert(client, [tile(waiting)])

    moments = {uploaded_at(client, key) for key in keys}
    assert moments == {YESTERDAY + timedelta(microseconds=1)}
    assert [each.key for each in pending(client, flight_id)] == [waiting]
    assert mark(client, (tile_uuid(keys[0]), sha256("picture"))) == [MARK_OUTCOME_ALREADY_MARKED]


def test_a_replacement_that_was_uploaded_does_not_wait_for_upload(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    key = block.key(0, 0, ONBOARD, flight_id)
    insert(client, tile(key, "old", YESTERDAY - timedelta(days=1)))
    new = tile(key, "new", uploaded_at=timestamp(YESTERDAY))
    insert(client, new, ON_CONFLICT_REPLACE_IF_NEWER)
    assert uploaded_at(client, key) == YESTERDAY


def test_an_upload_in_the_future_of_a_trusted_clock_is_stored_as_one_of_now(
    client: TileCacheClient, block: Block, flight_id: str
) -> None:
    keys = [block.key(column, 0, ONBOARD, flight_id) for column in range(2)]
    tomorrow = timestamp(datetime.now(timezone.utc) + timedelta(days=1))
    insert(client, tile(keys[0], uploaded_at=tomorrow))
    bulk_insert(client, [tile(keys[1], uploaded_at=tomorrow)])
    for key in keys:
        moment = uploaded_at(client, key)
        assert moment is not None
        assert moment <= datetime.now(timezone.utc)
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
    assert info.clock.trusted
