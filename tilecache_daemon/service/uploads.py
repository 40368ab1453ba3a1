"""What still has to be uploaded."""

import base64
import binascii
import struct
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.identity import ONBOARD_INGEST
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import MarkOutcome, Tile, moment_of
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.uploads import PendingUpload, UploadState

PAGE_BYTES: Final = 3 * 1024 * 1024
"""Less than the 4 MiB that a gRPC client takes unless it is told otherwise."""
TILE_BYTES: Final = 400
STRUCT_FACTOR: Final = 6  # the most that JSON grows as a Struct: a list of digits

_START = (datetime(1, 1, 1, tzinfo=timezone.utc), 0)
_TOKEN = struct.Struct(">qq")


class UploadService:
    """Lists and marks uploads."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def list_pending(
        self, page_size: int, page_token: str, flight_id: str | None
    ) -> tuple[list[Tile], str]:
        """A page, oldest capture first, and the token of the next (empty if there is none).

        A page begins after the last tile of the one before, so tiles that come
        and go neither shift nor repeat the others.
        """
        after = decode_page_token(page_token) if page_token else _START
        async with self._store.connection() as queries:
            page = await queries.uploads.list_pending_uploads(after, flight_id, page_size + 1)
        tiles = _first_that_fit([entry.tile for entry in page[:page_size]])
        more = len(page) > len(tiles)
        return tiles, encode_page_token(page[len(tiles) - 1]) if more else ""

    async def mark(self, contents: Sequence[tuple[str, str]]) -> list[MarkOutcome]:
        """Marks (tile_uuid, content_sha256) as uploaded; an answer for each, in order."""
        async with self._store.transaction() as queries:
            states = await queries.uploads.mark_uploaded(contents, self._clock.now())
        return [_outcome(states.get(tile_uuid), sha256) for tile_uuid, sha256 in contents]


def _first_that_fit(tiles: Sequence[Tile]) -> list[Tile]:
    """As many as an answer may hold, and one at least."""
    room = PAGE_BYTES
    for index, tile in enumerate(tiles):
        room -= TILE_BYTES + len(tile.file_path) + STRUCT_FACTOR * len(tile.quality_metadata or "")
        if room < 0 and index:
            return list(tiles[:index])
    return list(tiles)


def encode_page_token(last: PendingUpload) -> str:
    """Where a page ended, as opaque text."""
    token = _TOKEN.pack(last.tile.captured_us, last.id)
    return base64.urlsafe_b64encode(token).decode()


def decode_page_token(token: str) -> tuple[datetime, int]:
    """Raises InvalidRequestError for what was never a token."""
    try:
        micros, row_id = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
        return moment_of(micros), row_id
    except (binascii.Error, struct.error, OverflowError, ValueError):
        raise InvalidRequestError(
            FieldViolation("page_token", "is not a token of an earlier answer")
        ) from None


def _outcome(before: UploadState | None, content_sha256: str) -> MarkOutcome:
    if before is None:
        return MarkOutcome.NOT_FOUND
    if before.source != ONBOARD_INGEST:
        return MarkOutcome.NOT_UPLOADABLE
    if before.content_sha256 != content_sha256:
        return MarkOutcome.CONTENT_DIFFERS
    return MarkOutcome.ALREADY_MARKED if before.uploaded_at else MarkOutcome.MARKED
