"""Storing tiles: one answer for each, committed before it is given."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import (
    ContentConflictError,
    FieldViolation,
    InvalidRequestError,
    TileCacheError,
    TileTooOldError,
)
from tilecache_daemon.freshness import FreshnessPolicy
from tilecache_daemon.models import FreshnessLabel, InsertOutcome, NewTile, OnConflict, Tile
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.store import LabelledTile, Queries, Store

MAX_FUTURE: Final = timedelta(days=1)
"""How far ahead of a trusted clock a capture may lie: clocks differ, and a
capture from the future would never expire."""

_ATTEMPTS: Final = 5

Answer = InsertOutcome | TileCacheError


class InsertionService:
    """Labels, stores, and settles conflicts."""

    def __init__(self, store: Store, freshness: FreshnessService, clock: Clock) -> None:
        self._store = store
        self._freshness = freshness
        self._clock = clock

    async def insert(self, tile: NewTile, on_conflict: OnConflict) -> tuple[Tile, InsertOutcome]:
        """Stores one tile; gives what is stored now. Raises what `insert_batch` answers."""
        async with self._store.transaction() as queries:
            (answer,) = await self._insert(queries, [tile], on_conflict)
            if isinstance(answer, TileCacheError):
                raise answer
            stored = await queries.find_tiles([tile.tile_uuid])
        return stored[tile.tile_uuid], answer

    async def insert_batch(self, tiles: Sequence[NewTile], on_conflict: OnConflict) -> list[Answer]:
        """Stores what can be stored, in one transaction; an answer for each, in order."""
        async with self._store.transaction() as queries:
            return await self._insert(queries, tiles, on_conflict)

    async def _insert(
        self, queries: Queries, tiles: Sequence[NewTile], on_conflict: OnConflict
    ) -> list[Answer]:
        policy = await queries.hold_policy()
        answers: dict[int, Answer] = {}
        for positions in _rounds_of_distinct_keys(tiles):
            batch = _Batch(queries, on_conflict, [(i, tiles[i]) for i in positions])
            self._label(batch, policy)
            await batch.store(self._clock)
            answers |= batch.answers
        return [answers[i] for i in range(len(tiles))]

    def _label(self, batch: "_Batch", policy: FreshnessPolicy) -> None:
        latest = self._clock.now() + MAX_FUTURE if self._clock.trusted else None
        for position, tile in batch.tiles:
            if latest and tile.captured_at > latest:
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
        self, queries: Queries, on_conflict: OnConflict, tiles: Iterable[tuple[int, NewTile]]
    ) -> None:
        self._queries = queries
        self._on_conflict = on_conflict
        # All writers take keys in the same order, so that none waits for another in a ring.
        self.tiles = sorted(tiles, key=_key_order)
        self.labels: dict[int, FreshnessLabel] = {}
        self.too_old: dict[int, TileTooOldError] = {}
        self.answers: dict[int, Answer] = {}

    async def store(self, clock: Clock) -> None:
        """Fills `answers` for every tile."""
        new = [(i, tile) for i, tile in self.tiles if i in self.labels]
        if new and await self._queries.copy_tiles(self._labelled(new), clock.now()):
            self._accept(new)
        else:
            await self._settle(new, clock)
        await self._settle_too_old()

    async def _settle(self, pending: list[tuple[int, NewTile]], clock: Clock) -> None:
        """One by one what a copy could not store at once."""
        for _ in range(_ATTEMPTS):
            stored = await self._queries.lock_tiles([tile.tile_uuid for _, tile in pending])
            for position, tile in pending:
                if tile.tile_uuid in stored:
                    await self._decide(position, tile, stored[tile.tile_uuid])
            new = [entry for entry in pending if entry[1].tile_uuid not in stored]
            if not new:
                return
            inserted = await self._queries.insert_tiles(self._labelled(new), clock.now())
            self._accept(entry for entry in new if entry[1].tile_uuid in inserted)
            pending = [entry for entry in new if entry[1].tile_uuid not in inserted]
            if not pending:
                return
        for position, tile in pending:
            self.answers[position] = ContentConflictError(
                "a row with this key is stored under another id", tile_uuid=tile.tile_uuid
            )

    async def _settle_too_old(self) -> None:
        """A tile that is there already is not refused for its age."""
        self.answers |= self.too_old
        late = {i: tile for i, tile in self.tiles if i in self.too_old}
        if not late:
            return
        stored = await self._queries.find_tiles([tile.tile_uuid for tile in late.values()])
        for position, tile in late.items():
            known = stored.get(tile.tile_uuid)
            if known and known.content_sha256 == tile.content_sha256:
                self.answers[position] = InsertOutcome.ALREADY_PRESENT

    async def _decide(self, position: int, tile: NewTile, stored: Tile) -> None:
        newer = tile.captured_at > stored.captured_at
        if newer and self._on_conflict is OnConflict.REPLACE_IF_NEWER:
            await self._queries.replace_tile(tile, self.labels[position])
            self.answers[position] = InsertOutcome.REPLACED
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

    def _labelled(self, tiles: Iterable[tuple[int, NewTile]]) -> list[LabelledTile]:
        return [LabelledTile(tile, self.labels[position].value) for position, tile in tiles]

    def _accept(self, tiles: Iterable[tuple[int, NewTile]]) -> None:
        for position, _ in tiles:
            downgraded = self.labels[position] is FreshnessLabel.DOWNGRADED
            self.answers[position] = (
                InsertOutcome.DOWNGRADED if downgraded else InsertOutcome.INSERTED
            )


def _rounds_of_distinct_keys(tiles: Sequence[NewTile]) -> list[list[int]]:
    """Positions in rounds: a key's second occurrence comes in the second round."""
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
