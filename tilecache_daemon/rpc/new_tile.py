"""From a TileMetadata message to a tile that may be stored."""

import json
import math
import re
from collections.abc import Sequence
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tilecache.errors import FieldViolation
from tilecache.identity import tile_ids_text
from tilecache.mercator import cell_centre, cell_edge_meters
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import NewTile, TileKey
from tilecache_daemon.rpc.requests import SHA256, invalid, micros, tile_key

MAX_FILE_PATH_BYTES: Final = 512
MAX_QUALITY_BYTES: Final = 2_048
MAX_QUALITY_DEPTH: Final = 16
"""Nested deeper, it could be sent to us, but not read in a larger answer: protobuf
reads a hundred levels of messages, and one of JSON takes up to three."""
MAX_TILE_PIXELS: Final = 65_536
DEFAULT_TILE_PIXELS: Final = 256
CENTRE_TOLERANCE_CELLS: Final = 0.01
"""How far a given position may be from the cell's centre: callers round."""


_PART: Final = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f]+"
_PATH: Final = re.compile(f"{_PART}(?:/{_PART})*")
_SURELY_SHORT: Final = MAX_FILE_PATH_BYTES // 4  # characters; UTF-8 takes four bytes at most
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def new_tile(message: TileMetadata) -> NewTile:
    """A tile to be stored, with everything derived that may be."""
    (tile,) = new_tiles([message])
    if isinstance(tile, InvalidRequestError):
        raise tile
    return tile


def new_tiles(messages: Sequence[TileMetadata]) -> list[NewTile | InvalidRequestError]:
    """As `new_tile`, of some tiles, each by itself."""
    return list(map(_new_tile, messages))


def _new_tile(message: TileMetadata) -> NewTile | InvalidRequestError:
    key = _key(message)
    wrong: list[FieldViolation] = []
    file_path, content_sha256 = message.file_path, message.content_sha256
    _check_file(file_path, content_sha256, wrong)
    disk_bytes = _disk_bytes(message, wrong)
    captured_us = _captured_us(message, wrong)
    pixels = _pixels(message, wrong)
    quality = _quality(message, wrong) if message.HasField("quality_metadata") else None
    if isinstance(key, InvalidRequestError):
        return InvalidRequestError(*key.within("key").violations, *wrong)
    tile_uuid, location_hash = tile_ids_text(*key)
    _check_derived(message, tile_uuid, location_hash, wrong)
    place = _place(message, key, wrong)
    if captured_us is None or wrong:
        return InvalidRequestError(*wrong)
    return NewTile._make(
        (
            tile_uuid,
            location_hash,
            *key,
            *place,
            pixels,
            file_path,
            content_sha256,
            disk_bytes,
            captured_us,
            quality,
        )
    )


def _key(message: TileMetadata) -> TileKey | InvalidRequestError:
    try:
        return tile_key(message.key)
    except InvalidRequestError as error:
        return error


def _captured_us(message: TileMetadata, wrong: list[FieldViolation]) -> int | None:
    if not message.HasField("captured_at"):
        wrong.append(FieldViolation("captured_at", "is required"))
        return None
    try:
        return micros("captured_at", message.captured_at)
    except InvalidRequestError as error:
        wrong += error.violations
        return None


def _check_file(file_path: str, content_sha256: str, wrong: list[FieldViolation]) -> None:
    if not _PATH.fullmatch(file_path) or len(file_path) > _SURELY_SHORT:
        problem = _path_problem(file_path)
        if problem:
            wrong.append(FieldViolation("file_path", problem))
    if not SHA256.fullmatch(content_sha256):
        wrong.append(FieldViolation("content_sha256", "is not 64 lower-case hexadecimal digits"))


def _disk_bytes(message: TileMetadata, wrong: list[FieldViolation]) -> int:
    disk_bytes = message.disk_bytes
    if disk_bytes < 0:
        wrong.append(FieldViolation("disk_bytes", f"is {disk_bytes}, a negative size"))
    elif disk_bytes == 0 and not message.HasField("disk_bytes"):
        wrong.append(FieldViolation("disk_bytes", "is required"))
    return disk_bytes


