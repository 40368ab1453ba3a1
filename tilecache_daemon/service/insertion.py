"""Storing tiles: one answer for each, committed before it is given."""

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from tilecache.errors import FieldViolation
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import (
    ContentConflictError,
    FilePendingRemovalError,
    InvalidRequestError,
    StorageCeilingError,
    TileCacheError,
    TileTooOldError,
)
from tilecache_daemon.freshness_policy import FreshnessPolicy
from tilecache_daemon.models import (
    FreshnessLabel,
    InsertOutcome,
    NewTile,
    OnConflict,
    Tile,
    micros_of,
)
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.service.conflicts import ATTEMPTS, retried
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.storage import Ceiling, Room
from tilecache_daemon.store.binary_copy import LabelledTile
from tilecache_daemon.store.store import Queries, Store

MAX_FUTURE: Final = timedelta(days=1)
"""How far ahead of a trusted clock a capture may lie: clocks differ, and a
capture from the future would never expire."""

_TILES_A_TURN: Final = 256

_OUTCOMES: Final = {FreshnessLabel.DOWNGRADED: InsertOutcome.DOWNGRADED}
"""Of labels that a new tile's outcome tells."""

Answer = InsertOutcome | TileCacheError


class InsertionService:
    """Labels, stores, and settles conflicts."""

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
        """Stores one tile; gives what is stored now. Raises what `insert_batch` answers."""

        async def write() -> tuple[Tile, InsertOutcome]:
            async with self._store.transaction() as queries:
                (answer,) = await self._insert(queries, [tile], on_conflict)
                if isinstance(answer, TileCacheError):
                    raise answer
                stored = await queries.tiles.find_tiles([tile.tile_uuid])
            return stored[tile.tile_uuid], answer

        async with self._ceiling.turn():
            try:
                return await retried(write)
            except StorageCeilingError as refusal:
                if not await self._ceiling.make_room([refusal]):
                    raise
            return await retried(write)

    async def insert_batch(self, tiles: Sequence[NewTile], on_conflict: OnConflict) -> list[Answer]:
        """Stores what can be stored; an answer for each, in order.

        One transaction, and more only for tiles that an eviction had to make room for.
        """
        async with self._ceiling.turn():
            answers = await self._write_batch(tiles, on_conflict)
            refused = {
                i: answer
                for i, answer in enumerate(answers)
                if isinstance(answer, StorageCeilingError)
            }
            if not refused:
                return answers
            kept_bytes = sum(
                tile.disk_bytes
                for tile, answer in zip(tiles, answers, strict=True)
                if isinstance(answer, InsertOutcome)
            )
            if await self._ceiling.make_room(refused.values(), kept_bytes):
                again = await self._write_batch([tiles[i] for i in refused], on_conflict)
                for i, answer in zip(refused, again, strict=True):
                    answers[i] = answer
        return answers

    async def _write_batch(self, tiles: Sequence[NewTile], on_conflict: OnConflict) -> list[Answer]:
        async def write() -> list[Answer]:
            async with self._store.transaction() as queries:
                return await self._insert(queries, tiles, on_conflict)

        return await retried(write)

    async def _insert(
        self, queries: Queries, tiles: Sequence[NewTile], on_conflict: OnConflict
    ) -> list[Answer]:
        policy = await queries.freshness.hold_policy()
        room = await self._ceiling.measure(queries)
        answers: dict[int, Answer] = {}
        for positions in _rounds_of_distinct_keys(tiles):
            batch = _Batch(
                queries,
                on_conflict,
                room,
                self._clock.now(),
                self._read_priority,
                [(i, tiles[i]) for i in positions],
            )
            await self._label(batch, policy)
            await batch.store()
            answers |= batch.answers
        return [answers[i] for i in range(len(tiles))]

    async def _label(self, batch: "_Batch", policy: FreshnessPolicy) -> None:
        latest_us = math.inf
        if self._clock.trusted:
            latest_us = micros_of(self._clock.now() + MAX_FUTURE)
        async for some in self._read_priority.in_batches(batch.tiles, _TILES_A_TURN):
            for position, tile in some:
                if tile.captured_us > latest_us:
                    batch.answers[position] = InvalidRequestError(
                        FieldViolation("captured_at", f"{tile.captured_at} lies in the future")
                    )
                    continue
                try:
                    batch.labels[position] = self._freshness.label(tile, policy)
                except TileTooOldError as error:
                    batch.too_old[position] = error


