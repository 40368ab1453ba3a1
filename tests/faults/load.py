"""A load of readers and writers that runs during faults, and checks every answer."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import psycopg
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.faults.ledger import Ledger, WrongAnswerError
from tests.tiles import ZOOM, cell_region, tile_key
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    BulkInsertTilesRequest,
    GetServerInfoRequest,
    InsertTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
    Region,
    TileMetadata,
    TileRef,
    TouchTilesRequest,
    WatchedArea,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub
from tilecache.window import Window

COLUMNS, ROWS = 24, 40
FIRST_X = 50_000
CALM_X = 60_000
"""The first column of cells that are written before the load begins, and then only read."""
CALL_TIMEOUT_S = 30.0
"""No call may take this long, whatever fails."""
_PAUSE_S = 0.02
_CONTENTS = "SELECT tile_uuid::text, content_sha256 FROM tiles WHERE tile_uuid = ANY(%s::uuid[])"
_RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}

_FRESH_S = 5.0

T = TypeVar("T")


class _OldReplicaError(Exception):
    """The replica is right, but not up to date."""


def open_channel(socket_path: Path, *options: tuple[str, int]) -> grpc.Channel:
    """A channel without retries, which reconnects quickly."""
    return grpc.insecure_channel(
        f"unix:{socket_path}",
        options=[
            ("grpc.default_authority", "localhost"),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            ("grpc.use_local_subchannel_pool", 1),
            *options,
        ],
    )


class Caller:
    """One kind of call, repeated."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name = name
        self.call = call
        self.began_s = 0.0
        """When the last successful call began."""
        self.turn = threading.Lock()
        """Held during a call."""
        self.successes = 0
        self.refusals: Counter[str] = Counter()


