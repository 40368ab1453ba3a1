"""Invalid input is INVALID_ARGUMENT, names the invalid field, and changes nothing."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.daemon_process import DaemonProcess
from tests.tiles import FLIGHT, box_region, cell_region, circle_region, sha256, tile, tile_key
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    DeriveTileIdentityRequest,
    DescribeCoverageRequest,
    GetTileRequest,
    InsertTileRequest,
    ListPendingUploadsRequest,
    LookupTilesRequest,
    MarkUploadedRequest,
    QueryTilesRequest,
    Region,
    TileMetadata,
    TileRef,
    TouchTilesRequest,
    UploadedTile,
)

KEY = tile_key(18, 154321, 95812)
SERVICE = "tilecache.v1.TileMetadataStore"
NAN, INF = math.nan, math.inf

BAD_TILES: list[tuple[str, dict[str, Any]]] = [
    ("key.zoom", {"key": tile_key(23, 0, 0)}),
    ("key.zoom", {"key": tile_key(-1, 0, 0)}),
    ("key.x", {"key": tile_key(18, 1 << 18, 0)}),
    ("key.x", {"key": tile_key(18, -1, 0)}),
    ("key.y", {"key": tile_key(0, 0, 1)}),
    ("key.source", {"key": tile_key(0, 0, 0, 0)}),
    ("key.source", {"key": tile_key(0, 0, 0, 3)}),
    ("key.source", {"key": tile_key(0, 0, 0, -5)}),
    ("key.flight_id", {"key": tile_key(0, 0, 0, flight_id="flight 7")}),
    ("key.flight_id", {"key": tile_key(0, 0, 0, flight_id=FLIGHT.upper())}),
    ("key.flight_id", {"key": tile_key(0, 0, 0, flight_id="")}),
    ("tile_uuid", {"tile_uuid": FLIGHT}),
    ("tile_uuid", {"tile_uuid": "no uuid"}),
    ("location_hash", {"location_hash": FLIGHT}),
    ("location_hash", {"location_hash": "no uuid"}),
    ("latitude", {"latitude": cell_bounds(18, 154321, 95812).north}),
    ("latitude", {"latitude": NAN}),
    ("longitude", {"longitude": INF}),
    ("tile_size_meters", {"tile_size_meters": NAN}),
    ("tile_size_meters", {"tile_size_meters": -1.0}),
    ("tile_size_pixels", {"tile_size_pixels": 0}),
    ("file_path", {"file_path": ""}),
    ("file_path", {"file_path": "/etc/passwd"}),
    ("file_path", {"file_path": "18/../../x.jpg"}),
    ("file_path", {"file_path": "a\0b"}),
    ("file_path", {"file_path": "x" * 513}),
    ("content_sha256", {"content_sha256": ""}),
    ("content_sha256", {"content_sha256": "A" * 64}),
    ("content_sha256", {"content_sha256": "ab"}),
    ("disk_bytes", {"disk_bytes": -1}),
    ("disk_bytes", {"disk_bytes": None}),
    ("captured_at", {"captured_at": None}),
    ("captured_at", {"captured_at": Timestamp(seconds=10**15)}),
    ("captured_at", {"captured_at": Timestamp(nanos=-1)}),
    ("quality_metadata", {"quality_metadata": {"blur": NAN}}),
    ("quality_metadata", {"quality_metadata": {"note": "x" * 3_000}}),
]


def bad_tile(changes: dict[str, Any]) -> TileMetadata:
    message = tile(KEY)
    for field, value in changes.items():
        message.ClearField(field)
        if value is not None:
            message.MergeFrom(TileMetadata(**{field: value}))
    return message


@pytest.fixture(autouse=True)
def _nothing_is_stored(sql: psycopg.Connection[Any]) -> Iterator[None]:
    yield
    assert sql.execute("SELECT count(*) FROM tiles").fetchone() == (0,)


def assert_refused(call: Callable[[], Any], field: str, reason: str = "INVALID_REQUEST") -> None:
    """Checks the error's code, reason and domain, and that it names only this field."""
    with pytest.raises(CallError) as caught:
        call()
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == reason
    assert [violation.field for violation in error.violations] == [field]
    assert all(violation.description for violation in error.violations)
    assert error.message.startswith(f"{field}: ")
    assert error.retry_after_s is None
    assert domains(error) == ["tilecache"]


