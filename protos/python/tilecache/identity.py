"""Derives the ids of tiles and the location hashes of cells.

The scheme (namespace, name templates, texts of the sources, locked vectors) is defined in
tilecache/v1/tile_identity.proto and read from the generated descriptor: this module holds no
copy of a constant.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING, Callable, Final, Iterable
from uuid import UUID

from tilecache.v1 import tile_identity_pb2

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAX_ZOOM: Final = 22

_SCHEME: Final = tile_identity_pb2.DESCRIPTOR.GetOptions().Extensions[
    tile_identity_pb2.tile_identity
]

TILE_NAMESPACE_UUID: Final = UUID(_SCHEME.namespace_uuid)
NO_FLIGHT_UUID: Final = UUID(_SCHEME.no_flight_uuid)

SOURCE_TEXTS: Final[dict[int, str]] = {
    int(value.number): value.GetOptions().Extensions[tile_identity_pb2.source_text]
    for value in tile_identity_pb2.TileSource.DESCRIPTOR.values
    if value.GetOptions().HasExtension(tile_identity_pb2.source_text)
}
"""The canonical text of each `TileSource` that a key may carry."""

SOURCE_NUMBERS: Final[dict[str, tile_identity_pb2.TileSource.ValueType]] = {
    SOURCE_TEXTS[number]: number
    for number in tile_identity_pb2.TileSource.values()
    if number in SOURCE_TEXTS
}
"""The `TileSource` of each canonical text."""

GOOGLEMAPS: Final = SOURCE_TEXTS[tile_identity_pb2.TILE_SOURCE_GOOGLEMAPS]
ONBOARD_INGEST: Final = SOURCE_TEXTS[tile_identity_pb2.TILE_SOURCE_ONBOARD_INGEST]

# Python 3.8 lacks the argument that a FIPS build of a later one needs for SHA-1.
_SHA1_OPTIONS: Final = {} if sys.version_info < (3, 9) else {"usedforsecurity": False}
_namespace_sha1 = sha1(TILE_NAMESPACE_UUID.bytes, **_SHA1_OPTIONS)  # noqa: S324
_VARIANT_DIGITS: Final = {f"{digit:x}": f"{digit & 3 | 8:x}" for digit in range(16)}
_NO_FLIGHT_TEXT: Final = str(NO_FLIGHT_UUID)
_KNOWN_SOURCES: Final = frozenset(SOURCE_TEXTS.values())


def _positional(template: str, *names: str) -> Callable[[tuple[object, ...]], str]:
    """Formats a template from a tuple of values.

    The placeholders must occur in the order of `names`. It takes a third of the time of
    `str.format`.
    """
    template = template.replace("%", "%%")
    for name in names:
        template = template.replace(f"{{{name}}}", "%s")
    return template.__mod__


_format_location = _positional(_SCHEME.location_name_template, "zoom", "x", "y")
_format_origin = _positional(
    _SCHEME.tile_name_template[len(_SCHEME.location_name_template) :], "source", "flight_id"
)
"""The rest of a tile's name, after its location's."""


class IdentityProofError(Exception):
    """The scheme does not reproduce its own locked vectors."""


def derive_tile_id(
    zoom: int, x: int, y: int, source: int | str, flight_id: UUID | str | None
) -> UUID:
    """The `tile_uuid` of a tile: UUIDv5 of its name in `TILE_NAMESPACE_UUID`.

    `source` is a `TileSource` or its canonical text; `flight_id` a UUID, its text in any form
    that `uuid.UUID` reads, or None for a tile that belongs to no flight. Raises ValueError for
    a zoom outside 0..22, a cell outside its zoom, an unknown source or a malformed flight.
    """
    check_cell(zoom, x, y)
    return UUID(tile_uuid_text(zoom, x, y, source_text(source), flight_text(flight_id)))


def derive_location_hash(zoom: int, x: int, y: int) -> UUID:
    """The `location_hash` of a cell, the same for all its sources and flights.

    Raises ValueError for a zoom outside 0..22 or a cell outside its zoom.
    """
    check_cell(zoom, x, y)
    return UUID(location_hash_text(zoom, x, y))


def tile_uuid_text(zoom: int, x: int, y: int, source: str, flight_id: str | None) -> str:
    """As `derive_tile_id`, from canonical parts, which are not checked."""
    return tile_ids_text(zoom, x, y, source, flight_id)[0]


def location_hash_text(zoom: int, x: int, y: int) -> str:
    """As `derive_location_hash`, from a cell that is not checked."""
    return _uuid5_text(_hash_location(zoom, x, y).digest())


def tile_ids_text(zoom: int, x: int, y: int, source: str, flight_id: str | None) -> tuple[str, str]:
    """`tile_uuid` and `location_hash` of a tile, from canonical parts, which are not checked."""
    tile, location = tile_digests([(zoom, x, y, source, flight_id)])
    return _uuid5_text(tile), _uuid5_text(location)


def tile_digests(tiles: Iterable[tuple[int, int, int, str, str | None]]) -> list[bytes]:
    """The SHA-1 digests behind `tile_uuid` and `location_hash` of each tile, alternating.

    A tile's name begins with its location's, so that the second is an intermediate state of
    the first. The parts must be canonical and are not checked.
    """
    digests: list[bytes] = []
    for zoom, x, y, source, flight_id in tiles:
        digest = _hash_location(zoom, x, y)
        location = digest.digest()
        digest.update(_encode_origin(source, flight_id))
        digests += (digest.digest(), location)
    return digests


def check_cell(zoom: int, x: int, y: int) -> None:
    """Raises ValueError, which names the bad part, unless the cell exists."""
    for name, value in (("zoom", zoom), ("x", x), ("y", y)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, not a whole number")  # noqa: TRY004
    if not 0 <= zoom <= MAX_ZOOM:
        raise ValueError(f"zoom is {zoom}, must be within 0..{MAX_ZOOM}")
    for name, value in (("x", x), ("y", y)):
        if not 0 <= value < 1 << zoom:
            raise ValueError(
                f"{name} is {value}, must be within 0..{(1 << zoom) - 1} at zoom {zoom}"
            )


def source_text(source: int | str) -> str:
    """The canonical text of a source; raises ValueError for an unknown one."""
    text = source if isinstance(source, str) else SOURCE_TEXTS.get(source)
    if text not in _KNOWN_SOURCES:
        raise ValueError(f"source is {source!r}, not one of {sorted(_KNOWN_SOURCES)}")
    return text


def flight_text(flight_id: UUID | str | None) -> str | None:
    """The canonical text of a flight; raises ValueError for a malformed one.

    None stands for no flight, and so does the UUID that the scheme reserves for it.
    """
    if flight_id is None:
        return None
    try:
        flight = flight_id if isinstance(flight_id, UUID) else UUID(flight_id)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"flight_id is {flight_id!r}, not a UUID") from None
    return None if flight == NO_FLIGHT_UUID else str(flight)


def prove_identity() -> None:
    """Derives the locked vectors; raises IdentityProofError if one differs."""
    if not _SCHEME.tile_name_template.startswith(_SCHEME.location_name_template):
        raise IdentityProofError("a tile's name does not begin with its location's")
    if not (_SCHEME.tile_vectors and _SCHEME.location_vectors):
        raise IdentityProofError("the scheme carries no locked vectors")
    if not any(vector.name.endswith(f"/{NO_FLIGHT_UUID}") for vector in _SCHEME.tile_vectors):
        raise IdentityProofError("no locked vector covers the UUID that stands for no flight")
    for vector in (*_SCHEME.tile_vectors, *_SCHEME.location_vectors):
        zoom, x, y, *tile = vector.name.split("/")
        try:
            if tile:
                derived = derive_tile_id(int(zoom), int(x), int(y), *tile)
            else:
                derived = derive_location_hash(int(zoom), int(x), int(y))
        except (ValueError, LookupError, TypeError) as error:
            raise IdentityProofError(f"{vector.name} cannot be derived: {error}") from error
        if str(derived) != vector.uuid:
            raise IdentityProofError(f"{vector.name} gives {derived}, but {vector.uuid} is locked")


def _hash_location(zoom: int, x: int, y: int) -> Hash:
    digest = _namespace_sha1.copy()
    digest.update(_format_location((zoom, x, y)).encode())
    return digest


@lru_cache(maxsize=256)
def _encode_origin(source: str, flight_id: str | None) -> bytes:
    return _format_origin((source, flight_id or _NO_FLIGHT_TEXT)).encode()


def _uuid5_text(digest: bytes) -> str:
    # As uuid.uuid5, but faster, since no UUID object is built.
    text = digest.hex()
    return (
        f"{text[:8]}-{text[8:12]}-5{text[13:16]}-"
        f"{_VARIANT_DIGITS[text[16]]}{text[17:20]}-{text[20:32]}"
    )
