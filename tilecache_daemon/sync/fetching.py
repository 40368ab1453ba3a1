"""Fetching tiles from another daemon: their files first, then their metadata."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Final

from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesResponse,
    Region,
    TileMetadata,
)
from tilecache_daemon.ingest.ahead import WORKERS
from tilecache_daemon.ingest.found import MISSING, NOT_STORED, WRONG_CONTENT, Refusal
from tilecache_daemon.ingest.image_store import (
    ImageStore,
    StoreError,
    StoreFullError,
    WrongContentError,
    read_below,
)
from tilecache_daemon.ingest.images import MAX_IMAGE_BYTES
from tilecache_daemon.ingest.sender import Batch, PreparedTile
from tilecache_daemon.sync.differences import Comparison, Newer, find_newer_tiles
from tilecache_daemon.sync.peer import Peer

UNKNOWN_CONTENT: Final = "UNKNOWN_CONTENT"
_LOCAL_FIELDS: Final = ("created_at", "accessed_at", "freshness_label")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass
class FetchCounts:
    """The outcomes so far."""

    inserted: int = 0
    downgraded: int = 0
    replaced: int = 0
    already_present: int = 0
    """A tile that another writer has stored meanwhile, as `kept_existing`."""
    kept_existing: int = 0
    refused: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    files: int = 0
    """Files that the stored tiles need, as `file_bytes`; those that were copied are not counted."""
    file_bytes: int = 0


class Files:
    """Brings files from one directory into another."""

    def __init__(self, source: Path, store: ImageStore) -> None:
        """Raises OSError if the source cannot be opened."""
        self._source = os.open(source, _DIRECTORY)
        self.store = store

    def close(self) -> None:
        """Closes both directories."""
        os.close(self._source)
        self.store.close()

    def check(self, tile: TileMetadata) -> Refusal | None:
        """Why the file of a tile could not be copied, if so."""
        try:
            image = read_below(self._source, tile.file_path, MAX_IMAGE_BYTES)
        except StoreError as error:
            return refusal(tile, NOT_STORED, str(error))
        except OSError as error:
            return refusal(tile, MISSING, f"{tile.file_path}: {error.strerror}")
        if sha256(image).hexdigest() != tile.content_sha256:
            return refusal(tile, WRONG_CONTENT, f"{tile.file_path}: other content")
        return None

    def copy(self, tile: TileMetadata) -> PreparedTile | Refusal:
        """Copies the file of a tile, under another name if its own is taken."""
        try:
            image = read_below(self._source, tile.file_path, MAX_IMAGE_BYTES)
            stored = self.store.store(tile.file_path, tile.content_sha256, image)
        except StoreFullError:
            raise
        except WrongContentError as error:
            return refusal(tile, WRONG_CONTENT, str(error))
        except StoreError as error:
            return refusal(tile, NOT_STORED, str(error))
        except OSError as error:
            return refusal(tile, MISSING, f"{tile.file_path}: {error.strerror}")
        wanted, tile.file_path = tile.file_path, stored.file_path
        if not stored.is_open:
            return PreparedTile(wanted, tile)
        undo = partial(self.store.undo, stored.file_path)
        keep = partial(self.store.keep, stored.file_path)
        return PreparedTile(wanted, tile, undo, keep)


class Fetch:
    """Fetches what another daemon has newer. Can be repeated: what is stored differs no more."""

    def __init__(
        self,
        here: Peer,
        there: Peer,
        files: Files | None,
        on_refused: Callable[[Refusal], None],
        on_file: Callable[[TileMetadata], None],
    ) -> None:
        """Without `files`, `on_file` is called for each tile whose file is needed here."""
        self.comparison = Comparison()
        self.counts = FetchCounts()
        self.stopping = Event()
        self._here = here
        self._there = there
        self._files = files
        self._on_refused = on_refused
        self._on_file = on_file

    def preview(self, zooms: Sequence[int], region: Region | None) -> None:
        """Counts what `run` would store, and reports the files; copies and stores nothing."""
        for newer in self._find(zooms, region):
            for each in newer:
                if refused := self._preview_refusal(each):
                    self._refuse(refused)
                    continue
                if each.stored is None:
                    self.counts.inserted += 1
                else:
                    self.counts.replaced += 1
                if each.has_new_content and not self._files:
                    self._need_file(each.tile)

    def run(self, zooms: Sequence[int], region: Region | None) -> None:
        """Returns when all are stored. Raises PeerError, and StoreFullError when no more files
        can be stored; what was stored by then stays."""
        with ThreadPoolExecutor(WORKERS) as pool:
            batches = self._prepared(pool, self._find(zooms, region))
            for batch, answer in self._here.insert(batches, self.stopping):
                self._record(batch, answer)

    def _find(self, zooms: Sequence[int], region: Region | None) -> Iterator[list[Newer]]:
        return find_newer_tiles(self._here, self._there, zooms, region, self.comparison)

    def _prepared(
        self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[Newer]]
    ) -> Iterator[Batch]:
        for newer in batches:
            prepared = []
            for outcome in pool.map(self._prepare, newer):
                if isinstance(outcome, Refusal):
                    self._refuse(outcome)
                else:
                    prepared.append(outcome)
            if self._files:
                # A reader that sees the row finds the file.
                self._files.store.make_durable()
            if prepared:
                yield prepared

    def _prepare(self, newer: Newer) -> PreparedTile | Refusal:
        tile, stored = newer
        if refused := unknown_content(tile):
            return refused
        for name in _LOCAL_FIELDS:
            tile.ClearField(name)
        if stored is not None and not newer.has_new_content:
            # The same image is stored here already, perhaps under another path.
            tile.file_path, tile.disk_bytes = stored.file_path, stored.disk_bytes
            return PreparedTile("", tile)
        if self._files is None:
            return PreparedTile(tile.file_path, tile)
        return self._files.copy(tile)

    def _record(self, batch: Batch, answer: BulkInsertTilesResponse) -> None:
        counts = self.counts
        counts.inserted += answer.inserted_count
        counts.downgraded += answer.downgraded_count
        counts.replaced += answer.replaced_count
        counts.already_present += answer.already_present_count
        counts.kept_existing += answer.kept_existing_count
        refused = {each.index: each for each in answer.refused}
        for index, tile in enumerate(batch):
            if index in refused:
                if tile.discard:
                    tile.discard()
                self._refuse(refusal(tile.metadata, refused[index].reason, refused[index].message))
                continue
            tile.keep()
            if tile.file and self._files is None:
                self._need_file(tile.metadata)
            elif tile.discard:
                counts.copied_files += 1
                counts.copied_bytes += tile.metadata.disk_bytes

    def _need_file(self, tile: TileMetadata) -> None:
        self.counts.files += 1
        self.counts.file_bytes += tile.disk_bytes
        self._on_file(tile)

    def _preview_refusal(self, newer: Newer) -> Refusal | None:
        refused = unknown_content(newer.tile)
        if refused or not self._files or not newer.has_new_content:
            return refused
        return self._files.check(newer.tile)

    def _refuse(self, refused: Refusal) -> None:
        self.counts.refused += 1
        self._on_refused(refused)


def unknown_content(tile: TileMetadata) -> Refusal | None:
    """The refusal of a tile whose content hash is unknown: it cannot be inserted."""
    if tile.content_sha256 and tile.HasField("disk_bytes"):
        return None
    return refusal(tile, UNKNOWN_CONTENT, "its content hash or its size is not known there")


def refusal(tile: TileMetadata, reason: str, message: str) -> Refusal:
    """Why a tile was not taken."""
    return Refusal(tile.file_path, "", reason, message)
