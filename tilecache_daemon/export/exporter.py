"""The export pipeline: read the image of each tile, check it, hand it to a writer."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.ingest.ahead import WORKERS, map_ahead
from tilecache_daemon.ingest.bundle_format import Header
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import (
    MISSING,
    UNREADABLE,
    WRONG_CONTENT,
    Refusal,
    printable,
)
from tilecache_daemon.ingest.image_store import StoreError, describe, read_below
from tilecache_daemon.ingest.images import MAX_IMAGE_BYTES, UnreadableImageError

UNKNOWN_SOURCE = "UNKNOWN_SOURCE"


class ExportedTile(NamedTuple):
    """A tile and the content of its image, which is what its hash says."""

    metadata: TileMetadata
    image: bytes


class TileWriter(Protocol):
    """What an export is written to."""

    def write_image(self, tile: ExportedTile) -> None:
        """Is called for each tile, by several threads at once; raises UnreadableImageError to
        refuse it, OSError or UnpackingError to end the export."""

    def append(self, tile: ExportedTile) -> None:
        """Is called for each tile, in order, after `write_image`; raises OSError."""


@dataclass
class ExportCounts:
    """What was exported so far."""

    tiles: int = 0
    used_bytes: int = 0
    refused: int = 0
    flights: set[str] = field(default_factory=set)
    """The ids of the tiles' flights."""

    def header(self) -> Header:
        """As the header of a bundle."""
        return Header(self.tiles, self.used_bytes)


class TileExporter:
    """Exports tiles. Setting `stopping` ends the export after the images in flight."""

    def __init__(
        self,
        root: Path,
        writer: TileWriter,
        on_refused: Callable[[Refusal], None] = lambda _: None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`root` is the tiles directory. Raises SourceError if it cannot be opened."""
        self.counts = ExportCounts()
        self.stopping = Event()
        self._writer = writer
        self._on_refused = on_refused
        self._on_progress = on_progress
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{root}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the tiles directory."""
        os.close(self._root)

    def run(self, tiles: Iterable[TileMetadata]) -> None:
        """Returns when all tiles are written. Raises what the writer raises."""
        with ThreadPoolExecutor(WORKERS) as pool:
            for exported in self._write_images(pool, tiles):
                if isinstance(exported, Refusal):
                    self.counts.refused += 1
                    self._on_refused(exported)
                else:
                    self._writer.append(exported)
                    self._count(exported)
                self._on_progress(1)

    def _write_images(
        self, pool: ThreadPoolExecutor, tiles: Iterable[TileMetadata]
    ) -> Iterator[ExportedTile | Refusal]:
        wanted = takewhile(lambda _: not self.stopping.is_set(), tiles)
        return map_ahead(pool, self._write_image, wanted)

    def _write_image(self, metadata: TileMetadata) -> ExportedTile | Refusal:
        exported = self._read(metadata)
        if isinstance(exported, ExportedTile):
            try:
                self._writer.write_image(exported)
            except UnreadableImageError as error:
                return Refusal(printable(metadata.file_path), "", UNREADABLE, str(error))
        return exported

    def _read(self, metadata: TileMetadata) -> ExportedTile | Refusal:
        name = printable(metadata.file_path)
        if not metadata.key.source:
            return Refusal(name, "key.source", UNKNOWN_SOURCE, "its source is none of the contract")
        try:
            image = read_below(self._root, metadata.file_path, MAX_IMAGE_BYTES)
        except FileNotFoundError:
            return Refusal(name, "", MISSING, "the image file does not exist")
        except OSError as error:
            return Refusal(name, "", UNREADABLE, describe(error))
        except StoreError as error:
            return Refusal(name, "file_path", UNREADABLE, str(error))
        if len(image) > MAX_IMAGE_BYTES:
            return Refusal(name, "", UNREADABLE, f"more than {MAX_IMAGE_BYTES} bytes")
        digest = sha256(image).hexdigest()
        if metadata.content_sha256 not in ("", digest):
            why = "the content of the image file is not what its tile says"
            return Refusal(name, "content_sha256", WRONG_CONTENT, why)
        # Rows of the first schema have neither hash nor size.
        metadata.content_sha256, metadata.disk_bytes = digest, len(image)
        return ExportedTile(metadata, image)

    def _count(self, tile: ExportedTile) -> None:
        self.counts.tiles += 1
        self.counts.used_bytes += len(tile.image)
        if tile.metadata.key.HasField("flight_id"):
            self.counts.flights.add(tile.metadata.key.flight_id)
