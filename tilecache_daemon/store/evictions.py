"""Taking tiles out, and the list of files that are then to be removed."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tilecache.mercator import CellRectangle
from tilecache_daemon.models import Eviction, EvictionReason, Purge, Tile
from tilecache_daemon.store.statements import Statements

_EVICTION_LOCK: Final = 0x7469_6C65_0002  # any number that nothing else locks


class Candidate(NamedTuple):
    """A tile that may go, and its place in the order of use."""

    tile: Tile
    id: int
    access_order: int


class EvictionQueries(Statements):
    """Rows on their way out."""

    async def lock_eviction(self) -> None:
        """Keeps other evictions from choosing until the transaction ends."""
        await self._execute("lock_eviction", {"key": _EVICTION_LOCK})

    async def list_evictable(self, after: tuple[int, int], limit: int) -> list[Candidate]:
        """The least recently used from a place in the order of use, (access_order, id), on."""
        return await self._candidates(
            "list_evictable", {"after_order": after[0], "after_id": after[1], "limit": limit}
        )

    async def list_deletable(
        self,
        zoom: int,
        cells: CellRectangle,
        purge: Purge,
        after: tuple[int, int, int],
        limit: int,
        *,
        hold: bool,
    ) -> list[Candidate]:
        """Tiles of a zoom in a rectangle that match, from a place, (x, y, id), on. With `hold`
        they are waited for, and nobody else changes them until the transaction ends."""
        place = dict(zip(("after_x", "after_y", "after_id"), after, strict=True))
        parameters = {"zoom": zoom, "limit": limit} | cells._asdict() | purge._asdict() | place
        return await self._candidates("list_deletable", parameters, hold=hold)

    async def list_deletable_by_capture(
        self,
        zooms: Sequence[int],
        purge: Purge,
        after: tuple[datetime, int],
        limit: int,
        *,
        hold: bool,
    ) -> list[Candidate]:
        """Tiles of some zooms that match, oldest capture first, from a place on. `hold` as
        above."""
        place = {"zooms": list(zooms), "after_captured_at": after[0], "after_id": after[1]}
        return await self._candidates(
            "list_deletable_by_capture", {"limit": limit} | purge._asdict() | place, hold=hold
        )

    async def list_deletable_by_id(
        self, tile_uuids: Sequence[str], *, hold: bool
    ) -> list[Candidate]:
        """The tiles that are there. `hold` as above."""
        parameters = {"tile_uuids": list(tile_uuids)}
        return await self._candidates("list_deletable_by_id", parameters, hold=hold)

    async def evict_tiles(
        self, chosen: Sequence[Candidate], reason: EvictionReason, now: datetime
    ) -> list[Eviction]:
        """Takes tiles out and lists their files. Those used since, or held, stay."""
        parameters = {
            "ids": [candidate.id for candidate in chosen],
            "orders": [candidate.access_order for candidate in chosen],
            "reason": reason.value,
            "now": now,
        }
        return [Eviction(*row) for row in await self._rows("evict_tiles", parameters)]

    async def list_replaced_file(self, tile_uuid: str, file_path: str, now: datetime) -> None:
        """Lists a tile's file, unless it is `file_path`, which is about to take its place."""
        parameters = {"tile_uuid": tile_uuid, "file_path": file_path, "now": now}
        await self._execute("list_replaced_file", parameters)

    async def list_evictions(self, after_id: int, limit: int) -> list[Eviction]:
        """Evictions whose files are not confirmed as removed, oldest first."""
        parameters = {"after_id": after_id, "limit": limit}
        return [Eviction(*row) for row in await self._rows("list_evictions", parameters)]

    async def confirm_evictions(self, ids: Sequence[int]) -> set[int]:
        """Takes evictions off the list; gives those that were on it."""
        return {row[0] for row in await self._rows("confirm_evictions", {"ids": list(ids)})}

    async def find_listed_files(self, file_paths: Iterable[str]) -> set[str]:
        """Which of these files are to be removed. No path has a line break in it."""
        if not await self._value("is_any_file_listed"):
            return set()
        rows = await self._rows("find_listed_files", {"file_paths": "\n".join(file_paths)})
        return {row[0] for row in rows}

    async def take_back_tiles(self, tile_uuids: Iterable[str]) -> None:
        """Takes out rows that this transaction has put in."""
        await self._execute("take_back_tiles", {"tile_uuids": list(tile_uuids)})

    async def _candidates(
        self, name: str, parameters: dict[str, Any], *, hold: bool = False
    ) -> list[Candidate]:
        rows = await self._binary_rows(name, parameters, hold=hold)
        return [Candidate(Tile(*row[:-2]), *row[-2:]) for row in rows]
