"""Conversion of messages to new tiles: derived fields and violations."""

import json
import math
from datetime import datetime, timezone
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles import FLIGHT, ONBOARD, location_hash, tile, tile_key, tile_uuid
from tests.unit.rpc import messages
from tilecache.mercator import cell_bounds, cell_centre, cell_edge_meters
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import NewTile
from tilecache_daemon.rpc.new_tile import new_tile, new_tiles, quality_json

KEY = tile_key(18, 154321, 95812)
LATITUDE, LONGITUDE = cell_centre(18, 154321, 95812)

cell_keys = st.builds(tile_key, st.just(18), st.integers(0, 2**18 - 1), st.integers(0, 2**18 - 1))


def struct(value: dict[str, Any]) -> Struct:
    message = Struct()
    message.update(value)
    return message


def fields_at_fault(message: TileMetadata) -> list[str]:
    with pytest.raises(InvalidRequestError) as caught:
        new_tile(message)
    return [violation.field for violation in caught.value.violations]


def convert_alone(message: TileMetadata) -> NewTile | InvalidRequestError:
    try:
        return new_tile(message)
    except InvalidRequestError as error:
        return error


def comparable(result: NewTile | InvalidRequestError) -> object:
    return result.violations if isinstance(result, InvalidRequestError) else result


@given(messages.metadata)
def test_any_message_is_converted_or_refused(message: TileMetadata) -> None:
    read = messages.read_or_refuse(new_tile, message)
    if read is not None:
        assert read.tile_uuid == tile_uuid(message.key)
        assert read.disk_bytes >= 0
        assert read.file_path


@given(st.lists(messages.metadata | st.builds(tile, cell_keys), max_size=6))
def test_several_messages_are_converted_as_each_alone(some: list[TileMetadata]) -> None:
    alone = [comparable(convert_alone(message)) for message in some]
    assert list(map(comparable, new_tiles(some))) == alone


@given(st.binary(max_size=200))
def test_a_message_that_lacks_required_fields_is_refused(data: bytes) -> None:
    try:
        message = TileMetadata.FromString(data)
    except DecodeError:
        return
    with pytest.raises(InvalidRequestError):
        # 200 bytes cannot hold all required fields.
        new_tile(message)


def test_missing_fields_are_derived() -> None:
    read = new_tile(tile(KEY))
    assert read.tile_uuid == "17f7ac7e-6c25-5050-a7cd-b6578cd5f323"
    assert read.location_hash == "8d180ffb-bd42-5cb4-a4d6-628829b798b6"
    assert (read.latitude, read.longitude) == (LATITUDE, LONGITUDE)
    assert read.tile_size_meters == cell_edge_meters(18, LATITUDE)
    assert read.tile_size_pixels == 256
    assert read.quality_metadata is None


def test_given_valid_fields_are_kept() -> None:
    key = tile_key(18, 154321, 95812, ONBOARD, FLIGHT)
    read = new_tile(
        tile(
            key,
            tile_uuid=tile_uuid(key),
            location_hash=location_hash(key),
            latitude=LATITUDE,
            longitude=LONGITUDE,
            tile_size_meters=99.5,
            tile_size_pixels=512,
            quality_metadata=struct({"blur": 0.25, "ok": True, "tags": ["a", None]}),
        )
    )
    assert read.flight_id == FLIGHT
    assert (read.tile_size_meters, read.tile_size_pixels) == (99.5, 512)
    assert json.loads(read.quality_metadata or "") == {
        "blur": 0.25,
        "ok": True,
        "tags": ["a", None],
    }


def test_capture_times_are_truncated_to_microseconds() -> None:
    message = tile(KEY, captured_at=datetime(2026, 1, 1, tzinfo=timezone.utc))
    message.captured_at.nanos = 123_456_789
    assert new_tile(message).captured_at == datetime(2026, 1, 1, 0, 0, 0, 123_456, timezone.utc)


