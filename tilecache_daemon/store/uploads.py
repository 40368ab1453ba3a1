"""Pending uploads."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tilecache_daemon.models import Tile
from tilecache_daemon.store.statements import Statements


class UploadState(NamedTuple):
    """The state of a tile before it was marked as uploaded."""

    source: str
    content_sha256: str | None
    uploaded_at: datetime | None


class PendingUpload(NamedTuple):
    """A tile that is not uploaded yet, and its row id."""

    tile: Tile
    id: int


class UploadQueries(Statements):
    """Queries on tiles made onboard."""

    async def list_pending_uploads(
        self, after: tuple[int, int], flight_id: str | None, limit: int
    ) -> list[PendingUpload]:
        """Onboard tiles that are not uploaded yet, oldest capture first, after the position
        (captured_us, id)."""
        rows = await self._binary_rows(
            "list_pending_uploads",
            {
                "after_us": after[0],
                "after_id": after[1],
                "flight_id": flight_id,
                "limit": limit,
            },
        )
        return [PendingUpload(Tile(*row[:-1]), row[-1]) for row in rows]

    async def mark_uploaded(
        self, contents: Sequence[tuple[str, str]], now: datetime
    ) -> dict[str, UploadState]:
        """Marks tiles as uploaded, given (tile_uuid, content_sha256), if they have this
        content; returns the previous state of each stored tile, by id."""
        parameters = {
            "tile_uuids": [tile_uuid for tile_uuid, _ in contents],
            "content_sha256": [sha256 for _, sha256 in contents],
            "now": now,
        }
        rows = await self._rows("mark_uploaded", parameters)
        return {row[0]: UploadState(*row[1:]) for row in rows}