def domains(error: CallError) -> list[str]:
    status = rpc_status.from_call(error.__cause__)
    info = error_details_pb2.ErrorInfo()
    return [info.domain for detail in status.details if detail.Unpack(info)]


def consume(answers: Any) -> list[Any]:
    return list(answers)


@pytest.mark.parametrize(("field", "changes"), BAD_TILES, ids=str)
def test_an_invalid_tile_is_refused_with_its_field(
    client: TileCacheClient, field: str, changes: dict[str, Any]
) -> None:
    request = InsertTileRequest(tile=bad_tile(changes))
    assert_refused(lambda: client.store.InsertTile(request, timeout=60), f"tile.{field}")


def test_invalid_tiles_of_a_batch_are_refused_with_their_fields(client: TileCacheClient) -> None:
    batch = BulkInsertTilesRequest(tiles=[bad_tile(changes) for _, changes in BAD_TILES])
    (answer,) = client.store.BulkInsertTiles(iter([batch]), timeout=60)
    assert [(refused.index, refused.code, refused.reason) for refused in answer.refused] == [
        (position, 3, "INVALID_REQUEST") for position in range(len(BAD_TILES))
    ]
    assert [refused.field for refused in answer.refused] == [
        f"tiles[{position}].{field}" for position, (field, _) in enumerate(BAD_TILES)
    ]
    assert all(refused.message.startswith(refused.field) for refused in answer.refused)


def test_all_invalid_fields_of_a_tile_are_violations(client: TileCacheClient) -> None:
    with pytest.raises(CallError) as caught:
        client.store.InsertTile(InsertTileRequest(), timeout=60)
    assert [violation.field for violation in caught.value.violations] == [
        *("tile.key.source", "tile.file_path", "tile.content_sha256", "tile.disk_bytes"),
        "tile.captured_at",
    ]


BAD_REGIONS: list[tuple[str, Region]] = [
    ("region", Region()),
    ("region.bounding_box.south", box_region(NAN, 0, 1, 1)),
    ("region.bounding_box.west", box_region(0, INF, 1, 1)),
    ("region.bounding_box.north", box_region(0, 0, 90.5, 1)),
    ("region.bounding_box.east", box_region(0, 0, 1, -181)),
    ("region.bounding_box.south", box_region(2, 0, 1, 1)),
    ("region.circle.latitude", circle_region(NAN, 0, 1)),
    ("region.circle.longitude", circle_region(0, 200, 1)),
    ("region.circle.radius_meters", circle_region(0, 0, 0)),
    ("region.circle.radius_meters", circle_region(0, 0, NAN)),
    ("region.circle.radius_meters", circle_region(0, 0, INF)),
    ("region.cell_range.x_to", cell_region(0, 16, 0, 0)),
    ("region.cell_range.y_from", cell_region(0, 0, -1, 0)),
    ("region.cell_range.x_from", cell_region(3, 2, 0, 0)),
]


