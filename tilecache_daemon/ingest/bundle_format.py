"""The format of a bundle: a copy of tiles, their images and what belongs to them.

docs/contract.md describes it. A bundle is a directory or a .tar with these entries.
"""

import json
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from google.protobuf.json_format import Error as JsonFormatError
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from tilecache.identity import SOURCE_NUMBERS, SOURCE_TEXTS
from tilecache.v1.tile_cache_admin_pb2 import FreshnessRule, Pin, Sector
from tilecache.v1.tile_metadata_store_pb2 import Flight, TileMetadata

FORMAT: Final = "tilecache-bundle"
FORMAT_VERSION: Final = 1

HEADER: Final = "bundle.json"
"""Is written last: a bundle without it is incomplete."""
TILES: Final = "tiles.jsonl"
UNFINISHED_TILES: Final = f"{TILES}.part"
FLIGHTS: Final = "flights.jsonl"
POLICY: Final = "policy.jsonl"
IMAGES: Final = "images"
"""The directory of the images, each under its `file_path`."""

MAX_LINE_BYTES: Final = 1 << 20
"""More than the polygon of a sector or a pin has. A longer line is not read into memory."""

_KEY: Final = ("zoom", "x", "y", "source", "flight_id")
_FIELDS: Final = (
    *("tile_uuid", "content_sha256", "disk_bytes", "tile_size_pixels", "tile_size_meters"),
    *("file_path", "captured_at", "uploaded_at", "quality_metadata"),
)
"""The fields of a tile that are carried, beside those of its key. Times of creation and use, and
the label, are local."""
_FLIGHT_FIELDS: Final = ("flight_id", "name", "started_at", "ended_at")
_POLICY: Final[dict[str, type[Sector | FreshnessRule | Pin]]] = {
    "sector": Sector,
    "rule": FreshnessRule,
    "pin": Pin,
}


class FormatError(ValueError):
    """A line or the header is not of the format. The message says why."""


class Header(NamedTuple):
    """What a bundle holds."""

    tile_count: int
    used_bytes: int
    """The sum of the tiles' `disk_bytes`."""
    flight_count: int = 0
    policy_count: int = 0


def pack_header(header: Header) -> bytes:
    """The content of HEADER."""
    created_at = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, "created_at": created_at}
    return json.dumps(fields | header._asdict(), indent=2).encode() + b"\n"


def read_header(content: bytes) -> Header:
    """The header of a bundle of a known version; raises FormatError."""
    fields = _read_object(content)
    if fields.get("format") != FORMAT:
        raise FormatError(f"{HEADER} is not that of a bundle")
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(f"format version {version} is not supported, only {FORMAT_VERSION}")
    counts = [fields.get(name, 0) for name in Header._fields]
    if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
        raise FormatError(f"{HEADER} has no valid counts")
    return Header(*counts)


def pack_tile(tile: TileMetadata) -> bytes:
    """A tile as a line of TILES."""
    fields = _to_dict(tile)
    key = tile.key
    flight_id = key.flight_id if key.HasField("flight_id") else None
    values = (key.zoom, key.x, key.y, SOURCE_TEXTS[key.source], flight_id)
    return _pack_line("tile", dict(zip(_KEY, values, strict=True)) | _pick(fields, _FIELDS))


def read_tile(line: bytes) -> TileMetadata:
    """The tile of a line of TILES, which the daemon will check; raises FormatError."""
    fields = _read_line(line, ("tile",))
    key = _pick(fields, _KEY)
    source = key["source"]
    if not isinstance(source, str) or source not in SOURCE_NUMBERS:
        raise FormatError(f"source: must be one of {', '.join(SOURCE_NUMBERS)}")
    key["source"] = SOURCE_NUMBERS[source]
    tile = TileMetadata()
    _parse({"key": _given(key), **_given(_pick(fields, _FIELDS))}, tile)
    return tile


def pack_flight(flight: Flight) -> bytes:
    """A flight as a line of FLIGHTS."""
    return _pack_line("flight", _pick(_to_dict(flight), _FLIGHT_FIELDS))


def read_flight(line: bytes) -> Flight:
    """The flight of a line of FLIGHTS; raises FormatError."""
    flight = Flight()
    _parse(_given(_pick(_read_line(line, ("flight",)), _FLIGHT_FIELDS)), flight)
    return flight


def pack_policy(item: Sector | FreshnessRule | Pin) -> bytes:
    """A sector, a rule or a pin as a line of POLICY."""
    (kind,) = (name for name, message in _POLICY.items() if isinstance(item, message))
    return _pack_line(kind, _to_dict(item))


def read_policy(line: bytes) -> Sector | FreshnessRule | Pin:
    """The item of a line of POLICY; raises FormatError."""
    fields = _read_line(line, tuple(_POLICY))
    item = _POLICY[fields.pop("kind")]()
    _parse(fields, item)
    return item


def _to_dict(message: Message) -> dict[str, Any]:
    fields = MessageToDict(message, preserving_proto_field_name=True)
    if "disk_bytes" in fields:
        fields["disk_bytes"] = int(fields["disk_bytes"])  # protobuf's JSON has them as texts
    return fields


def _pack_line(kind: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, **fields}, ensure_ascii=False).encode() + b"\n"


def _read_line(line: bytes, kinds: tuple[str, ...]) -> dict[str, Any]:
    fields = _read_object(line)
    if fields.get("kind") not in kinds:
        raise FormatError(f"kind: must be one of {', '.join(kinds)}")
    return fields


def _read_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise FormatError("not a JSON object")
    return value


def _parse(fields: dict[str, Any], message: Message) -> None:
    try:
        ParseDict(fields, message, ignore_unknown_fields=True)
    except (
        *(JsonFormatError, ValueError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise FormatError(str(error)) from None


def _pick(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: fields.get(name) for name in names}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
