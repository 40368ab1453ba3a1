"""Storing a batch of tiles, and resolving its conflicts with stored tiles.

`InsertBatch.store` first tries a COPY, which stores all new tiles in one statement. It
stores none of them if one of the keys is stored already, or if they do not fit under the
ceiling together. Then the tiles are stored one by one, by one writer at a time:

1. Lock the stored tiles that have a key of the batch.
2. Insert the other tiles. Those that a concurrent writer has inserted since step 1 go
   through all steps again, up to ATTEMPTS times in all.
3. Resolve each conflict between a new tile and a stored one (`resolve_conflict`):

   | stored content | new capture | FAIL            | KEEP_EXISTING   | REPLACE_IF_NEWER |
   | -------------- | ----------- | --------------- | --------------- | ---------------- |
   | same           | not later   | ALREADY_PRESENT | ALREADY_PRESENT | ALREADY_PRESENT  |
   | same           | later       | ALREADY_PRESENT | ALREADY_PRESENT | REPLACED (1)     |
   | different      | not later   | error           | KEPT_EXISTING   | KEPT_EXISTING    |
   | different      | later       | error           | KEPT_EXISTING   | REPLACED (2)     |

   (1) It stays uploaded. (2) It waits for upload again, unless the new tile was uploaded.

   CONVERGE is as REPLACE_IF_NEWER, but of two contents with the same capture time the one with
   the larger hash is later. So the order in which two stores exchange tiles does not matter.

A replacement lists the file of the stored tile for removal, which takes a lock that excludes
other writers. A transaction that finds that it needs this lock starts again with it: taking
it later could deadlock with another one that does so.

A tile that its sector's rule rejects is refused, unless the same content is stored
already (ALREADY_PRESENT). A tile is not inserted, and replaces none, if its file is
listed for removal or if it does not fit under the ceiling.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Final

from tilecache_daemon.errors import (
    ContentConflictError,
    FilePendingRemovalError,
    TileCacheError,
    TileTooOldError,
)
from tilecache_daemon.models import FreshnessLabel, InsertOutcome, NewTile, OnConflict, Tile
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.service.retries import ATTEMPTS
from tilecache_daemon.service.storage import Budget
from tilecache_daemon.store.binary_copy import LabelledTile
from tilecache_daemon.store.store import Queries

BATCH_TILES: Final = 256
"""Tiles that are processed without yielding to reads."""

_OUTCOMES: Final = {FreshnessLabel.DOWNGRADED: InsertOutcome.DOWNGRADED}
"""Outcomes of new tiles by label; INSERTED for the others."""

InsertResult = InsertOutcome | TileCacheError
IndexedTile = tuple[int, NewTile]
"""A tile and its index in the request."""


class ReplacementLockRequiredError(Exception):
    """A stored tile is to be replaced, and the transaction has no lock to list its file."""


class InsertBatch:
    """Tiles with distinct keys, stored in one transaction. For each tile the caller sets a
    label, a `too_old` error or a result; `store` sets the missing results."""

    def __init__(
        self,
        queries: Queries,
        on_conflict: OnConflict,
        budget: Budget,
        now: datetime,
        read_priority: ReadPriority,
        tiles: Iterable[IndexedTile],
        *,
        may_replace: bool,
    ) -> None:
        """`may_replace` says that the transaction has locked the list of files."""
        self._queries = queries
        self._on_conflict = on_conflict
        self._budget = budget
        self._now = now
        self._read_priority = read_priority
        self._may_replace = may_replace
        self._listed_files: set[str] = set()
        # All writers lock keys in the same order, so that they cannot deadlock.
        self.tiles = sorted(tiles, key=_key_order)
        self.labels: dict[int, FreshnessLabel] = {}
        self.too_old: dict[int, TileTooOldError] = {}
        self.results: dict[int, InsertResult] = {}
        self.replaced: list[Tile] = []
        """Tiles as they were before their replacement. Their files are listed at the end of the
        transaction, since a later tile of the request may name one of them."""

    async def store(self) -> None:
        """Stores the labelled tiles, and sets a result for every tile. Raises
        ReplacementLockRequiredError."""
        new = [entry for entry in self.tiles if entry[0] in self.labels]
        self._listed_files = await self._queries.evictions.find_listed_files(
            tile.file_path for _, tile in new
        )
        if not await self._copy(new):
            await self._store_one_by_one(new)
        await self._refuse_too_old()

    async def _copy(self, new: list[IndexedTile]) -> bool:
        """Stores all tiles at once; False, with none stored, where one of them cannot be."""
        size = sum(tile.disk_bytes for _, tile in new)
        if self._may_replace or self._listed_files or not new or not self._budget.fits(size):
            return False
        if not await self._queries.tiles.copy_tiles(self._labelled_in_batches(new), self._now):
            return False
        self._budget.reserve(size)
        async for batch in self._read_priority.in_batches(new, BATCH_TILES):
            self._note_inserted(batch)
        return True

    async def _store_one_by_one(self, pending: list[IndexedTile]) -> None:
        if pending:
            await self._queries.tiles.lock_conflict_resolution()
        for _ in range(ATTEMPTS):
            stored = await self._queries.tiles.lock_tiles([tile.tile_uuid for _, tile in pending])
            conflicts = [entry for entry in pending if entry[1].tile_uuid in stored]
            pending = await self._insert_new(
                [entry for entry in pending if entry[1].tile_uuid not in stored]
            )
            # After the inserts: a concurrent COPY waits for replaced rows, and the inserts wait
            # for the COPY.
            for index, tile in conflicts:
                await self._resolve(index, tile, stored[tile.tile_uuid])
            if not pending:
                return
        for index, tile in pending:
            self.results[index] = ContentConflictError(
                "the key is stored under a different tile_uuid", tile_uuid=tile.tile_uuid
            )

    async def _insert_new(self, tiles: list[IndexedTile]) -> list[IndexedTile]:
        """Inserts the tiles that fit; returns those that a concurrent writer inserted first."""
        new = [
            entry
            for entry in tiles
            if self._may_name_file(*entry) and self._reserve(*entry, stored_bytes=0)
        ]
        if not new:
            return []
        inserted = await self._queries.tiles.insert_tiles(self._labelled(new), self._now)
        self._note_inserted(entry for entry in new if entry[1].tile_uuid in inserted)
        missed = [entry for entry in new if entry[1].tile_uuid not in inserted]
        self._budget.reserve(-sum(tile.disk_bytes for _, tile in missed))
        return missed

    async def _resolve(self, index: int, tile: NewTile, stored: Tile) -> None:
        result = resolve_conflict(tile, stored, self._on_conflict)
        if result is InsertOutcome.REPLACED:
            await self._replace(index, tile, stored)
        else:
            self.results[index] = result

    async def _replace(self, index: int, tile: NewTile, stored: Tile) -> None:
        if not self._may_replace:
            raise ReplacementLockRequiredError
        if self._may_name_file(index, tile) and self._reserve(
            index, tile, stored_bytes=stored.disk_bytes or 0
        ):
            await self._queries.tiles.replace_tile(tile, self.labels[index])
            self.replaced.append(stored)
            self.results[index] = InsertOutcome.REPLACED

    def _may_name_file(self, index: int, tile: NewTile) -> bool:
        """False, with the error as its result, for a tile whose file is listed for removal."""
        if tile.file_path not in self._listed_files:
            return True
        self.results[index] = FilePendingRemovalError(
            f"file {tile.file_path} is listed for removal: confirm its removal first, "
            "or use another path",
            file_path=tile.file_path,
        )
        return False

    def _reserve(self, index: int, tile: NewTile, *, stored_bytes: int) -> bool:
        """Reserves the bytes by which a tile exceeds its stored version; False, with the error
        as its result, if they do not fit."""
        refusal = self._budget.refusal(tile.disk_bytes - stored_bytes)
        if refusal:
            self.results[index] = refusal
            return False
        self._budget.reserve(tile.disk_bytes - stored_bytes)
        return True

    def _note_inserted(self, tiles: Iterable[IndexedTile]) -> None:
        self.results |= {
            index: _OUTCOMES.get(self.labels[index], InsertOutcome.INSERTED) for index, _ in tiles
        }

    async def _refuse_too_old(self) -> None:
        self.results |= self.too_old
        too_old = {index: tile for index, tile in self.tiles if index in self.too_old}
        if not too_old:
            return
        stored = await self._queries.tiles.find_tiles([tile.tile_uuid for tile in too_old.values()])
        for index, tile in too_old.items():
            existing = stored.get(tile.tile_uuid)
            if existing and existing.content_sha256 == tile.content_sha256:
                self.results[index] = InsertOutcome.ALREADY_PRESENT

    async def _labelled_in_batches(
        self, tiles: Sequence[IndexedTile]
    ) -> AsyncIterator[list[LabelledTile]]:
        async for batch in self._read_priority.in_batches(tiles, BATCH_TILES):
            yield self._labelled(batch)

    def _labelled(self, tiles: Iterable[IndexedTile]) -> list[LabelledTile]:
        return [(tile, self.labels[index]) for index, tile in tiles]


def resolve_conflict(tile: NewTile, stored: Tile, on_conflict: OnConflict) -> InsertResult:
    """The result for a tile whose key is stored already; see the table of the module."""
    if on_conflict is OnConflict.REPLACE_IF_NEWER and tile.captured_us > stored.captured_us:
        return InsertOutcome.REPLACED
    if on_conflict is OnConflict.CONVERGE and _order(tile) > _order(stored):
        return InsertOutcome.REPLACED
    if stored.content_sha256 == tile.content_sha256:
        return InsertOutcome.ALREADY_PRESENT
    if on_conflict is not OnConflict.FAIL:
        return InsertOutcome.KEPT_EXISTING
    return ContentConflictError(
        f"different content is stored for {tile.zoom}/{tile.x}/{tile.y} {tile.source}",
        tile_uuid=tile.tile_uuid,
        stored_content_sha256=stored.content_sha256 or "",
        stored_captured_at=stored.captured_at.isoformat(),
    )


def _order(tile: NewTile | Tile) -> tuple[int, str]:
    """Which of two tiles with the same key stays, wherever they meet: the larger one."""
    return tile.captured_us, tile.content_sha256 or ""


def _key_order(entry: IndexedTile) -> tuple[object, ...]:
    tile = entry[1]
    return tile.zoom, tile.x, tile.y, tile.source, tile.flight_id or ""
