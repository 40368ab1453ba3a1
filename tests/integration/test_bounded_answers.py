"""Errors and answers that a client with gRPC's default settings can receive, whatever texts they
repeat."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import grpc
import psycopg
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from tests.admin import ACTIVE_CONFLICT, list_evictions
from tests.daemon_process import DaemonProcess
from tests.tiles import NOW, ONBOARD, TIMEOUT_S, Block, by_id, by_key, store_row, tile, tile_key
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache.v1.tile_cache_admin_pb2_grpc import TileCacheAdminStub
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

LONG = "x" * 20_000
WIDE = "Ж🧀%" * 5_000
LONGEST_STATUS_BYTES = 4 * 1024


@pytest.fixture
def channel(shared_daemon: DaemonProcess, admin: TileCacheClient) -> Iterator[grpc.Channel]:
    """A channel with gRPC's default settings, to the administrator's socket."""
    with grpc.insecure_channel(f"unix:{shared_daemon.admin_socket_path}") as channel:
        yield channel


@pytest.fixture
def store(channel: grpc.Channel) -> TileMetadataStoreStub:
    return TileMetadataStoreStub(channel)


@pytest.fixture
def administration(channel: grpc.Channel) -> TileCacheAdminStub:
    return TileCacheAdminStub(channel)


def bad_tile(text: str) -> pb.TileMetadata:
    """A tile of which each text is wrong."""
    fields = ("tile_uuid", "location_hash", "file_path", "content_sha256")
    return tile(tile_key(10, 1, 1), **dict.fromkeys(fields, f"/{text}"))


def sector(name: str) -> admin_pb.SetSectorRequest:
    return admin_pb.SetSectorRequest(
        sector=admin_pb.Sector(
            name=name,
            classification=ACTIVE_CONFLICT,
            bounding_box=pb.BoundingBox(south=1, west=1, north=2, east=2),
        )
    )


CALLS: list[Callable[[Any, Any, str], Any]] = [
    lambda store, _, text: store.GetTile(pb.GetTileRequest(tile=pb.TileRef(tile_uuid=text))),
    lambda store, _, text: store.InsertTile(pb.InsertTileRequest(tile=bad_tile(text))),
    lambda store, _, text: store.ListPendingUploads(pb.ListPendingUploadsRequest(page_token=text)),
    lambda store, _, text: store.MarkUploaded(
        pb.MarkUploadedRequest(tiles=[pb.UploadedTile(tile_uuid=text, content_sha256=text)])
    ),
    lambda _, admin, text: admin.UpdateTiles(
        admin_pb.UpdateTilesRequest(
            tiles=[admin_pb.TileUpdate(tile_uuid=text, content_sha256=text, file_path=f"/{text}")]
        )
    ),
    lambda _, admin, text: admin.SetSector(sector(text)),
    lambda _, admin, text: admin.DeleteSector(admin_pb.DeleteSectorRequest(name=f" {text}")),
    lambda _, admin, text: admin.ListEvictions(admin_pb.ListEvictionsRequest(page_token=text)),
]


@pytest.mark.parametrize("text", [LONG[:6_000], LONG, WIDE], ids=["6000", "20000", "wide"])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_no_text_of_the_caller_makes_an_error_too_long(
    store: TileMetadataStoreStub, administration: TileCacheAdminStub, number: int, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        CALLS[number](store, administration, text)

    status = rpc_status.from_call(caught.value)
    info, bad = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert info.reason == "INVALID_REQUEST"
    assert status.details[1].Unpack(bad)
    assert bad.field_violations
    encoded = len(quote(status.message)) + len(status.SerializeToString()) * 4 // 3
    assert encoded <= LONGEST_STATUS_BYTES


@pytest.mark.parametrize("text", [LONG[:6_000], LONG, WIDE], ids=["6000", "20000", "wide"])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_client_raises_call_errors(admin: TileCacheClient, number: int, text: str) -> None:
    with pytest.raises(CallError) as caught:
        CALLS[number](admin.store, admin.admin, text)

    assert caught.value.reason == "INVALID_REQUEST"
    assert caught.value.violations


def test_the_acknowledgement_of_a_batch_of_bad_tiles_can_be_read(
    store: TileMetadataStoreStub,
) -> None:
    # As many as a message may have bytes for, and as many as a batch may have.
    for count, text in ((400, LONG), (10_000, "Ж🧀%" * 12)):
        batch = pb.BulkInsertTilesRequest(tiles=[bad_tile(text[:4_000]) for _ in range(count)])
        (answer,) = store.BulkInsertTiles(iter([batch]), timeout=TIMEOUT_S)

        assert [refused.index for refused in answer.refused] == list(range(count))
        assert {refused.reason for refused in answer.refused} == {"INVALID_REQUEST"}
        assert all("…" in refused.message for refused in answer.refused)


def test_long_rows_of_other_writers_can_be_read(
    store: TileMetadataStoreStub,
    administration: TileCacheAdminStub,
    admin: TileCacheClient,
    block: Block,
    sql: psycopg.Connection[Any],
) -> None:
    keys = [block.key(index % 30, index // 30, source=ONBOARD) for index in range(300)]
    for index, key in enumerate(keys):
        store_row(sql, key, file_path=f"{index}/{LONG}", disk_bytes=1)
    query = pb.QueryTilesRequest(zoom=block.zoom, region=block.region)

    queried = [found for answer in store.QueryTiles(query) for found in answer.tiles]
    pending = store.ListPendingUploads(pb.ListPendingUploadsRequest())
    with pytest.raises(grpc.RpcError, match="ask for fewer"):
        store.LookupTiles(pb.LookupTilesRequest(tiles=list(map(by_id, keys))))
    request = admin_pb.EvictTilesRequest(free_bytes=300, include_pending_uploads=True)
    evicted = [found for answer in administration.EvictTiles(request) for found in answer.tiles]
    listed = administration.ListEvictions(admin_pb.ListEvictionsRequest())

    assert len(queried) == len(evicted) == len(keys)
    assert 0 < len(pending.tiles) < len(keys)
    assert pending.next_page_token
    assert 0 < len(listed.tiles) < len(keys)
    assert listed.next_page_token
    assert len(list(list_evictions(admin))) == len(keys)


def test_many_sectors_with_long_names_can_be_read(
    store: TileMetadataStoreStub,
    administration: TileCacheAdminStub,
    block: Block,
    sql: psycopg.Connection[Any],
) -> None:
    sql.execute(
        "INSERT INTO sector_classifications (name, classification, south, west, north, east) "
        "SELECT n || repeat('Ж', 1000), 'stable_rear', -90, -180, 90, 180 "
        "FROM generate_series(1, 3000) AS n"
    )
    store_row(sql, block.key())

    names: list[str] = []
    request = admin_pb.ListSectorsRequest()
    while not names or request.page_token:
        page = administration.ListSectors(request)
        names += [sector.name for sector in page.sectors]
        request.page_token = page.next_page_token
    explained = administration.ExplainFreshness(
        admin_pb.ExplainFreshnessRequest(tile=by_key(block.key()))
    )

    assert len(set(names)) == len(names) == 3_000
    assert len(explained.sectors) == 1_000


def test_a_tile_that_no_answer_can_hold_is_an_error_with_details(
    store: TileMetadataStoreStub, block: Block, sql: psycopg.Connection[Any]
) -> None:
    store_row(sql, block.key(), tile_quality_metadata=f'["{"x" * 5_000_000}"]', captured_at=NOW)

    with pytest.raises(grpc.RpcError) as caught:
        store.GetTile(pb.GetTileRequest(tile=by_key(block.key())))

    info = ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == "LIMIT_EXCEEDED"
