"""Deleting tiles, and the list of their files that are to be removed."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tilecache.mercator import CellRectangle
from tilecache_daemon.models import Eviction, EvictionReason, Purge, Tile
from tilecache_daemon.store.statements import Statements

# The keys of advisory locks, unique to their use; the second is that of revision 0006's triggers.
_EVICTION_LOCK: Final = 0x7469_6C65_0002
_FILES_LOCK: Final = 0x7469_6C65_0005


class Candidate(NamedTuple):
    """A tile that may be deleted, and its position in the order of use."""

    tile: Tile
    id: int
    access_order: int


class EvictionQueries(Statements):
    """Evictions and deletions. Positions start a page; a row's own position is excluded."""

    async def lock_eviction(self) -> None:
        """Blocks other evictions until the transaction ends."""
        await self._execute("lock_eviction", {"key": _EVICTION_LOCK})

    async def lock_files_for_naming(self) -> None:
        """Blocks the listing of files until the transaction ends. Transactions that name files
        do not wait for each other. Call it before any row is locked."""
        await self._execute("lock_files_for_naming", {"key": _FILES_LOCK})

    async def lock_files_for_listing(self) -> None:
        """Blocks the naming and listing of files by other transactions until this one ends. Call
        it before any row is locked."""
        await self._execute("lock_files_for_listing", {"key": _FILES_LOCK})

    async def list_evictable(
        self, after: tuple[int, int], limit: int, *, include_pending: bool, include_pinned: bool
    ) -> list[Candidate]:
        """The least recently used tiles after the position (access_order, id), without those
        that wait for upload and those that pins hold, unless they are included."""
        return await self._candidates(
            "list_evictable_with_pending" if include_pending else "list_evictable",
            {
                "after_order": after[0],
                "after_id": after[1],
                "limit": limit,
                "include_pinned": include_pinned,
            },
        )

    async def find_last_evictable(self) -> tuple[int, int] | None:
        """The position (access_order, id) of the last tile that may be evicted, pinned or not."""
        rows = await self._rows("last_evictable")
        return rows[0] if rows else None

    async def list_deletable(
        self,
        zoom: int,
        cells: CellRectangle,
        purge: Purge,
        after: tuple[int, int, int],
        limit: int,
        *,
        lock: bool,
    ) -> list[Candidate]:
        """Matching tiles of a zoom in a rectangle, after the position (x, y, id). With `lock`,
        waits for other writers and locks the rows until the transaction ends."""
        position = dict(zip(("after_x", "after_y", "after_id"), after, strict=True))
        parameters = {"zoom": zoom, "limit": limit} | cells._asdict() | purge._asdict() | position
        return await self._candidates("list_deletable", parameters, lock=lock)

    async def list_deletable_by_capture(
        self,
        zooms: Sequence[int],
        purge: Purge,
        after: tuple[int, int],
        limit: int,
        *,
        lock: bool,
    ) -> list[Candidate]:
        """Matching tiles of some zooms, oldest capture first, after the position (captured_us,
        id). `lock` as in `list_deletable`."""
        position = {"zooms": list(zooms), "after_us": after[0], "after_id": after[1]}
        return await self._candidates(
            "list_deletable_by_capture", {"limit": limit} | purge._asdict() | position, lock=lock
        )

    async def list_deletable_by_id(
        self, tile_uuids: Sequence[str], *, lock: bool
    ) -> list[Candidate]:
        """The tiles with these ids; unknown ids are left out. `lock` as in `list_deletable`."""
        parameters = {"tile_uuids": list(tile_uuids)}
        return await self._candidates("list_deletable_by_id", parameters, lock=lock)

    async def evict_tiles(
        self,
        chosen: Sequence[Candidate],
        reason: EvictionReason,
        now: datetime,
        *,
        include_pending: bool,
        include_pinned: bool,
    ) -> list[Eviction]:
        """Deletes tiles and lists their files for removal; needs `lock_files_for_listing`. Skips
        tiles that were used since they were chosen, those that another writer has locked, and
        those that wait for upload or that pins hold, unless they are included. A file that
        another tile names is not listed: its eviction has the id 0."""
        parameters = {
            "include_pending": include_pending,
            "include_pinned": include_pinned,
            "ids": [candidate.id for candidate in chosen],
            "orders": [candidate.access_order for candidate in chosen],
            "reason": reason.value,
            "now": now,
        }
        return [Eviction(*row) for row in await self._rows("evict_tiles", parameters)]

    async def list_replaced_file(self, replaced: Tile, now: datetime) -> None:
        """Lists the file of a tile as it was before its replacement, unless a tile names it;
        needs `lock_files_for_listing`."""
        parameters = {
            "tile_uuid": replaced.tile_uuid,
            "file_path": replaced.file_path,
            "content_sha256": replaced.content_sha256,
            "disk_bytes": replaced.disk_bytes,
            "now": now,
        }
        await self._execute("list_replaced_file", parameters)

    async def list_evictions(
        self, after_id: int, limit: int, file_paths: Sequence[str] = ()
    ) -> list[Eviction]:
        """Unconfirmed evictions, oldest first; of some files if any are given."""
        name = "list_evictions_of_files" if file_paths else "list_evictions"
        parameters = {"after_id": after_id, "limit": limit, "file_paths": list(file_paths)}
        return [Eviction(*row) for row in await self._rows(name, parameters)]

    async def confirm_evictions(self, ids: Sequence[int]) -> set[int]:
        """Removes evictions from the list; returns the ids that were listed and whose file no
        tile names."""
        return {row[0] for row in await self._rows("confirm_evictions", {"ids": list(ids)})}

    async def find_listed_files(self, file_paths: Iterable[str]) -> set[str]:
        """Which of these files are listed for removal. Paths must not contain line breaks."""
        if not await self._value("is_any_file_listed"):
            return set()
        rows = await self._rows("find_listed_files", {"file_paths": "\n".join(file_paths)})
        return {row[0] for row in rows}

    async def _candidates(
        self, name: str, parameters: dict[str, Any], *, lock: bool = False
    ) -> list[Candidate]:
        rows = await self._binary_rows(name, parameters, lock=lock)
        return [Candidate(Tile(*row[:-2]), *row[-2:]) for row in rows]
