"""Inserting tiles: a result for each, committed before it is returned."""

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from tilecache.errors import FieldViolation
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import (
    InvalidRequestError,
    StorageCeilingError,
    TileCacheError,
    TileTooOldError,
)
from tilecache_daemon.freshness_policy import FreshnessPolicy
from tilecache_daemon.models import (
    LAST_MICROS,
    InsertOutcome,
    NewTile,
    OnConflict,
    Tile,
    micros_of,
)
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.insert_batch import (
    BATCH_TILES,
    InsertBatch,
    InsertResult,
    ReplacementLockRequiredError,
)
from tilecache_daemon.service.retries import retry_on_conflict
from tilecache_daemon.service.storage import Ceiling
from tilecache_daemon.store.store import Queries, Store

MAX_FUTURE: Final = timedelta(days=1)
"""How far a capture may be in the future of a trusted clock. Clocks differ, but a capture far
in the future would never expire."""

Written = TypeVar("Written")


class InsertionService:
    """Labels tiles and stores them, one transaction a batch."""

    def __init__(
        self,
        store: Store,
        freshness: FreshnessService,
        ceiling: Ceiling,
        clock: Clock,
        read_priority: ReadPriority,
    ) -> None:
        self._store = store
        self._freshness = freshness
        self._ceiling = ceiling
        self._clock = clock
        self._read_priority = read_priority

    async def insert(self, tile: NewTile, on_conflict: OnConflict) -> tuple[Tile, InsertOutcome]:
        """Stores one tile; returns the tile that is stored now. Raises the errors that
        `insert_batch` returns."""

        async def write(*, may_replace: bool) -> tuple[Tile, InsertOutcome]:
            async with self._store.transaction() as queries:
                (result,) = await self._insert(queries, [tile], on_conflict, may_replace)
                if isinstance(result, TileCacheError):
                    raise result
                stored = await queries.tiles.find_tiles([tile.tile_uuid])
            return stored[tile.tile_uuid], result

        async with self._ceiling.serialized_inserts():
            try:
                return await _write(write)
            except StorageCeilingError as refusal:
                if not await self._ceiling.make_room([refusal]):
                    raise
            return await _write(write)

    async def insert_batch(
        self, tiles: Sequence[NewTile], on_conflict: OnConflict
    ) -> list[InsertResult]:
        """Stores every tile that can be stored; a result for each, in order.

        One transaction; a second one only for tiles that needed an eviction.
        """
        async with self._ceiling.serialized_inserts():
            results = await self._write_batch(tiles, on_conflict)
            refused = {
                index: result
                for index, result in enumerate(results)
                if isinstance(result, StorageCeilingError)
            }
            if not refused:
                return results
            kept_bytes = sum(
                tile.disk_bytes
                for tile, result in zip(tiles, results, strict=True)
                if isinstance(result, InsertOutcome)
            )
            if await self._ceiling.make_room(refused.values(), kept_bytes):
                retried = await self._write_batch([tiles[index] for index in refused], on_conflict)
                for index, result in zip(refused, retried, strict=True):
                    results[index] = result
        return results

    async def _write_batch(
        self, tiles: Sequence[NewTile], on_conflict: OnConflict
    ) -> list[InsertResult]:
        async def write(*, may_replace: bool) -> list[InsertResult]:
            async with self._store.transaction() as queries:
                return await self._insert(queries, tiles, on_conflict, may_replace)

        return await _write(write)

    async def _insert(
        self,
        queries: Queries,
        tiles: Sequence[NewTile],
        on_conflict: OnConflict,
        may_replace: bool,
    ) -> list[InsertResult]:
        # All writers take these locks in this order, and lock rows after them.
        policy = await queries.freshness.lock_policy_for_share()
        budget = await self._ceiling.lock_budget(queries)
        if may_replace:
            await queries.evictions.lock_files_for_listing()
        else:
            await queries.evictions.lock_files_for_naming()
        tiles = self._uploaded_by_now(tiles)
        results: dict[int, InsertResult] = {}
        replaced: list[Tile] = []
        for indices in _rounds_of_distinct_keys(tiles):
            batch = InsertBatch(
                queries,
                on_conflict,
                budget,
                self._clock.now(),
                self._read_priority,
                [(index, tiles[index]) for index in indices],
                may_replace=may_replace,
            )
            await self._label(batch, policy)
            await batch.store()
            results |= batch.results
            replaced += batch.replaced
        for tile in replaced:
            await queries.evictions.list_replaced_file(tile, self._clock.now())
        return [results[index] for index in range(len(tiles))]

    def _uploaded_by_now(self, tiles: Sequence[NewTile]) -> Sequence[NewTile]:
        """The tiles, none of them uploaded in the future: a recorded time that is later than the
        clock's makes the clock untrusted, and the clock of another machine may be ahead."""
        now_us = micros_of(self._clock.now()) if self._clock.trusted else LAST_MICROS
        if all(tile.uploaded_us is None or tile.uploaded_us <= now_us for tile in tiles):
            return tiles
        return [
            tile
            if tile.uploaded_us is None
            else tile._replace(uploaded_us=min(tile.uploaded_us, now_us))
            for tile in tiles
        ]

    async def _label(self, batch: InsertBatch, policy: FreshnessPolicy) -> None:
        latest_us = latest_capture_us(self._clock)
        async for tiles in self._read_priority.in_batches(batch.tiles, BATCH_TILES):
            for index, tile in tiles:
                if tile.captured_us > latest_us:
                    batch.results[index] = InvalidRequestError(
                        future_violation("captured_at", tile.captured_at)
                    )
                    continue
                try:
                    batch.labels[index] = self._freshness.label(tile, policy)
                except TileTooOldError as error:
                    batch.too_old[index] = error


def latest_capture_us(clock: Clock) -> float:
    """The latest time, in microseconds since 2000, at which an image can have been taken: any
    while the clock is not trusted."""
    return micros_of(clock.now() + MAX_FUTURE) if clock.trusted else math.inf


def future_violation(field: str, captured_at: datetime) -> FieldViolation:
    """The violation of a later capture time."""
    return FieldViolation(field, f"is {captured_at}, must not be more than a day in the future")


async def _write(transaction: Callable[..., Awaitable[Written]]) -> Written:
    """Runs a transaction, and again with the lock for replacements if it needs that."""
    try:
        return await retry_on_conflict(partial(transaction, may_replace=False))
    except ReplacementLockRequiredError:
        return await retry_on_conflict(partial(transaction, may_replace=True))


def _rounds_of_distinct_keys(tiles: Sequence[NewTile]) -> Sequence[Sequence[int]]:
    """Indices of the tiles, in rounds: the n-th tile with a key is in the n-th round."""
    if len({tile.tile_uuid for tile in tiles}) == len(tiles):
        return [range(len(tiles))]
    seen: defaultdict[str, int] = defaultdict(int)
    rounds: list[list[int]] = []
    for index, tile in enumerate(tiles):
        number = seen[tile.tile_uuid]
        seen[tile.tile_uuid] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(index)
    return rounds