@pytest.mark.parametrize(("field", "region"), BAD_REGIONS, ids=str)
def test_an_invalid_region_is_refused_with_its_field(
    client: TileCacheClient, field: str, region: Region
) -> None:
    query = QueryTilesRequest(zoom=4, region=region)
    assert_refused(lambda: consume(client.store.QueryTiles(query, timeout=60)), field)
    coverage = DescribeCoverageRequest(zoom=4, region=region)
    assert_refused(lambda: consume(client.store.DescribeCoverage(coverage, timeout=60)), field)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("zoom", {"zoom": 23}),
        ("zoom", {"zoom": -1}),
        ("sources[0]", {"sources": [0]}),
        ("sources[1]", {"sources": [1, 9]}),
        ("labels[0]", {"labels": [0]}),
        ("labels[2]", {"labels": [1, 2, 77]}),
        ("selection", {"selection": 9}),
        ("limit", {"limit": -1}),
        ("flight_id", {"flight_id": "x"}),
        ("captured_after", {"captured_after": Timestamp(seconds=2**62)}),
    ],
    ids=str,
)
def test_an_invalid_query_is_refused_with_its_field(
    client: TileCacheClient, field: str, changes: dict[str, Any]
) -> None:
    request = QueryTilesRequest(zoom=4, region=box_region(0, 0, 1, 1))
    request.MergeFrom(QueryTilesRequest(**changes))
    request.zoom = changes.get("zoom", 4)
    assert_refused(lambda: consume(client.store.QueryTiles(request, timeout=60)), field)


UUID_REF = TileRef(tile_uuid=FLIGHT)
BAD_REFS: list[tuple[str, TileRef]] = [
    ("", TileRef()),
    (".tile_uuid", TileRef(tile_uuid="")),
    (".tile_uuid", TileRef(tile_uuid=FLIGHT.upper())),
    (".tile_uuid", TileRef(tile_uuid="x" * 1_000)),
    (".key.source", TileRef(key=TileKey())),
    (".key.zoom", TileRef(key=tile_key(99, 0, 0))),
    (".key.y", TileRef(key=tile_key(3, 0, 8))),
]


@pytest.mark.parametrize(("field", "ref"), BAD_REFS, ids=str)
def test_an_invalid_reference_is_refused_with_its_index(
    client: TileCacheClient, field: str, ref: TileRef
) -> None:
    get = GetTileRequest(tile=ref)
    assert_refused(lambda: client.store.GetTile(get, timeout=60), f"tile{field}")
    look_up = LookupTilesRequest(tiles=[UUID_REF, ref])
    assert_refused(lambda: client.store.LookupTiles(look_up, timeout=60), f"tiles[1]{field}")
    touch = TouchTilesRequest(tiles=[UUID_REF, UUID_REF, ref])
    assert_refused(lambda: client.store.TouchTiles(touch, timeout=60), f"tiles[2]{field}")


def test_an_invalid_key_is_refused_with_its_index(client: TileCacheClient) -> None:
    request = DeriveTileIdentityRequest(keys=[KEY, tile_key(2, 4, 0)])
    assert_refused(lambda: client.store.DeriveTileIdentity(request, timeout=60), "keys[1].x")


@pytest.mark.parametrize(
    ("field", "upload"),
    [
        ("tiles[1].tile_uuid", UploadedTile(tile_uuid="x", content_sha256=sha256("x"))),
        ("tiles[1].content_sha256", UploadedTile(tile_uuid=FLIGHT, content_sha256="x")),
    ],
)
def test_an_invalid_upload_is_refused_with_its_index(
    client: TileCacheClient, field: str, upload: UploadedTile
) -> None:
    sound = UploadedTile(tile_uuid=FLIGHT, content_sha256=sha256("x"))
    request = MarkUploadedRequest(tiles=[sound, upload])
    assert_refused(lambda: client.store.MarkUploaded(request, timeout=60), field)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("page_size", ListPendingUploadsRequest(page_size=-1)),
        ("page_token", ListPendingUploadsRequest(page_token="x")),
        ("flight_id", ListPendingUploadsRequest(flight_id="x")),
    ],
)
def test_an_invalid_page_is_refused_with_its_field(
    client: TileCacheClient, field: str, request_: ListPendingUploadsRequest
) -> None:
    assert_refused(lambda: client.store.ListPendingUploads(request_, timeout=60), field)


