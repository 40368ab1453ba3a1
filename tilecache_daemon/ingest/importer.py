"""The import pipeline from a source to the daemon: read, check, hash, unpack, send."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from io import BytesIO
from itertools import islice, takewhile
from pathlib import Path
from threading import Event
from typing import Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.client import TileCacheClient, is_degraded
from tilecache.errors import CallError
from tilecache.identity import MAX_ZOOM
from tilecache.mercator import BlockKey, CellRectangle, block_of, bounds_of
from tilecache.v1.tile_cache_admin_pb2 import UpdateOutcome
from tilecache.v1.tile_identity_pb2 import TileKey, TileSource
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesResponse,
    CellRange,
    FreshnessLabel,
    OnConflict,
    QueryTilesRequest,
    Region,
    TileMetadata,
)
from tilecache_daemon.errors import FilePendingRemovalError, TileNotFoundError
from tilecache_daemon.ingest.ahead import WORKERS, map_ahead
from tilecache_daemon.ingest.capture_times import (
    NO_CAPTURE_TIME,
    SIDECAR_NAME,
    CapturedFrom,
    CaptureSpan,
    Description,
    NoCaptureTimeError,
    read_exif_time,
    read_sidecar,
)
from tilecache_daemon.ingest.found import (
    NOT_STORED,
    NOT_UNPACKED,
    UNREADABLE,
    WRONG_CONTENT,
    BundledTile,
    Found,
    FoundTile,
    IgnoredFile,
    Refusal,
    Source,
)
from tilecache_daemon.ingest.gunzip import gunzip, is_gzipped
from tilecache_daemon.ingest.image_store import ImageStore, StoreError, WrongContentError
from tilecache_daemon.ingest.images import (
    MAX_IMAGE_BYTES,
    UnreadableImageError,
    read_header,
)
from tilecache_daemon.ingest.metadata_updates import MetadataUpdater
from tilecache_daemon.ingest.sender import (
    DEFAULT_RETRY_POLICY,
    Batch,
    BatchSender,
    PreparedTile,
    RetryPolicy,
)
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackDirectory, UnpackingError

Item = TypeVar("Item")

_QUERY_TIMEOUT_S: Final = 60
_ALL_LABELS: Final = [label for label in FreshnessLabel.values() if label]
_BATCH_INDEX: Final = re.compile(r"^tiles\[\d+\]\.?")


@dataclass(frozen=True)
class ImportOptions:
    """The options of an import."""

    root: Path
    """The directory that stored paths are relative to. All images must be below it."""
    source: TileSource.ValueType
    flight_id: str | None = None
    captured_at: datetime | None = None
    """None: what `captured_from` says."""
    captured_from: CapturedFrom = CapturedFrom.MODIFIED
    captures_given: bool = False
    """Whether the capture times, or where they come from, were given. By default they are
    modification times, which correct no stored capture time."""
    update_metadata: bool = False
    """Whether stored tiles of the same content get the path, the quality metadata and, where they
    are given, the capture time of the import. Needs the admin socket."""
    on_conflict: OnConflict.ValueType = OnConflict.ON_CONFLICT_FAIL
    batch_size: int = 1000
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY


@dataclass
class ImportCounts:
    """The outcomes so far."""

    inserted: int = 0
    downgraded: int = 0
    already_present: int = 0
    updated: int = 0
    """Stored already, with other metadata, which were corrected."""
    kept_existing: int = 0
    replaced: int = 0
    refused: int = 0
    ignored: int = 0


class TileImporter:
    """Imports one source. Setting `stopping` ends the import after the batches in flight."""

    def __init__(
        self,
        client: TileCacheClient,
        options: ImportOptions,
        unpack_directory: UnpackDirectory | None = None,
        on_refused: Callable[[Refusal], None] = lambda _: None,
        on_ignored: Callable[[IgnoredFile], None] = lambda _: None,
        on_progress: Callable[[int], None] = lambda _: None,
        image_store: ImageStore | None = None,
    ) -> None:
        self.counts = ImportCounts()
        self.captures = CaptureSpan()
        """The capture times of the images that were sent."""
        self.stopping = Event()
        self._no_room: NoRoomError | None = None
        self._options = options
        self._unpack_directory = unpack_directory
        self._image_store = image_store
        self._on_refused = on_refused
        self._on_ignored = on_ignored
        self._on_progress = on_progress
        self._client = client
        self._sender = BatchSender(client, options.on_conflict, self.stopping, options.retry_policy)
        self._updater = MetadataUpdater(
            client, self.stopping, options.retry_policy, with_captures=options.captures_given
        )

    def run(self, source: Source) -> None:
        """Returns when the daemon has answered for every tile.

        Raises SourceError if the source cannot be read to its end, NoRoomError if nothing
        more can be unpacked, CallError if the daemon fails. The tiles counted in `counts`
        by then are stored.
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            found = takewhile(lambda _: not self.stopping.is_set(), source)
            prepare = partial(self._prepare, archive=source.path)
            prepared = map_ahead(pool, prepare, found)
            for batch, answer in self._sender.send(self._make_batches(prepared)):
                self._record_answer(batch, answer)
        if self._no_room:
            raise self._no_room

    def _prepare(self, found: Found, archive: Path) -> PreparedTile | Refusal | IgnoredFile:
        if not isinstance(found, FoundTile | BundledTile):
            return found
        try:
            if isinstance(found, BundledTile):
                return self._prepare_bundled(found)
            return self._prepare_tile(found, archive)
        except WrongContentError as error:
            return Refusal(found.file, "content_sha256", WRONG_CONTENT, str(error))
        except UnreadableImageError as error:
            return Refusal(found.file, "", UNREADABLE, str(error))
        except NoCaptureTimeError as error:
            return Refusal(found.file, "captured_at", NO_CAPTURE_TIME, str(error))
        except NoRoomError:
            raise
        except StoreError as error:
            return Refusal(found.file, "file_path", NOT_STORED, str(error))
        except UnpackingError as error:
            return Refusal(found.file, "", NOT_UNPACKED, str(error))
        except OSError as error:
            return Refusal(found.file, "", UNREADABLE, error.strerror or str(error))

    def _prepare_tile(self, found: FoundTile, archive: Path) -> PreparedTile:
        image = _read_file(found.image) if isinstance(found.image, Path) else _unzip(found.image)
        header = read_header(image)
        digest = sha256(image).hexdigest()
        file = found.image if isinstance(found.image, Path) else archive
        description = self._describe(image, file)
        path, discard = self._store_image(found, image, header.suffix, digest)
        metadata = TileMetadata(
            key=TileKey(
                zoom=found.zoom,
                x=found.x,
                y=found.y,
                source=self._options.source,
                flight_id=self._options.flight_id,
            ),
            tile_size_pixels=header.edge_pixels,
            file_path=path.relative_to(self._options.root).as_posix(),
            content_sha256=digest,
            disk_bytes=len(image),
            captured_at=description.captured_at,
            quality_metadata=description.quality_metadata,
        )
        return PreparedTile(found.file, metadata, discard)

    def _prepare_bundled(self, found: BundledTile) -> PreparedTile:
        """Stores the image of a tile of a bundle under its path."""
        assert self._image_store is not None, "a bundle needs a directory to store images in"
        metadata = found.metadata
        image = _check_size(found.read())
        if len(image) != metadata.disk_bytes:
            why = f"{found.file}: has {len(image):,} bytes, not {metadata.disk_bytes:,}"
            raise WrongContentError(why)
        stored = self._image_store.store(metadata.file_path, metadata.content_sha256, image)
        metadata.file_path = stored.file_path
        if not stored.is_open:
            return PreparedTile(found.file, metadata)
        discard = partial(self._image_store.undo, stored.file_path)
        keep = partial(self._image_store.keep, stored.file_path)
        return PreparedTile(found.file, metadata, discard, keep)

    def _store_image(
        self, found: FoundTile, image: bytes, suffix: str, digest: str
    ) -> tuple[Path, Callable[[], None] | None]:
        """The path of the image, unpacked if necessary, and a function to undo the unpacking."""
        if isinstance(found.image, Path):
            return found.image, None
        assert self._unpack_directory is not None, "an archive needs a directory to unpack into"
        name = f"{found.zoom}/{found.x}/{found.y}.{suffix}"
        path, written = self._unpack_directory.write(name, digest, image)
        return path, partial(path.unlink, missing_ok=True) if written else None

    def _describe(self, image: bytes, file: Path) -> Description:
        """What is said about an image that is in a file, or in an archive."""
        if self._options.captured_at is not None:
            return Description(_timestamp(self._options.captured_at))
        if self._options.captured_from is CapturedFrom.EXIF:
            return Description(_timestamp(read_exif_time(BytesIO(image))))
        if self._options.captured_from is CapturedFrom.SIDECAR:
            return read_sidecar(file)
        captured_at = Timestamp()
        captured_at.FromNanoseconds(file.stat().st_mtime_ns)
        return Description(captured_at)

    def _make_batches(
        self, prepared: Iterable[PreparedTile | Refusal | IgnoredFile]
    ) -> Iterator[Batch]:
        tiles = self._record_rejects(prepared)
        while batch := list(islice(tiles, self._options.batch_size)):
            if self._unpack_directory is not None:
                self._unpack_directory.make_durable()
            if self._image_store is not None:
                self._image_store.make_durable()
            yield batch

    def _record_rejects(
        self, prepared: Iterable[PreparedTile | Refusal | IgnoredFile]
    ) -> Iterator[PreparedTile]:
        for outcome in self._end_without_room(prepared):
            if isinstance(outcome, PreparedTile):
                self.captures.add(outcome.metadata.captured_at)
                yield outcome
            elif isinstance(outcome, Refusal):
                self._refuse(outcome)
                self._on_progress(1)
            elif not self._is_sidecar(outcome.file):
                self.counts.ignored += 1
                self._on_ignored(outcome)

    def _is_sidecar(self, file: str) -> bool:
        reads = self._options.captured_from is CapturedFrom.SIDECAR
        return reads and SIDECAR_NAME.fullmatch(file) is not None

    def _end_without_room(self, prepared: Iterable[Item]) -> Iterator[Item]:
        """What is unpacked by then is still sent."""
        try:
            yield from prepared
        except NoRoomError as error:
            self._no_room = error

    def _record_answer(self, batch: Batch, answer: BulkInsertTilesResponse) -> None:
        self.counts.inserted += answer.inserted_count
        self.counts.downgraded += answer.downgraded_count
        self.counts.already_present += answer.already_present_count
        self.counts.kept_existing += answer.kept_existing_count
        self.counts.replaced += answer.replaced_count
        if self._options.update_metadata and answer.already_present_count:
            self._update_metadata(batch, answer)
        self._discard_unnamed(batch, answer)
        for refused in answer.refused:
            tile = batch[refused.index]
            field = _BATCH_INDEX.sub("", refused.field)
            self._refuse(Refusal(tile.file, field, refused.reason, refused.message))
        self._on_progress(len(batch))

    def _update_metadata(self, batch: Batch, answer: BulkInsertTilesResponse) -> None:
        """Corrects the tiles of a batch that were stored before. The answer does not say which
        these are; for the others, nothing changes."""
        refused = {each.index for each in answer.refused}
        stored = [tile for index, tile in enumerate(batch) if index not in refused]
        for tile, outcome in self._updater.update(stored):
            if outcome == UpdateOutcome.UPDATE_OUTCOME_UPDATED:
                self.counts.updated += 1
            elif outcome == UpdateOutcome.UPDATE_OUTCOME_FILE_PENDING_REMOVAL:
                why = f"{tile.metadata.file_path} is listed for removal: confirm its removal first"
                self._refuse(Refusal(tile.file, "file_path", FilePendingRemovalError.reason, why))
            elif outcome == UpdateOutcome.UPDATE_OUTCOME_NOT_FOUND:
                self._refuse(
                    Refusal(tile.file, "", TileNotFoundError.reason, "was deleted meanwhile")
                )
            else:
                continue
            self.counts.already_present -= 1

    def _discard_unnamed(self, batch: Batch, answer: BulkInsertTilesResponse) -> None:
        """Removes the files that were unpacked for tiles that were not stored, unless a stored
        tile names them. The answer does not say which tiles it has kept."""
        if answer.kept_existing_count or answer.already_present_count:
            tiles = batch
        else:
            tiles = [batch[refused.index] for refused in answer.refused]
        by_block: defaultdict[BlockKey, list[PreparedTile]] = defaultdict(list)
        for tile in tiles:
            if tile.discard:
                key = tile.metadata.key
                by_block[block_of(key.zoom, key.x, key.y)].append(tile)
        kept = {id(tile): tile for tile in batch}
        for block, unpacked in by_block.items():
            named = self._find_named_files(block, unpacked)
            for tile in unpacked:
                if tile.discard and named is not None and tile.metadata.file_path not in named:
                    tile.discard()
                    del kept[id(tile)]
        for tile in kept.values():
            tile.keep()

    def _find_named_files(self, block: BlockKey, tiles: list[PreparedTile]) -> set[str] | None:
        """The files that the stored tiles in the cells of some tiles name, whatever their source
        and label; None if that is not known for certain."""
        edge = 1 << min(block.zoom, MAX_ZOOM)
        keys = [tile.metadata.key for tile in tiles]
        cells = [
            CellRectangle(key.x, key.x, key.y, key.y)
            for key in keys
            if key.x < edge and key.y < edge and key.zoom <= MAX_ZOOM
        ]
        if not cells:
            return set()
        request = QueryTilesRequest(
            zoom=block.zoom,
            region=Region(cell_range=CellRange(**bounds_of(cells)._asdict())),
            labels=_ALL_LABELS,
        )
        named: set[str] = set()
        try:
            answers = self._client.store.QueryTiles(request, timeout=_QUERY_TIMEOUT_S)
            for answer in answers:
                named.update(tile.file_path for tile in answer.tiles)
        except CallError:
            return None
        return None if is_degraded(answers) else named

    def _refuse(self, refusal: Refusal) -> None:
        self.counts.refused += 1
        self._on_refused(refusal)


def _timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return _check_size(file.read(MAX_IMAGE_BYTES + 1))


def _unzip(image: bytes) -> bytes:
    """An image of an archive, in which it may be gzipped."""
    if not is_gzipped(image):
        return _check_size(image)
    try:
        return gunzip(image, MAX_IMAGE_BYTES)
    except ValueError as error:
        raise UnreadableImageError(str(error)) from error


def _check_size(image: bytes) -> bytes:
    if len(image) > MAX_IMAGE_BYTES:
        raise UnreadableImageError(f"more than {MAX_IMAGE_BYTES} bytes, too large for a tile")
    return image
