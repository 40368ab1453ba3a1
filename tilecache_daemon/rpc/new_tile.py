"""Validation of TileMetadata messages, and their conversion to tiles that can be stored."""

import json
import math
import re
from collections.abc import Sequence
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.errors import FieldViolation
from tilecache.identity import tile_ids_text
from tilecache.mercator import cell_centre, cell_edge_meters
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import DEFAULT_LIMITS, NewTile, TileKey
from tilecache_daemon.rpc.requests import SHA256, SHA256_EXPECTED, invalid, micros, tile_key

MAX_FILE_PATH_BYTES: Final = DEFAULT_LIMITS.max_file_path_bytes
MAX_QUALITY_BYTES: Final = DEFAULT_LIMITS.max_quality_bytes
MAX_QUALITY_DEPTH: Final = 16
"""protobuf reads up to 100 nested messages, and a level of JSON takes up to three. A deeper
value would fit into a request, but not into every answer."""
MAX_TILE_PIXELS: Final = DEFAULT_LIMITS.max_tile_size_pixels
MAX_DISK_BYTES: Final = DEFAULT_LIMITS.max_disk_bytes
MAX_TILE_METERS: Final = DEFAULT_LIMITS.max_tile_size_meters
DEFAULT_TILE_PIXELS: Final = 256
CENTRE_TOLERANCE_CELLS: Final = 0.01
"""How far a given position may be from the cell's centre, since callers may round it."""

