"""A replica: the tiles around the caller in its own memory, which the daemon keeps up to date.

    with TileCacheClient() as client, client.replica() as tiles:
        tiles.follow(latitude, longitude, radius_meters=3_000, zooms=(15, 17, 18))
        tiles.wait_until_synced(timeout_s=2)
        near = tiles.around(latitude, longitude, radius_meters=300, zoom=18)

A read takes microseconds, never waits and asks nobody. It says whether all its cells are held
(`complete`) and how old they may be (`age_s`). While the daemon is away, reads go on, and the
age grows.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from time import monotonic
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Collection,
    Final,
    FrozenSet,
    Iterable,
    NamedTuple,
    Sequence,
)
from uuid import UUID

import grpc

from tilecache.errors import CallError, FieldViolation
from tilecache.following import FollowedCircle, blocks_of_areas, circle_to_follow
from tilecache.identity import derive_tile_id
from tilecache.mercator import (
    BlockKey,
    BoundingBox,
    CellRectangle,
    block_of,
    cells_in_box,
    cells_in_circle,
)
from tilecache.replica_state import Block, ReplicaState, Request, place_of
from tilecache.uses import UseRecorder
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    FRESHNESS_LABEL_REJECTED,
    FRESHNESS_LABEL_STALE_REJECT,
    FRESHNESS_LABEL_STALE_WARN,
    BlockUpdate,
    GetServerInfoRequest,
    HeldBlock,
    Limits,
    TileMetadata,
    WatchedArea,
    WatchTilesRequest,
    WatchTilesResponse,
)
from tilecache.window import Window, flatten, tiles_by_cell

if TYPE_CHECKING:
    from tilecache.client import TileCacheClient

MAX_TILES: Final = 200_000
TILE_MEMORY_BYTES: Final = 900
"""Of a held tile, with its places in the indexes. Measured as resident memory."""
FIRST_RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 1.0
SILENCE_S: Final = 3.0
"""The daemon sends a heartbeat each second. Without one for so long, the replica is degraded."""
_INFO_TIMEOUT_S: Final = 5.0
_FULL: Final = "REPLICA_FULL"
_FINAL_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
"""Refusals that cannot heal."""

_LABELS: Final = (
    *(FRESHNESS_LABEL_FRESH, FRESHNESS_LABEL_DOWNGRADED, FRESHNESS_LABEL_STALE_WARN),
    *(FRESHNESS_LABEL_STALE_REJECT, FRESHNESS_LABEL_REJECTED),
)
"""From best to worst."""
_RANKS: Final = {label: rank for rank, label in enumerate(_LABELS)}
_USABLE: Final = frozenset(_LABELS[:3])

Listener = Callable[[FrozenSet[BlockKey]], None]

log: Final = logging.getLogger(__name__)


class NotHeldError(LookupError):
    """The replica does not hold what was asked for, so it does not know whether it exists."""


class ReplicaStatus(NamedTuple):
    """What a replica holds."""

    blocks: int
    tiles: int
    memory_bytes: int
    """About, from the measured memory of a tile."""


class TileReplica:
    """The tiles of the followed area, in memory.

    Usable from many threads and from asyncio: reads never wait. A refusal that cannot heal
    (too large an area, a daemon without `WatchTiles`) ends the replica: from then on it is
    raised by `follow`, `wait_until_synced` and every read. Close it, or use `with`.
    """

    def __init__(self, client: TileCacheClient, *, max_tiles: int = MAX_TILES) -> None:
        """More than `max_tiles` in the followed area end the replica with RESOURCE_EXHAUSTED."""
        self._client = client
        self._max_tiles = max_tiles
        self._state: ReplicaState[TileMetadata] = ReplicaState(_Traits())
        self._uses = UseRecorder(client.store)
        self._circle: FollowedCircle | None = None
        self._areas: list[WatchedArea] = []
        self._limits: Limits | None = None
        self._failure: CallError | None = None
        self._listeners: list[Listener] = []
        self._heard_at = -math.inf
        # Guards the state against changes; reads do without.
        self._changed = threading.Condition()
        self._requests: queue.SimpleQueue[WatchTilesRequest | None] | None = None
        self._stream: Any = None
        self._closing = threading.Event()
        self._delay_s = FIRST_RETRY_S
        self._thread = threading.Thread(target=self._run, name="tilecache-replica", daemon=True)
        self._thread.start()

    def __enter__(self) -> TileReplica:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; uses that were recorded are sent if the daemon answers. Idempotent."""
        self._closing.set()
        with self._changed:
            stream = self._stream
        if stream is not None:
            stream.cancel()
        self._thread.join()
        self._uses.close()

    def follow(
        self,
        latitude: float,
        longitude: float,
        radius_meters: float,
        zooms: Collection[int],
        velocity_mps: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Follows the tiles within a distance of a position; to be called as the caller moves.

        Returns at once. More than the circle is followed, mostly ahead if `velocity_mps`
        (northward, eastward) is given, so that most calls change nothing. Raises ValueError for
        bad arguments, and CallError if the area is larger than the daemon allows.
        """
        self._raise_failure()
        levels = tuple(sorted(set(zooms)))
        circle = self._circle
        if circle and circle.suffices(latitude, longitude, radius_meters, levels):
            return
        circle = circle_to_follow(latitude, longitude, radius_meters, levels, velocity_mps)
        self._follow(circle.areas, circle)

    def follow_areas(self, areas: Sequence[WatchedArea]) -> None:
        """Follows these boxes, circles and cell ranges, and nothing else. Raises ValueError for
        regions of other kinds, and CallError as `follow`."""
        self._raise_failure()
        self._follow(list(areas), None)

    def wait_until_synced(self, timeout_s: float) -> None:
        """Returns when all of the followed area has arrived; raises CallError with
        DEADLINE_EXCEEDED when the time is over."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._failure or self._state.synced, timeout=timeout_s
            )
        self._raise_failure()
        if not done:
            raise CallError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the replica is not synced after {timeout_s} s"
            )

    def around(
        self,
        latitude: float,
        longitude: float,
        radius_meters: float,
        zoom: int,
        *,
        labels: Collection[int] = (),
        sources: Collection[int] = (),
        best_per_cell: bool = False,
        record_access: bool = False,
    ) -> Window[TileMetadata]:
        """The tiles of the cells that a circle on the ground overlaps; filters as of `cells`."""
        return self._read(
            zoom,
            cells_in_circle(zoom, latitude, longitude, radius_meters),
            labels,
            sources,
            best_per_cell,
            record_access,
        )

    def box(
        self,
        south: float,
        west: float,
        north: float,
        east: float,
        zoom: int,
        *,
        labels: Collection[int] = (),
        sources: Collection[int] = (),
        best_per_cell: bool = False,
        record_access: bool = False,
    ) -> Window[TileMetadata]:
        """The tiles of the cells that a box in degrees overlaps; `west` is more than `east`
        across the antimeridian. Filters as of `cells`."""
        return self._read(
            zoom,
            cells_in_box(zoom, BoundingBox(south, west, north, east)),
            labels,
            sources,
            best_per_cell,
            record_access,
        )

    def cells(
        self,
        zoom: int,
        x_from: int,
        x_to: int,
        y_from: int,
        y_to: int,
        *,
        labels: Collection[int] = (),
        sources: Collection[int] = (),
        best_per_cell: bool = False,
        record_access: bool = False,
    ) -> Window[TileMetadata]:
        """The tiles of a rectangle of cells, ends included.

        As `QueryTiles`: only these labels (none: all but `rejected` and `stale_reject`), only
        these sources (none: all), of each cell only the best one if asked for.
        `record_access` counts as a use of the tiles.
        """
        return self._read(
            zoom,
            (CellRectangle(x_from, x_to, y_from, y_to),),
            labels,
            sources,
            best_per_cell,
            record_access,
        )

    def best(
        self, zoom: int, x: int, y: int, *, record_access: bool = False
    ) -> TileMetadata | None:
        """The best tile of a cell that a query returns by default; None if there is none.
        Raises NotHeldError if the cell is not held."""
        tiles = self._block(zoom, x, y).usable_tiles[place_of(x, y)]
        return self._used(tiles[0] if tiles else None, record_access)

    def find(
        self,
        zoom: int,
        x: int,
        y: int,
        source: int | str,
        flight_id: UUID | str | None = None,
        *,
        record_access: bool = False,
    ) -> TileMetadata | None:
        """The tile with this key, whatever its label; None if there is none. Raises NotHeldError
        if the cell is not held, and ValueError for a bad key."""
        tile_uuid = str(derive_tile_id(zoom, x, y, source, flight_id))
        self._block(zoom, x, y)
        return self._used(self._state.tiles.get(tile_uuid), record_access)

    def get(self, tile_uuid: str, *, record_access: bool = False) -> TileMetadata:
        """The tile with this id, whatever its label.

        Raises NotHeldError if it is not held: an id does not tell its cell, so whether there is
        no such tile, or its cell is not followed, is not known; `find` knows.
        """
        self._raise_failure()
        tile = self._state.tiles.get(tile_uuid)
        if tile is None:
            raise NotHeldError(f"the replica does not hold a tile {tile_uuid}")
        self._used(tile, record_access)
        return tile

    def on_change(self, listener: Listener) -> None:
        """`listener` is called, in the replica's thread, with the blocks in which tiles have
        changed. It must return soon; what it raises is logged."""
        self._listeners.append(listener)

    @property
    def synced(self) -> bool:
        """Whether all of the followed area has arrived, and the stream is open."""
        return self._state.synced

    @property
    def age_s(self) -> float:
        """Every change that was committed longer ago than this, in seconds, is in the tiles that
        are held. Infinite if nothing is known."""
        return monotonic() - self._state.confirmed_at

    @property
    def degraded(self) -> bool:
        """Whether changes may go unnoticed at present: the daemon or PostgreSQL does not
        answer, or the daemon is not subscribed to changes."""
        return self._is_degraded(monotonic())

    @property
    def status(self) -> ReplicaStatus:
        """What is held."""
        state = self._state
        count = len(state.tiles)
        return ReplicaStatus(len(state.blocks), count, count * TILE_MEMORY_BYTES)

    def _read(
        self,
        zoom: int,
        cells: Iterable[CellRectangle],
        labels: Collection[int],
        sources: Collection[int],
        best_per_cell: bool,
        record_access: bool,
    ) -> Window[TileMetadata]:
        if self._failure:
            self._raise_failure()
        # Before the tiles are read: they may only be newer than this.
        confirmed_at = self._state.confirmed_at
        by_cell, complete = tiles_by_cell(self._state.blocks, zoom, cells, usable=not labels)
        if labels or sources:
            by_cell = [_passing(tiles, labels, sources) for tiles in by_cell]
        found = [tiles[0] for tiles in by_cell if tiles] if best_per_cell else flatten(by_cell)
        if record_access:
            self._uses.note(found)
        now = monotonic()
        return Window(found, complete, now - confirmed_at, self._is_degraded(now))

    def _is_degraded(self, now: float) -> bool:
        return self._state.degraded or now - self._heard_at > SILENCE_S

    def _block(self, zoom: int, x: int, y: int) -> Block[TileMetadata]:
        self._raise_failure()
        block = self._state.blocks.get(block_of(zoom, x, y))
        if block is None:
            raise NotHeldError(f"the replica does not hold the cell {zoom}/{x}/{y}")
        return block

    def _used(self, tile: TileMetadata | None, record_access: bool) -> TileMetadata | None:
        if record_access and tile is not None:
            self._uses.note((tile,))
        return tile

    def _follow(self, areas: list[WatchedArea], circle: FollowedCircle | None) -> None:
        keys = blocks_of_areas(areas)
        with self._changed:
            if self._limits:
                _check_limits(areas, keys, self._limits)
            self._areas, self._circle = areas, circle
            request = self._state.follow(keys)
            if self._requests is not None:
                self._requests.put(self._message(request))

    def _message(self, request: Request) -> WatchTilesRequest:
        return WatchTilesRequest(
            number=request.number,
            areas=self._areas,
            held=[
                HeldBlock(zoom=key.zoom, block_x=key.x, block_y=key.y, version=version)
                for key, version in request.held.items()
            ],
        )

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._receive()
            except CallError as error:
                if error.code in _FINAL_CODES or error.reason == _FULL:
                    with self._changed:
                        self._failure = error
                        self._changed.notify_all()
                    return
                log.debug("the stream ended: %s", error)
                self._delay_s = max(self._delay_s, error.retry_after_s or 0)
            except Exception:
                log.exception("the replica's stream failed")
            finally:
                with self._changed:
                    self._stream = self._requests = None
                    self._state.disconnect()
            self._closing.wait(self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_RETRY_S)

    def _receive(self) -> None:
        """Receives from one stream until it ends."""
        info = self._client.store.GetServerInfo(GetServerInfoRequest(), timeout=_INFO_TIMEOUT_S)
        if not info.limits.max_watch_streams:
            raise CallError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"a replica takes contract 1.5.0; the daemon has {info.contract_version}",
            )
        requests: queue.SimpleQueue[WatchTilesRequest | None] = queue.SimpleQueue()
        with self._changed:
            self._limits = info.limits
            _check_limits(self._areas, self._state.followed, info.limits)
            requests.put(self._message(self._state.reconnect(monotonic())))
            self._requests = requests
            stream = self._stream = self._client.store.WatchTiles(iter(requests.get, None))
        try:
            # `close` may have come before there was a stream to cancel.
            while not self._closing.is_set():
                self._apply(next(stream))
        except StopIteration:
            return
        finally:
            # This ends the thread in which gRPC takes the requests.
            requests.put(None)
            stream.cancel()

    def _apply(self, message: WatchTilesResponse) -> None:
        received_at = monotonic()
        changed: set[BlockKey] = set()
        for update in message.blocks:
            with self._changed:
                key, request = self._state.apply(message.number, update)
                if request and self._requests is not None:
                    self._requests.put(self._message(request))
            if key:
                changed.add(key)
        with self._changed:
            if message.synced:
                self._state.note_synced(message.number)
            if message.HasField("heartbeat"):
                beat = message.heartbeat
                age_ms = beat.age_ms if beat.HasField("age_ms") else None
                self._state.note_heartbeat(age_ms, beat.degraded, beat.elapsed_ms, received_at)
                self._heard_at = received_at
                self._delay_s = FIRST_RETRY_S
            self._changed.notify_all()
        if len(self._state.tiles) > self._max_tiles:
            raise CallError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the followed area has more than {self._max_tiles} tiles, the replica's limit",
                reason=_FULL,
            )
        if changed:
            self._notify(frozenset(changed))

    def _notify(self, changed: frozenset[BlockKey]) -> None:
        for listener in self._listeners:
            try:
                listener(changed)
            except Exception:
                log.exception("a listener of the replica failed")

    def _raise_failure(self) -> None:
        failure = self._failure
        if failure:
            # A new one: each raise adds to the traceback of an exception.
            raise CallError(
                failure.code, failure.message, failure.reason, failure.violations, failure.facts
            ) from failure


