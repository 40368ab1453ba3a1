"""The identity scheme, compared with Python's own uuid and with the locked vectors."""

from hashlib import sha1
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles import cells
from tilecache import identity
from tilecache.identity import (
    NO_FLIGHT_UUID,
    TILE_NAMESPACE_UUID,
    IdentityProofError,
    derive_location_hash,
    derive_tile_id,
    prove_identity,
    tile_digests,
    tile_ids_text,
)
from tilecache.v1.tile_identity_pb2 import (
    TILE_SOURCE_GOOGLEMAPS,
    TILE_SOURCE_ONBOARD_INGEST,
    TILE_SOURCE_UNSPECIFIED,
    TileIdentityScheme,
)

NAMESPACE = UUID("5b8d0c2e-1a4f-4b3a-8c9d-e7f6a3b2c1d0")
NO_FLIGHT = "00000000-0000-0000-0000-000000000000"
FLIGHT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"

LOCKED_TILES = [
    (18, 154321, 95812, "googlemaps", None, "17f7ac7e-6c25-5050-a7cd-b6578cd5f323"),
    (0, 0, 0, "googlemaps", None, "9592538c-5702-5dbb-b274-193c82925556"),
    (20, 617284, 383250, "onboard_ingest", FLIGHT, "24721fde-bf91-587b-a5e5-1c21bec0b3ad"),
    (18, 154321, 95812, "onboard_ingest", FLIGHT, "888b449f-12f1-5b22-a9a4-b78bfbb4a300"),
    (22, 4194303, 4194303, "googlemaps", None, "13154f67-6ec4-5ca8-a560-3e5c080d4ac5"),
]
LOCKED_LOCATIONS = [
    (18, 154321, 95812, "8d180ffb-bd42-5cb4-a4d6-628829b798b6"),
    (0, 0, 0, "e59149ef-664b-5559-a13c-435133448c28"),
]


def test_the_namespace_is_the_one_that_all_peers_know() -> None:
    assert TILE_NAMESPACE_UUID == NAMESPACE
    assert UUID(NO_FLIGHT) == NO_FLIGHT_UUID


@pytest.mark.parametrize(("zoom", "x", "y", "source", "flight_id", "locked"), LOCKED_TILES)
def test_the_five_tile_ids_come_out_as_locked(
    zoom: int, x: int, y: int, source: str, flight_id: str | None, locked: str
) -> None:
    assert derive_tile_id(zoom, x, y, source, flight_id) == UUID(locked)


@pytest.mark.parametrize(("zoom", "x", "y", "locked"), LOCKED_LOCATIONS)
def test_the_two_location_hashes_come_out_as_locked(zoom: int, x: int, y: int, locked: str) -> None:
    assert derive_location_hash(zoom, x, y) == UUID(locked)


@given(
    cells(), st.sampled_from(["googlemaps", "onboard_ingest"]), st.none() | st.uuids(allow_nil=True)
)
def test_a_tile_id_is_the_uuid5_of_the_tiles_name(
    cell: tuple[int, int, int], source: str, flight_id: UUID | None
) -> None:
    zoom, x, y = cell
    name = f"{zoom}/{x}/{y}/{source}/{flight_id or NO_FLIGHT}"
    assert derive_tile_id(zoom, x, y, source, flight_id) == uuid5(NAMESPACE, name)


@given(cells())
def test_a_location_hash_is_the_uuid5_of_the_cells_name(cell: tuple[int, int, int]) -> None:
    zoom, x, y = cell
    assert derive_location_hash(zoom, x, y) == uuid5(NAMESPACE, f"{zoom}/{x}/{y}")


@pytest.mark.parametrize(
    ("number", "text"),
    [(TILE_SOURCE_GOOGLEMAPS, "googlemaps"), (TILE_SOURCE_ONBOARD_INGEST, "onboard_ingest")],
)
def test_a_source_may_be_the_enum_or_its_text(number: int, text: str) -> None:
    assert derive_tile_id(3, 1, 2, number, None) == derive_tile_id(3, 1, 2, text, None)


@pytest.mark.parametrize(
    "form",
    [
        FLIGHT,
        FLIGHT.upper(),
        f"{{{FLIGHT}}}",
        f"urn:uuid:{FLIGHT}",
        FLIGHT.replace("-", ""),
        UUID(FLIGHT),
    ],
)
def test_every_form_of_a_flight_gives_the_same_id(form: str | UUID) -> None:
    assert derive_tile_id(18, 154321, 95812, "onboard_ingest", form) == UUID(LOCKED_TILES[3][5])