class Load:
    """Callers of one daemon, which run until the block ends.

    `navigate` reads tiles that are not written meanwhile, as an aircraft does. Broken
    guarantees are collected in `wrong`; the end of the block raises if there are any.
    """

    def __init__(self, socket_path: Path, first_y: int = 50_000, expected: str = "") -> None:
        """Two loads on one database must be ROWS rows apart. `expected` is an additional error
        that is allowed, by code and reason."""
        self._first_y = first_y
        self._expected = expected
        self._channel = open_channel(socket_path)
        self._stub = TileMetadataStoreStub(self._channel)
        self._random = random.Random(20_261_123)
        keys = [
            tile_key(ZOOM, FIRST_X + column, self._first_y + row)
            for row in range(ROWS)
            for column in range(COLUMNS)
        ]
        self.ledger = Ledger(keys)
        self._client = TileCacheClient(socket_path)
        self._replica = self._client.replica()
        self._calm = Ledger(
            tile_key(ZOOM, CALM_X + column, self._first_y + row)
            for column in range(10)
            for row in range(10)
        )
        self._bulk_uuids, self._single_uuids = self._shares(keys)
        self._callers = [
            Caller("bulk", self._bulk_insert),
            Caller("insert", self._insert),
            Caller("lookup", self._lookup),
            Caller("lookup", self._lookup),
            Caller("query", self._query),
            Caller("touch", self._touch),
            Caller("navigate", self._navigate),
            Caller("replica", self._read_replica),
        ]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(caller,), name=caller.name, daemon=True)
            for caller in self._callers
        ]
        self.degraded_count = 0
        """Answers from the cache that were marked as degraded."""
        self.wrong: list[str] = []

    def __enter__(self) -> "Load":
        self._write_calm()
        eventually(self._cache_answers)
        self._replica.follow_areas([WatchedArea(zoom=ZOOM, region=self._region)])
        self._replica.wait_until_synced(CALL_TIMEOUT_S)
        for thread in self._threads:
            thread.start()
        self.wait_until_all_succeed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._channel.close()
        self._replica.close()
        self._client.close()
        if error is None:
            self.check()
        else:
            error.args = (*error.args, f"wrong: {self.wrong[:3]}", self.describe())

    def stop(self) -> None:
        """Stops the callers after their current calls. Idempotent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(CALL_TIMEOUT_S * 2)
            assert not thread.is_alive(), f"a {thread.name} never ended"

    def check(self) -> None:
        """Raises if guarantees were broken so far."""
        assert not self.wrong, f"{len(self.wrong)} wrong answers: {self.wrong[:5]}"

    def describe(self) -> str:
        """The results of the callers as text."""
        return "; ".join(
            f"{caller.name}: {caller.successes} answered, refused {dict(caller.refusals)}"
            for caller in self._callers
        )

    def refused(self, name: str) -> Counter[str]:
        """How often a kind of call has failed so far, by code and reason."""
        return sum((c.refusals for c in self._callers if c.name == name), Counter())

    def wait_until_all_succeed(self) -> None:
        """Waits until a call of every kind that began after now has succeeded."""
        self._wait_for([caller.name for caller in self._callers])

    def wait_until_refused(self, *names: str) -> None:
        """Waits until each of these kinds of call has failed again."""
        before = {name: self.refused(name).total() for name in names}
        eventually(lambda: all(self.refused(name).total() > before[name] for name in names))

    def wait_until_degraded(self, count: int = 10) -> None:
        """Waits for `count` more degraded answers."""
        before = self.degraded_count
        eventually(lambda: self.degraded_count >= before + count)

    def count(self, name: str) -> int:
        """How many calls of a kind have succeeded."""
        return sum(caller.successes for caller in self._callers if caller.name == name)

    def run_for(self, seconds: float) -> None:
        """Lets the callers run for a while."""
        self._stopping.wait(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No call is under way within the block."""
        with ExitStack() as turns:
            for caller in self._callers:
                turns.enter_context(caller.turn)
            yield

    def verify(self, dsn: str) -> None:
        """Checks that all acknowledged tiles are stored, and are read by id and by region."""
        self.stop()
        self.check()
        least = self.ledger.acknowledged()
        assert least, "nothing was acknowledged"
        calm = {tile.tile_uuid: tile.content_sha256 for tile in self._read_calm()[0]}
        uuids = [*self.ledger.uuids, *self._calm.uuids]
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(_CONTENTS, [uuids]).fetchall()
        stored: dict[str, str] = dict(rows)
        answers = {
            "by id": {tile.tile_uuid: tile for tile in self._read_by_id(self.ledger.uuids)[0]},
            "by region": {tile.tile_uuid: tile for tile in self._read_region(0, COLUMNS - 1)[0]},
        }
        for found in answers.values():
            for uuid in self.ledger.uuids:
                self.ledger.check(uuid, found.get(uuid), least.get(uuid, 0))
            assert {uuid: tile.content_sha256 for uuid, tile in found.items()} | calm == stored
        written = {uuid: content for uuid, content in stored.items() if uuid not in calm}
        eventually(
            lambda: {tile.tile_uuid: tile.content_sha256 for tile in self._held()} == written
        )

    def _wait_for(self, names: Iterable[str]) -> None:
        now = time.monotonic()
        waiting = [caller for caller in self._callers if caller.name in set(names)]
        eventually(lambda: all(caller.began_s > now for caller in waiting) or self.check())

    def _work(self, caller: Caller) -> None:
        while not self._stopping.wait(_PAUSE_S):
            try:
                with caller.turn:
                    began = time.monotonic()
                    caller.call()
            except grpc.RpcError as error:
                self._note_refusal(caller, error)
            except _OldReplicaError:
                caller.refusals["out of date"] += 1
            except WrongAnswerError as error:
                self.wrong.append(f"{caller.name}: {error}")
            except Exception as error:  # an error of the test itself
                self.wrong.append(f"{caller.name}: {error!r}")
                raise
            else:
                caller.began_s = began
                caller.successes += 1

    def _note_refusal(self, caller: Caller, error: Any) -> None:
        reason, retry = status_details(error)
        refusal = f"{error.code().name} {reason}"
        caller.refusals[refusal] += 1
        if refusal == self._expected:
            return
        text = f"{caller.name}: {error.code()} {error.details()}"
        if error.code() not in _RETRYABLE:
            self.wrong.append(f"an unexpected status: {text}")
        if reason and not retry:
            self.wrong.append(f"no retry delay: {text}")

    def _bulk_insert(self) -> None:
        batches = [self.ledger.next_versions(self._some(self._bulk_uuids, 20)) for _ in range(3)]
        requests = (
            BulkInsertTilesRequest(tiles=batch, on_conflict=ON_CONFLICT_REPLACE_IF_NEWER)
            for batch in batches
        )
        answers = self._stub.BulkInsertTiles(requests, timeout=CALL_TIMEOUT_S)
        for batch, answer in zip(batches, answers, strict=True):
            # A tile may be in two batches, whose order is that of its versions.
            done = answer.inserted_count + answer.replaced_count
            if answer.refused or done != len(batch):
                raise WrongAnswerError(f"a batch was answered with {answer}")
            self.ledger.acknowledge(batch)

    def _insert(self) -> None:
        (message,) = self.ledger.next_versions(self._some(self._single_uuids, 1))
        request = InsertTileRequest(tile=message, on_conflict=ON_CONFLICT_REPLACE_IF_NEWER)
        answer = self._stub.InsertTile(request, timeout=CALL_TIMEOUT_S)
        if answer.tile.content_sha256 != message.content_sha256:
            raise WrongAnswerError(f"{message} was answered with {answer}")
        self.ledger.acknowledge([message])

    def _lookup(self) -> None:
        uuids = self._some(self.ledger.uuids, 20)
        least = self.ledger.acknowledged()
        found, degraded = self._read_by_id(uuids)
        by_uuid = {tile.tile_uuid: tile for tile in found}
        for uuid in uuids:
            self.ledger.check(uuid, by_uuid.get(uuid), 0 if degraded else least.get(uuid, 0))

    def _query(self) -> None:
        first = self._random.randrange(COLUMNS)
        last = self._random.randrange(first, COLUMNS)
        least = self.ledger.acknowledged()
        found, degraded = self._read_region(first, last)
        by_uuid = {tile.tile_uuid: tile for tile in found}
        if len(by_uuid) != len(found):
            raise WrongAnswerError("a query returned a tile twice")
        within = set(self.ledger.within(self.ledger.uuids, FIRST_X + first, FIRST_X + last))
        if not by_uuid.keys() <= within:
            raise WrongAnswerError("a query returned tiles outside its region")
        for uuid in within:
            self.ledger.check(uuid, by_uuid.get(uuid), 0 if degraded else least.get(uuid, 0))

    def _read_replica(self) -> None:
        """What is read is no older than the replica says, and it is up to date without faults."""
        began_at = time.monotonic()
        window = self._held()
        if not window.complete:
            raise WrongAnswerError("the replica does not hold what it follows")
        by_uuid = {tile.tile_uuid: tile for tile in window}
        least = self.ledger.acknowledged_until(began_at - window.age_s)
        for uuid in self.ledger.uuids:
            self.ledger.check(uuid, by_uuid.get(uuid), least.get(uuid, 0))
        if window.age_s > _FRESH_S or window.degraded:
            raise _OldReplicaError

    @property
    def _region(self) -> Region:
        return cell_region(FIRST_X, FIRST_X + COLUMNS - 1, self._first_y, self._first_y + ROWS - 1)

    def _held(self) -> Window[TileMetadata]:
        cells = self._region.cell_range
        return self._replica.cells(ZOOM, cells.x_from, cells.x_to, cells.y_from, cells.y_to)

    def _touch(self) -> None:
        uuids = self._some(self.ledger.uuids, 20)
        least = self.ledger.acknowledged()
        request = TouchTilesRequest(tiles=[TileRef(tile_uuid=uuid) for uuid in uuids])
        answer = self._stub.TouchTiles(request, timeout=CALL_TIMEOUT_S)
        for uuid, recorded in zip(uuids, answer.recorded, strict=True):
            if uuid in least and not recorded:
                raise WrongAnswerError(f"the access of {uuid} was not recorded")

    def _write_calm(self) -> None:
        tiles = self._calm.next_versions(self._calm.uuids)
        requests = iter([BulkInsertTilesRequest(tiles=tiles)])
        (answer,) = self._stub.BulkInsertTiles(
            requests, timeout=CALL_TIMEOUT_S, wait_for_ready=True
        )
        assert answer.inserted_count == len(tiles), answer
        self._calm.acknowledge(tiles)

    def _cache_answers(self) -> bool:
        """Whether the tiles that `navigate` reads are cached; reading them caches them soon."""
        misses = self._stub.GetServerInfo(GetServerInfoRequest()).cache.misses
        found, _ = self._read_calm()
        self._read_by_id([tile.tile_uuid for tile in found])
        return self._stub.GetServerInfo(GetServerInfoRequest()).cache.misses == misses

    def _navigate(self) -> None:
        least = self._calm.acknowledged()
        in_box, _ = self._read_calm()
        by_id, _ = self._read_by_id(self._some(self._calm.uuids, 20))
        if len(by_id) != 20 or len(in_box) != len(least):
            raise WrongAnswerError(
                f"{len(by_id)} of 20 by id, {len(in_box)} of {len(least)} in a box"
            )
        for message in (*in_box, *by_id):
            self._calm.check(message.tile_uuid, message, least[message.tile_uuid])

    def _read_calm(self) -> tuple[list[TileMetadata], bool]:
        return self._read_cells(CALM_X, CALM_X + 9)

    def _read_by_id(self, uuids: list[str]) -> tuple[list[TileMetadata], bool]:
        request = LookupTilesRequest(tiles=[TileRef(tile_uuid=uuid) for uuid in uuids])
        answer, call = self._stub.LookupTiles.with_call(request, timeout=CALL_TIMEOUT_S)
        found = [result.tile for result in answer.results if result.HasField("tile")]
        if len(answer.results) != len(uuids):
            raise WrongAnswerError(f"{len(answer.results)} results for {len(uuids)} ids")
        return found, self._is_degraded(call)

    def _read_region(self, first: int, last: int) -> tuple[list[TileMetadata], bool]:
        return self._read_cells(FIRST_X + first, FIRST_X + last)

    def _read_cells(self, x_from: int, x_to: int) -> tuple[list[TileMetadata], bool]:
        region = cell_region(x_from, x_to, self._first_y, self._first_y + ROWS - 1)
        call: Any = self._stub.QueryTiles(
            QueryTilesRequest(zoom=ZOOM, region=region), timeout=CALL_TIMEOUT_S
        )
        found = [tile for answer in call for tile in answer.tiles]
        return found, self._is_degraded(call)

    def _is_degraded(self, call: Any) -> bool:
        degraded = ("tilecache-degraded", "1") in tuple(call.trailing_metadata() or ())
        self.degraded_count += degraded
        return degraded

    def _some(self, uuids: list[str], count: int) -> list[str]:
        return self._random.sample(uuids, count)

    def _shares(self, keys: list[TileKey]) -> tuple[list[str], list[str]]:
        uuids = self.ledger.uuids
        assert len(uuids) == len(keys)
        return uuids[: len(uuids) * 3 // 4], uuids[len(uuids) * 3 // 4 :]


def status_details(call: Any) -> tuple[str, bool]:
    """The reason, empty if the daemon did not answer, and whether there is a retry delay."""
    status = rpc_status.from_call(call)
    reason, retry = "", False
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
        retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return reason, retry