class _Traits:
    """How `TileMetadata` is read."""

    def id_of(self, tile: TileMetadata) -> str:
        return tile.tile_uuid

    def cell_of(self, tile: TileMetadata) -> tuple[int, int]:
        key = tile.key
        return key.x, key.y

    def order_of(self, tile: TileMetadata) -> tuple[int, int, int, str]:
        captured = tile.captured_at
        rank = _RANKS.get(tile.freshness_label, len(_RANKS))
        return rank, -captured.seconds, -captured.nanos, tile.tile_uuid

    def is_usable(self, tile: TileMetadata) -> bool:
        return tile.freshness_label in _USABLE

    def repack(self, tiles: Sequence[TileMetadata]) -> Sequence[TileMetadata]:
        # A message keeps all of the memory that it was parsed into.
        return list(BlockUpdate.FromString(BlockUpdate(tiles=tiles).SerializeToString()).tiles)


def _passing(
    tiles: tuple[TileMetadata, ...], labels: Collection[int], sources: Collection[int]
) -> tuple[TileMetadata, ...]:
    return tuple(
        tile
        for tile in tiles
        if (not labels or tile.freshness_label in labels)
        and (not sources or tile.key.source in sources)
    )


def _check_limits(areas: Sequence[WatchedArea], keys: Collection[BlockKey], limits: Limits) -> None:
    for count, most, things in (
        (len(areas), limits.max_watched_areas, "areas"),
        (len(keys), limits.max_watched_blocks, "blocks of 32 x 32 cells"),
    ):
        if count > most:
            text = f"are {count} {things}, the daemon allows {most}"
            raise CallError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"areas: {text}",
                reason="LIMIT_EXCEEDED",
                violations=[FieldViolation("areas", text)],
            )
