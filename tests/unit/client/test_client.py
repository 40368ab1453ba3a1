"""What the client makes by itself, without a daemon."""

from hypothesis import example, given
from hypothesis import strategies as st

from tilecache.client import lookup_request
from tilecache.v1.tile_metadata_store_pb2 import LookupTilesRequest, TileRef

ids = st.uuids().map(str)
no_ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(ids) | st.lists(ids | no_ids), st.booleans())
@example(["\N{LATIN SMALL LETTER E WITH ACUTE}" * 36], True)
@example([" " * 35, " " * 37], False)
def test_a_lookup_request_is_the_one_that_protobuf_makes(
    tile_uuids: list[str], record_access: bool
) -> None:
    refs = [TileRef(tile_uuid=tile_uuid) for tile_uuid in tile_uuids]
    expected = LookupTilesRequest(tiles=refs, record_access=record_access)
    assert lookup_request(iter(tile_uuids), record_access=record_access) == expected
