"""Pushing the tiles that wait for upload to another daemon, and marking what it has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.ingest.found import Refusal
from tilecache_daemon.ingest.sender import Batch, PreparedTile
from tilecache_daemon.sync.fetching import refusal, unknown_content
from tilecache_daemon.sync.peer import Peer


@dataclass
class PushCounts:
    """The outcomes so far."""

    pending: int = 0
    """Tiles that waited for upload."""
    marked: int = 0
    kept_existing: int = 0
    """Tiles of which the other side has a later version: they are still pending."""
    refused: int = 0


class Push:
    """Pushes pending uploads. Can be repeated: what is marked waits no more."""

    def __init__(self, here: Peer, there: Peer, on_refused: Callable[[Refusal], None]) -> None:
        self.counts = PushCounts()
        self.stopping = Event()
        self._here = here
        self._there = there
        self._on_refused = on_refused

    def preview(self) -> None:
        """Counts what is pending; pushes and marks nothing."""
        for tiles in self._here.list_pending_uploads():
            self.counts.pending += len(tiles)

    def run(self) -> None:
        """Returns when all have been pushed, and those that the other side has are marked.
        Raises PeerError; what was marked by then stays."""
        for batch, answer in self._there.insert(self._batches(), self.stopping):
            self._mark(batch, answer)

    def _batches(self) -> Iterator[Batch]:
        # They do not wait for upload there; by the other side's clock.
        now = self._there.describe_server().clock.time
        for tiles in self._here.list_pending_uploads():
            self.counts.pending += len(tiles)
            batch = []
            for tile in tiles:
                if refused := unknown_content(tile):
                    self._refuse(refused)
                    continue
                for name in ("created_at", "accessed_at", "freshness_label"):
                    tile.ClearField(name)
                tile.uploaded_at.CopyFrom(now)
                batch.append(PreparedTile(tile.file_path, tile))
            if batch:
                yield batch

    def _mark(self, batch: Batch, answer: pb.BulkInsertTilesResponse) -> None:
        refused = {each.index: each for each in answer.refused}
        for index, each in refused.items():
            self._refuse(refusal(batch[index].metadata, each.reason, each.message))
        pushed = [tile.metadata for index, tile in enumerate(batch) if index not in refused]
        if answer.kept_existing_count:
            # The answer does not say which.
            there = self._there.look_up([tile.tile_uuid for tile in pushed])
            taken = [
                tile
                for tile, other in zip(pushed, there, strict=True)
                if other is not None and other.content_sha256 == tile.content_sha256
            ]
            self.counts.kept_existing += len(pushed) - len(taken)
            pushed = taken
        outcomes = self._here.mark_uploaded(pushed)
        self.counts.marked += outcomes.count(pb.MARK_OUTCOME_MARKED)

    def _refuse(self, refused: Refusal) -> None:
        self.counts.refused += 1
        self._on_refused(refused)
