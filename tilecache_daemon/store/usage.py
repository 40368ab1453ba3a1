"""How much is stored, without counting it."""

from typing import Final, NamedTuple

from tilecache_daemon.store.statements import Statements

_CEILING_LOCK: Final = 0x7469_6C65_0003  # any numbers that nothing else locks
_FOLD_LOCK: Final = 0x7469_6C65_0004


class UsageRow(NamedTuple):
    """The usage of one combination."""

    zoom: int
    source: str
    label: str
    pending_upload: bool
    tile_count: int
    used_bytes: int
    unknown_size_count: int


class UsageQueries(Statements):
    """The usage that triggers keep."""

    async def lock_ceiling(self) -> None:
        """Keeps other writers from deciding what fits until the transaction ends."""
        await self._execute("lock_ceiling", {"key": _CEILING_LOCK})

    async def read_usage(self) -> list[UsageRow]:
        """All combinations that occur."""
        return [UsageRow(*row) for row in await self._rows("read_usage")]

    async def read_used_bytes(self) -> int:
        """The size of all tiles."""
        return int(await self._value("read_used_bytes"))

    async def read_pending_removal(self) -> tuple[int, int]:
        """Evictions that are not confirmed, and their size in bytes."""
        count, used_bytes = (await self._rows("read_pending_removal"))[0]
        return count, used_bytes

    async def count_usage_rows(self) -> int:
        """How many differences wait to be summed up."""
        return int(await self._value("count_usage_rows"))

    async def fold_usage(self) -> None:
        """Sums up the differences, unless another does so now."""
        await self._execute("fold_usage", {"key": _FOLD_LOCK})
