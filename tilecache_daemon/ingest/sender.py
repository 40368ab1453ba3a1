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
    """Undoes the unpacking of its image, if this import has unpacked it."""
    keep: Callable[[], None] = lambda: None
    """Is called instead of `discard` when its image is to stay."""


Batch = list[PreparedTile]


class RetryPolicy(NamedTuple):
    """How long to wait for a daemon that does not answer."""

    ready_timeout_s: float = 60.0
    attempts: int = 10
    """How often a batch is sent to a daemon that is ready but fails the call."""
    retry_delay_s: float = 1.0


DEFAULT_RETRY_POLICY: Final = RetryPolicy()


class BatchSender:
    """Sends batches through `BulkInsertTiles`, a bounded number of them in flight.

    After an outage of the daemon, unanswered batches are sent again. That is safe
    because inserts are idempotent.
    """

    def __init__(
        self,
        client: TileCacheClient,
        on_conflict: OnConflict.ValueType,
        stopping: Event,
        retry_policy: RetryPolicy,
    ) -> None:
        self._client = client
        self._on_conflict = on_conflict
        self._stopping = stopping
        self._retry_policy = retry_policy
        self._unanswered: deque[Batch] = deque()

    def send(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, BulkInsertTilesResponse]]:
        """Yields each batch with its answer, in order.

        Raises CallError if the daemon refuses the call, or does not answer within the
        limits of the retry policy.
        """
        self._open()
        try:
            for batch in batches:
                self._unanswered.append(batch)
                self._enqueue(batch)
                if len(self._unanswered) >= MAX_BATCHES_IN_FLIGHT:
                    yield self._next_answer()
            while self._unanswered:
                yield self._next_answer()
        finally:
            self._close()

    def _next_answer(self) -> tuple[Batch, BulkInsertTilesResponse]:
        for attempt in range(1, self._retry_policy.attempts + 1):
            try:
                answer = next(self._answers)
                return self._unanswered.popleft(), answer
            except CallError as error:
                last = attempt == self._retry_policy.attempts or self._stopping.is_set()
                if last or not is_transient(error):
                    raise
                self._resend(error)
        raise AssertionError("the last attempt returns or raises")

    def _resend(self, failure: CallError) -> None:
        self._close()
        wait_for_daemon(self._client, failure, self._stopping, self._retry_policy)
        self._open()
        for batch in self._unanswered:
            self._enqueue(batch)

    def _open(self) -> None:
        self._requests: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
        self._answers = self._client.store.BulkInsertTiles(iter(self._requests.get, None))

    def _enqueue(self, batch: Batch) -> None:
        tiles = [tile.metadata for tile in batch]
        self._requests.put(BulkInsertTilesRequest(tiles=tiles, on_conflict=self._on_conflict))

    def _close(self) -> None:
        self._requests.put(None)  # ends the thread that reads the queue
        self._answers.cancel()


def wait_for_daemon(
    client: TileCacheClient, failure: CallError, stopping: Event, policy: RetryPolicy
) -> None:
    """Returns when a call that failed may be repeated; raises the failure if that takes too
    long."""
    stopping.wait(failure.retry_after_s or policy.retry_delay_s)
    try:
        client.wait_until_ready(policy.ready_timeout_s)
    except CallError as error:
        raise failure from error


def is_transient(error: CallError) -> bool:
    """Whether repeating a call that failed may succeed."""
    return error.code is grpc.StatusCode.UNAVAILABLE or error.retry_after_s is not None