def test_a_centre_may_be_rounded() -> None:
    read = new_tile(tile(KEY, latitude=round(LATITUDE, 6), longitude=round(LONGITUDE, 6)))
    assert (read.latitude, read.longitude) == (round(LATITUDE, 6), round(LONGITUDE, 6))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tile_uuid", FLIGHT),
        ("location_hash", FLIGHT),
        ("latitude", cell_bounds(18, 154321, 95812).north),
        ("latitude", math.nan),
        ("longitude", cell_bounds(18, 154321, 95812).west),
        ("longitude", math.inf),
        ("longitude", LONGITUDE + 360),
        ("tile_size_meters", 0.0),
        ("tile_size_meters", -1.0),
        ("tile_size_meters", math.nan),
        ("tile_size_meters", math.inf),
        ("tile_size_pixels", 0),
        ("tile_size_pixels", -256),
        ("tile_size_pixels", 65_537),
        ("disk_bytes", -1),
        ("disk_bytes", None),
        ("content_sha256", ""),
        ("content_sha256", "A" * 64),
        ("content_sha256", "a" * 63),
        ("captured_at", None),
        ("captured_at", Timestamp(seconds=2**60)),
        ("captured_at", Timestamp(nanos=-1)),
    ],
)
def test_an_invalid_field_is_the_only_violation(field: str, value: object) -> None:
    message = tile(KEY)
    message.ClearField(field)
    if value is not None:
        message.MergeFrom(TileMetadata(**{field: value}))
    assert fields_at_fault(message) == [field]


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a.jpg", "..", "../a.jpg", "a/../b.jpg", "a/..", ".", "./a", "a/./b", "a//b", "a/"),
        *("a\\b.jpg", "..\\a", "C:\\a", "a\0b", "a\nb", "a\tb", "a\x7fb"),
        *("x" * 513, "ü" * 257),
    ],
)
def test_a_path_that_may_leave_its_directory_is_refused(path: str) -> None:
    assert fields_at_fault(tile(KEY, file_path=path)) == ["file_path"]


@pytest.mark.parametrize("path", ["a", "18/1/2.jpg", "a b/ü.png", "...", ".a/b..c", "x" * 512])
def test_a_path_within_the_directory_is_accepted(path: str) -> None:
    assert new_tile(tile(KEY, file_path=path)).file_path == path


def test_all_invalid_fields_are_violations() -> None:
    bad = TileMetadata(key=tile_key(18, -1, 0), tile_size_pixels=-1)
    assert fields_at_fault(bad) == [
        *("key.x", "file_path", "content_sha256", "disk_bytes", "captured_at"),
        "tile_size_pixels",
    ]


def test_a_missing_key_is_a_violation_of_its_fields() -> None:
    message = tile(KEY)
    message.ClearField("key")
    assert fields_at_fault(message) == ["key.source"]


@pytest.mark.parametrize(
    "value",
    [
        {"a": math.nan},
        {"a": -math.inf},
        {"a": {"b": [math.inf]}},
        {"a": "\0"},
        {"\0": 1},
        {"a": "x" * 2048},
        {"ü" * 1024: 1},
    ],
)
def test_quality_that_cannot_be_stored_is_refused(value: dict[str, Any]) -> None:
    assert fields_at_fault(tile(KEY, quality_metadata=struct(value))) == ["quality_metadata"]


@pytest.mark.parametrize(
    "value", [{}, {"a": None}, {"a": "\\u0000"}, {"a": "\n\\"}, {"a": 1e308}, {"a": "x" * 2030}]
)
def test_valid_quality_is_kept_unchanged(value: dict[str, Any]) -> None:
    assert json.loads(quality_json(struct(value))) == value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_quality_with_too_many_nested_levels_is_refused() -> None:
    assert json.loads(quality_json(struct(nested(16)))) == nested(16)
    too_deep = tile(KEY, quality_metadata=struct(nested(17)))
    assert fields_at_fault(too_deep) == ["quality_metadata"]
