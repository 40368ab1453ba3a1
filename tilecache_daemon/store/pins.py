"""Pins: areas whose tiles neither an eviction nor a deletion takes."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tilecache_daemon.geometry.masks import CellMasks
from tilecache_daemon.models import NewPin, Pin
from tilecache_daemon.store.statements import Statements


class PinnedUsage(NamedTuple):
    """The tiles that pins hold, and the size of those of them that wait for upload."""

    tile_count: int
    used_bytes: int
    pending_bytes: int


class PinQueries(Statements):
    """Queries on the pins."""

    async def end_pins(self, now: datetime, *, clock_trusted: bool) -> list[int]:
        """Ends the pins whose time has come; none while the clock is not trusted. Returns the
        ids of those that hold."""
        parameters = {"now": now, "clock_trusted": clock_trusted}
        return [row[0] for row in await self._rows("end_pins", parameters)]

    async def insert_pin(
        self, pin: NewPin, masks: Sequence[tuple[int, CellMasks]], now: datetime
    ) -> None:
        """Adds a pin of the cells of some zooms; its name must not be taken."""
        parameters = {
            "name": pin.name,
            "region": pin.region,
            "zooms": list(pin.zooms),
            "cell_count": sum(cells.cell_count for _, cells in masks),
            "now": now,
            "expires_at": pin.expires_at,
        }
        pin_id = await self._value("insert_pin", parameters)
        for zoom, cells in masks:
            blocks = {
                "zoom": zoom,
                "pin_id": pin_id,
                "x": cells.x.tolist(),
                "y": cells.y.tolist(),
                "cells": cells.rows.astype("<u4").tobytes(),
            }
            await self._execute("insert_pin_blocks", blocks)

    async def delete_pin(self, name: str) -> bool:
        """Returns whether the pin existed."""
        return bool(await self._rows("delete_pin", {"name": name}))

    async def list_pins(self, after_name: str, limit: int) -> list[Pin]:
        """Pins by name, after a name."""
        return await self._pins({"name": None, "after_name": after_name, "limit": limit})

    async def get_pin(self, name: str) -> Pin:
        """The pin with a name, which must exist."""
        (pin,) = await self._pins({"name": name, "after_name": "", "limit": 1})
        return pin

    async def read_pinned_usage(self) -> PinnedUsage:
        """The tiles that any pin holds."""
        return PinnedUsage(*map(int, (await self._rows("read_pinned_usage"))[0]))

    async def count_pinned_evictable(self, *, include_pending: bool) -> tuple[int, list[str]]:
        """How many tiles only pins keep from an eviction, and the names of these pins."""
        rows = await self._rows("count_pinned_evictable", {"include_pending": include_pending})
        count, names = rows[0]
        return count, names

    async def find_pinned(self, ids: Sequence[int]) -> dict[int, list[str]]:
        """Which of some tiles pins hold, with the names of the pins."""
        return dict(await self._rows("find_pinned", {"ids": list(ids)}))

    async def _pins(self, parameters: dict[str, object]) -> list[Pin]:
        rows = [Pin(*row) for row in await self._rows("list_pins", parameters)]
        return [pin._replace(used_bytes=int(pin.used_bytes)) for pin in rows]
