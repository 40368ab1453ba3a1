"""Validation of requests: the only error raised is InvalidRequestError."""

import math
from datetime import datetime, timedelta, timezone
from itertools import islice

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles import (
    FLIGHT,
    box_region,
    cell_region,
    circle_region,
    corridor_region,
    polygon_region,
    tile_key,
    union_region,
)
from tests.unit.rpc import messages
from tests.unit.rpc.messages import fields_at_fault
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ListPendingUploadsRequest,
    QueryTilesRequest,
    Region,
    TileRef,
)
from tilecache_daemon.errors import LimitExceededError
from tilecache_daemon.models import OnConflict, TileSelection
from tilecache_daemon.rpc import regions, requests
from tilecache_daemon.service.uploads import decode_page_token

HOLE = "region.polygon.holes[0]"


@given(messages.keys)
def test_any_key_is_converted_or_refused(message: TileKey) -> None:
    key = messages.read_or_refuse(requests.tile_key, message)
    if key is not None:
        assert 0 <= key.zoom <= 22
        assert 0 <= key.x < 1 << key.zoom
        assert 0 <= key.y < 1 << key.zoom


@given(messages.refs)
def test_any_reference_is_converted_or_refused(message: TileRef) -> None:
    tile_uuid = messages.read_or_refuse(requests.tile_ref, "tile", message)
    assert tile_uuid is None or len(tile_uuid) == 36


@given(st.integers(0, 22), messages.regions)
def test_any_region_is_converted_or_refused(zoom: int, message: Region) -> None:
    cells = messages.read_or_refuse(regions.region_cells, zoom, message)
    for x_from, x_to, y_from, y_to in islice(cells or (), 10):
        assert 0 <= x_from <= x_to < 1 << zoom
        assert 0 <= y_from <= y_to < 1 << zoom


@given(messages.timestamps)
def test_any_time_is_converted_or_refused(message: Timestamp) -> None:
    moment = messages.read_or_refuse(requests.moment, "captured_at", message)
    if moment is not None:
        epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
        micros = message.seconds * 1_000_000 + message.nanos // 1_000
        assert moment - epoch == timedelta(microseconds=micros)


@given(
    st.builds(
        QueryTilesRequest,
        sources=st.lists(st.integers(-1, 4), max_size=3),
        flight_id=messages.flights,
        captured_after=st.none() | messages.timestamps,
        labels=st.lists(st.integers(-1, 7), max_size=3),
        selection=st.integers(-1, 4),
        limit=messages.int32s,
    )
)
def test_any_filter_is_converted_or_refused(message: QueryTilesRequest) -> None:
    wanted = messages.read_or_refuse(requests.tile_filter, message)
    assert wanted is None or wanted.limit >= 0


@given(messages.texts | st.binary(max_size=30).map(lambda data: data.decode("latin-1")))
def test_any_page_token_is_decoded_or_refused(token: str) -> None:
    messages.read_or_refuse(decode_page_token, token)


def test_all_invalid_fields_of_a_key_are_violations() -> None:
    key = TileKey(zoom=3, x=8, y=-1, source=9, flight_id="F")
    assert fields_at_fault(requests.tile_key, key) == ["x", "y", "source", "flight_id"]
    assert fields_at_fault(requests.tile_key, TileKey(zoom=23)) == ["zoom", "source"]


@pytest.mark.parametrize(
    "text",
    [FLIGHT.upper(), f"{{{FLIGHT}}}", FLIGHT.replace("-", ""), f" {FLIGHT}", f"{FLIGHT}\n", ""],
)
def test_only_canonical_uuids_are_accepted(text: str) -> None:
    assert fields_at_fault(requests.uuid_text, "f", text) == ["f"]
    assert fields_at_fault(requests.tile_key, tile_key(0, 0, 0, flight_id=text)) == ["flight_id"]


