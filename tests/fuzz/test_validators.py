"""For any message, a validator returns a model or an error that names the invalid field."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.bad_bytes import EXAMPLES, random_messages
from tests.tiles import tile, tile_key
from tilecache.errors import FieldViolation
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import Limits
from tilecache_daemon.rpc import admin_requests, regions, requests
from tilecache_daemon.rpc.new_tile import new_tile
from tilecache_daemon.rpc.tile_updates import tile_updates
from tilecache_daemon.service.regions import bound_cells
from tilecache_daemon.service.uploads import decode_page_token

MAX_CELLS = 10_000
MAX_ITEMS = Limits().max_request_items


def read_region(request: pb.QueryTilesRequest) -> object:
    cells = regions.region_cells(requests.zoom(request.zoom), request.region)
    return bound_cells(cells, MAX_CELLS)


VALIDATORS: list[tuple[type[Message], Callable[[Any], object]]] = [
    (pb.TileMetadata, new_tile),
    (TileKey, requests.tile_key),
    (pb.TileRef, lambda message: requests.tile_ref("tile", message)),
    (
        pb.LookupTilesRequest,
        lambda message: requests.tile_refs(message.tiles, MAX_ITEMS),
    ),
    (pb.QueryTilesRequest, read_region),
    (pb.QueryTilesRequest, requests.tile_filter),
    (pb.ListPendingUploadsRequest, requests.optional_flight),
    (pb.ListPendingUploadsRequest, lambda message: requests.page_size(message.page_size)),
    (pb.ListPendingUploadsRequest, lambda message: decode_page_token(message.page_token)),
    (admin_pb.EvictTilesRequest, admin_requests.eviction_goal),
    (admin_pb.DeleteTilesRequest, admin_requests.purge),
    (admin_pb.DeleteTilesRequest, admin_requests.purge_zooms),
    (admin_pb.DeleteTilesRequest, admin_requests.purge_areas),
    (admin_pb.UpdateTilesRequest, lambda message: tile_updates(message, MAX_ITEMS)),
    (admin_pb.DeleteTilesRequest, admin_requests.expected_files),
    (pb.ListTilesRequest, lambda message: requests.listed_files(message, MAX_ITEMS)),
    (admin_pb.Sector, admin_requests.sector),
    (admin_pb.FreshnessRule, admin_requests.freshness_rule),
    (admin_pb.ListEvictionsRequest, lambda message: admin_requests.after_id(message.page_token)),
    (
        admin_pb.ConfirmEvictionsRequest,
        lambda message: admin_requests.eviction_ids(message, MAX_ITEMS),
    ),
]


@pytest.mark.parametrize("number", range(len(VALIDATORS)))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_validators_raise_only_errors_that_name_a_field(number: int, data: st.DataObject) -> None:
    kind, validate = VALIDATORS[number]
    message = data.draw(random_messages(kind.DESCRIPTOR))
    violations = violations_of(lambda: validate(message))
    assert violations is None or violations
    assert all(violation.field and violation.description for violation in violations or ())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308])
@pytest.mark.parametrize("field", ["latitude", "longitude", "tile_size_meters"])
def test_numbers_that_are_no_coordinates_are_violations(field: str, value: float) -> None:
    message = tile(tile_key(10, 0, 0), **{field: value})
    violations = violations_of(lambda: new_tile(message))
    assert [violation.field for violation in violations or ()] == [field]


def violations_of(validate: Callable[[], object]) -> Sequence[FieldViolation] | None:
    """The violations that are raised; None if none are."""
    try:
        validate()
    except InvalidRequestError as error:
        return error.violations
    return None