class _Batch:
    """Tiles with distinct keys on their way into the table."""

    def __init__(
        self,
        queries: Queries,
        on_conflict: OnConflict,
        room: Room,
        now: datetime,
        read_priority: ReadPriority,
        tiles: Iterable[tuple[int, NewTile]],
    ) -> None:
        self._queries = queries
        self._on_conflict = on_conflict
        self._room = room
        self._now = now
        self._read_priority = read_priority
        # All writers take keys in the same order, so that none waits for another in a ring.
        self.tiles = sorted(tiles, key=_key_order)
        self.labels: dict[int, FreshnessLabel] = {}
        self.too_old: dict[int, TileTooOldError] = {}
        self.answers: dict[int, Answer] = {}

    async def store(self) -> None:
        """Fills `answers` for every tile."""
        new = [entry for entry in self.tiles if entry[0] in self.labels]
        size = sum(tile.disk_bytes for _, tile in new)
        if (
            new
            and self._room.fits(size)
            and await self._queries.tiles.copy_tiles(self._labelled_in_batches(new), self._now)
        ):
            self._room.take(size)
            await self._accept(new)
        else:
            await self._settle(new)
        await self._settle_too_old()

    async def _settle(self, pending: list[tuple[int, NewTile]]) -> None:
        """One by one what a copy could not store at once."""
        if pending:
            await self._queries.tiles.lock_settling()
        for _ in range(ATTEMPTS):
            stored = await self._queries.tiles.lock_tiles([tile.tile_uuid for _, tile in pending])
            found = [entry for entry in pending if entry[1].tile_uuid in stored]
            pending = await self._insert_new(
                [entry for entry in pending if entry[1].tile_uuid not in stored]
            )
            # Last, because a copy waits for a row that is replaced, and an insert for a copy.
            for position, tile in found:
                await self._decide(position, tile, stored[tile.tile_uuid])
            if not pending:
                return
        for position, tile in pending:
            self.answers[position] = ContentConflictError(
                "a row with this key is stored under another id", tile_uuid=tile.tile_uuid
            )

    async def _insert_new(self, tiles: list[tuple[int, NewTile]]) -> list[tuple[int, NewTile]]:
        """Stores tiles for which there is room; gives those that another writer was faster with."""
        new = [entry for entry in tiles if self._admit(*entry, tile_bytes=0)]
        if not new:
            return []
        inserted = await self._queries.tiles.insert_tiles(self._labelled(new), self._now)
        await self._accept([entry for entry in new if entry[1].tile_uuid in inserted])
        missed = [entry for entry in new if entry[1].tile_uuid not in inserted]
        self._room.take(-sum(tile.disk_bytes for _, tile in missed))
        return missed

    def _admit(self, position: int, tile: NewTile, *, tile_bytes: int) -> bool:
        """Takes the room that a tile needs beyond what it has; answers if there is none."""
        refusal = self._room.refusal(tile.disk_bytes - tile_bytes)
        if refusal:
            self.answers[position] = refusal
            return False
        self._room.take(tile.disk_bytes - tile_bytes)
        return True

    async def _settle_too_old(self) -> None:
        """A tile that is there already is not refused for its age."""
        self.answers |= self.too_old
        late = {i: tile for i, tile in self.tiles if i in self.too_old}
        if not late:
            return
        stored = await self._queries.tiles.find_tiles([tile.tile_uuid for tile in late.values()])
        for position, tile in late.items():
            known = stored.get(tile.tile_uuid)
            if known and known.content_sha256 == tile.content_sha256:
                self.answers[position] = InsertOutcome.ALREADY_PRESENT

    async def _decide(self, position: int, tile: NewTile, stored: Tile) -> None:
        newer = tile.captured_us > stored.captured_us
        if newer and self._on_conflict is OnConflict.REPLACE_IF_NEWER:
            await self._replace(position, tile, stored)
        elif stored.content_sha256 == tile.content_sha256:
            self.answers[position] = InsertOutcome.ALREADY_PRESENT
        elif self._on_conflict is OnConflict.FAIL:
            self.answers[position] = ContentConflictError(
                f"another content is stored for {tile.zoom}/{tile.x}/{tile.y} {tile.source}",
                tile_uuid=tile.tile_uuid,
                stored_content_sha256=stored.content_sha256 or "",
                stored_captured_at=stored.captured_at.isoformat(),
            )
        else:
            self.answers[position] = InsertOutcome.KEPT_EXISTING

    async def _replace(self, position: int, tile: NewTile, stored: Tile) -> None:
        evictions = self._queries.evictions
        if await evictions.find_listed_files([tile.file_path]):
            self.answers[position] = _pending_removal(tile)
        elif self._admit(position, tile, tile_bytes=stored.disk_bytes or 0):
            await evictions.list_replaced_file(tile.tile_uuid, tile.file_path, self._now)
            await self._queries.tiles.replace_tile(tile, self.labels[position])
            self.answers[position] = InsertOutcome.REPLACED

    async def _accept(self, tiles: Sequence[tuple[int, NewTile]]) -> None:
        """Answers for tiles that were put in, and takes back those whose file is to be removed.

        Only now is it certain which files are: an eviction of the same tile ends
        before its key can be stored again.
        """
        listed = await self._queries.evictions.find_listed_files(
            tile.file_path for _, tile in tiles
        )
        async for some in self._read_priority.in_batches(tiles, _TILES_A_TURN):
            self.answers |= {
                position: _OUTCOMES.get(self.labels[position], InsertOutcome.INSERTED)
                for position, _ in some
            }
        if listed:
            await self._take_back([entry for entry in tiles if entry[1].file_path in listed])

    async def _take_back(self, tiles: Sequence[tuple[int, NewTile]]) -> None:
        await self._queries.evictions.take_back_tiles(tile.tile_uuid for _, tile in tiles)
        self._room.take(-sum(tile.disk_bytes for _, tile in tiles))
        self.answers |= {position: _pending_removal(tile) for position, tile in tiles}

    async def _labelled_in_batches(
        self, tiles: Sequence[tuple[int, NewTile]]
    ) -> AsyncIterator[list[LabelledTile]]:
        async for some in self._read_priority.in_batches(tiles, _TILES_A_TURN):
            yield self._labelled(some)

    def _labelled(self, tiles: Iterable[tuple[int, NewTile]]) -> list[LabelledTile]:
        return [(tile, self.labels[position]) for position, tile in tiles]


def _pending_removal(tile: NewTile) -> FilePendingRemovalError:
    return FilePendingRemovalError(
        f"{tile.file_path} is listed for removal: confirm that first",
        file_path=tile.file_path,
    )


def _rounds_of_distinct_keys(tiles: Sequence[NewTile]) -> Sequence[Sequence[int]]:
    """Positions in rounds: a key's second occurrence comes in the second round."""
    if len({tile.tile_uuid for tile in tiles}) == len(tiles):
        return [range(len(tiles))]
    seen: defaultdict[str, int] = defaultdict(int)
    rounds: list[list[int]] = []
    for position, tile in enumerate(tiles):
        number = seen[tile.tile_uuid]
        seen[tile.tile_uuid] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(position)
    return rounds


def _key_order(entry: tuple[int, NewTile]) -> tuple[object, ...]:
    tile = entry[1]
    return tile.zoom, tile.x, tile.y, tile.source, tile.flight_id or ""