@pytest.mark.parametrize("text", ["", "A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_only_canonical_hashes_are_accepted(text: str) -> None:
    assert fields_at_fault(requests.sha256_text, "h", text) == ["h"]


def test_an_empty_reference_is_refused() -> None:
    assert fields_at_fault(requests.tile_ref, "tile", TileRef()) == ["tile"]


def test_an_empty_list_and_too_many_items_are_refused() -> None:
    assert fields_at_fault(requests.check_count, "tiles", 0, 3) == ["tiles"]
    with pytest.raises(LimitExceededError, match="tiles: has 4 items, must have at most 3"):
        requests.check_count("tiles", 4, 3)
    requests.check_count("tiles", 3, 3)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("region", "field"),
    [
        (Region(), "region"),
        (box_region(NAN, 0, 1, 1), "region.bounding_box.south"),
        (box_region(0, NAN, 1, 1), "region.bounding_box.west"),
        (box_region(0, 0, INF, 1), "region.bounding_box.north"),
        (box_region(0, 0, 1, -INF), "region.bounding_box.east"),
        (box_region(-90.1, 0, 1, 1), "region.bounding_box.south"),
        (box_region(0, 0, 1, 180.1), "region.bounding_box.east"),
        (box_region(2, 0, 1, 1), "region.bounding_box.south"),
        (circle_region(NAN, 0, 1), "region.circle.latitude"),
        (circle_region(0, 180.5, 1), "region.circle.longitude"),
        (circle_region(0, 0, 0), "region.circle.radius_meters"),
        (circle_region(0, 0, -1), "region.circle.radius_meters"),
        (circle_region(0, 0, NAN), "region.circle.radius_meters"),
        (circle_region(0, 0, INF), "region.circle.radius_meters"),
        (circle_region(0, 0, 2.1e7), "region.circle.radius_meters"),
        (cell_region(-1, 1, 0, 1), "region.cell_range.x_from"),
        (cell_region(0, 8, 0, 1), "region.cell_range.x_to"),
        (cell_region(0, 1, 0, 8), "region.cell_range.y_to"),
        (cell_region(2, 1, 0, 1), "region.cell_range.x_from"),
        (cell_region(0, 1, 2, 1), "region.cell_range.y_from"),
        (polygon_region([]), "region.polygon.outer"),
        (polygon_region([(0, 0), (0, 1), (NAN, 1)]), "region.polygon.outer.points[2].latitude"),
        (polygon_region([(0, 0), (0, 181), (1, 1)]), "region.polygon.outer.points[1].longitude"),
        (polygon_region([(0, 0), (1, 1), (1, 0), (0, 1)]), "region.polygon.outer"),
        (polygon_region([(0, 0), (0, 9), (9, 9)], [(8, 1), (8, 2), (7, 1)]), HOLE),
        (
            polygon_region([(0, 0), (0, 9), (9, 9)], [(8, 1), (8, INF), (7, 1)]),
            f"{HOLE}.points[1].longitude",
        ),
        (corridor_region([], 1), "region.corridor.waypoints"),
        (corridor_region([(0, 0), (91, 0)], 1), "region.corridor.waypoints[1].latitude"),
        (corridor_region([(0, 0), (0, 180)], 1), "region.corridor.waypoints[1]"),
        (corridor_region([(0, 0)], 0), "region.corridor.half_width_meters"),
        (corridor_region([(0, 0)], NAN), "region.corridor.half_width_meters"),
        (corridor_region([(0, 0)], 1_000_001), "region.corridor.half_width_meters"),
        (union_region(), "region.union.regions"),
        (union_region(box_region(0, 0, 1, 1), Region()), "region.union.regions[1]"),
        (
            union_region(circle_region(0, 0, -1)),
            "region.union.regions[0].circle.radius_meters",
        ),
        (union_region(union_region(box_region(0, 0, 1, 1))), "region.union.regions[0].union"),
    ],
)
def test_an_invalid_region_is_a_violation_of_its_field(region: Region, field: str) -> None:
    assert fields_at_fault(regions.region_cells, 3, region) == [field]


@pytest.mark.parametrize(
    "region",
    [
        corridor_region([(0.0, index / 1e4) for index in range(20_001)], 1.0),
        polygon_region([(0.0, index / 1e4) for index in range(20_001)]),
        union_region(*[corridor_region([(0.0, 1.0)] * 10_001, 1.0)] * 2),
    ],
    ids=["corridor", "polygon", "union"],
)
def test_a_region_of_too_many_points_is_refused(region: Region) -> None:
    with pytest.raises(LimitExceededError) as refusal:
        regions.region_cells(3, region)
    assert [violation.field for violation in refusal.value.violations] == ["region"]


@pytest.mark.parametrize(("seconds", "nanos"), [(0, -1), (0, 10**9), (2**62, 0), (-(2**62), 0)])
def test_a_time_outside_the_calendar_is_refused(seconds: int, nanos: int) -> None:
    message = Timestamp(seconds=seconds, nanos=nanos)
    assert fields_at_fault(requests.moment, "captured_at", message) == ["captured_at"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (QueryTilesRequest(limit=-1), "limit"),
        (QueryTilesRequest(sources=[1, 0]), "sources[1]"),
        (QueryTilesRequest(sources=[7]), "sources[0]"),
        (QueryTilesRequest(labels=[1, 1, 6]), "labels[2]"),
        (QueryTilesRequest(labels=[0]), "labels[0]"),
        (QueryTilesRequest(selection=3), "selection"),
        (QueryTilesRequest(flight_id=""), "flight_id"),
        (QueryTilesRequest(captured_after=Timestamp(nanos=-1)), "captured_after"),
    ],
)
def test_an_invalid_filter_is_a_violation_of_its_field(
    request_: QueryTilesRequest, field: str
) -> None:
    assert fields_at_fault(requests.tile_filter, request_) == [field]


def test_the_default_labels_are_the_usable_ones() -> None:
    assert requests.tile_filter(QueryTilesRequest()).labels == {"fresh", "downgraded", "stale_warn"}
    wanted = requests.tile_filter(QueryTilesRequest(labels=[5, 3]))
    assert wanted.labels == {"rejected", "stale_reject"}


def test_unspecified_enums_are_their_defaults() -> None:
    assert [requests.on_conflict(number) for number in range(5)] == [
        *(OnConflict.FAIL, OnConflict.FAIL),
        *(OnConflict.KEEP_EXISTING, OnConflict.REPLACE_IF_NEWER, OnConflict.CONVERGE),
    ]
    assert requests.tile_filter(QueryTilesRequest()).selection is TileSelection.ALL
    assert fields_at_fault(requests.on_conflict, 5) == ["on_conflict"]


@pytest.mark.parametrize(("requested", "size"), [(0, 1000), (1, 1), (1000, 1000), (5000, 1000)])
def test_a_page_has_at_most_a_thousand_items(requested: int, size: int) -> None:
    assert requests.page_size(requested) == size


def test_a_negative_page_size_is_refused() -> None:
    assert fields_at_fault(requests.page_size, -1) == ["page_size"]


def test_the_flight_filter_is_optional() -> None:
    assert requests.optional_flight(ListPendingUploadsRequest()) is None
    assert requests.optional_flight(ListPendingUploadsRequest(flight_id=FLIGHT)) == FLIGHT
