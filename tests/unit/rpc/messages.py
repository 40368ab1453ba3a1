"""Hypothesis strategies for messages with any values that protobuf allows."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from tilecache.errors import FieldViolation
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    CellRange,
    Circle,
    Corridor,
    LatLng,
    Polygon,
    Region,
    RegionUnion,
    Ring,
    TileMetadata,
    TileRef,
)
from tilecache_daemon.errors import InvalidRequestError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
int32s = st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 23)
doubles = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 90.0, -180.0])
timestamps = st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=int32s)
json_values = st.recursive(
    st.builds(Value)
    | st.builds(Value, number_value=doubles)
    | st.builds(Value, string_value=texts)
    | st.builds(Value, bool_value=st.booleans()),
    lambda values: (
        st.builds(Value, list_value=st.builds(ListValue, values=st.lists(values, max_size=4)))
        | st.builds(
            Value,
            struct_value=st.builds(Struct, fields=st.dictionaries(texts, values, max_size=4)),
        )
    ),
    max_leaves=10,
)
structs = st.builds(Struct, fields=st.dictionaries(texts, json_values, max_size=4))
flights = st.none() | texts | st.uuids(allow_nil=True).map(str)
hashes = texts | st.text("0123456789abcdef", min_size=64, max_size=64)

keys = st.builds(
    TileKey, zoom=int32s, x=int32s, y=int32s, source=st.integers(-1, 3), flight_id=flights
)
metadata = st.builds(
    TileMetadata,
    tile_uuid=st.just("") | texts,
    key=st.none() | keys,
    location_hash=st.none() | texts,
    latitude=st.none() | doubles,
    longitude=st.none() | doubles,
    tile_size_meters=st.none() | doubles,
    tile_size_pixels=st.none() | int32s,
    file_path=texts | st.sampled_from(["a/b.jpg", "../a", "a//b", "a/./b"]),
    content_sha256=hashes,
    disk_bytes=st.none() | st.integers(-(2**63), 2**63 - 1),
    uploaded_at=st.none() | timestamps,
    captured_at=st.none() | timestamps,
    quality_metadata=st.none() | structs,
)
refs = (
    st.builds(TileRef)
    | st.builds(TileRef, tile_uuid=flights.filter(lambda flight: flight is not None))
    | st.builds(TileRef, key=keys)
)
points = st.lists(st.builds(LatLng, latitude=doubles, longitude=doubles), max_size=4)
rings = st.builds(Ring, points=points)
areas = (
    st.builds(Region)
    | st.builds(
        Region,
        bounding_box=st.builds(
            BoundingBox, south=doubles, west=doubles, north=doubles, east=doubles
        ),
    )
    | st.builds(
        Region,
        circle=st.builds(Circle, latitude=doubles, longitude=doubles, radius_meters=doubles),
    )
    | st.builds(
        Region,
        cell_range=st.builds(CellRange, x_from=int32s, x_to=int32s, y_from=int32s, y_to=int32s),
    )
    | st.builds(Region, polygon=st.builds(Polygon, outer=rings, holes=st.lists(rings, max_size=2)))
    | st.builds(Region, corridor=st.builds(Corridor, waypoints=points, half_width_meters=doubles))
)
regions = areas | st.builds(
    Region, union=st.builds(RegionUnion, regions=st.lists(areas, max_size=3))
)


def read_or_refuse(read: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a conversion; None if it raises an InvalidRequestError with violations."""
    value: Any = None
    violations: Sequence[FieldViolation] = ()
    try:
        value = read(*arguments)
    except InvalidRequestError as error:
        violations = error.violations
    assert value is not None or violations
    assert all(field and text for field, text in violations)
    return value


def fields_at_fault(read: Callable[..., Any], *arguments: Any) -> list[str]:
    """The fields of the violations that a conversion raises."""
    with pytest.raises(InvalidRequestError) as caught:
        read(*arguments)
    return [violation.field for violation in caught.value.violations]