_PART: Final = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f]+"
_PATH: Final = re.compile(f"{_PART}(?:/{_PART})*")
_SHORT_CHARACTERS: Final = MAX_FILE_PATH_BYTES // 4
"""Paths of up to so many characters have at most MAX_FILE_PATH_BYTES bytes in UTF-8."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def new_tile(message: TileMetadata) -> NewTile:
    """The tile of a message, with missing fields derived from its key."""
    (tile,) = new_tiles([message])
    if isinstance(tile, InvalidRequestError):
        raise tile
    return tile


def new_tiles(messages: Sequence[TileMetadata]) -> list[NewTile | InvalidRequestError]:
    """As `new_tile`, for several messages: a tile or an error for each."""
    return list(map(_new_tile, messages))


def _new_tile(message: TileMetadata) -> NewTile | InvalidRequestError:
    key = _key(message)
    violations: list[FieldViolation] = []
    file_path, content_sha256 = message.file_path, message.content_sha256
    _check_file(file_path, content_sha256, violations)
    disk_bytes = _disk_bytes(message, violations)
    captured_us = _captured_us(message, violations)
    pixels = _pixels(message, violations)
    quality = _quality(message, violations) if message.HasField("quality_metadata") else None
    uploaded_us = None
    if message.HasField("uploaded_at"):
        uploaded_us = _micros("uploaded_at", message.uploaded_at, violations)
    if isinstance(key, InvalidRequestError):
        return InvalidRequestError(*key.within("key").violations, *violations)
    tile_uuid, location_hash = tile_ids_text(*key)
    _check_derived(message, tile_uuid, location_hash, violations)
    centre_and_edge = _centre_and_edge(message, key, violations)
    if captured_us is None or violations:
        return InvalidRequestError(*violations)
    return NewTile._make(
        (
            tile_uuid,
            location_hash,
            *key,
            *centre_and_edge,
            pixels,
            file_path,
            content_sha256,
            disk_bytes,
            captured_us,
            quality,
            uploaded_us,
        )
    )


def _key(message: TileMetadata) -> TileKey | InvalidRequestError:
    try:
        return tile_key(message.key)
    except InvalidRequestError as error:
        return error


def _captured_us(message: TileMetadata, violations: list[FieldViolation]) -> int | None:
    if not message.HasField("captured_at"):
        violations.append(FieldViolation("captured_at", "is required"))
        return None
    return _micros("captured_at", message.captured_at, violations)


def _micros(field: str, time: Timestamp, violations: list[FieldViolation]) -> int | None:
    try:
        return micros(field, time)
    except InvalidRequestError as error:
        violations += error.violations
        return None


def _check_file(file_path: str, content_sha256: str, violations: list[FieldViolation]) -> None:
    if not _PATH.fullmatch(file_path) or len(file_path) > _SHORT_CHARACTERS:
        problem = path_problem(file_path)
        if problem:
            violations.append(FieldViolation("file_path", problem))
    if not SHA256.fullmatch(content_sha256):
        violations.append(FieldViolation("content_sha256", SHA256_EXPECTED))


def _disk_bytes(message: TileMetadata, violations: list[FieldViolation]) -> int:
    disk_bytes = message.disk_bytes
    if not 0 <= disk_bytes <= MAX_DISK_BYTES:
        violations.append(
            FieldViolation("disk_bytes", f"is {disk_bytes}, must be within 0..{MAX_DISK_BYTES}")
        )
    elif disk_bytes == 0 and not message.HasField("disk_bytes"):
        violations.append(FieldViolation("disk_bytes", "is required"))
    return disk_bytes


def _quality(message: TileMetadata, violations: list[FieldViolation]) -> str | None:
    try:
        return quality_json(message.quality_metadata)
    except InvalidRequestError as error:
        violations += error.violations
        return None


def _check_derived(
    message: TileMetadata, tile_uuid: str, location_hash: str, violations: list[FieldViolation]
) -> None:
    if message.tile_uuid not in ("", tile_uuid):
        violations.append(_not_derived("tile_uuid", message.tile_uuid, tile_uuid))
    if message.location_hash not in ("", location_hash):
        violations.append(_not_derived("location_hash", message.location_hash, location_hash))


def _not_derived(field: str, given: str, derived: str) -> FieldViolation:
    return FieldViolation(
        field, f"is {given!r}, must be {derived!r}, which is derived from the key"
    )


def _centre_and_edge(
    message: TileMetadata, key: TileKey, violations: list[FieldViolation]
) -> tuple[float, float, float]:
    """Latitude and longitude of the centre, and the edge in metres."""
    latitude, longitude = cell_centre(key.zoom, key.x, key.y)
    width = 360.0 / (1 << key.zoom)
    if message.latitude != latitude and message.HasField("latitude"):
        # Web Mercator is conformal: a cell is as high as it is wide.
        height = width * math.cos(math.radians(latitude))
        latitude = _checked_degrees("latitude", message.latitude, latitude, height, violations)
    if message.longitude != longitude and message.HasField("longitude"):
        longitude = _checked_degrees("longitude", message.longitude, longitude, width, violations)
    edge = message.tile_size_meters
    if not 0 < edge <= MAX_TILE_METERS:
        if message.HasField("tile_size_meters"):
            violations.append(
                FieldViolation(
                    "tile_size_meters",
                    f"is {edge}, must be more than 0 and at most {MAX_TILE_METERS}",
                )
            )
        edge = cell_edge_meters(key.zoom, latitude)
    return latitude, longitude, edge


def _pixels(message: TileMetadata, violations: list[FieldViolation]) -> int:
    pixels = message.tile_size_pixels
    if 1 <= pixels <= MAX_TILE_PIXELS:
        return pixels
    if message.HasField("tile_size_pixels"):
        violations.append(
            FieldViolation("tile_size_pixels", f"is {pixels}, must be within 1..{MAX_TILE_PIXELS}")
        )
    return DEFAULT_TILE_PIXELS


def _checked_degrees(
    field: str, given: float, centre: float, extent: float, violations: list[FieldViolation]
) -> float:
    """The given coordinate, which must be close to that of the centre of a cell of this
    extent."""
    # Not `>`, which is false for a NaN.
    if not abs(given - centre) <= extent * CENTRE_TOLERANCE_CELLS:
        violations.append(
            FieldViolation(field, f"is {given}, must be that of the cell's centre, {centre}")
        )
        return centre
    return given


def quality_json(struct: Struct) -> str:
    """A JSON object as text."""
    field = "quality_metadata"
    try:
        value = MessageToDict(struct)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError, TypeError) as error:
        raise invalid(field, f"must be a JSON object: {error}") from None
    if r"\u0000" in text.replace("\\\\", ""):
        raise invalid(field, "must not contain the character U+0000, which jsonb cannot store")
    if (size := len(text.encode())) > MAX_QUALITY_BYTES:
        raise invalid(field, f"has {size} bytes as JSON, must have at most {MAX_QUALITY_BYTES}")
    if (depth := _depth(value)) > MAX_QUALITY_DEPTH:
        raise invalid(field, f"has {depth} nested levels, must have at most {MAX_QUALITY_DEPTH}")
    return text


def _depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def path_problem(path: str) -> str:
    """What is wrong with the path of an image file; empty if nothing is."""
    if not path:
        return "is required"
    if (size := len(path.encode())) > MAX_FILE_PATH_BYTES:
        return f"has {size} bytes, must have at most {MAX_FILE_PATH_BYTES}"
    if _CONTROL.search(path):
        return "must not contain control characters"
    if path.startswith("/") or "\\" in path:
        return "must be a relative path with forward slashes"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "must not have empty, '.' or '..' parts, which may leave the directory"
    return ""
