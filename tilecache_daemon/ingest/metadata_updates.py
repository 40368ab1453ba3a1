"""Correcting the metadata of tiles that are stored already."""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Final

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.identity import SOURCE_TEXTS, tile_uuid_text
from tilecache.v1.tile_cache_admin_pb2 import (
    TileUpdate,
    UpdateOutcome,
    UpdateTilesRequest,
    UpdateTilesResponse,
)
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.ingest.sender import (
    PreparedTile,
    RetryPolicy,
    is_transient,
    wait_for_daemon,
)

_CALL_TILES: Final = 1_000
_CALL_TIMEOUT_S: Final = 60.0


class MetadataUpdater:
    """Gives stored tiles the path, the quality metadata and perhaps the capture time of an
    import."""

    def __init__(
        self,
        client: TileCacheClient,
        stopping: Event,
        retry_policy: RetryPolicy,
        *,
        with_captures: bool,
    ) -> None:
        self._client = client
        self._stopping = stopping
        self._retry_policy = retry_policy
        self._with_captures = with_captures

    def update(
        self, tiles: Sequence[PreparedTile]
    ) -> Iterator[tuple[PreparedTile, UpdateOutcome.ValueType]]:
        """Yields each tile with its outcome; of several with one key the first alone. Raises
        CallError, as `BatchSender.send`."""
        by_id: dict[str, PreparedTile] = {}
        for tile in tiles:
            by_id.setdefault(_tile_uuid(tile.metadata), tile)
        ids = list(by_id)
        for start in range(0, len(ids), _CALL_TILES):
            part = ids[start : start + _CALL_TILES]
            request = UpdateTilesRequest(
                tiles=[self._update(tile_uuid, by_id[tile_uuid].metadata) for tile_uuid in part]
            )
            outcomes = self._call(request).outcomes
            yield from zip((by_id[tile_uuid] for tile_uuid in part), outcomes, strict=True)

    def _call(self, request: UpdateTilesRequest) -> UpdateTilesResponse:
        for attempt in range(1, self._retry_policy.attempts + 1):
            try:
                return self._client.admin.UpdateTiles(request, timeout=_CALL_TIMEOUT_S)
            except CallError as error:
                last = attempt == self._retry_policy.attempts or self._stopping.is_set()
                if last or not is_transient(error):
                    raise
                wait_for_daemon(self._client, error, self._stopping, self._retry_policy)
        raise AssertionError("the last attempt returns or raises")

    def _update(self, tile_uuid: str, metadata: TileMetadata) -> TileUpdate:
        update = TileUpdate(
            tile_uuid=tile_uuid,
            content_sha256=metadata.content_sha256,
            file_path=metadata.file_path,
        )
        if self._with_captures:
            update.captured_at.CopyFrom(metadata.captured_at)
        if metadata.HasField("quality_metadata"):
            update.quality_metadata.CopyFrom(metadata.quality_metadata)
        return update


def _tile_uuid(metadata: TileMetadata) -> str:
    key = metadata.key
    flight_id = key.flight_id if key.HasField("flight_id") else None
    return tile_uuid_text(key.zoom, key.x, key.y, SOURCE_TEXTS[key.source], flight_id)
