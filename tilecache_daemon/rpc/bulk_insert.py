"""The stream of a BulkInsertTiles call: batches are read ahead and stored concurrently, and
acknowledged in order."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Final, NamedTuple

from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon import tasks
from tilecache_daemon.errors import InvalidRequestError, TileCacheError
from tilecache_daemon.models import InsertOutcome, Limits, NewTile, OnConflict
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import requests
from tilecache_daemon.rpc.new_tile import new_tiles
from tilecache_daemon.rpc.status import MAX_TEXT_BYTES, TABLE, shorten
from tilecache_daemon.service.insert_batch import InsertResult
from tilecache_daemon.service.insertion import InsertionService

_CONCURRENT_BATCHES: Final = 3
"""While PostgreSQL commits one, it stores the next, and a third is encoded and sent."""
_TILES_PER_STEP: Final = 64
"""Tiles that are validated without yielding to reads."""

_MESSAGES_BYTES: Final = 2_500_000
"""Messages of all refused tiles of a batch: a client must be able to read its acknowledgement."""

Acknowledgement = pb.BulkInsertTilesResponse


class _Batch(NamedTuple):
    """The valid tiles of a batch, and the errors of the others, by index."""

    on_conflict: OnConflict
    tiles: dict[int, NewTile]
    invalid: dict[int, InsertResult]


class BulkInsert:
    """One BulkInsertTiles call."""

    def __init__(
        self, insertion: InsertionService, read_priority: ReadPriority, limits: Limits
    ) -> None:
        self._insertion = insertion
        self._read_priority = read_priority
        self._limits = limits
        self._slots = asyncio.Semaphore(_CONCURRENT_BATCHES)
        self._unacknowledged: list[asyncio.Task[Acknowledgement]] = []
        self._queue: asyncio.Queue[asyncio.Task[Acknowledgement] | None] = asyncio.Queue()
        """The unacknowledged batches in order, and None at the end of the stream."""

    async def run(
        self, batches: AsyncIterator[pb.BulkInsertTilesRequest]
    ) -> AsyncIterator[Acknowledgement]:
        """Yields an acknowledgement for each batch, in order. Raises the error of a batch that
        fails as a whole, after the acknowledgements of the batches before it."""
        reader = asyncio.create_task(self._store_batches(batches))
        reader.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            while (task := await self._queue.get()) is not None:
                acknowledgement = await task
                self._unacknowledged.remove(task)
                yield acknowledgement
                # Backpressure: the slot is free only after the client took the acknowledgement.
                self._slots.release()
            await reader
        finally:
            for unfinished in (reader, *self._unacknowledged):
                with suppress(Exception):
                    await tasks.end(unfinished)

    async def _store_batches(self, batches: AsyncIterator[pb.BulkInsertTilesRequest]) -> None:
        index, recent_ids = 0, deque[set[str]](maxlen=_CONCURRENT_BATCHES - 1)
        async for message in batches:
            batch = await self._read(message)
            ids = {tile.tile_uuid for tile in batch.tiles.values()}
            await self._slots.acquire()
            if self._unacknowledged and not all(map(ids.isdisjoint, recent_ids)):
                # Tiles with the same id are stored in the order of the stream.
                await asyncio.wait(self._unacknowledged)
            task = asyncio.create_task(self._store(index, batch))
            self._unacknowledged.append(task)
            self._queue.put_nowait(task)
            recent_ids.append(ids)
            index += 1

    async def _read(self, message: pb.BulkInsertTilesRequest) -> _Batch:
        requests.check_count("tiles", len(message.tiles), self._limits.max_batch_tiles)
        batch = _Batch(requests.on_conflict(message.on_conflict), {}, {})
        index = 0
        async for tiles in self._read_priority.in_batches(message.tiles, _TILES_PER_STEP):
            for tile in new_tiles(tiles):
                if isinstance(tile, InvalidRequestError):
                    batch.invalid[index] = tile
                else:
                    batch.tiles[index] = tile
                index += 1
        return batch

    async def _store(self, index: int, batch: _Batch) -> Acknowledgement:
        results = batch.invalid
        if batch.tiles:
            tiles = list(batch.tiles.values())
            stored = await self._insertion.insert_batch(tiles, batch.on_conflict)
            results |= dict(zip(batch.tiles, stored, strict=True))
        return _acknowledgement(index, results)


def _acknowledgement(batch_index: int, results: Mapping[int, InsertResult]) -> Acknowledgement:
    counts = Counter(results.values())
    refused = {
        index: result for index, result in results.items() if isinstance(result, TileCacheError)
    }
    message_bytes = min(MAX_TEXT_BYTES, _MESSAGES_BYTES // max(len(refused), 1))
    refusals = [_refusal(index, error, message_bytes) for index, error in refused.items()]
    return Acknowledgement(
        batch_index=batch_index,
        refused=sorted(refusals, key=attrgetter("index")),
        **{f"{outcome.value}_count": counts[outcome] for outcome in InsertOutcome},
    )


def _refusal(index: int, error: TileCacheError, message_bytes: int) -> pb.RefusedTile:
    field = ""
    if isinstance(error, InvalidRequestError):
        error = error.within(f"tiles[{index}]")
        field = error.violations[0].field
    return pb.RefusedTile(
        index=index,
        code=TABLE[type(error)].code,
        reason=error.reason,
        field=field,
        message=shorten(str(error), message_bytes),
    )
