"""From a TileMetadata message to a tile that may be stored."""

import json
import math
import re
from datetime import datetime
from typing import Final, Literal

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata

from tilecache_daemon.errors import FieldViolation, InvalidRequestError
from tilecache_daemon.identity import location_hash_text
from tilecache_daemon.mercator import cell_bounds, cell_centre, cell_edge_meters
from tilecache_daemon.models import NewTile, TileKey
from tilecache_daemon.rpc.requests import SHA256, invalid, key_uuid, moment, tile_key

MAX_FILE_PATH_BYTES: Final = 512
MAX_QUALITY_BYTES: Final = 2_048
MAX_QUALITY_DEPTH: Final = 16
"""Nested deeper, it could be sent to us, but not read in a larger answer: protobuf
reads a hundred levels of messages, and one of JSON takes up to three."""
MAX_TILE_PIXELS: Final = 65_536
DEFAULT_TILE_PIXELS: Final = 256
CENTRE_TOLERANCE_CELLS: Final = 0.01
"""How far a given position may be from the cell's centre: callers round."""


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def new_tile(message: TileMetadata) -> NewTile:
    """A tile to be stored, with everything derived that may be."""
    return _TileReader(message).read()


class _TileReader:
    """Reads one tile, gathering what is wrong with it."""

    def __init__(self, message: TileMetadata) -> None:
        self._message = message
        self._wrong: list[FieldViolation] = []

    def read(self) -> NewTile:
        message = self._message
        try:
            key = tile_key(message.key)
        except InvalidRequestError as error:
            self._wrong += error.within("key").violations
            key = None
        path = self._file_path()
        if not SHA256.fullmatch(message.content_sha256):
            self._add("content_sha256", "is not 64 lower-case hexadecimal digits")
        if not message.HasField("disk_bytes"):
            self._add("disk_bytes", "is required")
        elif message.disk_bytes < 0:
            self._add("disk_bytes", f"is {message.disk_bytes}, a negative size")
        captured_at = self._captured_at()
        quality = self._quality()
        pixels = self._pixels()
        if key is None or captured_at is None:
            raise InvalidRequestError(*self._wrong)
        tile = NewTile(
            self._derived("tile_uuid", key_uuid(key)),
            self._derived("location_hash", location_hash_text(key.zoom, key.x, key.y)),
            *key,
            *self._position(key),
            pixels,
            path,
            message.content_sha256,
            message.disk_bytes,
            captured_at,
            quality,
        )
        if self._wrong:
            raise InvalidRequestError(*self._wrong)
        return tile

    def _add(self, field: str, description: str) -> None:
        self._wrong.append(FieldViolation(field, description))

    def _derived(self, field: str, derived: str) -> str:
        given = getattr(self._message, field)
        if given and given != derived:
            self._add(field, f"is {given!r}, but the key gives {derived}")
        return derived

    def _file_path(self) -> str:
        path = self._message.file_path
        problem = _path_problem(path)
        if problem:
            self._add("file_path", problem)
        return path

    def _captured_at(self) -> datetime | None:
        if not self._message.HasField("captured_at"):
            self._add("captured_at", "is required")
            return None
        try:
            return moment("captured_at", self._message.captured_at)
        except InvalidRequestError as error:
            self._wrong += error.violations
            return None

    def _quality(self) -> str | None:
        if not self._message.HasField("quality_metadata"):
            return None
        try:
            return quality_json(self._message.quality_metadata)
        except InvalidRequestError as error:
            self._wrong += error.violations
            return None

    def _pixels(self) -> int:
        if not self._message.HasField("tile_size_pixels"):
            return DEFAULT_TILE_PIXELS
        pixels = self._message.tile_size_pixels
        if not 1 <= pixels <= MAX_TILE_PIXELS:
            self._add("tile_size_pixels", f"is {pixels}, not within 1..{MAX_TILE_PIXELS}")
        return pixels

    def _position(self, key: TileKey) -> tuple[float, float, float]:
        """Latitude, longitude and edge in metres."""
        message = self._message
        latitude, longitude = cell_centre(key.zoom, key.x, key.y)
        edge = cell_edge_meters(key.zoom, latitude)
        if message.HasField("latitude") or message.HasField("longitude"):
            bounds = cell_bounds(key.zoom, key.x, key.y)
            height, width = bounds.north - bounds.south, bounds.east - bounds.west
            latitude = self._near("latitude", latitude, height)
            longitude = self._near("longitude", longitude, width)
        if message.HasField("tile_size_meters"):
            edge = message.tile_size_meters
            if not (math.isfinite(edge) and edge > 0):
                self._add("tile_size_meters", f"is {edge}, not a positive length")
        return latitude, longitude, edge

    def _near(self, field: Literal["latitude", "longitude"], centre: float, extent: float) -> float:
        if not self._message.HasField(field):
            return centre
        given: float = getattr(self._message, field)
        # Written so that a NaN fails.
        if not abs(given - centre) <= extent * CENTRE_TOLERANCE_CELLS:
            self._add(field, f"is {given}, but the cell's centre is at {centre}")
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