def test_an_unknown_on_conflict_is_refused(client: TileCacheClient) -> None:
    request = InsertTileRequest(tile=tile(KEY), on_conflict=7)
    assert_refused(lambda: client.store.InsertTile(request, timeout=60), "on_conflict")
    batch = BulkInsertTilesRequest(tiles=[tile(KEY)], on_conflict=7)
    assert_refused(
        lambda: consume(client.store.BulkInsertTiles(iter([batch]), timeout=60)), "on_conflict"
    )


@pytest.mark.parametrize(
    ("method", "field", "make"),
    [
        ("DeriveTileIdentity", "keys", lambda n: DeriveTileIdentityRequest(keys=[KEY] * n)),
        ("LookupTiles", "tiles", lambda n: LookupTilesRequest(tiles=[UUID_REF] * n)),
        ("TouchTiles", "tiles", lambda n: TouchTilesRequest(tiles=[UUID_REF] * n)),
        (
            *("MarkUploaded", "tiles"),
            lambda n: MarkUploadedRequest(
                tiles=[UploadedTile(tile_uuid=FLIGHT, content_sha256=sha256("x"))] * n
            ),
        ),
    ],
)
def test_too_many_items_and_an_empty_list_are_refused(
    client: TileCacheClient, method: str, field: str, make: Callable[[int], Any]
) -> None:
    call = getattr(client.store, method)
    call(make(4_096), timeout=60)
    assert_refused(lambda: call(make(4_097), timeout=60), field, "LIMIT_EXCEEDED")
    assert_refused(lambda: call(make(0), timeout=60), field)


def test_a_message_that_is_too_large_is_refused(client: TileCacheClient) -> None:
    request = LookupTilesRequest(tiles=[TileRef(tile_uuid="x" * (8 * 1024 * 1024))])
    assert_refused(
        lambda: client.store.LookupTiles(request, timeout=60), "request", "LIMIT_EXCEEDED"
    )
    batch = BulkInsertTilesRequest(tiles=[tile(KEY), tile(KEY, file_path="x" * 9 * 1024 * 1024)])
    assert_refused(
        lambda: consume(client.store.BulkInsertTiles(iter([batch]), timeout=60)),
        "request",
        "LIMIT_EXCEEDED",
    )


def raw_call(socket_path: Any, method: str, data: bytes) -> grpc.RpcError:
    """The error of a call with these bytes as its request."""
    with grpc.insecure_channel(
        f"unix:{socket_path}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        call = channel.unary_stream(f"/{SERVICE}/{method}")
        if method == "BulkInsertTiles":
            stream = channel.stream_stream(f"/{SERVICE}/{method}")
            answers = stream(iter([data]), timeout=60)
        else:
            answers = call(data, timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
        return caught.value


@pytest.mark.parametrize("method", ["GetTile", "InsertTile", "QueryTiles", "BulkInsertTiles"])
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff", b"\x00" * 40, bytes(range(256))])
def test_malformed_requests_are_refused(
    shared_daemon: DaemonProcess, method: str, data: bytes
) -> None:
    error = raw_call(shared_daemon.socket_path, method, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == (f"request: must be an encoded tilecache.v1.{method}Request")
    status = rpc_status.from_call(error)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert [detail.Unpack(info) or detail.Unpack(bad) for detail in status.details] == [True, True]
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "tilecache")
    assert [violation.field for violation in bad.field_violations] == ["request"]


def test_unknown_fields_are_ignored(shared_daemon: DaemonProcess) -> None:
    unknown = bytes([0xF8, 0x3F, 0x01])
    request = GetTileRequest(tile=UUID_REF).SerializeToString() + unknown
    error = raw_call(shared_daemon.socket_path, "GetTile", request)
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_an_unknown_method_is_unimplemented(shared_daemon: DaemonProcess) -> None:
    error = raw_call(shared_daemon.socket_path, "EatTiles", b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_invalid_input_causes_no_internal_error(
    shared_daemon: DaemonProcess, client: TileCacheClient
) -> None:
    assert client.is_serving()
    assert "internal_error" not in shared_daemon.log
