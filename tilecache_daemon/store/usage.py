"""Storage usage, from counters that triggers maintain."""

from typing import Final, NamedTuple

from tilecache_daemon.store.statements import Statements

# The keys of advisory locks, unique to these uses.
_CEILING_LOCK: Final = 0x7469_6C65_0003
FOLD_LOCK: Final = 0x7469_6C65_0004


class UsageRow(NamedTuple):
    """The usage of one combination of zoom, source, label and pending upload."""

    zoom: int
    source: str
    label: str
    pending_upload: bool
    tile_count: int
    used_bytes: int
    unknown_size_count: int


class UsageQueries(Statements):
    """Queries on the usage, which triggers record as differences.

    Sums of sizes have no bound: rows of other writers may have any size.
    """

    async def lock_ceiling(self) -> None:
        """Keeps other writers from checking the ceiling until the transaction ends."""
        await self._execute("lock_ceiling", {"key": _CEILING_LOCK})

    async def read_usage(self) -> list[UsageRow]:
        """The usage of every combination that has tiles."""
        rows = [UsageRow(*row) for row in await self._rows("read_usage")]
        return [row._replace(used_bytes=int(row.used_bytes)) for row in rows]

    async def read_used_bytes(self) -> int:
        """The total size of all tiles, in bytes."""
        return int(await self._value("read_used_bytes"))

    async def read_pending_uploads(self) -> int:
        """How many tiles wait for upload."""
        return int(await self._value("read_pending_uploads"))

    async def read_pending_removal(self) -> tuple[int, int]:
        """The number of evictions that are not confirmed, and the size of their files."""
        count, used_bytes = (await self._rows("read_pending_removal"))[0]
        return count, int(used_bytes)

    async def count_usage_rows(self) -> int:
        """How many differences are not summed up yet."""
        return int(await self._value("count_usage_rows"))

    async def fold_usage(self) -> None:
        """Sums up the differences, unless another transaction is doing so."""
        await self._execute("fold_usage", {"key": FOLD_LOCK})
