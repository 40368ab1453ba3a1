"""Sending batches of tiles to the daemon."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Event
from typing import Final, NamedTuple

import grpc

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    BulkInsertTilesResponse,
    OnConflict,
    TileMetadata,
)

MAX_BATCHES_IN_FLIGHT: Final = 4


class PreparedTile(NamedTuple):
    """A tile that is ready to be sent."""

    file: str
    metadata: TileMetadata
    discard: Callable[[], None] | None = None
    """Takes back what was done for it, should it be refused."""


Batch = list[PreparedTile]


class Patience(NamedTuple):
    """How long a daemon that does not answer is waited for."""

    ready_timeout_s: float = 60.0
    attempts: int = 10
    """How often a batch is sent again to a daemon that is ready and fails it."""
    retry_delay_s: float = 1.0


DEFAULT_PATIENCE: Final = Patience()


class BatchSender:
    """Sends batches through `BulkInsertTiles`, a bounded number of them unanswered.

    When the daemon goes away, what it has not answered is sent again once it is
    back: inserting the same tile twice is inserting it once.
    """

    def __init__(
        self,
        client: TileCacheClient,
        on_conflict: OnConflict.ValueType,
        stopping: Event,
        patience: Patience,
    ) -> None:
        self._client = client
        self._on_conflict = on_conflict
        self._stopping = stopping
        self._patience = patience
        self._unanswered: deque[Batch] = deque()

    def send(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, BulkInsertTilesResponse]]:
        """Each batch with its answer, in order. Raises CallError when the daemon
        refuses the call, or stays away for longer than the patience lasts."""
        self._open()
        try:
            for batch in batches:
                self._unanswered.append(batch)
                self._put(batch)
                if len(self._unanswered) >= MAX_BATCHES_IN_FLIGHT:
                    yield self._take_answer()
            while self._unanswered:
                yield self._take_answer()
        finally:
            self._close()

    def _take_answer(self) -> tuple[Batch, BulkInsertTilesResponse]:
        for attempt in range(1, self._patience.attempts + 1):
            try:
                answer = next(self._answers)
                return self._unanswered.popleft(), answer
            except CallError as error:
                last = attempt == self._patience.attempts or self._stopping.is_set()
                if last or not _may_pass(error):
                    raise
                self._resend(error)
        raise AssertionError("the last attempt returns or raises")

    def _resend(self, failure: CallError) -> None:
        self._close()
        self._stopping.wait(failure.retry_after_s or self._patience.retry_delay_s)
        try:
            self._client.wait_until_ready(self._patience.ready_timeout_s)
        except CallError as error:
            raise failure from error
        self._open()
        for batch in self._unanswered:
            self._put(batch)

    def _open(self) -> None:
        self._requests: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
        self._answers = self._client.store.BulkInsertTiles(iter(self._requests.get, None))

    def _put(self, batch: Batch) -> None:
        tiles = [tile.metadata for tile in batch]
        self._requests.put(BulkInsertTilesRequest(tiles=tiles, on_conflict=self._on_conflict))

    def _close(self) -> None:
        self._requests.put(None)  # ends the thread that reads them
        self._answers.cancel()


def _may_pass(error: CallError) -> bool:
    return error.code is grpc.StatusCode.UNAVAILABLE or error.retry_after_s is not None
