"""Validation of UpdateTiles' requests, and their conversion to models."""

from collections.abc import Iterator

from tilecache.errors import FieldViolation
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import TileUpdate
from tilecache_daemon.rpc import requests
from tilecache_daemon.rpc.new_tile import path_problem, quality_json


def tile_updates(request: pb.UpdateTilesRequest, most: int) -> list[TileUpdate]:
    """The corrections of a request, of different tiles; `most` of them at most."""
    requests.check_count("tiles", len(request.tiles), most)
    updates: dict[str, TileUpdate] = {}
    violations: list[FieldViolation] = []
    for index, message in enumerate(request.tiles):
        field = f"tiles[{index}]"
        try:
            update = _tile_update(message)
        except InvalidRequestError as error:
            violations += error.within(field).violations
            continue
        if updates.setdefault(update.tile_uuid, update) is not update:
            violations.append(FieldViolation(f"{field}.tile_uuid", "must not be given twice"))
    if violations:
        raise InvalidRequestError(*violations)
    return list(updates.values())


def _tile_update(message: pb.TileUpdate) -> TileUpdate:
    violations = list(_violations(message))
    captured_at = quality = None
    try:
        if message.HasField("captured_at"):
            captured_at = requests.moment("captured_at", message.captured_at)
        if message.HasField("quality_metadata"):
            quality = quality_json(message.quality_metadata)
    except InvalidRequestError as error:
        violations += error.violations
    if violations:
        raise InvalidRequestError(*violations)
    file_path = message.file_path if message.HasField("file_path") else None
    return TileUpdate(message.tile_uuid, message.content_sha256, captured_at, file_path, quality)


def _violations(message: pb.TileUpdate) -> Iterator[FieldViolation]:
    if not requests.UUID_TEXT.fullmatch(message.tile_uuid):
        yield FieldViolation("tile_uuid", requests.not_uuid(message.tile_uuid))
    if not requests.SHA256.fullmatch(message.content_sha256):
        yield FieldViolation("content_sha256", requests.SHA256_EXPECTED)
    if message.HasField("file_path"):
        if problem := path_problem(message.file_path):
            yield FieldViolation("file_path", problem)
    elif not (message.HasField("captured_at") or message.HasField("quality_metadata")):
        yield FieldViolation(
            "captured_at", "is required, unless file_path or quality_metadata is given"
        )
