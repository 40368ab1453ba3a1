"""Which tiles a request names: as protobuf reads it, though most are not unpacked."""

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles import FLIGHT, tile_key
from tests.unit.rpc.messages import fields_at_fault
from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileRequest,
    LookupTilesRequest,
    TileRef,
    TouchTilesRequest,
)
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.rpc import refs
from tilecache_daemon.rpc.requests import UUID_TEXT
from tilecache_daemon.store.tile_ids import TileIds

ids = st.lists(st.uuids().map(str), min_size=1, max_size=9)


def by_id(text: str) -> TileRef:
    return TileRef(tile_uuid=text)


def test_references_are_named_by_their_position() -> None:
    request = LookupTilesRequest(tiles=[by_id(FLIGHT), TileRef(key=tile_key(0, 1, 0))])
    assert fields_at_fault(refs.unpack_lookup, 10, request.SerializeToString()) == [
        "tiles[1].key.x"
    ]


@pytest.mark.parametrize(
    ("texts", "position"),
    [
        ([FLIGHT, FLIGHT.upper(), FLIGHT], 1),
        ([FLIGHT[:-1], FLIGHT + "0"], 0),
        ([FLIGHT, "", f"{FLIGHT}\n{FLIGHT}"], 1),
        ([f"{FLIGHT}\n{FLIGHT[:-1]}", ""], 0),
        ([FLIGHT, FLIGHT.replace("-", "", 1) + "-"], 1),
        ([FLIGHT, FLIGHT[:-1] + "\N{ARABIC-INDIC DIGIT ONE}"], 1),
        ([FLIGHT, FLIGHT[:-1] + "\n"], 1),
    ],
)
def test_ids_are_looked_at_one_by_one_though_they_are_checked_together(
    texts: list[str], position: int
) -> None:
    request = LookupTilesRequest(tiles=map(by_id, texts))
    assert fields_at_fault(refs.unpack_lookup, 10, request.SerializeToString()) == [
        f"tiles[{position}].tile_uuid"
    ]


@given(ids, st.booleans())
def test_ids_are_read_in_order(texts: list[str], record_access: bool) -> None:
    request = LookupTilesRequest(tiles=map(by_id, texts), record_access=record_access)
    found, noted = refs.unpack_lookup(10, request.SerializeToString())
    assert (found.texts, noted) == (texts, record_access)
    assert found.numbers.tolist() == TileIds.of(texts).numbers.tolist()
    touched = TouchTilesRequest(tiles=map(by_id, texts)).SerializeToString()
    assert refs.unpack_touch(10, touched).texts == texts


@given(st.uuids().map(str), st.booleans())
def test_an_id_is_read_as_protobuf_reads_it(text: str, record_access: bool) -> None:
    request = GetTileRequest(tile=by_id(text), record_access=record_access)
    assert refs.unpack_get(request.SerializeToString()) == (text, record_access)


@given(ids, st.binary(min_size=1, max_size=4), st.integers(0, 400))
def test_bytes_that_look_nearly_plain_are_read_as_protobuf_reads_them(
    texts: list[str], noise: bytes, place: int
) -> None:
    plain = LookupTilesRequest(tiles=map(by_id, texts), record_access=True).SerializeToString()
    data = plain[:place] + noise + plain[place + len(noise) :]
    try:
        request = LookupTilesRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            refs.unpack_lookup(10, data)
        return
    try:
        found, noted = refs.unpack_lookup(10, data)
    except InvalidRequestError:
        named = [ref.tile_uuid for ref in request.tiles]
        assert not named or not all(map(UUID_TEXT.fullmatch, named))
    else:
        assert found.texts == [ref.tile_uuid for ref in request.tiles]
        assert noted == request.record_access


def test_ids_and_keys_may_be_mixed() -> None:
    key = tile_key(18, 154321, 95812)
    request = LookupTilesRequest(tiles=[by_id(FLIGHT), TileRef(key=key)])
    derived = "17f7ac7e-6c25-5050-a7cd-b6578cd5f323"
    found, _ = refs.unpack_lookup(10, request.SerializeToString())
    assert found.texts == [FLIGHT, derived]


@pytest.mark.parametrize("named", [by_id(FLIGHT), TileRef(key=tile_key(18, 154321, 95812))])
@pytest.mark.parametrize("unpack", [refs.unpack_lookup, refs.unpack_touch])
def test_no_more_ids_than_allowed_are_read(unpack: Callable[..., object], named: TileRef) -> None:
    data = LookupTilesRequest(tiles=[named] * 3).SerializeToString()
    assert unpack(3, data)
    with pytest.raises(LimitExceededError, match="tiles: has 3 items, must have at most 2"):
        unpack(2, data)
    assert fields_at_fault(unpack, 2, b"") == ["tiles"]
