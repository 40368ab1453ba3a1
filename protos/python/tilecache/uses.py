"""Recording the use of tiles in the background."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Iterable, Sequence

from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata, TileRef, TouchTilesRequest

if TYPE_CHECKING:
    from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

INTERVAL_S: Final = 1.0
MAX_WAITING: Final = 100_000
"""Uses beyond these, which an outage may bring, are not recorded."""
_MAX_UNREAD: Final = 1_000
_TILES_PER_CALL: Final = 1_000
_TIMEOUT_S: Final = 5.0


class UseRecorder:
    """Collects uses, and sends them each second, one for each tile."""

    def __init__(self, store: TileMetadataStoreStub) -> None:
        self._store = store
        self._unread: deque[Sequence[TileMetadata]] = deque(maxlen=_MAX_UNREAD)
        self._waiting: dict[str, None] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()

    def note(self, tiles: Sequence[TileMetadata]) -> None:
        """These tiles are used. Takes no time."""
        self._unread.append(tiles)
        if self._thread is None:
            with self._starting:
                if self._thread is None and not self._closing.is_set():
                    self._thread = threading.Thread(
                        target=self._run, name="tilecache-uses", daemon=True
                    )
                    self._thread.start()

    def close(self) -> None:
        """Sends what is collected, if the daemon answers."""
        self._closing.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            self._send()
        self._send()

    def _send(self) -> None:
        while self._unread:
            for tile in self._unread.popleft():
                if len(self._waiting) < MAX_WAITING:
                    self._waiting[tile.tile_uuid] = None
        tile_uuids = list(self._waiting)
        for start in range(0, len(tile_uuids), _TILES_PER_CALL):
            some = tile_uuids[start : start + _TILES_PER_CALL]
            try:
                self._store.TouchTiles(_request(some), timeout=_TIMEOUT_S)
            except CallError:
                # They are sent the next time.
                return
            for tile_uuid in some:
                del self._waiting[tile_uuid]


def _request(tile_uuids: Iterable[str]) -> TouchTilesRequest:
    return TouchTilesRequest(tiles=[TileRef(tile_uuid=tile_uuid) for tile_uuid in tile_uuids])
