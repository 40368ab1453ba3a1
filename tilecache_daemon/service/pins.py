"""Pins: areas whose tiles neither an eviction nor a deletion takes."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import InvalidRequestError, PinNotFoundError
from tilecache_daemon.geometry.masks import CellMasks
from tilecache_daemon.models import NewPin, Pin
from tilecache_daemon.service.coverage import CoverageService
from tilecache_daemon.service.storage import Ceiling
from tilecache_daemon.store.pins import PinnedUsage
from tilecache_daemon.store.store import Queries, Store

Regions = Sequence[tuple[int, Iterable[CellRectangle]]]
Masks = Sequence[tuple[int, CellMasks]]
"""The cells of each of some zooms."""


class PinFit(NamedTuple):
    """Whether all that is to be kept fits under the ceiling."""

    missing_count: int
    """Cells of the pin without a tile."""
    missing_bytes: int
    """About, by the stored tiles."""
    kept_bytes: int
    """Of the tiles that pins hold or that wait for upload."""
    max_used_bytes: int
    """0: no ceiling."""

    @property
    def fits(self) -> bool:
        return not self.max_used_bytes or (
            self.kept_bytes + self.missing_bytes <= self.max_used_bytes
        )


class _RolledBackError(Exception):
    """Rolls a transaction back."""


class PinService:
    """Sets, lists and deletes pins."""

    def __init__(
        self, store: Store, coverage: CoverageService, ceiling: Ceiling, clock: Clock
    ) -> None:
        self._store = store
        self._coverage = coverage
        self._ceiling = ceiling
        self._clock = clock

    async def set(self, pin: NewPin, regions: Regions, *, dry_run: bool) -> tuple[Pin, PinFit]:
        """Adds a pin, or replaces the one with the same name. No tile of it is evicted or deleted
        after this returns. A dry run answers the same and changes nothing.

        Raises InvalidRequestError for a time that is past, and LimitExceededError for too many
        cells.
        """
        if pin.expires_at and self._clock.trusted and pin.expires_at <= self._clock.now():
            raise InvalidRequestError(
                FieldViolation("pin.expires_at", f"is {pin.expires_at}, must be in the future")
            )
        masks = await asyncio.to_thread(self._coverage.mask, regions)
        await self.end()
        if dry_run:
            found, pinned = await self._try(pin, masks)
        else:
            async with self._store.transaction() as queries:
                # Waits for the evictions and deletions that are under way.
                await queries.evictions.lock_files_for_listing()
                await _write(queries, pin, masks, self._clock.now())
            async with self._store.connection() as queries:
                found, pinned = await _read(queries, pin.name)
        return found, await self._fit(masks, pinned)

    async def list(self, after_name: str, limit: int) -> list[Pin]:
        """Pins by name, those that have ended, too."""
        await self.end()
        async with self._store.connection() as queries:
            return await queries.pins.list_pins(after_name, limit)

    async def delete(self, name: str) -> None:
        """Raises PinNotFoundError for an unknown name."""
        async with self._store.transaction() as queries:
            if not await queries.pins.delete_pin(name):
                raise PinNotFoundError(f"there is no pin {name!r}", name=name)

    async def read_usage(self) -> PinnedUsage:
        """The tiles that any pin holds."""
        await self.end()
        async with self._store.connection() as queries:
            return await queries.pins.read_pinned_usage()

    async def end(self) -> None:
        """Ends the pins whose time has come."""
        async with self._store.connection() as queries:
            await queries.pins.end_pins(self._clock.now(), clock_trusted=self._clock.trusted)

    async def _try(self, pin: NewPin, masks: Masks) -> tuple[Pin, PinnedUsage]:
        """What there would be if a pin were set."""
        with suppress(_RolledBackError):
            async with self._store.transaction() as queries:
                await _write(queries, pin, masks, self._clock.now())
                found = await _read(queries, pin.name)
                _roll_back()
        return found

    async def _fit(self, masks: Masks, pinned: PinnedUsage) -> PinFit:
        missing_count = missing_bytes = 0
        async for coverage in self._coverage.describe_masks(masks, None):
            missing = coverage.cell_count - coverage.covered_count
            to_fetch = coverage.cell_count - coverage.usable_count
            missing_count += missing
            if missing:
                missing_bytes += (coverage.estimated_fetch_bytes or 0) * missing // to_fetch
        async with self._store.connection() as queries:
            usage = await queries.usage.read_usage()
        pending = sum(row.used_bytes for row in usage if row.pending_upload)
        return PinFit(
            missing_count,
            missing_bytes,
            pinned.used_bytes + pending - pinned.pending_bytes,
            self._ceiling.max_used_bytes,
        )


async def _write(queries: Queries, pin: NewPin, masks: Masks, now: datetime) -> None:
    await queries.pins.delete_pin(pin.name)
    await queries.pins.insert_pin(pin, masks, now)


async def _read(queries: Queries, name: str) -> tuple[Pin, PinnedUsage]:
    return await queries.pins.get_pin(name), await queries.pins.read_pinned_usage()


def _roll_back() -> None:
    raise _RolledBackError
