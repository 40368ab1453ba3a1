"""A stream of BulkInsertTiles: batches are read ahead, a few are stored at once, and each is
answered in its turn."""

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
from tilecache_daemon.rpc.status import TABLE
from tilecache_daemon.service.insertion import Answer, InsertionService

_BATCHES_AT_ONCE: Final = 3
"""One is committed while PostgreSQL takes in the next, and another is on its way there."""
_TILES_A_TURN: Final = 64

Acknowledgement = pb.BulkInsertTilesResponse


class _Batch(NamedTuple):
    """The sound tiles of a batch and the refusals of the others, by position."""

    on_conflict: OnConflict
    tiles: dict[int, NewTile]
    refused: dict[int, Answer]


class BulkInsert:
    """One stream."""

    def __init__(
        self, insertion: InsertionService, read_priority: ReadPriority, limits: Limits
    ) -> None:
        self._insertion = insertion
        self._read_priority = read_priority
        self._limits = limits
        self._places = asyncio.Semaphore(_BATCHES_AT_ONCE)
        self._unanswered: list[asyncio.Task[Acknowledgement]] = []
        self._stored: asyncio.Queue[asyncio.Task[Acknowledgement] | None] = asyncio.Queue()
        """The same in order, and None at the stream's end."""

    async def run(
        self, batches: AsyncIterator[pb.BulkInsertTilesRequest]
    ) -> AsyncIterator[Acknowledgement]:
        """An acknowledgement for each batch, in order. A batch that cannot be answered
        ends the stream, after those before it were."""
        reader = asyncio.create_task(self._store_batches(batches))
        reader.add_done_callback(lambda _: self._stored.put_nowait(None))
        try:
            while (task := await self._stored.get()) is not None:
                acknowledgement = await task
                self._unanswered.remove(task)
                yield acknowledgement
                # Only now: a client that reads no answer gets no more work done.
                self._places.release()
            await reader
        finally:
            for unfinished in (reader, *self._unanswered):
                with suppress(Exception):
                    await tasks.end(unfinished)

    async def _store_batches(self, batches: AsyncIterator[pb.BulkInsertTilesRequest]) -> None:
        index, ids_before = 0, deque[set[str]](maxlen=_BATCHES_AT_ONCE - 1)
        async for message in batches:
            batch = await self._read(message)
            ids = {tile.tile_uuid for tile in batch.tiles.values()}
            await self._places.acquire()
            if self._unanswered and not all(map(ids.isdisjoint, ids_before)):
                # Of two tiles with one id the first goes first.
                await asyncio.wait(self._unanswered)
            task = asyncio.create_task(self._store(index, batch))
            self._unanswered.append(task)
            self._stored.put_nowait(task)
            ids_before.append(ids)
            index += 1

    async def _read(self, message: pb.BulkInsertTilesRequest) -> _Batch:
        requests.check_count("tiles", len(message.tiles), self._limits.max_batch_tiles)
        batch = _Batch(requests.on_conflict(message.on_conflict), {}, {})
        index = 0
        async for some in self._read_priority.in_batches(message.tiles, _TILES_A_TURN):
            for tile in new_tiles(some):
                if isinstance(tile, InvalidRequestError):
                    batch.refused[index] = tile
                else:
                    batch.tiles[index] = tile
                index += 1
        return batch

    async def _store(self, index: int, batch: _Batch) -> Acknowledgement:
        answers = batch.refused
        if batch.tiles:
            tiles = list(batch.tiles.values())
            stored = await self._insertion.insert_batch(tiles, batch.on_conflict)
            answers |= dict(zip(batch.tiles, stored, strict=True))
        return _acknowledgement(index, answers)


def _acknowledgement(batch_index: int, answers: Mapping[int, Answer]) -> pb.BulkInsertTilesResponse:
    counts = Counter(answers.values())
    refusals = [
        _refusal(index, answer)
        for index, answer in answers.items()
        if isinstance(answer, TileCacheError)
    ]
    return pb.BulkInsertTilesResponse(
        batch_index=batch_index,
        refused=sorted(refusals, key=attrgetter("index")),
        **{f"{outcome.value}_count": counts[outcome] for outcome in InsertOutcome},
    )


def _refusal(index: int, error: TileCacheError) -> pb.RefusedTile:
    field = ""
    if isinstance(error, InvalidRequestError):
        error = error.within(f"tiles[{index}]")
        field = error.violations[0].field
    return pb.RefusedTile(
        index=index,
        code=TABLE[type(error)].code,
        reason=error.reason,
        field=field,
        message=str(error),
    )
