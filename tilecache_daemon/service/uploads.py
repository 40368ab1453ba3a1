"""Pending uploads: listing them, and marking tiles as uploaded."""

import base64
import binascii
import struct
from collections.abc import Sequence
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.identity import ONBOARD_INGEST
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import MarkOutcome, Tile
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.uploads import PendingUpload, UploadState

PAGE_BYTES: Final = 3 * 1024 * 1024
"""Less than 4 MiB, the default limit of a gRPC client."""
TILE_BYTES: Final = 400
STRUCT_FACTOR: Final = 6
"""How much JSON grows as a Struct in the worst case, a list of digits."""

_START = (-(2**63), 0)
_TOKEN = struct.Struct(">qq")


class UploadService:
    """Lists pending uploads and marks tiles as uploaded."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def list_pending(
        self, page_size: int, page_token: str, flight_id: str | None
    ) -> tuple[list[Tile], str]:
        """A page, oldest capture first, and the token of the next page (empty at the end).

        A page starts after the last tile of the previous one, so tiles that are added or
        removed meanwhile neither shift nor repeat others.
        """
        after = decode_page_token(page_token) if page_token else _START
        async with self._store.connection() as queries:
            page = await queries.uploads.list_pending_uploads(after, flight_id, page_size + 1)
        tiles = _first_that_fit([entry.tile for entry in page[:page_size]])
        more = len(page) > len(tiles)
        return tiles, encode_page_token(page[len(tiles) - 1]) if more else ""

    async def mark(self, contents: Sequence[tuple[str, str]]) -> list[MarkOutcome]:
        """Marks tiles as uploaded, given (tile_uuid, content_sha256); an outcome for each, in
        order."""
        async with self._store.transaction() as queries:
            states = await queries.uploads.mark_uploaded(contents, self._clock.now())
        return [_outcome(states.get(tile_uuid), sha256) for tile_uuid, sha256 in contents]


def _first_that_fit(tiles: Sequence[Tile]) -> list[Tile]:
    """As many tiles as fit into PAGE_BYTES, at least one."""
    bytes_left = PAGE_BYTES
    for index, tile in enumerate(tiles):
        quality_bytes = STRUCT_FACTOR * len(tile.quality_metadata or "")
        bytes_left -= TILE_BYTES + len(tile.file_path) + quality_bytes
        if bytes_left < 0 and index:
            return list(tiles[:index])
    return list(tiles)


def encode_page_token(last: PendingUpload) -> str:
    """The end of a page as an opaque token."""
    token = _TOKEN.pack(last.tile.captured_us, last.id)
    return base64.urlsafe_b64encode(token).decode()


def decode_page_token(token: str) -> tuple[int, int]:
    """The end of the previous page; raises InvalidRequestError for an invalid token."""
    try:
        micros, row_id = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError):
        raise InvalidRequestError(
            FieldViolation("page_token", "must be a token of a previous page")
        ) from None
    return micros, row_id


def _outcome(before: UploadState | None, content_sha256: str) -> MarkOutcome:
    if before is None:
        return MarkOutcome.NOT_FOUND
    if before.source != ONBOARD_INGEST:
        return MarkOutcome.NOT_UPLOADABLE
    if before.content_sha256 != content_sha256:
        return MarkOutcome.CONTENT_DIFFERS
    return MarkOutcome.ALREADY_MARKED if before.uploaded_at else MarkOutcome.MARKED