@pytest.mark.parametrize("no_flight", [None, NO_FLIGHT, UUID(NO_FLIGHT)])
def test_the_uuid_of_no_flight_is_no_flight(no_flight: str | UUID | None) -> None:
    assert derive_tile_id(0, 0, 0, "googlemaps", no_flight) == UUID(LOCKED_TILES[1][5])


@pytest.mark.parametrize(
    ("zoom", "x", "y", "named"),
    [
        (-1, 0, 0, "zoom"),
        (23, 0, 0, "zoom"),
        (0, 1, 0, "x"),
        (0, 0, 1, "y"),
        (18, -1, 0, "x"),
        (18, 0, -1, "y"),
        (22, 1 << 22, 0, "x"),
        (True, 0, 0, "zoom"),
        (1, 0.5, 0, "x"),
        (1, 0, "0", "y"),
    ],
)
def test_a_cell_that_does_not_exist_is_a_value_error_that_names_the_part(
    zoom: int, x: int, y: int, named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} is "):
        derive_tile_id(zoom, x, y, "googlemaps", None)
    with pytest.raises(ValueError, match=f"^{named} is "):
        derive_location_hash(zoom, x, y)


@pytest.mark.parametrize("source", ["", "GoogleMaps", "bing", TILE_SOURCE_UNSPECIFIED, 3, -1])
def test_an_unknown_source_is_a_value_error(source: int | str) -> None:
    with pytest.raises(ValueError, match=r"^source is "):
        derive_tile_id(0, 0, 0, source, None)


@pytest.mark.parametrize("flight_id", ["", "x", FLIGHT[:-1], FLIGHT + "0", 7, b"3f2504e0"])
def test_a_malformed_flight_is_a_value_error(flight_id: str) -> None:
    with pytest.raises(ValueError, match=r"^flight_id is "):
        derive_tile_id(0, 0, 0, "onboard_ingest", flight_id)


@given(st.lists(cells()), st.sampled_from(["googlemaps", "onboard_ingest"]), st.none() | st.uuids())
def test_many_ids_at_once_are_those_derived_one_by_one(
    found: list[tuple[int, int, int]], source: str, flight_id: UUID | None
) -> None:
    flight = None if flight_id is None else str(flight_id)
    derived = [
        identifier
        for cell in found
        for identifier in (derive_tile_id(*cell, source, flight), derive_location_hash(*cell))
    ]
    digests = tile_digests((*cell, source, flight) for cell in found)
    assert [UUID(bytes=digest[:16], version=5) for digest in digests] == derived
    texts = [text for cell in found for text in tile_ids_text(*cell, source, flight)]
    assert texts == [str(identifier) for identifier in derived]


def test_the_proof_holds() -> None:
    prove_identity()


def changed_scheme(monkeypatch: pytest.MonkeyPatch) -> TileIdentityScheme:
    """A copy of the scheme that the proof looks at."""
    scheme = TileIdentityScheme()
    scheme.CopyFrom(identity._SCHEME)
    monkeypatch.setattr(identity, "_SCHEME", scheme)
    return scheme


@pytest.mark.parametrize("vectors", ["tile_vectors", "location_vectors"])
def test_the_proof_fails_when_a_vector_differs(
    monkeypatch: pytest.MonkeyPatch, vectors: str
) -> None:
    vector = getattr(changed_scheme(monkeypatch), vectors)[-1]
    vector.uuid = NO_FLIGHT
    with pytest.raises(IdentityProofError, match=f"{vector.name} gives .* is locked"):
        prove_identity()


@pytest.mark.parametrize("vectors", ["tile_vectors", "location_vectors"])
def test_the_proof_fails_without_vectors(monkeypatch: pytest.MonkeyPatch, vectors: str) -> None:
    changed_scheme(monkeypatch).ClearField(vectors)
    with pytest.raises(IdentityProofError, match="no locked vectors"):
        prove_identity()


def test_the_proof_fails_for_a_vector_that_cannot_be_derived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed_scheme(monkeypatch).tile_vectors[0].name = "23/0/0/googlemaps/" + NO_FLIGHT
    with pytest.raises(IdentityProofError, match="cannot be derived"):
        prove_identity()


def test_the_proof_fails_when_the_derivation_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_namespace_sha1", sha1(bytes(16), usedforsecurity=False))
    with pytest.raises(IdentityProofError, match="is locked"):
        prove_identity()