def _quality(message: TileMetadata, wrong: list[FieldViolation]) -> str | None:
    try:
        return quality_json(message.quality_metadata)
    except InvalidRequestError as error:
        wrong += error.violations
        return None


def _check_derived(
    message: TileMetadata, tile_uuid: str, location_hash: str, wrong: list[FieldViolation]
) -> None:
    if message.tile_uuid not in ("", tile_uuid):
        wrong.append(_not_derived("tile_uuid", message.tile_uuid, tile_uuid))
    if message.location_hash not in ("", location_hash):
        wrong.append(_not_derived("location_hash", message.location_hash, location_hash))


def _not_derived(field: str, given: str, derived: str) -> FieldViolation:
    return FieldViolation(field, f"is {given!r}, but the key gives {derived}")


def _place(
    message: TileMetadata, key: TileKey, wrong: list[FieldViolation]
) -> tuple[float, float, float]:
    """Latitude, longitude and edge in metres."""
    latitude, longitude = cell_centre(key.zoom, key.x, key.y)
    width = 360.0 / (1 << key.zoom)
    if message.latitude != latitude and message.HasField("latitude"):
        # Web Mercator is conformal: a cell is as high as it is wide.
        height = width * math.cos(math.radians(latitude))
        latitude = _near("latitude", message.latitude, latitude, height, wrong)
    if message.longitude != longitude and message.HasField("longitude"):
        longitude = _near("longitude", message.longitude, longitude, width, wrong)
    edge = message.tile_size_meters
    if not 0 < edge < math.inf:
        if message.HasField("tile_size_meters"):
            wrong.append(FieldViolation("tile_size_meters", f"is {edge}, not a positive length"))
        edge = cell_edge_meters(key.zoom, latitude)
    return latitude, longitude, edge


def _pixels(message: TileMetadata, wrong: list[FieldViolation]) -> int:
    pixels = message.tile_size_pixels
    if 1 <= pixels <= MAX_TILE_PIXELS:
        return pixels
    if message.HasField("tile_size_pixels"):
        wrong.append(
            FieldViolation("tile_size_pixels", f"is {pixels}, not within 1..{MAX_TILE_PIXELS}")
        )
    return DEFAULT_TILE_PIXELS


def _near(
    field: str, given: float, centre: float, extent: float, wrong: list[FieldViolation]
) -> float:
    # Written so that a NaN fails.
    if not abs(given - centre) <= extent * CENTRE_TOLERANCE_CELLS:
        wrong.append(FieldViolation(field, f"is {given}, but the cell's centre is at {centre}"))
        return centre
    return given


def quality_json(struct: Struct) -> str:
    """A JSON object as text."""
    field = "quality_metadata"
    try:
        value = MessageToDict(struct)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError, TypeError) as error:
        raise invalid(field, f"is no JSON object: {error}") from None
    if r"\u0000" in text.replace("\\\\", ""):
        raise invalid(field, "holds the character U+0000, which the database cannot keep")
    if len(text.encode()) > MAX_QUALITY_BYTES:
        raise invalid(field, f"has more than {MAX_QUALITY_BYTES} bytes as JSON")
    if _depth(value) > MAX_QUALITY_DEPTH:
        raise invalid(field, f"is nested more than {MAX_QUALITY_DEPTH} deep")
    return text


def _depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _path_problem(path: str) -> str:
    if not path:
        return "is required"
    if len(path.encode()) > MAX_FILE_PATH_BYTES:
        return f"has more than {MAX_FILE_PATH_BYTES} bytes"
    if _CONTROL.search(path):
        return "holds a control character"
    if path.startswith("/") or "\\" in path:
        return "is not a relative path with forward slashes"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "has an empty, '.' or '..' part and may leave its directory"
    return ""
